"""Which device and dtype, and how many threads."""

from __future__ import annotations

import os

import torch

from surgeon.errors import UsageError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str | None) -> torch.device:
    """Return the named device, or a GPU if there is one, otherwise the CPU.

    Raises:
        UsageError: it is no device, or this machine does not have it.
    """
    gpu = torch.accelerator.current_accelerator(check_available=True)
    if name is None:
        return gpu or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is no device", where="--device", allowed="cpu, cuda, cuda:1, mps, …") from error
    if device.type not in ("cpu", gpu.type if gpu else "cpu"):
        raise UsageError(
            f"{name!r} is not available here", where="--device", allowed=f"cpu{f', {gpu.type}' if gpu else ''}"
        )
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype | None:
    """Return the named dtype; None stands for the checkpoint's own. On a CPU the default is float32."""
    if name is None:
        return torch.float32 if device.type == "cpu" else None
    if name == "auto":
        return None
    if name not in _DTYPES:
        raise UsageError(f"{name!r} is no dtype to compute in", where="--dtype", allowed=", ".join((*_DTYPES, "auto")))
    return _DTYPES[name]


def use_threads(reserved: int = 0) -> None:
    """Use as many threads as this process may, less the reserved ones; an explicit OMP_NUM_THREADS wins."""
    if "OMP_NUM_THREADS" not in os.environ:
        # Only Linux can say how many of the machine's cores this process may use.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores - reserved))
