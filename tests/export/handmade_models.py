"""Models of several towers written by hand, of a few tensors each, and what becomes of them. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins
from tests.export.handmade_shards import Stored, random_tensor, write_shard

Form = tuple[str, tuple[int, ...]]


def layer_forms(prefix: str, layers: Iterable[int], **more: Form) -> dict[str, Form]:
    """Return two matrices for each layer, and what is named besides: `_` in a name stands for a dot."""
    names: dict[str, Form] = {"self_attn.q_proj.weight": ("F32", (4, 4)), "mlp.down_proj.weight": ("F32", (4, 4))}
    names |= {name.replace("__", "."): form for name, form in more.items()}
    return {f"{prefix}.{layer}.{name}": form for layer in layers for name, form in names.items()}


def write_model(directory: Path, forms: Mapping[str, Form], config: Mapping[str, Any], **files: Any) -> Path:
    """Write a checkpoint; further arguments are JSON files, by name without the ending."""
    directory.mkdir(parents=True)
    tensors: dict[str, Stored] = {name: random_tensor(shape, dtype, name) for name, (dtype, shape) in forms.items()}
    write_shard(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content, indent=2))
    return directory


def plan_of(base: Path, *steps: Mapping[str, Any]) -> Plan:
    """Return the plan of some steps on a checkpoint."""
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(base)}, "steps": list(steps)})
    return compile_plan(fold(draft_of(read_structure(open_checkpoint(base))), recipe.steps))


def pruned(*layers: int, **more: Any) -> dict[str, Any]:
    """Return a step that removes layers."""
    return {"prune": {"layers": list(layers), **more}}


def doubled(*layers: int) -> dict[str, Any]:
    """Return a step that repeats layers."""
    return {"expand": {"after": list(layers), "init": "duplicate"}}
