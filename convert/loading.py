"""From a checkpoint in any layout to our form: first its layout, its config, then the arrays."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxclip import checkpoint
from jaxclip.checkpoint import Flat
from jaxclip.config import Activation, ClipConfig
from jaxclip.model_tokenizer import FILE_NAME, remember

from .archive import strict_json
from .description import SIGLIP_LAYOUTS, Described, describe
from .files import Weights, open_weights
from .given import Given, require_agreement
from .layouts import big_vision, open_clip, open_clip_config, pictures, vocabulary
from .layouts.infer import Heads
from .layouts.table import Config, to_ours
from .missing_config import config_from_shapes

CONVERTER = 1  # raised whenever the same file gives another result


class Loaded(NamedTuple):
    """A whole model: arrays under our names in the file's number formats, config and origin."""

    flat: Flat
    config: Config
    notes: dict[str, Any]


def _choose_config(found: Described, given: Given, arrays: Flat, what: str) -> Config:
    """The config beside the file, or the one that its shapes show."""
    if found.config is None:
        return config_from_shapes(found, given, arrays, what)
    require_agreement(given, found.config, what)
    return found.config


def _with_inputs(found: Described, config: Config, folder: Path) -> Config:
    """The config with its preprocessing and its tokenizer, from the files beside the weights."""
    native = next((x for x in found.files if x.name == open_clip_config.CONFIG_NAME), None)
    data = None if native is None else strict_json.read(native)
    siglip = found.layout in (*SIGLIP_LAYOUTS, big_vision.LAYOUT)
    if config.vision is not None:
        if data is not None:
            how = pictures.from_open_clip(data.get("preprocess_cfg", {}))
        else:
            size = config.vision.image_sides[0]  # square: open_clip's config alone says otherwise
            how = pictures.from_folder(found.files, size, "Siglip" if siglip else "CLIP")
        config = dataclasses.replace(config, pictures=how)
    if config.text is not None and not found.is_official:
        text_cfg = None if data is None else data["model_cfg"]["text_cfg"]
        own = vocabulary.of_folder(folder, config.text, text_cfg, siglip=siglip)
        text = dataclasses.replace(config.text, tokenizer=own)
        if isinstance(config, ClipConfig):
            return dataclasses.replace(config, text=text)
        return dataclasses.replace(config, tower=text)
    return config


def _stat_key(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


class Digests(Mapping[str, str]):
    """{file name: SHA-256} of files, each of which is hashed when it is first looked up.

    Hashing takes half as long as loading, and few callers read the digests.
    A look-up raises ValueError where a file has changed since this was made, OSError where it is
    gone.
    """

    def __init__(self, files: list[Path]) -> None:
        self._files = {file.name: (file, _stat_key(file.stat())) for file in files}
        self._known: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self._known:
            path, stat_key = self._files[name]
            with open(path, "rb") as file:
                if _stat_key(os.fstat(file.fileno())) != stat_key:
                    raise ValueError(f"{path} was changed since it was loaded; load it again")
                self._known[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _to_ours(
    found: Described, config: Config, arrays: Flat, check_numbers: bool
) -> tuple[Flat, dict[str, int | None]]:
    """`to_ours`, whose faults may be the config's where it stands in a file of its own."""
    if found.layout is big_vision.LAYOUT:
        arrays = big_vision.plain_arrays(arrays)
    try:
        return to_ours(found.layout, config, arrays, check_numbers=check_numbers)
    except ValueError as error:
        if not found.config_name:
            raise
        raise ValueError(f"{found.config_name} does not describe the weights: {error}") from None


def _load_foreign(weights: Weights, given: Given, check_numbers: bool) -> tuple[Loaded, list[Path]]:
    arrays, path = open_clip.without_decoder(weights.arrays), weights.files[0]
    found = describe(arrays, path.parent)
    config = _choose_config(found, given, arrays, path.name)
    config = _with_inputs(found, config, path.parent)
    flat, extras = _to_ours(found, config, arrays, check_numbers)
    files = [*weights.files, *found.files]
    notes = {
        "image_policy": "official",
        "source": {"file": path.name, "sha256": Digests(files)},
        "converted": {"converter": CONVERTER, "layout": found.layout.name, "extras": extras},
    }
    if len(arrays) < len(weights.arrays):
        notes["left_out"] = "CoCa's text decoder"
    return Loaded(flat, config, notes), files


def _load_ours(weights: Weights, given: Given, check_numbers: bool) -> tuple[Loaded, list[Path]]:
    path = weights.files[0]
    for part in ("config", "notes"):
        strict_json.parse(weights.metadata.get(part, "{}").encode())
    config, notes = checkpoint.read_metadata(path, weights.metadata)
    loaded = Loaded(checkpoint.fill_rows(weights.arrays, config), config, notes)
    checkpoint.check_model(loaded.config, loaded.flat, check_numbers=check_numbers)
    require_agreement(given, loaded.config, path.name)
    beside = path.parent / FILE_NAME
    if loaded.config.text is not None and loaded.config.text.tokenizer and beside.is_file():
        remember(beside)
    return loaded, weights.files


def load_with_files(
    source: Path, given: Given, *, check_numbers: bool = True
) -> tuple[Loaded, list[Path]]:
    """The model, and the files that it was read from."""
    weights = open_weights(source)
    try:
        if weights.metadata.get("format") == checkpoint.FORMAT:
            return _load_ours(weights, given, check_numbers)
        return _load_foreign(weights, given, check_numbers)
    except ValueError as error:
        where = "" if str(error).startswith(str(source)) else f"{source}: "
        raise ValueError(f"{where}{error}") from None


def load(
    source: str | Path,
    *,
    activation: Activation | None = None,
    heads: Heads | None = None,
    check_numbers: bool = True,
) -> Loaded:
    """Read a model in any layout: (arrays under our names, config, notes).

    source: a file or folder as for `read`, or a file that jaxclip wrote. The layout is read off the
    keys, sizes off the shapes; a config beside the weights must agree with them.
    activation: "quick_gelu", "gelu" or "gelu_tanh" where nothing there says it.
    heads: attention heads (of the image tower, of the text tower) where nothing there says them and
      the shapes are not those of a released model.
    check_numbers: False leaves it to `models.parameters.from_flat`, which sees each number as it
      copies it, to refuse those that are not finite.
    The arrays keep the file's number formats; they are views of the mapped file where nothing had
    to be joined. `notes` has the origin of the model and what is needed to write it back.
    ValueError, in one line: the file is not sound, is no CLIP model, or lacks activation or heads.
    Source: clip/model.py: build_model; open_clip/model.py; transformers/models/clip.
    """
    return load_with_files(Path(source), Given(activation, heads), check_numbers=check_numbers)[0]
