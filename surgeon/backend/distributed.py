"""The processes that train together, as `accelerate launch` or `torchrun` starts them: one speaks, the others follow.

One process alone needs nothing of this, and torch.distributed is not touched for it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from surgeon.errors import SurgeonError

Value = TypeVar("Value")

_PATIENCE = timedelta(days=365)
"""How long the others wait for a job. Where one of them dies, the launcher ends all, so nobody waits in vain."""


def world_size() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's number; 0 is the one that speaks."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def join_process_group() -> None:
    """Meet the others; does nothing where there are none."""
    if world_size() == 1:
        return
    from accelerate import PartialState
    from torch import cuda, distributed

    PartialState(cpu=not cuda.is_available(), timeout=_PATIENCE)
    if _GROUP not in _groups:
        # Words go over gloo: a GPU that waits for them in NCCL would be kept busy by it.
        _groups[_GROUP] = distributed.new_group(backend="gloo", timeout=_PATIENCE)


_GROUP = "words"
_groups: dict[str, Any] = {}


def broadcast(value: Value) -> Value:
    """Return the first process's value in all of them."""
    if world_size() == 1:
        return value
    from torch import distributed

    join_process_group()
    box: list[Any] = [value]
    distributed.broadcast_object_list(box, src=0, group=_groups[_GROUP])
    return box[0]  # type: ignore[no-any-return]


def all_gather(value: Value) -> list[Value]:
    """Return every process's value in all of them, in their order."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    join_process_group()
    found: list[Any] = [None] * world_size()
    distributed.all_gather_object(found, value, group=_groups[_GROUP])
    return found


@contextmanager
def run_on_all_ranks(call: Mapping[str, Any]) -> Iterator[None]:
    """Have the others train along, told by `call`; see `learning.join_training`.

    What fails in the same way everywhere is a SurgeonError. After anything else the others wait for ever, so this
    process is broken and has to end once it has said what went wrong.
    """
    global _out_of_step  # noqa: PLW0603 - a process is one thing
    if world_size() > 1:
        broadcast(dict(call))
    try:
        yield
    except SurgeonError:
        raise
    except BaseException:
        _out_of_step = world_size() > 1
        raise


_out_of_step = False


def exit_if_out_of_step() -> None:
    """End this process if it cannot go on with the others; the launcher then ends them."""
    if _out_of_step:
        os._exit(1)


def serve_as_follower(take_part: Callable[[Mapping[str, Any]], None]) -> NoReturn:
    """Call `take_part` with what the first process announces, whenever it does, until it has gone."""
    join_process_group()
    nothing: Mapping[str, Any] | None = None
    while True:
        try:
            call = broadcast(nothing)
        except RuntimeError:
            os._exit(0)
        assert call is not None
        try:
            take_part(call)
        except SurgeonError:
            continue  # the first process says it
        except BaseException:
            traceback.print_exc()
            os._exit(1)
