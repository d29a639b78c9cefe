"""How a model's pictures are prepared, from the configs of open_clip and transformers, and back.

Settings that the two libraries have and that make other pixels than `Preprocess` can are refused by
name. CLIP's own settings mean the released pipeline in both, as its weights were trained;
transformers' departs from that for pictures that are not RGB, and by a pixel in some crops.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxclip.checkpoint import shorten
from jaxclip.config import CLIP_PICTURES, PictureConfig
from jaxclip.convert.archive import strict_json
from jaxclip.convert.archive.inert import short_repr

PREPROCESSOR_NAME = "preprocessor_config.json"
PROCESSOR_NAME = "processor_config.json"  # of transformers 5, which keeps the settings inside
PROCESSOR_NAMES = (PREPROCESSOR_NAME, PROCESSOR_NAME)

# open_clip/transform.py: PreprocessCfg. "random" is of training, and bicubic elsewhere.
OPEN_CLIP_KEYS = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
OPEN_CLIP_FILTERS = {"bicubic": "bicubic", "random": "bicubic", "bilinear": "bilinear"}

# transformers/models: clip/image_processing_pil_clip.py, siglip/image_processing_pil_siglip.py
HALF = (0.5, 0.5, 0.5)
SIGLIP = PictureConfig(HALF, HALF, resize="squash", steps="transformers")
Kind = Literal["CLIP", "Siglip"]
KINDS: dict[str, Kind] = {"CLIPFeatureExtractor": "CLIP"}
KINDS |= {f"CLIPImageProcessor{ending}": "CLIP" for ending in ("", "Fast", "Pil")}
KINDS |= {f"SiglipImageProcessor{ending}": "Siglip" for ending in ("", "Fast", "Pil")}
PROCESSORS: dict[str, Kind] = {"CLIPProcessor": "CLIP", "SiglipProcessor": "Siglip"}
KIND_KEYS = ("image_processor_type", "feature_extractor_type")
FILTERS = {2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling
# Settings whose only value that leaves the pixels alone is this one (None: the library's default).
FIXED: dict[str, tuple[Any, ...]] = {
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "do_convert_rgb": (True, None),
    "default_to_square": (False, None),
}
READ = {"size", "crop_size", "do_center_crop", "resample", "rescale_factor"}
READ |= {"image_mean", "image_std"}
NO_EFFECT = {*KIND_KEYS, "processor_class", "_valid_processor_keys", "data_format"}
NO_EFFECT |= {"input_data_format", "return_tensors", "device", "disable_grouping"}
NO_EFFECT |= {"_processor_class", "transformers_version", "image_seq_length", "image_seq_len"}


def _three(value: Any, name: str) -> tuple[float, float, float]:
    """Three numbers from a list of them, or from one for all channels."""
    values = value if type(value) is list else [value] * 3
    if len(values) != 3 or any(type(number) not in (int, float) for number in values):
        raise ValueError(f"{name} {_compact(value)}, expected three numbers")
    return (float(values[0]), float(values[1]), float(values[2]))


def _compact(value: Any) -> str:
    """A setting for an error message: JSON, short, on one line."""
    try:
        return json.dumps(value)[:80]
    except (RecursionError, TypeError):
        return short_repr(value)


def _rounded(found: PictureConfig) -> PictureConfig:
    """CLIP's own config, where mean and deviation are its own to six places."""
    both = zip((*found.mean, *found.std), (*CLIP_PICTURES.mean, *CLIP_PICTURES.std), strict=True)
    if all(abs(one - other) < 1e-6 for one, other in both):
        fields = {**vars(found), "mean": CLIP_PICTURES.mean, "std": CLIP_PICTURES.std}
        found = PictureConfig(**fields)
        own = PictureConfig(**{**fields, "steps": "openai"})
        return CLIP_PICTURES if own == CLIP_PICTURES else found
    return found


# open_clip ----------------------------------------------------------------------------------------


def from_open_clip(data: Any) -> PictureConfig:
    """From `preprocess_cfg` of an `open_clip_config.json`; the size is the image tower's."""
    if type(data) is not dict:
        raise ValueError(f"preprocess_cfg: expected a JSON object, got {short_repr(data)}")
    said = {key: value for key, value in data.items() if value is not None}
    if unknown := sorted(said.keys() - OPEN_CLIP_KEYS):
        raise ValueError(
            f"preprocess_cfg: expected settings that are known, got {short_repr(unknown[0])}"
        )
    if said.get("mode", "RGB") != "RGB":
        raise ValueError(f"preprocess_cfg: mode: expected 'RGB', got {short_repr(said['mode'])}")
    chosen = said.get("interpolation", "bicubic")
    if type(chosen) is not str or chosen not in OPEN_CLIP_FILTERS:
        raise ValueError(
            f"preprocess_cfg: interpolation: expected bicubic or bilinear, got {short_repr(chosen)}"
        )
    fields: dict[str, Any] = {"interpolation": OPEN_CLIP_FILTERS[chosen]}
    names = {"resize_mode": "resize", "fill_color": "fill"}
    fields |= {ours: said[theirs] for theirs, ours in names.items() if theirs in said}
    try:
        fields |= {key: _three(said[key], key) for key in ("mean", "std") if key in said}
        return _rounded(PictureConfig(**fields))
    except ValueError as error:
        raise ValueError(f"preprocess_cfg: {error}") from None


def to_open_clip(pictures: PictureConfig) -> dict[str, Any]:
    """`preprocess_cfg`: mean and deviation, and what else differs from open_clip's defaults."""
    said: dict[str, Any] = {"mean": list(pictures.mean), "std": list(pictures.std)}
    names = {"interpolation": "interpolation", "resize": "resize_mode", "fill": "fill_color"}
    for ours, theirs in names.items():
        if getattr(pictures, ours) != getattr(CLIP_PICTURES, ours):
            said[theirs] = getattr(pictures, ours)
    return said


# transformers -------------------------------------------------------------------------------------


def to_hugging_face(pictures: PictureConfig, size: int, kind: Kind) -> dict[str, Any]:
    """The content of `preprocessor_config.json`; ValueError for what transformers lacks."""
    if pictures.resize == "longest":
        raise ValueError(
            "the model's pictures have a border, which no image processor of transformers for "
            "CLIP or SigLIP lays; use the layout open_clip"
        )
    square = {"height": size, "width": size}
    crops = pictures.resize == "shortest"
    crop: dict[str, Any] = {"do_center_crop": True, "crop_size": square} if crops else {}
    if not crops and kind == "CLIP":
        crop = {"do_center_crop": False}
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size} if crops else square,
        "resample": {name: number for number, name in FILTERS.items()}[pictures.interpolation],
        **crop,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pictures.mean),
        "image_std": list(pictures.std),
    }


def _kind(settings: Mapping[str, Any], default: Kind) -> Kind:
    """Whose image processor the settings are for; ValueError for one that we lack."""
    said = {key: settings[key] for key in KIND_KEYS if settings.get(key) is not None}
    known = KINDS
    if not said and settings.get("processor_class") is not None:
        said, known = {"processor_class": settings["processor_class"]}, {**PROCESSORS, **KINDS}
    for key, named in said.items():
        if type(named) is not str or named not in known:
            raise ValueError(f"{key} {_compact(named)}, which jaxclip does not have")
    return next((known[named] for named in said.values()), default)


def _sides(value: Any) -> Any:
    """A size without the sides that are none."""
    if type(value) is dict:
        return {side: length for side, length in value.items() if length is not None}
    return value


def _resize(settings: Mapping[str, Any], kind: Kind, size: int) -> str:
    """ "shortest" or "squash", from the settings of size and crop; ValueError for others."""
    square = {"height": size, "width": size}
    asked = _sides(settings.get("size", {"shortest_edge": size} if kind == "CLIP" else square))
    crops = settings.get("do_center_crop", kind == "CLIP")
    crop = _sides(settings.get("crop_size", square))
    if crops not in (True, False, None):
        raise ValueError(f"do_center_crop {_compact(crops)}, expected true or false")
    # an integer: as files from before 2023 have them; 1 is not True
    if crops and not (crop == square or (type(crop) is int and crop == size)):
        raise ValueError(f"crop_size {_compact(crop)}, expected {_compact(square)}")
    if asked == square and all(type(side) is int for side in asked.values()):
        return "squash"
    if asked == {"shortest_edge": size} or (type(asked) is int and asked == size):
        if not crops:
            raise ValueError(f"do_center_crop {_compact(crops)}, expected true")
        return "shortest"
    raise ValueError(f"size {_compact(asked)}, expected {size}, the image tower's")


def _from_settings(settings: Mapping[str, Any], size: int, default: Kind) -> PictureConfig:
    kind = _kind(settings, default)
    base = CLIP_PICTURES if kind == "CLIP" else SIGLIP
    faults = [
        f"{key} {_compact(settings[key])}, expected {_compact(allowed[0])}"
        for key, allowed in FIXED.items()
        if key in settings and not any(settings[key] is value for value in allowed)
    ]
    # of an option that this library does not know, only "off" is certain to change nothing
    faults += [
        f"{short_repr(key)} {_compact(settings[key])}, which is unknown"
        for key in settings.keys() - NO_EFFECT - READ - FIXED.keys()
        if settings[key] is not None and settings[key] is not False
    ]
    factor = settings.get("rescale_factor", 1 / 255)
    if type(factor) is not float or abs(factor - 1 / 255) > 1e-6:
        faults.append(f"rescale_factor {_compact(factor)}, expected {1 / 255}")
    resample = settings.get("resample", 3)
    if type(resample) is not int or resample not in FILTERS:
        faults.append(f"resample {_compact(resample)}, expected 2 (bilinear) or 3 (bicubic)")
    if faults:
        raise ValueError(shorten(sorted(faults)))
    return _rounded(
        PictureConfig(
            _three(settings.get("image_mean", list(base.mean)), "image_mean"),
            _three(settings.get("image_std", list(base.std)), "image_std"),
            FILTERS[resample],  # type: ignore[arg-type]
            _resize(settings, kind, size),  # type: ignore[arg-type]
            steps="transformers",
        )
    )


def _image_settings(data: Mapping[str, Any]) -> Any:
    """The settings for pictures in a `processor_config.json`: under a key of their own, or not."""
    for key in ("image_processor", "feature_extractor"):
        if data.get(key) != {} and key in data:
            return data[key]
    about = {*READ, *FIXED, *KIND_KEYS, "processor_class"}
    return {key: value for key, value in data.items() if key in about}


def from_hugging_face(data: Mapping[str, Any], size: int, file: str, kind: Kind) -> PictureConfig:
    """From `preprocessor_config.json`, or the part of `processor_config.json` for pictures.

    size: of the image tower's pictures. kind: whose processor it is where the file does not say.
    ValueError names the settings that make other pixels than this library can.
    """
    settings = _image_settings(data) if file == PROCESSOR_NAME else data
    if type(settings) is not dict:
        raise ValueError(
            f"{file}: expected a JSON object as image_processor, got {short_repr(settings)}"
        )
    try:
        return _from_settings(settings, size, kind)
    except ValueError as error:
        raise ValueError(
            f"{file} asks for other pictures than jaxclip can make: {error}; remove the file if "
            "you prepare them yourself"
        ) from None


def from_folder(files: tuple[Path, ...], size: int, kind: Kind) -> PictureConfig:
    """From the image processors' files among those beside the weights, which must agree.

    size: of the image tower's pictures. Without any file: the library's defaults for that kind.
    """
    said = {path.name: strict_json.read(path) for path in files if path.name in PROCESSOR_NAMES}
    found = {
        name: from_hugging_face(data, size, name, kind)
        for name, data in said.items()
        # one that names its class only leaves the settings to the other file
        if len(said) == 1 or data != {"processor_class": f"{kind}Processor"}
    }
    if len(set(found.values())) > 1:
        raise ValueError(
            f"{' and '.join(found)} ask for other pictures each; remove the one that is wrong"
        )
    return next(iter(found.values()), CLIP_PICTURES if kind == "CLIP" else SIGLIP)
