"""The modified ResNet image tower (`clip/model.py: ModifiedResNet`; paper section 2.4).

Three changes to ResNet-50 (He et al. 2015, arXiv 1512.03385): a stem of three convolutions
(ResNet-D), strides made by average pooling (anti-aliased), and a pooling by attention at the end.

Running statistics are no parameters. They are `nnx.BatchStat`, the weights `nnx.Param`, and what a
batch makes of them is returned, never written in place (`clip.trained`, `clip.with_statistics`).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.config import ClipConfig, ResNetConfig
from jaxclip.models import winograd
from jaxclip.models.layers import Linear, Numerics, constant, normal, saving

Array = jax.Array
Statistics = dict[str, Any]  # {"mean": [c], "var": [c]} at the name of every BatchNorm, nested
BATCH_NORM_EPSILON = 1e-5
MOMENTUM = 0.1  # weight of the new batch, torch's way; Flax writes the other one, 0.9
EXPANSION = 4  # a block is four times as wide outside as inside
# Stages of many places and few channels, whose outputs are larger than a processor's cache as soon
# as there are several pictures; and of few places, whose products are faster of several together.
EARLY, LATE = ("layer1", "layer2"), ("layer3", "layer4")


def uniform(rngs: nnx.Rngs | None, shape: tuple[int, ...], bound: float) -> nnx.Param[Any]:
    """A parameter drawn from U(-bound, bound), float32; without `rngs` its shape alone."""
    if rngs is None:
        return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))
    return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))


def average_pool(x: Array, size: int) -> Array:
    """Mean over squares of size x size: [n, h, w, c] -> [n, h // size, w // size, c].

    What is left over at the right and at the bottom is dropped, as torch drops it.
    """
    _, h, w, _ = x.shape
    rows, columns = h // size, w // size
    x = x[:, : rows * size, : columns * size]
    # Not a mean over axes: XLA on CPU would draw the convolution before it into a slow reduction.
    places = [x[:, i::size, j::size] for i in range(size) for j in range(size)]
    return sum(places[1:], places[0]) / size**2  # [n, rows, columns, c]


def with_neighbours(x: Array) -> Array:
    """Beside each place the eight around it, zeros outside: [n, h, w, c] -> [n, h, w, 9c]."""
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([x[:, a : a + h, b : b + w] for a in range(3) for b in range(3)], -1)


class Pointwise(nnx.Module):
    """1x1 convolution without bias, as one matrix product."""

    def __init__(
        self, inputs: int, outputs: int, *, numerics: Numerics, rngs: nnx.Rngs | None
    ) -> None:
        self.kernel = numerics.kernel(uniform(rngs, (1, 1, inputs, outputs), inputs**-0.5))
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
        rngs: nnx.Rngs | None,
    ) -> None:
        self.kernel = uniform(rngs, (3, 3, inputs, outputs), (9 * inputs) ** -0.5)
        self.stride = stride
        self.numerics = numerics

    def __call__(self, x: Array) -> Array:
        """x [n, h, w, i] -> [n, ceil(h / stride), ceil(w / stride), o]."""
        dtype, product = self.numerics.dtype, self.numerics.product
        wide = jnp.promote_types(dtype, jnp.float32)
        x, kernel = x.astype(dtype), self.kernel[...].astype(dtype)
        fast = self.numerics.winograd and self.stride == 1
        if fast and winograd.pays(x, kernel):
            y = winograd.convolution(x.astype(wide), kernel.astype(wide), product)
        elif fast and dtype != wide and winograd.enough_channels(kernel):
            # XLA on CPU multiplies matrices of bfloat16 as such, and widens what it convolves.
            y = product(with_neighbours(x), kernel.reshape(-1, kernel.shape[-1]))
        else:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=((1, 1), (1, 1)),  # "SAME" would pad (0, 1) at stride 2 and shift the grid
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=self.numerics.precision,
                preferred_element_type=wide,
            )
        return y.astype(dtype)


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

    def __init__(self, width: int, *, scale: float = 1.0, rngs: nnx.Rngs | None) -> None:
        self.scale = constant(rngs, (width,), scale)
        self.bias = constant(rngs, (width,), 0.0)
        self.mean = constant(rngs, (width,), 0.0, nnx.BatchStat)
        self.var = constant(rngs, (width,), 1.0, nnx.BatchStat)

    def __call__(
        self, x: Array, *, train: bool, axis: str | None = None
    ) -> tuple[Array, Statistics]:
        """x [n, h, w, c] -> (y [n, h, w, c], new running statistics, none unless `train`)."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, var, new = self.mean[...], self.var[...], {}
        if train:
            mean = _over_batch(wide, axis)
            # XLA on CPU would compute this difference anew in every pass of the gradient over it:
            # without the barrier a training step of a small tower takes a third more time.
            centred = jax.lax.optimization_barrier(wide - mean)
            var = _over_batch(jnp.square(centred), axis)
            devices = 1 if axis is None else jax.lax.axis_size(axis)
            new = self._updated(mean, var, devices * wide.size // wide.shape[-1])
        else:
            centred = wide - mean
        y = centred * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype), new

    def _updated(self, mean: Array, var: Array, count: int) -> Statistics:
        """The running statistics after a batch of `count` values a channel."""
        if count < 2:
            raise ValueError(
                f"BatchNorm in training came to {count} value a channel, which has no variance; "
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
        self, inputs: int, width: int, stride: int, *, numerics: Numerics, rngs: nnx.Rngs | None
    ) -> None:
        outputs = EXPANSION * width
        self.conv1 = Pointwise(inputs, width, numerics=numerics, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.conv2 = Convolution(width, width, numerics=numerics, rngs=rngs)
        self.bn2 = BatchNorm(width, rngs=rngs)
        self.conv3 = Pointwise(width, outputs, numerics=numerics, rngs=rngs)
        self.bn3 = BatchNorm(outputs, scale=0.0, rngs=rngs)  # so that a new block adds nothing
        shortcut: list[nnx.Module] = []
        if stride > 1 or inputs != outputs:
            convolution = Pointwise(inputs, outputs, numerics=numerics, rngs=rngs)
            shortcut = [convolution, BatchNorm(outputs, rngs=rngs)]
        self.downsample = nnx.List(shortcut)
        self.stride = stride

    def __call__(
        self, x: Array, *, train: bool, axis: str | None = None
    ) -> tuple[Array, Statistics]:
        """x [n, h, w, c] -> (x [n, h // stride, w // stride, 4 width], new statistics)."""
        new: Statistics = {}
        y, new["bn1"] = self.bn1(self.conv1(x), train=train, axis=axis)
        y, new["bn2"] = self.bn2(self.conv2(jax.nn.relu(y)), train=train, axis=axis)
        y = average_pool(jax.nn.relu(y), self.stride)
        y, new["bn3"] = self.bn3(self.conv3(y), train=train, axis=axis)
        if self.downsample:
            convolution, norm = self.downsample
            x, updated = norm(convolution(average_pool(x, self.stride)), train=train, axis=axis)
            new["downsample"] = {"1": updated}
        return jax.nn.relu(x + y), new


class AttentionPool(nnx.Module):
    """One token, the mean of all, asks them all and itself (`clip/model.py: AttentionPool2d`)."""

    def __init__(
        self, vision: ResNetConfig, embed_dim: int, *, numerics: Numerics, rngs: nnx.Rngs | None
    ) -> None:
        width = vision.features

        def linear(outputs: int) -> Linear:
            made = Linear(width, outputs, std=width**-0.5, numerics=numerics, rngs=rngs)
            made.bias = uniform(rngs, (outputs,), width**-0.5)  # torch's default, left as it is
            return made

        self.positional_embedding = normal(rngs, (vision.tokens, width), width**-0.5)
        self.q_proj = linear(width)
        self.k_proj = linear(width)
        self.v_proj = linear(width)
        self.c_proj = linear(embed_dim)
        self.heads = vision.heads
        self.numerics = numerics

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """x [n, h, w, d] -> (image_features [n, e], what c_proj sees [n, d])."""
        n, h, w, d = x.shape
        a, k, l = self.heads, d // self.heads, h * w + 1
        x = x.reshape(n, h * w, d)  # row by row
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)  # [n, l, d]
        x = x + self.positional_embedding[...].astype(x.dtype)
        query = self.q_proj(x[:, 0]).reshape(n, a, k)
        key, value = (p(x).reshape(n, l, a, k) for p in (self.k_proj, self.v_proj))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        product = partial(
            jnp.einsum, precision=self.numerics.precision, preferred_element_type=wide
        )
        scores = product("nak,nlak->nal", query * k**-0.5, key)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        pooled = product("nal,nlak->nak", weights, value).astype(x.dtype).reshape(n, d)
        return self.c_proj(pooled), pooled


class ModifiedResNet(nnx.Module):
    """Stem, four stages of bottleneck blocks, attention pool."""

    def __init__(
        self, config: ClipConfig, *, remat: str, numerics: Numerics, rngs: nnx.Rngs | None
    ) -> None:
        v = config.vision
        assert isinstance(v, ResNetConfig)
        options: dict[str, Any] = {"numerics": numerics, "rngs": rngs}
        self.conv1 = Convolution(3, v.width // 2, stride=2, **options)
        self.bn1 = BatchNorm(v.width // 2, rngs=rngs)
        self.conv2 = Convolution(v.width // 2, v.width // 2, **options)
        self.bn2 = BatchNorm(v.width // 2, rngs=rngs)
        self.conv3 = Convolution(v.width // 2, v.width, **options)
        self.bn3 = BatchNorm(v.width, rngs=rngs)
        inputs = v.width
        for i, (name, count) in enumerate(zip((*EARLY, *LATE), v.layers, strict=True)):
            blocks = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(Bottleneck(inputs, v.width * 2**i, stride, **options))
                inputs = EXPANSION * v.width * 2**i
            setattr(self, name, nnx.List(blocks))
        self.attnpool = AttentionPool(v, config.embed_dim, **options)
        self.remat = remat
        self.numerics = numerics

    def __call__(
        self,
        images: Array,
        *,
        train: bool = False,
        axis: str | None = None,
        intermediates: bool = False,
    ) -> tuple[Array, dict[str, Any]]:
        """images [n, h, w, c] -> (image_features [n, e], what else was asked for, or nothing).

        With `train` the batch's own statistics are used, and `statistics` holds the new running
        ones: over the global batch under sharded `jit`, and in `shard_map` and `pmap` with `axis`;
        over one device's share without it.
        Intermediates: `stem` [n, h/4, w/4, d], `layer1` to `layer4` (outputs of the stages, from
        [n, h/4, w/4, 4d] to [n, h/32, w/32, 32d]) and `pooled` [n, 32d] (before `c_proj`).
        """
        statistics: Statistics = {}
        if self.numerics.one_by_one and len(images) > 1 and not train:

            def early(picture: Array) -> dict[str, Array]:
                seen, _ = self._early(picture[None], False, None, intermediates)
                return {name: x[0] for name, x in seen.items()}

            seen = jax.lax.map(early, images)
        else:
            seen, statistics = self._early(images, train, axis, intermediates)
        x = seen[EARLY[-1]]
        for name in LATE:
            x, statistics[name] = self._stage(getattr(self, name), x, train, axis)
            seen[name] = x
        features, seen["pooled"] = self.attnpool(x)
        asked: dict[str, Any] = {"statistics": statistics} if train else {}
        return features, (seen | asked if intermediates else asked)

    def _early(
        self, x: Array, train: bool, axis: str | None, intermediates: bool
    ) -> tuple[dict[str, Array], Statistics]:
        """Stem and `EARLY` stages: [n, h, w, c] -> (named outputs, new statistics)."""
        x, statistics = self._stem(x, train, axis)
        seen = {"stem": x}
        for name in EARLY:
            x, statistics[name] = self._stage(getattr(self, name), x, train, axis)
            seen[name] = x
        return (seen if intermediates else {EARLY[-1]: x}), statistics

    def _stem(self, x: Array, train: bool, axis: str | None) -> tuple[Array, Statistics]:
        """[n, h, w, c] -> ([n, h/4, w/4, d], new statistics)."""
        new: Statistics = {}
        x, new["bn1"] = self.bn1(self.conv1(x), train=train, axis=axis)  # [n, h/2, w/2, d/2]
        x, new["bn2"] = self.bn2(self.conv2(jax.nn.relu(x)), train=train, axis=axis)
        x = self.conv3(jax.nn.relu(x))  # [n, h/2, w/2, d]
        x, new["bn3"] = self.bn3(x, train=train, axis=axis)
        return average_pool(jax.nn.relu(x), 2), new

    def _stage(
        self, blocks: list[Bottleneck], x: Array, train: bool, axis: str | None
    ) -> tuple[Array, Statistics]:
        """One block after the other; `remat` names what of each is kept for the backward pass."""

        def visit(block: Bottleneck, x: Array) -> tuple[Array, Statistics]:
            return block(x, train=train, axis=axis)

        body = saving(visit, self.remat)
        new: Statistics = {}
        for i, block in enumerate(blocks):
            x, new[str(i)] = body(block, x)
        return x, new
