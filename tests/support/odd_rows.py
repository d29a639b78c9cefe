"""A child of `bench gpu` whose rows end as a test wants them to; run with `python -m`."""

import os
import sys
import time
from typing import Any

from experiments.bench.gpu import child


def answer(number: int) -> dict[str, Any]:
    print("what a library prints")
    return {"number": number, "pid": os.getpid()}


def fail(message: str) -> dict[str, Any]:
    raise RuntimeError(message)


def skip(reason: str) -> dict[str, Any]:
    raise child.Skip(reason)


def crash() -> dict[str, Any]:
    print("the last words", file=sys.stderr)
    os._exit(7)


def sleep(seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {}


def lack() -> dict[str, Any]:
    import no_such_package  # type: ignore[import-not-found]  # noqa: F401

    return {}


if __name__ == "__main__":
    each = (answer, fail, skip, crash, sleep, lack)
    child.serve({function.__name__: function for function in each})
