"""The parity ladder: two implementations compared stage by stage, from the stem to the logits.

A stage is a rung. The rungs of a model are a flat dict, in the order in which they are computed:
`tokens`, `pixels`, then for each tower `image.stem`, `image.block.0`, ... (or `image.layer1`, ...),
`image.pooled`, `image.features`, the same of `text`, then `image_embeds`, `text_embeds`, `logits`.
The judge is `reference` in float64. A recorded ladder is one safetensors file of rungs.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclip import checkpoint, reference
from jaxclip.config import ClipConfig, ResNetConfig
from jaxclip.models import clip

Rungs = dict[str, np.ndarray]
FORMAT = "jaxclip-ladder-1"

# Largest error that counts as rounding, over the largest value of the rung, in float32. Torch's own
# float32 departs from float64 by about a tenth of each; a wrong epsilon or activation, by a hundred
# times as much. The larger a ResNet, the more its features grow and cancel.
BOUND_TRANSFORMER = 2e-5
BOUND_RESNET = 5e-5
BOUND_WIDE_RESNET = 1.5e-4  # stems wider than RN50's
# what the reference calls a stage -> what the Flax modules call it
SAME_STAGE = {"ln_post": "pooled", "mean": "pooled", "ln_final": "last"}


@dataclasses.dataclass(frozen=True)
class Rung:
    """One stage compared: the largest value expected, the largest difference, what is allowed.

    `error` and `largest` are absolute, `relative` and `bound` are over `largest`.
    """

    name: str
    largest: float
    error: float
    bound: float

    @property
    def relative(self) -> float:
        """error / largest; infinite where something is not finite."""
        return self.error / self.largest if self.largest > 0 else float(self.error > 0)

    @property
    def holds(self) -> bool:
        """Whether the two agree."""
        return bool(self.relative <= self.bound)


def bound(config: ClipConfig) -> float:
    """The relative error that counts as rounding, for an image tower of this kind."""
    vision = config.vision
    if not isinstance(vision, ResNetConfig):
        return BOUND_TRANSFORMER
    return BOUND_RESNET if vision.width <= 64 else BOUND_WIDE_RESNET


def model_rungs(model: clip.Clip, images: np.ndarray, tokens: np.ndarray) -> Rungs:
    """Every stage of a Flax model for images [n, h, w, c] and tokens [m, l], as NumPy arrays."""

    def run(model: clip.Clip, images: Any, tokens: Any) -> Any:
        image_features, image = model.visual(images, intermediates=True)
        text_features, text = model.text(tokens, intermediates=True)
        image, text = {**image, "features": image_features}, {**text, "features": text_features}
        embeds, logits = model.embed(images, tokens), model(images, tokens)[0]
        return image, text, embeds, logits

    image, text, embeds, logits = jax.jit(run)(model, images, tokens)
    rungs = {"tokens": tokens, "pixels": images, **_tower("image", image), **_tower("text", text)}
    rungs |= {"image_embeds": embeds[0], "text_embeds": embeds[1], "logits": logits}
    return {name: np.asarray(value) for name, value in rungs.items()}


def _tower(tower: str, seen: Mapping[str, Any]) -> dict[str, Any]:
    """Names of one tower's rungs: a stack of hidden states becomes one rung a block."""
    order = ("stem", "hidden", "layer1", "layer2", "layer3", "layer4", "last", "pooled", "features")
    rungs: dict[str, Any] = {}
    for stage in order:
        if stage == "hidden" and stage in seen:
            rungs |= {f"{tower}.block.{i}": x for i, x in enumerate(seen[stage])}
        elif stage in seen:
            rungs[f"{tower}.{stage}"] = seen[stage]
    return rungs


def reference_rungs(
    flat: Mapping[str, np.ndarray], config: ClipConfig, images: np.ndarray, tokens: np.ndarray
) -> Rungs:
    """Every stage of the NumPy reference in float64.

    Args:
      flat: parameters by official name, one entry a layer, of any float dtype.
      config: the model's.
      images: [n, h, w, c], preprocessed.
      tokens: [m, l].
    """
    params = checkpoint.nest({name: np.asarray(x, np.float64) for name, x in flat.items()})
    pixels = np.asarray(images, np.float64)
    image: dict[str, np.ndarray] = {}
    text: dict[str, np.ndarray] = {}
    visual, words = params["visual"], params["text"]
    if isinstance(config.vision, ResNetConfig):
        reference.modified_resnet(pixels, visual, heads=config.vision.heads, taps=image)
    else:
        heads = config.vision.heads
        reference.vision_transformer(
            pixels, visual, heads=heads, activation=config.activation, taps=image
        )
    if config.text.kind == "cbow":
        reference.continuous_bag_of_words(tokens, words, taps=text)
    else:
        reference.text_transformer(
            tokens, words, heads=config.text.heads, activation=config.activation, taps=text
        )
    I_e, T_e = (reference.l2_normalize(seen["features"]) for seen in (image, text))
    rungs = {"tokens": tokens, "pixels": pixels}
    for tower, seen in (("image", image), ("text", text)):
        rungs |= {f"{tower}.{SAME_STAGE.get(stage, stage)}": x for stage, x in seen.items()}
    scale = np.exp(params["logit_scale"])
    return {**rungs, "image_embeds": I_e, "text_embeds": T_e, "logits": scale * I_e @ T_e.T}


def compare(
    got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], bound: float
) -> list[Rung]:
    """The rungs that both ladders have, in the order of `got`; tokens must be equal.

    ValueError when they share no rung, or a shared one has two shapes.
    """
    shared = [name for name in got if name in expected]
    if not shared:
        raise ValueError(
            f"the two ladders share no rung: {', '.join(list(got)[:3])}, ... came and "
            f"{', '.join(list(expected)[:3])}, ... was expected"
        )
    return [_rung(name, got[name], expected[name], bound) for name in shared]


def _rung(name: str, got: np.ndarray, expected: np.ndarray, bound: float) -> Rung:
    if got.shape != expected.shape:
        raise ValueError(f"{name}: shape {got.shape} came, {expected.shape} was expected")
    difference = np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64)).max()
    error = float(difference) if np.isfinite(difference) else float("inf")
    largest = float(np.abs(np.asarray(expected, np.float64)).max())
    return Rung(name, largest, error, 0.0 if name == "tokens" else bound)


def first_departure(rungs: Sequence[Rung]) -> Rung | None:
    """The first rung that does not hold, or None: where to look for the mistake."""
    return next((rung for rung in rungs if not rung.holds), None)


def record(path: Path, rungs: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> None:
    """Write a ladder, with what made it, as one safetensors file, for `recorded` to read."""
    metadata = {"format": FORMAT, "notes": json.dumps(dict(notes))}
    checkpoint.save_arrays(path, rungs, metadata)


def recorded(path: Path) -> tuple[Rungs, dict[str, Any]]:
    """(rungs, notes) of a file that `record` wrote; ValueError if it is none."""
    arrays, metadata = checkpoint.load_arrays(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {metadata.get('format')!r} came, {FORMAT!r} was expected; record a "
            "ladder with jaxclip verify MODEL --record FILE"
        )
    if "pixels" not in arrays or "tokens" not in arrays:
        raise ValueError(f"{path} holds no pixels and tokens, so nothing can be run against it")
    return arrays, json.loads(metadata.get("notes", "{}"))


def in_force() -> str:
    """Backend, versions and matrix-product precision, in words, for beside the numbers."""
    precision = getattr(jax.config, "jax_default_matmul_precision", None) or "default"
    return f"{jax.default_backend()}, jax {jax.__version__}, default matmul precision {precision}"


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
            rung = _rung("published logits", np.asarray(logits), expected, 1.0)
            return dataclasses.replace(rung, bound=known.tolerance / rung.largest)
    return None
