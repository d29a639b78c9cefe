"""A model at another resolution: the grid resized as the named programs do, the rest untouched."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxclip
from experiments.lib.peers import archives
from experiments.lib.peers.parity_support import torchvision_transforms
from jaxclip import cli, convert
from jaxclip.convert.layouts import positions
from tests.support import foreign
from tests.support.command import fails
from tests.support.tolerances import departure, within

RNG = np.random.default_rng(3)
CONVENTIONS = ("open_clip", "huggingface")
SIZES = [(7, 10), (7, 14), (10, 7), (4, 1), (1, 3), (24, 16), (5, 12)]


def table(side: int, d: int = 3) -> np.ndarray:
    return RNG.normal(size=(1 + side**2, d)).astype(np.float32)


def plain_bicubic(grid: np.ndarray, side: int) -> np.ndarray:
    """Bicubic without antialiasing, one number at a time: [old, old, d] -> [side, side, d]."""
    old, a = len(grid), -0.75

    def taps(i: int) -> list[tuple[int, float]]:
        at = (i + 0.5) * old / side - 0.5
        first, t = int(np.floor(at)), at - np.floor(at)
        kernel = [
            ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
            ((a + 2) * t - (a + 3)) * t * t + 1,
            ((a + 2) * (1 - t) - (a + 3)) * (1 - t) ** 2 + 1,
            ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
        ]
        return [(min(max(first - 1 + k, 0), old - 1), w) for k, w in enumerate(kernel)]

    out = np.zeros((side, side, grid.shape[-1]))
    for i in range(side):
        for j in range(side):
            for row, v in taps(i):
                for column, w in taps(j):
                    out[i, j] += v * w * grid[row, column]
    return out


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_open_clip_s_way_is_pillow_s_bicubic(old: int, new: int) -> None:
    """Pillow antialiases with the same kernel, in floating point for pictures of mode F."""
    before = table(old)
    after = positions.resize(before, new)
    for channel in range(3):
        grid = before[1:, channel].reshape(old, old)
        picture = Image.fromarray(grid).resize((new, new), Image.Resampling.BICUBIC)
        came = after[1:, channel].reshape(new, new)
        assert departure(came, np.asarray(picture)) < within("positions")
        if new < old:  # the negative twin: no antialiasing
            other = positions.resize(before, new, "huggingface")[1:, channel].reshape(new, new)
            assert departure(other, np.asarray(picture)) > 1e3 * within("positions")


@pytest.mark.parametrize(("old", "new"), [((7, 4), (5, 10)), ((3, 8), (6, 2)), ((1, 6), (4, 1))])
def test_rows_and_columns_are_resized_each_on_their_own(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    before = RNG.normal(size=(1 + old[0] * old[1], 1)).astype(np.float32)
    after = positions.resize(before, new, grid=old)
    picture = Image.fromarray(before[1:].reshape(old))
    expected = np.asarray(picture.resize(new[::-1], Image.Resampling.BICUBIC))
    assert departure(after[1:].reshape(new), expected) < within("positions")
    turned = positions.resize(before, new[::-1], grid=old)[1:].reshape(new[::-1]).T
    assert departure(turned, expected) > 1e3 * within("positions")
    with pytest.raises(ValueError, match=f"expected {old[0]} x {old[1]} and one more positions"):
        positions.resize(before[:-1], new, grid=old)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_hugging_face_s_way_is_bicubic_without_antialiasing(old: int, new: int) -> None:
    before = table(old)
    after = positions.resize(before, new, "huggingface")
    expected = plain_bicubic(before[1:].astype(np.float64).reshape(old, old, 3), new)
    assert departure(after[1:].reshape(new, new, 3), expected) < within("positions")
    if new != 1 and old != 1:
        other = positions.resize(before, new)[1:].reshape(new, new, 3)
        assert departure(other, expected) > 1e3 * within("positions")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_first_position_stays_and_so_does_what_is_constant(
    convention: positions.Convention,
) -> None:
    before = table(7)
    after = positions.resize(before, 9, convention)
    assert after.shape == (82, 3) and after.dtype == before.dtype
    assert np.array_equal(after[0], before[0])
    assert np.array_equal(positions.resize(before, 7, convention), before)
    before[1:] = 0.25
    assert np.allclose(positions.resize(before, 12, convention)[1:], 0.25, rtol=1e-6, atol=0)
    assert positions.resize(before.astype(np.float16), 5).dtype == np.float16


def test_what_is_no_square_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="one more positions, got 51"):
        positions.resize(np.zeros((51, 3)), 7)
    with pytest.raises(ValueError, match="got 'cubic'"):
        positions.resize(np.zeros((50, 3)), 8, "cubic")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "size", "rows"), [(foreign.VIT, 35, 50), (foreign.RESNET, 96, 10)]
)
def test_a_model_runs_at_another_resolution(
    tmp_path: Path, config: jaxclip.config.ClipConfig, size: int, rows: int
) -> None:
    path = tmp_path / "model.pt"
    archives.write_torchscript_like(path, foreign.openai(config))
    small, _ = jaxclip.load(path)
    large, preprocess = jaxclip.load(path, image_size=size)
    assert preprocess.size == large.config.vision.image_size == size
    assert large.notes["resized"] == {
        "from": config.vision.image_size,
        "to": size,
        "positions": "open_clip",
    }
    picture = Image.new("RGB", (90, 70), (200, 40, 90))
    features = np.asarray(large.encode_image(preprocess(picture)[None]))
    assert features.shape == (1, config.embed_dim) and np.isfinite(features).all()
    tokens = np.array([[99, 5, 100]], np.int32)
    assert np.array_equal(small.encode_text(tokens), large.encode_text(tokens))
    with pytest.raises(ValueError, match="images: expected"):
        small.encode_image(preprocess(picture)[None])


def test_the_command_writes_a_resized_file_that_the_official_layout_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    archives.write_torchscript_like(source, foreign.openai())
    asked = ["convert", str(source), str(target), "--layout", "openai", "--image-size"]
    assert "multiple" in fails(capsys, 1, *asked, "22")
    assert "expected square pictures and patches" in fails(capsys, 1, *asked, "30", "20")
    assert cli.main([*asked, "30"]) == 0
    before, after = convert.read(source), convert.read(target)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"visual.positional_embedding", "input_resolution"}
    assert after["input_resolution"] == 30
    assert convert.load(target).config.vision.image_size == 30


@pytest.mark.parity
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_torch_resizes_the_same(old: int, new: int, antialias: bool) -> None:
    import torch

    before = table(old)
    grid = torch.from_numpy(before[1:].reshape(1, old, old, 3).transpose(0, 3, 1, 2))
    options = {"mode": "bicubic", "antialias": antialias, "align_corners": False}
    expected = torch.nn.functional.interpolate(grid.double(), (new, new), **options).numpy()[0]
    convention = "open_clip" if antialias else "huggingface"
    came = positions.resize(before, new, convention)
    assert departure(came[1:].reshape(new, new, 3), expected.transpose(1, 2, 0)) < within(
        "positions"
    )


@pytest.mark.parity
@pytest.mark.parametrize("new", [(5, 5), (9, 9), (9, 5), (4, 10)])
def test_open_clip_itself_resizes_the_same(new: tuple[int, int]) -> None:
    import torch

    torchvision_transforms()
    from open_clip.model import resize_pos_embed

    before = table(7)

    class Visual:
        grid_size = new

    class Model:
        visual = Visual

    state = {"visual.positional_embedding": torch.from_numpy(before)}
    resize_pos_embed(state, Model)
    expected = state["visual.positional_embedding"].numpy()
    assert departure(positions.resize(before, new), expected) < within("positions")
