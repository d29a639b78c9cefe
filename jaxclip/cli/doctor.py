"""The command that says what is wrong: with this machine, or with another implementation."""

import functools
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxclip.cli.shared import FAILED, AsJson, UsageError, load_model, print_line, stderr
from jaxclip.config import Activation
from jaxclip.files import require_writable


def machine(as_json: AsJson = False) -> int:
    """This machine: versions, backend, precision in force, cache, memory, what is too old.

    Args:
        as_json: Print one JSON object instead of lines.
    """
    from jaxclip.doctor.machine import describe_machine, examine_machine

    found = examine_machine()
    if as_json:
        print(json.dumps(found))
    else:
        for line in describe_machine(found):
            print_line(line)
    return FAILED if found["wrong"] else 0


def probe(
    model: str = "emoji",
    out: Path = Path("probe.npz"),
    script: Literal["torch", "jax", "keras", "onnx"] | None = None,
    seed: int = 0,
    activation: Activation | None = None,
    heads: tuple[int, int] | None = None,
    force: bool = False,
) -> int:
    """Write pictures, pixels, texts and tokens to run through another program.

    Args:
        model: "emoji", a released model's name, a run folder or a checkpoint file.
        out: The npz file to write.
        script: Print a ten-line script that runs the probe through such a program, and write
            nothing.
        seed: Of the pictures.
        activation: Of a file that does not say which one it needs.
        heads: Attention heads of the image and the text tower, of a file that does not say them.
        force: Overwrite what is there.
    """
    from jaxclip.doctor.scripts import SCRIPTS

    if script is not None:
        print(SCRIPTS[script], end="")
        return 0
    if out.exists() and not force:
        raise UsageError(f"{out} is there already; add --force or another --out")
    require_writable(out)
    from jaxclip.doctor.probe import make_probe, write
    from jaxclip.models.parameters import to_flat

    loaded, _ = load_model(model, activation=activation, heads=heads)
    made = make_probe(to_flat(loaded), loaded.config, model, seed)
    write(out, made)
    shapes = {key: list(made[key].shape) for key in ("pixels", "tokens")}
    print_line(f"wrote {out}: pixels {shapes['pixels']}, tokens {shapes['tokens']}")
    print_line("a script to run it elsewhere: jaxclip doctor probe --script torch")
    return 0


def diagnose(
    probe: Annotated[Path, tyro.conf.Positional],
    theirs: Annotated[Path, tyro.conf.Positional],
    model: str = "emoji",
    activation: Activation | None = None,
    heads: tuple[int, int] | None = None,
    as_json: AsJson = False,
) -> int:
    """Say what is wrong with another implementation, from what it made of a probe.

    The exit code is 0 when it agrees within rounding, and 1 when it does not.

    Args:
        probe: What `jaxclip doctor probe` wrote.
        theirs: An npz file with any of image_features, text_features, logits_per_image,
            logit_scale, pixels, tokens, image_features_from_pictures, text_features_from_texts,
            image_hidden, text_hidden. More keys give sharper answers.
        model: The checkpoint that the other program has loaded.
        activation: Of a file that does not say which one it needs.
        heads: Attention heads of the image and the text tower, of a file that does not say them.
        as_json: Print one JSON object instead of lines.
    """
    from jaxclip.doctor.checks import read_arrays
    from jaxclip.doctor.diagnosis import diagnose as find_faults

    ours, others = read_arrays(probe), read_arrays(theirs)
    loaded, _ = load_model(model, activation=activation, heads=heads)
    found = find_faults(ours, others, loaded, stderr.print)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        for line in str(found).splitlines():
            print_line(line)
    return 0 if found.verdict == "agrees" else FAILED


def _remember(function: Callable[..., int]) -> Callable[..., functools.partial[int]]:
    """A function with the same flags that returns the call, which says what it is a call of."""

    @functools.wraps(function)
    def remember(*args: Any, **kwargs: Any) -> functools.partial[int]:
        return functools.partial(function, *args, **kwargs)

    return remember


PARTS: Any = functools.reduce(
    operator.or_,
    (
        Annotated[Any, tyro.conf.subcommand(f.__name__, constructor=_remember(f))]
        for f in (machine, probe, diagnose)
    ),
)


NOTHING_NAMED = functools.partial(machine)


def doctor(
    part: Annotated[PARTS, tyro.conf.arg(name="")] = NOTHING_NAMED,
    as_json: AsJson = False,
) -> int:
    """Say what is wrong: with this machine (nothing else given), or with an implementation.

    `jaxclip doctor probe` writes inputs to run through another program, `jaxclip doctor diagnose`
    names the fault from what it made of them.

    Args:
        as_json: Print this machine as one JSON object.
    """
    if as_json and part.func is not machine:
        raise UsageError(f"--json: expected it behind {part.func.__name__}, got it before")
    return machine(as_json=True) if as_json else part()
