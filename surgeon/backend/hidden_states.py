"""Hidden states of many variants of a model at once: in memory up to a limit, in a file beyond it, bit for bit."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

import torch

from surgeon.errors import ScoreError


@dataclass(frozen=True, slots=True)
class _Spilled:
    """A state in the file: where it begins, and what it is like."""

    at: int
    nbytes: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class HiddenStates:
    """Hidden states by variant and batch.

    The file is read and written, not mapped: pages of a mapping would be resident memory. It has no name, so that
    nothing is left of it however the process ends. A place in it that is free again is used again.
    """

    def __init__(self, limit: int) -> None:
        """Keep up to that many bytes in memory."""
        self._room = limit
        self._held: dict[tuple[int, int], torch.Tensor | _Spilled] = {}
        self._free: dict[int, list[int]] = {}
        self._stack = ExitStack()
        self._file: IO[bytes] | None = None
        self.spilled_bytes = 0

    def __enter__(self) -> HiddenStates:
        """Return itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Let go of all states and of the file."""
        self._held = {}
        self._stack.close()

    def put(self, variant: int, batch: int, hidden_BTD: torch.Tensor) -> None:
        """Keep a state, in the place of the one before it.

        Raises:
            ScoreError: there is no room for it on the disk.
        """
        self._drop((variant, batch))
        if hidden_BTD.nbytes <= self._room:
            self._room -= hidden_BTD.nbytes
            self._held[variant, batch] = hidden_BTD
        else:
            self._held[variant, batch] = self._write(hidden_BTD)

    def get(self, variant: int, batch: int) -> torch.Tensor:
        """Return a state as it was put."""
        held = self._held[variant, batch]
        return held if isinstance(held, torch.Tensor) else self._read(held)

    def drop(self, variant: int) -> None:
        """Let go of a variant's states."""
        for spot in [spot for spot in self._held if spot[0] == variant]:
            self._drop(spot)

    def _drop(self, spot: tuple[int, int]) -> None:
        held = self._held.pop(spot, None)
        if isinstance(held, torch.Tensor):
            self._room += held.nbytes
        elif held is not None:
            self._free.setdefault(held.nbytes, []).append(held.at)

    def keep_only(self, variants: set[int]) -> None:
        """Let go of all other variants."""
        for variant in {variant for variant, _ in self._held} - variants:
            self.drop(variant)

    def _write(self, hidden_BTD: torch.Tensor) -> _Spilled:
        if self._file is None:
            file = tempfile.TemporaryFile(prefix="surgeon-states-")  # noqa: SIM115 - the stack closes it
            self._file = self._stack.enter_context(file)
        free = self._free.get(hidden_BTD.nbytes)
        at = free.pop() if free else self.spilled_bytes
        try:
            self._file.seek(at)
            self._file.write(_bytes_of(hidden_BTD.cpu().contiguous()))
            self._file.flush()
        except OSError as error:
            raise ScoreError(
                f"hidden states cannot be kept there: {error.strerror}", where=tempfile.gettempdir(),
                hint="let TMPDIR name a directory with more room, or measure on fewer sequences",
            ) from error  # fmt: skip
        self.spilled_bytes = max(self.spilled_bytes, at + hidden_BTD.nbytes)
        return _Spilled(at, hidden_BTD.nbytes, hidden_BTD.shape, hidden_BTD.dtype, hidden_BTD.device)

    def _read(self, spilled: _Spilled) -> torch.Tensor:
        assert self._file is not None
        hidden_BTD = torch.empty(spilled.shape, dtype=spilled.dtype)
        self._file.seek(spilled.at)
        self._file.readinto(_bytes_of(hidden_BTD))  # type: ignore[attr-defined]
        return hidden_BTD.to(spilled.device)


def _bytes_of(tensor: torch.Tensor) -> Any:
    """Return a contiguous tensor's own memory; numpy knows no bfloat16."""
    return tensor.view(-1).view(torch.uint8).numpy()
