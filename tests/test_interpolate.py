"""`jaxclip interpolate`: WiSE-FT as a command."""

from pathlib import Path

import numpy as np
import pytest

from jaxclip import checkpoint, cli
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.models import clip
from tests.test_cli import fails

CONFIG = ClipConfig(VisionConfig(16, 8, 16, 1, 2), TextConfig(8, kind="cbow"), 8)


@pytest.fixture
def files(tmp_path):
    made = {}
    for seed in (1, 2):
        made[seed] = str(tmp_path / f"{seed}.safetensors")
        checkpoint.save(
            tmp_path / f"{seed}.safetensors", clip.to_flat(clip.create(CONFIG, seed)), CONFIG, {}
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


def test_mistakes_take_one_line(files, tmp_path, capsys):
    before, after, out = files
    ask = ["interpolate", before, after, "--out", out]
    assert "--share: expected a number from 0 to 1" in fails(capsys, 2, *ask, "--share", "1.5")
    assert ".safetensors was expected" in fails(capsys, 2, *ask[:-1], "mixed.pt")
    assert "--force" in fails(capsys, 2, *ask[:-1], before)
    assert "different shapes" in fails(capsys, 1, "interpolate", before, "emoji", "--out", out)
