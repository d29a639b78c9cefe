"""Names and shapes of a whole model of open_clip, without its memory."""

import math
from typing import Any

from experiments.lib.peers.model_peers import open_clip_class, without_decoder
from experiments.lib.peers.parity_support import torchvision_transforms
from jaxclip.convert.layouts import open_clip, open_clip_config
from jaxclip.convert.layouts.table import entries


def theirs(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the library's own state dict, on torch's device without storage."""
    torchvision_transforms()
    import torch

    options = {k: v for k, v in settings.items() if k != "custom_text"}
    with torch.device("meta"):
        model = open_clip_class(settings)(**options)
    found = without_decoder(model.state_dict().items())
    return {name: tuple(value.shape) for name, value in found}


def ours(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """{their name: shape} that our layout expects of such a file."""
    config = open_clip_config.from_json({"model_cfg": settings})
    layout = open_clip.LAYOUT
    if open_clip.has_trunk(config):
        layout = open_clip.TRUNK
    elif settings.get("custom_text"):
        layout = open_clip.CUSTOM_TEXT
    found: dict[str, tuple[int, ...]] = {}
    for entry in entries(layout, config):
        found |= dict(zip(entry.names, entry.shapes, strict=True))
    counters = (name for group in layout.extras(config) for name in group)
    return found | dict.fromkeys(counters, ())


def differing_shapes(settings: dict[str, Any]) -> dict[str, Any]:
    """The numbers of tensors and parameters, and how many of them differ from the library's."""
    expected, got = theirs(settings), ours(settings)
    names = expected.keys() | got.keys()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {
        "tensors": len(expected),
        "parameters": sum(
            math.prod(shape) for name, shape in expected.items() if not name.endswith(statistics)
        ),
        "differ": sum(expected.get(name) != got.get(name) for name in names),
    }
