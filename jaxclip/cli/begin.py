"""What a run begins or resumes with: recipe, inputs and first weights, from flags or its folder."""

import dataclasses
import math
import os
import shlex
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxclip import convert
from jaxclip.cli.run_folder import MOST_BYTES, RunInputs
from jaxclip.cli.shared import UsageError, flag_error
from jaxclip.cli.train_flags import TrainFlags
from jaxclip.config import ClipConfig, TextConfig
from jaxclip.convert.layouts import vocabulary
from jaxclip.files import read_text
from jaxclip.hub.find import find
from jaxclip.model_tokenizer import FILE_NAME, remember
from jaxclip.tokenizer import VOCAB_SIZE
from jaxclip.training import from_recipe, loop
from jaxclip.training.recipe import Execution, Recipe

Begun = tuple[Recipe, RunInputs, dict[str, Any] | None]  # the last: flat parameters


def _flag_values(config: Any, prefix: str = "") -> dict[str, Any]:
    """{name of the flag: value} of a recipe or of a part of it."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        name, value = prefix + field.name.replace("_", "-"), getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        found |= _flag_values(value, f"{name}.") if nested else {name: value}
    return found


def begin_or_resume(flags: TrainFlags, out: Path) -> Begun:
    """(recipe, inputs, first weights) of the run that the flags name.

    Without weights the run has a saved state or begins with random ones.
    """
    inputs = RunInputs.from_flags(flags)
    if flags.resume:
        return resume_run(out, flags.recipe, inputs, flags.given)
    inputs.require_weights()
    recipe: Recipe = flags.recipe
    if flags.tokenizer is not None:
        text = _own_tokenizer(recipe.model.text, flags.tokenizer)
        model = dataclasses.replace(recipe.model, text=text)
        recipe = dataclasses.replace(recipe, model=model)
    recipe, start = begin_run(recipe, flags.start, flags.given)
    return recipe, inputs, start


def _own_tokenizer(text: TextConfig, folder: Path) -> TextConfig:
    """The text tower with the tokenizer.json of that folder; UsageError where they do not fit."""
    if not (folder / FILE_NAME).is_file():
        raise UsageError(f"--tokenizer: expected a folder with a {FILE_NAME}, got {folder}")
    if text.kind == "cbow" or text.vocab_size == VOCAB_SIZE:
        raise UsageError(
            "--tokenizer: expected --model.text.kind transformer and another "
            f"--model.text.vocab-size than CLIP's, got {text.kind} and {text.vocab_size}"
        )
    try:
        own = vocabulary.of_folder(folder, text, None, siglip=not text.causal)
    except ValueError as error:
        raise UsageError(f"--tokenizer: {error}") from None
    if own is not None and text.pooling == "largest" and own.end != text.vocab_size - 1:
        ways = "--model.text.pooling last"
        if own.end is not None:
            ways = f"--model.text.pooling end --model.text.end-token {own.end}"
        raise UsageError(
            f"--tokenizer: expected an end token of the largest id, {text.vocab_size - 1}, where "
            f"the text tower pools, got {own.end}; give {ways}"
        )
    return dataclasses.replace(text, tokenizer=own)


def begin_run(
    flags: Recipe, start: str, given: Container[str]
) -> tuple[Recipe, dict[str, Any] | None]:
    """The recipe of a new run, and the weights of the checkpoint that it starts from, if any.

    Its model is the checkpoint's, and texts are as long as the model takes, unless flags say less.
    """
    if start:
        loaded = convert.load(find(start))
        if not isinstance(loaded.config, ClipConfig):
            raise UsageError(f"--start: expected a model of both towers, got one alone: {start}")
        loaded = _resize(loaded, flags.model, given)
        model = {n: v for n, v in _flag_values(flags).items() if n.startswith("model.")}
        wrong = _differences(model, _flag_values(loaded.config, "model."), given, "the checkpoint")
        if wrong:
            raise UsageError(f"{wrong}; --start trains the checkpoint's own model")
        return _check_recipe(flags, loaded.config, given, follow=True), dict(loaded.flat)
    follow = "model.text.context-length" in given
    return _check_recipe(flags, flags.model, given, follow=follow), None


def _check_recipe(flags: Recipe, model: ClipConfig, given: Container[str], follow: bool) -> Recipe:
    """Flags as a recipe for a model; where they `follow` it, texts have its context length."""
    values = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags)}
    if follow and "text-length" not in given:
        values["text_length"] = model.text.context_length
    if model.text.tokenizer is None and model.text.vocab_size < VOCAB_SIZE:
        raise UsageError(
            f"--model.text.vocab-size: expected a model of {VOCAB_SIZE} tokens or more, as the "
            f"tokenizer has, got {model.text.vocab_size}; give {VOCAB_SIZE}, or a folder with a "
            "tokenizer.json by --tokenizer, or --start a model that has one"
        )
    try:
        return Recipe(**{**values, "model": model})
    except ValueError as error:
        raise flag_error(error) from None


def _without_size(config: ClipConfig) -> dict[str, Any]:
    """The fields of a config but for the size of its pictures."""
    return {**vars(config), "vision": {**vars(config.vision), "image_size": None}}


def _resize(loaded: convert.Loaded, wanted: ClipConfig, given: Container[str]) -> convert.Loaded:
    """A checkpoint at the image size that a flag, or a preset of that very model, asks for."""
    same = "preset" in given and _without_size(wanted) == _without_size(loaded.config)
    if not (same or "model.vision.image-size" in given):
        return loaded
    try:
        return convert.at_size(loaded, wanted.vision.image_size)
    except ValueError as error:
        raise UsageError(f"--model.vision.image-size: {error}") from None


def _differences(
    flags: dict[str, Any], owned: dict[str, Any], given: Container[str], owner: str
) -> str:
    """One text on the given flags whose values are not those that `owner` has; "" if none."""
    return ", ".join(
        f"--{name}: {owner} has {_words(owned.get(name))}, got {_words(value)}"
        for name, value in flags.items()
        if name in given and value != owned.get(name)
    )


def _words(value: Any) -> str:
    words = value if isinstance(value, tuple) else (value,)
    return " ".join(str(word) for word in words) or "none"


def resume_run(out: Path, flags: Recipe, inputs: RunInputs, given: frozenset[str]) -> Begun:
    """Recipe and inputs of the run in `out`, and its first weights if it has no state yet.

    UsageError names each given flag whose value is not the run's.
    """
    if not (out / "config.json").is_file():
        raise UsageError(f"{out} is no run folder: it has no config.json; leave out --resume")
    recipe = _from_json(out / "config.json", Recipe.from_json)
    kept = _from_json(out / "data.json", RunInputs.from_json)
    wrong = _contradictions(flags, inputs, recipe, kept, given)
    if wrong:
        raise UsageError(f"{wrong}; the run in {out} continues with its own")
    may = {name for name in ("data_dir", "skip_limit") if name.replace("_", "-") in given}
    kept = kept._replace(**{name: getattr(inputs, name) for name in may})
    if recipe.model.text.tokenizer is not None and (out / FILE_NAME).is_file():
        remember(out / FILE_NAME)
    state = out / loop.STATE
    has_state = state.is_dir() and any(child.name.isdigit() for child in state.iterdir())
    return recipe, kept, None if has_state else _first_weights(recipe, kept.start)


def _contradictions(
    flags: Recipe, inputs: RunInputs, recipe: Recipe, kept: RunInputs, given: frozenset[str]
) -> str:
    """One text on the given flags and data that are not the run's; "" if none."""
    names = set(given)
    if "preset" in given:
        names |= {n for n in _flag_values(flags) if not (kept.start and n.startswith("model."))}
    if "text-length" not in given and (kept.start or "model.text.context-length" in given):
        names.discard("text-length")  # it followed the model
    own = ("weights", "start", "zero_shot", "retrieval")
    wanted, owned = (
        _flag_values(numbers) | {name.replace("_", "-"): getattr(texts, name) for name in own}
        for numbers, texts in ((flags, inputs), (recipe, kept))
    )
    wrong = _differences(wanted, owned, names, "the run")
    if inputs.data and inputs.data != kept.data:
        data = f"data: the run has {_words(kept.data)}, got {_words(inputs.data)}"
        wrong = f"{data}, {wrong}" if wrong else data
    return wrong


def _from_json(path: Path, read: Callable[[str], Any]) -> Any:
    text = read_text(path, MOST_BYTES)
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _first_weights(recipe: Recipe, start: str) -> dict[str, Any] | None:
    if not start:
        return None
    loaded = convert.at_size(convert.load(find(start)), recipe.model.vision.image_size)
    if loaded.config != recipe.model:
        raise ValueError(
            f"--start: expected the model that the run began with, got another: {start}"
        )
    return dict(loaded.flat)


def require_execution(recipe: Recipe, execution: Execution, mesh: Mesh) -> None:
    """UsageError where a mesh cannot divide the batch, or compute loss or attention as asked."""
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    if recipe.batch_size % shares:
        raise UsageError(
            f"--batch-size: expected a multiple of {shares}, the devices that share a batch, "
            f"got {recipe.batch_size}"
        )
    try:
        from_recipe.choose_loss(recipe, execution, mesh)
        if execution.attention != "auto":
            from_recipe.abstract_state(recipe, mesh, execution.attention)
    except ValueError as error:
        raise flag_error(error) from None


def require_memory(recipe: Recipe, mesh: Mesh) -> None:
    """UsageError where a CPU's memory cannot hold the train state or a batch of images."""
    if mesh.devices.flat[0].platform != "cpu" or not hasattr(os, "sysconf"):
        return
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    leaves = jax.tree.leaves(from_recipe.abstract_state(recipe, mesh)[1][:3])
    state = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    pixels = recipe.batch_size * math.prod(recipe.model.vision.image_sides) * 3
    for flags, needed in (
        ("--model.*", state),
        ("--batch-size, --model.vision.image-size", pixels),
    ):
        if needed / jax.process_count() > has:
            raise UsageError(
                f"{flags}: expected at most {has / 2**30:.0f} GiB, this machine's memory, "
                f"got {needed / 2**30:,.0f} GiB"
            )


def resume_command(flags: TrainFlags, out: Path) -> str:
    """The command that continues a run, executed in the same way."""
    words = ["jaxclip", "train", "--out", str(out), "--resume"]
    for field in dataclasses.fields(flags.execution):
        value = getattr(flags.execution, field.name)
        words += [] if value == field.default else [f"--{field.name}", str(value)]
    words += ["--tensorboard"] if flags.tensorboard else []
    if flags.coordinator:
        words += ["--coordinator", flags.coordinator]
        if flags.processes > 1:
            words += ["--processes", str(flags.processes), "--process", str(flags.process)]
    return shlex.join(words)
