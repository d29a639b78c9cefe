"""What the plan reads out of a program; the compiler for TPUs itself is asked by
`python -m experiments.plan --small`."""

from __future__ import annotations

from importlib.util import find_spec

import jax
import pytest

from jaxclip import cli
from jaxclip.config import RELEASED
from jaxclip.training import tpu_plan as plan
from jaxclip.training.global_losses import gathered_contrastive_loss, ring_contrastive_loss
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh
from tests.support.losses import arguments, on_devices
from tests.support.steps import CONFIG

TEXT = """
  %a = f32[16,8]{1,0} all-reduce(%x), replica_groups={}
  %b = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%x, %y), to_apply=%add
  %c = (f32[2,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%x), dimensions={0}
  %d = f32[16,8]{1,0} all-gather-done(%c)
  %e = (bf16[8]{0}, bf16[8]{0}, u32[]{}, u32[]{}) collective-permute-start(%x)
  %f = f32[99,99]{1,0} dot(%x, %y)
"""


def test_collectives_are_counted_with_the_bytes_of_their_results():
    assert plan.collectives(TEXT) == {
        "all-reduce": {"count": 2, "bytes": 16 * 8 * 4 + 4 * 4 + 6 * 2},
        "all-gather": {"count": 1, "bytes": 16 * 8 * 4},
        "collective-permute": {"count": 1, "bytes": 16},
    }


def program(loss) -> str:
    gradient = jax.value_and_grad(on_devices(loss, 8), argnums=(0, 1, 2))
    return jax.jit(gradient).lower(*arguments(n=496)).compile().as_text()


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py")
def test_logits_of_more_than_a_block_are_found():
    ring, gathered = program(ring_contrastive_loss), program(gathered_contrastive_loss)
    assert plan.logits_held(ring, 496, 8) == set()
    assert (62, 496) in plan.logits_held(gathered, 496, 8)
    assert "collective-permute" in plan.collectives(ring)
    assert "all-gather" not in plan.collectives(ring)
    assert "all-gather" in plan.collectives(gathered)


def test_flops_are_those_of_the_products():
    """ViT-B/32 by hand: twelve blocks of 12 d^2 weights a token, and attention over 50 tokens."""

    def tower(width: int, tokens: int, layers: int) -> float:
        return layers * tokens * (2 * 12 * width**2 + 2 * 2 * width * tokens)

    image = tower(768, 50, 12) + 2 * 49 * 3072 * 768 + 2 * 768 * 512
    text = tower(512, 77, 12) + 2 * 512 * 512
    assert plan.model_flops(RELEASED["ViT-B/32"], 4) == pytest.approx(3 * 4 * (image + text))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py")
@pytest.mark.parametrize("microbatches", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_whole_step_is_lowered_without_an_array(microbatches):
    mesh = data_mesh(jax.devices()[:8], fsdp=2, tensor=2)
    recipe = Recipe(
        batch_size=32, microbatches=microbatches, dtype="bfloat16", text_length=13, model=CONFIG
    )
    text = plan.lower(recipe, Execution("ring", fsdp=2, tensor=2), mesh).as_text()
    assert "collective_permute" in text and "bf16" in text


def test_what_does_not_fit_is_told_what_to_change():
    tight = Recipe(batch_size=4096, remat="none")
    told = plan.suggestions(tight, Execution("gathered"), 8)
    assert told == ["--remat full", "--loss ring", "--fsdp 8", "--microbatches 2"]
    loose = Recipe(batch_size=8, remat="full")
    assert plan.suggestions(loose, Execution("ring", fsdp=8), 8) == []


def test_the_memory_that_was_wanted_is_told():
    said = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    said += "temporaries (41.97G) exceeds available HBM (15.75G)."
    assert plan._memory_error(said) == "needs 41.97 GiB, the chip has 15.75 GiB"
    assert (
        plan._memory_error("RESOURCE_EXHAUSTED: otherwise\nmore") == "RESOURCE_EXHAUSTED: otherwise"
    )


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="libtpu is there")
def test_without_libtpu_one_line_says_what_to_install(capsys):
    assert cli.main(["plan", "--topology", "v5e:2x2"]) == 1
    told = capsys.readouterr().err
    assert "pip install 'jaxclip[tpu]'" in told and told.count("\n") == 1
    assert cli.main(["plan", "--model", "ViT-B/33"]) == 2
