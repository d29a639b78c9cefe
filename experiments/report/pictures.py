"""What a report shows of pictures: right and wrong answers, similarities, where the model looks."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxclip.data.labelled import Labelled, open_labelled
from jaxclip.data.spec import parse_spec
from jaxclip.evaluation.attention import attention_map
from jaxclip.images.open import decode_image, to_rgb
from jaxclip.reference import l2_normalize

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
    def small(self) -> Image.Image:
        """The picture, no larger than SHOWN."""
        shown = self.image.copy()
        shown.thumbnail((SHOWN, SHOWN))
        return shown


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


def open_(data: str, data_dir: Path | None, columns: Mapping[str, Any]) -> Labelled:
    """The labelled pictures that --data names; `columns` as in result.json, or empty."""
    image, label = (str(columns.get(name, name)) for name in ("image", "label"))
    return open_labelled(parse_spec(data), data_dir, image=image, label=label)


Captioned = tuple[Image.Image, str, str]  # picture, caption, "right", "wrong" or ""


def answers(shown: Sequence[Shown]) -> list[tuple[str, list[Captioned]]]:
    """The right ones and the wrong ones, each with a caption; without those that have none."""
    right = [(x.small, f"{x.said} ({x.score:.2f})", "right") for x in shown if x.said == x.label]
    wrong = [
        (x.small, f"said: {x.said} ({x.score:.2f}); is: {x.label}", "wrong")
        for x in shown
        if x.said != x.label
    ]
    groups = [("Answered right, with the score.", right), ("Answered wrong.", wrong)]
    return [(caption, items) for caption, items in groups if items]


def similarity(
    model: Any, preprocess: Any, shown: Sequence[Shown], template: str
) -> dict[str, Any]:
    """Cosines of the pictures with the names of all of them, as a table with shades from 0 to 1."""
    names = list(dict.fromkeys(x.label for x in shown))
    tokens = model.tokenize([template.format(name) for name in names], truncate=True)
    I_e = l2_normalize(np.asarray(model.encode_image(_pixels(preprocess, shown))))
    T_e = l2_normalize(np.asarray(model.encode_text(tokens)))
    cosines = I_e @ T_e.T  # [n, names]
    shades = np.round((cosines - cosines.min()) / (np.ptp(cosines) or 1), 3)
    rows = [
        (x.small, list(zip(*pair, strict=True)))
        for x, *pair in zip(shown, cosines.tolist(), shades.tolist(), strict=True)
    ]
    return {"template": repr(template), "names": names, "rows": rows}


def attention(model: Any, preprocess: Any, shown: Sequence[Shown]) -> dict[str, Any]:
    """The pictures, dark where the model does not look; none where its grid is a single cell."""
    weights = np.asarray(jax.jit(attention_map)(model, _pixels(preprocess, shown)))
    grid = weights.shape[1:]
    if grid == (1, 1):
        return {"grid": grid, "maps": []}
    size, maps = (192, 192), []
    for x, weight in zip(shown, weights, strict=True):
        square = Image.fromarray(preprocess.denormalise(preprocess.safe(x.image))).resize(
            size, Image.Resampling.BICUBIC
        )
        heat = Image.fromarray((weight / weight.max()).astype(np.float32))
        heat = np.asarray(heat.resize(size, Image.Resampling.BILINEAR))[..., None]
        lit = np.asarray(square) * (0.15 + 0.85 * np.clip(heat, 0, 1))
        maps.append((Image.fromarray(np.round(lit).astype(np.uint8)), x.label, ""))
    return {"grid": grid, "maps": maps}


def _pixels(preprocess: Any, shown: Sequence[Shown]) -> np.ndarray:
    return np.stack([preprocess.safe(x.image) for x in shown])
