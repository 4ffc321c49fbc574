"""Checks that freezing and adapters select tensors and modules that the loaded model really has."""

from __future__ import annotations

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins
from surgeon.errors import SurgeonError
from tests.architectures.examining import Outcome, Patient

_FROZEN, _ADAPTED = 1, 2


def try_selection(patient: Patient) -> Outcome:
    """Freeze one layer and adapt another, and look for what was chosen among the parameters and modules of the base."""
    steps = [{"freeze": {"layers": [_FROZEN]}}, {"masked_lora": {"layers": [_ADAPTED]}}]
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(patient.directory)}, "steps": steps})
    structure = read_structure(open_checkpoint(patient.directory))
    try:
        plan = compile_plan(fold(draft_of(structure), recipe.steps))
        names, frozen = structure.memory_names(structure.checkpoint.tensors), structure.memory_names(plan.frozen)
    except SurgeonError as error:
        return Outcome("refused", f"{error.where}: {error.what}")
    in_memory = set(patient.base.state_dict(keep_vars=True))
    strangers = sorted(name for name in names if name not in in_memory)
    strangers = [name for name in strangers if not any("unexpected" in line for line in patient.report)]
    if strangers:
        return Outcome("wrong", f"{len(strangers)} tensors have other names in memory, such as {strangers[0]}")
    return _frozen_is_right(patient, set(frozen)) or _adapters_are_right(patient, plan.adapters)


def _frozen_is_right(patient: Patient, frozen: set[str]) -> Outcome | None:
    shared = [id(parameter) for name, parameter in patient.base.named_parameters() if name not in frozen]
    layer = patient.module_prefix(_FROZEN)
    left = [
        name
        for name, parameter in patient.base.named_parameters()
        if name.startswith(layer) and name not in frozen and shared.count(id(parameter)) == 1
    ]
    stray = sorted(name for name in frozen if not name.startswith(layer))
    if left or stray:
        return Outcome(
            "wrong",
            f"freezing layer {_FROZEN}: {len(left)} left out ({left[:1]}), {len(stray)} of others ({stray[:1]})",
        )
    return None


def _adapters_are_right(patient: Patient, adapters: object) -> Outcome:
    modules = dict(patient.base.named_modules())
    names = []
    for adapter in adapters:  # type: ignore[attr-defined]
        module = modules.get(adapter.module)
        kind = type(module).__name__
        if module is None or ("Linear" not in kind and kind != "Conv1D"):
            return Outcome("wrong", f"adapter on {adapter.module}, which is {kind}")
        if tuple(module.weight.shape) != tuple(adapter.shape):
            return Outcome(
                "wrong",
                f"adapter on {adapter.module}: {tuple(module.weight.shape)}, planned for {tuple(adapter.shape)}",
            )
        names.append(adapter.module)
    if len(set(names)) != len(names) or not names:
        return Outcome("wrong", f"{len(names)} adapters on {len(set(names))} modules")
    return Outcome("exact", f"{len(names)} matrices")
