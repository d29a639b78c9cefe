"""Reading ahead: a thread produces the next items while the caller works on the current one."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def read_ahead(items: Iterable[T], depth: int = 1) -> Generator[T]:
    """The items in their order, up to `depth` of them produced before the caller needs them.

    What the iterable raises is raised here, in its turn. Close the generator to stop early.

    >>> list(read_ahead(i * i for i in range(4)))
    [0, 1, 4, 9]
    """
    iterator, end = iter(items), object()

    def produce() -> Any:
        return next(iterator, end)

    thread = ThreadPoolExecutor(1, "read_ahead")
    try:
        waiting = deque(thread.submit(produce) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(produce))
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
