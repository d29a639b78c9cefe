"""Models of open_clip and transformers with random weights, small or as released, for parity.

Every weight is drawn anew: the libraries start biases at zero and matrices near it, where wrong
heads and a wrong activation hardly show. `reduced` keeps what makes a model what it is: width of a
head, ratio of the MLP, epsilon, pooling, activation.
"""

import contextlib
import copy
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from experiments.lib.peers.parity_support import torchvision_transforms
from jaxclip.config import Sides, TextConfig, both_sides
from jaxclip.convert.layouts import timm_trunk

Arrays = dict[str, np.ndarray]
VOCABULARY, CONTEXT, GRID, LAYERS, HEADS = 101, 11, 3, 2, 2


class Peer(NamedTuple):
    """A model of another library, what it says in files, and how it is run."""

    model: Any  # torch.nn.Module
    save: Callable[[Path], None]  # weights and config into a folder, as the library has them
    run: Callable[[Any, np.ndarray, np.ndarray], Arrays]  # (model, images, tokens) -> stages


def draw(model: Any, seed: int = 0) -> None:
    """Fill every parameter and running statistic by its name and shape."""
    import torch

    buffers = [(n, b) for n, b in model.named_buffers() if n.endswith(("_mean", "_var"))]
    for name, value in [*model.named_parameters(), *buffers]:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        shape = tuple(value.shape)
        drawn = rng.standard_normal(shape, np.float32)
        if "logit_scale" in name:
            drawn = np.full(shape, 2.1, np.float32)
        elif "logit_bias" in name:
            drawn = np.full(shape, -1.3, np.float32)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            drawn = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) > 1 and "embed" not in name:
            rows = name.endswith(("visual.proj", "text_projection"))  # [d, e], the others [e, d]
            drawn *= 1 / np.sqrt(shape[0] if rows else math.prod(shape[1:]))
        else:
            drawn *= 0.3
        with torch.no_grad():
            value.copy_(torch.from_numpy(drawn))


def inputs(image_size: Sides | None, text: TextConfig | None, seed: int = 0) -> tuple[Any, Any]:
    """(images [2, h, w, 3], tokens [3, l]) on which models that pool elsewhere disagree."""
    rng = np.random.default_rng(seed)
    images = tokens = None
    if image_size is not None:
        images = rng.standard_normal((2, *both_sides(image_size), 3), np.float32)
    if text is not None:
        largest, length = text.vocab_size - 1, text.context_length
        tokens = rng.integers(3, largest - 1, (3, length)).astype(np.int32)
        for row, at in enumerate((length // 2, length - 2, 3)):
            end = largest if text.end_token is None else text.end_token
            tokens[row, at] = end
            tokens[row, at + 1 :] = np.minimum(tokens[row, at + 1 :], largest - 2)
            if text.pooling == "class_token" and row:  # the first text fills its row
                tokens[row, at + 1 :] = 0  # padding, which such a tower hides
            if text.end_token is not None:  # the largest id stands before it
                tokens[row, at - 1] = largest
    return images, tokens


def as_torch(images: Any, tokens: Any, model: Any) -> tuple[Any, Any]:
    """The inputs as torch's, in the model's number format."""
    import torch

    dtype = next(model.parameters()).dtype
    if images is not None:
        images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype)
    return images, None if tokens is None else torch.from_numpy(tokens.astype(np.int64))


def arrays(model: Any) -> Arrays:
    """Its state dict."""
    return {name: value.numpy() for name, value in model.state_dict().items()}


# open_clip ----------------------------------------------------------------------------------------


def open_clip_settings() -> dict[str, dict[str, Any]]:
    """{name: model_cfg} of every config that the installed open_clip has."""
    torchvision_transforms()
    import open_clip

    return {name: open_clip.get_model_config(name) for name in sorted(open_clip.list_models())}


def reduce_open_clip(settings: dict[str, Any]) -> dict[str, Any]:
    """The same with two layers of two heads, a grid of 3 x 3 and a small vocabulary."""
    model = copy.deepcopy(settings)
    vision, text = model["vision_cfg"], model["text_cfg"]
    head = text["width"] // text["heads"]
    text |= {"width": HEADS * head, "heads": HEADS, "layers": LAYERS}
    text |= {"context_length": CONTEXT, "vocab_size": VOCABULARY}
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
        text.pop(key, None)
    if "multimodal_cfg" in model:  # of CoCa's decoder, which nothing here runs
        names = ("width", "heads", "layers", "context_length", "vocab_size")
        model["multimodal_cfg"] = {name: text[name] for name in names}
    if "timm_model_name" in vision:
        if vision["timm_proj"] == "none":
            model["embed_dim"] = HEADS * _timm_size(vision).width // _timm_size(vision).heads
        return model
    if isinstance(vision["layers"], list):
        vision |= {"layers": [1, 1, 2, 1], "width": 8, "image_size": 64}
        return model
    patch = vision["patch_size"]
    size = GRID * patch + vision["image_size"] % patch
    vision |= {"layers": LAYERS, "width": HEADS * vision.get("head_width", 64), "image_size": size}
    return model


def _timm_size(vision: dict[str, Any]) -> timm_trunk.Size:
    name = vision["timm_model_name"]
    return (timm_trunk.SIGLIP if "siglip" in name else timm_trunk.CLIP)[name.split("_")[1]]


@contextlib.contextmanager
def reduced_timm(settings: dict[str, Any]) -> Iterator[None]:
    """Within it timm and our table of its towers have two layers of two heads under that name."""
    torchvision_transforms()
    from open_clip import timm_model

    vision = settings["vision_cfg"]
    if "timm_model_name" not in vision:
        yield
        return
    size, family = _timm_size(vision), "siglip" if "siglip" in vision["timm_model_name"] else "clip"
    small = size._replace(width=HEADS * size.width // size.heads, layers=LAYERS, heads=HEADS)
    create = timm_model.timm.create_model

    def create_small(*args: Any, **options: Any) -> Any:
        shape = {"embed_dim": small.width, "depth": LAYERS, "num_heads": HEADS}
        return create(*args, **options, **shape)

    table = timm_trunk.SIGLIP if family == "siglip" else timm_trunk.CLIP
    name = vision["timm_model_name"].split("_")[1]
    with (
        mock.patch.dict(table, {name: small}),
        mock.patch.object(timm_model.timm, "create_model", create_small),
    ):
        yield


def open_clip_class(settings: dict[str, Any]) -> Any:
    """The class that open_clip makes a model of, by its `model_cfg`."""
    import open_clip

    if "multimodal_cfg" in settings:
        return open_clip.CoCa
    return open_clip.CustomTextCLIP if settings.get("custom_text") else open_clip.CLIP


def without_decoder(named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Names and what they name, but for those of CoCa's decoder, which we do not load."""
    return ((name, x) for name, x in named if not name.startswith("text_decoder."))


def open_clip_peer(settings: dict[str, Any], seed: int = 0) -> Peer:
    """A model of open_clip by its `model_cfg`."""
    torchvision_transforms()
    import torch

    model = open_clip_class(settings)(**{k: v for k, v in settings.items() if k != "custom_text"})
    model.eval()
    draw(model, seed)

    def save(folder: Path) -> None:
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
        data = {"model_cfg": settings, "preprocess_cfg": {}}
        (folder / "open_clip_config.json").write_text(json.dumps(data))

    return Peer(model, save, run_open_clip)


def run_open_clip(model: Any, images: np.ndarray, tokens: np.ndarray) -> Arrays:
    import torch

    image, text = as_torch(images, tokens, model)
    with torch.no_grad():
        features = model.encode_image(image, normalize=False), model.encode_text(text, False)
        image_embeds, text_embeds = (torch.nn.functional.normalize(x, dim=-1) for x in features)
        logits = model.logit_scale.exp() * image_embeds @ text_embeds.T
        if model.logit_bias is not None:
            logits = logits + model.logit_bias
    names = ("image_features", "text_features", "logits")
    return {name: x.numpy() for name, x in zip(names, (*features, logits), strict=True)}


# transformers -------------------------------------------------------------------------------------


def hugging_face_peer(name: str, config: dict[str, Any], seed: int = 0) -> Peer:
    """A model of transformers by the name of its class and the fields of its config."""
    torchvision_transforms()
    import transformers

    kind = getattr(transformers, name)
    model = kind(kind.config_class(**config)).eval()
    draw(model, seed)
    transformers.utils.logging.disable_progress_bar()
    run = run_hugging_face if "TextModel" not in name and "VisionModel" not in name else run_tower
    return Peer(model, lambda folder: model.save_pretrained(folder), run)


def run_hugging_face(model: Any, images: np.ndarray, tokens: np.ndarray) -> Arrays:
    import torch

    image, text = as_torch(images, tokens, model)
    with torch.no_grad():
        return {
            "image_features": model.get_image_features(image).pooler_output.numpy(),
            "text_features": model.get_text_features(text).pooler_output.numpy(),
            "logits": model(pixel_values=image, input_ids=text).logits_per_image.numpy(),
        }


def run_tower(model: Any, images: Any, tokens: Any) -> Arrays:
    """Of one tower alone: features, and what goes into the first block and comes out of each."""
    import torch

    image, text = as_torch(images, tokens, model)
    given = {"pixel_values": image} if image is not None else {"input_ids": text}
    with torch.no_grad():
        out = model(**given, output_hidden_states=True)
    features = next(
        out[key] for key in ("text_embeds", "image_embeds", "pooler_output") if key in out
    )
    hidden = np.stack([state.numpy() for state in out.hidden_states])
    return {"features": features.numpy(), "hidden_states": hidden}


# Published weights --------------------------------------------------------------------------------


def saved_peer(folder: Path) -> Peer:
    """The model that a folder of open_clip or transformers holds, with its own weights."""
    torchvision_transforms()
    if (folder / "open_clip_config.json").is_file():
        import open_clip

        model = open_clip.create_model(f"local-dir:{folder}").eval().float()
        return Peer(model, lambda _: None, run_open_clip)
    import torch
    import transformers

    config = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    is_whole = hasattr(model, "get_image_features")
    return Peer(model, lambda _: None, run_hugging_face if is_whole else run_tower)
