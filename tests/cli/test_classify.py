"""classify over folders: equal answers, rows as they are known, files of labels, CSV, Ctrl-C."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from jaxclip import cli
from jaxclip.cli.row_writer import RowWriter
from jaxclip.evaluation.prompts import read_templates
from tests.support.command import EXAMPLES, LABELS, fails

DRAWINGS = sorted((EXAMPLES[0].parent / "drawings").glob("[b-d]*.webp"))[:40]
CLOSE = 1e-4  # of a logit: another number of rows is another program


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 drawings, more than a batch, two broken files between them."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in DRAWINGS:
        shutil.copy(path, pictures)
    (pictures / "a broken.png").write_bytes(b"no picture")
    (pictures / "c.png").write_bytes(b"")
    return pictures


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    capsys.readouterr()
    assert cli.main(["classify", *map(str, arguments)]) == 0
    return tuple(capsys.readouterr())


def records(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict]:
    out = run(capsys, *arguments, "--labels", *LABELS, "--json")[0]
    return [json.loads(line) for line in out.splitlines()]


def differences(ours: list[dict], theirs: list[dict]) -> list[str]:
    """The pictures of which two answers differ."""
    return [
        a["picture"]
        for a, b in zip(ours, theirs, strict=True)
        if a["picture"] != b["picture"]
        or any(
            x["label"] != y["label"] or abs(x["logit"] - y["logit"]) > CLOSE
            for x, y in zip(a["labels"], b["labels"], strict=True)
        )
    ]


def test_a_folder_is_classified_as_file_by_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    together = records(capsys, folder)
    assert [Path(x["picture"]).name for x in together] == [path.name for path in DRAWINGS]
    some = together[::6]
    alone = [records(capsys, record["picture"])[0] for record in some]
    assert differences(alone, some) == []
    shutil.copy(DRAWINGS[1], some[0]["picture"])  # the twin: one other picture is noticed
    alone[0] = records(capsys, some[0]["picture"])[0]
    assert differences(alone, some) == [some[0]["picture"]]


def test_every_way_of_naming_gives_the_same_rows(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = records(capsys, folder)
    assert records(capsys, folder / "*.webp") == right
    names = b"\0".join(os.fsencode(folder / path.name) for path in DRAWINGS)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(names)))
    assert records(capsys, "-") == right


def test_broken_files_are_named_counted_and_do_not_fail(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, folder, "--labels", *LABELS, "--json")
    assert len(out.splitlines()) == 40
    left_out = [line for line in err.splitlines() if line.startswith("left out: ")]
    assert "a broken.png" in left_out[0] and "c.png" in left_out[1]
    assert left_out[2] == "left out: 2 of 42 pictures"


def test_nothing_readable_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in folder.glob("*.webp"):
        path.unlink()
    out = folder / "out.csv"
    assert cli.main(["classify", str(folder), "--labels", "a", "b", "--csv", str(out)]) == 1
    said, told = capsys.readouterr()
    assert said == "" and told.splitlines()[-1] == ("jaxclip: none of the 2 pictures could be read")
    assert not out.exists()


def test_csv_is_rfc_4180(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    odd = 'a "b", c\nd.webp'
    (folder / DRAWINGS[0].name).rename(folder / odd)
    (folder / os.fsdecode(b"\xff.webp")).write_bytes(DRAWINGS[1].read_bytes())
    out = tmp_path / "new" / "out.csv"
    ask = [folder, "--labels", *LABELS, "--top", 2, "--csv", out]
    assert f"wrote {out}: 41 pictures, 2 left out" in run(capsys, *ask)[0]
    content = out.read_bytes()
    assert content.startswith(b"picture,rank,label,probability,cosine,none_fits\r\n")
    assert b'a ""b"", c\nd.webp"' in content and b"\xff.webp" in content
    with open(out, encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 41 and {row["rank"] for row in rows} == {"1", "2"}
    (best,) = (row for row in rows if row["picture"].endswith(odd) and row["rank"] == "1")
    (record,) = records(capsys, folder / odd)
    assert best["label"] == record["labels"][0]["label"]
    assert float(best["cosine"]) == pytest.approx(record["labels"][0]["cosine"], abs=1e-5)
    assert "--force" in fails(capsys, 2, "classify", *map(str, ask))


def test_threshold_and_scores_choose_what_is_shown(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ask = [EXAMPLES[0], "--labels", *LABELS, "--scores", "cosine"]
    (record,) = records(capsys, EXAMPLES[0])
    second = record["labels"][1]["cosine"]
    out = run(capsys, *ask, "--threshold", second - 1e-4)[0]
    assert out.count("0.") == 2 and "%" not in out and "cosine" in out
    assert "no label has the score that was asked for" in " ".join(
        run(capsys, *ask, "--threshold", 0.99)[0].split()
    )
    run(capsys, *ask, "--threshold", 0.99, "--csv", tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines()[1] == f"{EXAMPLES[0]},,,,,0"


def test_a_row_is_marked_where_no_label_fits(capsys: pytest.CaptureFixture[str]) -> None:
    note = "no label fits: within the noise of unrelated words"
    out = run(capsys, EXAMPLES[0], "--labels", "bicycle", "cat face")[0]
    assert note not in " ".join(out.split())
    out = run(capsys, EXAMPLES[0], "--labels", "fish", "shoe")[0]
    assert note in " ".join(out.split())


def test_a_file_of_labels_is_read_by_one_rule(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes(b"\xef\xbb\xbfrocket\r\n\r\n  cat face \r\nrocket\r\nhot beverage\nbicycle")
    ask = [EXAMPLES[0], "--json"]
    assert run(capsys, *ask, "--labels-file", file) == run(
        capsys, *ask, "--labels", "rocket", "cat face", "hot beverage", "bicycle"
    )
    picture = str(EXAMPLES[0])
    file.write_text("\n \n")
    assert "a text on each line" in fails(
        capsys, 1, "classify", picture, "--labels-file", str(file)
    )
    both = ["--labels", "a", "--labels-file", str(file)]
    assert "--labels or --labels-file, got both" in fails(capsys, 2, "classify", picture, *both)


def test_prompts_are_templates_a_name_or_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("a drawing of a {}.\n\na {} on white\n")
    ask = [EXAMPLES[0], "--labels", *LABELS, "--json", "--prompts"]
    ours = run(capsys, *ask, tmp_path / "t.txt")[0]
    assert ours == run(capsys, *ask, "a drawing of a {}.", "a {} on white")[0]
    assert ours != run(capsys, *ask, "{}")[0]
    named = run(capsys, *ask, "fashion_mnist")[0]
    assert named == run(capsys, *ask, *read_templates(["fashion_mnist"]))[0]
    assert len(read_templates(["imagenet", "{}"])) == 81


def test_ctrl_c_keeps_what_is_done(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    write, out = RowWriter.write, tmp_path / "out.csv"
    done = []

    def interrupted(self: RowWriter, row: object) -> None:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(row)
        write(self, row)
        assert len(out.read_text().splitlines()) == 1 + len(done)  # at once

    monkeypatch.setattr(RowWriter, "write", interrupted)
    ask = ["classify", str(folder), "--labels", *LABELS, "--top", "1", "--csv", str(out)]
    assert cli.main(ask) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"jaxclip: interrupted; 5 of 42 pictures are done and stay in {out}"
    assert len(out.read_text().splitlines()) == 6
