"""The parity ladder: two implementations compared stage by stage, from the stem to the logits.

A stage is a rung. The rungs of a model are a flat dict, in the order in which they are computed:
`tokens`, `pixels`, then for each tower `image.stem`, `image.block.0`, ... (or `image.layer1`, ...),
`image.pooled`, `image.features`, the same of `text`, then `image_embeds`, `text_embeds`, `logits`.
The judge is `reference` in float64. What counts as rounding follows, stage by stage, from what
float32 does to the reference. A recorded ladder is one safetensors file of rungs.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclip import checkpoint, reference
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.files import open_regular
from jaxclip.models import clip
from jaxclip.tokenizer import check_vocabulary

Rungs = dict[str, np.ndarray]
FORMAT = "jaxclip-ladder-1"
VARIANT = set(reference.Variant._fields)  # names of the configs' fields, but for the epsilon's

# What counts as rounding, over the largest value of a stage: MARGIN times the error of another
# program's float32 (the reference's; torch's in experiments/proofs/parity_table.py) and FLOOR. Sums
# in another order, and Winograd's convolutions, cost up to 2.5 times the reference's float32; a
# wrong epsilon or activation departs by a hundred times as much.
MARGIN = 4
FLOOR = 2e-5
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
        """error / largest; infinite where something is not finite, or where zero is expected."""
        if self.error == 0:
            return 0.0
        return self.error / self.largest if self.largest > 0 else float("inf")

    @property
    def holds(self) -> bool:
        """Whether the two agree."""
        return bool(self.relative <= self.bound)


def allowed(float32_error: float) -> float:
    """The relative error that counts as rounding, given that of another program's float32.

    FLOOR alone where that is no number: a stage that float32 cannot hold proves nothing.
    """
    return FLOOR + (MARGIN * float32_error if np.isfinite(float32_error) else 0.0)


def bounds(
    single: Mapping[str, np.ndarray],
    double: Mapping[str, np.ndarray],
    more: Sequence[Mapping[str, np.ndarray]] = (),
) -> dict[str, float]:
    """{stage: `allowed`} from the reference's rungs in float32 and in float64.

    more: rungs of other runs in float32, of some stages; the largest error of all runs counts.
    """
    found: dict[str, float] = {}
    for run in (single, *more):
        for rung in compare(run, double, dict.fromkeys(run, 0.0)):
            found[rung.name] = max(found.get(rung.name, 0.0), allowed(rung.relative))
    return found


def perturb_pool(
    flat: Mapping[str, np.ndarray],
    config: ClipConfig,
    single: Mapping[str, np.ndarray],
    double: Mapping[str, np.ndarray],
    draws: int = 8,
) -> list[Rungs]:
    """The stages after a ResNet's layer4, with other signs of float32's error there; [] for a ViT.

    Where a head of sharp attention is near a tie, an error of 1e-7 becomes one of 1e-5. Its size
    depends on the signs: one run may depart by many times as much as another.
    """
    if not isinstance(config.vision, ResNetConfig):
        return []
    with np.errstate(all="ignore"):  # what float32 cannot hold is judged by its own run
        return _perturb_pool(flat, config.vision.heads, single, double, draws)


def _perturb_pool(
    flat: Mapping[str, np.ndarray],
    heads: int,
    single: Mapping[str, np.ndarray],
    double: Mapping[str, np.ndarray],
    draws: int,
) -> list[Rungs]:
    params = checkpoint.nest({name: np.asarray(x, np.float64) for name, x in flat.items()})
    layer4, rng = double["image.layer4"], np.random.default_rng(0)
    error = single["image.layer4"] - layer4
    found: list[Rungs] = []
    for _ in range(draws):
        taps: dict[str, np.ndarray] = {}
        x = layer4 + rng.choice((-1.0, 1.0), error.shape) * error
        pool = params["visual"]["attnpool"]
        features = reference.attention_pool(x, pool, heads, taps)
        I_e = reference.l2_normalize(features)
        rungs = {"image.pooled": taps["pooled"], "image.features": features, "image_embeds": I_e}
        found.append(rungs | {"logits": reference.logits(I_e, double["text_embeds"], params)})
    return found


def judge(
    flat: Mapping[str, np.ndarray],
    config: ClipConfig,
    images: np.ndarray,
    tokens: np.ndarray,
    tell: Callable[[str], object] = lambda line: None,
) -> tuple[Rungs, dict[str, float]]:
    """(the reference's rungs in float64, the bound of every stage), for a model's flat parameters.

    The arguments are those of `reference_rungs`; `tell` is called with what is done next.
    """
    tell("running the reference in float64 ...")
    double = reference_rungs(flat, config, images, tokens)
    tell("running the reference in float32, for the bounds ...")
    single = reference_rungs(flat, config, images, tokens, np.float32)
    return double, bounds(single, double, perturb_pool(flat, config, single, double))


def _run(model: clip.Clip, images: Any, tokens: Any) -> Any:
    image_features, image = model.visual.stages(images)
    text_features, text = model.text.stages(tokens)
    image, text = {**image, "features": image_features}, {**text, "features": text_features}
    embeds = model.embed(images, tokens)
    logits = clip.similarity(model, *embeds)  # the model's own methods keep what they traced before
    return image, text, {"image_embeds": embeds[0], "text_embeds": embeds[1], "logits": logits}


def model_rungs(model: clip.Clip, images: np.ndarray, tokens: np.ndarray) -> Rungs:
    """Every stage of a Flax model for images [n, h, w, c] and tokens [m, l], as NumPy arrays."""
    run = jax.jit(lambda *inputs: _run(*inputs))  # a new function: nothing traced before is used
    image, text, ends = run(model, images, tokens)
    rungs = {"tokens": tokens, "pixels": images, **_tower("image", image), **_tower("text", text)}
    rungs |= {name: ends[name] for name in ("image_embeds", "text_embeds", "logits")}
    return {name: np.asarray(value) for name, value in rungs.items()}


def rung_shapes(
    config: ClipConfig, images: np.ndarray, tokens: np.ndarray
) -> dict[str, tuple[int, ...]]:
    """The shape of every stage of `model_rungs`; nothing is computed."""

    def run(model: clip.Clip, images: Any, tokens: Any) -> Any:
        image, text, ends = _run(model, images, tokens)
        return {**_tower("image", image), **_tower("text", text), **ends}

    shapes = jax.eval_shape(run, clip.abstract(config, remat="none"), images, tokens)
    return {name: shape.shape for name, shape in shapes.items()}


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
    flat: Mapping[str, np.ndarray],
    config: ClipConfig,
    images: np.ndarray,
    tokens: np.ndarray,
    dtype: Any = np.float64,
) -> Rungs:
    """Every stage of the NumPy reference.

    Args:
      flat: parameters by official name, one entry a layer, of any float dtype.
      config: the model's.
      images: [n, h, w, c], preprocessed.
      tokens: [m, l].
      dtype: that it computes in.
    """
    with np.errstate(all="ignore"):  # what overflows departs, by its number
        return _reference_rungs(flat, config, images, tokens, dtype)


def reference_options(tower: VisionConfig | TextConfig, activation: str) -> dict[str, Any]:
    """What `reference`'s transformers take beside inputs and parameters, for a tower's config."""
    fields = {name: getattr(tower, name) for name in vars(tower) if name in VARIANT}
    fields = {name: value for name, value in fields.items() if value is not None}
    variant = reference.Variant(epsilon=tower.layer_norm_epsilon, **fields)
    activation = tower.own_activation or activation
    return {"heads": tower.heads, "activation": activation, "variant": variant}


def _reference_rungs(
    flat: Mapping[str, np.ndarray],
    config: ClipConfig,
    images: np.ndarray,
    tokens: np.ndarray,
    dtype: Any,
) -> Rungs:
    params = checkpoint.nest({name: np.asarray(x, dtype) for name, x in flat.items()})
    pixels = np.asarray(images, dtype)
    image: dict[str, np.ndarray] = {}
    text: dict[str, np.ndarray] = {}
    visual, words = params["visual"], params["text"]
    if isinstance(config.vision, ResNetConfig):
        reference.modified_resnet(pixels, visual, heads=config.vision.heads, taps=image)
    else:
        options = reference_options(config.vision, config.activation)
        reference.vision_transformer(pixels, visual, **options, taps=image)
    if config.text.kind == "cbow":
        reference.continuous_bag_of_words(tokens, words, taps=text)
    else:
        options = reference_options(config.text, config.activation)
        reference.text_transformer(tokens, words, **options, taps=text)
    I_e, T_e = (reference.l2_normalize(seen["features"]) for seen in (image, text))
    rungs = {"tokens": tokens, "pixels": pixels}
    for tower, seen in (("image", image), ("text", text)):
        rungs |= {f"{tower}.{SAME_STAGE.get(stage, stage)}": x for stage, x in seen.items()}
    if "text.last" in rungs:  # the reference projects these rows without naming them
        ends = reference.pooled_position(tokens, options["variant"])
        rungs["text.pooled"] = rungs["text.last"][np.arange(len(tokens)), ends]
    logits = reference.logits(I_e, T_e, params)
    return {**rungs, "image_embeds": I_e, "text_embeds": T_e, "logits": logits}


def compare(
    got: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    bound: float | Mapping[str, float],
) -> list[Rung]:
    """The rungs that both ladders have, in the order of `got`; tokens must be equal.

    `bound` is one for all stages, or one for each. ValueError when the ladders share no rung, or a
    shared one has two shapes.
    """
    shared = [name for name in got if name in expected]
    if not shared:
        raise ValueError(
            f"expected the stages {', '.join(list(expected)[:3])}, ..., got "
            f"{', '.join(list(got)[:3])}, ...: the two ladders share none"
        )
    bounds = bound if isinstance(bound, Mapping) else dict.fromkeys(shared, bound)
    return [_rung(name, got[name], expected[name], bounds[name]) for name in shared]


def _rung(name: str, got: np.ndarray, expected: np.ndarray, bound: float) -> Rung:
    if got.shape != expected.shape:
        raise ValueError(f"{name}: expected shape {expected.shape}, got {got.shape}")
    with np.errstate(invalid="ignore"):  # infinity less infinity
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
    with open_regular(path):  # a named pipe or a folder is refused here
        arrays, metadata = checkpoint.load_arrays(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT!r}, got {metadata.get('format')!r}; record a "
            "ladder with jaxclip verify MODEL --record FILE"
        )
    if "pixels" not in arrays or "tokens" not in arrays:
        raise ValueError(f"{path}: expected pixels and tokens to run a model on, got neither")
    return arrays, _notes(path, metadata.get("notes", "{}"))


def _notes(path: Path, text: str) -> dict[str, Any]:
    """The notes of a ladder; of what is read from them, `by` and `texts`, the types are checked."""
    try:
        notes = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected notes in JSON, got {error}") from None
    if not isinstance(notes, dict):
        raise ValueError(f"{path}: expected notes as a JSON object, got {type(notes).__name__}")
    texts = notes.get("texts", [])
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise ValueError(f"{path}: expected texts as a list of strings, got something else")
    if not isinstance(notes.get("by", ""), str):
        raise ValueError(f"{path}: expected `by` as a string, got {type(notes['by']).__name__}")
    return notes


def check_recorded(
    rungs: Mapping[str, np.ndarray], notes: Mapping[str, Any], config: ClipConfig
) -> list[str]:
    """Refuse a recorded ladder that a model of this config cannot be run on and compared with.

    Returns:
      The stages of the ladder that such a model does not have; they are not compared.

    Raises:
      ValueError: names the array, what was expected and what it is.
    """
    pixels, tokens = rungs["pixels"], rungs["tokens"]
    (height, width), length = config.vision.image_sides, config.text.context_length
    _require(
        _is_float(pixels) and pixels.ndim == 4 and pixels.shape[1:] == (height, width, 3),
        f"pixels: expected floats [n, {height}, {width}, 3]",
        pixels,
    )
    _require(len(pixels) > 0, "pixels: expected one picture or more", pixels)
    largest = np.abs(np.asarray(pixels, np.float64)).max()
    if not largest <= np.finfo(np.float32).max:
        raise ValueError(f"pixels: expected finite float32 numbers, got up to {largest}")
    whole = np.issubdtype(tokens.dtype, np.integer) and tokens.ndim == 2 and tokens.size > 0
    _require(
        whole and tokens.shape[1] <= length,
        f"tokens: expected whole numbers [m, l], l up to {length}",
        tokens,
    )
    check_vocabulary(tokens, config.text.vocab_size)
    if "texts" in notes and len(notes["texts"]) != len(tokens):
        raise ValueError(f"expected a text a row of tokens, got {len(notes['texts'])} texts")
    if "picture" in rungs:
        content = rungs["picture"]
        good = content.dtype == np.uint8 and content.ndim == 1 and len(pixels) == 1
        _require(good, "picture: expected the bytes of a file, and pixels of one picture", content)
    return _check_stages(rungs, rung_shapes(config, *runnable(rungs)))


def runnable(rungs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(images float32, tokens int32) of a recorded ladder, as a model takes them."""
    return np.asarray(rungs["pixels"], np.float32), np.asarray(rungs["tokens"], np.int32)


def _check_stages(
    rungs: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    stages = [name for name in rungs if name not in ("pixels", "tokens", "picture")]
    if not shapes.keys() & set(stages):
        raise ValueError(
            f"expected stages of this model, such as {', '.join(list(shapes)[:3])}, got "
            f"{', '.join(map(repr, stages[:3])) or 'none'}"
        )
    for name in stages:
        if name in shapes:
            good = _is_float(rungs[name]) and rungs[name].shape == shapes[name]
            _require(good, f"{name}: expected floats {shapes[name]}", rungs[name])
    return [name for name in stages if name not in shapes]


def _is_float(array: np.ndarray) -> bool:
    return bool(jax.numpy.issubdtype(array.dtype, np.floating))  # bfloat16 too


def _require(good: bool, expected: str, got: np.ndarray) -> None:
    if not good:
        raise ValueError(f"{expected}, got {got.dtype} {got.shape}")


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
