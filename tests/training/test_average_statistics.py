"""The average of a ResNet's weights has BatchNorm statistics of its own, taken from batches."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from jaxclip import checkpoint
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig
from jaxclip.data.emoji.pictures import load_emoji
from jaxclip.hub.load import load
from jaxclip.models.parameters import split_statistics, to_flat
from jaxclip.training import loop
from jaxclip.training.input_pipeline import DrawingStream
from jaxclip.training.recipe import Recipe

MODEL = ClipConfig(
    ResNetConfig(image_size=32, width=8, layers=(1, 1, 1, 1)),
    TextConfig(width=16, kind="cbow", context_length=16),
    embed_dim=8,
)
RECIPE = Recipe(
    steps=6,
    batch_size=16,
    warmup=1,
    learning_rate=3e-2,
    text_length=16,
    average=0.9,
    model=MODEL,
)
VARIANCE = ".var"


def train(run: Path, recipe: Recipe) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of both files of a run, {file: {name: array}}."""
    run.mkdir()
    (run / "config.json").write_text(recipe.to_json())
    stream = DrawingStream(load_emoji("train"), size=32, batch_size=16, seed=0, text_length=16)
    loop.train(recipe, stream, run)
    names = (loop.MODEL, loop.AVERAGE)
    return {name: checkpoint.load_arrays(run / name)[0] for name in names}


def collect_variances(arrays: dict[str, np.ndarray]) -> np.ndarray:
    found = [x.ravel() for name, x in sorted(arrays.items()) if name.endswith(VARIANCE)]
    return np.concatenate(found)


def retake_variances(file: Path, seed: int) -> np.ndarray:
    """The variances of a file's weights, from enough batches that nothing of its own is left."""
    model, _ = load(str(file))
    graphdef, params, stats = split_statistics(model)
    stream = DrawingStream(load_emoji("train"), size=32, batch_size=16, seed=seed, text_length=16)

    @jax.jit
    def step(stats: Any, drawings: Any, key: jax.Array) -> Any:
        pixels = stream.batch_to_pixels(drawings, key)
        merged = nnx.merge(graphdef, params, stats)
        return merged.embed(pixels, drawings["tokens"], train=True)[2]

    for i in range(60):
        stats = step(stats, next(stream), jax.random.key(i))
    whole = to_flat(nnx.merge(graphdef, params, stats))
    return collect_variances({name: np.asarray(x) for name, x in whole.items()})


@pytest.mark.usefixtures("quick_compiling", "kept_programs")
@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_average_has_the_statistics_of_its_own_weights(
    tmp_path: Path, microbatches: int
) -> None:
    files = train(tmp_path / "run", dataclasses.replace(RECIPE, microbatches=microbatches))
    wanted = retake_variances(tmp_path / "run" / loop.AVERAGE, seed=1)
    got, of_model = collect_variances(files[loop.AVERAGE]), collect_variances(files[loop.MODEL])
    near, far = (np.abs(x / wanted - 1).mean() for x in (got, of_model))
    assert near < 0.2 and far > 10 * near  # 0.10 and 6.7; far: those of the last weights


@pytest.mark.usefixtures("quick_compiling", "kept_programs")
def test_what_fails_while_statistics_are_taken_leaves_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the data are gone")

    monkeypatch.setattr(loop.from_recipe, "compiled_statistics_step", fail)
    with pytest.raises(OSError, match="the data are gone"):
        train(tmp_path / "run", RECIPE)
    assert checkpoint.load_arrays(tmp_path / "run" / loop.MODEL)[0]
    assert not (tmp_path / "run" / loop.AVERAGE).exists()


@pytest.mark.usefixtures("quick_compiling", "kept_programs")
def test_resumed_at_its_end_a_run_writes_the_same_average(tmp_path: Path) -> None:
    files = train(tmp_path / "run", RECIPE)
    stream = DrawingStream(load_emoji("train"), size=32, batch_size=16, seed=0, text_length=16)
    (tmp_path / "run" / loop.AVERAGE).unlink()
    loop.train(RECIPE, stream, tmp_path / "run", resume=True)
    again, _ = checkpoint.load_arrays(tmp_path / "run" / loop.AVERAGE)
    assert all(np.array_equal(again[name], x) for name, x in files[loop.AVERAGE].items())
