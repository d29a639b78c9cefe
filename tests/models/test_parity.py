"""The Flax modules in float32 against the NumPy reference in float64, stage by stage.

Every comparison has a negative twin: a deliberate mistake that must exceed the same tolerance.
"""

from __future__ import annotations

import copy
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import checkpoint, reference
from jaxclip.config import Activation, ClipConfig, TextConfig, TextKind, VisionConfig
from jaxclip.losses import contrastive_loss, cross_entropy_loss
from jaxclip.models import clip, parameters
from jaxclip.models.layers import Numerics
from tests.support import tiny
from tests.support.tolerances import departure, within, worst
from tests.support.variants import with_epsilon

ACTIVATIONS: tuple[Activation, ...] = ("quick_gelu", "gelu", "gelu_tanh")
HEADS = {"vision_heads": tiny.VISION_HEADS, "text_heads": tiny.TEXT_HEADS}


def config(
    activation: Activation = "quick_gelu", kind: TextKind = "transformer", blocks: int = 12
) -> ClipConfig:
    """The config of `tiny.params()`, or of one with fewer blocks."""
    return ClipConfig(
        VisionConfig(image_size=20, patch_size=5, width=24, layers=blocks, heads=3),
        TextConfig(16, blocks, heads=2, context_length=13, vocab_size=101, kind=kind),
        embed_dim=7,
        activation=activation,
    )


def model(params: dict[str, Any], config: ClipConfig, **options: Any) -> clip.Clip:
    return parameters.from_flat(checkpoint.flatten(params), clip.abstract(config, **options))


def stages(model: clip.Clip, images: Any, tokens: Any) -> dict[str, Any]:
    """Every named stage of a Flax model, in order."""
    image_features, image = model.visual.stages(images)
    text_features, text = model.text.stages(tokens)
    image_embeds, text_embeds = model.embed(images, tokens)
    return {
        "image stem": image["stem"],
        **{f"image block {i}": x for i, x in enumerate(image["hidden"])},
        "image pooled": image["pooled"],
        "image features": image_features,
        "text stem": text["stem"],
        **{f"text block {i}": x for i, x in enumerate(text["hidden"])},
        "text pooled": text["pooled"],
        "text features": text_features,
        "image embeds": image_embeds,
        "text embeds": text_embeds,
        "logits": clip.both_logits(model, images, tokens)[0],  # traced anew, unlike a method
        "loss": contrastive_loss(image_embeds, text_embeds, model.logit_scale[...]),
    }


def reference_stages(
    params: dict[str, Any], images: Any, tokens: Any, activation: str
) -> dict[str, Any]:
    """The same stages of the reference, under the same names."""
    image: dict[str, Any] = {}
    text: dict[str, Any] = {}
    options = {"activation": activation}
    reference.vision_transformer(
        images, params["visual"], heads=tiny.VISION_HEADS, taps=image, **options
    )
    reference.text_transformer(tokens, params["text"], heads=tiny.TEXT_HEADS, taps=text, **options)
    image_embeds, text_embeds = (reference.l2_normalize(x["features"]) for x in (image, text))
    blocks = len(params["visual"]["transformer"]["resblocks"])
    ends = np.arange(len(tokens)), reference.end_of_text(tokens)
    return {
        "image stem": image["stem"],
        **{f"image block {i}": image[f"block.{i}"] for i in range(blocks)},
        "image pooled": image["ln_post"],
        "image features": image["features"],
        "text stem": text["stem"],
        **{f"text block {i}": text[f"block.{i}"] for i in range(blocks)},
        "text pooled": text["ln_final"][ends],
        "text features": text["features"],
        "image embeds": image_embeds,
        "text embeds": text_embeds,
        "logits": reference.clip(images, tokens, params, **HEADS, **options)[0],
        "loss": reference.contrastive_loss(image_embeds, text_embeds, params["logit_scale"]),
    }


def tolerance(stage: str) -> float:
    """Of a stage by its name: "image block 3" has that of a block."""
    words = [word for word in stage.split() if not word.isdigit()]
    return within(words[-1])


def excess(got: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """The stages that lie outside their tolerance, and by what factor."""
    factors = {name: departure(got[name], expected[name]) / tolerance(name) for name in expected}
    return {name: factor for name, factor in factors.items() if factor > 1}


PARAMS = tiny.params()
IMAGES, TOKENS = tiny.batch()
SINGLE = IMAGES.astype(np.float32)
run = jax.jit(stages)  # one entry a config: mistakes in the parameters need no new program


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Any]]:
    """The reference's stages by activation."""
    return {name: reference_stages(PARAMS, IMAGES, TOKENS, name) for name in ACTIVATIONS}


# The whole model, stage by stage ------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_stage_equals_the_reference(expected, activation):
    got = run(model(PARAMS, config(activation)), SINGLE, TOKENS)
    assert got.keys() == expected[activation].keys()
    assert all(stage.dtype == np.float32 for stage in got.values())
    assert excess(got, expected[activation]) == {}


@pytest.mark.parametrize(("right", "wrong"), list(permutations(ACTIVATIONS, 2)))
def test_another_activation_is_noticed_at_every_stage(expected, right, wrong):
    noticed = excess(run(model(PARAMS, config(wrong)), SINGLE, TOKENS), expected[right])
    assert noticed.keys() == expected[right].keys() - {"image stem", "text stem"}
    assert min(noticed.values()) > 3


def test_flax_s_layer_norm_epsilon_is_noticed_at_every_stage(expected):
    wrong = model(PARAMS, with_epsilon(config(), 1e-6))
    noticed = excess(run(wrong, SINGLE, TOKENS), expected["quick_gelu"])
    assert noticed.keys() == expected["quick_gelu"].keys() - {"text stem"}
    assert min(noticed.values()) > 100


def ordered_as_strings(tower: dict[str, Any]) -> None:
    """0, 1, 10, 11, 2, ...: what a dict of layers becomes when its keys are sorted."""
    blocks = tower["transformer"]["resblocks"]
    assert sorted(blocks) != list(blocks)
    tower["transformer"]["resblocks"] = {str(i): blocks[k] for i, k in enumerate(sorted(blocks))}


def swapped_query_and_key(tower: dict[str, Any]) -> None:
    """In the last block only."""
    attention = tower["transformer"]["resblocks"]["11"]["attn"]
    for name in ("in_proj_kernel", "in_proj_bias"):
        query, key, value = np.split(attention[name], 3, axis=-1)
        attention[name] = np.concatenate([key, query, value], axis=-1)


def transposed_projection(tower: dict[str, Any]) -> None:
    """In the last block only; it is square, so that no shape tells."""
    projection = tower["transformer"]["resblocks"]["11"]["attn"]["out_proj"]
    projection["kernel"] = projection["kernel"].T


def interleaved_heads(tower: dict[str, Any]) -> None:
    """The packed projection read as q, k and v of the first head, then of the next."""
    attention = tower["transformer"]["resblocks"]["11"]["attn"]
    for name in ("in_proj_kernel", "in_proj_bias"):
        packed = attention[name]
        parts = packed.reshape(*packed.shape[:-1], 3, -1, 8)  # 8 wide in both towers
        attention[name] = np.swapaxes(parts, -3, -2).reshape(packed.shape)


@pytest.mark.parametrize("tower", ["visual", "text"])
@pytest.mark.parametrize(
    "mistake",
    [ordered_as_strings, swapped_query_and_key, transposed_projection, interleaved_heads],
)
def test_a_mistake_in_the_weights_is_noticed(expected, mistake, tower):
    wrong = copy.deepcopy(PARAMS)
    mistake(wrong[tower])
    noticed = excess(run(model(wrong, config()), SINGLE, TOKENS), expected["quick_gelu"])
    side = {"visual": "image", "text": "text"}[tower]
    last = [f"{side} {stage}" for stage in ("block 11", "pooled", "features", "embeds")]
    assert {*last, "logits", "loss"} <= noticed.keys()
    assert not any(name.startswith({"image": "text", "text": "image"}[side]) for name in noticed)
    assert min(noticed[name] for name in last) > 1000


def test_a_transposed_square_projection_is_noticed(expected):
    """`proj` of the released models is square too (512 x 512, 768 x 768)."""
    sizes = {"vision_layers": 1, "text_layers": 1, "embed": 16}
    params = tiny.params(**sizes)
    small = ClipConfig(config(blocks=1).vision, config(blocks=1).text, embed_dim=16)
    want = reference.text_transformer(TOKENS, params["text"], heads=tiny.TEXT_HEADS)
    right = model(params, small).encode_text(TOKENS)
    params["text"]["text_projection"] = params["text"]["text_projection"].T
    wrong = model(params, small).encode_text(TOKENS)
    assert departure(right, want) < within("features") < departure(wrong, want) / 1000


# Pieces -------------------------------------------------------------------------------------------


def convolution(images: Any, kernel: Any, padding: str) -> Any:
    patch = kernel.shape[0]
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        images, kernel, (patch, patch), padding, dimension_numbers=layout
    )
    return y  # [n, rows, columns, d]


def test_patches_equal_a_convolution_without_padding():
    tower = model(PARAMS, config()).visual
    got = tower.conv1(SINGLE)
    kernel = PARAMS["visual"]["conv1"]["kernel"]
    want = reference.patchify(IMAGES, 5) @ kernel.reshape(-1, 24)
    flat = convolution(SINGLE, kernel.astype(np.float32), "VALID").reshape(got.shape)
    assert departure(got, want) < within("patches") and departure(flat, want) < within("patches")
    moved = np.roll(SINGLE, 1, axis=(1, 2))  # what padding on one side would make of it
    assert departure(tower.conv1(moved), want) > 0.1
    assert departure(tower.conv1(SINGLE.swapaxes(1, 2)), want) > 0.1


def test_same_padding_would_move_every_patch():
    """18 pixels are no multiple of 5: "SAME" adds a pixel on each side, "VALID" drops three."""
    kernel = PARAMS["visual"]["conv1"]["kernel"]
    want = (reference.patchify(IMAGES[:, :18, :18], 5) @ kernel.reshape(-1, 24)).reshape(
        5, 3, 3, 24
    )
    single = kernel.astype(np.float32)
    valid = convolution(SINGLE[:, :18, :18], single, "VALID")
    same = convolution(SINGLE[:, :18, :18], single, "SAME")
    assert departure(valid, want) < within("patches")
    assert same.shape == (5, 4, 4, 24) and departure(same[:, :3, :3], want) > 0.1


@pytest.mark.parametrize("size", [15, 18, 21, 25])
def test_a_picture_of_another_size_is_an_error(size):
    tower = model(PARAMS, config()).visual
    with pytest.raises((TypeError, ValueError)):
        tower(jnp.zeros((1, size, size, 3)))


def test_a_bag_of_words_equals_the_reference():
    params = tiny.params(text="cbow")
    bag = model(params, config(kind="cbow"))
    want: dict[str, Any] = {}
    reference.continuous_bag_of_words(TOKENS, params["text"], taps=want)
    features, seen = bag.text.stages(TOKENS)
    assert departure(seen["pooled"], want["mean"]) < within("cbow")
    assert departure(features, want["features"]) < within("cbow")
    logits = reference.clip(IMAGES, TOKENS, params, **HEADS)[0]
    assert departure(jax.jit(bag)(SINGLE, TOKENS)[0], logits) < within("logits")


def test_a_bag_that_counts_the_wrong_tokens_is_noticed():
    params = tiny.params(text="cbow")
    bag = model(params, config(kind="cbow"))
    pooled = bag.text.stages(TOKENS)[1]["pooled"]
    words = params["text"]["token_embedding"]["embedding"][TOKENS]  # [n, l, d]
    place, end = np.arange(13), reference.end_of_text(TOKENS)[:, None]
    choices = {"padding too": place < 13, "without the end": place < end, "from 1": place > 0}
    for choice in choices.values():
        keep = np.broadcast_to(choice, TOKENS.shape)[:, :, None]
        assert departure(pooled, words.mean(axis=1, where=keep)) > 0.01


@pytest.fixture(scope="module")
def attention() -> dict[str, Any]:
    """Attention weights [layers, n, a, l, m] of both towers."""
    whole = model(PARAMS, config())
    look = jax.jit(lambda m: (m.visual.stages(SINGLE), m.text.stages(TOKENS)))
    (_, image), (_, text) = look(whole)
    return {"image": image["attention"], "text": text["attention"]}


def test_attention_weights_sum_to_one(attention):
    assert attention["image"].shape == (12, 5, 3, 17, 17)
    assert attention["text"].shape == (12, 5, 2, 13, 13)
    for weights in attention.values():
        assert weights.dtype == np.float32 and (weights >= 0).all()
        assert np.abs(weights.sum(-1) - 1).max() < within("attention")
        assert np.abs(weights.sum(-2) - 1).max() > 0.1  # over the other axis they do not


def test_only_text_attends_causally(attention):
    future = np.triu(np.ones((13, 13), bool), k=1)
    assert (attention["text"][..., future] == 0).all()
    assert (attention["text"][..., ~future] > 0).all()
    assert (attention["image"] > 0).all()


def test_stages_end_in_the_features_and_nothing_is_kept_otherwise():
    whole = model(PARAMS, config())
    for tower, rows, kept in (
        (whole.visual, SINGLE, "f32[12,5,3,17,17]"),
        (whole.text, TOKENS, f"f32[12,{len(TOKENS)},2,13,13]"),
    ):
        assert np.array_equal(tower(rows), tower.stages(rows)[0])
        assert kept not in str(jax.make_jaxpr(tower)(rows))
        assert kept in str(jax.make_jaxpr(tower.stages)(rows))


# The gradient -------------------------------------------------------------------------------------


def unit_rows(rng: np.random.Generator, n: int, e: int) -> np.ndarray:
    x = rng.normal(size=(n, e))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def one_direction(image_embeds: Any, text_embeds: Any, logit_scale: Any) -> Any:
    logits = jnp.exp(logit_scale) * image_embeds @ text_embeds.T
    return cross_entropy_loss(logits, jnp.arange(len(logits)), axis=1)


def by_place(parts: Any) -> dict[str, Any]:
    return dict(zip(("image_embeds", "text_embeds", "logit_scale"), parts, strict=True))


@pytest.mark.parametrize(
    ("n", "e", "scale"), [(2, 5, 1.0), (7, 4, 14.3), (33, 17, 14.3), (33, 17, 100.0)]
)
def test_loss_and_its_gradient_equal_the_reference(n, e, scale):
    rng = np.random.default_rng(n)
    double = unit_rows(rng, n, e), unit_rows(rng, n, e), np.log(scale)
    single = tuple(np.float32(x) for x in double)
    rounded = tuple(np.float64(x) for x in single)
    assert departure(contrastive_loss(*single), reference.contrastive_loss(*rounded)) < within(
        "loss"
    )
    want = by_place(reference.contrastive_loss_gradient(*rounded))
    got = by_place(jax.grad(contrastive_loss, argnums=(0, 1, 2))(*single))
    assert worst(got, want) < within("loss gradient")
    wrong = by_place(jax.grad(one_direction, argnums=(0, 1, 2))(*single))
    assert worst(wrong, want) > 0.1
    wrong = {**got, "logit_scale": got["logit_scale"] / scale}  # of the scale, not its logarithm
    assert scale == 1 or worst(wrong, want) > 0.1


def loss_of(model: clip.Clip, images: Any, tokens: Any) -> Any:
    return contrastive_loss(*model.embed(images, tokens), model.logit_scale[...])


def gradient(model: clip.Clip, images: Any = SINGLE) -> dict[str, Any]:
    """Of the loss with respect to every parameter, by official name."""
    return parameters.to_flat(jax.jit(jax.grad(lambda *a: loss_of(*a)))(model, images, TOKENS))


BLOCKS = 3  # the reference does not scan: XLA takes 20 s for the gradient of twelve
SMALL = tiny.params(vision_layers=BLOCKS, text_layers=BLOCKS)


@pytest.fixture(scope="module")
def expected_gradient() -> dict[str, Any]:
    """jax.grad of the reference with `np` replaced by `jax.numpy`, in float64."""

    def loss(params: dict[str, Any]) -> Any:
        image = reference.vision_transformer(IMAGES, params["visual"], heads=tiny.VISION_HEADS)
        text = reference.text_transformer(
            jnp.asarray(TOKENS), params["text"], heads=tiny.TEXT_HEADS
        )
        embeds = reference.l2_normalize(image), reference.l2_normalize(text)
        return reference.contrastive_loss(*embeds, params["logit_scale"])

    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(reference, "np", jnp)
        return checkpoint.flatten(jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(SMALL)))


def test_gradient_equals_the_reference(expected_gradient):
    got = gradient(model(SMALL, config(blocks=BLOCKS)))
    assert worst(got, expected_gradient) < within("gradient")


def test_gradient_equals_the_reference_in_float64(expected_gradient):
    with jax.enable_x64(True):
        like = clip.abstract(config(blocks=BLOCKS), numerics=Numerics(dtype=jnp.float64))
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float64), like)
        got = gradient(parameters.from_flat(checkpoint.flatten(SMALL), like), IMAGES)
    assert {value.dtype for value in got.values()} == {np.dtype(np.float64)}
    assert worst(got, expected_gradient) < within("gradient float64")


def test_another_activation_is_noticed_in_the_gradient(expected_gradient):
    wrong = gradient(model(SMALL, config("gelu", blocks=BLOCKS)))
    assert worst(wrong, expected_gradient) > 100 * within("gradient")
    assert worst(wrong, expected_gradient) > 100 * within("remat")


def test_recomputing_activations_changes_nothing():
    params, bag = tiny.params(text="cbow"), config(kind="cbow")
    plain, saving = (model(params, bag, remat=remat) for remat in ("none", "full"))
    assert worst(gradient(plain), gradient(saving)) < within("remat")
    programs = [str(jax.make_jaxpr(jax.grad(loss_of))(m, SINGLE, TOKENS)) for m in (plain, saving)]
    assert ["remat" in program for program in programs] == [False, True]


# Other numerics -----------------------------------------------------------------------------------


def test_bfloat16_stays_near(expected):
    coarse = Numerics(dtype=jnp.bfloat16)
    got = run(model(PARAMS, config(), numerics=coarse), SINGLE, TOKENS)
    wide = ("image embeds", "text embeds", "logits", "loss")
    for name, stage in got.items():
        assert stage.dtype == (np.float32 if name in wide else jnp.bfloat16), name
    want = expected["quick_gelu"]
    for name in ("image embeds", "text embeds"):
        assert tolerance(name) < departure(got[name], want[name]) < within("bfloat16")
    wrong = copy.deepcopy(PARAMS)
    ordered_as_strings(wrong["visual"])
    ordered_as_strings(wrong["text"])
    got = run(model(wrong, config(), numerics=coarse), SINGLE, TOKENS)
    for name in ("image embeds", "text embeds"):
        assert departure(got[name], want[name]) > 3 * within("bfloat16")


def test_highest_precision_reaches_every_product_of_the_towers(expected):
    """On CPU it changes nothing; on TPU and recent GPUs the default rounds to 8 or 11 bits."""
    exact = model(PARAMS, config(), numerics=Numerics(precision="highest"))
    assert excess(run(exact, SINGLE, TOKENS), expected["quick_gelu"]) == {}

    def towers(m: clip.Clip) -> Any:
        return m.encode_image(SINGLE), m.encode_text(TOKENS)

    def share(m: clip.Clip) -> tuple[int, int]:
        lines = jax.jit(towers).lower(m).as_text().splitlines()
        products = [line for line in lines if "stablehlo.dot_general" in line]
        return sum("HIGHEST, HIGHEST" in line for line in products), len(products)

    highest, products = share(exact)
    assert highest == products > 10
    assert share(model(PARAMS, config())) == (0, products)
