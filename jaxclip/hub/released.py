"""The official weights: fetched once, compared with size and SHA-256, kept in a cache folder.

Environment:
  JAXCLIP_CACHE    folder of the files; without it $XDG_CACHE_HOME/jaxclip, else ~/.cache/jaxclip
  JAXCLIP_MIRROR   replaces https://openaipublic.azureedge.net/clip/models: a file is requested from
                   <mirror>/<sha256>/<file name>; https, or http on this machine (127.0.0.1)
  JAXCLIP_OFFLINE  1: the network is never used, the file has to be in the folder already

A file that was put into the folder by hand under its official name (ViT-B-32.pt) serves as well; a
hidden note beside it (.ViT-B-32.pt.json) spares hashing it again.
"""

import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from jaxclip.hub.download import download, is_allowed, writing
from jaxclip.images.kinds import text_kind
from jaxclip.terminal import complain

OFFICIAL = "https://openaipublic.azureedge.net/clip/models"


@dataclass(frozen=True)
class ReleasedFile:
    """Where an official file is and what it has to be; `size` in bytes."""

    url: str
    sha256: str
    size: int

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


# clip/clip.py: _MODELS, in the released order
_TABLE = """
RN50            255827503 afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762
RN101           291791292 8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599
RN50x4          421854225 7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd
RN50x16         661125706 52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa
RN50x64        1353500174 be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c
ViT-B/32        353976522 40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af
ViT-B/16        350837078 5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f
ViT-L/14        932768134 b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836
ViT-L/14@336px  934088680 3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02
"""


def _released(name: str, size: str, sha256: str) -> ReleasedFile:
    file_name = name.replace("/", "-").replace("@", "-") + ".pt"
    return ReleasedFile(f"{OFFICIAL}/{sha256}/{file_name}", sha256, int(size))


RELEASED_FILES: dict[str, ReleasedFile] = {
    row.split()[0]: _released(*row.split()) for row in _TABLE.strip().splitlines()
}


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _mark(path: Path, released: ReleasedFile) -> str:
    """What distinguishes a verified file from one that was changed or replaced since."""
    status = path.stat()
    return f"{released.sha256} {status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _write_note(path: Path, released: ReleasedFile) -> None:
    with suppress(OSError):  # without a note the next run hashes the file again
        _note(path).write_text(_mark(path, released), "utf-8")


def _is_there(path: Path, released: ReleasedFile) -> bool:
    """Whether the verified file is at `path`; raises when another one is."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise OSError(f"{path} is {kind}; expected the official file or nothing; move it away")
    with suppress(OSError, ValueError):
        if _note(path).read_text("utf-8") == _mark(path, released):
            return True
    with path.open("rb") as file:
        kind = text_kind(file.read(512)) or "other content"
        file.seek(0)
        if status.st_size == released.size:  # otherwise its digest need not be known
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest == released.sha256:
                _write_note(path, released)
                return True
            kind = f"sha256 {digest}"
    raise ValueError(
        f"{path}: expected the official file, {released.size} bytes with sha256 "
        f"{released.sha256}, got {status.st_size} bytes, {kind}; delete it or move it away"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`; say so once where another process has it."""
    from filelock import FileLock, Timeout  # here: a file in the cache needs no lock

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with writing(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            complain("jaxclip", f"waiting for another process that downloads {path.name}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _address(released: ReleasedFile) -> str:
    mirror = os.environ.get("JAXCLIP_MIRROR", "").strip().rstrip("/")
    address = f"{mirror}/{released.sha256}/{released.file_name}" if mirror else released.url
    if not is_allowed(address):
        raise ValueError(
            f"expected an address https://... (http on this machine only), got {address!r}; "
            "change JAXCLIP_MIRROR, or name a folder of files with JAXCLIP_CACHE"
        )
    return address


@contextmanager
def _progress(name: str, size: int) -> Iterator[Callable[[int], None]]:
    """A function that shows on stderr how many bytes are here: a bar, or a line each tenth."""
    if sys.stderr is not None and sys.stderr.isatty():
        # here, because a file that is already in the cache needs no bar
        from rich.console import Console
        from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        defaults = Progress.get_default_columns()[:2]
        with Progress(*defaults, *columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=size)
            yield lambda count: bar.update(task, completed=count)
        return
    tenth = 0

    def show(count: int) -> None:
        nonlocal tenth
        if count * 10 // size != tenth:
            tenth = count * 10 // size
            complain("jaxclip", f"{name}: {count / 1e6:.1f} of {size / 1e6:.1f} MB")

    yield show


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The folder of downloaded files; it need not exist yet.

    Args:
      cache_dir: the folder itself. Without it $JAXCLIP_CACHE, else $XDG_CACHE_HOME/jaxclip, else
        ~/.cache/jaxclip. An XDG_CACHE_HOME that is no absolute path counts as none.

    Raises:
      OSError: it is to be in the home directory, and there is none.

    Source: XDG Base Directory Specification 0.8.

    >>> cache_folder("weights").name
    'weights'
    """
    given = cache_dir or os.environ.get("JAXCLIP_CACHE")
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    default = Path(xdg) if os.path.isabs(xdg) else Path("~/.cache")
    try:
        return Path(given).expanduser() if given else default.expanduser() / "jaxclip"
    except RuntimeError as error:
        raise OSError(f"{error}; name a folder with JAXCLIP_CACHE") from error


def fetch(name: str, cache_dir: str | Path | None = None) -> Path:
    """The path of an official file on this machine, verified; downloaded if it is not there yet.

    Args:
      name: of a released model, a key of `RELEASED_FILES`.
      cache_dir: where to look and to keep it; see `cache_folder`.

    Returns:
      A file whose size and SHA-256 are those of the table. It is hashed once; later calls
      compare size, time of change and inode with those noted then.

    Raises:
      ValueError: no such name or address, or other bytes than those expected.
      OSError: the network or the disk failed, or JAXCLIP_OFFLINE is set and the file is not there.
        Nothing that was there before is changed by a failure.

    Source: clip/clip.py: _download, which writes to the final name at once.

    >>> fetch("RN51")
    Traceback (most recent call last):
    ValueError: no released model is named 'RN51'; expected one of RN50, RN101, RN50x4, RN50x16, \
RN50x64, ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px
    """
    if name not in RELEASED_FILES:
        known = ", ".join(RELEASED_FILES)
        raise ValueError(f"no released model is named {name!r}; expected one of {known}")
    released = RELEASED_FILES[name]
    path = cache_folder(cache_dir) / released.file_name
    if _is_there(path, released):
        return path
    if os.environ.get("JAXCLIP_OFFLINE", "0") not in ("", "0"):
        raise FileNotFoundError(
            f"{path} is not there, and JAXCLIP_OFFLINE forbids to download it; put {released.url} "
            f"there ({released.size} bytes, sha256 {released.sha256})"
        )
    address = _address(released)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if not _is_there(path, released):  # another process may have fetched it meanwhile
            complain("jaxclip", f"downloading {address} ({released.size / 1e6:.1f} MB) to {path}")
            with _progress(name, released.size) as show:
                download(address, path, released.size, released.sha256, show)
            _write_note(path, released)
    return path
