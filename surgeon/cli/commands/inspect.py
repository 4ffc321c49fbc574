"""`surgeon inspect`: how a model is built. Reads config and shard headers, never weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import prod
from typing import Any

import click
import msgspec

from surgeon.architectures.structure_reader import read_structure
from surgeon.cli.formatting import bytes_text, count_text, print_json, setting_text, table
from surgeon.cli.options import SurgeonCommand, as_json, trust_remote_code, worker
from surgeon.cli.progress_output import ConsoleReporter
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.fit import Fit, kept_fit
from surgeon.core.checkpoint.model_location import is_adapter, locate_model
from surgeon.core.checkpoint.tensors import Tensor, TensorType
from surgeon.core.job_results import CheckResult
from surgeon.core.jobs import CheckJob
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.kv_cache import LATENT_NOTE, KvCache, kv_cache
from surgeon.core.selection.spans import spans
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.outside import outside_kind
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import CheckpointError, SurgeonError

Report = dict[str, Any]
_WHOLE = "whole layers move as they are, and parameters are counted as they are stored, packed and with their scales"


@click.command("inspect", cls=SurgeonCommand)
@click.argument("model")
@click.option("--each", is_flag=True, help="One row per layer, even where neighbours are alike.")
@click.option("--check", is_flag=True, help="Have transformers judge whether the weights are what its class expects.")
@worker
@trust_remote_code
@as_json
@click.pass_context
def command(
    context: click.Context, /, model: str, each: bool, check: bool, worker: str | None, trust_remote_code: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Show layers, roles, parameters, bytes, per-layer settings and the KV cache of MODEL.

    Whether the weights are what the class of transformers expects is shown where it was judged before: every command
    that loads the model does so. Exit status 1 if --check finds that they are not.

    Of an adapter, a directory that PEFT has saved: its matrices, ranks and scales, and what could not be carried.
    """
    place = locate_model(model)
    if is_adapter(place):
        from surgeon.cli.adapter_report import show_adapter  # late: it costs as much time as looking at a model
        from surgeon.core.adapters.peft_files import open_adapter

        show_adapter(open_adapter(place), as_json=as_json)
        return
    checkpoint = open_checkpoint(place, trust_remote_code=trust_remote_code)
    structure = read_structure(checkpoint)
    fit, fault = kept_fit(checkpoint), None
    if check:
        try:
            fit = _judged(model, trust_remote_code, worker, context.ensure_object(ConsoleReporter))
        except SurgeonError as error:
            fit, fault = None, error
    report = describe(structure, model, fit)
    if not as_json:
        _show(report, each)
        if fit is None and not check:
            click.echo("\nwhether the weights fit their class has not been judged: --check does")
    elif fault is None:
        print_json(report)
    if fault is not None:
        raise fault
    if check and fit is not None and not fit.whole:
        context.exit(CheckpointError.exit_code)


def _judged(model: str, trust_remote_code: bool, worker: str | None, reporter: ConsoleReporter) -> Fit:
    from surgeon.client import run_job

    job = CheckJob(model=model, trust_remote_code=trust_remote_code)
    result = run_job(job, reporter.on_event, worker)
    assert isinstance(result, CheckResult)
    return msgspec.convert(result.fit, Fit)


def describe(structure: Structure, model: str, fit: Fit | None = None) -> Report:
    """Return everything that is known of a model without its weights."""
    checkpoint, draft = structure.checkpoint, draft_of(structure)
    kept = {name: kv_cache(draft, name) for name in structure.stacks}
    stacks = {name: _stack_report(structure, stack, kept[name]) for name, stack in structure.stacks.items()}
    caches = [stack["kv_cache_bytes_per_token"] for stack in stacks.values()]
    return {
        "model": model,
        "path": str(checkpoint.path),
        "model_type": structure.model_type,
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.nbytes,
        "dtypes": _largest_first(checkpoint.dtype_parameters),
        "quantisation": _quantisation(structure),
        "kv_cache_bytes_per_token": None if None in caches else sum(caches),
        "stacks": stacks,
        "roles": _role_reports(structure),
        "outside": [
            {**_tensor_report(name, tensor), "kind": outside_kind(name)} for name, tensor in structure.outside.items()
        ],
        "notes": _notes(structure, kept.values()),
        "fit": None if fit is None else {**msgspec.to_builtins(fit), "whole": fit.whole, "text": fit.text},
    }


def _quantisation(structure: Structure) -> Report | None:
    found = structure.quantisation
    return None if found is None else {"method": found.method, "where": found.where, "declared": found.declared}


def _notes(structure: Structure, caches: Iterable[KvCache]) -> list[str]:
    latent = any(layer.latent for cache in caches for layer in cache.layers)
    stacks = (note for stack in structure.stacks.values() for note in stack.notes)
    found = structure.quantisation
    quantised = [f"the weights are quantised ({found.method}), {found.where} says so: {_WHOLE}"] if found else []
    latent_note = [LATENT_NOTE] if latent else []
    return [*structure.checkpoint.notes, *structure.problems, *quantised, *stacks, *latent_note]


def _stack_report(structure: Structure, stack: Stack, cache: KvCache) -> Report:
    built = {layout: _layout_report(structure, layout) for layout in stack.layouts}
    layers = []
    for position, layout in enumerate(layer.layout for layer in stack.layers):
        layers.append({
            "position": position,
            "parameters": layout.parameters,
            "bytes": layout.nbytes,
            "dtypes": _largest_first(layout.dtype_parameters),
            "kv_cache_bytes_per_token": cache.layers[position].bytes_per_token,
            "window": cache.layers[position].window,
            "settings": dict(stack.settings[position]),
            "tensors": built[layout],
        })  # fmt: skip
    return {"prefix": stack.prefix, "kv_cache_bytes_per_token": cache.bytes_per_token, "layers": layers}


def _layout_report(structure: Structure, layout: Layout) -> list[Report]:
    roles = structure.roles_of(layout)
    return [{**_tensor_report(suffix, one), "role": roles[suffix]} for suffix, one in layout.types.items()]


def _tensor_report(name: str, tensor: Tensor | TensorType) -> Report:
    return {"name": name, "shape": list(tensor.shape), "dtype": tensor.dtype, "bytes": tensor.nbytes}


def _largest_first(parameters: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(parameters).most_common())


def _role_reports(structure: Structure) -> dict[str, Report]:
    """Return what the tensors of each role come to; layers built alike are looked at once."""
    found: dict[str, Counter[TensorType]] = {}
    layers = Counter(layer.layout for stack in structure.stacks.values() for layer in stack.layers)
    for layout, times in layers.items():
        roles = structure.roles_of(layout)
        for suffix, one in layout.types.items():
            found.setdefault(roles[suffix], Counter())[one] += times
    return {role: _role_report(tensors) for role, tensors in found.items()}


def _role_report(tensors: Mapping[TensorType, int]) -> Report:
    parameters: dict[str, int] = {}
    for one, times in tensors.items():
        parameters[one.dtype] = parameters.get(one.dtype, 0) + times * one.parameters
    return {
        "tensors": sum(tensors.values()),
        "shapes": sorted({one.shape for one in tensors}),
        "parameters": sum(parameters.values()),
        "bytes": sum(times * one.nbytes for one, times in tensors.items()),
        "dtypes": _largest_first(parameters),
    }


def _show(report: Report, each: bool) -> None:
    layers = sum(len(stack["layers"]) for stack in report["stacks"].values())
    parts = [
        report["model"], report["model_type"], f"{layers} layers", f"{count_text(report['parameters'])} parameters",
        bytes_text(report["bytes"]), "+".join(report["dtypes"]), f"KV cache {_cache_text(report)} per token",
    ]  # fmt: skip
    click.echo(" · ".join(parts))
    if report["path"] != report["model"]:
        click.echo(report["path"])
    click.echo("\n" + _layers_table(report, each))
    click.echo("\n" + _roles_table(report))
    if report["fit"]:
        click.echo("\n" + report["fit"]["text"])
    for note in report["notes"]:
        click.echo(f"\nnote: {note}")


def _cache_text(part: Mapping[str, Any]) -> str:
    number = part["kv_cache_bytes_per_token"]
    window = f" in the last {part['window']}" if part.get("window") else ""
    return "unknown" if number is None else bytes_text(number) + window


def _layers_table(report: Report, each: bool) -> str:
    rows = []
    for name, stack in report["stacks"].items():
        title = "" if len(report["stacks"]) == 1 else f"{name} "
        for run in _alike(stack["layers"], each):
            first = run[0]
            name_text = title + spans([layer["position"] for layer in run])
            rows.append([
                name_text, count_text(first["parameters"]), *_total_cells(run),
                "+".join(first["dtypes"]), _cache_text(first), _settings_text(first["settings"]),
            ])  # fmt: skip
    for kind in dict.fromkeys(tensor["kind"] for tensor in report["outside"]):
        tensors = [tensor for tensor in report["outside"] if tensor["kind"] == kind]
        dtypes = "+".join(dict.fromkeys(tensor["dtype"] for tensor in tensors))
        rows.append(
            [kind, "", count_text(sum(map(_elements, tensors))), bytes_text(_total(tensors, "bytes")), dtypes, "", ""]
        )
    header = ["layers", "each", "parameters", "bytes", "dtype", "KV/token", "settings"]
    return table(header, rows, right="each parameters bytes KV/token")


def _alike(layers: Sequence[Report], each: bool) -> list[list[Report]]:
    """Return runs of neighbours that differ in nothing but their position and what is tied to it."""
    if each:
        return [[layer] for layer in layers]

    def look(layer: Report) -> Report:
        return {**layer, "position": None, "settings": _plain_settings(layer["settings"])}

    return [list(run) for _, run in groupby(layers, key=look)]


def _total_cells(layers: Sequence[Report]) -> list[str]:
    return [count_text(_total(layers, "parameters")), bytes_text(_total(layers, "bytes"))]


def _total(reports: Sequence[Report], key: str) -> int:
    return sum(report[key] for report in reports)


def _elements(tensor: Report) -> int:
    return prod(tensor["shape"])


def _plain_settings(settings: Mapping[str, Any]) -> Report:
    """Leave out what only says where in the base a layer stands; such values are tuples."""
    return {key: value for key, value in settings.items() if not isinstance(value, tuple)}


def _settings_text(settings: Mapping[str, Any]) -> str:
    settings = _plain_settings(settings)
    return "  ".join(
        f"{key}={value if isinstance(value, str) else setting_text(value)}" for key, value in settings.items()
    )


def _roles_table(report: Report) -> str:
    rows = []
    for role, part in report["roles"].items():
        shapes = ["×".join(map(str, shape)) or "scalar" for shape in part["shapes"]]
        share = part["parameters"] / max(report["parameters"], 1)
        rows.append([
            role, str(part["tensors"]), count_text(part["parameters"]), f"{share:.1%}",
            shapes[0] if len(shapes) == 1 else f"{shapes[0]} … {shapes[-1]}",
        ])  # fmt: skip
    return table(["role", "tensors", "parameters", "share", "shape"], rows, right="tensors parameters share")
