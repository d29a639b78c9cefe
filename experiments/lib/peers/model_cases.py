"""Which models of open_clip and transformers are compared, small and at full size."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.lib.peers.model_peers import (
    CONTEXT,
    GRID,
    HEADS,
    LAYERS,
    VOCABULARY,
    Peer,
    hugging_face_peer,
    open_clip_peer,
    open_clip_settings,
    reduce_open_clip,
)
from jaxclip.config import name_sides
from jaxclip.convert.layouts import open_clip_config, refusals


class Case(NamedTuple):
    """One comparison: `make` builds the peer; `settings` patch timm's table where it is small."""

    name: str
    family: str
    layout: str
    make: Callable[[], Peer]
    settings: dict[str, Any] | None = None
    models: tuple[str, ...] = ()  # the names of the library that are the same once reduced


# open_clip ----------------------------------------------------------------------------------------


def loadable() -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """({name: model_cfg} of open_clip's configs that load, {name: reason} of the others)."""
    loads, refused = {}, {}
    for name, settings in open_clip_settings().items():
        try:
            open_clip_config.from_json({"model_cfg": settings})
            loads[name] = settings
        except ValueError as error:
            refused[name] = str(error)
    return loads, refused


def _family(name: str, settings: dict[str, Any]) -> str:
    if isinstance(settings["vision_cfg"].get("layers"), list):
        return "ResNet"
    for sign, family in (
        ("SigLIP2", "SigLIP 2"),
        ("SigLIP", "SigLIP"),
        ("CLIPA", "CLIPA"),
        ("worldwide", "MetaCLIP 2"),
        ("MobileCLIP", "MobileCLIP 2 L/14"),
        ("coca", "CoCa's contrastive half"),
    ):
        if sign in name:
            return family
    return "CLIP"


def _open_clip_layout(settings: dict[str, Any]) -> str:
    if "timm_model_name" in settings["vision_cfg"]:
        return "open_clip, timm's trunk"
    return "open_clip custom text" if settings.get("custom_text") else "open_clip"


def open_clip_cases() -> list[Case]:
    """A reduced model for each config that loads; those that are the same then, once."""
    groups: dict[str, tuple[str, dict[str, Any], list[str]]] = {}
    for name, settings in loadable()[0].items():
        small = reduce_open_clip(settings)
        key = json.dumps(small, sort_keys=True)
        groups.setdefault(key, (_family(name, settings), small, []))[2].append(name)
    return [
        Case(
            names[0],
            family,
            _open_clip_layout(small),
            lambda small=small: open_clip_peer(small),  # type: ignore[misc]
            small,
            tuple(names),
        )
        for family, small, names in groups.values()
    ]


# None of open_clip's own configs has such sizes; `force_image_size` gives any of them one.
NOT_SQUARE: dict[str, dict[str, Any]] = {
    "ViT-B-16": {"image_size": [224, 160]},
    "ViT-S-16": {"image_size": [18, 30], "patch_size": 6},
    "ViT-M-16": {"image_size": [31, 22], "patch_size": [6, 4]},
    "ViT-L-14-CLIPA": {"image_size": [75, 45]},
    "coca_ViT-B-32": {"image_size": [64, 160]},
}


def not_square_cases() -> list[Case]:
    """Models of open_clip, small, whose pictures or patches are not square."""
    known, cases = loadable()[0], []
    for name, sizes in NOT_SQUARE.items():
        small = reduce_open_clip(known[name])
        small["vision_cfg"] |= sizes
        pixels, patch = (
            name_sides(refusals.sides(small["vision_cfg"][key]))
            for key in ("image_size", "patch_size")
        )
        cases.append(
            Case(
                f"{name} at {pixels} pixels, patches of {patch}",
                "not square",
                _open_clip_layout(small),
                lambda small=small: open_clip_peer(small),  # type: ignore[misc]
                small,
                (name,),
            )
        )
    return cases


# transformers -------------------------------------------------------------------------------------


def _hugging_face(head: int, ratio: float, patch: int, **fields: Any) -> tuple[Any, Any]:
    """(text_config, vision_config), small; `fields` go into both, `text_` and `vision_` in one."""
    both = {k: v for k, v in fields.items() if not k.startswith(("text_", "vision_"))}
    width = HEADS * head
    blocks = {
        "hidden_size": width,
        "intermediate_size": int(width * ratio),
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        **both,
    }
    text = {**blocks, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT}
    vision = {**blocks, "image_size": GRID * patch + 3, "patch_size": patch}
    text |= {k.removeprefix("text_"): v for k, v in fields.items() if k.startswith("text_")}
    vision |= {k.removeprefix("vision_"): v for k, v in fields.items() if k.startswith("vision_")}
    return text, vision


def _whole(kind: str, name: str, text: Any, vision: Any, **fields: Any) -> Case:
    config = {"text_config": text, "vision_config": vision, **fields}
    families = {"CLIP": "CLIP", "Siglip": "SigLIP", "MetaClip2": "MetaCLIP 2"}
    return Case(
        f"{kind}Model {name}",
        families[kind],
        f"transformers {kind}Model",
        lambda: hugging_face_peer(f"{kind}Model", config),
    )


def _tower(kind: str, name: str, config: dict[str, Any]) -> Case:
    return Case(
        f"{kind} {name}",
        "single towers",
        f"transformers {kind}",
        lambda: hugging_face_peer(kind, config),
    )


END = VOCABULARY - 1


def hugging_face_cases() -> list[Case]:
    """A reduced model of every class, and of what its config may vary."""
    quick, exact = {"hidden_act": "quick_gelu"}, {"hidden_act": "gelu"}
    clip = _hugging_face(64, 4, 14, text_eos_token_id=2, **quick)
    ended = _hugging_face(80, 4, 14, text_eos_token_id=7, **exact)
    plain = _hugging_face(64, 4, 16, text_eos_token_id=END, layer_norm_eps=1e-6, **quick)
    mixed = _hugging_face(
        104, 4.9231, 14, text_eos_token_id=END, text_hidden_act="gelu_new", vision_hidden_act="gelu"
    )
    siglip = _hugging_face(64, 4, 16)
    so400m = _hugging_face(72, 3.7362, 14)
    text, vision = _hugging_face(72, 3.7362, 16, text_projection_size=192)
    giant = text, {**vision, "hidden_size": 192, "intermediate_size": 768}
    return [
        _whole("CLIP", "eos_token_id 2", *clip, projection_dim=48),
        _whole("CLIP", "eos_token_id inside", *ended, projection_dim=48),
        _whole("CLIP", "epsilon 1e-6", *plain, projection_dim=48),
        _whole("CLIP", "an activation each", *mixed, projection_dim=48),
        _whole("MetaClip2", "eos_token_id 2", *clip, projection_dim=48),
        _whole("MetaClip2", "eos_token_id inside", *ended, projection_dim=48),
        _whole("Siglip", "base", *siglip),
        _whole("Siglip", "so400m", *so400m),
        _whole("Siglip", "giant-opt", *giant),
        _tower("CLIPTextModel", "of Stable Diffusion 1", clip[0]),
        _tower("CLIPTextModel", "of Stable Diffusion 2", {**clip[0], **exact}),
        _tower("CLIPTextModelWithProjection", "of SDXL", {**ended[0], "projection_dim": 48}),
        _tower("CLIPVisionModelWithProjection", "gelu", {**ended[1], "projection_dim": 48}),
        _tower("CLIPVisionModel", "quick_gelu", clip[1]),
        _tower("SiglipTextModel", "giant-opt", giant[0]),
        _tower("SiglipVisionModel", "so400m", so400m[1]),
    ]


# Full size ----------------------------------------------------------------------------------------

# google/siglip-so400m-patch14-384 and google/siglip2-base-patch16-224, config.json
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
# facebook/metaclip-2-worldwide-huge-quickgelu, config.json
HUGE_TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "vocab_size": 901_629,
    "eos_token_id": 2,
}
HUGE_VISION = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
}
# stabilityai/stable-diffusion-xl-base-1.0, text_encoder_2/config.json
SDXL_TEXT_2 = {
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "eos_token_id": 2,
}


def _open_clip_full(name: str, family: str) -> Case:
    settings = open_clip_settings()[name]
    return Case(
        name, family, _open_clip_layout(settings), lambda: open_clip_peer(settings), models=(name,)
    )


def full_cases() -> list[Case]:
    """The models that are compared at their true size, smallest first."""
    siglip2 = {"text_config": {"vocab_size": 256_000}, "vision_config": {}}
    so400m = {
        "text_config": {**SO400M, "vocab_size": 32_000},
        "vision_config": {**SO400M, "image_size": 384, "patch_size": 14},
    }
    metaclip = {"text_config": HUGE_TEXT, "vision_config": HUGE_VISION, "projection_dim": 1024}
    return [
        Case(
            "SigLIP 2 B/16",
            "SigLIP 2",
            "transformers SiglipModel",
            lambda: hugging_face_peer("SiglipModel", siglip2),
        ),
        Case(
            "SDXL's second text encoder",
            "single towers",
            "transformers CLIPTextModelWithProjection",
            lambda: hugging_face_peer("CLIPTextModelWithProjection", SDXL_TEXT_2),
        ),
        Case(
            "SigLIP So400m/14-384",
            "SigLIP",
            "transformers SiglipModel",
            lambda: hugging_face_peer("SiglipModel", so400m),
        ),
        _open_clip_full("ViT-SO400M-14-SigLIP-384", "SigLIP"),
        _open_clip_full("ViT-H-14", "CLIP"),
        _open_clip_full("ViT-g-14", "CLIP"),
        Case(
            "MetaCLIP 2 H/14",
            "MetaCLIP 2",
            "transformers MetaClip2Model",
            lambda: hugging_face_peer("MetaClip2Model", metaclip),
        ),
        _open_clip_full("ViT-bigG-14", "CLIP"),
    ]
