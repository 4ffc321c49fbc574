"""Sends what is written on its way to the disk while more is written, so that the wait at the end is short.

Whoever publishes still waits for every byte. A fault found on the way is raised: the system tells it only once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from surgeon.core.checkpoint.file_system import sync

_STRIDE_BYTES = 64 * 2**20


@contextmanager
def flush_in_background(out: int) -> Iterator[Callable[[int], None]]:
    """Yield what is to be told of bytes written to the open file `out`; it writes them back in the background."""
    wanted, over = threading.Event(), threading.Event()
    waiting = 0
    faults: list[OSError] = []

    def tell(count: int) -> None:
        nonlocal waiting
        waiting += count
        if waiting >= _STRIDE_BYTES:
            waiting = 0
            wanted.set()

    def write_back() -> None:
        while wanted.wait() and not over.is_set():
            wanted.clear()
            try:
                sync(out)
            except OSError as error:
                faults.append(error)

    thread = threading.Thread(target=write_back, daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        over.set()
        wanted.set()
        thread.join()
    if faults:
        raise faults[0]
