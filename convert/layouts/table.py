"""A layout as a table of names and axes, both ways; a file has exactly its entries or is refused.

One key and one array, there and back:

>>> from jaxclip.config import RELEASED
>>> from jaxclip.convert.layouts import huggingface
>>> path = "text.transformer.resblocks.0.attn.in_proj_kernel"      # ours: [in, out] of q, k and v
>>> huggingface.LAYOUT.names(path)[0]                              # theirs: three arrays [out, in]
'text_model.encoder.layers.0.self_attn.q_proj.weight'
>>> entry = next(e for e in entries(huggingface.LAYOUT, RELEASED["ViT-B/32"]) if e.path == path)
>>> entry.shapes[0], entry.axes                    # of each of theirs; our axis i is their axes[i]
((512, 512), (1, 0))
>>> parts = [np.full(entry.shapes[0], number, np.float32) for number in (1, 2, 3)]  # q, k, v
>>> entry.to_ours(parts).shape                     # joined along their axis 0, then transposed
(512, 1536)
>>> all(map(np.array_equal, entry.to_theirs(entry.to_ours(parts)), parts))
True
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, NoReturn, TypeAlias

import numpy as np

from jaxclip.checkpoint import Flat, check_model, parameter_fault, shorten
from jaxclip.config import LARGEST, ClipConfig, ResNetConfig, TowerConfig
from jaxclip.convert.archive.inert import short_repr
from jaxclip.shapes import Shape, parameters

from .infer import kind

COUNTER = None  # for an extra whose value is any whole number
# Whole numbers beside the parameters: {foreign name: value that follows from the config}.
Extras: TypeAlias = dict[str, np.ndarray | None]
Config: TypeAlias = ClipConfig | TowerConfig


class Layout(NamedTuple):
    """How another program writes down the same parameters.

    names: of a parameter of ours; several where ours is theirs one after the other, along axis 0.
    axes: {kind of parameter: the axes of theirs in the order of ours}, where that is another one.
    extras: groups of which a file holds all or none.
    ones: {path of ours: how many axes of size 1 theirs has in front}.
    shares: {path of ours: shares of axis 0 that its names have}, where they are not equal.
    """

    name: str
    names: Callable[[str], tuple[str, ...]]
    axes: Mapping[str, tuple[int, ...]]
    extras: Callable[[Config], list[Extras]]
    ones: Mapping[str, int] = {}
    shares: Mapping[str, tuple[int, ...]] = {}


class Entry(NamedTuple):
    path: str  # ours
    names: tuple[str, ...]  # theirs
    axes: tuple[int, ...]
    shapes: tuple[Shape, ...]  # of theirs
    ones: int  # axes of size 1 in front of theirs

    def to_ours(self, parts: list[np.ndarray]) -> np.ndarray:
        """The array in our axes; a view where there is one part."""
        parts = [part.reshape(part.shape[self.ones :]) for part in parts]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole.transpose(self.axes)

    def to_theirs(self, array: np.ndarray) -> list[np.ndarray]:
        """The array in their axes, split into their parts, as views."""
        whole = array.transpose([self.axes.index(i) for i in range(len(self.axes))])
        if len(self.names) == 1:
            return [whole[(np.newaxis,) * self.ones]] if self.ones else [whole]
        ends = np.cumsum([shape[0] for shape in self.shapes])
        return np.split(whole, ends[:-1])


def _entry(layout: Layout, path: str, shape: Shape) -> Entry:
    axes = layout.axes.get(kind(path), tuple(range(len(shape))))
    names, ones = layout.names(path), layout.ones.get(path, 0)
    theirs = tuple(shape[i] for i in np.argsort(axes))
    if len(names) == 1:
        return Entry(path, names, axes, ((1,) * ones + theirs,), ones)
    shares = layout.shares.get(path, (1,) * len(names))
    sizes = [theirs[0] * share // sum(shares) for share in shares]
    return Entry(path, names, axes, tuple((size, *theirs[1:]) for size in sizes), ones)


def entries(layout: Layout, config: Config) -> Iterator[Entry]:
    """An entry for every parameter of ours, in their layout."""
    for path, shape in parameters(config).items():
        yield _entry(layout, path, shape)


def refuse(faults: list[str], layout: str) -> NoReturn:
    """ValueError with the first faults and the number of the others."""
    raise ValueError(
        f"no sound CLIP model in the layout {layout}: {shorten(faults)} (- is missing, + is "
        "unexpected); get the file again, or the model is of another kind"
    )


def _check_layers(layout: Layout, config: Config, arrays: Mapping[str, np.ndarray]) -> None:
    """ValueError where the config has another number of layers than the arrays.

    Before their names are made: a config may claim any number.
    """
    towers = {"visual": config.vision, "text": config.text}
    for prefix, tower in towers.items():
        if tower is None or isinstance(tower, ResNetConfig):
            continue
        count = layers_of(layout, arrays)(f"{prefix}.transformer.resblocks.{{}}.ln_1.bias")
        if count != tower.layers:
            refuse(
                [f"{prefix}.transformer: expected {tower.layers} layers, got {count}"], layout.name
            )


def _extra_fault(name: str, got: np.ndarray, expected: np.ndarray | None) -> str | None:
    shape = () if expected is None else expected.shape
    if got.dtype != np.int64 or got.shape != shape:
        return f"{name}: expected int64 of shape {shape}, got {got.dtype} of shape {got.shape}"
    if expected is None:
        return f"{name}: expected a count, got {got}" if got < 0 else None
    return None if (got == expected).all() else f"{name} does not agree with the shapes"


def to_ours(
    layout: Layout,
    config: Config,
    arrays: Mapping[str, np.ndarray],
    *,
    check_numbers: bool = True,
) -> tuple[Flat, dict[str, int | None]]:
    """(parameters under our names, extras in the file: counts, and None where the config has it).

    The arrays are views of the given ones wherever nothing had to be joined, in their formats.
    ValueError lists every name that is missing, unexpected, or of a wrong shape, format or value.
    """
    _check_layers(layout, config, arrays)
    wanted = list(entries(layout, config))
    faults, left = [], dict.fromkeys(arrays)
    for entry in wanted:
        formats = set()
        for name, shape in zip(entry.names, entry.shapes, strict=True):
            if name not in left:
                faults.append(f"- {name}")
                continue
            del left[name]
            formats.add(arrays[name].dtype)
            if fault := parameter_fault(name, arrays[name], shape, check_numbers=check_numbers):
                faults.append(fault)
        if len(formats) > 1:
            faults.append(f"{', '.join(entry.names)}: expected one number format")
    extras: dict[str, int | None] = {}
    for group in layout.extras(config):
        held = [name for name in group if name in left]
        faults += [f"- {name}" for name in group if held and name not in left]
        for name in held:
            del left[name]
            value = arrays[name]
            if fault := _extra_fault(name, value, group[name]):
                faults.append(fault)
            else:
                extras[name] = int(value) if group[name] is None else None
    faults += [f"+ {short_repr(name)} {arrays[name].shape}" for name in left]
    if faults:
        refuse(faults, layout.name)
    return {e.path: e.to_ours([arrays[name] for name in e.names]) for e in wanted}, extras


def _extra_values(
    layout: Layout, config: Config, extras: Mapping[str, int | None], only_these: bool
) -> Flat:
    """The extras to write: values that follow from the config, and counts as they were read."""
    known = {name: value for group in layout.extras(config) for name, value in group.items()}
    wanted = known.keys() & extras.keys() if only_these else known.keys()
    return {
        name: np.asarray(extras.get(name) or 0 if value is COUNTER else value, np.int64)
        for name, value in known.items()
        if name in wanted
    }


def to_theirs(
    layout: Layout,
    config: Config,
    flat: Mapping[str, np.ndarray],
    extras: Mapping[str, int | None],
    *,
    only_these: bool,
) -> Flat:
    """Parameters under their names, as views, and extras; the inverse of `to_ours`.

    extras: those that `to_ours` returned, or none of them.
    only_these: write no others, as for a model that was read from this layout.
    ValueError lists what does not fit the config.
    """
    check_model(config, flat)
    arrays: Flat = {}
    for entry in entries(layout, config):
        arrays.update(zip(entry.names, entry.to_theirs(flat[entry.path]), strict=True))
    return {**arrays, **_extra_values(layout, config, extras, only_these)}


# For `infer`: sizes read off the shapes -----------------------------------------------------------


def shape_of(layout: Layout, arrays: Mapping[str, np.ndarray]) -> Callable[[str, int], Shape]:
    """A function from a path of ours and its rank to its shape in our order."""

    def shape(path: str, rank: int) -> Shape:
        name = layout.names(path)[0]
        if name not in arrays:
            refuse([f"- {name}"], layout.name)
        ones = layout.ones.get(path, 0)
        theirs = arrays[name].shape[ones:]
        if len(theirs) != rank or 0 in theirs:
            expected = f"{name}: expected {rank + ones} sizes"
            refuse([f"{expected}, got shape {arrays[name].shape}"], layout.name)
        axes = layout.axes.get(kind(path), tuple(range(rank)))
        return tuple(theirs[i] for i in axes)

    return shape


def layers_of(layout: Layout, arrays: Mapping[str, np.ndarray]) -> Callable[[str], int]:
    """A function that counts what stands in the place of `{}` in a path of ours."""

    def layers(path: str) -> int:
        before, after = layout.names(path)[0].split("{}")
        pattern = re.compile(rf"{re.escape(before)}([0-9]{{1,9}}){re.escape(after)}")
        found = sorted(int(match[1]) for match in map(pattern.fullmatch, arrays) if match)
        if not 0 < len(found) <= LARGEST["layers"] or found != list(range(len(found))):
            numbers = ", ".join(map(str, found[:40])) or "none"
            refuse([f"{before}N: expected layers 0, 1, 2, ..., got {numbers}"], layout.name)
        return len(found)

    return layers
