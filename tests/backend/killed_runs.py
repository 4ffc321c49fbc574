"""Trains in processes that SIGKILL ends at a chosen moment, then goes on in another; prints what came of each as JSON.

    python -m tests.backend.killed_runs PLACE JOB MOMENT…

One process loads torch and forks, so that a moment costs no import. `never` is a run that nothing breaks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from surgeon.backend.training import learning_steps, resume_state, trainer
from tests.jobs import perform


def main() -> None:
    place, args = Path(sys.argv[1]), json.loads(sys.argv[2])
    found = {moment: _broken_and_mended(place / moment, args, moment) for moment in sys.argv[3:]}
    print(json.dumps(found))


def _broken_and_mended(place: Path, args: dict[str, Any], moment: str) -> dict[str, Any]:
    os.environ["SURGEON_CACHE"] = str(place)
    statuses = [_forked(lambda: _learn(args, moment))] if moment != "never" else []
    left = sorted(str(path.relative_to(place / "learned")) for path in (place / "learned").rglob("*"))
    statuses.append(_forked(lambda: _learn(args, "never")))
    kept = sorted(path.name for path in (place / "learned").iterdir())
    (result,) = [path for path in (place / "learned").iterdir() if path.is_dir() and "." not in path.name]
    report = json.loads((result / "result.json").read_text())
    return {
        "statuses": statuses, "left": left, "kept": kept,
        "weights": (result / "learned.safetensors").read_bytes().hex(),
        "losses": report["losses"], "held_out": report["held_out"], "steps": int((place / "steps").read_text()),
    }  # fmt: skip


def _forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _learn(args: dict[str, Any], moment: str) -> None:
    place = Path(os.environ["SURGEON_CACHE"])
    steps = _counted_steps(moment)
    if moment == "state half written":
        resume_state.torch.save = _at(2, torch.save, _half_then_die)  # type: ignore[attr-defined]
    if moment == "state not renamed":  # the first two renames note the digest of the base, and that it fits
        Path.replace = _at(4, Path.replace, lambda *_: die())  # type: ignore[method-assign]
    if moment == "last look":
        trainer._Trainer._evaluate = _at(4, trainer._Trainer._evaluate, lambda *_: die())  # type: ignore[method-assign]
    if moment == "result half written":
        learning_steps.save_file = _half_a_file_then_die  # type: ignore[assignment,attr-defined]
    if moment == "result not renamed":
        Path.rename = lambda *_: die()  # type: ignore[method-assign]
    perform("learn", args, lambda kind, body: None, lambda: False)
    (place / "steps").write_text(str(len(steps)))


def _counted_steps(moment: str) -> list[None]:
    """Count the optimiser's steps; `step N` dies in the N-th, after the weights have moved."""
    made: list[None] = []
    real = torch.optim.AdamW.step

    def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        moved = real(optimizer, *args, **kwargs)
        made.append(None)
        if moment == f"step {len(made)}":
            die()
        return moved

    torch.optim.AdamW.step = step  # type: ignore[assignment,method-assign]
    return made


def _at(number: int, real: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose n-th call is another's."""
    calls = iter(range(1, 10**6))

    def call(*args: Any, **kwargs: Any) -> Any:
        return (instead if next(calls) == number else real)(*args, **kwargs)

    return call


def _half_then_die(state: Any, file: Any) -> NoReturn:
    import io

    whole = io.BytesIO()
    torch.save(state, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    die()


def _half_a_file_then_die(tensors: Any, path: Path) -> NoReturn:
    del tensors
    path.write_bytes(bytes(99))
    die()


def die() -> NoReturn:
    """End as nothing can prevent."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


if __name__ == "__main__":
    main()
