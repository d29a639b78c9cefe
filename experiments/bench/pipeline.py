"""Suite `pipeline`: how fast are JPEG files read, and does a run of training wait for them?

First the batches alone, by each decoder in turn, from photographs of three sizes: pictures a second
of one core (by the processor's seconds, which other work hardly moves), and how far the pixels are
from the full decode's.

Then a run. Three rates on one machine: the batches alone (JPEG files and captions to pixels and
tokens), the step alone (its batch on the device), and `training.loop.train` with both, log and all,
whose own record says how long it waited for data. On a CPU both share the cores, so there the rate
of a run is below that of the step; the share of waiting is the answer.
"""

import dataclasses
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from experiments.bench import pictures as bench_pictures
from experiments.bench.pairs import Run, SuiteFlags, in_turn, say, spread
from experiments.bench.training import DTYPES, MODELS, ours
from jaxclip.cli.usage import Positive
from jaxclip.config import Remat
from jaxclip.data.crops import CROPS
from jaxclip.data.pairs import read_caption_folder
from jaxclip.data.stream import Skips
from jaxclip.tokenizer import VOCAB_SIZE
from jaxclip.training import loop
from jaxclip.training.input_pipeline import PairStream, prefetch
from jaxclip.training.recipe import Decoder, Execution, Recipe
from jaxclip.training.sharding import data_mesh

PHOTOS = ((500, 375), (640, 480), (1500, 1000))  # width and height
BATCH = 32  # of batches alone
PICTURES_COMPARED = 32
CAPTIONS = ("a temple in the mountains", "a flower, seen from near", "a street at night")
RUN = "images/s, a run from files"


@dataclasses.dataclass(frozen=True)
class Flags(SuiteFlags):
    models: tuple[Literal[*MODELS], ...] = ("small ViT",)
    batches: tuple[Positive, ...] = (32,)
    steps: Positive = 60
    """of each measurement"""
    precision: Literal[*DTYPES] = "float32"
    remat: Remat = "none"
    readers: Positive = 8
    """threads that read and decode"""
    pictures: Positive = 500
    photos: Path | None = None
    """a folder of photographs to cut pieces from"""
    decoders: tuple[Decoder, ...] = get_args(Decoder)
    sizes: tuple[Positive, ...] = (224, 96)
    """pixels a side of the crops of batches alone"""
    alone: bool = False
    """batches alone, no run"""


def rows(flags: Flags) -> Iterator[dict[str, Any]]:
    """Rows of batches alone, then one a model and batch size; all take turns `--pairs` times."""
    yield from batches_alone(flags)
    if flags.alone:
        return
    with tempfile.TemporaryDirectory() as scratch:
        pictures = Path(scratch) / "pictures"
        for i, path in enumerate(bench_pictures.make(pictures, flags.pictures, flags.photos)):
            path.with_suffix(".txt").write_text(CAPTIONS[i % len(CAPTIONS)])
        for name in flags.models:
            for batch in flags.batches:
                say(f"{name}, batch {batch}")
                text = dataclasses.replace(MODELS[name].text, vocab_size=VOCAB_SIZE)
                model = dataclasses.replace(MODELS[name], text=text)  # that reads real captions
                recipe = Recipe(
                    steps=flags.steps,
                    batch_size=batch,
                    warmup=10,
                    log_every=1,
                    save_every=flags.steps,
                    evaluate_every=flags.steps,
                    dtype=flags.precision,
                    remat=flags.remat,
                    text_length=model.text.context_length,
                    model=model,
                )
                turns = [
                    measured(
                        recipe, pictures, flags.readers, Path(scratch) / f"{name}-{batch}-{turn}"
                    )
                    for turn in range(flags.pairs)
                ]
                middle = sorted(turns, key=lambda found: found[RUN])[len(turns) // 2]
                what = {"model": name, "batch": batch, "precision": flags.precision}
                what |= {"decoder": recipe.decoder, "readers": flags.readers}
                yield {**what, "measured": middle}


def batches_alone(flags: Flags) -> Iterator[dict[str, Any]]:
    """A row a size of picture, size of crop and decoder."""
    for photo in PHOTOS:
        share = PHOTOS[0][0] * PHOTOS[0][1] / (photo[0] * photo[1])  # as many pixels of each size
        count = max(BATCH, round(share * flags.pictures) // BATCH * BATCH)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "pictures"
            files = bench_pictures.make_photographs(folder, count, photo, flags.photos)
            for path in files:
                path.with_suffix(".txt").write_text(CAPTIONS[0])
            for size in flags.sizes:
                say(f"{photo[0]} x {photo[1]} to {size}")
                what = {"pictures": f"{photo[0]} x {photo[1]}", "crop": size}
                for name, found in _decoders_in_turn(folder, files, size, flags).items():
                    yield {**what, "decoder": name, "readers": flags.readers, "measured": found}


def _decoders_in_turn(
    folder: Path, files: Sequence[Path], size: int, flags: Flags
) -> dict[str, dict[str, float]]:
    """{decoder: what was measured}, the full one first."""
    sides = {
        name: functools.partial(_read, folder, size, name, flags.readers, len(files))
        for name in dict.fromkeys(("full", *flags.decoders))
    }
    seconds = in_turn(sides, flags.pairs)
    found = {}
    for name, taken in seconds.items():
        ratios = [full.cpu / own.cpu for full, own in zip(seconds["full"], taken, strict=True)]
        found[name] = {
            "images/s a core": round(len(files) / statistics.median(s.cpu for s in taken)),
            "images/s": round(len(files) / statistics.median(s.wall for s in taken)),
            "times the full decode": spread(ratios)["median"],
            **_pixel_error(files[:PICTURES_COMPARED], size, name),
        }
    return found


def _read(folder: Path, size: int, decoder: str, readers: int, count: int) -> None:
    """Make the batches of `count` pictures."""
    stream = _stream(folder, size, BATCH, 32, readers, decoder)
    for _ in prefetch(stream, count // BATCH, lambda batch: batch):
        pass


def _pixel_error(files: Sequence[Path], size: int, decoder: str) -> dict[str, float]:
    """Mean and greatest difference from the full decode, in steps of 8 bits."""
    differences = []
    for path in files:
        made = (
            CROPS[name](path.read_bytes(), size, np.random.default_rng(0))
            for name in ("full", decoder)
        )
        full, other = (crop.astype(np.int16) for crop in made)
        differences.append(np.abs(full - other))
    return {
        "mean error, of 255": round(float(np.mean(differences)), 2),
        "greatest error": int(np.max(differences)),
    }


def measured(recipe: Recipe, pictures: Path, readers: int, run: Path) -> dict[str, float]:
    """The three rates, and the share of a run that is waiting for data."""
    alone = _step_alone(recipe)
    stream = _stream_of(recipe, pictures, readers)
    pipeline = _rate(
        recipe, lambda: sum(1 for _ in prefetch(stream, recipe.steps, lambda batch: batch))
    )
    run.mkdir(parents=True)
    (run / "config.json").write_text(recipe.to_json())
    mesh = data_mesh(jax.devices()[:1])
    loop.train(
        recipe, _stream_of(recipe, pictures, readers), run, mesh=mesh, execution=Execution(keep=1)
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


def _stream(
    pictures: Path, size: int, batch: int, text_length: int, readers: int, decoder: str
) -> PairStream:
    return PairStream(
        [read_caption_folder(pictures)],
        size=size,
        batch_size=batch,
        seed=0,
        text_length=text_length,
        skips=Skips(0),
        decoder=decoder,
        threads=readers,
    )


def _stream_of(recipe: Recipe, pictures: Path, readers: int) -> PairStream:
    size, length = recipe.model.vision.image_size, recipe.text_length
    return _stream(pictures, size, recipe.batch_size, length, readers, recipe.decoder)


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
