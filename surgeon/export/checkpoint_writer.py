"""Writes a plan as a checkpoint directory, and checks from headers and config that it is what was planned."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from surgeon.core.checkpoint.file_stamps import unreadable
from surgeon.core.checkpoint.side_files import other_weights, read_document
from surgeon.core.job_context import JobContext
from surgeon.core.plan.plan import Plan
from surgeon.core.plan.planned_files import PROOF, RECIPE, RESULTS, TRAINABLE
from surgeon.core.recipe.evaluation_metrics import EvaluationResult, evaluations_to_builtins
from surgeon.core.recipe.recipe import Recipe, dump_recipe
from surgeon.core.structure.companions import plain_name
from surgeon.errors import VerifyError
from surgeon.export.atomic_directory import refuse_existing, refuse_inside, require_space, written_atomically
from surgeon.export.model_card import model_card
from surgeon.export.shard_writer import Arithmetic, write_shards

__all__ = [
    "ADAPTER", "PROOF", "RECIPE", "RESULTS", "TRAINABLE", "check_written", "copy_side_files", "export_checkpoint",
    "pretty", "write_config", "write_records",
]  # fmt: skip

ADAPTER = "adapter"
_PIECE = 2**20

Finish = Callable[[Path], dict[str, Any] | None]
"""Called with the written directory before it is published: adds what needs torch, returns a proof or None."""


def export_checkpoint(
    plan: Plan, recipe: Recipe, out: Path, *, job: JobContext,
    arithmetic: Arithmetic | None = None, finish: Finish | None = None, results: Sequence[EvaluationResult] = (),
) -> dict[str, Any] | None:  # fmt: skip
    """Write a checkpoint, check it, let `finish` add to it, and publish it at `out`. Returns what `finish` returned.

    Raises:
        ExportError: it exists, does not fit or cannot be written. VerifyError: it is not what was planned.
    """
    refuse_existing(out)
    checkpoint = plan.structure.checkpoint
    refuse_inside(out, checkpoint.path)
    require_space(out, plan.nbytes + _side_bytes(checkpoint))
    _tell_left_out(plan, job)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        job.progress(done, plan.nbytes, "bytes", "writing")

    with written_atomically(out, job.warn) as directory:
        write_shards(plan, directory, arithmetic, advance, job.is_cancelled)
        write_config(plan, directory)
        copy_side_files(plan, directory)
        write_records(plan, recipe, directory, results)
        check_written(plan, directory)
        proof = finish(directory) if finish else None
        if proof is not None:
            (directory / PROOF).write_bytes(pretty(proof))
    return proof


def _side_bytes(checkpoint: Checkpoint) -> int:
    total = 0
    for name in checkpoint.side_files:
        with suppress(OSError):  # copying it says what is wrong
            total += (checkpoint.path / name).stat().st_size
    return total


def pretty(value: Any) -> bytes:
    """Return JSON as Hugging Face writes it: two spaces, numbers as Python has them, a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def write_config(plan: Plan, directory: Path) -> None:
    """Write config.json: every key of the base in its order, the changed ones changed."""
    (directory / "config.json").write_bytes(pretty(plan.config))


def copy_side_files(plan: Plan, directory: Path) -> None:
    """Copy tokenizer, generation config, chat templates, licence, code and the folders of other modules as they are.

    What names layers is written anew.
    """
    checkpoint = plan.structure.checkpoint
    for name in plan.files.copied:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        _copy_side_file(checkpoint.path / name, directory / name)
    for name, document in plan.files.rewritten.items():
        (directory / name).write_bytes(pretty(document))


def _tell_left_out(plan: Plan, job: JobContext) -> None:
    for name, reason in plan.files.left_out.items():
        job.warn(f"{name} is left out: {reason}")
    checkpoint = plan.structure.checkpoint
    others = other_weights(checkpoint.path, {shard.path.name for shard in checkpoint.shards})
    if others:
        job.log(f"left out: {', '.join(others)}: weights in another form, of the base")


def _copy_side_file(source: Path, target: Path) -> None:
    try:
        # Opened here, so that a source that vanished is not mistaken for a target that cannot be written.
        file = source.open("rb")
    except OSError as error:
        raise unreadable(source, error) from error
    with file, target.open("wb") as copy:
        while data := _read(file, source):
            copy.write(data)


def _read(file: BinaryIO, source: Path) -> bytes:
    try:
        return file.read(_PIECE)
    except OSError as error:
        raise unreadable(source, error) from error


def write_records(plan: Plan, recipe: Recipe, directory: Path, results: Sequence[EvaluationResult] = ()) -> None:
    """Write the recipe, the card, what was measured, and what stays trainable if anything was frozen or inserted."""
    (directory / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
    (directory / "README.md").write_text(model_card(plan, recipe, results), encoding="utf-8")
    if results:
        (directory / RESULTS).write_bytes(pretty({"evaluations": evaluations_to_builtins(results)}))
    if plan.frozen or plan.inserted:
        record = {
            "trainable": _parameters(plan, plan.trainable),
            "frozen": _parameters(plan, sorted(plan.frozen)),
            "inserted": list(plan.inserted),
        }
        (directory / TRAINABLE).write_bytes(pretty(record))


def _parameters(plan: Plan, names: Iterable[str]) -> list[str]:
    """Return the parameters that tensors are; scales and zeros go by the name of their weight."""
    return plan.structure.memory_names(map(plain_name, names))


def check_written(plan: Plan, directory: Path) -> None:
    """Reopen what was written and compare headers and config with the plan.

    Raises:
        VerifyError: anything differs.
    """
    written = open_checkpoint(directory)
    planned = {tensor.name: (tensor.dtype, tensor.shape) for tensor in plan.tensors}
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in written.tensors.values()}
    wrong = sorted(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name))
    if wrong:
        raise VerifyError(
            f"tensor {wrong[0]!r} is {found.get(wrong[0])}, planned was {planned.get(wrong[0])}", where=str(directory)
        )
    if dict(written.config) != dict(plan.config):
        raise VerifyError("is not what was planned", where=str(directory / "config.json"))
    _check_files(plan, directory)
    read_structure(written)


def _check_files(plan: Plan, directory: Path) -> None:
    base = plan.structure.checkpoint.path
    for name in plan.files.copied:
        if not _are_equal(base / name, directory / name):
            raise VerifyError("is not the base's", where=str(directory / name))
    for name, document in plan.files.rewritten.items():
        if read_document(directory / name) != document:
            raise VerifyError("is not what was planned", where=str(directory / name))


def _are_equal(source: Path, copy: Path) -> bool:
    try:
        return filecmp.cmp(source, copy, shallow=False)
    except OSError as error:
        raise unreadable(source, error) from error
