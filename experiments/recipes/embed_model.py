"""How a finished run becomes the embedded model, and how well that model does.

Question:  which weights travel inside the repository, how large are they, how sure may they be?
Command:   jaxclip train emoji ICONS.zip --preset full --average 0.999 --out RUN
           python -m experiments.embed_model RUN --icons ICONS.zip
Result:    jaxclip/data_files/emoji.safetensors: weights in float16, of the token table only the
           rows that captions use; docs/embedded.json: scores with their floors on every set.

The logit scale is fitted on what training held out, with 20 labels a picture, drawings as they are
and painted in equal parts: in training the temperature suits pictures and captions that are known.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tyro.conf import Positional

from experiments.lib.common import run_experiment
from jaxclip import checkpoint
from jaxclip.data.emoji.batches import TEMPLATES
from jaxclip.data.emoji.icons import HELD_OUT, as_rgba, caption_names, load_held_out, load_icons
from jaxclip.data.emoji.paint import paint_drawings
from jaxclip.data.emoji.pictures import (
    EmojiPictures,
    load_emoji,
    load_unseen_artist,
    select_names,
)
from jaxclip.evaluation.calibration import (
    at_scale,
    calibration_error,
    fit_logit_scale,
    with_others,
)
from jaxclip.evaluation.metrics import Tally, top_k
from jaxclip.evaluation.named_pictures import Evaluation, nearest_pixels
from jaxclip.hub.load import load
from jaxclip.tokenizer import tokenize

TARGET = Path("jaxclip/data_files/emoji.safetensors")
RECORD = Path("docs/embedded.json")
LABELS = 20  # a picture, where probabilities are judged


@dataclasses.dataclass(frozen=True)
class Flags:
    run: Positional[Path]
    """a finished run folder; its moving average is taken where it has one"""
    icons: Path | None = None
    """the zip of icons that the run was trained on beside the emoji"""


def training_pictures(icons: Path | None) -> list[EmojiPictures]:
    """All sets of drawings that a run was trained on."""
    return [load_emoji("train"), *(load_icons(icons) if icons else ())]


def used_rows(pictures: Iterable[EmojiPictures], context: int) -> np.ndarray:
    """The token ids of all captions, keywords and templates, increasing."""
    texts = {t.format("") for t in TEMPLATES}
    for part in pictures:
        texts |= {*part.names, *(word for words in part.keywords for word in words)}
    return np.unique(tokenize(sorted(texts), context_length=context, truncate=True))


def held_out(icons: Path | None) -> dict[str, EmojiPictures]:
    """The sets that training did not see, by name; classes are the names of a set."""
    training = load_emoji("train").names
    sets = {"emoji, held out": select_names(load_emoji("validation"), training)}
    if icons:
        known = caption_names(icons) | set(training)
        sets |= {artist: load_held_out(icons, artist, known) for artist in HELD_OUT}
    return sets


def painted(pictures: EmojiPictures, size: int) -> EmojiPictures:
    """The pictures as training paints and places them; black ones get a colour."""
    n = len(pictures.names)
    black = np.repeat(not pictures.images[..., :3].any(), n)
    made = paint_drawings(jax.random.key(1), pictures.images, black, size, np.zeros(n, bool))
    opaque = np.full((n, size, size, 1), 255, np.uint8)
    colours = np.asarray(made * 255).round().astype(np.uint8)
    return dataclasses.replace(pictures, images=np.concatenate([colours, opaque], axis=-1))


class Judged:
    """A model's cosines [n, classes] on a set of pictures, and what is right."""

    def __init__(self, model: Any, pictures: EmojiPictures) -> None:
        evaluation = Evaluation(pictures, pictures.names)
        image_embeds, text_embeds = evaluation.embeds(model)
        self.cosines, self.answers = image_embeds @ text_embeds.T, evaluation.answers

    def among_few(self) -> tuple[np.ndarray, np.ndarray]:
        """(cosines [n, LABELS] of the right label, which is the first, and others; answers)."""
        labels = with_others(self.answers, self.cosines.shape[1], LABELS)
        return np.take_along_axis(self.cosines, labels, axis=1), np.zeros(len(labels), int)

    def accuracy(self) -> dict[str, Any]:
        """Top-1 and top-5 over all classes, with bootstrap intervals."""
        tally = Tally(self.cosines.shape[1])
        tally.add(self.answers, top_k(self.cosines, 5)[0])
        scores = tally.metrics()
        return {
            name: {"value": scores[name], "interval": tally.interval(name)}
            for name in ("top1", "top5")
        }


def calibrate(model: Any, sets: dict[str, EmojiPictures]) -> tuple[float, dict[str, Any]]:
    """(the log scale, {set: the calibration error before and after}), with LABELS labels each."""
    size = model.config.vision.image_size
    seen = sets | {f"{name}, painted": painted(x, size) for name, x in sets.items()}
    few = {name: Judged(model, pictures).among_few() for name, pictures in seen.items()}
    every = [np.concatenate(part) for part in zip(*few.values(), strict=True)]
    fitted, before = fit_logit_scale(*every), float(model.logit_scale[...])
    errors = {
        name: {
            label: calibration_error(at_scale(cosines, scale), answers)
            for label, scale in (("before", before), ("after", fitted))
        }
        for name, (cosines, answers) in few.items()
    }
    return fitted, {"labels": LABELS, "log_scale": [before, fitted], "errors": errors}


def score(
    model: Any, sets: dict[str, EmojiPictures], training: Sequence[EmojiPictures]
) -> dict[str, Any]:
    """{set: accuracy, its floor by pixels, chance}, on drawings as they are."""
    rows = {}
    for name, pictures in sets.items():
        names = set(pictures.names)
        known = [
            dataclasses.replace(part, images=as_rgba(part.images))
            for part in (select_names(x, names) for x in training)
            if part.names
        ]
        floor = nearest_pixels(pictures, _joined(known))
        rows[name] = {
            "pictures": len(pictures.names),
            "classes": len(names),
            **Judged(model, pictures).accuracy(),
            "pixel nearest neighbour": floor["top1"],
            "chance": 1 / len(names),
        }
    return rows


def _joined(parts: Sequence[EmojiPictures]) -> EmojiPictures:
    return EmojiPictures(
        np.concatenate([part.images for part in parts]),
        tuple(name for part in parts for name in part.names),
        tuple(words for part in parts for words in part.keywords),
        tuple(file for part in parts for file in part.files),
    )


def work(flags: Flags) -> None:
    """Judge the run's model, fit its scale, write what of it travels and how well it does."""
    average = flags.run / "average.safetensors"
    source = average if average.is_file() else flags.run / "model.safetensors"
    flat, config, notes = checkpoint.load(source)
    model, _ = load(str(source))
    sets = held_out(flags.icons)
    log_scale, notes["calibration"] = calibrate(model, sets)
    flat["logit_scale"] = np.float32(log_scale)
    notes["scores"] = json.loads((flags.run / "result.json").read_text())["scores"]["model"]
    training = training_pictures(flags.icons)
    rows = used_rows(training, config.text.context_length)
    half = {name: np.asarray(array).astype(np.float16) for name, array in flat.items()}
    checkpoint.save(TARGET, checkpoint.keep_rows(half, rows), config, notes)
    print(f"{TARGET}: {TARGET.stat().st_size / 1e6:.1f} MB, {len(rows)} rows of the token table")
    told = score(model, sets | {"the unseen artist": load_unseen_artist()}, training)
    record = {"scores": told, "calibration": notes["calibration"], "icons": bool(flags.icons)}
    with checkpoint.replacing(RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    for name, row in told.items():
        floor = 100 * row["pixel nearest neighbour"]
        print(f"{name}: top-1 {100 * row['top1']['value']:.1f} %, by pixels {floor:.1f} %")


def main(given: Sequence[str]) -> int:
    """The command line; the exit code."""
    return run_experiment(work, Flags, given, "embed_model", __doc__)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
