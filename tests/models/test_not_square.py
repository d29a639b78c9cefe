"""Image towers whose pictures or patches are not square: each use of the size, and twins.

`tests/support/variants.py` has three of them, which every test of variants runs.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

import jaxclip
from jaxclip import convert, parity
from jaxclip.config import (
    RELEASED,
    ClipConfig,
    ResNetConfig,
    TowerConfig,
    VisionConfig,
    differences,
    read_config,
)
from jaxclip.convert.layouts import (
    huggingface_config_writing,
    open_clip_config_writing,
    openai,
)
from jaxclip.evaluation.attention import attention_map
from jaxclip.evaluation.relevance import attention_rollout, relevance_map, split_tower
from jaxclip.models import clip, parameters
from jaxclip.reference import l2_normalize
from jaxclip.training import flops, plan
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh
from tests.support import variants
from tests.support.tolerances import departure, within
from tests.support.variants import VARIANTS

TALL = VARIANTS["tall pictures"]
FLAT = variants.flat(TALL)
IMAGES, TOKENS = variants.inputs("tall pictures")
JUDGE = parity.judge({name: np.float32(x) for name, x in FLAT.items()}, TALL, IMAGES, TOKENS)
# 2 x 8 patches are as many as 4 x 4: no number of positions tells them apart
FLAG = variants.config({"image_size": (10, 40)})


def tower(config: ClipConfig, **fields: Any) -> ClipConfig:
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, **fields))


def first_departure(flat: Any, config: ClipConfig, images: np.ndarray) -> str | None:
    """The first stage at which a model leaves the reference of the tall pictures."""
    got = parity.model_rungs(parameters.from_flat(flat, clip.abstract(config)), images, TOKENS)
    del got["pixels"]
    rung = parity.first_departure(parity.compare(got, *JUDGE))
    return rung and rung.name


# The config ---------------------------------------------------------------------------------------


def test_a_config_says_both_sides() -> None:
    vision = VisionConfig((224, 160), (16, 32), 64, 2, 2)
    assert (vision.image_sides, vision.patch_sides) == ((224, 160), (16, 32))
    assert (vision.grid, vision.tokens, vision.is_square) == ((14, 5), 71, False)
    square = VisionConfig(224, 16, 64, 2, 2)
    assert (square.image_sides, square.grid, square.is_square) == ((224, 224), (14, 14), True)


def test_a_square_is_written_as_one_integer() -> None:
    """Configs of square pictures stay the text that they were."""
    text = RELEASED["ViT-B/32"].to_json()
    assert '"vision": {"heads": 12, "image_size": 224, "layers": 12, "patch_size": 32' in text
    assert json.loads(TALL.to_json())["vision"]["image_size"] == [31, 15]
    alone = TowerConfig(TALL.vision, 7)  # type: ignore[arg-type]
    assert read_config(alone.to_json()) == alone and read_config(TALL.to_json()) == TALL


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": (20, 20)}, "image_size: expected one integer for a square, got 20 twice"),
        ({"image_size": (20, 4)}, "image_size: expected patch_size 5 or more, got 20 x 4"),
        ({"image_size": 4}, "image_size: expected patch_size 5 or more, got 4"),
        ({"image_size": (20, 0)}, "or two of them, height and width, got 20 and 0"),
        ({"image_size": (20, 1 << 20)}, "from 1 to 16,384, or two of them"),
        ({"image_size": (20, 25, 3)}, "height and width, got a tuple"),
        ({"image_size": [20, 25]}, "height and width, got a list"),
        ({"image_size": (20, 25.0)}, r"got 20 and 25\.0"),
        ({"patch_size": (5, True)}, "got 5 and True"),
        ({"patch_size": (21, 5)}, "expected patch_size 21 x 5 or more, got 20"),
        ({"image_size": (16_384, 16_383), "patch_size": 1}, "at most 65,537 positions"),
    ],
)
def test_wrong_sides_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tower(tower(TALL, image_size=20), **fields)


def test_a_resnet_has_square_pictures() -> None:
    with pytest.raises(ValueError, match=r"ResNetConfig\.image_size: expected an integer from 1"):
        ResNetConfig((64, 96), 8, (1, 1, 1, 1))  # type: ignore[arg-type]


def test_the_name_of_a_model_says_both() -> None:
    assert repr(clip.abstract(TALL)).startswith("Clip(ViT at 31 x 15 pixels, ")


# The towers ---------------------------------------------------------------------------------------


def test_the_ladder_holds() -> None:
    assert first_departure(FLAT, TALL, IMAGES) is None


def test_height_and_width_exchanged_depart_at_the_stem() -> None:
    """As many positions, so that every shape fits."""
    turned = tower(TALL, image_size=(15, 31))
    assert turned.vision.tokens == TALL.vision.tokens
    assert first_departure(FLAT, turned, IMAGES.swapaxes(1, 2)) == "image.stem"


def test_positions_by_column_depart_at_the_stem() -> None:
    rows, columns = TALL.vision.grid
    table = FLAT["visual.positional_embedding"]
    grid = table[1:].reshape(rows, columns, -1).swapaxes(0, 1).reshape(rows * columns, -1)
    wrong = {**FLAT, "visual.positional_embedding": np.concatenate([table[:1], grid])}
    assert first_departure(wrong, TALL, IMAGES) == "image.stem"


def test_the_kernel_of_an_oblong_patch_is_not_turned() -> None:
    name = "oblong patches"
    flat = variants.flat(VARIANTS[name])
    turned = {**flat, "visual.conv1.kernel": flat["visual.conv1.kernel"].swapaxes(0, 1)}
    like = clip.abstract(VARIANTS[name])
    with pytest.raises(ValueError, match=r"conv1\.kernel: expected shape \(4, 5, 3, 24\), got"):
        parameters.from_flat(turned, like)


def test_pictures_of_another_shape_are_refused() -> None:
    model = variants.model("tall pictures")
    assert model.encode_image(IMAGES).shape == (4, 7)
    assert model.hidden_states(IMAGES, tower="image").shape == (4, 4, 19, 24)
    for encode in (model.encode_image, jax.jit(lambda x: model.encode_image(x))):
        with pytest.raises(ValueError, match=r"pixels \[n, 31, 15, 3\], got float32 \(4, 15, 31"):
            encode(IMAGES.swapaxes(1, 2))
    with pytest.raises(ValueError, match="expected pictures of 31 x 15 pixels a side"):
        model.visual(IMAGES.swapaxes(1, 2))


# Maps ---------------------------------------------------------------------------------------------


def test_a_map_has_the_grid_s_rows_and_columns() -> None:
    """Not the square of as many patches, which 2 x 8 has as well."""
    model = parameters.from_flat(variants.flat(FLAG), clip.abstract(FLAG))
    images, _ = variants.batch(FLAG)
    attention = np.asarray(model.visual.stages(np.float32(images))[1]["attention"])
    rest = attention[-1, :, :, 0, 1:].mean(1)
    expected = (rest / rest.sum(-1, keepdims=True)).reshape(4, 2, 8)
    got = np.asarray(attention_map(model, np.float32(images)))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert attention_rollout(model, np.float32(images)).shape == (4, 2, 8)
    texts = l2_normalize(np.random.default_rng(1).normal(size=(4, 7))).astype(np.float32)
    relevance = np.asarray(relevance_map(model, np.float32(images), texts))
    x, _ = split_tower(model, np.float32(images))
    assert relevance.shape == (4, 2, 8) and x.shape == (4, 17, 24)


# FLOPs and plans ----------------------------------------------------------------------------------


def test_flops_are_those_of_as_many_patches() -> None:
    square = tower(FLAG, image_size=20)
    assert square.vision.tokens == FLAG.vision.tokens
    assert flops.model_flops(FLAG, 3) == flops.model_flops(square, 3)
    assert flops.model_flops(TALL, 3) > flops.model_flops(FLAG, 3)


def test_a_plan_is_of_both_sides() -> None:
    recipe = Recipe(batch_size=2, text_length=13, model=TALL)
    traced = plan.trace(recipe, Execution(), data_mesh(jax.devices()[:1]))
    assert (2, 31, 15, 3) in {leaf.shape for leaf in jax.tree.leaves(traced.in_avals)}


# Another resolution, and other layouts ------------------------------------------------------------


def loaded(config: ClipConfig) -> convert.Loaded:
    flat = {name: np.float32(x) for name, x in variants.flat(config).items()}
    return convert.Loaded(flat, config, {})


def test_a_square_model_runs_at_height_and_width_and_back() -> None:
    square = loaded(tower(TALL, image_size=20))
    model, preprocess = jaxclip.load(square, image_size=(30, 15))
    assert model.config.vision.image_size == preprocess.size == (30, 15)
    assert model.notes["resized"] == {"from": 20, "to": (30, 15), "positions": "open_clip"}
    assert model.encode_image(np.zeros((1, 30, 15, 3), np.float32)).shape == (1, 7)
    again, _ = jaxclip.load(square, image_size=(20, 20))
    assert again.config == square.config
    oblong = convert.at_size(square, (30, 15))
    grid = oblong.flat["visual.positional_embedding"][1:].reshape(6, 3, -1)
    turned = convert.at_size(square, (15, 30)).flat["visual.positional_embedding"][1:]
    assert departure(grid[0], turned.reshape(3, 6, -1)[:, 0]) > within("positions")
    assert convert.at_size(oblong, 20).config == square.config


def test_an_impossible_size_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a multiple of 5, got 30 x 16"):
        convert.at_size(loaded(TALL), (30, 16))
    for size in (20.0, True, "20", (20, 25, 30), (20, 25.5), 0, (20, -5)):
        with pytest.raises(ValueError, match="image_size: expected an integer from 1 to 16,384"):
            convert.at_size(loaded(TALL), size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a multiple of 4 x 5, got 25"):
        convert.at_size(loaded(VARIANTS["oblong patches"]), 25)
    small = ClipConfig(ResNetConfig(64, 2, (1, 1, 1, 1)), TALL.text, 7)
    with pytest.raises(ValueError, match="expected one side for a ResNet, got 64 x 96"):
        convert.at_size(convert.Loaded({}, small, {}), (64, 96))


def test_layouts_of_squares_refuse_them() -> None:
    """timm's trunk has the size of its name; transformers and the released code have one side."""
    siglip = tower(VARIANTS["SigLIP"], image_size=(20, 15))
    with pytest.raises(ValueError, match=r"timm, which has none .* pictures of 20 x 15"):
        open_clip_config_writing.to_json(siglip)
    alone = TowerConfig(siglip.vision, 24)  # type: ignore[arg-type]
    for config in (siglip, TALL, alone):
        with pytest.raises(ValueError, match="expected square pictures and patches"):
            huggingface_config_writing.to_json(config, "float32")
    wide_heads = {"width": 64, "heads": 1}
    official = variants.config({**wide_heads, "image_size": (20, 15)}, wide_heads)
    with pytest.raises(ValueError, match="expected square pictures and patches"):
        openai.check_writable(official)
    openai.check_writable(tower(official, image_size=20))


def test_the_doctor_refuses_them() -> None:
    assert differences(TALL) == ["vision.image_size 31 x 15"]
    assert differences(tower(TALL, image_size=20)) == []
