"""The `verify` job: checks an export against its own recipe and, where it is at hand, its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from surgeon.backend.base import open_base
from surgeon.backend.verification.adapter_proof import prove_adapter
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.jobs import Emit, IsCancelled
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.fold import fold, unfrozen
from surgeon.core.recipe.recipe import Recipe, load_recipe
from surgeon.errors import CheckpointError, RecipeError
from surgeon.export.checkpoint_writer import RECIPE


def verify_directory(
    directory: Path, draft: Draft | None, args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled
) -> dict[str, Any]:
    """Run every check on a written checkpoint; see `export_proof.verify`."""
    from surgeon.backend.device import choose_device
    from surgeon.backend.verification.export_proof import verify

    return verify(directory, draft, choose_device(args.get("device")), emit, cancelled)


def verify_job(args: Mapping[str, Any], emit: Emit, cancelled: IsCancelled) -> dict[str, Any]:
    """Perform a `verify` job: check an export against its own recipe and, where it is at hand, its base."""
    directory = Path(args["directory"])
    if (directory / RECIPE).is_file() and (directory / "adapter_config.json").is_file():
        return {"proof": _verify_adapter(directory, args)}
    open_checkpoint(directory)
    draft: Draft | None = None
    missing = "not at hand"
    if (directory / RECIPE).is_file():
        recipe = _own_recipe(directory, args)
        try:
            draft = fold(open_base(recipe, str(directory / RECIPE)), recipe.steps)
            if compile_plan(unfrozen(draft)).pending:
                draft, missing = None, "what its steps learned is no longer kept on this machine"
        except (CheckpointError, RecipeError) as error:
            emit("log", {"level": "warning", "text": f"not compared with the base: {error}"})
    else:
        emit("log", {"level": "warning", "text": f"not compared with the base: there is no {RECIPE}"})
    proof = verify_directory(directory, draft, args, emit, cancelled)
    if draft is None:
        proof["base"] = {"passed": True, "detail": f"{missing}: nothing was compared with it"}
    return {"proof": proof}


def _own_recipe(directory: Path, args: Mapping[str, Any]) -> Recipe:
    recipe = load_recipe(directory / RECIPE)
    if args.get("base"):
        recipe = msgspec.structs.replace(recipe, base=msgspec.structs.replace(recipe.base, model=args["base"]))
    return recipe


def _verify_adapter(directory: Path, args: Mapping[str, Any]) -> dict[str, Any]:
    from surgeon.backend.device import choose_device

    recipe = _own_recipe(directory, args)
    draft = fold(open_base(recipe, str(directory / RECIPE)), recipe.steps)
    return prove_adapter(draft, directory, choose_device(args.get("device")))
