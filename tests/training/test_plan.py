"""What a plan says of a step. Full compilations: `python -m experiments.plan --small`, in CI."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import pytest

from jaxclip import cli
from jaxclip.config import ClipConfig, Remat, TextConfig, VisionConfig
from jaxclip.training import plan, targets
from jaxclip.training.plan import Job
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh
from tests.support.steps import CONFIG

SMALL = Recipe(batch_size=32, dtype="bfloat16", text_length=13, model=CONFIG)
NO_PLUGIN = find_spec("jax_cuda13_plugin") is None


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see conftest.py")
@pytest.mark.parametrize("microbatches", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_whole_step_is_lowered_without_an_array(microbatches):
    mesh = data_mesh(jax.devices()[:8], fsdp=2, tensor=2)
    recipe = dataclasses.replace(SMALL, microbatches=microbatches)
    text = plan.trace(recipe, Execution("ring", fsdp=2, tensor=2), mesh).lower().as_text()
    assert "collective_permute" in text and "bf16" in text


# Arithmetic ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["dense", "chunked"])
def test_the_losss_own_products_are_not_in_the_float32_share(loss):
    mesh = data_mesh(jax.devices()[:1])
    execution = Execution(loss)
    traced, of_loss = (f(SMALL, execution, mesh) for f in (plan.trace, plan.loss_products))
    assert {product.types[2] for product in of_loss} == {"float32"}
    with_loss, without = (plan.arithmetic(traced, given) for given in ([], of_loss))
    assert without["float32_flops_share"] < with_loss["float32_flops_share"]
    flops = sum(product.flops for product in of_loss)
    total = sum(product.flops for product in plan.products(traced.jaxpr.jaxpr))
    difference = with_loss["float32_flops_share"] - without["float32_flops_share"]
    assert difference == pytest.approx(flops / total, abs=2e-5)


def test_a_float32_step_is_float32_throughout():
    mesh, execution = data_mesh(jax.devices()[:1]), Execution("dense")
    wide = dataclasses.replace(SMALL, dtype="float32")
    facts = plan.arithmetic(plan.trace(wide, execution, mesh), [])
    assert facts["float32_flops_share"] == 1.0


# What fits ----------------------------------------------------------------------------------------


def test_alternatives_come_cheapest_first():
    job = Job(Recipe(batch_size=32768, remat="none"), Execution("gathered"))
    flags = [" ".join(plan.changed_flags(other, job)) for other in plan.alternatives(job, 8)]
    assert flags[:7] == [
        "--loss ring",
        "--remat products_and_attention --loss ring",
        "--remat products --loss ring",
        "--remat full --loss ring",
        "--remat full --loss ring --fsdp 8",
        "--remat full --microbatches 2 --loss ring --fsdp 8",
        "--remat full --microbatches 4 --loss ring --fsdp 8",
    ]
    assert flags[-1].startswith("--remat full --microbatches 4096 ")


def test_alternatives_change_nothing_that_cannot_help():
    one = Job(Recipe(batch_size=128, remat="full"), Execution("dense"))
    flags = [plan.changed_flags(other, one) for other in plan.alternatives(one, 1)]
    assert flags[0] == ["--microbatches 2"]  # few logits, one device, nothing left to compute again
    done = Job(Recipe(batch_size=8, remat="full"), Execution("ring", fsdp=8))
    assert list(plan.alternatives(done, 8)) == []
    large = Job(Recipe(batch_size=32768, remat="full"), Execution("dense"))
    assert plan.changed_flags(next(plan.alternatives(large, 1)), large) == ["--loss chunked"]


def test_what_a_tpu_holds_is_what_its_compiler_allocates():
    gib = plan.GIB
    memory = SimpleNamespace(
        argument_size_in_bytes=4.8 * gib,
        temp_size_in_bytes=6.6 * gib,  # of ViT-L/14 on a v5e, which holds 9.2 in all
        output_size_in_bytes=4.8 * gib,
        alias_size_in_bytes=4.8 * gib,
    )
    usage = f"Memory Space: default (color=0)\nTotal bytes: {int(9.2 * gib)} (9.20GiB)\n"
    tpu, gpu = (targets.Target("", [], size) for size in (None, 80 * gib))
    assert not tpu.is_gpu and gpu.is_gpu
    sizes = ("GiB a device", "of them state and batch", "temporaries GiB")
    for target, text, expected in (
        (tpu, usage, (9.2, 4.8, 4.4)),
        (gpu, usage, (11.4, 4.8, 6.6)),
        (tpu, "", (11.4, 4.8, 6.6)),  # no report
    ):
        facts = plan._memory_facts(memory, text, target)
        assert tuple(facts[size] for size in sizes) == expected
        assert facts.get("at most", False) == (text == "" and target is tpu)


def pretended(limit: float, needs: dict[str, float], asked: list[Job]):
    """In place of `plan.check`: 2 GiB of state, and temporaries by policy and microbatches."""

    def check(job: Job, target, *, buffers=0):
        asked.append(job)
        temporaries = needs[job.recipe.remat] / job.recipe.microbatches
        facts = {"GiB a device": 2 + temporaries, "temporaries GiB": temporaries}
        return {"fits": 2 + temporaries <= limit, "usable GiB": limit, **facts}

    return check


NEEDS = {"none": 100.0, "products_and_attention": 40.0, "products": 32.0, "full": 16.0}


@pytest.mark.parametrize(
    ("limit", "flags", "compiled"),
    [
        (50, ["--remat products_and_attention"], 2),
        (20, ["--remat full"], 4),
        (7, ["--remat full", "--microbatches 4"], 5),  # 2 is left out: it needs 10 at least
        (1, None, 4),  # the state alone is too much
    ],
)
def test_the_first_step_that_fits_is_reported_as_compiled(monkeypatch, limit, flags, compiled):
    asked: list[Job] = []
    said: list[str] = []
    device = jax.devices()[0]
    target = targets.Target("h100", [device], limit * plan.GIB)
    monkeypatch.setattr(plan.targets, "find", lambda name: target)
    monkeypatch.setattr(plan, "check", pretended(limit, NEEDS, asked))
    recipe = dataclasses.replace(SMALL, remat="none")

    @contextlib.contextmanager
    def progress(what):
        said.append(what)
        yield

    found = plan.report(recipe, Execution("dense"), "h100", progress=progress)
    assert not found["fits"] and len(asked) == len(said) == compiled
    assert (found["fits with"] or {}).get("flags") == flags
    assert len(found["also tried"]) == compiled - (2 if flags else 1)
    if flags:
        assert found["fits with"]["fits"] and asked[-1].recipe.remat in flags[0]
    found = plan.report(recipe, Execution("dense"), "h100", search=False)
    assert "fits with" not in found and len(asked) == compiled + 1


def test_a_batch_that_the_devices_cannot_share_is_refused(monkeypatch):
    target = targets.Target("h100:3", jax.devices()[:1] * 3, 1)
    monkeypatch.setattr(plan.targets, "find", lambda name: target)
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 3 devices, got 32"):
        plan.report(SMALL, Execution("ring"), "h100:3")


def test_the_policies_are_those_of_a_recipe():
    from typing import get_args

    assert set(plan.POLICIES) == set(get_args(Remat))


def test_jax_takes_three_quarters_of_a_gpu_or_what_its_variable_says(monkeypatch):
    card = targets.Target("h100", [], 80 * plan.GIB)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert plan.usable_memory(card) == 60 * plan.GIB
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".95")
    assert plan.usable_memory(card) == 76 * plan.GIB
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "much")
    with pytest.raises(ValueError, match="expected a number, got 'much'"):
        plan.usable_memory(card)
    assert plan.usable_memory(targets.Target("v5e:2x2", [], None)) is None


# The command --------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="libtpu is there")
def test_without_libtpu_one_line_says_what_to_install(capsys):
    assert cli.main(["plan", "--topology", "v5e:2x2"]) == 1
    told = capsys.readouterr().err
    assert "pip install 'jaxclip[tpu]'" in told and told.count("\n") == 1


@pytest.mark.skipif(not NO_PLUGIN, reason="jax's CUDA plugin is there")
def test_without_the_cuda_plugin_one_line_says_what_to_install(capsys):
    assert cli.main(["plan", "--topology", "h100"]) == 1
    told = capsys.readouterr().err
    assert "pip install 'jaxclip[gpu-plan]'" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "flags",
    [["--model", "ViT-B/33"], ["--batch", "1"], ["--buffers", "-1"], ["--loss", "none"]],
)
def test_wrong_flags_are_refused_in_one_line(flags, capsys):
    with contextlib.suppress(SystemExit):
        assert cli.main(["plan", *flags]) == 2
    assert flags[0] in capsys.readouterr().err


def plan_command(monkeypatch, capsys, facts, *flags):
    """(exit code, output, (recipe, execution)) of the command over a pretended report."""
    from jaxclip.training import plan as library

    given = []
    device = jax.devices()[0]
    gpus = {"h100": 1, "h100:2": 2}

    def find(topology):
        memory = 1 if topology in gpus else None
        return targets.Target(topology, [device] * gpus.get(topology, 4), memory)

    def report(recipe, execution, topology, *, buffers, progress):
        given.append((recipe, execution))
        with progress("compiling"):
            return facts

    monkeypatch.setattr(targets, "find", find)
    monkeypatch.setattr(library, "report", report)
    code = cli.main(["plan", *flags])
    return code, capsys.readouterr(), given[0]


FACTS = {
    "fits": True,
    "attention kernels": {"cudnn": {"forward": 36, "backward": 36}},
    "collectives": {},
    "roofline": {"step ms": 178.6},
    "largest buffers": [{"MiB": 6.0, "arrays": "f32[3]"}],
}


@pytest.mark.parametrize(
    ("topology", "batch", "loss", "remat"),
    [
        ("h100", 128, "dense", "none"),
        ("h100:2", 256, "ring", "none"),
        ("v5e:2x2", 32768, "ring", "full"),
    ],
)
def test_what_is_not_given_follows_from_the_devices(
    monkeypatch, capsys, topology, batch, loss, remat
):
    code, said, (recipe, execution) = plan_command(
        monkeypatch, capsys, FACTS, "--topology", topology
    )
    assert code == 0 and (recipe.batch_size, recipe.remat, execution.loss) == (batch, remat, loss)
    assert "36 forward, 36 backward" in said.out and "178.6" in said.out
    assert said.err == "compiling\n"  # no terminal: a first line and no more


def test_a_step_that_does_not_fit_is_an_exit_code_and_json_says_what_does(monkeypatch, capsys):
    facts = {"fits": False, "fits with": {"flags": ["--remat full"], "fits": True}}
    flags = ["--topology", "h100", "--batch", "64", "--remat", "full", "--json"]
    code, said, (recipe, _) = plan_command(monkeypatch, capsys, facts, *flags)
    assert code == 1 and recipe.batch_size == 64
    assert json.loads(said.out)["fits with"]["flags"] == ["--remat full"]
    facts["attention kernels"] = {}
    _, said, _ = plan_command(monkeypatch, capsys, facts, "--topology", "h100")
    assert "none: einsum" in said.out and "--remat full" in said.out


# A compiler ---------------------------------------------------------------------------------------


@pytest.mark.skipif(NO_PLUGIN, reason="needs jax-cuda13-plugin: pip install -e '.[gpu-plan]'")
def test_a_tiny_step_compiles_for_an_h100():
    found = plan.report(SMALL, Execution("dense"), "h100", buffers=2)
    assert found["fits"] and found["kind"].startswith("NVIDIA H100")
    assert found["roofline"]["step ms"] > 0 and found["collectives"] == {}
    assert len(found["largest buffers"]) == 2


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.skipif(NO_PLUGIN, reason="needs jax-cuda13-plugin: pip install -e '.[gpu-plan]'")
@pytest.mark.parametrize(("topology", "kernels"), [("h200", "triton"), ("h200:2", "cudnn")])
def test_the_attention_of_an_h200_is_named(topology, kernels):
    towers = VisionConfig(224, 32, 128, 1, 2), TextConfig(128, 1, 2, 77, 101)
    recipe = Recipe(batch_size=8, dtype="bfloat16", model=ClipConfig(*towers, 7))
    found = plan.report(recipe, Execution("dense"), topology)
    assert list(found["attention kernels"]) == [kernels]
