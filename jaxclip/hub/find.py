"""From a name or a path to the file of a model; without jax, so that it takes no second."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jaxclip import checkpoint, convert
from jaxclip.config import RELEASED
from jaxclip.hub import hugging_face
from jaxclip.hub.released import RELEASED_FILES, cache_folder, fetch

EMBEDDED = "emoji"


def find(name_or_path: str | Path, cache_dir: str | Path | None = None) -> Path:
    """The file or folder that a name or path stands for, fetched if need be.

    A path that exists is itself. "hf-hub:owner/name", and "owner/name" where no folder "owner" is
    here, are models of the Hugging Face Hub (`hub.hugging_face`).
    A released model is converted once: what comes back is our file, in the cache folder beside the
    official one, which may then be deleted.

    Raises:
      ValueError: nothing is there; the message says what would have been a model.
      OSError: it cannot be fetched or written.
    """
    name = str(name_or_path)
    if name == EMBEDDED:
        return Path(str(files("jaxclip") / "data_files" / "emoji.safetensors"))
    if name in RELEASED:
        return _released(name, cache_dir)
    path = Path(name_or_path)
    if (path / "metrics.jsonl").is_file():
        if not (path / "model.safetensors").is_file():
            raise ValueError(
                f"{path} is a run that has not ended; finish it first: "
                f"jaxclip train --out {path} --resume"
            )
    elif not path.exists():
        if (of_hub := _of_hub(name)) is not None:
            return hugging_face.snapshot(of_hub, cache_dir)
        raise ValueError(
            f"no model is named {name!r} and no such file is there; expected {EMBEDDED!r}, one of "
            f"{', '.join(RELEASED)}, a run folder, a Hugging Face folder or a checkpoint file, or "
            "the id of a model on the Hugging Face Hub: owner/name"
        )
    return path


def _of_hub(name: str) -> hugging_face.HubName | None:
    """The parts of a Hub id, or None where a text is a path with a mistake."""
    owner = name.partition("/")[0]
    is_path = Path(owner).is_dir() or owner in {known.partition("/")[0] for known in RELEASED}
    if is_path and not name.startswith(hugging_face.PREFIX):
        return None
    return hugging_face.parse(name)


def _released(name: str, cache_dir: str | Path | None) -> Path:
    """Our file of a released model, made from the official one where it is not there yet."""
    folder, official = cache_folder(cache_dir), RELEASED_FILES[name]
    ours = folder / Path(official.file_name).with_suffix(".safetensors").name
    if ours.is_file() and _is_made_from(ours, official.sha256):
        return ours
    convert.convert(fetch(name, cache_dir), ours, url=official.url, force=True)
    return ours


def _is_made_from(ours: Path, sha256: str) -> bool:
    """Whether a file of the cache was converted, by this converter, from those very bytes."""
    try:
        notes = checkpoint.load_notes(ours)
    except ValueError:
        return False  # of another version or damaged: it is made anew
    converted = notes.get("converted")
    made = isinstance(converted, dict) and converted.get("converter") == convert.CONVERTER
    return made and sha256 in source_sums(notes)


def source_sums(notes: Mapping[str, Any]) -> list[Any]:
    """The SHA-256 of the files that a model's notes say it was made of; none where they say none.

    Notes are anybody's: other programs write them too.
    """
    source = notes.get("source")
    sums = source.get("sha256") if isinstance(source, Mapping) else None
    return list(sums.values()) if isinstance(sums, Mapping) else []
