"""What is compared: every stage of a Flax model, and of the NumPy reference, under one name."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxclip import checkpoint, reference
from jaxclip.config import ClipConfig, ResNetConfig, TextConfig, VisionConfig
from jaxclip.models import clip

Rungs = dict[str, np.ndarray]
VARIANT = set(reference.Variant._fields)  # names of the configs' fields, but for the epsilon's
# what the reference calls a stage -> what the Flax modules call it
SAME_STAGE = {"ln_post": "pooled", "mean": "pooled", "ln_final": "last"}


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


def in_force() -> str:
    """Backend, versions and matrix-product precision, in words, for beside the numbers."""
    precision = getattr(jax.config, "jax_default_matmul_precision", None) or "default"
    return f"{jax.default_backend()}, jax {jax.__version__}, default matmul precision {precision}"
