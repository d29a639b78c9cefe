"""Commands about weights: models, inspect, convert."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from jaxclip.cli.shared import AsJson, UsageError, print_line, print_table
from jaxclip.config import RELEASED, Activation, ClipConfig, ResNetConfig, Sides, name_sides


def _tower(config: ClipConfig) -> str:
    vision = config.vision
    if isinstance(vision, ResNetConfig):
        return f"ResNet, width {vision.width}, blocks {'-'.join(map(str, vision.layers))}"
    patch = name_sides(vision.patch_size)
    return f"ViT, width {vision.width}, {vision.layers} blocks, patches of {patch}"


def models(cache_dir: Path | None = None, as_json: AsJson = False) -> int:
    """List the models that have names: the embedded one and the nine released ones.

    Args:
        cache_dir: Where released models are kept; else JAXCLIP_CACHE or ~/.cache/jaxclip.
        as_json: Print one JSON object a model instead of a table.
    """
    from jaxclip.hub.released import RELEASED_FILES, cache_folder

    folder = cache_folder(cache_dir)
    columns = ("name", "image tower", "pixels", "embedding", "MB", "here")
    table = Table(*columns, caption=f"here: already in {folder}")
    for name, config in RELEASED.items():
        file = RELEASED_FILES[name]
        official = folder / file.file_name
        here = official.is_file() or official.with_suffix(".safetensors").is_file()
        size = config.vision.image_size
        record = {"name": name, "url": file.url, "sha256": file.sha256, "bytes": file.size}
        if as_json:
            print(json.dumps({**record, "here": here, "config": dataclasses.asdict(config)}))
        megabytes = f"{file.size / 1e6:.0f}"
        row = (name, _tower(config), str(size), str(config.embed_dim), megabytes)
        table.add_row(*row, "yes" if here else "")
    if not as_json:
        table.add_row("emoji", "the embedded model", "", "", "", "yes")
        print_table(table)
    return 0


def inspect(
    file: Annotated[Path, tyro.conf.Positional],
    activation: Activation | None = None,
    heads: tuple[int, int] | None = None,
    tensors: bool = False,
    as_json: AsJson = False,
) -> int:
    """Say what a checkpoint file or folder holds, without running anything in it.

    Args:
        file: A checkpoint: ours, OpenAI's, open_clip's or Hugging Face's.
        activation: Of a file that does not say which one it needs.
        heads: Attention heads of the image and the text tower, of a file that does not say them.
        tensors: List every tensor with its shape and number format as well.
        as_json: Print one JSON object instead of text.
    """
    from jaxclip import convert
    from jaxclip.hub.find import find

    try:
        loaded = convert.load(find(file), activation=activation, heads=heads)
    except ValueError as error:
        if "does not say" not in str(error):
            raise
        raise UsageError(str(error)) from None
    flat, config, notes = loaded
    formats = sorted({str(x.dtype) for x in flat.values()})
    count = int(sum(x.size for x in flat.values()))
    listed = {name: [str(x.dtype), list(x.shape)] for name, x in flat.items()}
    if as_json:
        record = {"file": str(file), "parameters": count, "formats": formats, "notes": notes}
        record |= {"config": dataclasses.asdict(config)}
        print(json.dumps(record | ({"tensors": listed} if tensors else {}), default=dict))
        return 0
    same = [name for name, released in RELEASED.items() if released == config]
    text, v = config.text, config.vision
    words = f"{text.kind}, width {text.width}, {text.layers} blocks, {text.context_length} tokens"
    rows = {
        "shape of": ", ".join(same) or "no released model",
        "image tower": f"{_tower(config)}, {name_sides(v.image_size)} pixels",
        "text tower": words if text.kind == "transformer" else f"bag of words, width {text.width}",
        "embedding": str(config.embed_dim),
        "activation": config.activation,
        "parameters": f"{count:,} in {len(flat)} tensors, {', '.join(formats)}",
        "notes": json.dumps(notes, default=dict),
    }
    for name, value in rows.items():
        print_line(f"{name:12s} {value}")
    for name, (format_, shape) in listed.items() if tensors else ():
        print_line(f"{name:70s} {format_:9s} {shape}")
    return 0


def convert(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    layout: Literal["jaxclip", "openai", "open_clip", "huggingface"] = "jaxclip",
    activation: Activation | None = None,
    heads: tuple[int, int] | None = None,
    image_size: Sides | None = None,
    force: bool = False,
) -> int:
    """Write a model in another program's layout, or in ours, bit for bit.

    Args:
        source: A released model's name, a checkpoint file or a folder.
        target: What to write: a .safetensors file for jaxclip, a .pt file for openai, either for
            open_clip, a folder for huggingface.
        layout: Whose layout to write.
        activation: Of a file that does not say which one it needs.
        heads: Attention heads of the image and the text tower, of a file that does not say them.
        image_size: Pixels a side, or height and width, where the model is to run at another
            resolution: the positional embedding is resized as open_clip does, nothing else changes.
        force: Overwrite what is there.
    """
    from jaxclip import convert as converter
    from jaxclip.hub.find import find

    said: dict[str, Any] = {"activation": activation, "heads": heads}
    converter.convert(find(source), target, layout, **said, image_size=image_size, force=force)
    print_line(f"wrote {target} in the layout of {layout}")
    return 0
