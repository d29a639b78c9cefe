"""The config of a file that has none: from its shapes, the caller and the released models."""

from typing import NoReturn, get_args

from jaxclip.checkpoint import Flat
from jaxclip.config import Activation, ClipConfig, TextConfig

from .description import Described
from .given import Given, check_given, require_agreement
from .layouts import huggingface, huggingface_config, open_clip, open_clip_config, openai
from .layouts.infer import Heads, complete, infer
from .layouts.released_shapes import OTHER_POOLING, known_heads
from .layouts.table import Layout, layers_of, shape_of


def _refuse_unknown(
    activation: Activation | None, heads: Heads | None, shapes: ClipConfig, what: str
) -> NoReturn:
    """ValueError that names what is unknown, and how to give it."""
    missing, ways, flags = [], [], ""
    if activation is None:
        missing.append("which activation the model needs")
        names = ", ".join(get_args(Activation))
        ways.append(f"activation= one of {names} (the models that OpenAI trained need quick_gelu)")
        flags += " --activation NAME"
    if heads is None:
        missing.append("how many attention heads its towers have")
        pools = shapes.text.vocab_size == TextConfig.vocab_size
        ways.append(
            "heads= two integers, of the image and of the text tower"
            + ("" if pools else ", if the model pools at the largest token id")
        )
        flags += " --heads IMAGE TEXT"
    raise ValueError(
        f"{what} does not say {' nor '.join(missing)}: put its {open_clip_config.CONFIG_NAME} or "
        f"{huggingface_config.CONFIG_NAME} beside it, or give {' and '.join(ways)}, or convert it "
        f"once with `jaxclip convert {what} OURS.safetensors{flags}`"
    )


def _refuse_without_config(layout: Layout, arrays: Flat, what: str) -> None:
    """ValueError where shapes cannot say which model it is, so that it needs its config."""
    is_hugging_face = layout.name in huggingface.LAYOUTS
    name = huggingface_config.CONFIG_NAME if is_hugging_face else open_clip_config.CONFIG_NAME
    reason = None
    if layout is open_clip.TRUNK:
        reason = "an image tower of timm"
    elif is_hugging_face and layout is not huggingface.LAYOUT:
        reason = "towers of SigLIP or one tower alone"
    elif is_hugging_face and huggingface.single_tower(arrays) is not None:
        reason = "one tower alone"
    elif "text.cls_emb" in arrays or "visual.attn_pool.query" in arrays:
        reason = "towers of CoCa"
    elif "visual.class_embedding" in arrays and "visual.ln_pre.weight" not in arrays:
        reason = "an image tower without ln_pre"
    elif any(name.endswith("text_projection.bias") for name in arrays):
        reason = "a text projection with a bias"
    if reason is not None:
        raise ValueError(
            f"{what}: this file has {reason}, of which its shapes show neither heads, nor pooling "
            f"nor epsilon; put its {name} beside it"
        )


def config_from_shapes(found: Described, given: Given, arrays: Flat, what: str) -> ClipConfig:
    """The config of the shapes, with activation and heads of the caller or of a known model."""
    if not found.is_official:
        _refuse_without_config(found.layout, arrays, what)
    shapes = infer(
        shape_of(found.layout, arrays),
        layers_of(found.layout, arrays),
        is_resnet="visual.layer1.0.conv1.weight" in arrays,
        image_size=found.image_size,
    )
    vocabulary = shapes.text.vocab_size
    if found.is_official:
        official = complete(shapes, "quick_gelu", openai.heads(shapes))
        require_agreement(given, official, what)
        openai.check_writable(official)  # its MLPs are four times as wide
        return official
    if vocabulary in OTHER_POOLING:
        raise ValueError(
            f"{what}: expected a text tower that pools at the largest token id, got a vocabulary "
            f"of {vocabulary:,}, as {OTHER_POOLING[vocabulary]} have it, which pool at another "
            f"token; put its {open_clip_config.CONFIG_NAME} or {huggingface_config.CONFIG_NAME} "
            "beside it"
        )
    check_given(given)
    heads = given.heads or known_heads(shapes)
    if given.activation is None or heads is None:
        _refuse_unknown(given.activation, heads, shapes, what)
    return complete(shapes, given.activation, (heads[0], heads[1]))
