"""A training step for an H100 as it is before XLA compiles it: kernels, number formats, shapes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxclip import hardware
from jaxclip.config import ClipConfig, TextConfig, VisionConfig
from jaxclip.losses import contrastive_loss
from jaxclip.models import clip
from jaxclip.models.layers import Numerics
from jaxclip.training import flops
from tests.support.jaxprs import equations

H100 = "NVIDIA H100 80GB HBM3"


def step_for_an_h100(remat: str, attention: str = "auto") -> Any:
    """The jaxpr of a bfloat16 step of a narrow ViT with 50 and 77 tokens."""
    config = ClipConfig(
        VisionConfig(224, 32, 128, 2, 2), TextConfig(128, 2, 2, 77, 1009), embed_dim=32
    )
    plain = clip.abstract(config, remat=remat, numerics=Numerics(jnp.bfloat16))
    model = hardware.arrange_training(plain, "gpu", remat, device_kind=H100, attention=attention)
    images = jax.ShapeDtypeStruct((16, 224, 224, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((16, 77), jnp.int32)

    def loss(model: clip.Clip, images: Any, tokens: Any) -> Any:
        return contrastive_loss(*model.embed(images, tokens), model.logit_scale[...])

    return jax.make_jaxpr(jax.value_and_grad(loss))(model, images, tokens).jaxpr


def squares_of_tokens(jaxpr: Any) -> set[tuple[int, ...]]:
    """Shapes of weights of attention: [..., l, l], a mask of the length apart."""
    shapes = {tuple(v.aval.shape) for e in equations(jaxpr) for v in e.outvars}
    return {s for s in shapes if len(s) > 2 and s[-1] == s[-2] and s[-1] in (50, 77, 78)}


@pytest.mark.parametrize(
    ("remat", "forward"), [("none", 1), ("products_and_attention", 1), ("products", 2), ("full", 2)]
)
def test_a_step_for_an_h100_calls_the_kernel_as_often_as_remat_says(remat, forward, monkeypatch):
    module = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(module, lambda: 91000)  # of what is not installed here
    jaxpr = step_for_an_h100(remat)
    names = [equation.primitive.name for equation in equations(jaxpr)]
    calls = [sum(f"attention_{way}" in name for name in names) for way in ("fwd", "bwd")]
    assert calls == [2 * forward, 2]  # a loop's body for each of two towers
    assert squares_of_tokens(jaxpr) == set()
    wide = flops.float32_share(list(flops.products(jaxpr)))
    assert wide < 1e-3  # the loss


@pytest.mark.parametrize(
    ("remat", "forward"), [("none", 1), ("products_and_attention", 1), ("products", 2), ("full", 2)]
)
def test_a_step_calls_the_pallas_kernels_as_often_as_remat_says(remat, forward):
    jaxpr = step_for_an_h100(remat, "pallas")
    calls = Counter(
        equation.params["jaxpr"].debug_info.func_name
        for equation in equations(jaxpr)
        if equation.primitive.name == "pallas_call" and not equation.params["interpret"]
    )
    assert calls == {
        "_attention_forward": 2 * forward,  # a loop's body for each of two towers
        "_attention_backward_queries": 2,
        "_attention_backward_keys": 2,
    }
    assert not squares_of_tokens(jaxpr)
    assert flops.float32_share(list(flops.products(jaxpr))) < 1e-3  # the loss


def test_the_einsum_of_a_step_is_seen_to_hold_squares_of_tokens():
    jaxpr = step_for_an_h100("none", "einsum")
    assert {shape[-1] for shape in squares_of_tokens(jaxpr)} == {50, 77}
