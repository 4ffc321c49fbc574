"""The processes that train together, as `accelerate launch` or `torchrun` starts them: one speaks, the others follow.

One process alone needs nothing of this, and torch.distributed is not touched for it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from surgeon.errors import SurgeonError

Value = TypeVar("Value")

_PATIENCE = timedelta(days=365)
"""How long the others wait for a job. Where one of them dies, the launcher ends all, so nobody waits in vain."""


def process_count() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Return this process's number; 0 is the one that speaks."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def join() -> None:
    """Meet the others; does nothing where there are none."""
    if process_count() == 1:
        return
    from accelerate import PartialState
    from torch import cuda, distributed

    PartialState(cpu=not cuda.is_available(), timeout=_PATIENCE)
    if _GROUP not in _groups:
        # Words go over gloo: a GPU that waits for them in NCCL would be kept busy by it.
        _groups[_GROUP] = distributed.new_group(backend="gloo", timeout=_PATIENCE)


_GROUP = "words"
_groups: dict[str, Any] = {}


def agreed(value: Value) -> Value:
    """Return the first process's value in all of them."""
    if process_count() == 1:
        return value
    from torch import distributed

    join()
    box: list[Any] = [value]
    distributed.broadcast_object_list(box, src=0, group=_groups[_GROUP])
    return box[0]  # type: ignore[no-any-return]


def gathered(value: Value) -> list[Value]:
    """Return every process's value in all of them, in their order."""
    if process_count() == 1:
        return [value]
    from torch import distributed

    join()
    found: list[Any] = [None] * process_count()
    distributed.all_gather_object(found, value, group=_groups[_GROUP])
    return found


@contextmanager
def together(call: Mapping[str, Any]) -> Iterator[None]:
    """Have the others train along, told by `call`; see `learning.train_along`.

    What fails in the same way everywhere is a SurgeonError. After anything else the others wait for ever, so this
    process is broken and has to end once it has said what went wrong.
    """
    global _broken  # noqa: PLW0603 - a process is one thing
    if process_count() > 1:
        agreed(dict(call))
    try:
        yield
    except SurgeonError:
        raise
    except BaseException:
        _broken = process_count() > 1
        raise


_broken = False


def leave_if_broken() -> None:
    """End this process if it cannot go on with the others; the launcher then ends them."""
    if _broken:
        os._exit(1)


def follow() -> NoReturn:
    """Train along whenever the first process asks for it, until it has gone."""
    from surgeon.backend.training.learning import train_along

    join()
    nothing: Mapping[str, Any] | None = None
    while True:
        try:
            call = agreed(nothing)
        except RuntimeError:
            os._exit(0)
        assert call is not None
        try:
            train_along(call)
        except SurgeonError:
            continue  # the first process says it
        except BaseException:
            traceback.print_exc()
            os._exit(1)
