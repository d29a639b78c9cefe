"""What is read out of a program that XLA made."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxclip.training import hlo
from jaxclip.training.global_losses import gathered_contrastive_loss, ring_contrastive_loss
from tests.support.losses import arguments, on_devices

TEXT = """
  %a = f32[16,8]{1,0} all-reduce(%x), replica_groups={}
  %b = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%x, %y), to_apply=%add
  %c = (f32[2,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%x), dimensions={0}
  %d = f32[16,8]{1,0} all-gather-done(%c)
  %e = (bf16[8]{0}, bf16[8]{0}, u32[]{}, u32[]{}) collective-permute-start(%x)
  %g = ((f32[4]{0}, bf16[8]{0}), (f32[2]{0}, bf16[4]{0})) reduce-scatter-start(%x, %y)
  %h = f32[7]{0} all-to-all(%x), channel_id=1
  %i = f32[7]{0} all-to-all(%y), channel_id=1
  %j = f32[3]{0} all-to-all(%x), channel_id=2
  %k = f32[3]{0} all-to-all(%x), channel_id=2, in another kernel
  %f = f32[99,99]{1,0} dot(%x, %y)
"""

LOOP = """HloModule step

%body.1 (p: (s32[], f32[5,4], f32[4])) -> (s32[], f32[5,4], f32[4]) {
  %p = (s32[], f32[5,4]{1,0}, f32[4]{0}) parameter(0)
  %stack = f32[5,4]{1,0} get-tuple-element(%p), index=1
  %one = f32[4]{0} get-tuple-element(%p), index=2
  %fusion = f32[4]{0} fusion(%stack, %one, %one), kind=kLoop, calls=%inner
  ROOT %out = (s32[], f32[5,4]{1,0}, f32[4]{0}) tuple(%p, %stack, %fusion)
}

%condition.1 (p.1: (s32[], f32[5,4], f32[4])) -> pred[] {
  %i = s32[] get-tuple-element(%p.1), index=0
  %constant.9 = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %constant.9), direction=LT
}

ENTRY %main (x: f32[5,4]) -> f32[4] {
  %x = f32[5,4]{1,0} parameter(0)
  %start = (s32[], f32[5,4]{1,0}, f32[4]{0}) tuple(%x)
  %while = (s32[], /*index=1*/f32[5,4]{1,0}, f32[4]{0}) while(%start), condition=%condition.1, KNOWN
  %last = f32[4]{0} get-tuple-element(%while), index=2
  ROOT %copy = f32[4]{0} copy(%last)
}
"""


SLICING = """%slicing (p0: bf16[24,8,16], p1: bf16[32,8]) -> (bf16[32,16], s8[4096]) {
  %p1 = bf16[32,8]{1,0} parameter(1)
  %p0 = bf16[24,8,16]{2,1,0} parameter(0)
  %slice.1 = bf16[1,8,16]{2,1,0} slice(%p0), slice={[3:4], [0:8], [0:16]}
  %bitcast.1 = bf16[8,16]{1,0} bitcast(%slice.1)
  ROOT %call = (bf16[32,16]{1,0}, s8[4096]{0}) custom-call(%p1, %bitcast.1), \
custom_call_target="__cublas$lt$matmul"
}

ENTRY %main (w: bf16[24,8,16], x: bf16[32,8]) -> bf16[32,16] {
  %w = bf16[24,8,16]{2,1,0} parameter(0)
  %x = bf16[32,8]{1,0} parameter(1)
  %fusion = (bf16[32,16]{1,0}, s8[4096]{0}) fusion(%w, %x), kind=kCustom, calls=%slicing, \
backend_config={"fusion_backend_config":{"kind":"KIND"}}
}
"""


def test_collectives_are_counted_with_the_bytes_of_their_results():
    assert hlo.collective_results(TEXT) == {
        "all-reduce": {"count": 2, "bytes": 16 * 8 * 4 + 4 * 4 + 6 * 2},
        "all-gather": {"count": 1, "bytes": 16 * 8 * 4},
        "collective-permute": {"count": 1, "bytes": 16},
        "all-to-all": {"count": 3, "bytes": (7 + 7 + 3) * 4},
        "reduce-scatter": {"count": 1, "bytes": 2 * 4 + 4 * 2},
    }


@pytest.mark.parametrize(
    "end",
    ['body=%body.1, backend_config={"known_trip_count":{"n":"5"}}', "body=%body.1"],
    ids=["XLA says the trips", "the condition has them"],
)
def test_a_loop_runs_its_kernels_once_a_trip_and_reads_one_entry_of_its_stack(end):
    fusion, copy = hlo.runs(LOOP.replace("KNOWN", end))
    assert (fusion.instruction.op, fusion.times, copy.times) == ("fusion", 5, 1)
    assert fusion.bytes == 16 + 16 + 16  # an entry of the stack, %one once, the answer
    assert copy.bytes == 32


def test_a_stack_as_long_as_no_loop_is_read_whole():
    other = LOOP.replace("f32[5,4]", "f32[6,4]")
    fusion, _ = hlo.runs(other.replace("KNOWN", "body=%body.1"))
    assert fusion.bytes == 6 * 16 + 16 + 16


def test_a_product_that_slices_its_weights_out_of_a_stack_is_a_product():
    (run,) = hlo.runs(SLICING.replace("KIND", "__custom_fusion"))
    assert run.instruction.op == "custom-call" and run.times == 1
    assert run.operands == [[("bf16", (32, 8))], [("bf16", (8, 16))]]  # a layer, not the stack
    (run,) = hlo.runs(SLICING.replace("KIND", "__triton"))
    assert run.instruction.op == "fusion"  # the negative twin


COPYING = """%wrapped (p0: bf16[24,8,16], p1: f32[4], p2: f32[4]) -> bf16[1,8,16] {
  %p0 = bf16[24,8,16]{2,1,0} parameter(0)
  %p1 = f32[4]{0} parameter(1)
  %p2 = f32[4]{0} parameter(2)
  %slice.1 = bf16[1,8,16]{2,1,0} slice(%p0), slice={[3:4], [0:8], [0:16]}
  ROOT %add = bf16[1,8,16]{2,1,0} OTHER(%slice.1, %p1, %p2)
}

ENTRY %main (w: bf16[24,8,16], x: f32[4]) -> bf16[1,8,16] {
  %w = bf16[24,8,16]{2,1,0} parameter(0)
  %x = f32[4]{0} parameter(1)
  ROOT %fusion = bf16[1,8,16]{2,1,0} fusion(%w, %x, %x), kind=kLoop, calls=%wrapped
}
"""


def test_a_kernel_that_slices_a_layer_out_of_a_stack_reads_that_layer():
    layer, stack, vector = 8 * 16 * 2, 24 * 8 * 16 * 2, 4 * 4
    (run,) = hlo.runs(COPYING.replace("OTHER", "add"))
    assert run.bytes == layer + vector + layer  # %x is read once
    assert run.operands == [[("bf16", (1, 8, 16))], [("f32", (4,))]]
    (run,) = hlo.runs(COPYING.replace("OTHER(%slice.1", "add(%p0, %slice.1"))
    assert run.bytes == stack + vector + layer  # the stack is read whole as well


def test_the_kernels_of_a_program_of_this_jax_are_found():
    def program(x):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, jnp.ones((7, 64, 64)))[0]

    text = jax.jit(program).lower(jnp.ones((32, 64))).compile().as_text()
    assert 7 in [run.times for run in hlo.runs(text)], text


def test_the_largest_buffers_are_read_from_the_report():
    report = """Memory Space: default (color=0)
Total bytes: 1619001344 (1.51GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
    6.00MiB( 41%);    6.00MiB;      5603328;                2; bf16[256,16,768], f32[]
   10.12MiB( 70%);    1.50GiB;       409600;                3; bf16[2,256,33,128]
   10.12MiB( 70%);   512.0KiB;       409600;                3; bf16[2]
"""
    assert hlo.largest_buffers(report, 2) == [
        {"MiB": 6.0, "arrays": "bf16[256,16,768], f32[]"},
        {"MiB": 1536.0, "arrays": "bf16[2,256,33,128]"},
    ]
    assert hlo.largest_buffers("another text", 2) == []
    of_another_memory = "Memory Space: vmem (color=1)\nTotal bytes: 7 (7B)\n"
    assert hlo.allocated(of_another_memory + report) == 1619001344
    assert hlo.allocated(of_another_memory) is None


def program(loss) -> str:
    gradient = jax.value_and_grad(on_devices(loss, 8), argnums=(0, 1, 2))
    return jax.jit(gradient).lower(*arguments(n=496)).compile().as_text()


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py")
def test_logits_of_more_than_a_block_are_found():
    ring, gathered = program(ring_contrastive_loss), program(gathered_contrastive_loss)
    assert hlo.logits_held(ring, 496, 8) == set()
    assert (62, 496) in hlo.logits_held(gathered, 496, 8)
    assert "collective-permute" in hlo.collective_results(ring)
    assert "all-gather" not in hlo.collective_results(ring)
    assert "all-gather" in hlo.collective_results(gathered)
