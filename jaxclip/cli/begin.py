"""What a run begins or goes on with: recipe, data and first weights, from flags or its folder."""

import contextlib
import dataclasses
import json
import math
import os
import shlex
import shutil
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxclip import convert
from jaxclip.checkpoint import replacing
from jaxclip.cli.shared import UsageError, flag_error
from jaxclip.config import ClipConfig
from jaxclip.files import read_text, require_writable
from jaxclip.hub.find import find
from jaxclip.tokenizer import VOCAB_SIZE
from jaxclip.training import assembly, loop
from jaxclip.training.recipe import Layout, TrainConfig

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]

FILES = (
    *("config.json", "data.json", "metrics.jsonl", "model.safetensors", "average.safetensors"),
    *("result.json", "loss.png", "answers.png", "similarity.png"),
)
FOLDERS = ("state", "state-damaged", "profile", "tensorboard")
MOST_BYTES = 2**20  # of config.json and data.json


class Fed(NamedTuple):
    """What a run is fed with, besides its recipe; kept in data.json."""

    data: tuple[str, ...]
    weights: tuple[float, ...] = ()
    start: str = ""
    zero_shot: str = ""
    retrieval: str = ""
    data_dir: str = ""
    skip_limit: int = 1000

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote; ValueError for any other text."""
        try:
            found = json.loads(text)
            fed = cls(**{**found, "data": tuple(found["data"]), "weights": tuple(found["weights"])})
        except (TypeError, KeyError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"expected the data of a run, got something else ({error})") from None
        texts = (*fed.data, fed.start, fed.zero_shot, fed.retrieval, fed.data_dir)
        numbers = (*fed.weights, fed.skip_limit)
        if not (fed.data and all(isinstance(x, str) for x in texts)):
            raise ValueError(f"expected the data of a run as texts, got {texts}")
        if not all(type(x) in (int, float) and x >= 0 for x in numbers):
            raise ValueError(f"expected weights and skip_limit of at least 0, got {numbers}")
        return fed

    def to_json(self) -> str:
        """As indented JSON."""
        return json.dumps(self._asdict(), indent=2)

    def require_weights(self) -> None:
        """UsageError unless the weights suit the data."""
        good = all(0 < weight < math.inf for weight in self.weights)
        if self.weights and not (good and len(self.weights) == len(self.data)):
            raise UsageError(
                f"--weights: expected {len(self.data)} positive numbers, one a data set, "
                f"got {list(self.weights)}"
            )


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{name of the flag: value} of a recipe or of a part of it."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        name, value = prefix + field.name.replace("_", "-"), getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        found |= _flat(value, f"{name}.") if nested else {name: value}
    return found


def begin_run(
    flags: TrainConfig, start: str, given: Container[str]
) -> tuple[TrainConfig, dict[str, Any] | None]:
    """The recipe of a new run, and the weights that it begins with, if a checkpoint has them.

    Its model is the checkpoint's, and texts are as long as the model takes, unless flags say less.
    """
    if start:
        loaded = _resized(convert.load(find(start)), flags.model, given)
        model = {n: value for n, value in _flat(flags).items() if n.startswith("model.")}
        differ = _differing(model, _flat(loaded.config, "model."), given, "the checkpoint")
        if differ:
            raise UsageError(f"{differ}; --start trains the checkpoint's own model")
        return _recipe(flags, loaded.config, given, follow=True), dict(loaded.flat)
    return _recipe(flags, flags.model, given, follow="model.text.context-length" in given), None


def _recipe(
    flags: TrainConfig, model: ClipConfig, given: Container[str], follow: bool
) -> TrainConfig:
    """Flags as a recipe for a model; where they `follow` it, texts have its context length."""
    values = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags)}
    if follow and "text-length" not in given:
        values["text_length"] = model.text.context_length
    if model.text.vocab_size < VOCAB_SIZE:
        raise UsageError(
            f"--model.text.vocab-size: expected a model of {VOCAB_SIZE} tokens or more, as the "
            f"tokenizer has, got {model.text.vocab_size}; token ids above would have no embedding"
        )
    try:
        return TrainConfig(**{**values, "model": model})
    except ValueError as error:
        raise flag_error(error) from None


def _resized(loaded: convert.Loaded, wanted: ClipConfig, given: Container[str]) -> convert.Loaded:
    """A checkpoint at the picture size that a flag asks for, or the recipe of that very model."""
    size, own = wanted.vision.image_size, loaded.config.vision
    vision = dataclasses.replace(wanted.vision, image_size=own.image_size)
    same = "preset" in given and dataclasses.replace(wanted, vision=vision) == loaded.config
    if not (same or "model.vision.image-size" in given):
        return loaded
    try:
        return convert.at_size(loaded, size)
    except ValueError as error:
        raise UsageError(f"--model.vision.image-size: {error}") from None


def _differing(
    asked: dict[str, Any], has: dict[str, Any], named: Container[str], owner: str
) -> str:
    """The flags among `named` that ask for something else than what `owner` has, in words."""
    differ = (name for name, value in asked.items() if name in named and value != has.get(name))
    told = (
        f"--{name}: {owner} has {_said(has.get(name))}, got {_said(asked[name])}" for name in differ
    )
    return ", ".join(told)


def _said(value: Any) -> str:
    words = value if isinstance(value, tuple) else (value,)
    return " ".join(str(word) for word in words) or "none"


def resume_run(
    out: Path, flags: TrainConfig, fed: Fed, given: frozenset[str]
) -> tuple[TrainConfig, Fed, dict[str, Any] | None]:
    """Recipe and data of the run in `out`, and weights to begin with if it has no state yet.

    UsageError names each flag that was given and is another than the run's.
    """
    if not (out / "config.json").is_file():
        raise UsageError(f"{out} is no run folder: it has no config.json; leave out --resume")
    config = _from_json(out / "config.json", TrainConfig.from_json)
    kept = _from_json(out / "data.json", Fed.from_json)
    named = set(given)
    if "preset" in given:
        named |= {n for n in _flat(flags) if not (kept.start and n.startswith("model."))}
    if "text-length" not in given and (kept.start or "model.text.context-length" in given):
        named.discard("text-length")  # it followed the model
    own = ("weights", "start", "zero_shot", "retrieval")
    asked, has = (
        _flat(recipe) | {name.replace("_", "-"): getattr(what, name) for name in own}
        for recipe, what in ((flags, fed), (config, kept))
    )
    differ = _differing(asked, has, named, "the run")
    if fed.data and fed.data != kept.data:
        told = f"data: the run has {_said(kept.data)}, got {_said(fed.data)}"
        differ = f"{told}, {differ}" if differ else told
    if differ:
        raise UsageError(f"{differ}; the run in {out} goes on with its own")
    may = {name for name in ("data_dir", "skip_limit") if name.replace("_", "-") in given}
    kept = kept._replace(**{name: getattr(fed, name) for name in may})
    state = out / loop.STATE
    begun_before = state.is_dir() and any(child.name.isdigit() for child in state.iterdir())
    return config, kept, None if begun_before else _first_weights(config, kept.start)


def _from_json(path: Path, read: Callable[[str], Any]) -> Any:
    text = read_text(path, MOST_BYTES)
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _first_weights(config: TrainConfig, start: str) -> dict[str, Any] | None:
    if not start:
        return None
    loaded = convert.at_size(convert.load(find(start)), config.model.vision.image_size)
    if loaded.config != config.model:
        raise ValueError(
            f"--start: expected the model that the run began with, got another: {start}"
        )
    return dict(loaded.flat)


def require_layout(config: TrainConfig, layout: Layout, mesh: Mesh) -> None:
    """UsageError where the devices cannot share the batch, the loss or the work so."""
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % shares:
        raise UsageError(
            f"--batch-size: expected a multiple of {shares}, the devices that share a batch, "
            f"got {config.batch_size}"
        )
    try:
        assembly.loss_on(config, layout, mesh)
    except ValueError as error:
        raise flag_error(error) from None


def require_room(config: TrainConfig, mesh: Mesh) -> None:
    """UsageError where a CPU's memory cannot hold the model's state or a batch of pictures."""
    if mesh.devices.flat[0].platform != "cpu" or not hasattr(os, "sysconf"):
        return
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    model, opt_state = assembly.shapes(config, mesh)
    leaves = (*jax.tree.leaves(model), *jax.tree.leaves(opt_state))
    held = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    size = config.model.vision.image_size
    pixels = config.batch_size * size * size * 3
    for flags, taken in (("--model.*", held), ("--batch-size, --model.vision.image-size", pixels)):
        if taken / jax.process_count() > room:
            raise UsageError(
                f"{flags}: expected at most {room / 2**30:.0f} GiB, this machine's memory, "
                f"got {taken / 2**30:,.0f} GiB"
            )


def to_go_on(
    out: Path, layout: Layout, tensorboard: bool, coordinator: str, processes: int, process: int
) -> str:
    """The command that goes on with a run, in the same layout."""
    words = ["jaxclip", "train", "--out", str(out), "--resume"]
    for field in dataclasses.fields(layout):
        value = getattr(layout, field.name)
        words += [] if value == field.default else [f"--{field.name}", str(value)]
    words += ["--tensorboard"] if tensorboard else []
    if coordinator:
        words += ["--coordinator", coordinator]
        words += ["--processes", str(processes), "--process", str(process)] * (processes > 1)
    return shlex.join(words)


def prepare_folder(out: Path, config: TrainConfig, fed: Fed, resume: bool, force: bool) -> None:
    """The run folder with config.json and data.json; a resumed run has them already."""
    if jax.process_index() == 0 and not resume:
        _prepare_folder(out, config, fed, force)
    multihost_utils.sync_global_devices("the run folder is there")


@contextlib.contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """One program at a time trains in a run folder, where the system has locks; UsageError else."""
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
    """UsageError where --force would delete files of somebody's own, named as those of a run."""
    readers = {"config.json": TrainConfig.from_json, "data.json": Fed.from_json}
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


def _prepare_folder(out: Path, config: TrainConfig, fed: Fed, force: bool) -> None:
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
    for name in reversed(FILES):  # config.json, by which the folder is known as a run's, last
        (out / name).unlink(missing_ok=True)
    for name, text in {"config.json": config.to_json(), "data.json": fed.to_json()}.items():
        with replacing(out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
