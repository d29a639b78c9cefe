"""embed: what its files hold, and that no interruption loses or repeats work."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxclip
from jaxclip import cli
from jaxclip.models.clip import Clip
from jaxclip.search import index, update
from tests.support.command import EXAMPLES, fails
from tests.support.tolerances import within

DRAWINGS = sorted((EXAMPLES[0].parent / "drawings").glob("*.webp"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in DRAWINGS[:10]:
        shutil.copy(path, pictures)
    (pictures / "broken.png").write_bytes(b"no picture")
    return pictures


def embed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main(["embed", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as kept:
        return dict(kept)


def features_of(paths: list[str], policy: str = "safe") -> np.ndarray:
    from PIL import Image

    model, preprocess = jaxclip.load("emoji")
    to_pixels = preprocess.safe if policy == "safe" else preprocess
    return np.asarray(model.encode_image(np.stack([to_pixels(Image.open(x)) for x in paths])))


@pytest.mark.parametrize("policy", ["safe", "official"])
def test_features_are_those_of_the_model_with_facts_about_files(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, policy: str
) -> None:
    out = tmp_path / "e.npz"
    first = str(folder / DRAWINGS[0].name)
    said = embed(capsys, folder, first, "--out", out, "--policy", policy, "--no-normalize")
    assert said == f"wrote {out}: 11 embeddings of 192, 1 pictures left out\n"
    table = load(out)
    files = table["files"].tolist()
    assert files == [*(str(folder / path.name) for path in DRAWINGS[:10]), first]
    right = {name: features_of(files, name) for name in ("safe", "official")}
    assert np.abs(table["embeds"] - right[policy]).max() < 1e-4
    other = right["official" if policy == "safe" else "safe"]
    assert np.abs(table["embeds"] - other).max() > 0.1  # transparency: white or black
    status = os.stat(first)
    assert table["sizes"][0] == status.st_size and len(table["digests"][0]) == 64
    assert table["modified"][0] == np.datetime64(status.st_mtime_ns // 1000, "us")
    preprocessing = json.loads(str(table["preprocessing"]))
    assert (preprocessing["policy"], preprocessing["size"]) == (policy, 64)
    assert str(table["model"]) == "emoji" and len(str(table["key"])) == 64
    assert os.listdir(tmp_path) == ["pictures", "e.npz"] or not list(tmp_path.glob(".*"))


def test_parquet_holds_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    embed(capsys, folder, "--out", tmp_path / "e.npz")
    embed(capsys, folder, "--out", tmp_path / "e.parquet")
    right, table = load(tmp_path / "e.npz"), parquet.read_table(tmp_path / "e.parquet")
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), right["embeds"])
    for name, column in (("files", "file"), ("sizes", "size"), ("digests", "digest")):
        assert table[column].to_pylist() == right[name].tolist()
    assert table["modified"].to_pylist() == right["modified"].tolist()
    notes = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert notes == {name: str(right[name]) for name in ("model", "key", "preprocessing")}


def test_parquet_without_pyarrow_names_the_extra_at_once(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = fails(capsys, 1, "embed", str(folder), "--out", str(tmp_path / "e.parquet"))
    assert "expected the package pyarrow, got none; pip install" in said


def test_captions_have_a_row_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, out = tmp_path / "captions.txt", tmp_path / "c.npz"
    file.write_bytes("\ufeffa rocket\r\n\r\n caf\u00e9 \na rocket\n".encode())
    assert "3 embeddings of 192, 1 empty lines left out" in embed(
        capsys, "--captions", file, "--out", out
    )
    table = load(out)
    assert table["captions"].tolist() == ["a rocket", "caf\u00e9", "a rocket"]
    assert table["lines"].tolist() == [1, 3, 4]
    model, _ = jaxclip.load("emoji")
    right = np.asarray(model.encode_text(model.tokenize(["a rocket", "caf\u00e9"])))
    right = right / np.linalg.norm(right, axis=1, keepdims=True)
    assert np.abs(table["embeds"] - right[[0, 1, 0]]).max() < within("embeds")
    assert np.abs(table["embeds"] - right[[1, 0, 1]]).max() > 0.05
    both = ["embed", str(EXAMPLES[0]), "--captions", str(file), "--out", str(out)]
    assert "pictures or --captions, got both" in fails(capsys, 2, *both)
    file.write_text("\n\n")
    empty = ["embed", "--captions", str(file), "--out", str(tmp_path / "d.npz")]
    assert "a caption on each line, got none" in fails(capsys, 1, *empty)


SLOWLY = """
import sys, time
from jaxclip.search import update
from jaxclip.__main__ import main
update.BLOCK, commit = 8, update.Writer.commit
update.Writer.commit = lambda writer: (commit(writer), time.sleep(0.3))
sys.exit(main())
"""


# Interruptions ------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of the image tower got; blocks of four rows."""
    encode_image, calls = Clip.encode_image, list[int]()

    def counting(self: Clip, pixels: np.ndarray) -> np.ndarray:
        calls.append(len(pixels))
        return encode_image(self, pixels)

    monkeypatch.setattr(Clip, "encode_image", counting)
    monkeypatch.setattr(update, "BLOCK", 4)
    return calls


def test_after_ctrl_c_the_same_command_continues(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    counted: list[int],
) -> None:
    embed(capsys, folder, "--out", tmp_path / "whole.npz", "--batch-size", 2)
    assert counted == [2] * 5
    counted.clear()
    ask = [folder, "--out", tmp_path / "e.npz", "--batch-size", 2]
    commit, commits = update.Writer.commit, []

    def interrupted(self: update.Writer) -> None:
        commit(self)
        commits.append(self)
        if len(commits) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(update.Writer, "commit", interrupted)
        assert cli.main(["embed", *map(str, ask)]) == 1
    assert "interrupted; what is encoded stays" in capsys.readouterr().err
    assert counted == [2] * 4 and not (tmp_path / "e.npz").exists()
    embed(capsys, *ask)
    assert counted == [2] * 5  # ten pictures in all
    assert not (tmp_path / ".e.npz.work").exists()
    whole, resumed = load(tmp_path / "whole.npz"), load(tmp_path / "e.npz")
    assert whole.keys() == resumed.keys()
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_another_model_or_policy_or_content_is_encoded_anew(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    counted: list[int],
) -> None:
    """The twin: what is kept is keyed by all that a vector depends on."""
    ask = [folder, "--out", tmp_path / "e.npz", "--batch-size", 2]
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # as if killed before the end
    embed(capsys, *ask)
    shutil.copy(DRAWINGS[20], folder / DRAWINGS[3].name)
    counted.clear()
    embed(capsys, *ask, "--force")
    assert counted == [2]
    embed(capsys, *ask, "--force")
    assert counted == [2]
    embed(capsys, *ask, "--force", "--policy", "official")
    assert counted == [2] * 6
    assert np.abs(load(tmp_path / "e.npz")["embeds"]).max() <= 1


def test_a_second_process_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ask = ["embed", str(folder), "--out", str(tmp_path / "e.npz")]
    with index.writing(tmp_path / ".e.npz.work"):
        assert "another process writes this file" in fails(capsys, 1, *ask)


def test_a_killed_command_continues(tmp_path: Path) -> None:
    for path in DRAWINGS[:60]:
        shutil.copy(path, tmp_path)
    work, out = tmp_path / ".e.npz.work", tmp_path / "e.npz"
    command = [sys.executable, "-m", "jaxclip", "embed", str(tmp_path), "--out", str(out)]
    killed = [sys.executable, "-c", SLOWLY, *command[3:], "--batch-size", "4"]
    with subprocess.Popen(killed, stderr=subprocess.DEVNULL) as process:
        for _ in range(600):
            stores = list(work.glob("*.f32"))
            if (stores and stores[0].stat().st_size > 16 * 192 * 4) or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert work.exists() and not out.exists()
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    table = load(out)
    assert len(table["files"]) == len(set(table["files"])) == 60 and not work.exists()
    right = features_of(table["files"][::20].tolist())
    right = right / np.linalg.norm(right, axis=1, keepdims=True)
    assert np.abs(table["embeds"][::20] - right).max() < 1e-5
