"""Operates on a tiny model of every type that AutoModelForCausalLM can build, and writes what came of it.

    python -m tests.architectures.conformance [TYPE …] [--processes N] [--out FILE]

Every type is tried with its config as transformers saves it, and with the shortest config that means the same, where
what depends on a layer's position is implicit; some also with the older keys of their published checkpoints.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.json")
OLDER_TOO = True
"""Whether to try older config keys too; the sample in the default tests leaves them out."""
_IMPLICIT_OPERATIONS = ("prune first", "prune several", "expand copy", "duplicate", "mixture")

Record = dict[str, Any]


def examine(model_type: str) -> Record:
    """Try everything on one type; what comes back is plain data."""
    from transformers import AutoModelForCausalLM

    from tests.architectures.building import as_saved, small_config, sparse_config, tiny_model
    from tests.architectures.older import OLDER
    from tests.architectures.settings import UNBUILDABLE

    if model_type in UNBUILDABLE:
        return {"unbuildable": UNBUILDABLE[model_type]}
    started = time.monotonic()
    record: Record = {"cases": {}}
    for case, own in ({"as saved": None} | (OLDER.get(model_type, {}) if OLDER_TOO else {})).items():
        config = small_config(model_type, own)
        model: Any = tiny_model(config)
        record["class"] = type(model).__name__
        auto = type(model) if type(model).config_class is type(model.config) else AutoModelForCausalLM
        with tempfile.TemporaryDirectory(dir=_fast_disk()) as scratch:
            directory = Path(scratch) / "base"
            model.save_pretrained(directory)
            if case == "as saved":
                record["cases"][case] = _all_operations(directory, Path(scratch) / "out", auto)
            saved = json.loads((directory / "config.json").read_text())
            shortest = {
                **as_saved(sparse_config(model.config, own), saved),
                "architectures": saved["architectures"],
                "dtype": "float32",
            }
            (directory / "config.json").write_text(json.dumps(shortest, indent=2))
            record["cases"]["implicit" if case == "as saved" else case] = _some_operations(
                directory, Path(scratch) / "out", auto
            )
    record["seconds"] = round(time.monotonic() - started, 1)
    return record


def _fast_disk() -> str | None:
    """Where flushing costs nothing: exports are flushed to disk before they are published."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _all_operations(directory: Path, out: Path, auto: Any) -> Record:
    from surgeon.errors import ArchitectureError
    from tests.architectures.cutting import cuts, try_cut
    from tests.architectures.examining import Patient
    from tests.architectures.selecting import try_selection

    try:
        patient = Patient(directory, auto)
    except ArchitectureError as error:
        return {"read": ["refused", f"{error.where.rpartition('/')[2]}: {error.what}"]}
    found = {one.name: _plain(patient.try_operation(one, out)) for one in patient.operations()}
    exact = [one for one in patient.operations() if found[one.name][0] == "exact"]
    if exact:
        found["verify"] = _plain(patient.try_operation(exact[-1], out, verify=True))
    found["select"] = _plain(try_selection(patient))
    found |= {one.name: _plain(try_cut(patient, one, out)) for one in cuts(patient)}
    if not patient.cache_is_sound:
        found["cache"] = ["exact", "the base itself generates differently with and without its cache"]
    return found


def _some_operations(directory: Path, out: Path, auto: Any) -> Record:
    from surgeon.errors import ArchitectureError
    from tests.architectures.examining import Patient

    try:
        patient = Patient(directory, auto)
    except ArchitectureError as error:
        return {"read": ["refused", f"{error.where.rpartition('/')[2]}: {error.what}"]}
    return {
        one.name: _plain(patient.try_operation(one, out))
        for one in patient.operations()
        if one.name in _IMPLICIT_OPERATIONS
    }


def _plain(outcome: Any) -> list[str]:
    return [outcome.kind, outcome.why] if outcome.why else [outcome.kind]


def _examine_quietly(model_type: str) -> tuple[str, Record]:
    import warnings

    import torch
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return model_type, examine(model_type)
    except Exception as error:  # one type's failure is a finding, and must not end the others
        return model_type, {
            "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        }


def examine_all(types: list[str], processes: int) -> dict[str, Record]:
    """Examine types in several single-threaded processes."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    found: dict[str, Record] = {}
    context = multiprocessing.get_context("spawn")
    # A process that the system kills ends the run with an error; a Pool would wait for it for ever. So would this with
    # max_tasks_per_child: Python 3.11 may not replace a process that has done its share (CPython issue 115634).
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = [pool.submit(_examine_quietly, model_type) for model_type in types]
        for number, done in enumerate(as_completed(waiting), start=1):
            model_type, found[model_type] = done.result()
            print(f"{number}/{len(types)} {model_type}: {summary(found[model_type])}", file=sys.stderr, flush=True)
    return {model_type: found[model_type] for model_type in types}


def summary(record: Mapping[str, Any]) -> str:
    """Return one line on what came of a type."""
    if "cases" not in record:
        return "; ".join(f"{key}: {value}" for key, value in record.items())
    kinds = Counter(outcome[0] for case in record["cases"].values() for outcome in case.values())
    bad = [
        f"{case}, {name}: {': '.join(outcome)}"
        for case, outcomes in record["cases"].items()
        for name, outcome in outcomes.items()
        if outcome[0] in ("wrong", "error")
    ]
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) + "".join(f"\n    {line}" for line in bad)


def versions() -> dict[str, str]:
    """Return the versions that the results belong to."""
    import safetensors
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
    }


def main() -> int:
    """Run from the command line; the exit status is 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        description="Operate on tiny models of every architecture and compare with transformers."
    )
    parser.add_argument("types", nargs="*", help="model types; all of them if none is named")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, default=None, help=f"where to write; {RESULTS.name} when all types are tried"
    )
    options = parser.parse_args()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = examine_all(options.types or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), options.processes)
    out = options.out or (None if options.types else RESULTS)
    if out:
        before = json.loads(out.read_text())["types"] if options.types and out.is_file() else {}
        out.write_text(json.dumps({"versions": versions(), "types": {**before, **found}}, indent=1) + "\n")
    bad = [model_type for model_type, record in found.items() if "\n" in summary(record) or "failed" in record]
    print(f"{len(found)} types, {len(bad)} with something wrong: {', '.join(bad) or 'none'}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
