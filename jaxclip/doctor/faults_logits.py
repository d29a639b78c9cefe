"""The table of faults: from features to logits."""

import math
from collections.abc import Iterable

from jaxclip.doctor.pitfall import Member, Pitfall, Place


def _clips(place: Place) -> Iterable[Member]:
    yield Member({"scale": "clipped", "clip": 100.0}, "", "the scale is clipped at 100")
    yield Member(
        {"scale": "clipped", "clip": math.log(100.0)}, "", "the scale is clipped at ln 100"
    )


FAULTS = (
    Pitfall(
        "scale-not-exponentiated",
        ("logits",),
        "the cosines are multiplied by the logarithm of the scale",
        ({"scale": "as it is"},),
        sees="Logits about 4.6 times the cosines in place of 100: nearly equal probabilities.",
        why="The parameter `logit_scale` is a logarithm.",
        fix="Multiply by `exp(logit_scale)`.",
        test="Logits, not the order of the classes, which stays.",
    ),
    Pitfall(
        "scale-missing",
        ("logits",),
        "the cosines are not scaled",
        ({"scale": "none"},),
        sees="Logits between -1 and 1, nearly equal probabilities.",
        why="Cosine similarity is taken for the logits.",
        fix="Multiply by `exp(logit_scale)`.",
        test="Logits, not the order of the classes, which stays.",
    ),
    Pitfall(
        "scale-clipped",
        ("logits",),
        "the scale is clipped to another value",
        _clips,
        sees="Logits in proportion to the right ones.",
        why="Training clips the factor at 100 (section 2.5); the clip belongs to training, and to "
        "the factor, not to its logarithm.",
        fix="Use the trained `logit_scale` as it is.",
        test="Logits of a model whose scale is beyond the clip.",
    ),
    Pitfall(
        "scale-inverted",
        ("logits",),
        "the cosines are divided by the scale",
        ({"scale": "inverse"},),
        sees="Nearly equal probabilities.",
        why="A temperature divides, CLIP's scale multiplies.",
        fix="Multiply by `exp(logit_scale)`.",
        test="Logits.",
    ),
    Pitfall(
        "softmax-axis",
        ("logits",),
        "the logits are transposed, or probabilities over the wrong axis",
        (
            {"transposed": True},
            {"softmax": "images"},
            {"softmax": "images", "transposed": True},
            {"softmax": "texts", "transposed": True},
        ),
        sees="Probabilities of a picture do not sum to one.",
        why="`logits_per_text` for `logits_per_image`, or `softmax(dim=0)`.",
        fix="A row is a picture; softmax over the texts, axis 1.",
        test="More texts than pictures.",
    ),
    Pitfall(
        "probabilities-for-logits",
        ("logits",),
        "the logits are probabilities already",
        ({"softmax": "texts"},),
        sees="Rows that sum to one.",
        why="The function returns what `softmax` made of the logits.",
        fix="Record what comes before the softmax.",
        test="The sum of a row.",
    ),
    Pitfall(
        "logits-not-normalised",
        ("logits",),
        "the features are not divided by their length before the product",
        ({"normalised": False},),
        sees="Logits of thousands; long features win.",
        why="`encode_image` returns raw features.",
        fix="Divide both by their length first.",
        test="Logits lie between -exp(t) and exp(t).",
    ),
)
