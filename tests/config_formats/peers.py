"""What tests of other tools' formats share: a model's draft, folded steps, and names by the other tools' own words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.interchange.config_format import ExportedModel
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import fold, pin_step
from surgeon.core.recipe.recipe import Recipe, recipe_from_builtins


def draft_at(directory: Path) -> Draft:
    """Return the draft that is the model itself."""
    return draft_of(read_structure(open_checkpoint(directory)))


def recipe_of(directory: Path, steps: Sequence[Any]) -> Recipe:
    """Return a recipe of steps on a model."""
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(directory)}, "steps": list(steps)})
    return msgspec.structs.replace(recipe, steps=tuple(pin_step(step, Path.cwd()) for step in recipe.steps))


def exported(directory: Path, steps: Sequence[Any]) -> ExportedModel:
    """Return what a format writes down of a recipe."""
    recipe = recipe_of(directory, steps)
    draft = fold(draft_at(directory), recipe.steps)
    return ExportedModel(recipe, draft, compile_plan(draft), str(directory))


def trainable(model: nn.Module) -> set[str]:
    """Return the names of the parameters that a loaded model trains."""
    return {name for name, one in model.named_parameters() if one.requires_grad}


def planned_trainable(model: ExportedModel) -> set[str]:
    """Return the names of the parameters that a plan leaves trainable, as the loaded model calls them."""
    return set(model.draft.structure.memory_names(model.plan.trainable))


def lora_modules(model: Any) -> dict[str, tuple[int, float]]:
    """Return rank and scale by module of a model that PEFT has wrapped."""
    modules: dict[str, Any] = dict(model.named_modules())
    return {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in modules.items()
        if len(getattr(module, "lora_A", ()))
    }


def planned_lora(model: ExportedModel) -> dict[str, tuple[int, float]]:
    """Return the same of a plan, its gates as they start."""
    return {
        one.module: (one.lora.rank, one.lora.alpha / one.lora.rank * float(torch.sigmoid(torch.tensor(one.lora.gate))))
        for one in model.plan.adapters
    }
