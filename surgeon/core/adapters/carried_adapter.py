"""An adapter from disk as part of a draft: on which layers its matrices are, and its values under an address.

The values are kept where those of trained adapters are, so that all that is done to these is done to it: see
`plan/learned_results.py`. They are copied once, since what a recipe was run with must not change behind it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from surgeon.core.adapters.peft_files import WEIGHTS, LoraPair, PeftAdapter
from surgeon.core.checkpoint.tensors import Tensor
from surgeon.core.interchange.adapter_targets import OPEN_GATE
from surgeon.core.interchange.trainable_parameters import Parameter, parameters_of
from surgeon.core.plan.draft import Draft, Lora
from surgeon.core.plan.learned_results import REPORT, TENSORS, adapter_tensors, is_learned, result_directory
from surgeon.core.plan.plan import Adapter, compile_plan
from surgeon.errors import ArchitectureError, CheckpointError, RecipeError

_VERSION = 1
_Roles = dict[tuple[str, int], dict[str, tuple[int, float]]]


def with_adapter(draft: Draft, adapter: PeftAdapter) -> Draft:
    """Return a draft with an adapter's matrices on the layers that they are for, at their positions in it.

    Raises:
        ArchitectureError: it holds what cannot be carried, or does not fit this model; the tensor is named.
        RecipeError: a matrix has an adapter already.
    """
    _refuse_others(adapter)
    modules = {one.name.removesuffix(".weight"): one for one in parameters_of(draft) if one.name.endswith(".weight")}
    roles: _Roles = {}
    for module, pair in adapter.pairs.items():
        one = _fitting(module, pair, modules, draft, adapter)
        settings = (pair.rank, pair.alpha)
        if roles.setdefault((one.stack, one.position), {}).setdefault(one.role, settings) != settings:
            raise ArchitectureError(
                f"has another rank or scale than the adapter of another matrix of role {one.role}",
                where=f"{adapter.path}, {module}", allowed="one rank and scale for each role of a layer",
            )  # fmt: skip
    attached = _attached(draft, roles, None)
    names = {one.module: one for one in compile_plan(attached).adapters if one.module in adapter.pairs}
    address = _address(adapter, names)
    if not is_learned(address):
        _keep(address, adapter, names)
    return _attached(draft, roles, address)


def _refuse_others(adapter: PeftAdapter) -> None:
    if adapter.not_carried:
        where, what = next(iter(adapter.not_carried.items()))
        more = len(adapter.not_carried) - 1
        raise ArchitectureError(
            f"{what}; it cannot be carried" + (f", nor can {more} more tensors or settings" if more else ""),
            where=f"{adapter.path}, {where}", allowed="LoRA, rsLoRA, rank_pattern and alpha_pattern on linear layers",
            hint="merge it with PEFT (merge_and_unload), save the model, and open that",
        )  # fmt: skip


def _fitting(
    module: str, pair: LoraPair, modules: Mapping[str, Parameter], draft: Draft, adapter: PeftAdapter
) -> Parameter:
    """Return the weight that a pair is for."""
    one = modules.get(module)
    if one is None or not one.role:
        what = "belongs to no layer of this model" if one is not None else "is no module of this model"
        raise ArchitectureError(
            what, where=f"{adapter.path}, {module}", allowed="matrices of layers",
            hint=f"it is an adapter of {adapter.base or 'another model'}",
        )  # fmt: skip
    outputs, inputs = one.shape[::-1] if one.role in draft.structure.family.transposed else one.shape
    if (pair.b.shape[0], pair.a.shape[1]) != (outputs, inputs):
        raise ArchitectureError(
            f"is for a weight of {pair.b.shape[0]} × {pair.a.shape[1]}, and the model's is {outputs} × {inputs}",
            where=f"{adapter.path}, {module}", hint=f"it is an adapter of {adapter.base or 'another model'}",
        )  # fmt: skip
    return one


def _attached(draft: Draft, roles: _Roles, address: str | None) -> Draft:
    for stack in draft.stacks:
        layers = []
        for position, layer in enumerate(draft.layers(stack)):
            here = roles.get((stack, position), {})
            if taken := sorted(here.keys() & layer.lora.keys()):
                raise RecipeError(
                    f"layer {position} already has an adapter on {taken[0]}", where="from",
                    allowed="one adapter per matrix", hint="merge_adapters or drop_adapters before",
                )  # fmt: skip
            lora = {role: Lora(rank, alpha, OPEN_GATE, address) for role, (rank, alpha) in sorted(here.items())}
            layers.append(replace(layer, lora={**layer.lora, **lora}) if lora else layer)
        draft = draft.with_layers(tuple(layers), stack)
    return draft


def _address(adapter: PeftAdapter, names: Mapping[str, Adapter]) -> str:
    """Return the digest of the adapter's values and of what each is called in a result."""
    own = sorted((module, one.name) for module, one in names.items())
    return hashlib.sha256(msgspec.json.encode((_VERSION, "load_adapter", adapter.fingerprint, own))).hexdigest()


def _keep(address: str, adapter: PeftAdapter, names: Mapping[str, Adapter]) -> None:
    """Copy the values to the result at an address; where another process was faster, its result stays.

    Raises:
        CheckpointError: they cannot be read, or not be written there.
    """
    place = result_directory(address)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{address[:16]}.", dir=place.parent))
        try:
            _write_tensors(partial / TENSORS, adapter, names)
            report = {"step": {"load_adapter": {"from": str(adapter.path)}}, "adapters": len(names)}
            (partial / REPORT).write_bytes(msgspec.json.encode(report))
            with suppress(FileExistsError):
                partial.rename(place)
        except OSError:
            if not is_learned(address):
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(
            f"its values cannot be kept: {error.strerror or error}", where=str(place),
            hint="make room there, or let SURGEON_CACHE name a directory that can be written",
        ) from error  # fmt: skip


def _write_tensors(path: Path, adapter: PeftAdapter, names: Mapping[str, Adapter]) -> None:
    header: dict[str, object] = {}
    sources: list[Tensor | bytes] = []
    end = 0
    for module, one in names.items():
        pair, gate = adapter.pairs[module], struct.pack("<f", one.lora.gate)
        values: tuple[Tensor | bytes, ...] = (pair.a, pair.b, gate)
        for name, source in zip(adapter_tensors(one.name), values, strict=True):
            start = end
            end += len(source) if isinstance(source, bytes) else source.nbytes
            dtype, shape = ("F32", ()) if isinstance(source, bytes) else (source.dtype, source.shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
            sources.append(source)
    raw = msgspec.json.encode(header)
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file, (adapter.path / WEIGHTS).open("rb") as stored:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for source in sources:
            if isinstance(source, bytes):
                file.write(source)
                continue
            stored.seek(source.start)
            file.write(stored.read(source.nbytes))
        file.flush()
        os.fsync(file.fileno())
