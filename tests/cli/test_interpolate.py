"""`jaxclip interpolate`: WiSE-FT as a command."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxclip import checkpoint, cli
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.models import clip, parameters
from jaxclip.training.finetune import interpolate
from tests.support.command import fails

CONFIG = ClipConfig(VisionConfig(16, 8, 16, 1, 2), TextConfig(8, kind="cbow"), 8)


@pytest.fixture
def files(tmp_path):
    made = {}
    for seed in (1, 2):
        made[seed] = str(tmp_path / f"{seed}.safetensors")
        checkpoint.save(
            tmp_path / f"{seed}.safetensors",
            parameters.to_flat(clip.create(CONFIG, seed)),
            CONFIG,
            {},
        )
    return made[1], made[2], str(tmp_path / "mixed.safetensors")


def test_a_quarter_of_the_way(files, capsys):
    before, after, out = files
    assert cli.main(["interpolate", before, after, "--out", out, "--share", "0.25"]) == 0
    one, other, mixed = (checkpoint.load(Path(path))[0] for path in files)
    for name in one:
        assert np.allclose(mixed[name], 0.75 * one[name] + 0.25 * other[name], atol=1e-7), name
    kernel = "visual.conv1.kernel"
    assert not np.allclose(mixed[kernel], 0.25 * one[kernel] + 0.75 * other[kernel], atol=1e-7)
    assert "wrote" in capsys.readouterr().out
    assert checkpoint.load_notes(Path(out))["share"] == 0.25


def test_of_a_resnet_it_says_what_its_statistics_are(files, tmp_path, capsys):
    config = ClipConfig(ResNetConfig(32, 8, (1, 1, 1, 1)), TextConfig(8, kind="cbow"), 8)
    path, out = tmp_path / "resnet.safetensors", str(tmp_path / "mixed.safetensors")
    checkpoint.save(path, parameters.to_flat(clip.create(config)), config, {})
    assert cli.main(["interpolate", str(path), str(path), "--out", out]) == 0
    assert "BatchNorm's statistics are mixed" in capsys.readouterr().err
    assert cli.main(["interpolate", *files[:2], "--out", files[2], "--force"]) == 0
    assert capsys.readouterr().err == ""


def test_mistakes_take_one_line(files, tmp_path, capsys):
    before, after, out = files
    ask = ["interpolate", before, after, "--out", out]
    assert "--share: expected a number from 0 to 1" in fails(capsys, 2, *ask, "--share", "1.5")
    assert "ending in .safetensors, got mixed.pt" in fails(capsys, 2, *ask[:-1], "mixed.pt")
    assert "--force" in fails(capsys, 2, *ask[:-1], before)
    assert "different shapes" in fails(capsys, 1, "interpolate", before, "emoji", "--out", out)


FORMATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
WIDER = {
    ("float16", "float32"): "float32",
    ("float16", "bfloat16"): "float32",
    ("bfloat16", "float32"): "float32",
    ("bfloat16", "float64"): "float64",
    ("float32", "float64"): "float64",
    ("float16", "float64"): "float64",
}


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_the_wider_format_is_written_and_rounded_to_once(first, second):
    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=1000).astype(first)}
    end = {"a": rng.normal(size=1000).astype(second)}
    start["a"][0] = end["a"][1] = -0.0
    names = (np.dtype(first).name, np.dtype(second).name)
    wider = WIDER.get(names) or WIDER.get(names[::-1]) or names[0]
    one, other = start["a"].astype(np.float64), end["a"].astype(np.float64)
    mixed = interpolate(start, end, 0.25)["a"]
    assert mixed.dtype == wider
    assert mixed.tobytes() == (0.75 * one + 0.25 * other).astype(wider).tobytes()
    for share, all_of in ((0, one), (1, other)):  # to the bit, the signs of zeros too
        assert interpolate(start, end, share)["a"].tobytes() == all_of.astype(wider).tobytes()


def test_a_file_in_float16_and_one_in_float32_mix_to_float32(files, tmp_path):
    before, after, out = files
    flat, config, _ = checkpoint.load_stored(Path(before))
    half = {name: value.astype(np.float16) for name, value in flat.items()}
    checkpoint.save(Path(before), half, config, {})
    assert cli.main(["interpolate", before, after, "--out", out, "--share", "1"]) == 0
    right, mixed = checkpoint.load_stored(Path(after))[0], checkpoint.load_stored(Path(out))[0]
    for name in right:
        assert mixed[name].dtype == np.float32 and mixed[name].tobytes() == right[name].tobytes()


@pytest.mark.parametrize("which", [0, 1])
def test_a_model_that_is_mixed_is_never_written_over(files, tmp_path, capsys, which):
    before, after, _ = files
    content = Path(files[which]).read_bytes()
    link = tmp_path / "link.safetensors"
    link.symlink_to(files[which])
    for out in (files[which], str(link)):
        said = fails(capsys, 2, "interpolate", before, after, "--out", out, "--force")
        assert "--out: expected another file" in said
    assert link.is_symlink() and Path(files[which]).read_bytes() == content


def test_a_folder_is_no_file_to_write(files, tmp_path, capsys):
    (tmp_path / "x.safetensors").mkdir()
    ask = ["interpolate", *files[:2], "--out", str(tmp_path / "x.safetensors"), "--force"]
    assert "expected the name of a file, got a folder" in fails(capsys, 2, *ask)
