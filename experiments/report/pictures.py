"""What a report shows of pictures: right and wrong answers, similarities, where the model looks."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments.report import markup
from jaxclip.data.labelled import Labelled, open_labelled
from jaxclip.data.spec import parse_spec
from jaxclip.evaluation.attention import attention_map
from jaxclip.images.open import decode_image, to_rgb
from jaxclip.reference import l2_normalize
from jaxclip.tokenizer import tokenize

SHOWN = 96  # pixels a side at most
EACH = 8  # right ones, and as many wrong ones


@dataclasses.dataclass(frozen=True)
class Shown:
    """A picture in a report, in RGB: what it is, what was said of it, and how sure."""

    image: Image.Image
    label: str
    said: str = ""
    score: float = 0.0

    @property
    def small(self) -> np.ndarray:
        """uint8 [h, w, 3], no larger than SHOWN."""
        shown = self.image.copy()
        shown.thumbnail((SHOWN, SHOWN))
        return np.asarray(shown)


def chosen(predictions: dict[str, np.ndarray], seed: int = 0) -> list[int]:
    """Rows of up to EACH right and EACH wrong answers, of as many labels as there are."""
    label, said = predictions["label"], predictions["top"][:, 0]
    rng = np.random.default_rng(seed)
    rows: list[int] = []
    for which in (label == said, label != said):
        candidates = rng.permutation(np.flatnonzero(which))
        _, first = np.unique(label[candidates], return_index=True)
        order = np.concatenate([np.sort(first), np.setdiff1d(np.arange(len(candidates)), first)])
        rows += candidates[order[:EACH].astype(int)].tolist()
    return rows


def answered(
    source: Labelled, predictions: dict[str, np.ndarray], classes: Sequence[str], skipped: int
) -> list[Shown]:
    """Right and wrong answers with their pictures; one that cannot be found again is left out."""
    shown = []
    for row in chosen(predictions):
        image = _found(source, row, str(predictions["where"][row]), skipped)
        if image is not None:
            label, said = int(predictions["label"][row]), int(predictions["top"][row, 0])
            score = float(predictions["score"][row, 0])
            shown.append(Shown(image, classes[label], classes[said], score))
    return shown


def _found(source: Labelled, row: int, where: str, skipped: int) -> Image.Image | None:
    """The picture that stood at `row` among those that counted: as many later as were skipped."""
    for i in range(row, min(row + skipped + 1, len(source))):
        example = source[i]
        if example.where == where:
            return _picture(example.image)
    return None


def _picture(content: bytes) -> Image.Image | None:
    """A picture in RGB, or None if it cannot be decoded."""
    try:
        return to_rgb(decode_image(content))
    except ValueError:
        return None


def some(source: Labelled, count: int = EACH, seed: int = 0) -> list[Shown]:
    """Pictures of different classes, for a run that was not asked about any."""
    shown: dict[str, Shown] = {}
    for i in np.random.default_rng(seed).permutation(len(source))[: 50 * count]:
        example = source[int(i)]
        if 0 <= example.label < len(source.names) and len(shown) < count:
            name = source.names[example.label].replace("_", " ")
            if name not in shown and (image := _picture(example.image)) is not None:
                shown[name] = Shown(image, name)
    return list(shown.values())


def opened(data: str, data_dir: Path | None, columns: Mapping[str, Any]) -> Labelled:
    """The labelled pictures that --data names; `columns` as in result.json, or empty."""
    image, label = (str(columns.get(name, name)) for name in ("image", "label"))
    return open_labelled(parse_spec(data), data_dir, image=image, label=label)


def answers_section(shown: Sequence[Shown]) -> str:
    """Right ones with a green frame, then wrong ones with a red one."""
    asked = [x for x in shown if x.said]
    right = [(x.small, f"{x.said} ({x.score:.2f})", "right") for x in asked if x.said == x.label]
    wrong = [
        (x.small, f"said: {x.said} ({x.score:.2f}); is: {x.label}", "wrong")
        for x in asked
        if x.said != x.label
    ]
    groups = (("Answered right, with the score.", right), ("Answered wrong.", wrong))
    return "".join(markup.note(words) + markup.pictures(items) for words, items in groups if items)


def similarity_section(
    model: Any, preprocess: Any, shown: Sequence[Shown], templates: Sequence[str]
) -> str:
    """Cosines of the pictures with the names of all of them, in the first template."""
    names = list(dict.fromkeys(x.label for x in shown))
    template = templates[0] if templates else "{}"
    length = model.config.text.context_length
    tokens = tokenize([template.format(name) for name in names], length, truncate=True)
    I_e = l2_normalize(np.asarray(model.encode_image(_pixels(preprocess, shown))))
    T_e = l2_normalize(np.asarray(model.encode_text(tokens)))
    caption = markup.note(f"Cosine of each picture with each name, as {template!r}.")
    return caption + markup.matrix([x.small for x in shown], names, I_e @ T_e.T)


def attention_section(model: Any, preprocess: Any, shown: Sequence[Shown]) -> str:
    """The pictures as the model sees them, dark where it does not look."""
    pixels = _pixels(preprocess, shown)
    maps = np.asarray(jax.jit(attention_map)(model, pixels))  # [n, rows, columns]
    rows, columns = maps.shape[1:]
    if rows * columns == 1:
        return markup.note(
            "The last grid of this tower is a single cell: there is nowhere to look."
        )
    items = []
    for x, weights in zip(shown, maps, strict=True):
        size = (192, 192)
        square = np.asarray(
            _square(x.image, preprocess.size).resize(size, Image.Resampling.BICUBIC)
        )
        heat = Image.fromarray((weights / weights.max()).astype(np.float32))
        heat = np.asarray(heat.resize(size, Image.Resampling.BILINEAR))[..., None]
        lit = square * (0.15 + 0.85 * np.clip(heat, 0, 1))
        items.append((np.round(lit).astype(np.uint8), x.label, ""))
    caption = markup.note(
        f"Brightness is the weight of a grid of {rows} by {columns}, the most looked-at cell full."
    )
    return caption + markup.pictures(items)


def _pixels(preprocess: Any, shown: Sequence[Shown]) -> np.ndarray:
    return np.stack([preprocess.safe(x.image) for x in shown])


def _square(image: Image.Image, size: int) -> Image.Image:
    """The square in the middle that the model sees."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    cut = image.crop((left, top, left + side, top + side))
    return cut.resize((size, size), Image.Resampling.BICUBIC)
