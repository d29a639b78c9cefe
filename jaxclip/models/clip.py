"""The whole model: two towers and a temperature (`clip/model.py: CLIP`), to and from arrays."""

import math
import mmap
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxclip import checkpoint
from jaxclip.config import ClipConfig, ResNetConfig
from jaxclip.losses import l2_normalize
from jaxclip.models.layers import PADDING, Numerics, Padded, constant
from jaxclip.models.resnet import ModifiedResNet
from jaxclip.models.text import ContinuousBagOfWords, TextTransformer
from jaxclip.models.vit import VisionTransformer

Array = jax.Array
Statistics = dict[str, Array]  # running mean and var of every BatchNorm, by dotted path
BLOCK = 1 << 19  # numbers that are converted at once: they stay in the processor's cache
STRIP = 32  # columns
REBIAS = np.float32(2.0**112)
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # section 2.5
INITIAL_LOGIT_BIAS = -10.0  # nearly all pairs of a batch are wrong ones


def logits(
    image_embeds: Array,
    text_embeds: Array,
    logit_scale: Array,
    logit_bias: Array | None = None,
    *,
    precision: str | None = None,
) -> Array:
    """logits_per_image [n_i, n_t] of embeddings [n_i, e] and [n_t, e]: exp(t) cosines + b.

    Args:
      image_embeds, text_embeds: rows of length one.
      logit_scale: the logarithm t of the factor on the cosines.
      logit_bias: b, of a model that was trained with SigLIP's loss.
      precision: of the product, jax's.
    """
    cosines = jnp.matmul(image_embeds, text_embeds.T, precision=precision)  # [n_i, n_t]
    scaled = jnp.exp(logit_scale) * cosines
    return scaled if logit_bias is None else scaled + logit_bias


def probabilities(logits_per_image: Array, *, sigmoid: bool) -> Array:
    """How likely each text is, by image: [n_i, n_t] -> [n_i, n_t].

    One text of all (softmax over a row), or each text on its own where the model was trained so
    (`sigmoid`: `ClipConfig.logit_bias`).
    """
    if sigmoid:
        return jax.nn.sigmoid(logits_per_image)
    return jax.nn.softmax(logits_per_image, axis=1)


class Clip(nnx.Module):
    """Image tower, text tower and the log temperature; a pytree that goes straight into jax.jit."""

    def __init__(
        self,
        config: ClipConfig,
        *,
        rngs: nnx.Rngs | None,
        remat: str = "full",
        numerics: Numerics = Numerics(),
    ) -> None:
        towers: dict[str, Any] = {"numerics": numerics, "rngs": rngs}
        tower = ModifiedResNet if isinstance(config.vision, ResNetConfig) else VisionTransformer
        self.visual = tower(config, remat=remat, **towers)
        self.text = (
            ContinuousBagOfWords(config, **towers)
            if config.text.kind == "cbow"
            else TextTransformer(config, remat=remat, **towers)
        )
        scale = math.log(10) if config.logit_bias else INITIAL_LOGIT_SCALE
        self.logit_scale = constant(rngs, (), scale)
        if config.logit_bias:  # SigLIP (arXiv 2303.15343), section 3.2; not in the paper
            self.logit_bias = constant(rngs, (), INITIAL_LOGIT_BIAS)
        self.config = config

    def encode_image(self, images: Array) -> Array:
        """images [n, h, w, c] -> image_features [n, e], not normalised."""
        return self.visual(images)[0]

    def encode_text(self, tokens: Array) -> Array:
        """tokens [n, l] -> text_features [n, e], not normalised."""
        return self.text(tokens)[0]

    @overload
    def embed(
        self, images: Array, tokens: Array, *, train: Literal[False] = False
    ) -> tuple[Array, Array]: ...

    @overload
    def embed(
        self, images: Array, tokens: Array, *, train: Literal[True], axis: str | None = None
    ) -> tuple[Array, Array, Statistics]: ...

    def embed(
        self, images: Array, tokens: Array, *, train: bool = False, axis: str | None = None
    ) -> Any:
        """(image_embeds [n_i, e], text_embeds [n_t, e]), each row of length one, float32.

        With `train` BatchNorm uses the batch's statistics, and a third value comes: the new running
        ones by name, for `with_statistics`. A Vision Transformer has none, so it is empty. `axis`
        names the devices that share the batch inside `shard_map` or `pmap`.
        """
        statistics: Statistics = {}
        if train and isinstance(self.visual, ModifiedResNet):
            image_features, seen = self.visual(images, train=True, axis=axis)
            statistics = checkpoint.flatten(seen["statistics"], "visual.")
        else:
            image_features = self.encode_image(images)
        text_features = self.encode_text(tokens)
        wide = jnp.promote_types(image_features.dtype, jnp.float32)
        I_e = l2_normalize(image_features.astype(wide))
        T_e = l2_normalize(text_features.astype(wide))
        return (I_e, T_e, statistics) if train else (I_e, T_e)

    def temperature(self) -> list[nnx.Param]:
        """What a loss takes beside the embeddings: the log temperature and, if any, the bias."""
        return [self.logit_scale, *([self.logit_bias] if self.config.logit_bias else [])]

    def __call__(self, images: Array, tokens: Array) -> tuple[Array, Array]:
        """images [n_i, h, w, c], tokens [n_t, l] -> (logits_per_image [n_i, n_t], transposed)."""
        logits_per_image = self.logits(*self.embed(images, tokens))
        return logits_per_image, logits_per_image.T

    def logits(self, image_embeds: Array, text_embeds: Array) -> Array:
        """Embeddings [n_i, e] and [n_t, e], rows of length one -> logits_per_image [n_i, n_t]."""
        tower = self.visual if hasattr(self, "visual") else self.text
        temperature = (parameter[...] for parameter in self.temperature())
        precision = tower.numerics.precision
        return logits(image_embeds, text_embeds, *temperature, precision=precision)


def create(
    config: ClipConfig,
    seed: int = 0,
    *,
    remat: str = "full",
    numerics: Numerics = Numerics(),
    placement: Any = None,
) -> Clip:
    """A model with fresh random weights; blocks as the released code draws its text tower's.

    `placement` is a tree like the model, of the shardings that its leaves shall have.
    """

    def make(key: Array) -> Clip:
        return Clip(config, rngs=nnx.Rngs(key), remat=remat, numerics=numerics)

    return jax.jit(make, out_shardings=placement)(jax.random.key(seed))


def abstract(config: ClipConfig, *, remat: str = "full", numerics: Numerics = Numerics()) -> Clip:
    """A model whose leaves are shapes: no weight is drawn, no memory taken, nothing traced."""
    return Clip(config, rngs=None, remat=remat, numerics=numerics)


Tower = Literal["image", "text"]
TOWERS: dict[Tower, str] = {"image": "visual", "text": "text"}  # attribute of `Clip`, path prefix


def only(model: Clip, tower: Tower) -> Clip:
    """An `abstract` model without its other tower, whose attribute is gone."""
    if tower not in TOWERS:
        raise ValueError(f"tower {tower!r} came; {' or '.join(TOWERS)} was expected")
    other = next(attribute for name, attribute in TOWERS.items() if name != tower)
    delattr(model, other)
    return model


PRODUCTS = ("kernel", "proj", "text_projection")  # how the names end of what enters a product


def with_kernels(model: Clip, dtype: Any) -> Clip:
    """An `abstract` model whose kernels are kept in `dtype`: converted once, not in every call.

    The rest is cheap, or is added up in float32: biases, norms, embeddings, temperature.
    """

    def kept(path: tuple[Any, ...], leaf: Any) -> Any:
        kernel = _name(path).endswith(PRODUCTS)
        return jax.ShapeDtypeStruct(leaf.shape, dtype) if kernel else leaf

    return jax.tree_util.tree_map_with_path(kept, model)


def _part(key: Any) -> str:
    found = [getattr(key, kind) for kind in ("name", "key", "idx") if hasattr(key, kind)]
    return str(found[0] if found else key)


def _name(path: tuple[Any, ...]) -> str:
    parts = [_part(key) for key in path]
    return ".".join(part.lstrip(".") for part in parts if part not in (".value", "value"))


def named_leaves(tree: Any) -> dict[str, Any]:
    """{dotted path: leaf} of a model, or of any tree of its shape (gradients, moments)."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def trained(model: Any) -> Any:
    """The model without its running statistics: what gradients and the optimiser are for.

    The same kind of tree, with nothing where they were; a Vision Transformer comes back whole.
    """

    def emptied(variable: Any) -> Any:
        statistic = isinstance(variable, nnx.BatchStat)
        return jax.tree.map(lambda _: None, variable) if statistic else variable

    return jax.tree.map(emptied, model, is_leaf=lambda node: isinstance(node, nnx.Variable))


def running_statistics(model: Any) -> Statistics:
    """{dotted path: running mean or variance}; empty for a Vision Transformer."""
    parameters = named_leaves(trained(model))
    return {path: leaf for path, leaf in named_leaves(model).items() if path not in parameters}


def with_statistics(model: Any, statistics: Statistics) -> Any:
    """The model, whole or `trained` only, with these running statistics; itself unchanged."""

    def chosen(path: tuple[Any, ...], leaf: Any) -> Any:
        return statistics.get(_name(path), leaf)

    return jax.tree_util.tree_map_with_path(chosen, model, is_leaf=lambda leaf: leaf is None)


def _padded(tree: Any) -> set[str]:
    """The names of the kernels that have columns of zeros behind their own."""
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, Padded))
    return {_name(path) for path, node in nodes if isinstance(node, Padded)}


def to_flat(tree: Any) -> checkpoint.Flat:
    """A model's (or a gradient's) arrays by official name, one entry a layer, as NumPy."""
    arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}
    arrays |= {name: arrays[name][..., :-PADDING] for name in _padded(tree)}
    return checkpoint.unstack(arrays)


def _in_order(array: np.ndarray) -> np.ndarray:
    """The array in C order; a transposed one in strips, so that what is read stays in the cache."""
    if array.flags.c_contiguous:
        return array
    ordered = np.empty(array.shape, array.dtype)
    for at in range(0, array.shape[-1], STRIP):
        ordered[..., at : at + STRIP] = array[..., at : at + STRIP]
    return ordered


def _blocks(array: np.ndarray) -> Iterator[slice]:
    """Slices of the first axis of some `BLOCK` numbers each."""
    rows = max(1, BLOCK // max(1, array[:1].size))
    return (slice(at, at + rows) for at in range(0, len(array), rows))


def _widen(halves: np.ndarray, own: np.ndarray) -> bool:
    """float16 into float32 of the same shape, to the bit as NumPy, in a quarter of its time.

    NumPy takes one number after the other. Here the bits of many are moved to their new places as
    whole numbers, and a product with 2^112 turns the exponent's bias of 15 into one of 127. Blocks
    that hold infinities or no numbers, and threads to which subnormal numbers are zero, are left to
    NumPy. Returns whether all numbers are finite.
    """
    flushes = np.float32(1e-40) * REBIAS == 0
    halves, own = np.atleast_1d(halves, own)
    finite = True
    for block in _blocks(halves):
        half, wide = _in_order(halves[block]), own[block]
        holds = (half.view(np.uint16) & 0x7C00).max() < 0x7C00
        finite = finite and bool(holds)
        if flushes or not holds:
            np.copyto(wide, half)
            continue
        bits = wide.view(np.int32)
        np.copyto(bits, half.view(np.int16))
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, ~0x70000000, out=bits)  # three copies of the sign
        np.multiply(wide, REBIAS, out=wide)
    return finite


def _convert(array: np.ndarray, own: np.ndarray) -> bool:
    """The numbers of an array into one of its shape; returns whether all of them are finite."""
    if array.dtype == np.float16 and own.dtype == np.float32:
        return _widen(array, own)
    array, own = np.atleast_1d(array, own)
    narrower = own if own.dtype.itemsize < array.dtype.itemsize else array
    # NumPy finds the best order for an array in another one; blocks are looked at in the cache
    blocks = _blocks(array) if array.flags.c_contiguous else iter([slice(None)])
    finite = True
    for block in blocks:
        with np.errstate(over="ignore"):  # seen below
            np.copyto(own[block], array[block], casting="unsafe")
        finite = finite and checkpoint.is_finite(narrower[block])
    return finite


def _copied(array: np.ndarray, leaf: Any, name: str | None = None) -> np.ndarray:
    """The array in the shape and number format of a leaf, in memory that jax need not copy again.

    ValueError under `name`, where one is given, for numbers that are not finite.
    Where the leaf has more columns (`layers.Padded`), zeros stand in them.

    NumPy converts: jax would compile a program a shape for it, a second in all. At a multiple of 64
    bytes, as every page is, jax on a CPU takes the memory as it is: it must be nobody else's. It is
    asked of the system, as NumPy would ask for huge pages: in a virtual machine whose unused memory
    goes back to the host those come from the host, and cost up to three times as much.
    """
    dtype, count = np.dtype(leaf.dtype), math.prod(leaf.shape)
    memory = mmap.mmap(-1, max(1, count * dtype.itemsize), access=mmap.ACCESS_COPY)
    whole = np.frombuffer(memory, dtype, count).reshape(leaf.shape)
    own = whole
    if leaf.shape != array.shape:
        columns = array.shape[-1]
        own, whole[..., columns:] = whole[..., :columns], 0
    if not _convert(array, own) and name is not None:
        raise ValueError(f"{name}: {checkpoint.NOT_FINITE} in {dtype}; get the file again")
    checkpoint.release(array)
    return whole


def from_flat(flat: Mapping[str, np.ndarray], like: Any) -> Any:
    """Fill a tree shaped like `like` (a model or `abstract` one) from arrays by official name.

    ValueError lists the paths that are missing, unknown or of the wrong shape, or names one whose
    numbers are not finite.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    expected, padded = {_name(path): leaf for path, leaf in leaves}, _padded(like)
    arrays = checkpoint.stack(flat) if checkpoint.is_stacked(expected) else flat
    shapes = {
        name: (*leaf.shape[:-1], leaf.shape[-1] - PADDING) if name in padded else leaf.shape
        for name, leaf in expected.items()
    }
    checkpoint.check(shapes, arrays)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy's copies run beside each other
        copies = pool.map(lambda name: _copied(arrays[name], expected[name], name), expected)
        filled = [jax.device_put(copy) for copy in copies]  # here: jax_enable_x64 is a thread's own
    return jax.tree_util.tree_unflatten(structure, filled)
