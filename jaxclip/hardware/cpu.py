"""Models arranged for XLA on a CPU: the same functions and official names, other arithmetic.

Every swap is measured in docs/log/ and held equal to the plain module by a test.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import get_opaque_trace_state

from jaxclip.hardware.modules import Model, become, modules_of, unstack
from jaxclip.hardware.padded import CpuNumerics, pad, unpad
from jaxclip.hardware.winograd import WinogradConvolution
from jaxclip.models.clip import Clip
from jaxclip.models.encoders import Encoders
from jaxclip.models.layers import Numerics, Taps, Transformer, rematerialise
from jaxclip.models.parameters import PRODUCTS, copy_tree
from jaxclip.models.pools import ProbeAttention
from jaxclip.models.resnet import AveragePool, BatchNorm, Convolution, ModifiedResNet
from jaxclip.models.single import SingleTower

Array = jax.Array
Swaps = dict[type, type]
CPU_ROWS = 8  # rows per call: larger batches spill out of the cache
# Off in float32: XLA's newer CPU kernels run a convolution to 64 channels or fewer on one thread,
# and fuse what is beside a product into slow reductions. bfloat16 needs them.
_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


@cache
def _known_options() -> dict[str, str]:
    """The compiler options for float32; none where this version of XLA does not know them."""
    try:
        jax.jit(lambda x: x, compiler_options=_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return _OPTIONS


def compiler_options(dtype: Any) -> dict[str, str] | None:
    """`compiler_options` of `jax.jit` for a model that computes in `dtype` on a CPU."""
    return _known_options() if dtype == jnp.float32 else None


# Inference ----------------------------------------------------------------------------------------


class UnrolledTransformer(Transformer):
    """`Transformer` with a list of blocks, compiled one after the other.

    A scan copies each layer's weights out of the stack: up to a third of the time at small batches.
    """

    def walk(self, visit: Callable[..., tuple[Array, Taps]], x: Array) -> tuple[Array, Taps]:
        body = rematerialise(visit, self.remat)
        each = []
        for block in self.resblocks:
            x, seen = body(x, block)
            each.append(seen)
        return x, {name: jnp.stack([seen[name] for seen in each]) for name in each[0]}


class PictureByPictureResNet(ModifiedResNet):
    """`ModifiedResNet` whose first half takes one picture after the other, in inference.

    The early stages overflow the cache beyond one picture; the late ones are faster batched.
    """

    def __call__(
        self,
        images: Array,
        *,
        train: bool = False,
        axis: str | None = None,
        taps: Taps | None = None,
    ) -> Any:
        if train or images.shape[0] == 1:
            return super().__call__(images, train=train, axis=axis, taps=taps)

        def early(picture: Array) -> Taps:
            seen: Taps = {}
            seen["stem"], _ = self.stem(picture[None], train=False, axis=None)
            seen["layer1"], _ = self.stage("layer1", seen["stem"], train=False, axis=None)
            seen["layer2"], _ = self.stage("layer2", seen["layer1"], train=False, axis=None)
            kept = seen if taps is not None else {"layer2": seen["layer2"]}
            return {name: x[0] for name, x in kept.items()}

        seen = jax.lax.map(early, images)
        seen["layer3"], _ = self.stage("layer3", seen["layer2"], train=False, axis=None)
        seen["layer4"], _ = self.stage("layer4", seen["layer3"], train=False, axis=None)
        if taps is not None:
            taps.update(seen)
        return self.attnpool(seen["layer4"], taps)


class SlicedAveragePool(AveragePool):
    """`AveragePool` as a sum of strided slices.

    XLA:CPU fuses the convolution before a mean over axes into a slow reduce.
    """

    def __call__(self, x: Array) -> Array:
        _, h, w, _ = x.shape
        size = self.size
        x = x[:, : h // size * size, : w // size * size]
        slices = [x[:, i::size, j::size] for i in range(size) for j in range(size)]
        return sum(slices[1:], slices[0]) / size**2


INFERENCE: Swaps = {
    Transformer: UnrolledTransformer,
    ModifiedResNet: PictureByPictureResNet,
    AveragePool: SlicedAveragePool,
}


_jitted = cache(lambda function, dtype: jax.jit(function, compiler_options=compiler_options(dtype)))


@cache
def _nothing_traced() -> Any:
    """JAX's state outside of `jit`, `grad` and `vmap`: that of a new thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(get_opaque_trace_state).result()


class CpuEncoders(Encoders):
    """What `for_cpu` changes of a whole model: how it compiles, and what it saves."""

    def _run(self, function: Callable[..., Any], *rows: Array) -> Any:
        if not self.jit or get_opaque_trace_state() != _nothing_traced():
            return super()._run(function, *rows)  # inside jit the caller's compiler options apply
        tower = self.visual if hasattr(self, "visual") else self.text
        run = partial(_jitted(function, tower.numerics.dtype), self)
        if len(rows) > 1 or len(rows[0]) <= CPU_ROWS:
            return run(*rows)
        starts = range(0, len(rows[0]), CPU_ROWS)
        return jnp.concatenate([run(rows[0][i : i + CPU_ROWS]) for i in starts])

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """As `Encoders.save`: the plain model's arrays."""
        plain(self).save(path, force=force)


class CpuClip(CpuEncoders, Clip):
    """A `Clip` arranged by `for_cpu`; make none by its constructor."""


class CpuSingleTower(CpuEncoders, SingleTower):
    """A `SingleTower` arranged by `for_cpu`; make none by its constructor."""


MODELS: Swaps = {Clip: CpuClip, SingleTower: CpuSingleTower}


def for_cpu(model: Model) -> Model:
    """The same function, arranged for inference by XLA on a CPU; the model itself is unchanged.

    Works on a model of shapes as well, to be filled with `parameters.from_flat(..., put=
    memory.put)`. Blocks are no longer stacked, and in float32 large kernels are padded: `plain`
    takes that back.
    """
    arranged = copy_tree(model)
    for module in modules_of(arranged):
        become(module, INFERENCE.get(type(module)))
        numerics = getattr(module, "numerics", None)
        if numerics is None:
            continue
        module.numerics = CpuNumerics(numerics.dtype, numerics.precision)
        if type(module) is Convolution:
            if numerics.dtype in (jnp.float32, jnp.bfloat16):
                become(module, WinogradConvolution)
        elif numerics.dtype == jnp.float32 and type(module) is not ProbeAttention:
            _change_kernels(module, pad)  # that one takes its kernel apart
    for module in modules_of(arranged):
        if isinstance(module, UnrolledTransformer):
            module.resblocks = nnx.List(unstack(module.resblocks))
    become(arranged, MODELS[type(model)])
    arranged.notes = model.notes
    return arranged


def plain(model: Model) -> Model:
    """What `for_cpu` arranged, as a plain `Clip` again, of arrays."""
    restored = copy_tree(model)
    for module in modules_of(restored):
        if isinstance(module, UnrolledTransformer):
            blocks = list(module.resblocks)
            module.resblocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    own: Swaps = {arranged: plain for plain, arranged in (INFERENCE | MODELS).items()}
    own |= {WinogradConvolution: Convolution}
    for module in modules_of(restored):
        become(module, own.get(type(module)))
        if hasattr(module, "numerics"):
            module.numerics = Numerics(module.numerics.dtype, module.numerics.precision)
        _change_kernels(module, unpad)
    restored.notes = model.notes
    return restored


# Training -----------------------------------------------------------------------------------------


class InlineTransformer(Transformer):
    """`Transformer` whose scan is unrolled by the compiler; blocks stay stacked.

    The loop's copies to and from the stack are a tenth of a training step on a CPU.
    """

    def walk(self, visit: Callable[..., tuple[Array, Taps]], x: Array) -> tuple[Array, Taps]:
        return jax.lax.scan(visit, x, self.resblocks, unroll=True)  # `remat` is "none"


class BarrierBatchNorm(BatchNorm):
    """`BatchNorm` that keeps the centred batch.

    XLA:CPU otherwise recomputes x - mean throughout the backward pass: a third more time per step.
    """

    def centre(self, x: Array, mean: Array) -> Array:
        return jax.lax.optimization_barrier(x - mean)


def for_training(model: Clip, remat: str) -> Clip:
    """The same tree in modules that train faster on a CPU; the model itself is unchanged."""
    swaps: Swaps = {BatchNorm: BarrierBatchNorm, AveragePool: SlicedAveragePool}
    if remat == "none":  # outside of a loop XLA:CPU undoes rematerialisation
        swaps[Transformer] = InlineTransformer
    arranged = copy_tree(model)
    for module in modules_of(arranged):
        become(module, swaps.get(type(module)))
        numerics = getattr(module, "numerics", None)
        if numerics is not None and numerics.dtype == jnp.bfloat16:
            # products that answer in bfloat16 gave NaN with the newer CPU kernels of jaxlib 0.12
            module.numerics = CpuNumerics(numerics.dtype, numerics.precision)
    return arranged


# Kernels ------------------------------------------------------------------------------------------


def _change_kernels(module: Any, change: Callable[[nnx.Param[Any]], nnx.Param[Any]]) -> None:
    """Replace the module's own kernels that enter a matrix product."""
    for name, value in list(vars(module).items()):
        if isinstance(value, nnx.Param) and name.endswith(PRODUCTS):
            setattr(module, name, change(value))
