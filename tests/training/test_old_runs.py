"""A run folder of version 0.1 is read and continued; one of another model is refused in one line.

Names and files are written out here as that version wrote them.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxclip import checkpoint, cli
from jaxclip.cli import run
from jaxclip.training import from_recipe
from jaxclip.training.checkpoints import Checkpoints
from jaxclip.training.recipe import Recipe
from jaxclip.training.sharding import data_mesh

pytestmark = pytest.mark.usefixtures("quick_compiling", "kept_programs")
CONFIG: dict[str, Any] = {
    **{"average": 0.9, "batch_size": 8, "dtype": "float32", "evaluate_every": 200},
    **{"learning_rate": 0.003, "log_every": 1, "parts": 2, "rates": [], "remat": "none"},
    **{"save_every": 2, "seed": 0, "steps": 4, "text_length": 16, "warmup": 1},
    "weight_decay": 0.2,
    "model": {
        **{"activation": "quick_gelu", "embed_dim": 8, "logit_bias": False},
        "text": {
            **{"context_length": 16, "heads": 8, "kind": "cbow", "layers": 12},
            **{"vocab_size": 49408, "width": 16},
        },
        "vision": {"heads": 2, "image_size": 16, "layers": 2, "patch_size": 8, "width": 16},
    },
}
DATA = {
    **{"data": ["emoji"], "weights": [], "start": "", "zero_shot": "", "retrieval": ""},
    **{"data_dir": "", "skip_limit": 1000},
}
BLOCK = {
    "attn.in_proj_bias": (2, 48),
    "attn.in_proj_kernel": (2, 16, 48),
    "attn.out_proj.bias": (2, 16),
    "attn.out_proj.kernel": (2, 16, 16),
    **{f"ln_{i}.{leaf}": (2, 16) for i in (1, 2) for leaf in ("bias", "scale")},
    "mlp.c_fc.bias": (2, 64),
    "mlp.c_fc.kernel": (2, 16, 64),
    "mlp.c_proj.bias": (2, 16),
    "mlp.c_proj.kernel": (2, 64, 16),
}
MODEL = {
    "logit_scale": (),
    "text.text_projection": (16, 8),
    "text.token_embedding.embedding": (49408, 16),
    "visual.class_embedding": (16,),
    "visual.conv1.kernel": (8, 8, 3, 16),
    **{f"visual.ln_{i}.{leaf}": (16,) for i in ("pre", "post") for leaf in ("bias", "scale")},
    "visual.positional_embedding": (5, 16),
    "visual.proj": (16, 8),
    **{f"visual.transformer.resblocks.{name}": shape for name, shape in BLOCK.items()},
}


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that version 0.1 has made two steps of four of."""
    monkeypatch.setattr(run, "data_mesh", functools.partial(data_mesh, jax.devices()[:1]))
    rng = np.random.default_rng(0)

    def drawn(prefix: str = "", low: float = -0.1) -> dict[str, np.ndarray]:
        return {
            prefix + name: rng.uniform(low, 0.1, shape).astype(np.float32)
            for name, shape in MODEL.items()
        }

    counts = {f"inner.{i}.count": np.array(2, np.int32) for i in (0, 2)}
    moments = drawn("inner.0.mu.") | drawn("inner.0.nu.", low=0.01)
    arrays = {"model": drawn(), "opt_state": counts | moments | drawn("average.")}
    rest = {"key": [0, 0], "position": [2], "config": CONFIG}
    items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), rest=ocp.args.JsonSave(rest))
    with ocp.CheckpointManager(tmp_path / "state") as manager:
        manager.save(2, args=items)
        manager.wait_until_finished()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "data.json").write_text(json.dumps(DATA))
    lines = [json.dumps({"step": step, "loss": 2.0, "logit_scale": 14.0}) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    np.savez(tmp_path / "arrays.npz", **arrays["model"], **arrays["opt_state"])
    return tmp_path


def test_the_state_of_an_old_run_is_read_to_the_bit(old_run: Path) -> None:
    recipe = Recipe.from_json((old_run / "config.json").read_text())
    assert recipe.microbatches == 2 and recipe.decoder == "full"
    mesh = data_mesh(jax.devices()[:1])
    _, like = from_recipe.abstract_state(recipe, mesh)
    where = from_recipe.state_shardings(recipe, mesh)
    found = Checkpoints(old_run / "state").restore(like, where)
    assert found is not None and found.position == [2]
    state = found.state
    assert int(state.step) == int(state.opt_state.inner[0].count) == 2
    expected = np.load(old_run / "arrays.npz")
    block = "visual.transformer.resblocks.mlp.c_fc.kernel"
    kernels = {
        block: state.params,
        f"inner.0.mu.{block}": state.opt_state.inner[0].mu,
        f"inner.0.nu.{block}": state.opt_state.inner[0].nu,
        f"average.{block}": state.opt_state.average,
    }
    for name, tree in kernels.items():
        kernel = tree["visual"]["transformer"]["resblocks"]["mlp"]["c_fc"]["kernel"][...]
        assert np.array_equal(kernel, expected[name]), name


def test_an_old_run_is_continued(old_run: Path) -> None:
    assert cli.main(["train", "--out", str(old_run), "--resume"]) == 0
    lines = [json.loads(line) for line in (old_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    for name in ("model.safetensors", "average.safetensors"):
        flat, config, _ = checkpoint.load(old_run / name)
        assert flat["visual.proj"].shape == (16, 8) and config.embed_dim == 8


def test_an_old_run_whose_state_is_another_model_s_is_refused(
    old_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = {**CONFIG, "model": {**CONFIG["model"], "embed_dim": 12}}
    (old_run / "config.json").write_text(json.dumps(wider))
    assert cli.main(["train", "--out", str(old_run), "--resume"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]  # below the progress bar
    assert last.startswith("jaxclip: ")
    assert "visual.proj: expected shape (16, 12), got (16, 8)" in last
