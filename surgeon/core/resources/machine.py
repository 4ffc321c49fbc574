"""How fast a machine calculates, copies and reads: measured once by a worker, kept in the cache directory."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from surgeon.core.checkpoint.atomic_files import write_bytes
from surgeon.core.checkpoint.model_location import cache_directory

PROCESS_BYTES = {"cpu": 500_000_000, "cuda": 900_000_000}
"""What a process holds before it has loaded any weight: libraries, on a GPU its context."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a machine.

    operations: floating-point operations of a matrix product in `dtype` per second, a multiplication and an addition
    each.   decompositions: m n min(m, n) of the matrices whose singular values are found, per second.
    copied, read: bytes per second from the machine's memory to the device's (on a CPU within it), and from its disk.
    """

    device: str
    dtype: str
    memory_bytes: int
    operations: float
    decompositions: float
    copied: float
    read: float

    @property
    def kind(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]


def known_machine(device: str | None, dtype: str | None) -> Machine | None:
    """Return what was measured of a device before; None stands for the default one."""
    try:
        return msgspec.json.decode(_file(device, dtype).read_bytes(), type=Machine)
    except (OSError, msgspec.MsgspecError):
        return None


def keep_machine(machine: Machine, device: str | None, dtype: str | None) -> None:
    """Keep what was measured, where the cache directory can be written."""
    file = _file(device, dtype)
    with contextlib.suppress(OSError):
        write_bytes(file, msgspec.json.encode(machine))


def _file(device: str | None, dtype: str | None) -> Path:
    name = f"{device or 'default'}-{dtype or 'default'}.json".replace(":", "-").replace("/", "-")
    return cache_directory() / "machine" / name
