"""Models of the Hugging Face Hub: the files that a model needs, in the cache of all programs.

A name is "owner/name", with or without "hf-hub:" in front; "@revision" and a folder inside of the
repository ("owner/name/text_encoder") may follow. `huggingface_hub` (extra `hub`) fetches and keeps
the files. What is cached is used without the network; each file is compared once with the digest
that the Hub names.

Environment:
  JAXCLIP_OFFLINE, HF_HUB_OFFLINE   1: the network is never used
  HF_HOME, HF_HUB_CACHE             where the files are kept
  HF_ENDPOINT                       another server that speaks the Hub's API
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jaxclip.convert.archive import strict_json
from jaxclip.convert.files import LARGEST_INDEX, WEIGHTS
from jaxclip.files import read_text
from jaxclip.hub.released import cache_folder
from jaxclip.terminal import complain

PREFIX = "hf-hub:"
PICTURES = ("preprocessor_config.json", "processor_config.json")
CONFIGS = ("config.json", "open_clip_config.json")
WORDS = ("tokenizer.json", "tokenizer_config.json")
SETTINGS = (*CONFIGS, *PICTURES, *WORDS)
ENDINGS = (".safetensors", ".pt", ".bin", ".npz", ".json")  # of files, which are no names
_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?P<folder>(/[A-Za-z0-9][\w.-]{0,95})*)(@(?P<revision>[\w.][\w./-]{0,99}))?",
    re.ASCII,
)
TIMEOUT = 20.0  # seconds for the list of a repository's files
MOST_BYTES = 1 << 20  # of a note


class _Wrong(Exception):
    """What the Hub has is not what a model needs."""


class HubName(NamedTuple):
    """A repository, a revision of it and a folder inside."""

    repo: str
    revision: str | None
    folder: str  # "" for the top


def parse(name: str) -> HubName | None:
    """The parts of a Hub id, or None where a text is none.

    >>> parse("google/siglip-base-patch16-224@main")
    HubName(repo='google/siglip-base-patch16-224', revision='main', folder='')
    """
    found = _NAME.fullmatch(name.removeprefix(PREFIX))
    if found is None or ".." in name:
        return None
    is_file = name.endswith(ENDINGS) and not name.startswith(PREFIX)
    return None if is_file else HubName(found["repo"], found["revision"], found["folder"][1:])


def is_offline() -> bool:
    """Whether the environment forbids the network."""
    off = ("", "0", "false", "no", "off")
    names = ("JAXCLIP_OFFLINE", "HF_HUB_OFFLINE")
    return any(os.environ.get(name, "").strip().lower() not in off for name in names)


# What is in the cache -----------------------------------------------------------------------------


def _cached(hub: Any, name: HubName, file: str, cache: str | None) -> Path | None:
    """A file of the repository in the Hub's cache."""
    path = f"{name.folder}/{file}" if name.folder else file
    found = hub.try_to_load_from_cache(name.repo, path, cache_dir=cache, revision=name.revision)
    return Path(found) if isinstance(found, str) else None


def _cached_folder(hub: Any, name: HubName, cache: str | None) -> Path | None:
    """The folder of the cache with a config and whole weights; None where something is missing."""
    folders = [path.parent for file in CONFIGS if (path := _cached(hub, name, file, cache))]
    if not folders:
        return None
    files = [file for file in WEIGHTS if (folders[0] / file).is_file()]
    if not files:
        return None
    index = folders[0] / files[0]
    return folders[0] if all((folders[0] / x).is_file() for x in _shards(index)) else None


def _shards(index: Path) -> list[str]:
    """The names of the files that the index of a sharded checkpoint lists; none of another file."""
    if not index.name.endswith(".index.json"):
        return []
    listed = strict_json.read(index, LARGEST_INDEX).get("weight_map")
    names = listed.values() if type(listed) is dict else ()
    return sorted({name for name in names if type(name) is str and "/" not in name})


def _note(name: HubName, folder: Path, cache_dir: str | Path | None) -> Path:
    """Where the names of a snapshot's verified files are kept; its commit is part of the path."""
    parts = (*name.repo.split("/"), *folder.parts[folder.parts.index("snapshots") + 1 :])
    return cache_folder(cache_dir) / "hub" / f"{'--'.join(parts)}.json"


def _is_verified(name: HubName, folder: Path, cache_dir: str | Path | None) -> bool:
    """Whether this program fetched and verified all that the model needs."""
    try:
        files = json.loads(read_text(_note(name, folder, cache_dir), MOST_BYTES))
    except (ValueError, OSError):
        return False
    return type(files) is list and all((folder / str(file)).is_file() for file in files)


# What is on the Hub -------------------------------------------------------------------------------


def choose_files(there: set[str]) -> list[str]:
    """Of the files of a repository's folder: its settings, and weights of one kind, the best first.

    >>> choose_files({"config.json", "model.safetensors", "pytorch_model.bin", "README.md"})
    ['config.json', 'model.safetensors']
    """
    weights = [name for name in WEIGHTS if name in there][:1]
    return [*(name for name in SETTINGS if name in there), *weights]


def _digest(path: Path, size: int, is_lfs: bool) -> str:
    """The digest by which the Hub names a file: SHA-256 in LFS, git's of a small one."""
    if is_lfs:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    content = b"blob %d\0" % size + path.read_bytes()
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _verify(path: Path, sibling: Any) -> None:
    """`_Wrong` where a file is not what the Hub says; it is removed from the cache."""
    expected = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if expected is None:
        return
    size = path.stat().st_size
    got = _digest(path, size, sibling.lfs is not None)
    if got == expected and sibling.size in (None, size):
        return
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    raise _Wrong(
        f"{sibling.rfilename}: expected {sibling.size} bytes with digest {expected}, got {size} "
        f"bytes with {got}; it was removed from the cache, load the model again"
    )


def _fetch(hub: Any, name: HubName, cache: str | None, cache_dir: str | Path | None) -> Path:
    """The folder of a snapshot with all files that the model needs, fetched and verified."""
    endpoint = os.environ.get("HF_ENDPOINT") or None
    api = hub.HfApi(endpoint=endpoint)
    info = api.model_info(name.repo, revision=name.revision, files_metadata=True, timeout=TIMEOUT)
    start = f"{name.folder}/" if name.folder else ""
    siblings = {
        x.rfilename.removeprefix(start): x for x in info.siblings if x.rfilename.startswith(start)
    }
    chosen = choose_files(set(siblings))
    if not chosen or chosen[-1] not in WEIGHTS:
        raise _Wrong(
            f"{name.repo}: expected one of {', '.join(WEIGHTS)} in "
            f"{f'its folder {name.folder}' if name.folder else 'the repository'}, got none"
        )

    def get(files: list[str]) -> Path:
        root = hub.snapshot_download(
            name.repo,
            revision=name.revision,
            cache_dir=cache,
            endpoint=endpoint,
            allow_patterns=[f"{start}{file}" for file in files],
        )
        for file in files:
            _verify(Path(root, f"{start}{file}"), siblings[file])
        return Path(root, name.folder)

    folder = get(chosen)
    if shards := _shards(folder / chosen[-1]):
        if missing := [shard for shard in shards if shard not in siblings]:
            raise _Wrong(f"{name.repo}: expected the file {missing[0]} of its index, got none")
        get(shards)
    with suppress(OSError):  # without a note the next run compares the digests again
        note = _note(name, folder, cache_dir)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps([*chosen, *shards]), encoding="utf-8")
    return folder


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _explain(name: HubName, error: Exception) -> Exception:
    """One line that says what to do, for what `huggingface_hub` raises."""
    from huggingface_hub import errors

    answers = [x for x in _chain(error) if isinstance(x, errors.HfHubHTTPError)]
    answer = answers[-1] if answers else None
    status = getattr(getattr(answer, "response", None), "status_code", "an error")
    if isinstance(answer, errors.GatedRepoError):
        return OSError(
            f"{name.repo}: expected a model that everybody may load, got one whose terms have to "
            f"be accepted on its page; do so, then `hf auth login` ({status})"
        )
    if isinstance(answer, errors.RepositoryNotFoundError):
        return ValueError(
            f"expected a model of the Hugging Face Hub, got {name.repo!r}, which is not there or "
            f"is private ({status}); look for its name, or `hf auth login`"
        )
    if isinstance(answer, errors.RevisionNotFoundError):
        return ValueError(
            f"{name.repo}: expected a revision that it has, got {name.revision!r}; see its page"
        )
    if answer is not None:
        return OSError(
            f"{name.repo}: expected its files from the Hub, got the answer {status}; try again "
            "later, or put the files into a folder and name that"
        )
    last = list(_chain(error))[-1]
    reason = " ".join(str(last).split())[:200] or type(last).__name__
    return OSError(
        f"{name.repo}: expected its files from the Hub, got none ({reason}); check the network, "
        "or put the files into a folder and name that"
    )


def _require_hub(name: HubName) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(
            f"{name.repo} is no file here; a model of the Hugging Face Hub needs the package "
            "huggingface_hub: pip install 'jaxclip[hub]'"
        ) from None
    return huggingface_hub


def snapshot(name: HubName, cache_dir: str | Path | None = None) -> Path:
    """The folder of a model's files in the cache, fetched where they are not there yet.

    cache_dir: in place of the Hub's own cache folder.
    ValueError: no such model, revision or weights, or a file with another digest. OSError: the
    network or the disk failed, or the environment forbids it and the files are not there.
    """
    hub = _require_hub(name)
    cache = None if cache_dir is None else str(cache_dir)
    folder = _cached_folder(hub, name, cache)
    if folder is not None and _is_verified(name, folder, cache_dir):
        return folder
    if is_offline():
        if folder is None:
            raise FileNotFoundError(
                f"{name.repo} is not in the Hub's cache, and JAXCLIP_OFFLINE or HF_HUB_OFFLINE "
                "forbids to fetch it; load it once with the network"
            )
        _warn_of_missing(name, folder)
        return folder
    try:
        return _fetch(hub, name, cache, cache_dir)
    except _Wrong as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # of the library, and of whichever client it uses
        raise _explain(name, error) from None


def _warn_of_missing(name: HubName, folder: Path) -> None:
    """Say which settings another program may have left out of the cache."""
    is_native = (folder / CONFIGS[1]).is_file()
    if not is_native and not any((folder / file).is_file() for file in PICTURES):
        complain(
            "jaxclip",
            f"{name.repo}: the cache has no {PICTURES[0]}; its library's defaults are used",
        )
