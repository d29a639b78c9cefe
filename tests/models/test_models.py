"""The models as a whole: how many parameters, how they start, what they accept and refuse."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import checkpoint
from jaxclip.config import (
    RELEASED,
    ClipConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
)
from jaxclip.models import clip
from jaxclip.models.parameters import from_flat, named_leaves, to_flat
from tests.support import tiny
from tests.support.counts import COUNTS
from tests.support.statistics import params_only, running_statistics
from tests.support.tolerances import departure, within

START = ClipConfig(VisionConfig(24, 8, 96, 5, 3), TextConfig(64, 3, 2, 32, 999), 40)
SMALL = ClipConfig(VisionConfig(20, 5, 24, 12, 3), TextConfig(16, 12, 2, 13, 101), 7)


# Parameters ---------------------------------------------------------------------------------------


def counted(config: ClipConfig) -> dict[str, int]:
    """Parameters by tower, as the model has them; running statistics are none."""
    sizes = {"visual": 0, "text": 0, "logit_scale": 0}
    for name, leaf in named_leaves(params_only(clip.abstract(config))).items():
        sizes[name.split(".")[0]] += math.prod(leaf.shape)
    return sizes


def derived(config: ClipConfig) -> dict[str, int]:
    """Parameters by tower, from the architecture: a block has 12 d^2 + 13 d."""

    def blocks(width: int, layers: int) -> int:
        attention = 3 * width * width + 3 * width + width * width + width
        mlp = 4 * width * width + 4 * width + 4 * width * width + width
        return layers * (attention + mlp + 4 * width)

    v, t, e = config.vision, config.text, config.embed_dim
    grid = v.image_size // v.patch_size
    stem = 3 * v.patch_size**2 * v.width + v.width + (1 + grid**2) * v.width
    visual = stem + 4 * v.width + blocks(v.width, v.layers) + v.width * e
    words = (t.vocab_size + t.context_length) * t.width
    text = words + blocks(t.width, t.layers) + 2 * t.width + t.width * e
    return {"visual": visual, "text": text, "logit_scale": 1}


BATCH_NORMS = {"RN50": 55, "RN101": 106, "RN50x4": 85, "RN50x16": 127, "RN50x64": 199}


def test_the_released_models_are_nine_in_the_released_order():
    assert list(RELEASED) == list(COUNTS)
    assert {config.activation for config in RELEASED.values()} == {"quick_gelu"}
    assert [config.vision.tokens for config in RELEASED.values()] == [
        *(50, 50, 82, 145, 197),
        *(50, 197, 257, 577),
    ]
    assert [config.vision.heads for config in RELEASED.values()] == [
        *(32, 32, 40, 48, 64),
        *(12, 12, 16, 16),
    ]


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_released(name):
    config, (visual, text, total) = RELEASED[name], COUNTS[name]
    assert counted(config) == {"visual": visual, "text": text, "logit_scale": 1}
    assert visual + text + 1 == total
    statistics = running_statistics(clip.abstract(config))
    assert len(statistics) == 2 * BATCH_NORMS.get(name, 0)


@pytest.mark.parametrize("name", [name for name in COUNTS if name.startswith("ViT")])
def test_parameters_are_as_many_as_the_architecture_says(name):
    assert counted(RELEASED[name]) == derived(RELEASED[name])


def test_a_bag_of_words_has_two_matrices():
    config = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, kind="cbow"))
    assert counted(config)["text"] == 101 * 16 + 16 * 7


@pytest.mark.parametrize("kind", ["transformer", "cbow"])
def test_names_and_shapes_are_those_of_the_reference(kind):
    config = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, kind=kind))
    expected = checkpoint.stack(checkpoint.flatten(tiny.params(text=kind)))
    leaves = named_leaves(clip.abstract(config))
    assert {name: leaf.shape for name, leaf in leaves.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype(np.float32)}


def test_an_abstract_model_holds_no_numbers():
    leaves = jax.tree.leaves(clip.abstract(RELEASED["RN50x64"]))
    assert leaves and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


# How they start -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh() -> dict[str, np.ndarray]:
    """A new model, stacked, large enough for its spread to be measured."""
    return {name: np.asarray(x) for name, x in named_leaves(clip.create(START, 0)).items()}


def released_std(name: str, config: ClipConfig) -> float:
    """clip/model.py: initialize_parameters, VisionTransformer; torch's default for conv1.

    The released code does this for the text tower and leaves the image tower's blocks at torch's
    defaults; we start both towers' blocks alike.
    """
    side = config.vision if name.startswith("visual") else config.text
    width, layers = side.width, side.layers
    if name == "visual.conv1.kernel":
        return (3 * 3 * config.vision.patch_size**2) ** -0.5
    if name == "text.token_embedding.embedding":
        return 0.02
    if name == "text.positional_embedding":
        return 0.01
    if name.endswith(("out_proj.kernel", "c_proj.kernel")):
        return width**-0.5 * (2 * layers) ** -0.5
    if name.endswith("c_fc.kernel"):
        return (2 * width) ** -0.5
    return width**-0.5  # in_proj_kernel, both projections, class and positional embedding


def test_weights_start_as_released(fresh):
    assert fresh["logit_scale"] == np.float32(math.log(1 / 0.07))
    for name, value in fresh.items():
        if name.endswith(("bias", "scale")):
            neutral = {"bias": 0, "scale": 1}[name.split("_")[-1].split(".")[-1]]
            assert name == "logit_scale" or (value == neutral).all(), name
        else:
            std, n = released_std(name, START), value.size
            assert abs(value.std() / std - 1) < 4.5 * (2 * n) ** -0.5, name  # 4.5 deviations of
            assert abs(value.mean()) < 4.5 * std * n**-0.5, name  # what is estimated


def test_every_layer_and_every_matrix_starts_differently(fresh):
    """One key used twice would give two of them the same first numbers, but for a factor."""
    matrices = [fresh["visual.proj"], fresh["text.text_projection"]]
    for name, stack in fresh.items():
        if "resblocks" in name and name.endswith("kernel"):
            matrices += list(stack)
    starts = np.stack([matrix.ravel()[:4] for matrix in matrices])
    starts /= np.linalg.norm(starts, axis=1, keepdims=True)
    assert len(np.unique(starts.round(4), axis=0)) == len(matrices) == 2 + 4 * (5 + 3)


def test_the_seed_decides_the_weights(fresh):
    other = clip.create(START, 1)
    assert not (other.visual.proj[...] == fresh["visual.proj"]).any()


# What they accept ---------------------------------------------------------------------------------


def filled(**changes: Any) -> clip.Clip:
    return from_flat(checkpoint.flatten(tiny.params()), clip.abstract(SMALL, **changes))


def test_texts_may_be_shorter_than_the_context():
    tokens = tiny.batch()[1]
    short = tokens[tokens.argmax(1) < 7]
    assert len(short) >= 2
    encode = jax.jit(lambda m, x: m.encode_text(x))
    model = filled()
    whole = encode(model, short)
    for length in (7, 10):
        assert departure(encode(model, short[:, :length]), whole) < within("features")
    cut = encode(model, short[:, : short.argmax(1).max()])  # the longest has lost its end
    assert departure(cut, whole) > 0.01


def test_what_follows_the_end_of_text_changes_nothing():
    tokens = tiny.batch()[1]
    after = np.arange(13) > tokens.argmax(1)[:, None]
    encode = jax.jit(lambda m, x: m.encode_text(x))
    model = filled()
    changed = encode(model, np.where(after, 5, tokens))
    assert departure(changed, encode(model, tokens)) < within("features")
    before = np.where((np.arange(13) == 0)[None], 5, tokens)
    assert departure(encode(model, before), encode(model, tokens)) > 0.01


def test_texts_longer_than_the_context_are_an_error():
    with pytest.raises(ValueError, match="expected at most 13 tokens"):
        filled().encode_text(jnp.ones((2, 14), jnp.int32))
    with pytest.raises((TypeError, ValueError)):
        filled().text(jnp.zeros((2, 14), jnp.int32))


def test_logits_are_cosines_times_the_scale():
    images, tokens = tiny.batch()
    model = filled()
    per_image, per_text = jax.jit(model)(images.astype(np.float32), tokens[:3])
    assert per_image.shape == (5, 3) and (per_text == per_image.T).all()
    image_embeds, text_embeds = model.embed(images.astype(np.float32), tokens[:3])
    for embeds in (image_embeds, text_embeds):
        assert np.abs(np.linalg.norm(embeds, axis=1) - 1).max() < within("embeds")
    assert departure(per_image, math.exp(2.1) * image_embeds @ text_embeds.T) < within("logits")


def test_two_calls_are_compiled_once():
    traced = []

    @jax.jit
    def encode(model: clip.Clip, images: Any) -> Any:
        traced.append(1)
        return model.encode_image(images)

    images = tiny.batch()[0].astype(np.float32)
    first = encode(filled(), images)
    again = encode(from_flat(to_flat(filled()), clip.abstract(SMALL)), images)
    assert (first == again).all() and len(traced) == 1
    encode(filled(remat="none"), images)  # another program, so the counter does count
    assert len(traced) == 2


# From flat arrays ---------------------------------------------------------------------------------


def test_from_flat_and_to_flat_are_inverse():
    flat = checkpoint.flatten(tiny.params())
    back = to_flat(filled())
    assert back.keys() == flat.keys()
    assert all((back[name] == flat[name].astype(np.float32)).all() for name in flat)
    assert back["text.transformer.resblocks.10.mlp.c_fc.bias"].shape == (64,)


def test_from_flat_lists_everything_that_is_wrong():
    flat = checkpoint.flatten(tiny.params())
    del flat["visual.proj"], flat["text.ln_final.scale"]
    flat["visual.head"] = np.zeros((3, 4))
    flat["text.text_projection"] = flat["text.text_projection"].T
    with pytest.raises(ValueError) as error:
        from_flat(flat, clip.abstract(SMALL))
    assert str(error.value) == (
        "parameters do not fit the config: "
        "- text.ln_final.scale (16,); - visual.proj (24, 7); + visual.head (3, 4); "
        "text.text_projection: expected shape (16, 7), got (7, 16)"
    )


def test_from_flat_refuses_another_number_of_layers():
    flat = checkpoint.flatten(tiny.params(vision_layers=11))
    with pytest.raises(
        ValueError, match=r"- visual\.transformer\.resblocks\.11\.attn.*; and 4 more"
    ):
        from_flat(flat, clip.abstract(SMALL))


def test_from_flat_refuses_one_leaf_of_the_last_layer_missing():
    flat = checkpoint.flatten(tiny.params())
    del flat["visual.transformer.resblocks.11.ln_1.bias"]
    with pytest.raises(ValueError, match=r"- visual\.transformer\.resblocks\.11\.ln_1\.bias"):
        from_flat(flat, clip.abstract(SMALL))


# Configs ------------------------------------------------------------------------------------------

VISION = {"image_size": 20, "patch_size": 5, "width": 24, "layers": 2, "heads": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "width: expected a multiple of 5 heads, got 24"),
        ({"layers": 0}, "VisionConfig.layers: expected an integer from 1 to .*, got 0"),
        ({"width": -24}, "VisionConfig.width: expected an integer from 1 to .*, got -24"),
        ({"width": 24.0}, "VisionConfig.width: expected an integer from 1 to .*, got 24.0"),
        ({"heads": True}, "VisionConfig.heads: expected an integer from 1 to .*, got True"),
        ({"patch_size": "5"}, "VisionConfig.patch_size: expected an integer from 1 to .*, got '5'"),
    ],
)
def test_a_wrong_vision_config_is_refused(change, message):
    assert VisionConfig(**VISION).tokens == 17
    with pytest.raises(ValueError, match=message):
        VisionConfig(**{**VISION, **change})


def test_a_wrong_text_config_is_refused():
    with pytest.raises(ValueError, match="text width: expected a multiple of 3 heads, got 16"):
        TextConfig(16, heads=3)
    with pytest.raises(
        ValueError, match="text kind: expected one of transformer, cbow, got 'bert'"
    ):
        TextConfig(16, kind="bert")  # type: ignore[arg-type]
    assert TextConfig(17, heads=3, kind="cbow").width == 17  # a bag has no heads


def test_a_wrong_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation: expected one of .*, got 'relu'"):
        dataclasses.replace(SMALL, activation="relu")
    with pytest.raises(ValueError, match=r"embed_dim: expected an integer from 1 to .*, got 0"):
        dataclasses.replace(SMALL, embed_dim=0)


RESNET = {"image_size": 64, "width": 16, "layers": (1, 2, 3, 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 15}, "ResNet width: expected an even number, got 15"),
        ({"layers": (1, 2, 3)}, "layers: expected four integers from 1 to 1,024, got a tuple"),
        ({"layers": [1, 2, 3, 4]}, "layers: expected four integers"),
        ({"layers": (1, 2, 3, 0)}, "layers: expected four integers"),
        ({"layers": (1, 2, 3, True)}, "layers: expected four integers"),
        ({"image_size": 63}, "image_size: expected .*, got 63"),
        ({"image_size": 30}, "image_size: expected .*, got 30"),
        ({"kind": "vit"}, "vision kind: expected 'resnet', got 'vit'"),
    ],
)
def test_a_wrong_resnet_config_is_refused(change, message):
    assert ResNetConfig(**RESNET).tokens == 5
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**{**RESNET, **change})


def test_the_grid_of_every_image_size_is_as_many_places_as_positions():
    """Sizes are halved five times, the first time rounding up, then down; 63 would not fit."""

    def grid(size: int) -> int:
        return (size + 1) // 2 // 16

    for size in range(32, 200):
        try:
            config = ResNetConfig(**{**RESNET, "image_size": size})
        except ValueError:
            assert grid(size) != size // 32
        else:
            assert config.tokens == grid(size) ** 2 + 1


def resnet_json(**changes: Any) -> str:
    config = dataclasses.replace(SMALL, vision=ResNetConfig(**RESNET))
    data = json.loads(config.to_json())
    return json.dumps({**data, "vision": {**data["vision"], **changes}})


def test_image_towers_are_told_apart_by_their_kind():
    """A config of before there were ResNets names no kind and stays a Vision Transformer."""
    assert ClipConfig.from_json(resnet_json()).vision == ResNetConfig(**RESNET)
    assert "kind" not in json.loads(SMALL.to_json())["vision"]
    for changes in ({"kind": "vit"}, {"kind": None}, {"layers": 3}, {"patch_size": 8}):
        with pytest.raises(ValueError):
            ClipConfig.from_json(resnet_json(**changes))
    with pytest.raises(ValueError, match="patch_size"):
        ClipConfig.from_json(resnet_json().replace('"kind": "resnet", ', ""))


@pytest.mark.parametrize("config", [SMALL, RELEASED["RN50x64"], RELEASED["ViT-L/14@336px"]])
def test_a_config_survives_json(config):
    text = dataclasses.replace(config, activation="gelu").to_json()
    assert "\n" not in text and ClipConfig.from_json(text).activation == "gelu"
    assert ClipConfig.from_json(config.to_json()) == config


def changed_json(**changes: Any) -> str:
    return json.dumps({**json.loads(SMALL.to_json()), **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "{",
        '{"vision": 3, "text": 4}',
        changed_json(colour="red"),
        changed_json(activation="relu"),
        changed_json(vision={"width": 24}),
        changed_json(embed_dim="7"),
    ],
)
def test_other_json_is_refused(text):
    with pytest.raises(ValueError):
        ClipConfig.from_json(text)


def test_a_model_of_shapes_has_the_shapes_of_a_model():
    shapes = named_leaves(clip.abstract(SMALL))
    drawn = named_leaves(clip.create(SMALL))
    assert list(shapes) == list(drawn)
    assert all(
        (shapes[k].shape, shapes[k].dtype) == (drawn[k].shape, drawn[k].dtype) for k in drawn
    )
    assert not any(isinstance(leaf, jax.Array) for leaf in shapes.values())
