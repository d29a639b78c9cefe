"""The commands about weights and features: what they print, what they refuse, their exit codes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxclip import cli, convert
from jaxclip.config import RELEASED
from jaxclip.convert.archive import torch_archive
from jaxclip.hub import released as downloads
from tests.support import foreign
from tests.support.command import EXAMPLES, fails

GOLDEN = Path(__file__).parents[1] / "golden" / "official-odd.pt"


def says(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_models_lists_the_released_ones_and_which_are_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "RN50.pt").write_bytes(b"")
    here = says(capsys, "models", "--cache-dir", str(tmp_path), "--json")
    rows = [json.loads(line) for line in here.splitlines()]
    assert [row["name"] for row in rows] == list(RELEASED)
    assert [row["here"] for row in rows] == [row["name"] == "RN50" for row in rows]
    assert rows[5]["sha256"] == downloads.RELEASED_FILES["ViT-B/32"].sha256
    table = says(capsys, "models", "--cache-dir", str(tmp_path))
    assert all(name in table for name in ["emoji", *RELEASED])


def test_inspect_says_what_a_file_holds(capsys: pytest.CaptureFixture[str]) -> None:
    text = says(capsys, "inspect", str(GOLDEN), "--tensors")
    assert "width 128, 2 blocks" in text and "quick_gelu" in text and "float16" in text
    assert "visual.transformer.resblocks.1.ln_2.scale" in text and "no released model" in text
    record = json.loads(says(capsys, "inspect", str(GOLDEN), "--json"))
    assert record["config"]["embed_dim"] == 37 and record["notes"]["source"]["sha256"]
    assert "shape of" in says(capsys, "inspect", "emoji")


def test_inspect_asks_for_an_activation_that_nothing_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "bare.pt"
    torch_archive.write(path, foreign.openai(buffers=False))
    assert "--activation" in fails(capsys, 2, "inspect", str(path))
    assert "--heads" in fails(capsys, 2, "inspect", str(path), "--activation", "gelu_tanh")
    said = ["--activation", "gelu_tanh", "--heads", "2", "1"]
    assert "gelu_tanh" in says(capsys, "inspect", str(path), *said)
    record = json.loads(says(capsys, "inspect", str(path), *said, "--json"))
    assert (record["config"]["vision"]["heads"], record["config"]["text"]["heads"]) == (2, 1)
    ours = tmp_path / "ours.safetensors"
    says(capsys, "convert", str(path), str(ours), *said)
    assert "(2, 1)" in fails(capsys, 1, "inspect", str(ours), "--heads", "4", "1")
    (tmp_path / "page.pt").write_text("<html></html>")
    assert "HTML page" in fails(capsys, 1, "inspect", str(tmp_path / "page.pt"))


def test_convert_writes_every_layout_and_overwrites_only_when_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ours = tmp_path / "a.safetensors"
    assert "wrote" in says(capsys, "convert", str(GOLDEN), str(ours))
    targets = {"openai": "b.pt", "open_clip": "c.bin", "huggingface": "d"}
    for layout, name in targets.items():
        says(capsys, "convert", str(ours), str(tmp_path / name), "--layout", layout)
    flat = convert.load(ours).flat
    for name in targets.values():
        again = convert.load(tmp_path / name).flat
        assert all(np.array_equal(again[key], flat[key]) for key in flat), name
    back = str(tmp_path / "b.pt")
    assert "--force" in fails(capsys, 1, "convert", str(ours), back, "--layout", "openai")
    says(capsys, "convert", str(ours), back, "--layout", "openai", "--force")
    assert "what is being converted" in fails(capsys, 1, "convert", str(ours), str(ours), "--force")
    assert "'other'" in fails(capsys, 2, "convert", str(ours), back, "--layout", "other")
    assert "ViT-B/31" in fails(capsys, 1, "convert", "ViT-B/31", back, "--force")


def test_embed_writes_one_row_a_picture_and_leaves_out_broken_ones(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in EXAMPLES[:2]:
        shutil.copy(path, folder)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "embeds.npz"
    said = says(capsys, "embed", str(folder), "--out", str(out))
    assert "2 embeddings of 192, 1 pictures left out" in said
    with np.load(out) as written:
        assert written["embeds"].shape == (2, 192) and written["embeds"].dtype == np.float32
        assert np.allclose(np.linalg.norm(written["embeds"], axis=1), 1, atol=1e-6)
        assert [Path(name).name for name in written["files"]] == [p.name for p in EXAMPLES[:2]]
    assert "--force" in fails(capsys, 2, "embed", str(folder), "--out", str(out))
    assert ".npz" in fails(capsys, 2, "embed", str(folder), "--out", str(tmp_path / "a.csv"))
    limit = ["--out", str(tmp_path / "b.npz"), "--skip-limit", "0"]
    assert cli.main(["embed", str(folder), *limit]) == 1
    assert "1 pictures are broken" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "b.npz").exists()
    (tmp_path / "empty").mkdir()
    assert "no picture" in fails(capsys, 2, "embed", str(tmp_path / "empty"), "--out", str(out))


def test_tokenize_shows_the_row_that_a_model_gets(capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(says(capsys, "tokenize", "Hello World!", "--show", "--json"))
    assert len(record["ids"]) == 77 and record["end"] == 4
    assert record["ids"][:6] == [49406, 3306, 1002, 256, 49407, 0]
    table = says(capsys, "tokenize", "[red]a :cat:", "--show")  # no markup and no emoji of rich's
    assert "[red]a :cat:" in table and "5 to 76" not in table and "to 76" in table
    long = "very " * 100
    assert "token" in fails(capsys, 1, "tokenize", long, "--show")
    assert "76" in says(capsys, "tokenize", long, "--show", "--truncate")


def test_verify_names_what_it_cannot_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "no-such" in fails(capsys, 1, "verify", "no-such")
    missing = str(tmp_path / "none.safetensors")
    assert "none.safetensors" in fails(capsys, 1, "verify", "--against", missing)
