"""Logits that others published for the released models."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxclip.parity.ladder import Rung, compare_stage


@dataclasses.dataclass(frozen=True)
class Published:
    """Logits that others published for one picture and some texts, one row a released model.

    They were computed in float16, hence the wide `tolerance`, absolute, in logits.
    """

    picture_sha256: str
    texts: tuple[str, ...]
    logits: Mapping[str, tuple[float, ...]]
    tolerance: float
    source: str


DIAGRAM_DOG_CAT = ("a diagram", "a dog", "a cat")
PUBLISHED = (
    Published(
        "308a3ca4503f1c7a07803916c369d78c4ef501e5ab7fc727da9b5e1d2f9ec85b",  # CLIP.png
        DIAGRAM_DOG_CAT,
        {"ViT-B/32": (25.552786, 20.089888, 19.749457)},
        0.01,  # computed in float32
        "99991/NPCLIP data/*.npy; probabilities as in openai/CLIP README.md",
    ),
    Published(
        "aeb03d243a32cda1caea135dcb3d794bc7f184eb7e2373a55587543cacc92e4b",  # cat.jpg
        DIAGRAM_DOG_CAT,
        {
            "RN50": (12.2088346, 14.9655876, 21.0058422),
            "RN101": (35.2729797, 36.0812988, 42.8816681),
            "RN50x4": (27.0689335, 29.3602104, 35.6379929),
            "RN50x16": (16.3668022, 20.4796104, 27.0634518),
            "RN50x64": (8.9237432, 14.1180887, 20.0675087),
            "ViT-B/32": (17.3713417, 19.5949516, 25.5068512),
            "ViT-B/16": (17.9823151, 20.7719479, 26.9038792),
            "ViT-L/14": (11.9254637, 15.6604385, 22.6723843),
            "ViT-L/14@336px": (10.9720955, 13.5543489, 21.4815979),
        },
        0.2,
        "ivy-llc/models ivy_models_tests/clip/test_clip.py, computed in float16",
    ),
)


def published_rung(
    model: str, picture_sha256: str, texts: Sequence[str], logits: np.ndarray
) -> Rung | None:
    """Our logits [m] beside the published ones, or None if nobody published these.

    Args:
      model: the name of a released model, whose very weights were loaded.
      picture_sha256: of the picture's file.
      texts: m texts, in any order.
      logits: [m], of the picture with each text.
    """
    for known in PUBLISHED:
        same = known.picture_sha256 == picture_sha256 and set(known.texts) == set(texts)
        if same and model in known.logits:
            place = [known.texts.index(text) for text in texts]
            expected = np.array(known.logits[model])[place]
            rung = compare_stage("published logits", np.asarray(logits), expected, 1.0)
            return dataclasses.replace(rung, bound=known.tolerance / rung.largest)
    return None
