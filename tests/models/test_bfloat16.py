"""In bfloat16 a training step's products take and return bfloat16, forward and backward."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxclip.config import RELEASED
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip
from jaxclip.models.layers import Numerics
from tests.support.statistics import params_only, running_statistics, with_statistics

BATCH = 256


def inner(value: Any) -> Iterator[Any]:
    """The programs inside an equation's parameter."""
    if isinstance(value, jax.extend.core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, jax.extend.core.Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from inner(each)


def flops(equation: Any) -> int:
    """Multiplications and additions of a product or a convolution."""
    left, right = (variable.aval for variable in equation.invars[:2])
    out = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * out * math.prod(left.shape[i] for i in contracted)
    numbers = equation.params["dimension_numbers"]  # the kernel's: output channels come first
    return 2 * out * math.prod(right.shape) // right.shape[numbers.rhs_spec[0]]


def count(program: Any, times: int = 1) -> Counter[tuple[str, ...]]:
    """{formats of both operands and of the result: FLOPs}, in all programs within."""
    counted: Counter[tuple[str, ...]] = Counter()
    for equation in program.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            variables = [*equation.invars[:2], equation.outvars[0]]
            formats = tuple(str(variable.aval.dtype) for variable in variables)
            counted[formats] += times * flops(equation)
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for each in inner(value):
                counted += count(each, times * length)
    return counted


def step(model: clip.Clip) -> Counter[tuple[str, ...]]:
    """FLOPs of the loss and its gradient."""
    size, length = model.config.vision.image_size, model.config.text.context_length

    def loss(params: clip.Clip, old: Any, images: Any, tokens: Any) -> Any:
        whole = with_statistics(params, old)
        I_e, T_e, *_ = whole.embed(images, tokens, train=True)
        return contrastive_loss(I_e, T_e, params.logit_scale[...])

    traced = jax.make_jaxpr(jax.value_and_grad(loss))(
        params_only(model),
        running_statistics(model),
        jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.float32),
        jax.ShapeDtypeStruct((BATCH, length), jnp.int32),
    )
    return count(traced.jaxpr)


def share(counted: Counter[tuple[str, ...]]) -> float:
    """Of the FLOPs, those with all three in bfloat16."""
    return counted[("bfloat16",) * 3] / counted.total()


@pytest.mark.parametrize("remat", ["full", "none"])
@pytest.mark.parametrize("name", ["ViT-L/14", "RN50"])
def test_a_training_step_multiplies_in_bfloat16(name: str, remat: str) -> None:
    numerics = Numerics(jnp.bfloat16)
    counted = step(clip.abstract(RELEASED[name], remat=remat, numerics=numerics))
    assert share(counted) > 0.999, counted


class Wide(Numerics):
    """What it was: products answer in float32, so that their gradients arrive in float32."""

    def dot(self, x: Any, kernel: Any, bias: Any = None) -> Any:
        matrix = kernel[...].reshape(-1, kernel.shape[-1]).astype(self.dtype)
        y = jnp.matmul(x.astype(self.dtype), matrix, preferred_element_type=jnp.float32)
        return (y if bias is None else y + bias[...]).astype(self.dtype)


def test_products_that_answer_in_float32_are_noticed() -> None:
    model = clip.abstract(RELEASED["ViT-L/14"], numerics=Wide(jnp.bfloat16))
    assert share(step(model)) < 0.5
    assert share(step(clip.abstract(RELEASED["ViT-L/14"]))) == 0


def test_flops_are_those_of_the_architecture() -> None:
    """2 per weight and token forward, twice that backward; `full` computes most forward again."""
    config = RELEASED["ViT-L/14"]
    v, t = config.vision, config.text

    def blocks(width: int, layers: int, tokens: int) -> int:
        return layers * (2 * 12 * width**2 * tokens + 4 * tokens**2 * width)

    forward = blocks(v.width, v.layers, v.tokens) + blocks(t.width, t.layers, t.context_length)
    passes = {}
    for remat in ("none", "full"):
        model = clip.abstract(config, remat=remat, numerics=Numerics(jnp.bfloat16))
        passes[remat] = step(model).total() / (BATCH * forward)
    assert passes["none"] == pytest.approx(3, rel=0.01)
    assert 3.5 < passes["full"] < 4
