"""Everything that only a GPU can show, in one command and one JSON; at a small size it runs on a CPU.

    python -m tests.benchmarks.gpu [--size 8b|1b|small] [--device cuda] [--out gpu.json]

agreement          an edited bf16 model, exported, reloads to the same logits: the proof of `surgeon run`
block_influence    a pass, and the removal sweep, in floating-point operations per second against a plain product's
streaming          a streamed pass in bytes per second against the slower of disk and copy
spectra            singular values against torch.linalg.svdvals
masked_lora        a training step against plain PEFT's, by tests.benchmarks.masked_lora

A part that fails says why in its place, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from surgeon import __version__
from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.matrices import StoredMatrix
from surgeon.backend.scoring.context import Settings, provenance_of
from surgeon.backend.scoring.model_scores import sweep_pass
from surgeon.client import run_job
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.jobs import CalibrateJob, CalibrateResult
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.resources.estimates import Estimator
from surgeon.core.resources.machine import Machine
from surgeon.core.scoring.requests import requested_scores
from surgeon.core.scoring.score_kinds import SweepScore
from tests.benchmarks.streaming import Shape, write_model
from tests.benchmarks.streaming_speed import one_pass, opened
from tests.jobs import perform


@dataclass(frozen=True)
class Size:
    """A model and the text that it is measured on; the sweep gets one sequence of it."""

    shape: Shape
    layers: int
    sequences: int
    length: int
    matrix: int


SIZES = {
    "8b": Size(Shape(4096, 14336, 128_256, 32), 32, 16, 512, 4096),
    "1b": Size(Shape(2048, 5632, 32_000, 16), 20, 16, 512, 2048),
    "small": Size(Shape(128, 352, 1000, 4), 4, 2, 64, 256),
}


@dataclass(frozen=True)
class Subject:
    """What the parts work on."""

    model: Path
    draft: Draft
    size: Size
    settings: Settings
    machine: Machine
    place: Path

    def operations(self, work_of: str, tokens: int) -> float:
        """Return the floating-point operations that a score takes, as `surgeon plan` counts them."""
        plain = msgspec.structs.replace(self.machine, operations=1.0, read=1e30, copied=1e30)
        (work,) = Estimator(plain, 1 << 60).scores(self.draft, requested_scores([work_of]), tokens, "")
        return work.seconds or 0.0


def timed(act: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of an act, with all that it has asked of the device."""
    start = time.perf_counter()
    act()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def agreement(on: Subject) -> dict[str, Any]:
    """Prune and expand, export, reload, compare."""
    steps = [{"prune": {"layers": [1]}}, {"expand": {"after": [0], "init": "mean"}}]
    recipe = {"version": 1, "base": {"model": str(on.model)}, "seed": 0, "steps": steps}
    args = {
        "recipe": recipe, "root": str(on.place), "out": str(on.place / "out"), "device": on.settings.device,
        "dtype": "bfloat16",
    }  # fmt: skip
    proof = perform("run", args)["proof"]
    return {"holds": all(check["passed"] is not False for check in proof.values()), "proof": proof}


def scores(on: Subject) -> dict[str, Any]:
    """Time a pass of block influence and a removal sweep, in memory, after one that warms up."""
    tokens, device = on.size.sequences * on.size.length, torch.device(on.machine.device)
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        context = opened(stack, on.draft, replace(on.settings, stream=False))
        one_pass(context, on.draft, on.settings)
        found["block_influence"] = _rate(
            on, "block_influence", tokens, timed(lambda: one_pass(context, on.draft, on.settings), device)
        )
    with ExitStack() as stack:
        short = replace(on.settings, sequences=1, stream=False)
        context = opened(stack, on.draft, short)
        kinds = [kind for kind in requested_scores(["removal"]) if isinstance(kind, SweepScore)]
        origin = provenance_of(on.draft, short, context.calibration)
        found["removal"] = _rate(
            on, "removal", on.size.length, timed(lambda: sweep_pass(context, kinds, origin), device)
        )
    return found


def _rate(on: Subject, name: str, tokens: int, seconds: float) -> dict[str, float]:
    rate = on.operations(name, tokens) / seconds
    return {"tokens": tokens, "seconds": seconds, "tflops": rate / 1e12, "of_matrix_rate": rate / on.machine.operations}


def streaming(on: Subject) -> dict[str, Any]:
    """Time a streamed pass over the whole text and one over a few tokens, where reading decides."""
    nbytes = sum(layer.layout.nbytes for layer in on.draft.structure.stack().layers)
    device = torch.device(on.machine.device)
    found: dict[str, Any] = {}
    for name, settings in (("whole text", on.settings), ("few tokens", replace(on.settings, sequences=1, length=8))):
        with ExitStack() as stack:
            streamed = replace(settings, stream=True)
            context = opened(stack, on.draft, streamed)
            one_pass(context, on.draft, streamed)  # the page cache is warm then: what is told is the copy's rate
            seconds = timed(lambda context=context: one_pass(context, on.draft, on.settings), device)  # type: ignore[misc]
        rate = nbytes / seconds
        found[name] = {"seconds": seconds, "gigabytes_per_second": rate / 1e9, "of_copy_rate": rate / on.machine.copied}
    return found


def spectra(on: Subject) -> dict[str, Any]:
    """Compare the singular values of a matrix on the device with those by torch in float64 on the CPU."""
    device = torch.device(on.machine.device)
    weight = torch.randn(on.size.matrix, on.size.matrix, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    expected = torch.linalg.svdvals(weight.double())
    peer = time.perf_counter() - start
    matrix = StoredMatrix(weight.to(device))
    own = timed(lambda: matrix.singular_values, device)
    error = float((matrix.singular_values.cpu() - expected).abs().max() / expected[0])
    return {"size": on.size.matrix, "seconds": own, "svdvals_seconds": peer, "largest_error": error}


def masked_lora(on: Subject) -> dict[str, Any]:
    """Run the benchmark of its own."""
    command = [
        sys.executable, "-m", "tests.benchmarks.masked_lora", str(on.model), "--rounds", "5",
        "--length", str(min(on.size.length, 128)), "--device", on.machine.device,
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return {"lines": done.stdout.splitlines()}


PARTS: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "scores": scores, "streaming": streaming, "spectra": spectra, "agreement": agreement, "masked_lora": masked_lora,
}  # fmt: skip


def measure(size: Size, device: str, place: Path) -> dict[str, Any]:
    """Write the model, measure the machine, and run every part; masked LoRA on a model of two layers."""
    model = place / "model"
    nbytes = write_model(model, size.layers, size.shape)
    calibrated = run_job(CalibrateJob(device=device, dtype="bfloat16"), lambda _: None)
    assert isinstance(calibrated, CalibrateResult)
    machine = msgspec.convert(calibrated.machine, Machine)
    settings = Settings(model, sequences=size.sequences, length=size.length, device=device, dtype="bfloat16")
    on = Subject(model, draft_of(read_structure(open_checkpoint(model))), size, settings, machine, place)
    short = place / "short"  # three copies in float32 are in memory at once
    write_model(short, 2, size.shape)
    name = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else "cpu"
    report: dict[str, Any] = {
        "surgeon": __version__, "torch": torch.__version__, "device": name, "load": os.getloadavg()[0],
        "machine": msgspec.to_builtins(machine), "bytes": nbytes, "layers": size.layers, "failed": [],
    }  # fmt: skip
    for part, act in PARTS.items():
        start = time.monotonic()
        try:
            report[part] = act(replace(on, model=short) if part == "masked_lora" else on)
        except Exception as error:
            report[part] = {"error": f"{type(error).__name__}: {error}"}
            report["failed"].append(part)
        report[part]["wall_seconds"] = time.monotonic() - start
    return report


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    size = SIZES[options.size or ("8b" if options.device.startswith("cuda") else "small")]
    with tempfile.TemporaryDirectory(prefix="surgeon-benchmark-") as place:
        os.environ["SURGEON_CACHE"] = str(Path(place) / "cache")
        report = measure(size, options.device, Path(place))
    text = json.dumps(report, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    sys.exit(bool(report["failed"]))


if __name__ == "__main__":
    main()
