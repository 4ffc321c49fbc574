"""A streamed pass of block influence against a resident one, and against the rate at which `dd` reads the same file.

    python -m tests.benchmarks.streaming_speed [--layers 12] [--tokens 1024] [--rounds 3] [--dtype NAME] [--device NAME]

Writes a random Llama of 1.4 GB (bf16) into a temporary directory and opens it twice, in memory and streamed; passes of
both take turns, loading is not counted, and what is compared is the quickest of each. Then a pass over 8 tokens, where
reading decides, takes turns with `dd`, each time after the file has been put out of the page cache. The number of
processes that wanted a core is told: a reader thread hides nothing where others have the second core, and then the
ratio of processor seconds says what reading costs at most.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.loading import forget_model
from surgeon.backend.scoring.context import ScoringContext, Settings, calibration_of, provenance_of, scoring_context
from surgeon.backend.scoring.model_scores import activations_pass
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.scoring.requests import requested_scores
from surgeon.core.scoring.score_kinds import ActivationsScore
from tests.benchmarks.streaming import write_model
from tests.jobs import job_context

LIMIT_OF_COMPUTING, LIMIT_OF_READING = 1.15, 0.8


def seconds_of(act: Callable[[], object]) -> float:
    """Return the wall seconds of an act."""
    start = time.monotonic()
    act()
    return time.monotonic() - start


def opened(stack: ExitStack, draft: Draft, settings: Settings) -> ScoringContext:
    """Open a model for as long as the stack is."""
    forget_model()  # the context of an earlier one keeps it
    calibration = calibration_of(draft, settings)
    return stack.enter_context(scoring_context(draft, settings, calibration, settings.first_batch, job_context()))


def one_pass(context: ScoringContext, draft: Draft, settings: Settings) -> dict[str, float]:
    """Measure block influence."""
    (kind,) = requested_scores(["block_influence"])
    assert isinstance(kind, ActivationsScore)
    origin = provenance_of(draft, settings, context.calibration)
    return dict(activations_pass(context, [kind], origin)[kind.name].values)


def put_out_of_cache(file: Path) -> None:
    """Have the system forget what it has read of a file."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def computing(draft: Draft, settings: Settings, rounds: int) -> dict[str, Any]:
    """Let resident and streamed passes take turns on a text that keeps the processor busy."""
    seconds: dict[str, list[float]] = {"resident": [], "streamed": []}
    processor: dict[str, list[float]] = {"resident": [], "streamed": []}
    values = {}
    with ExitStack() as stack:
        contexts = {name: opened(stack, draft, replace(settings, stream=name == "streamed")) for name in seconds}
        for _ in range(rounds):
            for name, context in contexts.items():
                start, used = time.monotonic(), time.process_time()
                values[name] = one_pass(context, draft, settings)
                seconds[name].append(time.monotonic() - start)
                processor[name].append(time.process_time() - used)
    return {
        "tokens": settings.sequences * settings.length, "seconds": seconds, "processor_seconds": processor,
        "ratio": min(seconds["streamed"]) / min(seconds["resident"]),
        "ratio_of_processor_seconds": min(processor["streamed"]) / min(processor["resident"]),
        "at_most": LIMIT_OF_COMPUTING, "same_values": values["streamed"] == values["resident"],
    }  # fmt: skip


def reading(draft: Draft, settings: Settings, file: Path, rounds: int) -> dict[str, Any]:
    """Let streamed passes over a few tokens, in the stored dtype, take turns with dd; both from a cold page cache."""
    size, rates = file.stat().st_size, dict[str, list[float]]({"dd": [], "streamed": []})
    short = replace(settings, sequences=1, length=8, dtype="auto", stream=True)
    layers = sum(one.layout.nbytes for one in draft.structure.stack().layers)
    with ExitStack() as stack:
        context = opened(stack, draft, short)
        for _ in range(rounds):
            put_out_of_cache(file)
            command = ["dd", f"if={file}", "of=/dev/null", "bs=1M"]
            spent = seconds_of(lambda command=command: subprocess.run(command, check=True, capture_output=True))  # type: ignore[misc]
            rates["dd"].append(size / spent / 1e6)
            put_out_of_cache(file)
            rates["streamed"].append(layers / seconds_of(lambda: one_pass(context, draft, short)) / 1e6)
    ratio = max(rates["streamed"]) / max(rates["dd"])
    return {"megabytes_per_second": rates, "ratio": ratio, "at_least": LIMIT_OF_READING}


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="surgeon-benchmark-") as place:
        model = Path(place) / "model"
        size = write_model(model, options.layers)
        draft = draft_of(read_structure(open_checkpoint(model)))
        length = min(256, options.tokens)
        settings = Settings(
            model, sequences=options.tokens // length, length=length, dtype=options.dtype,
            device=options.device,
        )  # fmt: skip
        print(json.dumps({
            "bytes": size, "layers": options.layers, "cores": os.cpu_count(), "load_before": os.getloadavg()[0],
            "computing": computing(draft, settings, options.rounds),
            "reading": reading(draft, settings, model / "model.safetensors", options.rounds),
            "load_after": os.getloadavg()[0],
        }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
