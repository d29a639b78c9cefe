"""The modified ResNet image tower (`clip/model.py: ModifiedResNet`; paper section 2.4).

Three changes to ResNet-50 (He et al. 2015, arXiv 1512.03385): a stem of three convolutions
(ResNet-D), strides made by average pooling (anti-aliased), and a pooling by attention at the end.

Running statistics are `nnx.BatchStat`, weights `nnx.Param`. In training the new statistics are
returned beside the activations and never written in place (`parameters.new_statistics`).

Annotated: chapter 4, "The two towers".
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxclip.config import ClipConfig, ResNetConfig
from jaxclip.models.layers import (
    Encoder,
    Linear,
    Numerics,
    Taps,
    at_least_float32,
    rematerialise,
)
from jaxclip.models.starts import Initialiser

Array = jax.Array
Statistics = dict[str, Any]  # {"mean": [c], "var": [c]} at the name of every BatchNorm, nested
BATCH_NORM_EPSILON = 1e-5
MOMENTUM = 0.1  # weight of the new batch, torch's way; Flax writes the other one, 0.9
EXPANSION = 4  # a block is four times as wide outside as inside


class AveragePool(nnx.Module):
    """Mean over squares of size x size; rows and columns left over are dropped, as in torch."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, x: Array) -> Array:
        """x [n, h, w, c] -> [n, h // size, w // size, c]."""
        n, h, w, c = x.shape
        rows, columns = h // self.size, w // self.size
        x = x[:, : rows * self.size, : columns * self.size]
        return x.reshape(n, rows, self.size, columns, self.size, c).mean((2, 4))


class Pointwise(nnx.Module):
    """1x1 convolution without bias, as one matrix product."""

    def __init__(self, inputs: int, outputs: int, *, numerics: Numerics, init: Initialiser) -> None:
        self.kernel = init.uniform((1, 1, inputs, outputs), inputs**-0.5)
        self.numerics = numerics

    def __call__(self, x: Array) -> Array:
        """x [n, h, w, i] -> [n, h, w, o]."""
        return self.numerics.dot(x, self.kernel)


class Convolution(nnx.Module):
    """3x3 convolution without bias; torch's initialisation, U(-b, b) with b = fan_in^-0.5."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        *,
        numerics: Numerics,
        init: Initialiser,
    ) -> None:
        self.kernel = init.uniform((3, 3, inputs, outputs), (9 * inputs) ** -0.5)
        self.stride = stride
        self.numerics = numerics

    def __call__(self, x: Array) -> Array:
        """x [n, h, w, i] -> [n, ceil(h / stride), ceil(w / stride), o]."""
        y = jax.lax.conv_general_dilated(
            x.astype(self.numerics.dtype),
            self.kernel[...].astype(self.numerics.dtype),
            window_strides=(self.stride, self.stride),
            padding=((1, 1), (1, 1)),  # "SAME" would pad (0, 1) at stride 2 and shift the grid
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=self.numerics.precision,
        )
        return checkpoint_name(y, "product")


def _over_batch(x: Array, axis: str | None) -> Array:
    """Mean over the pictures, of all devices where an axis is named: [n, h, w, c] -> [c]."""
    mean = x.mean((0, 1, 2))
    return mean if axis is None else jax.lax.pmean(mean, axis)


class BatchNorm(nnx.Module):
    """Normalise each channel, by the running statistics or, in training, by the batch's.

    Ioffe and Szegedy 2015 (arXiv 1502.03167) as torch has it: the batch is normalised with the
    biased variance, the running one takes up the unbiased. Statistics in at least float32.

    `axis` names the axis of devices that the batch is split over inside `shard_map` or `pmap`; the
    statistics are then those of all devices. Under sharded `jit` they are so without it.
    """

    def __init__(self, width: int, *, scale: float = 1.0, init: Initialiser) -> None:
        self.scale = init.constant((width,), scale)
        self.bias = init.constant((width,), 0.0)
        self.mean = init.constant((width,), 0.0, nnx.BatchStat)
        self.var = init.constant((width,), 1.0, nnx.BatchStat)

    def __call__(
        self, x: Array, *, train: bool, axis: str | None = None
    ) -> tuple[Array, Statistics]:
        """x [n, h, w, c] -> (y [n, h, w, c], new running statistics, none unless `train`)."""
        wide = at_least_float32(x)
        mean, var, new = self.mean[...], self.var[...], {}
        if train:
            mean = _over_batch(wide, axis)
            centred = self.centre(wide, mean)
            var = _over_batch(jnp.square(centred), axis)
            devices = 1 if axis is None else jax.lax.axis_size(axis)
            new = self._updated(mean, var, devices * wide.size // wide.shape[-1])
        else:
            centred = wide - mean
        y = centred * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype), new

    def centre(self, x: Array, mean: Array) -> Array:
        """A training batch less its mean."""
        return x - mean

    def _updated(self, mean: Array, var: Array, count: int) -> Statistics:
        """The running statistics after a batch of `count` values a channel."""
        if count < 2:
            raise ValueError(
                f"BatchNorm in training: expected two or more values a channel, got {count}; "
                "use a larger batch"
            )
        unbiased = var * (count / (count - 1))
        seen = {"mean": (self.mean[...], mean), "var": (self.var[...], unbiased)}
        return {
            name: ((1 - MOMENTUM) * old + MOMENTUM * batch).astype(old.dtype)
            for name, (old, batch) in seen.items()
        }


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 convolution beside a shortcut; a stride is an average pool on either way.

    `downsample` is the shortcut where the shape changes. Its children are named as in the released
    code, where "-1" is the pool, "0" the convolution and "1" the normalisation.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, *, numerics: Numerics, init: Initialiser
    ) -> None:
        outputs = EXPANSION * width
        self.conv1 = Pointwise(inputs, width, numerics=numerics, init=init)
        self.bn1 = BatchNorm(width, init=init)
        self.conv2 = Convolution(width, width, numerics=numerics, init=init)
        self.bn2 = BatchNorm(width, init=init)
        self.conv3 = Pointwise(width, outputs, numerics=numerics, init=init)
        self.bn3 = BatchNorm(outputs, scale=0.0, init=init)  # so that a new block adds nothing
        shortcut: list[nnx.Module] = []
        if stride > 1 or inputs != outputs:
            convolution = Pointwise(inputs, outputs, numerics=numerics, init=init)
            shortcut = [convolution, BatchNorm(outputs, init=init)]
        self.downsample = nnx.List(shortcut)
        self.avgpool = AveragePool(stride)

    def __call__(
        self, x: Array, *, train: bool, axis: str | None = None
    ) -> tuple[Array, Statistics]:
        """x [n, h, w, c] -> (x [n, h // stride, w // stride, 4 width], new statistics)."""
        new: Statistics = {}
        y, new["bn1"] = self.bn1(self.conv1(x), train=train, axis=axis)
        y, new["bn2"] = self.bn2(self.conv2(jax.nn.relu(y)), train=train, axis=axis)
        y = self.avgpool(jax.nn.relu(y))
        y, new["bn3"] = self.bn3(self.conv3(y), train=train, axis=axis)
        if self.downsample:
            convolution, norm = self.downsample
            x, updated = norm(convolution(self.avgpool(x)), train=train, axis=axis)
            new["downsample"] = {"1": updated}
        return jax.nn.relu(x + y), new


class AttentionPool(nnx.Module):
    """Attention pooling with one query, the mean token (`clip/model.py: AttentionPool2d`)."""

    def __init__(
        self, vision: ResNetConfig, embed_dim: int, *, numerics: Numerics, init: Initialiser
    ) -> None:
        width = vision.features

        def linear(outputs: int) -> Linear:
            made = Linear(width, outputs, start=width**-0.5, numerics=numerics, init=init)
            made.bias = init.uniform((outputs,), width**-0.5)  # torch's default, left as it is
            return made

        self.positional_embedding = init.normal((vision.tokens, width), width**-0.5)
        self.q_proj = linear(width)
        self.k_proj = linear(width)
        self.v_proj = linear(width)
        self.c_proj = linear(embed_dim)
        self.heads = vision.heads
        self.numerics = numerics

    def __call__(self, x: Array, taps: Taps | None = None) -> Array:
        """x [n, h, w, d] -> image_features [n, e]."""
        n, h, w, d = x.shape
        a, k, l = self.heads, d // self.heads, h * w + 1
        x = x.reshape(n, h * w, d)  # row by row
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)  # [n, l, d]
        x = x + self.positional_embedding[...].astype(x.dtype)
        query = self.q_proj(x[:, 0]).reshape(n, a, k)
        key, value = (p(x).reshape(n, l, a, k) for p in (self.k_proj, self.v_proj))
        scores = self.numerics.einsum("nak,nlak->nal", query * k**-0.5, key)
        weights = jax.nn.softmax(at_least_float32(scores), axis=-1)  # [n, a, l]
        pooled = self.numerics.einsum("nal,nlak->nak", weights, value).reshape(n, d)
        if taps is not None:
            taps.update(attention=weights, pooled=pooled)
        return self.c_proj(pooled)


class ModifiedResNet(Encoder):
    """Stem, four stages of bottleneck blocks, attention pool."""

    def __init__(
        self, config: ClipConfig, *, remat: str, numerics: Numerics, init: Initialiser
    ) -> None:
        v = config.vision
        assert isinstance(v, ResNetConfig)
        options: dict[str, Any] = {"numerics": numerics, "init": init}
        self.conv1 = Convolution(3, v.width // 2, stride=2, **options)
        self.bn1 = BatchNorm(v.width // 2, init=init)
        self.conv2 = Convolution(v.width // 2, v.width // 2, **options)
        self.bn2 = BatchNorm(v.width // 2, init=init)
        self.conv3 = Convolution(v.width // 2, v.width, **options)
        self.bn3 = BatchNorm(v.width, init=init)
        self.avgpool = AveragePool(2)
        inputs = v.width
        for i, count in enumerate(v.layers):
            blocks = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(Bottleneck(inputs, v.width * 2**i, stride, **options))
                inputs = EXPANSION * v.width * 2**i
            setattr(self, f"layer{i + 1}", nnx.List(blocks))
        self.attnpool = AttentionPool(v, config.embed_dim, **options)
        self.remat = remat
        self.numerics = numerics

    def __call__(
        self,
        images: Array,
        *,
        train: bool = False,
        axis: str | None = None,
        taps: Taps | None = None,
    ) -> Any:
        """images [n, h, w, c] -> image_features [n, e]; (features, new statistics) with `train`.

        With `train` the batch's own statistics are used, and the running ones are updated: over the
        global batch under sharded `jit`, and in `shard_map` and `pmap` with `axis`; over one
        device's share without it.
        Taps: `stem` [n, h/4, w/4, d], `layer1` to `layer4` (outputs of the stages, from
        [n, h/4, w/4, 4d] to [n, h/32, w/32, 32d]), the pool's `attention` [n, a, l] and `pooled`
        [n, 32d] (before `c_proj`).
        """
        seen: Taps = {}
        x, new = self.stem(images, train=train, axis=axis)
        seen["stem"] = x
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x, new[name] = self.stage(name, x, train=train, axis=axis)
            seen[name] = x
        if taps is not None:
            taps.update(seen)
        features = self.attnpool(x, taps)
        return (features, new) if train else features

    def stem(self, x: Array, *, train: bool, axis: str | None) -> tuple[Array, Statistics]:
        """[n, h, w, c] -> ([n, h/4, w/4, d], new statistics)."""
        new: Statistics = {}
        x, new["bn1"] = self.bn1(self.conv1(x), train=train, axis=axis)  # [n, h/2, w/2, d/2]
        x, new["bn2"] = self.bn2(self.conv2(jax.nn.relu(x)), train=train, axis=axis)
        x = self.conv3(jax.nn.relu(x))  # [n, h/2, w/2, d]
        x, new["bn3"] = self.bn3(x, train=train, axis=axis)
        return self.avgpool(jax.nn.relu(x)), new

    def stage(
        self, name: str, x: Array, *, train: bool, axis: str | None
    ) -> tuple[Array, Statistics]:
        """The blocks of `layer1` to `layer4`; `remat` names what each saves for the backward pass.

        x [n, h, w, c] -> ([n, h / stride, w / stride, d], new statistics).
        """

        def visit(block: Bottleneck, x: Array) -> tuple[Array, Statistics]:
            return block(x, train=train, axis=axis)

        body = rematerialise(visit, self.remat)
        new: Statistics = {}
        for i, block in enumerate(getattr(self, name)):
            x, new[str(i)] = body(block, x)
        return x, new
