"""A model goes wherever JAX takes a pytree: transformations, files, meshes, larger modules."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxclip
from jaxclip.config import RELEASED, ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.models import clip, encoders
from jaxclip.models.layers import Numerics
from jaxclip.models.parameters import named_leaves, path_name, to_flat
from tests.support.tolerances import departure, within

TEXT = TextConfig(16, layers=2, heads=2, context_length=13, vocab_size=101)
CONFIGS = {
    "vit": ClipConfig(VisionConfig(20, 5, 24, 2, 3), TEXT, 7),
    "resnet": ClipConfig(ResNetConfig(32, 4, (1, 1, 1, 1)), TEXT, 7),
}
RNG = np.random.default_rng(0)
MODELS = [(kind, dtype) for kind in CONFIGS for dtype in ("float32", "bfloat16")]
PAIRS = 8  # one for each virtual device
pytestmark = pytest.mark.usefixtures("quick_compiling", "kept_programs")
Model = jaxclip.Clip


def made(kind: str, dtype: str = "float32") -> Model:
    """A model whose parameters are all random, filled without compiling anything."""
    rng = np.random.default_rng(2)

    def drawn(path: Any, leaf: Any) -> Any:
        positive = path_name(path).endswith(("var", "scale"))
        numbers = rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(size=leaf.shape) / 4
        return jnp.asarray(numbers, leaf.dtype)

    like = clip.abstract(CONFIGS[kind], numerics=Numerics(jnp.dtype(dtype)))
    model: Model = jax.tree_util.tree_map_with_path(drawn, like)
    model.notes = clip.Notes(source="a test")
    return model


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def model(request: pytest.FixtureRequest) -> Model:
    return made(*request.param)


def pairs(model: Model, count: int = PAIRS) -> tuple[np.ndarray, np.ndarray]:
    size, text = model.config.vision.image_size, model.config.text
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, text.vocab_size - 1, (count, text.context_length))
    tokens[:, -1] = text.vocab_size - 1
    return rng.normal(size=(count, size, size, 3)).astype(np.float32), tokens.astype(np.int32)


def everything(model: Model, images: Any, tokens: Any) -> Any:
    return model.encode_image(images), model.encode_text(tokens), *model(images, tokens)


def equal(model: Model, got: Any, want: Any) -> bool:
    """As two programs of one function: in bfloat16 each may round another way."""
    narrow = model.visual.numerics.dtype == jnp.bfloat16
    limit = within("bfloat16 twice" if narrow else "float32 twice")
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return all(departure(np.float64(a), np.float64(b)) < limit for a, b in pairs)


def same(got: Any, want: Any) -> bool:
    """To the bit."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


# Transformations ----------------------------------------------------------------------------------


def test_jit_takes_a_model_as_argument_and_closed_over(model: Model) -> None:
    images, tokens = pairs(model)
    want = everything(model, images, tokens)
    assert equal(model, jax.jit(everything)(model, images, tokens), want)
    assert equal(model, jax.jit(lambda i, t: everything(model, i, t))(images, tokens), want)
    other = jax.tree.map(lambda x: x * 1.3, model)  # the negative twin: it is an argument
    assert not equal(model, jax.jit(everything)(other, images, tokens), want)


def test_vmap_maps_over_pairs(model: Model) -> None:
    images, tokens = pairs(model)
    want = everything(model, images, tokens)

    def one(image: Any, text: Any) -> Any:
        return [x[0] for x in everything(model, image[None], text[None])]

    got = jax.vmap(one)(images, tokens)
    assert equal(model, got[:2], want[:2])
    assert equal(model, [got[2][:, 0]], [jnp.diag(want[2])])


def total(model: Model, images: Any, tokens: Any) -> Any:
    """One number that depends on all of what a model returns."""
    outs = everything(model, images, tokens)
    return sum(jnp.square(x.astype(jnp.float32)).mean() for x in outs)


def test_grad_with_respect_to_a_model_is_a_model(model: Model) -> None:
    images, tokens = pairs(model, 3)
    grads = jax.grad(total)(model, images, tokens)
    assert type(grads) is type(model)
    assert jax.tree.structure(grads) == jax.tree.structure(model)
    leaves = named_leaves(grads)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves.values())
    zero = {name for name, leaf in leaves.items() if not np.asarray(leaf).any()}
    assert zero == set()
    inside = jax.grad(lambda i: total(model, i, tokens))(images)  # the model closed over
    assert inside.shape == images.shape and np.asarray(inside).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_gradient_is_the_slope(kind: str) -> None:
    model = made(kind)
    images, tokens = pairs(model, 3)
    rng = np.random.default_rng(4)
    step = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), model)
    value = jax.jit(total)

    def at(way: float) -> float:
        moved = jax.tree.map(lambda x, d: x + np.float32(way) * d, model, step)
        return float(value(moved, images, tokens))

    grads = jax.grad(total)(model, images, tokens)
    slope = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, step)), strict=True))
    measured = (at(1e-3) - at(-1e-3)) / 2e-3
    assert abs(measured - float(slope)) < 0.02 * abs(measured)


def test_statistics_are_left_out_of_a_gradient_by_a_split() -> None:
    model = made("resnet")
    images, tokens = pairs(model, 3)
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    grads = jax.grad(lambda p: total(nnx.merge(graphdef, p, stats), images, tokens))(params)
    whole = named_leaves(jax.grad(total)(model, images, tokens))
    assert set(named_leaves(grads)) == {n for n in whole if not n.endswith((".mean", ".var"))}
    assert all(departure(g, whole[n]) < 1e-5 for n, g in named_leaves(grads).items())


# As a pytree and a module -------------------------------------------------------------------------


def copies(model: Model) -> dict[str, Model]:
    return {
        "device_put": jax.device_put(model, jax.devices()[1]),
        "tree.map": jax.tree.map(lambda x: x, model),
        "split and merge": nnx.merge(*nnx.split(model)),
        "split by kind": nnx.merge(*nnx.split(model, nnx.Param, nnx.BatchStat)),
        "deepcopy": copy.deepcopy(model),
        "copy": copy.copy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "jit": jax.jit(lambda model: model)(model),
    }


def test_copies_of_a_model_are_that_model(model: Model) -> None:
    images, tokens = pairs(model)
    want = everything(model, images, tokens)
    for way, copied in copies(model).items():
        assert type(copied) is Model, way
        assert jax.tree.structure(copied) == jax.tree.structure(model), way
        assert same(everything(copied, images, tokens), want), way


def test_notes_stay_with_the_weights_they_are_true_of(model: Model) -> None:
    """Nothing of JAX compares, hashes or copies them; Python's own copies have them."""
    have = {way for way, copied in copies(model).items() if copied.notes == model.notes}
    assert have == {"deepcopy", "copy", "pickle"}
    assert all(copied.notes in ({}, model.notes) for copied in copies(model).values())
    other = jax.tree.map(lambda x: x, model)
    other.notes = clip.Notes(source=["not", {"to": "hash"}])
    assert jax.tree.structure(other) == jax.tree.structure(model)
    assert hash(jax.tree.structure(other)) == hash(jax.tree.structure(model))
    assert nnx.graphdef(other) == nnx.graphdef(model)
    assert hash(nnx.graphdef(other)) == hash(nnx.graphdef(model))
    run = jax.jit(lambda model: model.logit_scale[...])
    run(model), run(other)
    assert run._cache_size() == 1
    assert len(jax.tree.leaves(model)) == len(named_leaves(clip.abstract(model.config)))


def test_a_model_of_another_structure_is_another_structure() -> None:
    """The negative twin: what changes the program does count."""
    model = made("vit")
    for other in (made("vit", "bfloat16"), made("resnet")):
        assert jax.tree.structure(other) != jax.tree.structure(model)
    by_hand = copy.copy(model)
    by_hand.jit = False
    assert jax.tree.structure(by_hand) != jax.tree.structure(model)


class Probe(nnx.Module):
    """Somebody's classifier on frozen features."""

    def __init__(self, model: Model, rngs: nnx.Rngs) -> None:
        self.model = model
        self.head = nnx.Linear(model.config.embed_dim, 3, rngs=rngs)

    def __call__(self, images: Any) -> Any:
        return self.head(self.model.encode_image(images).astype(jnp.float32))


def test_a_model_is_part_of_a_larger_module(model: Model) -> None:
    images, _ = pairs(model)
    probe = Probe(model, nnx.Rngs(0))
    want = probe.head(model.encode_image(images).astype(jnp.float32))
    assert departure(jax.jit(lambda p, x: p(x))(probe, images), want) < within("bfloat16 twice")
    graphdef, head, frozen = nnx.split(probe, nnx.All(nnx.Param, nnx.PathContains("head")), ...)
    grads = jax.grad(lambda h: nnx.merge(graphdef, h, frozen)(images).sum())(head)
    assert set(named_leaves(grads)) == {"head.bias", "head.kernel"}
    assert float(grads["head"]["bias"][...][0]) == PAIRS


# Files and other processes ------------------------------------------------------------------------

ELSEWHERE = """
import pickle, sys
from pathlib import Path
import jax, numpy as np
from jax import export

for folder in map(Path, sys.argv[1:]):
    images, tokens = (np.load(folder / name) for name in ("images.npy", "tokens.npy"))
    rows = {"image": [images], "text": [tokens], "both": [images, tokens[:3]]}
    model = pickle.loads((folder / "model.pickle").read_bytes())
    rows["apart"] = [jax.tree.leaves(model), images]
    out = {"pickle": model(*rows["both"])[0]}
    for file in folder.glob("*.export"):
        answer = export.deserialize(bytearray(file.read_bytes())).call(*rows[file.stem])
        out[file.stem] = answer[0] if file.stem == "both" else answer
    np.savez(folder / "out.npz", **{name: np.float32(x) for name, x in out.items()})
"""


def export_all(model: Model, folder: Path) -> None:
    """Three programs of any number of rows with the weights inside, and one without."""
    size, length = model.config.vision.image_size, model.config.text.context_length
    n, m = export.symbolic_shape("n, m")
    images = jax.ShapeDtypeStruct((n, size, size, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((m, length), jnp.int32)
    leaves, structure = jax.tree.flatten(model)

    def apart(leaves: Any, images: Any) -> Any:
        return jax.tree.unflatten(structure, leaves).encode_image(images)

    programs = {
        "image": export.export(jax.jit(model.encode_image))(images),
        "text": export.export(jax.jit(model.encode_text))(tokens),
        "both": export.export(jax.jit(model))(images, tokens),
        "apart": export.export(jax.jit(apart))(leaves, images),
    }
    for name, program in programs.items():
        (folder / f"{name}.export").write_bytes(program.serialize())


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What another process makes of pickled and exported models, by kind and dtype."""
    folders = {names: tmp_path_factory.mktemp("-".join(names)) for names in MODELS}
    for names, folder in folders.items():
        model = made(*names)
        for name, rows in zip(("images", "tokens"), pairs(model, 5), strict=True):
            np.save(folder / name, rows)
        (folder / "model.pickle").write_bytes(pickle.dumps(model))
        export_all(model, folder)
    command = [sys.executable, "-c", ELSEWHERE, *map(str, folders.values())]
    quickly = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    subprocess.run(command, check=True, env=quickly, capture_output=True, text=True)
    return {"-".join(names): np.load(folder / "out.npz") for names, folder in folders.items()}


def test_a_pickled_and_an_exported_model_answer_in_another_process(
    model: Model, elsewhere: Any, request: pytest.FixtureRequest
) -> None:
    images, tokens = pairs(model, 5)
    out = elsewhere[request.node.callspec.id]
    want = {"image": model.encode_image(images), "text": model.encode_text(tokens)}
    want |= {"both": model(images, tokens[:3])[0], "apart": want["image"]}
    want["pickle"] = want["both"]
    for name, expected in want.items():
        assert equal(model, [out[name]], [expected]), name
        rolled = np.roll(out[name], 1, axis=-1)  # the negative twin
        assert not equal(model, [rolled], [expected])


def test_save_and_load_give_the_weights_back(model: Model, tmp_path: Path) -> None:
    for path in (tmp_path / "one.safetensors", str(tmp_path / "two")):
        model.save(path)
        back, preprocess = jaxclip.load(path, dtype=model.visual.numerics.dtype)
        assert back.config == model.config and preprocess.size == model.config.vision.image_size
        assert back.notes["made_from"] == model.notes
        images, tokens = pairs(model)
        assert equal(model, everything(back, images, tokens), everything(model, images, tokens))
    wide, flat = to_flat(jaxclip.load(path)[0]), to_flat(model)
    assert all(np.array_equal(wide[name], flat[name]) for name in flat)


def test_save_overwrites_nothing_unless_forced(tmp_path: Path) -> None:
    model, path = made("vit"), tmp_path / "model.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"expected no such file, got one; pass force=True"):
        model.save(path)
    assert path.read_bytes() == b"precious"
    model.save(path, force=True)
    assert jaxclip.load(path)[0].config == model.config
    with pytest.raises(ValueError, match="a directory"):
        model.save(tmp_path, force=True)


def test_one_tower_is_not_saved_as_a_model(tmp_path: Path) -> None:
    made("vit").save(tmp_path / "whole")
    text, _ = jaxclip.load(tmp_path / "whole", tower="text")
    with pytest.raises(ValueError, match="loaded without its image tower; load it whole"):
        text.save(tmp_path / "text")
    assert not (tmp_path / "text").exists()


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_arranged_model_saves_plain_arrays(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    jaxclip.hardware.for_cpu(model).save(tmp_path / "model")
    saved = to_flat(jaxclip.load(tmp_path / "model")[0])
    assert all(np.array_equal(saved[name], x) for name, x in to_flat(model).items())


# Fresh weights ------------------------------------------------------------------------------------


def test_create_takes_a_seed_or_a_key() -> None:
    config = CONFIGS["vit"]
    seed = jaxclip.create(config, 5)
    keys = (jax.random.key(5), jax.random.PRNGKey(5), np.int64(5))
    assert all(same(jaxclip.create(config, key), seed) for key in keys)
    assert same(Model.from_config(config, 5), seed)
    assert not same(jaxclip.create(config, 6), seed)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(seed))


@pytest.mark.parametrize(
    ("name", "count"), [("ViT-B/32", 151_277_313), ("RN50", 102_007_137), ("ViT-L/14", 427_616_513)]
)
def test_parameters_are_as_many_as_the_released_model_has(name: str, count: int) -> None:
    model = clip.abstract(RELEASED[name])
    params = nnx.state(model, nnx.Param)
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)) == count
    assert repr(model) == f"Clip({name}, {count:,} parameters, float32)"


# Meshes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_pairs_split_over_a_mesh_give_what_one_device_gives(model: Model, kind: AxisType) -> None:
    images, tokens = pairs(model)
    want = everything(model, images, tokens)
    slope = jax.jit(jax.grad(total))(model, images, tokens)
    mesh = jax.make_mesh((PAIRS,), ("data",), axis_types=(kind,))
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    whole = jax.device_put(model, everywhere)
    rows = jax.device_put((images, tokens), split)
    got = everything(whole, *rows)  # as the arrays say it
    assert equal(model, got, want)
    assert all(x.sharding.is_equivalent_to(split, 2) for x in got[:2])
    with jax.set_mesh(mesh):
        assert equal(model, jax.jit(everything)(whole, *rows), want)
        grads = jax.jit(jax.grad(total))(whole, *rows)
    narrow = got[0].dtype == jnp.bfloat16
    limit = within("bfloat16 gradient" if narrow else "mesh gradient")
    right = named_leaves(slope)
    for name, leaf in named_leaves(grads).items():
        if not name.endswith("k_proj.bias"):  # it cancels in the softmax: rounding alone
            assert departure(np.float64(leaf), np.float64(right[name])) < limit, name


def test_a_mesh_with_explicit_axes_is_one_that_refuses_the_towers_alone() -> None:
    """The negative twin of what `inputs.on_any_mesh` is for; once JAX takes it, that can go."""
    model = made("vit")
    mesh = jax.make_mesh((PAIRS,), ("data",), axis_types=(AxisType.Explicit,))
    whole = jax.device_put(model, NamedSharding(mesh, PartitionSpec()))
    rows = jax.device_put(pairs(model), NamedSharding(mesh, PartitionSpec("data")))
    for tower, x in zip((whole.visual, whole.text), rows, strict=True):
        with jax.set_mesh(mesh), pytest.raises(Exception, match="out_sharding"):
            jax.jit(lambda tower, x: tower(x))(tower, x)


# Arguments ----------------------------------------------------------------------------------------

IMAGES, TOKENS = np.zeros((2, 20, 20, 3), np.float32), np.zeros((2, 13), np.int32)
WRONG = {
    "a text": ("encode_text", "rocket", r"whole numbers, got 'rocket'; use model.tokenize"),
    "texts": ("encode_text", ["a", "b"], r"got a list; use model.tokenize\(texts\)"),
    "a row": ("encode_text", TOKENS[0], r"got \(13,\) int32; use model.tokenize"),
    "floats": ("encode_text", IMAGES[..., 0, 0], r"got \(2, 20\) float32; use model.tokenize"),
    "an id": ("encode_text", TOKENS + 101, "token id 101: expected an id from 0 to 100"),
    "too long": ("encode_text", np.ones((1, 14), np.int32), "expected at most 13 tokens"),
    "a name": ("encode_image", "cat.png", r"pixels \[n, 20, 20, 3\], got 'cat.png'; use np.stack"),
    "one image": ("encode_image", IMAGES[0], r"got float32 \(20, 20, 3\); use np.stack"),
    "channels first": (
        "encode_image",
        IMAGES.transpose(0, 3, 1, 2),
        r"got float32 \(2, 3, 20, 20\)",
    ),
    "bytes": ("encode_image", IMAGES.astype(np.uint8), r"got uint8 \(2, 20, 20, 3\)"),
}


@pytest.fixture(scope="module")
def vit() -> Model:
    return made("vit")


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_argument_is_answered_in_one_line(vit: Model, name: str) -> None:
    method, given, says = WRONG[name]
    with pytest.raises(ValueError, match=says) as caught:
        getattr(vit, method)(given)
    assert "\n" not in str(caught.value)
    both = (given, TOKENS) if method == "encode_image" else (IMAGES, given)
    with pytest.raises(ValueError, match=says):
        vit(*both)
    if isinstance(given, np.ndarray) and name not in (
        "an id",
        "too long",
    ):  # shapes, in a trace too
        with pytest.raises(ValueError, match=says):
            jax.eval_shape(getattr(vit, method), given)


def test_a_name_in_place_of_a_config_is_answered(vit: Model) -> None:
    with pytest.raises(ValueError, match="expected a ClipConfig, got 'ViT-B/32'"):
        jaxclip.create("ViT-B/32")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected embeddings \[n, \d+\], got 1"):
        vit.logits(1, 2)  # type: ignore[arg-type]


def test_jit_false_runs_op_by_op(vit: Model, tmp_path: Path) -> None:
    vit.save(tmp_path / "model")
    plain, _ = jaxclip.load(tmp_path / "model", jit=False)
    images, tokens = pairs(vit)
    assert equal(vit, everything(plain, images, tokens), everything(vit, images, tokens))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "_jitted", lambda function: seen.append(function) or function)
        everything(plain, images, tokens)
        assert not seen
        everything(vit, images, tokens)
        assert len(seen) == 3
