"""The `calibrate` job: measures a few products, decompositions, copies and reads, a few seconds in all."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable

import msgspec
import psutil
import torch

from surgeon.backend.device import choose_device, choose_dtype
from surgeon.backend.model.matrices import StoredMatrix
from surgeon.core.checkpoint.model_location import cache_directory
from surgeon.core.job_context import JobContext
from surgeon.core.jobs import CalibrateJob, CalibrateResult
from surgeon.core.resources.machine import Machine, keep_machine

_WIDTH, _TOKENS, _DECOMPOSED = 2048, 512, 512
_COPIED_BYTES, _READ_BYTES = 64 << 20, 128 << 20
_ROUNDS = 3


def calibrate_job(request: CalibrateJob, job: JobContext) -> CalibrateResult:
    """Perform a `calibrate` job."""
    device = choose_device(request.device)
    # Of a checkpoint's own dtype nothing is known here; nearly all are in bfloat16.
    dtype = choose_dtype(request.dtype, device) or torch.bfloat16
    job.log(f"measuring how fast {device} calculates, copies and reads")
    weight, hidden = torch.randn(_WIDTH, _WIDTH, device=device).to(dtype), torch.randn(_TOKENS, _WIDTH, device=device)
    hidden = hidden.to(dtype)
    matrix = torch.randn(_DECOMPOSED, _DECOMPOSED)
    copied = torch.zeros(_COPIED_BYTES, dtype=torch.uint8)
    machine = Machine(
        device=str(device), dtype=str(dtype).removeprefix("torch."), memory_bytes=_memory(device),
        operations=2 * _TOKENS * _WIDTH**2 / _quickest(lambda: hidden @ weight, device),
        decompositions=_DECOMPOSED**3 / _quickest(lambda: StoredMatrix(matrix).singular_values, device),
        copied=_COPIED_BYTES / _quickest(lambda: copied.to(device, copy=True), device),
        read=_disk_rate(),
    )  # fmt: skip
    keep_machine(machine, request.device, request.dtype)
    return CalibrateResult(machine=msgspec.to_builtins(machine))


def _quickest(act: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the quickest of some rounds; the first is not counted."""
    seconds = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        act()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return max(min(seconds[1:]), 1e-9)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _disk_rate() -> float:
    """Return the bytes per second at which a file beside the cache is read that is not in memory."""
    place = cache_directory()
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        block = os.urandom(1 << 20)
        for _ in range(_READ_BYTES >> 20):
            file.write(block)
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(4 << 20):
            pass
        return _READ_BYTES / max(time.perf_counter() - start, 1e-9)
