"""The run folder of `jaxclip train`: what it holds, and how it is prepared and locked."""

import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import jax
from jax.experimental import multihost_utils

from jaxclip.checkpoint import replacing
from jaxclip.cli.shared import UsageError
from jaxclip.cli.train_flags import TrainFlags
from jaxclip.files import read_text, require_writable
from jaxclip.training.recipe import Recipe

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
FILES = (
    *("config.json", "data.json", "metrics.jsonl", "model.safetensors", "average.safetensors"),
    *("result.json", "loss.png", "answers.png", "similarity.png"),
)
FOLDERS = ("state", "state-damaged", "profile", "tensorboard")
LISTS = ("data", "weights", "listings")  # in data.json
MOST_BYTES = 2**20  # of config.json and data.json


class RunInputs(NamedTuple):
    """The data and the checkpoint of a run; kept in data.json."""

    data: tuple[str, ...]
    weights: tuple[float, ...] = ()
    start: str = ""
    zero_shot: str = ""
    retrieval: str = ""
    data_dir: str = ""
    skip_limit: int = 1000
    listings: tuple[str, ...] = ()
    """Of each data set when the run began (`data.listing`); none in folders of version 0.1.0."""

    @classmethod
    def from_flags(cls, flags: TrainFlags) -> Self:
        """The inputs that a command line names."""
        return cls(
            flags.data,
            flags.weights,
            flags.start,
            flags.zero_shot,
            flags.retrieval,
            str(flags.data_dir or ""),
            flags.skip_limit,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inputs that `to_json` wrote; ValueError for any other text."""
        try:
            found = json.loads(text)
            lists = {name: tuple(found[name]) for name in LISTS if name in found}
            inputs = cls(**{**found, **lists})
        except (TypeError, KeyError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"expected the data of a run, got something else ({error})") from None
        texts = (
            *inputs.data,
            *inputs.listings,
            inputs.start,
            inputs.zero_shot,
            inputs.retrieval,
            inputs.data_dir,
        )
        numbers = (*inputs.weights, inputs.skip_limit)
        if not (inputs.data and all(isinstance(x, str) for x in texts)):
            raise ValueError(f"expected the data of a run as texts, got {texts}")
        if not all(type(x) in (int, float) and x >= 0 for x in numbers):
            raise ValueError(f"expected weights and skip_limit of at least 0, got {numbers}")
        return inputs

    def to_json(self) -> str:
        """The inputs as indented JSON."""
        return json.dumps(self._asdict(), indent=2)

    def require_weights(self) -> None:
        """UsageError unless the weights suit the data."""
        good = all(0 < weight < math.inf for weight in self.weights)
        if self.weights and not (good and len(self.weights) == len(self.data)):
            raise UsageError(
                f"--weights: expected {len(self.data)} positive numbers, one a data set, "
                f"got {list(self.weights)}"
            )


def with_listings(inputs: RunInputs, found: tuple[str, ...]) -> RunInputs:
    """The inputs with the listings of their data; a warning for each that was another before."""
    for data, before, now in zip(inputs.data, inputs.listings, found, strict=False):
        if now != before and jax.process_index() == 0:
            logger.warning(
                "%s: expected the data that the run began with (%s), got others (%s); in this "
                "epoch some pairs may come twice and some not at all",
                *(data, before, now),
            )
    return inputs if inputs.listings else inputs._replace(listings=found)


def prepare_folder(out: Path, recipe: Recipe, inputs: RunInputs, resume: bool, force: bool) -> None:
    """Write config.json and data.json into the run folder; a resumed run has them already."""
    if jax.process_index() == 0 and not resume:
        _prepare_folder(out, recipe, inputs, force)
    multihost_utils.sync_global_devices("the run folder is there")


@contextlib.contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Lock a run folder, where the system has locks; UsageError if another program has it."""
    require_writable(out / "config.json")
    if fcntl is None or jax.process_index() > 0:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"--out: expected a folder that no other program trains in, got {out}; wait for "
                "it, or name another"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def _require_run(out: Path) -> None:
    """UsageError where --force would delete files that are not a run's."""
    readers = {"config.json": Recipe.from_json, "data.json": RunInputs.from_json}
    for name, read in readers.items():
        with contextlib.suppress(ValueError, OSError):
            read(read_text(out / name, MOST_BYTES))
            return
    found = [name for name in (*FILES, *FOLDERS) if os.path.lexists(out / name)]
    if found:
        raise UsageError(
            f"--force: expected the folder of a run in {out}, got {found[0]} and neither "
            "config.json nor data.json of a run; delete it or name another --out"
        )


def _prepare_folder(out: Path, recipe: Recipe, inputs: RunInputs, force: bool) -> None:
    try:
        str(out.absolute()).encode()
    except UnicodeEncodeError:  # Orbax could not save there
        raise UsageError(f"--out: expected a name in UTF-8, got {out}") from None
    if out.exists() and any(out.iterdir()):
        if not force:
            raise UsageError(f"{out} is there already; add --resume, --force or another --out")
        _require_run(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in reversed(FILES):  # config.json last: it marks the folder as a run's
        (out / name).unlink(missing_ok=True)
    for name, text in {"config.json": recipe.to_json(), "data.json": inputs.to_json()}.items():
        with replacing(out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
