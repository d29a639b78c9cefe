"""The NumPy reference against explicit loops, textbook formulas and central differences.

Most comparisons are in float64, where rounding stays below 1e-12 and a mistake does not.
"""

from __future__ import annotations

import ast
import copy
import inspect
import math
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

import jaxclip
from jaxclip import checkpoint, losses, reference
from jaxclip.data.emoji.pictures import load_emoji
from jaxclip.hub.find import find
from tests.support import tiny

CLOSE = {"rtol": 1e-11, "atol": 1e-11}  # float64: a few thousand roundings of 1e-16, amplified
VISIBLE = 1e-5  # what a mistake must at least do to features of size one

vision = partial(reference.vision_transformer, heads=tiny.VISION_HEADS)
text = partial(reference.text_transformer, heads=tiny.TEXT_HEADS)
clip = partial(reference.clip, vision_heads=tiny.VISION_HEADS, text_heads=tiny.TEXT_HEADS)


@pytest.fixture(scope="module")
def params():
    return tiny.params()


@pytest.fixture(scope="module")
def batch():
    return tiny.batch()


def unit_rows(rng, n, e):
    x = rng.normal(size=(n, e))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def departs(a, b):
    return np.abs(a - b).max() > VISIBLE


# The towers once more, one number or one token at a time ------------------------------------------


def slow_layer_norm(x, scale, bias):
    out = np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        row = x[index]
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / len(row)
        for j, value in enumerate(row):
            out[(*index, j)] = (value - mean) / math.sqrt(variance + 0.00001) * scale[j] + bias[j]
    return out


def slow_attention(x, params, heads, causal):
    """One text or image [l, d], one head and one query at a time."""
    length, width = x.shape
    k = width // heads
    kernel, bias = params["in_proj_kernel"], params["in_proj_bias"]
    joined = np.zeros((length, width))
    for head in range(heads):
        columns = np.arange(head * k, (head + 1) * k)
        query, key, value = (
            x @ kernel[:, part * width + columns] + bias[part * width + columns]
            for part in range(3)
        )
        for i in range(length):
            seen = i + 1 if causal else length
            weights = [math.exp(query[i] @ key[j] / math.sqrt(k)) for j in range(seen)]
            for j in range(seen):
                joined[i, columns] += weights[j] / sum(weights) * value[j]
    return joined @ params["out_proj"]["kernel"] + params["out_proj"]["bias"]


def slow_mlp(x, params):
    x = x @ params["c_fc"]["kernel"] + params["c_fc"]["bias"]
    x = x / (1 + np.exp(-1.702 * x))
    return x @ params["c_proj"]["kernel"] + params["c_proj"]["bias"]


def slow_blocks(x, params, heads, causal):
    for name in sorted(params["resblocks"], key=int):
        block = params["resblocks"][name]
        x = x + slow_attention(slow_layer_norm(x, **block["ln_1"]), block["attn"], heads, causal)
        x = x + slow_mlp(slow_layer_norm(x, **block["ln_2"]), block["mlp"])
    return x


def slow_vision_transformer(image, params):
    kernel = params["conv1"]["kernel"]
    patch, width = kernel.shape[0], kernel.shape[-1]
    rows = [params["class_embedding"]]
    for top in range(0, image.shape[0], patch):
        for left in range(0, image.shape[1], patch):
            total = np.zeros(width)
            for dy, dx, channel in np.ndindex(patch, patch, 3):
                total += image[top + dy, left + dx, channel] * kernel[dy, dx, channel]
            rows.append(total)
    x = np.stack(rows) + params["positional_embedding"]
    x = slow_layer_norm(x, **params["ln_pre"])
    x = slow_blocks(x, params["transformer"], tiny.VISION_HEADS, causal=False)
    return slow_layer_norm(x, **params["ln_post"])[0] @ params["proj"]


def slow_text_transformer(tokens, params, end_id):
    words = [params["token_embedding"]["embedding"][token] for token in tokens]
    x = np.stack(words) + params["positional_embedding"]
    x = slow_blocks(x, params["transformer"], tiny.TEXT_HEADS, causal=True)
    x = slow_layer_norm(x, **params["ln_final"])
    return x[list(tokens).index(end_id)] @ params["text_projection"]


def test_vision_transformer_equals_loops(params, batch):
    images, _ = batch
    expected = [slow_vision_transformer(image, params["visual"]) for image in images[:2]]
    assert_allclose(vision(images[:2], params["visual"]), expected, **CLOSE)


def test_text_transformer_equals_loops(params, batch):
    _, tokens = batch
    expected = [slow_text_transformer(row, params["text"], end_id=100) for row in tokens]
    assert_allclose(text(tokens, params["text"]), expected, **CLOSE)


def test_clip_equals_cosines_one_pair_at_a_time(params, batch):
    images, tokens = batch
    image_features = vision(images[:3], params["visual"])
    text_features = text(tokens, params["text"])
    per_image, per_text = clip(images[:3], tokens, params)
    assert per_image.shape == (3, 5) and per_text.shape == (5, 3)
    for i, j in np.ndindex(3, 5):
        a, b = image_features[i], text_features[j]
        cosine = a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)
        assert_allclose(per_image[i, j], cosine * math.exp(2.1), **CLOSE)
        assert per_text[j, i] == per_image[i, j]


def test_clip_takes_a_bag_of_words(batch):
    images, tokens = batch
    params = tiny.params(text="cbow")
    text_embeds = reference.continuous_bag_of_words(tokens, params["text"])
    text_embeds /= np.linalg.norm(text_embeds, axis=1, keepdims=True)
    image_embeds = vision(images, params["visual"])
    image_embeds /= np.linalg.norm(image_embeds, axis=1, keepdims=True)
    expected = np.exp(2.1) * image_embeds @ text_embeds.T
    assert_allclose(clip(images, tokens, params)[0], expected, **CLOSE)


def test_other_odd_sizes(batch):
    sizes = {"image_size": 9, "vocab": 11, "context": 3}
    params = tiny.params(
        3, vision_width=15, vision_layers=2, patch=3, text_width=6, text_layers=1, embed=5, **sizes
    )
    images, tokens = tiny.batch(4, n=1, **sizes)
    image_features = reference.vision_transformer(images, params["visual"], heads=3)
    assert_allclose(image_features, [slow_vision_transformer(images[0], params["visual"])], **CLOSE)
    text_features = reference.text_transformer(tokens, params["text"], heads=2)
    expected = slow_text_transformer(tokens[0], params["text"], end_id=10)
    assert_allclose(text_features, [expected], **CLOSE)


def test_images_need_not_be_square(params):
    visual = copy.deepcopy(params["visual"])
    visual["positional_embedding"] = visual["positional_embedding"][: 1 + 2 * 3]
    image = np.random.default_rng(0).normal(size=(10, 15, 3))
    expected = slow_vision_transformer(image, visual)
    assert_allclose(vision(image[None], visual)[0], expected, **CLOSE)


def test_a_batch_does_not_mix(params, batch):
    images, tokens = batch
    image_features, text_features = vision(images, params["visual"]), text(tokens, params["text"])
    for i in range(len(images)):
        assert_allclose(vision(images[i : i + 1], params["visual"])[0], image_features[i], **CLOSE)
        assert_allclose(text(tokens[i : i + 1], params["text"])[0], text_features[i], **CLOSE)


def test_taps_name_every_stage_in_order(params, batch):
    images, tokens = batch
    blocks = [f"block.{i}" for i in range(12)]
    taps: dict = {}
    features = vision(images, params["visual"], taps=taps)
    assert list(taps) == ["conv1", "stem", *blocks, "ln_post", "features"]
    assert taps["features"] is features
    assert taps["conv1"].shape == (5, 16, 24) and taps["stem"].shape == (5, 17, 24)
    assert taps["block.11"].shape == (5, 17, 24) and taps["ln_post"].shape == (5, 24)

    taps = {}
    features = text(tokens, params["text"], taps=taps)
    assert list(taps) == ["stem", *blocks, "ln_final", "features"]
    assert taps["features"] is features
    assert taps["stem"].shape == taps["ln_final"].shape == (5, 13, 16)

    taps = {}
    features = reference.continuous_bag_of_words(tokens, params["text"], taps=taps)
    assert list(taps) == ["stem", "mean", "features"] and taps["features"] is features


# Text: what comes after the end of it does not count ----------------------------------------------


def scribble_after_the_end(tokens, ids=99):
    tokens = tokens.copy()
    rng = np.random.default_rng(1)
    for row in tokens:
        rest = row[list(row).index(100) + 1 :]
        rest[:] = rng.integers(0, ids, size=rest.shape)
    return tokens


def test_tokens_after_the_end_change_nothing(params, batch):
    _, tokens = batch
    scribbled = scribble_after_the_end(tokens)
    assert (scribbled != tokens).any()
    assert_allclose(text(scribbled, params["text"]), text(tokens, params["text"]), **CLOSE)
    cbow = reference.continuous_bag_of_words
    assert_allclose(cbow(scribbled, params["text"]), cbow(tokens, params["text"]), **CLOSE)


def test_a_second_end_of_text_changes_nothing(params, batch):
    _, tokens = batch
    scribbled = scribble_after_the_end(tokens, ids=101)
    scribbled[:, -1] = 100
    assert_allclose(text(scribbled, params["text"]), text(tokens, params["text"]), **CLOSE)


def test_tokens_before_the_end_change_the_features(params, batch):
    _, tokens = batch
    for row in tokens[(tokens != 0).sum(axis=1) > 2]:
        changed = row.copy()
        changed[1] = row[1] % 98 + 1
        for encode in (text, reference.continuous_bag_of_words):
            before, after = encode(np.stack([row, changed]), params["text"])
            assert departs(before, after)


def test_only_the_transformer_minds_the_order_of_words(params):
    rows = np.array([[99, 5, 6, 100, 0], [99, 6, 5, 100, 0]])
    first, second = text(rows, params["text"])
    assert departs(first, second)
    first, second = reference.continuous_bag_of_words(rows, params["text"])
    assert_allclose(first, second, **CLOSE)


def test_without_the_causal_mask_the_rest_would_count(params, batch, monkeypatch):
    _, tokens = batch
    monkeypatch.setattr(reference.np, "tri", lambda n, dtype: np.ones((n, n), dtype))
    scribbled = scribble_after_the_end(tokens)
    assert departs(text(scribbled, params["text"]), text(tokens, params["text"]))


@pytest.mark.parametrize("length", [1, 4, 8, 13])
def test_texts_may_be_cut_to_their_length(params, length):
    _, tokens = tiny.batch(2, n=4, context=max(length, 2))
    tokens = tokens[:, -length:]  # length 1: no start token, only the end
    padded = np.pad(tokens, [(0, 0), (0, 13 - length)])
    assert_allclose(text(tokens, params["text"]), text(padded, params["text"]), **CLOSE)


def test_continuous_bag_of_words_equals_a_loop(batch):
    _, tokens = batch
    params = tiny.params(text="cbow")["text"]
    assert set(params) == {"token_embedding", "text_projection"}
    for row, features in zip(
        tokens, reference.continuous_bag_of_words(tokens, params), strict=True
    ):
        words = row[: list(row).index(100) + 1]
        mean = sum(params["token_embedding"]["embedding"][word] for word in words) / len(words)
        assert_allclose(features, mean @ params["text_projection"], **CLOSE)


# Negative twins: each of these mistakes must show -------------------------------------------------


def features_of(params, batch, **options):
    images, tokens = batch
    both = vision(images, params["visual"], **options), text(tokens, params["text"], **options)
    return np.concatenate(both)


def each_block(params):
    for tower in ("visual", "text"):
        yield from params[tower]["transformer"]["resblocks"].values()


def test_layers_sorted_as_strings_show(params, batch):
    wrong = copy.deepcopy(params)
    for tower in ("visual", "text"):
        blocks = wrong[tower]["transformer"]["resblocks"]
        by_string = [blocks[name] for name in sorted(blocks)]
        wrong[tower]["transformer"]["resblocks"] = {str(i): b for i, b in enumerate(by_string)}
        assert departs(features_of(wrong, batch), features_of(params, batch))
        wrong[tower] = params[tower]


def test_the_order_of_the_dict_does_not_matter(params, batch):
    shuffled = copy.deepcopy(params)
    for tower in ("visual", "text"):
        blocks = shuffled[tower]["transformer"]["resblocks"]
        shuffled[tower]["transformer"]["resblocks"] = {
            name: blocks[name] for name in sorted(blocks)
        }
    assert list(shuffled["text"]["transformer"]["resblocks"])[2] == "10"
    assert (features_of(shuffled, batch) == features_of(params, batch)).all()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_another_activation_shows(params, batch, activation):
    images, tokens = batch
    for encode, x, branch in ((vision, images, "visual"), (text, tokens, "text")):
        right = encode(x, params[branch])
        assert (right == encode(x, params[branch], activation="quick_gelu")).all()
        assert departs(right, encode(x, params[branch], activation=activation))
    assert departs(
        clip(images, tokens, params)[0], clip(images, tokens, params, activation=activation)[0]
    )


def test_exact_and_tanh_gelu_are_told_apart(params, batch):
    exact, approximate = (
        vision(batch[0], params["visual"], activation=name) for name in ("gelu", "gelu_tanh")
    )
    assert departs(exact, approximate)


def test_another_epsilon_shows(params, batch):
    right = features_of(params, batch)
    wrong = features_of(params, batch, variant=reference.RELEASED._replace(epsilon=1e-6))
    assert departs(right[:5], wrong[:5]) and departs(right[5:], wrong[5:])


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_swapped_queries_keys_values_show(params, batch, order):
    wrong = copy.deepcopy(params)
    for block in each_block(wrong):
        for leaf in ("in_proj_kernel", "in_proj_bias"):
            parts = np.split(block["attn"][leaf], 3, axis=-1)
            block["attn"][leaf] = np.concatenate([parts[i] for i in order], axis=-1)
    right, wrong = features_of(params, batch), features_of(wrong, batch)
    assert departs(right[:5], wrong[:5]) and departs(right[5:], wrong[5:])


def test_another_number_of_heads_shows(params, batch):
    images, tokens = batch
    vision_right, text_right = vision(images, params["visual"]), text(tokens, params["text"])
    assert departs(vision_right, reference.vision_transformer(images, params["visual"], heads=4))
    assert departs(text_right, reference.text_transformer(tokens, params["text"], heads=4))


def test_every_parameter_counts(params, batch):
    images, tokens = tiny.batch(n=4)
    small = tiny.params(vision_layers=2, text_layers=2)
    before = clip(images, tokens, small)[0]

    def visit(tree, path=()):
        for name, branch in tree.items():
            if isinstance(branch, dict):
                visit(branch, (*path, name))
                continue
            kept = tree[name]
            tree[name] = kept + 0.01 * np.cos(np.arange(kept.size)).reshape(kept.shape)
            assert departs(clip(images, tokens, small)[0], before), (*path, name)
            tree[name] = kept

    visit(small)


# Blocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_loops(causal):
    x = np.random.default_rng(0).normal(size=(2, 7, 24))
    params = tiny.params()["visual"]["transformer"]["resblocks"]["0"]["attn"]
    mask = np.arange(7)[None, :] <= np.arange(7)[:, None] if causal else None
    expected = [slow_attention(row, params, 3, causal) for row in x]
    assert_allclose(reference.attention(x, params, 3, mask), expected, **CLOSE)


def test_attention_is_not_uniform_in_the_tiny_model(params, batch):
    """Otherwise swapped queries and keys could pass."""
    images, _ = batch
    block = params["visual"]["transformer"]["resblocks"]["0"]
    taps: dict = {}
    vision(images, params["visual"], taps=taps)
    x = reference.layer_norm(taps["stem"], **block["ln_1"])
    q, k, _ = np.split(x @ block["attn"]["in_proj_kernel"] + block["attn"]["in_proj_bias"], 3, -1)
    weights = reference.softmax(q[..., :8] @ np.swapaxes(k[..., :8], 1, 2) / math.sqrt(8))
    assert np.mean(weights.max(axis=-1)) > 4 / 17


def test_residual_attention_block_is_pre_norm(params):
    x = np.random.default_rng(0).normal(size=(1, 5, 16))
    only = {"resblocks": {"0": params["text"]["transformer"]["resblocks"]["3"]}}
    expected = slow_blocks(x[0], only, 2, causal=False)[None]
    block = reference.residual_attention_block(x, only["resblocks"]["0"], 2, "quick_gelu")
    assert_allclose(block, expected, **CLOSE)


def test_mlp_equals_its_formula(params):
    x = np.random.default_rng(0).normal(size=(3, 24))
    mlp = params["visual"]["transformer"]["resblocks"]["1"]["mlp"]
    assert_allclose(reference.mlp(x, mlp, "quick_gelu"), slow_mlp(x, mlp), **CLOSE)


@pytest.mark.parametrize(("height", "width"), [(20, 20), (10, 25), (13, 19)])
def test_patches_times_kernel_is_a_strided_convolution(height, width):
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(2, height, width, 3)), rng.normal(size=(5, 5, 3, 4))
    ours = reference.patchify(images, 5) @ kernel.reshape(-1, 4)
    with jax.enable_x64(True):
        theirs = jax.lax.conv_general_dilated(
            images, kernel, (5, 5), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    assert_allclose(ours, np.asarray(theirs).reshape(2, -1, 4), **CLOSE)


# Primitives ---------------------------------------------------------------------------------------


def test_layer_norm_equals_loops():
    rng = np.random.default_rng(0)
    x, scale, bias = 0.01 * rng.normal(size=(3, 4, 9)), rng.normal(size=9), rng.normal(size=9)
    assert_allclose(reference.layer_norm(x, scale, bias), slow_layer_norm(x, scale, bias), **CLOSE)


def test_layer_norm_of_a_constant_is_its_bias():
    bias = np.arange(4.0)
    assert_allclose(reference.layer_norm(np.full((2, 4), 3.0), np.ones(4), bias), [bias, bias])


def test_erf_equals_the_standard_library():
    x = np.concatenate([np.linspace(-7, 7, 28001), np.logspace(-300, 2, 303), [-40.0, 1e30, 0.0]])
    expected = np.array([math.erf(value) for value in x])
    assert_allclose(reference.erf(x), expected, rtol=0, atol=1.5e-15)
    near = np.abs(x) < 1  # near zero the relative error is as small
    assert_allclose(reference.erf(x[near]), expected[near], rtol=2e-15)


def test_activations_equal_their_formulas():
    x = np.linspace(-9, 9, 1801)
    gelu = [value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x]
    assert_allclose(reference.ACTIVATIONS["gelu"](x), gelu, rtol=0, atol=1e-14)
    quick_gelu = [value / (1 + math.exp(-1.702 * value)) for value in x]
    assert_allclose(reference.ACTIVATIONS["quick_gelu"](x), quick_gelu, rtol=1e-14)
    with jax.enable_x64(True):
        gelu_tanh = np.asarray(jax.nn.gelu(x, approximate=True))
    assert_allclose(reference.ACTIVATIONS["gelu_tanh"](x), gelu_tanh, rtol=0, atol=1e-14)
    assert set(reference.ACTIVATIONS) == {"quick_gelu", "gelu", "gelu_tanh"}


@pytest.mark.parametrize("name", ["quick_gelu", "gelu", "gelu_tanh"])
def test_activations_do_not_overflow(name):
    x = np.array([-1e6, -800.0, 800.0, 1e6])
    with np.errstate(all="raise", under="ignore"):
        assert_allclose(reference.ACTIVATIONS[name](x), [0, 0, 800, 1e6], atol=1e-9)


def test_activations_differ_by_more_than_a_tolerance():
    quick_gelu, gelu, gelu_tanh = (
        reference.ACTIVATIONS[name](np.linspace(-3, 3, 61))
        for name in ("quick_gelu", "gelu", "gelu_tanh")
    )
    assert np.abs(quick_gelu - gelu).max() > 1e-2
    assert np.abs(gelu - gelu_tanh).max() > 1e-4


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_equals_its_definition(axis):
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    expected = np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)
    assert_allclose(reference.softmax(x, axis), expected, **CLOSE)
    assert_allclose(reference.log_softmax(x, axis), np.log(expected), **CLOSE)
    large = x + 5000 * np.arange(4)[None, :, None]
    assert np.isfinite(reference.softmax(large)).all()
    assert np.isfinite(reference.log_softmax(large)).all()


def test_l2_normalize_has_no_epsilon():
    x = np.array([[3.0, 4.0], [3e-20, 4e-20]])
    assert_allclose(reference.l2_normalize(x), [[0.6, 0.8], [0.6, 0.8]], rtol=1e-15)
    assert_allclose(reference.l2_normalize(x.T, axis=0), [[0.6, 0.6], [0.8, 0.8]], rtol=1e-15)


# Figure 3 and its loss ----------------------------------------------------------------------------


def slow_loss(image_embeds, text_embeds, t):
    n = len(image_embeds)
    total = 0.0
    for i in range(n):
        of_image = [math.exp(math.exp(t) * image_embeds[i] @ text_embeds[j]) for j in range(n)]
        of_text = [math.exp(math.exp(t) * image_embeds[j] @ text_embeds[i]) for j in range(n)]
        total -= math.log(of_image[i] / sum(of_image)) + math.log(of_text[i] / sum(of_text))
    return total / (2 * n)


@pytest.mark.parametrize(("n", "e", "t"), [(1, 3, 0.0), (2, 5, 1.0), (7, 4, 2.659), (11, 3, -1.0)])
def test_loss_equals_loops(n, e, t):
    rng = np.random.default_rng(n)
    image_embeds, text_embeds = unit_rows(rng, n, e), unit_rows(rng, n, e)
    loss = reference.contrastive_loss(image_embeds, text_embeds, t)
    assert np.shape(loss) == ()
    assert_allclose(loss, slow_loss(image_embeds, text_embeds, t), **CLOSE)


def test_loss_treats_images_and_texts_alike():
    rng = np.random.default_rng(0)
    a, b = unit_rows(rng, 6, 4), unit_rows(rng, 6, 4)
    loss = reference.contrastive_loss(a, b, 2.0)
    assert_allclose(reference.contrastive_loss(b, a, 2.0), loss, **CLOSE)
    order = rng.permutation(6)
    assert_allclose(reference.contrastive_loss(a[order], b[order], 2.0), loss, **CLOSE)
    assert departs(reference.contrastive_loss(a, b[::-1], 2.0), loss)


def test_one_direction_is_not_the_loss():
    rng = np.random.default_rng(0)
    a, b = unit_rows(rng, 6, 4), unit_rows(rng, 6, 4)
    logits, labels = math.exp(2) * a @ b.T, np.arange(6)
    by_column = reference.cross_entropy_loss(logits, labels, axis=0)
    by_row = reference.cross_entropy_loss(logits, labels, axis=1)
    loss = reference.contrastive_loss(a, b, 2.0)
    assert_allclose((by_column + by_row) / 2, loss, **CLOSE)
    assert departs(by_column, loss) and departs(by_row, loss)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_loss_of_equal_embeddings_is_log_n(n):
    same = np.repeat(unit_rows(np.random.default_rng(0), 1, 5), n, axis=0)
    for t in (0.0, 2.659, 4.605):
        assert_allclose(reference.contrastive_loss(same, same, t), math.log(n), **CLOSE)


def test_loss_without_temperature_is_log_n():
    rng = np.random.default_rng(0)
    a, b = unit_rows(rng, 8, 5), unit_rows(rng, 8, 5)
    assert_allclose(reference.contrastive_loss(a, b, -50.0), math.log(8), **CLOSE)


def test_loss_of_perfect_pairs_falls_with_the_temperature():
    pairs = np.eye(6)
    losses = [reference.contrastive_loss(pairs, pairs, t) for t in (-1.0, 0.0, 1.0, 2.0, 4.0)]
    assert (np.diff(losses) < 0).all() and losses[-1] < 1e-9
    expected = [math.log(1 + 5 * math.exp(-math.exp(t))) for t in (-1.0, 0.0, 1.0, 2.0, 4.0)]
    assert_allclose(losses, expected, **CLOSE)


def test_loss_takes_the_logarithm_of_the_scale():
    rng = np.random.default_rng(0)
    a, b = unit_rows(rng, 4, 3), unit_rows(rng, 4, 3)
    t = math.log(1 / 0.07)
    assert departs(reference.contrastive_loss(a, b, t), reference.contrastive_loss(a, b, 1 / 0.07))
    assert_allclose(reference.contrastive_loss(a, b, t), slow_loss(a, b, t), **CLOSE)


def test_loss_does_not_overflow():
    a = unit_rows(np.random.default_rng(0), 5, 3)
    assert np.isfinite(reference.contrastive_loss(a, -a, math.log(1e5)))


def test_figure_3_whole(params, batch):
    """With the projections outside, as in the paper; and inside, as in the released code."""
    images, tokens = batch
    visual, words = params["visual"], params["text"]
    without = copy.deepcopy(params)
    without["visual"]["proj"], without["text"]["text_projection"] = np.eye(24), np.eye(16)
    loss = reference.figure_3(
        images,
        tokens,
        lambda x: vision(x, without["visual"]),
        lambda x: text(x, without["text"]),
        visual["proj"],
        words["text_projection"],
        params["logit_scale"],
    )
    image_embeds, text_embeds = vision(images, visual), text(tokens, words)
    image_embeds /= np.linalg.norm(image_embeds, axis=1, keepdims=True)
    text_embeds /= np.linalg.norm(text_embeds, axis=1, keepdims=True)
    assert_allclose(loss, slow_loss(image_embeds, text_embeds, 2.1), **CLOSE)
    logits, _ = clip(images, tokens, params)
    by_hand = [logits[i, i] - np.log(np.exp(logits[i]).sum()) for i in range(5)]
    by_hand += [logits[i, i] - np.log(np.exp(logits[:, i]).sum()) for i in range(5)]
    assert_allclose(loss, -np.mean(by_hand), **CLOSE)


def test_figure_3_stands_first():
    names = [name for name, _ in functions_in_order()]
    assert names[:2] == ["figure_3", "contrastive_loss"]


def functions_in_order():
    found = inspect.getmembers(reference, inspect.isfunction)
    return sorted(found, key=lambda pair: pair[1].__code__.co_firstlineno)


# The gradient by hand -----------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "e", "t"), [(1, 3, 0.5), (3, 5, 0.0), (7, 4, 2.659)])
def test_gradient_equals_central_differences(n, e, t):
    rng = np.random.default_rng(n)
    arguments = [unit_rows(rng, n, e), unit_rows(rng, n, e), np.array(t)]
    gradient = reference.contrastive_loss_gradient(*arguments)
    step = 1e-5
    for which, values in enumerate(arguments):
        assert np.shape(gradient[which]) == values.shape
        for index in np.ndindex(values.shape):
            sides = []
            for sign in (1, -1):
                moved = [x.copy() for x in arguments]
                moved[which][index] += sign * step
                sides.append(reference.contrastive_loss(*moved))
            difference = (sides[0] - sides[1]) / (2 * step)
            # step^2 times the third derivative, and 1e-16 / step of rounding
            assert_allclose(gradient[which][index], difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("n", "e", "t"), [(1, 3, 0.5), (3, 5, 0.0), (7, 4, 2.659), (6, 9, 4.605)])
def test_gradient_equals_automatic_differentiation(monkeypatch, n, e, t):
    rng = np.random.default_rng(n)
    arguments = unit_rows(rng, n, e), unit_rows(rng, n, e), np.array(t)
    by_hand = reference.contrastive_loss_gradient(*arguments)
    monkeypatch.setattr(reference, "np", jnp)
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(reference.contrastive_loss, argnums=(0, 1, 2)))
        automatic = gradient(*arguments)
    for ours, theirs in zip(by_hand, automatic, strict=True):
        assert theirs.dtype == np.float64
        assert_allclose(ours, theirs, **CLOSE)


def test_gradient_vanishes_where_the_loss_is_flat():
    same = np.repeat(unit_rows(np.random.default_rng(0), 1, 5), 4, axis=0)
    for part in reference.contrastive_loss_gradient(same, same, 1.0):
        assert_allclose(part, np.zeros_like(part), atol=1e-14)


# One text, two libraries --------------------------------------------------------------------------


def without_blocks(text_params):
    return {name: text_params[name] for name in ("token_embedding", "text_projection")}


def functions_of_everything(activation="quick_gelu"):
    """By name, of images, tokens and the parameters of a model with a text transformer."""
    return {
        "clip": lambda x, y, p: clip(x, y, p, activation=activation)[0],
        "vision": lambda x, y, p: vision(x, p["visual"], activation=activation),
        "text": lambda x, y, p: text(y, p["text"], activation=activation),
        "cbow": lambda x, y, p: reference.continuous_bag_of_words(y, p["text"]),
        "cbow clip": lambda x, y, p: clip(x, y, {**p, "text": without_blocks(p["text"])})[0],
        "loss": lambda x, y, p: reference.figure_3(
            x,
            y,
            lambda images: vision(images, p["visual"], activation=activation),
            lambda tokens: text(tokens, p["text"], activation=activation),
            np.eye(7, dtype=x.dtype),
            np.eye(7, dtype=x.dtype),
            p["logit_scale"],
        ),
        "gradient": lambda x, y, p: reference.contrastive_loss_gradient(
            reference.l2_normalize(vision(x, p["visual"])),
            reference.l2_normalize(text(y, p["text"])),
            p["logit_scale"],
        )[0],
    }


@pytest.mark.parametrize(
    "name", ["clip", "vision", "text", "cbow", "cbow clip", "loss", "gradient"]
)
def test_runs_unchanged_under_jax_numpy_and_jit(monkeypatch, name):
    small = tiny.params(vision_layers=2, text_layers=2)
    function = functions_of_everything()[name]
    images, tokens = tiny.batch()
    expected = function(images, tokens, small)
    monkeypatch.setattr(reference, "np", jnp)
    with jax.enable_x64(True):
        traced = jax.jit(function)(images, tokens, small)
        closed = jax.jit(lambda x, y: function(x, y, small))(images, tokens)
    assert traced.dtype == closed.dtype == np.float64
    assert_allclose(traced, expected, **CLOSE)
    assert_allclose(closed, expected, **CLOSE)


@pytest.mark.parametrize("name", ["quick_gelu", "gelu", "gelu_tanh"])
def test_activations_run_unchanged_under_jax_numpy(monkeypatch, name):
    x = np.linspace(-9, 9, 181)
    expected = reference.ACTIVATIONS[name](x)
    monkeypatch.setattr(reference, "np", jnp)
    with jax.enable_x64(True):
        values = jax.jit(reference.ACTIVATIONS[name])(x)
        slopes = jax.vmap(jax.grad(reference.ACTIVATIONS[name]))(x)
    assert_allclose(values, expected, rtol=1e-13, atol=1e-14)
    central = np.gradient(expected, x)
    assert_allclose(slopes[1:-1], central[1:-1], atol=5e-3)


def test_gradient_of_the_whole_model_runs_under_jax_numpy(monkeypatch):
    small = tiny.params(vision_layers=1, text_layers=1)
    images, tokens = tiny.batch()
    function = functions_of_everything()["loss"]
    step = 1e-5
    kernel = small["text"]["transformer"]["resblocks"]["0"]["attn"]["in_proj_kernel"]
    sides = []
    for sign in (1, -1):
        moved = copy.deepcopy(small)
        moved["text"]["transformer"]["resblocks"]["0"]["attn"]["in_proj_kernel"][3, 5] += (
            sign * step
        )
        sides.append(function(images, tokens, moved))
    monkeypatch.setattr(reference, "np", jnp)
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(function, argnums=2))(images, tokens, small)
    ours = gradient["text"]["transformer"]["resblocks"]["0"]["attn"]["in_proj_kernel"]
    assert ours.shape == kernel.shape
    assert_allclose(ours[3, 5], (sides[0] - sides[1]) / (2 * step), rtol=1e-6, atol=1e-9)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(
    "name", ["clip", "vision", "text", "cbow", "cbow clip", "loss", "gradient"]
)
def test_the_dtype_is_that_of_the_inputs(name, activation):
    small = tiny.params(vision_layers=2, text_layers=2)
    images, tokens = tiny.batch()
    function = functions_of_everything(activation)[name]
    double = function(images, tokens, small)
    single = function(images.astype(np.float32), tokens, tiny.cast(small, np.float32))
    assert double.dtype == np.float64
    assert single.dtype == np.float32
    assert_allclose(single, double, rtol=1e-4, atol=1e-4)


def test_the_loss_stays_in_float32_whatever_the_scale_is():
    a = unit_rows(np.random.default_rng(0), 5, 3).astype(np.float32)
    for t in (2.0, np.float64(2), np.array(2.0), np.float32(2)):
        assert reference.contrastive_loss(a, a, t).dtype == np.float32
        parts = reference.contrastive_loss_gradient(a, a, t)
        assert [part.dtype for part in parts] == [np.float32] * 3


def test_arguments_are_left_as_they_were(params, batch):
    images, tokens = batch
    kept = copy.deepcopy((params, images, tokens))
    clip(images, tokens, params)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), kept, (params, images, tokens)))


def imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def test_imports_numpy_only_but_in_the_demonstration():
    body = ast.parse(inspect.getsource(reference)).body
    main = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    rest = [node for node in body if node not in main]
    assert imported(ast.Module(rest, [])) <= {"numpy", "__future__", "typing", "collections.abc"}
    assert len(main) == 1 and imported(main[0]) > {"jaxclip.checkpoint"}


WITHOUT_JAX = """
import runpy, sys
runpy.run_module("jaxclip.reference", run_name="__main__")
assert not {"jax", "flax", "torch"} & set(sys.modules)
"""


def test_it_runs_alone_and_prints_the_loss_of_the_jax_model():
    """`python -m jaxclip.reference`: no warning, no jax, the loss of the embedded model."""
    command = [sys.executable, "-W", "error", "-m", "jaxclip.reference"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert printed.stderr == ""
    again = subprocess.run([sys.executable, "-c", WITHOUT_JAX], check=True, capture_output=True)
    assert again.stdout.decode() == printed.stdout

    model, preprocess = jaxclip.load("emoji")
    test = load_emoji("test")
    drawings = {name: Image.fromarray(test.images[i]) for i, name in enumerate(test.names)}
    names = ["cat face", "fox"]
    images = np.stack([preprocess.safe(drawings[name]) for name in names])
    features = model.encode_image(images), model.encode_text(jaxclip.tokenize(names))
    I_e, T_e = (losses.l2_normalize(x) for x in features)
    flat, _, _ = checkpoint.load(find("emoji"))
    t = jnp.asarray(flat["logit_scale"])
    for texts, start in ((T_e, "loss = "), (T_e[::-1], "loss of the wrong pairs = ")):
        (line,) = [x for x in printed.stdout.splitlines() if x.startswith(start)]
        expected = float(losses.contrastive_loss(I_e, texts, t))
        assert abs(float(line.removeprefix(start)) - expected) < 2e-5
