"""Rows measured in a process of their own: both ends of what parent and child say to each other.

The parent names the rows on the command line; the child answers each with one line of JSON. Its
memory is given back with it, and neither a crash nor an endless compilation takes the parent along.
The standard library alone: the peer's Python may have no jax.
"""

import contextlib
import ctypes
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
SAID = 300  # characters of a failure that are kept
OUT_OF_MEMORY = "out of memory"
LATE = "late"  # the outcome of a row that the time limit cut off
Outcome = dict[str, Any]  # {"measured": {...}}, {"failed": why}, {"skipped": why} or {LATE: ...}


class Skip(Exception):
    """A row that cannot be measured here; the message says why."""


# The child ----------------------------------------------------------------------------------------


def serve(measures: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Measure the rows [[part, settings], ...] that the command line names."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for part, settings in json.loads(sys.argv[1]):
        print(json.dumps(_outcome(measures[part], settings)), file=answers, flush=True)


def _end_with_parent() -> None:
    """Let Linux end this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _outcome(measure: Callable[..., dict[str, Any]], settings: Mapping[str, Any]) -> Outcome:
    try:
        return {"measured": measure(**settings)}
    except Skip as error:
        return {"skipped": str(error)}
    except ImportError as error:
        return {"skipped": f"expected the package {error.name}, which is not installed"}
    except Exception as error:  # whatever it is, the other rows go on
        return {"failed": explain(error)}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed in this Python."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def explain(error: Exception) -> str:
    """Why a row failed, in one short line; memory by the same words for jax and torch."""
    text = " ".join(str(error).split()) or type(error).__name__
    memory = ("RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory")
    if isinstance(error, MemoryError) or any(word in f"{type(error)} {text}" for word in memory):
        return f"{OUT_OF_MEMORY}: {text}"[:SAID]
    return f"{type(error).__name__}: {text}"[:SAID]


# The parent ---------------------------------------------------------------------------------------


def run(
    python: str,
    module: str,
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    environment: Mapping[str, str],
    seconds: float,
) -> Iterator[Outcome]:
    """The outcome of each row, as it is measured, by `python -m module` in at most `seconds`.

    A row at which the process dies has failed, and a new process takes those behind it.
    """
    end = time.monotonic() + seconds
    waiting = list(rows)
    while waiting and (left := end - time.monotonic()) > 0:
        with tempfile.TemporaryFile("w+") as complaints:
            command = [python, "-m", module, json.dumps(waiting)]
            with _start(command, environment, complaints) as process:
                timer = threading.Timer(left, _kill, [process])
                timer.start()
                try:
                    for outcome in _answers(process):
                        waiting.pop(0)
                        yield outcome
                    process.wait()
                finally:
                    timer.cancel()
                    _kill(process)
            if waiting and time.monotonic() < end:
                waiting.pop(0)
                yield {"failed": _last_words(process.returncode, complaints)}
    yield from ({LATE: True} for _ in waiting)


def _start(
    command: Sequence[str], environment: Mapping[str, str], complaints: Any
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=complaints,
        text=True,
        start_new_session=True,  # so that its own children end with it
    )


def _answers(process: subprocess.Popen[str]) -> Iterator[Outcome]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.endswith("\n"):  # the line of a killed process may be cut
            yield json.loads(line)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(code: int, complaints: Any) -> str:
    complaints.seek(0)
    lines = [line.strip() for line in complaints.read().splitlines() if line.strip()]
    return f"the process ended with exit code {code}: {lines[-1] if lines else 'no message'}"[:SAID]
