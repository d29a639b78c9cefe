"""Suite `pipeline`: does a run of training wait for its pictures?

Three rates on one machine: the batches alone (JPEG files and captions to pixels and tokens), the
step alone (its batch on the device), and `training.loop.train` with both, log and all, whose own
record says how long it waited for data. On a CPU both share the cores, so there the rate of a run
is below that of the step; what tells is the waiting.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.bench import pictures as bench_pictures
from experiments.bench.pairs import Run, SuiteFlags, say
from experiments.bench.training import DTYPES, MODELS, ours
from jaxclip.cli.usage import Positive
from jaxclip.data.pairs import read_caption_folder
from jaxclip.data.stream import Skips
from jaxclip.training import loop
from jaxclip.training.input_pipeline import PairStream, prefetch
from jaxclip.training.recipe import Execution, Recipe
from jaxclip.training.sharding import data_mesh

CAPTIONS = ("a temple in the mountains", "a flower, seen from near", "a street at night")
RUN = "images/s, a run from files"


@dataclasses.dataclass(frozen=True)
class Flags(SuiteFlags):
    models: tuple[Literal[*MODELS], ...] = ("small ViT",)
    batches: tuple[Positive, ...] = (32,)
    steps: Positive = 60
    """of each measurement"""
    precision: Literal[*DTYPES] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    readers: Positive = 8
    """threads that read and decode"""
    pictures: Positive = 500
    photos: Path | None = None
    """a folder of photographs to cut pieces from"""


def rows(flags: Flags) -> Iterator[dict[str, Any]]:
    """A row a model and batch size; `--pairs` is how often the three take turns."""
    with tempfile.TemporaryDirectory() as scratch:
        pictures = Path(scratch) / "pictures"
        for i, path in enumerate(bench_pictures.make(pictures, flags.pictures, flags.photos)):
            path.with_suffix(".txt").write_text(CAPTIONS[i % len(CAPTIONS)])
        for name in flags.models:
            for batch in flags.batches:
                say(f"{name}, batch {batch}")
                recipe = Recipe(
                    steps=flags.steps,
                    batch_size=batch,
                    warmup=10,
                    log_every=1,
                    save_every=flags.steps,
                    evaluate_every=flags.steps,
                    dtype=flags.precision,
                    remat=flags.remat,
                    text_length=MODELS[name].text.context_length,
                    model=MODELS[name],
                )
                turns = [
                    measured(
                        recipe, pictures, flags.readers, Path(scratch) / f"{name}-{batch}-{turn}"
                    )
                    for turn in range(flags.pairs)
                ]
                middle = sorted(turns, key=lambda found: found[RUN])[len(turns) // 2]
                what = {"model": name, "batch": batch, "precision": flags.precision}
                yield {**what, "readers": flags.readers, "measured": middle}


def measured(recipe: Recipe, pictures: Path, readers: int, run: Path) -> dict[str, float]:
    """The three rates, and the share of a run that is waiting for data."""
    alone = _step_alone(recipe)
    stream = _stream(recipe, pictures, readers)
    pipeline = _rate(
        recipe, lambda: sum(1 for _ in prefetch(stream, recipe.steps, lambda batch: batch))
    )
    run.mkdir(parents=True)
    (run / "config.json").write_text(recipe.to_json())
    mesh = data_mesh(jax.devices()[:1])
    loop.train(
        recipe, _stream(recipe, pictures, readers), run, mesh=mesh, execution=Execution(keep=1)
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # the first steps compile
    first, last = lines[2], lines[-1]
    passed = last["seconds"] - first["seconds"]
    waited = last["seconds_for_data"] - first["seconds_for_data"]
    return {
        "images/s, batches alone": round(pipeline),
        "images/s, step alone": round(alone),
        RUN: round((last["step"] - first["step"]) * recipe.batch_size / passed),
        "waiting for data, % of the run": round(100 * waited / passed, 2),
    }


def _stream(recipe: Recipe, pictures: Path, readers: int) -> PairStream:
    return PairStream(
        [read_caption_folder(pictures)],
        size=recipe.model.vision.image_size,
        batch_size=recipe.batch_size,
        seed=0,
        text_length=recipe.text_length,
        skips=Skips(0),
        threads=readers,
    )


def _rate(recipe: Recipe, run: Run) -> float:
    """Images a second of a run of all the recipe's steps."""
    began = time.monotonic()
    run()
    return recipe.steps * recipe.batch_size / (time.monotonic() - began)


def _step_alone(recipe: Recipe) -> float:
    step = ours(recipe.model, recipe.batch_size, recipe.dtype, recipe.remat)
    for _ in range(3):
        step()
    return _rate(recipe, lambda: [step() for _ in range(recipe.steps)])
