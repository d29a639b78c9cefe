"""FLOPs of products and convolutions, counted in a program before it is compiled (its jaxpr)."""

import collections
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip.config import ClipConfig
from jaxclip.models import clip

SHORT = {"float32": "f32", "float64": "f64", "bfloat16": "bf16", "float16": "f16"}
WIDE = ("float32", "float64")


class Product(NamedTuple):
    """One product or convolution of a program."""

    flops: float  # in one run of the program
    types: tuple[str, str, str]  # both sides and the answer


def model_flops(config: ClipConfig, batch: int) -> float:
    """Of one step's matrix products and convolutions: three times those of the forward pass.

    What `remat` and caching compute a second time is not counted, nor is the loss.
    """
    sides, length = config.vision.image_sides, config.text.context_length
    images = jax.ShapeDtypeStruct((1, *sides, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    program = jax.make_jaxpr(lambda m, i, t: m.embed(i, t))(clip.abstract(config), images, tokens)
    return 3.0 * batch * sum(product.flops for product in products(program.jaxpr))


def products(jaxpr: Any, times: float = 1) -> Iterator[Product]:
    """Every product and convolution of a jaxpr, those in scans as often as they run.

    A `while` loop's body, whose trips a jaxpr does not know, counts once. Kernels of attention
    (cuDNN's, Pallas') are no products here.
    """
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "pallas_call":
            continue
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            yield _product(equation, times * summed)
        elif name == "conv_general_dilated":
            yield _product(equation, times * _summed_positions(equation))
        inner_times = times * _repeats(equation)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner, inner_times)


def _product(equation: Any, summed: float) -> Product:
    out = math.prod(equation.outvars[0].aval.shape)
    sides = [str(v.aval.dtype) for v in (*equation.invars[:2], equation.outvars[0])]
    return Product(2.0 * out * summed, (sides[0], sides[1], sides[2]))


def _summed_positions(equation: Any) -> float:
    """Numbers that are summed for each number of a convolution's answer.

    A gradient's convolution works on dilated inputs, whose zeros count for nothing.
    """
    labels = equation.params["dimension_numbers"].rhs_spec  # (o, i, spatial ...)
    kernel = equation.invars[1].aval.shape
    dilated = math.prod(equation.params["lhs_dilation"])
    return math.prod(kernel[axis] for axis in labels[1:]) / dilated


def _repeats(equation: Any) -> int:
    if equation.primitive.name == "scan":
        return int(equation.params["length"])
    if equation.primitive.name == "shard_map":  # written for one device
        return int(equation.params["mesh"].size)
    return 1


def by_types(found: list[Product]) -> dict[str, float]:
    """{"bf16 x bf16 -> bf16": TFLOPs, ...}, the most first."""
    total: dict[str, float] = collections.defaultdict(float)
    for product in found:
        left, right, answer = (SHORT.get(kind, kind) for kind in product.types)
        total[f"{left} x {right} -> {answer}"] += product.flops / 1e12
    most = sorted(total.items(), key=lambda item: -item[1])
    return {types: round(tera, 4) for types, tera in most}


def float32_share(found: list[Product]) -> float:
    """Share of the FLOPs whose product has a float32 side or answer, the loss's own included."""
    total = sum(product.flops for product in found)
    wide = sum(product.flops for product in found if set(product.types) & set(WIDE))
    return wide / total if total else 0.0
