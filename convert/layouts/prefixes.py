"""Prefixes of training programs: before all names they are taken off, elsewhere refused by name."""

import re
from collections.abc import Iterable
from typing import TypeVar

from jaxclip.convert.archive.inert import short_repr

Value = TypeVar("Value")

# What wraps a model in training, as it shows in the names of its tensors.
PREFIXES = (
    "module.",  # DistributedDataParallel, AveragedModel
    "_orig_mod.",  # torch.compile
    "model.",  # Lightning modules, by custom
    "_forward_module.",  # Lightning Fabric
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
)
_INSIDE = re.compile(
    r"(.*?\b)?(module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Names without a dot before them in every layout of a CLIP model that has them.
_LANDMARKS = re.compile(
    r"(.+\.)(visual\.conv1\.weight|vision_model\.embeddings\.class_embedding|logit_scale)"
)


def strip(named: dict[str, Value]) -> dict[str, Value]:
    """The same under names without the known prefixes that all of them carry.

    >>> strip({"module._orig_mod.a": 1, "module._orig_mod.b.c": 2})
    {'a': 1, 'b.c': 2}
    """
    while prefix := next((each for each in PREFIXES if _all_carry(named, each)), None):
        named = {name.removeprefix(prefix): value for name, value in named.items()}
    return named


def _all_carry(names: Iterable[str], prefix: str) -> bool:
    names = list(names)
    return bool(names) and all(name.startswith(prefix) and name != prefix for name in names)


def _wrapped(name: str) -> str | None:
    """The prefix of a name that wraps a part of a CLIP model, or None."""
    if name.startswith("model."):
        return "model."
    if (inside := _INSIDE.match(name)) is not None:
        return inside[0]
    landmark = _LANDMARKS.fullmatch(name)
    return landmark[1] if landmark is not None else None


def check(names: Iterable[str]) -> None:
    """ValueError that names a prefix which is left in the names of what should be a CLIP model."""
    names = list(names)
    prefix = next((found for found in map(_wrapped, names) if found is not None), None)
    if prefix is None:
        return
    others = [name for name in names if not name.startswith(prefix)]
    beside = f", and others such as {short_repr(others[0])} without it" if others else ""
    raise ValueError(
        f"expected the names of a CLIP model alone, got {len(names) - len(others)} with the prefix "
        f"{short_repr(prefix)}{beside}; save the state_dict() of the CLIP model inside"
    )
