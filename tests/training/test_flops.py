"""FLOPs of products by element type, from a program's jaxpr."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxclip.config import RELEASED
from jaxclip.training import flops
from jaxclip.training.sharding import data_mesh

NARROW, WIDE = jnp.ones((8, 16), jnp.bfloat16), jnp.ones((16, 4), jnp.float32)


def counted(function, *arguments) -> list[flops.Product]:
    return list(flops.products(jax.make_jaxpr(function)(*arguments).jaxpr))


def test_flops_are_those_of_the_products():
    """ViT-B/32 by hand: twelve blocks of 12 d^2 weights a token, and attention over 50 tokens."""

    def tower(width: int, tokens: int, layers: int) -> float:
        return layers * tokens * (2 * 12 * width**2 + 2 * 2 * width * tokens)

    image = tower(768, 50, 12) + 2 * 49 * 3072 * 768 + 2 * 768 * 512
    text = tower(512, 77, 12) + 2 * 512 * 512
    assert flops.model_flops(RELEASED["ViT-B/32"], 4) == pytest.approx(3 * 4 * (image + text))


def test_a_product_with_a_float32_side_or_answer_counts_as_float32():
    weights = WIDE.astype(jnp.bfloat16)
    narrow = counted(jnp.matmul, NARROW, weights)
    assert flops.by_types(narrow) == {"bf16 x bf16 -> bf16": round(2 * 8 * 16 * 4 / 1e12, 4)}
    assert flops.float32_share(narrow) == 0.0
    mixed = counted(
        lambda x, w: jnp.matmul(x, w, preferred_element_type=jnp.float32), NARROW, weights
    )
    assert mixed[0].types == ("bfloat16", "bfloat16", "float32")
    assert flops.float32_share(mixed) == flops.float32_share(counted(jnp.matmul, NARROW, WIDE)) == 1
    assert flops.float32_share(narrow + mixed) == pytest.approx(0.5)
    assert flops.float32_share([]) == 0.0


def test_scans_and_rematerialised_bodies_count_as_often_as_they_run():
    def body(x, w):
        return jnp.tanh(x @ w), None

    stack = jnp.ones((5, 16, 16))
    x = jnp.ones((8, 16))
    one = 2 * 8 * 16 * 16

    def loss(stack, remat):
        walk = jax.checkpoint(body) if remat else body
        return jax.lax.scan(walk, x, stack)[0].sum()

    def total(function, *given):
        return sum(product.flops for product in counted(function, *given))

    assert total(lambda s: loss(s, False), stack) == 5 * one
    assert total(jax.grad(lambda s: loss(s, False)), stack) == 5 * 3 * one
    assert total(jax.grad(lambda s: loss(s, True)), stack) == 5 * 4 * one


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_a_convolution_and_both_gradients_have_three_times_its_flops(strides):
    x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((2, 2, 3, 5))

    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    out = convolve(x, w).shape
    forward = 2 * out[0] * out[1] * out[2] * w.size
    assert sum(p.flops for p in counted(convolve, x, w)) == forward
    both = jax.grad(lambda x, w: jnp.square(convolve(x, w)).sum(), argnums=(0, 1))
    found = [product.flops for product in counted(both, x, w)]
    # the gradient of the input also visits the padding that `strides` leave out
    assert sum(found) == pytest.approx(3 * forward, rel=0.35) and sum(found) >= 3 * forward


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices: see conftest.py")
def test_what_is_written_for_one_device_counts_on_all():
    mesh = data_mesh(jax.devices()[:4])
    mapped = jax.shard_map(lambda x: x @ WIDE, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    x = jnp.ones((8, 16))
    assert sum(p.flops for p in counted(mapped, x)) == sum(
        p.flops for p in counted(jnp.matmul, x, WIDE)
    )
