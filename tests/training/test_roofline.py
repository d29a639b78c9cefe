"""The least time of a compiled step, from its program's text."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from jaxclip.training import roofline
from jaxclip.training.roofline import CARDS, Card

# The kernels of the step that was measured on an H100 (ViT-L/14, 128 pairs, bfloat16, cuDNN's
# attention, blocks unrolled), with their shapes and nothing else: XLA of jax 0.10.2 for an H100.
STEP = Path(__file__).parents[1] / "golden" / "h100_vit_l14_step.hlo.gz"
MEASURED_MS = 184.6  # of the card, the whole step
MODEL_FLOPS = 67.3e12

PRODUCT = """ENTRY %main (x: bf16[8]) -> bf16[8] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = SIDE[32,16]{1,0} parameter(1)
  %y = (bf16[64,16]{1,0}, s8[4194304]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"lhs_contracting_dimensions":["1"]}}
}
"""

CONVOLUTION = """ENTRY %main (x: bf16[8]) -> bf16[8] {
  %x = bf16[A]{3,2,1,0} parameter(0)
  %w = bf16[B]{3,2,1,0} parameter(1)
  %y = (bf16[C]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convNAME"
}
"""

ATTENTION = """ENTRY %main (x: bf16[8]) -> bf16[8] {
  %q = bf16[2,78,3,64]{3,2,1,0} parameter(0)
  %k = bf16[2,78,3,64]{3,2,1,0} parameter(1)
  %v = bf16[2,78,3,64]{3,2,1,0} parameter(2)
  %y = bf16[2,3,78,64]{3,1,2,0} custom-call(%q, %k, %v), custom_call_target="TARGET", \
metadata={op_name="jit(step)/SCOPE/kernel"}
}
"""


AGAIN = "transpose(jvp())/rematted_computation"


@pytest.fixture(scope="module")
def step() -> list[roofline.Kernel]:
    return roofline.kernels(gzip.decompress(STEP.read_bytes()).decode())


def test_the_sum_is_within_five_percent_of_the_step_that_was_measured(step):
    found = roofline.estimate(step, CARDS["h100"], MODEL_FLOPS)
    assert found["step ms"] == pytest.approx(MEASURED_MS, rel=0.05)
    parts = found["products ms"], found["attention ms"], found["other kernels ms"]
    assert parts == pytest.approx((79, 25, 80), rel=0.1)  # as the card spent it
    assert found["MFU"] == pytest.approx(MODEL_FLOPS / 989e12 / (found["step ms"] / 1e3), abs=1e-3)


def test_another_card_or_no_traffic_would_miss_it(step):
    h100 = CARDS["h100"]
    slower, faster = (Card(h100.flops, h100.bandwidth * share) for share in (1 / 1.5, 1.5))
    for card in (CARDS["a100"], slower, faster):
        found = roofline.estimate(step, card, MODEL_FLOPS)
        assert found["step ms"] != pytest.approx(MEASURED_MS, rel=0.05)
    without = [kernel for kernel in step if kernel.kind != "other"]
    found = roofline.estimate(without, CARDS["h100"], MODEL_FLOPS)
    assert found["step ms"] != pytest.approx(MEASURED_MS, rel=0.05)


def test_its_attention_and_traffic_are_found(step):
    assert roofline.attention_calls(step) == {"cudnn": {"forward": 36, "backward": 36}}
    assert roofline.moved(step)["other"] == pytest.approx(193, rel=0.01)


def only(text: str) -> roofline.Kernel:
    (kernel,) = roofline.kernels(text)
    return kernel


@pytest.mark.parametrize(("side", "wide"), [("bf16", False), ("f32", True)])
def test_a_product_is_its_flops_and_its_bytes_without_the_workspace(side, wide):
    kernel = only(PRODUCT.replace("SIDE", side))
    assert (kernel.kind, kernel.flops, kernel.float32) == ("product", 2 * 64 * 32 * 16, wide)
    assert kernel.bytes == 2 * 64 * 32 + (4 if wide else 2) * 32 * 16 + 2 * 64 * 16


def test_a_float32_product_takes_twice_as_long_and_a_small_one_its_bytes():
    kernel = only(PRODUCT.replace("SIDE", "bf16"))
    card = CARDS["h100"]
    small = roofline.seconds(kernel, card)
    assert small == pytest.approx(kernel.bytes / (card.of_bandwidth * card.bandwidth))
    large = kernel._replace(flops=1e12)
    wide = large._replace(float32=True)
    assert roofline.float32_share([large, large, wide._replace(times=2)]) == 0.5
    assert roofline.float32_share([]) == 0.0
    assert roofline.seconds(wide, card) == pytest.approx(2 * roofline.seconds(large, card))
    assert roofline.seconds(large._replace(times=3), card) == pytest.approx(
        3 * roofline.seconds(large, card)
    )


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("Forward", ("4,28,28,16", "32,3,3,16", "4,14,14,32")),
        ("BackwardInput", ("4,14,14,32", "32,3,3,16", "4,28,28,16")),
        ("BackwardFilter", ("4,28,28,16", "4,14,14,32", "32,3,3,16")),
    ],
)
def test_a_convolution_and_its_gradients_have_the_same_flops(name, shapes):
    text = CONVOLUTION.replace("NAME", name)
    for letter, shape in zip("ABC", shapes, strict=True):
        text = text.replace(f"bf16[{letter}]", f"bf16[{shape}]")
    assert only(text).flops == 2 * 4 * 14 * 14 * 32 * 3 * 3 * 16


@pytest.mark.parametrize(
    ("target", "scope", "kind", "by"),
    [
        ("__cudnn$fmhaSoftmax", "jvp()", "attention forward", "cudnn"),
        ("__cudnn$fmhaSoftmax", AGAIN, "attention forward", "cudnn"),
        ("__cudnn$fmhaSoftmaxBackward", "transpose(jvp())", "attention backward", "cudnn"),
        ("__gpu$xla.gpu.triton", "jvp()", "attention forward", "triton"),
        ("triton_kernel_call", "transpose(jvp())", "attention backward", "triton"),
        ("triton_kernel_call", AGAIN, "attention forward", "triton"),
        ("tpu_custom_call", "jvp()", "attention forward", "mosaic"),
        ("mosaic_gpu", "transpose(jvp())", "attention backward", "mosaic"),
        ("Sharding", "jvp()", "other", "Sharding"),
    ],
)  # fmt: skip
def test_attention_kernels_are_told_apart(target, scope, kind, by):
    kernel = only(ATTENTION.replace("TARGET", target).replace("SCOPE", scope))
    assert (kernel.kind, kernel.by) == (kind, by)
    forward = 4 * (2 * 78 * 3 * 64) * 78
    expected = {"attention forward": forward, "attention backward": 2.5 * forward}
    assert kernel.flops == expected.get(kind, 0)


PACKED = """ENTRY %main (x: bf16[8]) -> bf16[8] {
  %qkv = bf16[SHAPE]{4,3,2,1,0} parameter(0)
  %o = bf16[128,257,16,64]{3,2,1,0} parameter(1)
  %dqkv = bf16[SHAPE]{4,3,2,1,0} parameter(2)
  %y = RESULT custom-call(%qkv, %qkv, %qkv, %o), \
custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(step)/SCOPE/kernel"}
}
"""
QKV, MIXED = "128,257,3,16,64", 2 * 128 * 257 * 16 * 64  # bytes


def packed(result: str, scope: str, shape: str = QKV) -> roofline.Kernel:
    text = PACKED.replace("RESULT", result).replace("SHAPE", shape).replace("SCOPE", scope)
    return only(text.replace("%o)", "%o, %dqkv)") if "bf16[2]" in result else text)


def packed_step() -> list[roofline.Kernel]:
    """24 layers of attention of one array; forward, queries' gradient, that of keys and values."""
    forward = packed("bf16[128,257,16,64]{3,2,1,0}", "jvp()")
    queries = packed(f"bf16[{QKV}]{{4,3,2,1,0}}", "transpose(jvp())")
    keys = packed(f"(bf16[{QKV}]{{4,3,2,1,0}}, bf16[2]{{0}})", "transpose(jvp())")
    return [kernel._replace(times=24) for kernel in (forward, queries, keys)]


def test_attention_of_one_array_is_found_and_moves_the_parts_that_it_writes():
    found = packed_step()
    flops = 4 * 128 * 16 * 64 * 257**2
    assert [kernel.flops for kernel in found] == [flops, 1.5 * flops, 2.0 * flops]
    assert roofline.attention_calls(found) == {"triton": {"forward": 24, "backward": 48}}
    assert [kernel.bytes for kernel in found] == [5 * MIXED, 5 * MIXED, 6 * MIXED + 4]
    other = packed("bf16[128,257,16,64]{3,2,1,0}", "jvp()", shape=QKV.replace("3", "4"))
    assert other.kind == "other"  # the negative twin


def test_attention_by_triton_takes_what_an_h200_took():
    forward, *backward = (1e3 * roofline.seconds(kernel, CARDS["h200"]) for kernel in packed_step())
    assert (forward, sum(backward)) == pytest.approx((4.6, 14.7), rel=0.01)
    cudnn = packed_step()[0]._replace(by="cudnn")
    assert 1e3 * roofline.seconds(cudnn, CARDS["h200"]) > 6


def test_a_kernel_of_two_matrices_is_no_attention():
    text = ATTENTION.replace("TARGET", "tpu_custom_call").replace("bf16[2,78,3,64]", "bf16[78,64]")
    assert only(text).kind == "other"
    assert roofline.attention_calls([only(text)]) == {}


def test_every_card_that_can_be_planned_for_has_its_peaks():
    from jaxclip.training.targets import gpus

    assert set(CARDS) == set(gpus())
    for card in CARDS.values():
        assert min(card.flops, card.bandwidth) > 1e11
        assert (
            0.5 < min(card.of_flops, card.of_bandwidth) <= max(card.of_flops, card.of_bandwidth) < 1
        )
