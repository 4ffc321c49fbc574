"""A worker without torch: a real process on a real pipe that speaks the protocol and fails where it is told to.

    python fake_worker.py [--pause-after N] [--resume-file FILE] [--ignore-cancel] [--crash-after N] [--fail LAYER]
        [--no-hello] [--missing TENSOR]

`--pause-after` waits after N values until the resume file exists; `--ignore-cancel` ignores a cancel while it waits;
`--missing` judges that the base lacks a tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.jobs import PROTOCOL
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins

_RUN = {"of": "run", "parameters": 1000, "bytes": 2000, "recipe": {}, "evaluations": []}
_JOBS: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
_CANCEL = threading.Event()


def main() -> None:
    options = _options()
    if options.no_hello:
        sys.exit(3)
    threading.Thread(target=_listen, daemon=True).start()
    _send(0, "hello", {"protocol": PROTOCOL, "version": "fake", "pid": os.getpid()})
    while True:
        job = _JOBS.get()
        _CANCEL.clear()
        _send(job["id"], "ack", {})
        if job["job"]["job"] == "check":
            _check(job, options)
        else:
            _score(job, options) if job["job"]["job"] == "score" else _run(job)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pause-after", type=int, default=-1)
    parser.add_argument("--crash-after", type=int, default=-1)
    parser.add_argument("--fail", default="")
    parser.add_argument("--ignore-cancel", action="store_true")
    parser.add_argument("--resume-file", type=Path, default=Path("/nowhere"))
    parser.add_argument("--no-hello", action="store_true")
    parser.add_argument("--missing", default="")
    return parser.parse_args()


def _listen() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        _CANCEL.set() if job["job"]["job"] == "cancel" else _JOBS.put(job)
    os._exit(0)


def _send(number: int, event: str, body: dict[str, Any]) -> None:
    body = {"error": body} if event == "error" else {"result": body} if event == "result" else body
    sys.stdout.write(json.dumps({"id": number, "body": {"event": event, **body}}) + "\n")
    sys.stdout.flush()


def draft_of_job(args: dict[str, Any]) -> Draft:
    recipe = recipe_from_builtins(args["recipe"])
    checkpoint = open_checkpoint(Path(recipe.base.model))
    return fold(draft_of(read_structure(checkpoint)), recipe.steps)


def value_of(score: str, key: str) -> float:
    """Middle layers matter least, and the two scores differ."""
    number = float(key.replace("+", "."))
    return round(abs(number - 2.4) / 10 + (0.5 if score == "weight_norm" else 0.01), 4)


def _check(job: dict[str, Any], options: argparse.Namespace) -> None:
    fault = f"does not fit FakeForCausalLM: lacks {options.missing}" if options.missing else ""
    found = {"of": "check", "fit": {}, "text": fault or "fits FakeForCausalLM", "whole": not fault}
    _send(job["id"], "result", found)


def _score(job: dict[str, Any], options: argparse.Namespace) -> None:
    draft, args = draft_of_job(job["job"]), job["job"]
    keys = [layer.key for layer in draft.layers()]
    values: dict[str, dict[str, float]] = {name: {} for name in args["names"]}
    sent = 0
    for at, key in enumerate(keys):
        for name in args["names"]:
            if sent == options.crash_after:
                os.kill(os.getpid(), signal.SIGKILL)
            if sent == options.pause_after and not _wait_to_resume(options):
                _send(job["id"], "error", {"kind": "Cancelled", "what": "cancelled"})
                return
            failed = key == options.fail
            value = None if failed else value_of(name, key)
            if value is not None:
                values[name][key] = value
            _send(job["id"], "scored", {"score": name, "layer": key, "value": value, "error": 0.01, "matrices": None})
            sent += 1
        _send(job["id"], "progress", {"done": at + 1, "total": len(keys), "unit": "layers", "what": "fake"})
    scores = [
        {"name": name, "values": found, "provenance": {"fingerprint": "fake", "draft": draft.digest}}
        for name, found in values.items()
    ]
    _send(job["id"], "result", {"of": "score", "scores": scores})


def _wait_to_resume(options: argparse.Namespace) -> bool:
    while not options.resume_file.exists():
        if _CANCEL.is_set() and not options.ignore_cancel:
            return False
        time.sleep(0.01)
    return True


def _run(job: dict[str, Any]) -> None:
    out = Path(job["job"]["out"])
    if out.name == "refused":
        body = {
            "kind": "ExportError",
            "what": "is there already",
            "where": str(out),
            "allowed": "a new one",
            "hint": "rm",
        }
        _send(job["id"], "error", body)
        return
    out.mkdir()
    proof = {"equal": {"passed": True}} if job["job"]["verify"] else None
    _send(job["id"], "progress", {"done": 1, "total": 2, "unit": "bytes", "what": "copying"})
    _send(job["id"], "result", {**_RUN, "out": str(out), "proof": proof})


if __name__ == "__main__":
    main()
