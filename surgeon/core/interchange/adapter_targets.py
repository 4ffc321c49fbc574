"""Which modules get a LoRA: as PEFT's `LoraConfig` says it, and as `masked_lora` steps say it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from surgeon.core.interchange.config_format import Plain, number, refuse_keys, words
from surgeon.core.interchange.trainable_parameters import Parameter
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import Plan
from surgeon.core.selection.spans import spans
from surgeon.errors import RecipeError

OPEN_GATE = 40.0
"""A gate that is 1 in float32, so that an adapter acts as one without a gate."""
Settings = tuple[int, float]
"""Rank and alpha: the update is multiplied by alpha / rank."""
_ALL_LINEAR = "all-linear"
_NOT_CARRIED = {
    "use_dora": "DoRA splits a weight into magnitude and direction, which masked_lora does not",
    "modules_to_save": "trains whole modules beside the adapters, which masked_lora does not",
    "target_parameters": "adapts parameters that are no linear layer's weight",
    "trainable_token_indices": "trains rows of the embedding",
    "layer_replication": "repeats layers",
    "megatron_config": "is for parallel linear layers of Megatron",
    "corda_config": "starts adapters from the weights' covariance",
    "eva_config": "starts adapters from activations",
    "loftq_config": "starts adapters from a quantisation's error",
    "lora_bias": "gives adapters a bias",
    "alora_invocation_tokens": "acts only behind certain tokens",
}
READ = frozenset(
    {"r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
     "alpha_pattern", "use_rslora", "bias", "peft_type", "task_type", "base_model_name_or_path", "fan_in_fan_out",
     "inference_mode", "init_lora_weights", *_NOT_CARRIED}
)  # fmt: skip
"""Keys of a `LoraConfig` that are followed, that say what is so anyway, or that are refused where they are set."""


def lora_targets(config: Plain, parameters: Collection[Parameter]) -> dict[str, Settings]:
    """Return rank and alpha by module name, as PEFT reads a config.

    rsLoRA's alpha / sqrt(rank) is told as the alpha that gives the same.

    Raises:
        RecipeError: the config asks for what `masked_lora` cannot say, or fits no module.
    """
    refuse_keys(config, _NOT_CARRIED, "leave it out, and the rest is read")
    if config.get("bias", "none") != "none":
        raise RecipeError(f"is {config['bias']!r}", where="bias", allowed="none")
    if str(config.get("peft_type", "LORA")).rpartition(".")[2] != "LORA":
        raise RecipeError(f"is {config['peft_type']}", where="peft_type", allowed="LORA")
    if str(config.get("init_lora_weights", True)) not in ("True", "kaiming"):
        raise RecipeError(
            f"is {config['init_lora_weights']!r}", where="init_lora_weights", allowed="true: A random, B zero"
        )
    chosen = [name for name in _module_names(parameters) if is_target(config, name, parameters)]
    if not chosen:
        raise RecipeError("fits no module of this model", where="target_modules", hint="check the names")
    return {name: settings_of(config, name) for name in chosen}


def settings_of(config: Plain, module: str) -> Settings:
    """Return the rank of a module's adapter, and the alpha of which alpha / rank is its scale."""
    rank = int(_by_pattern(config.get("rank_pattern") or {}, module, number(config, "r", 8)))
    alpha = float(_by_pattern(config.get("alpha_pattern") or {}, module, number(config, "lora_alpha", 8)))
    return rank, alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    fits = (value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
    return next(fits, default)


def _module_names(parameters: Collection[Parameter]) -> list[str]:
    weights = [one for one in parameters if one.name.endswith(".weight") and len(one.shape) == 2]
    return list(dict.fromkeys(one.name.removesuffix(".weight") for one in weights))


def is_target(config: Plain, module: str, parameters: Collection[Parameter]) -> bool:
    """Whether a config means a module.

    Source: peft.tuners.tuners_utils.check_target_module_exists.
    """
    excluded = config.get("exclude_modules")
    if excluded and _listed(excluded, module):
        return False
    targets = config.get("target_modules")
    if targets is None:
        raise RecipeError(
            "is missing: PEFT's default depends on the model type", where="target_modules",
            hint="name the modules, or say all-linear",
        )  # fmt: skip
    if targets in (_ALL_LINEAR, [_ALL_LINEAR]):
        return _is_linear(module, parameters)
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    if module in targets:
        return True
    indices = config.get("layers_to_transform")
    if not _listed(targets, module):
        return False
    return indices is None or indices == [] or _layer_of(config, module) in _as_list(indices)


def _is_linear(module: str, parameters: Collection[Parameter]) -> bool:
    """Whether `all-linear` means a module: those of layers, without the output head."""
    unclear = next((one for one in parameters if one.role.startswith(("experts", "router"))), None)
    if unclear is not None:
        raise RecipeError(
            f"{unclear.name} may be a linear layer or not once it is loaded", where="target_modules",
            hint="name the modules",
        )  # fmt: skip
    return any(one.name == f"{module}.weight" and one.role for one in parameters)


def _listed(names: Any, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return module in names or any(module.endswith(f".{name}") for name in names)


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _layer_of(config: Plain, module: str) -> int | None:
    patterns = words(config, "layers_pattern")
    tried = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." for pattern in patterns] or [r".*?\.[^.]*\.(?P<idx>\d+)\."]
    found = next((match for pattern in tried if (match := re.match(pattern, module))), None)
    return int(found["idx"]) if found else None


def lora_steps(
    draft: Draft, parameters: Collection[Parameter], targets: Mapping[str, Settings]
) -> list[dict[str, Any]]:
    """Return the steps that attach these adapters, their gates open.

    Raises:
        RecipeError: a module belongs to no layer, or of a role of a layer only a part is meant.
    """
    groups: dict[tuple[str, Settings], dict[int, set[str]]] = {}
    for one in parameters:
        settings = targets.get(one.name.removesuffix(".weight"))
        if settings is None or not one.name.endswith(".weight"):
            continue
        if not one.role:
            raise RecipeError(
                f"{one.name} belongs to no layer, and masked_lora adapts only those of layers", where="target_modules",
                hint="leave it out",
            )  # fmt: skip
        groups.setdefault((one.stack, settings), {}).setdefault(one.position, set()).add(one.role)
    _refuse_split(parameters, targets)
    return [step for key, places in groups.items() for step in _steps_of(draft, *key, places)]


def _steps_of(draft: Draft, stack: str, settings: Settings, places: Mapping[int, set[str]]) -> list[dict[str, Any]]:
    alike: dict[frozenset[str], list[int]] = {}
    for position, roles in places.items():
        alike.setdefault(frozenset(roles), []).append(position)
    named = {} if stack == draft.structure.default_stack else {"stack": stack}
    rank, alpha = settings
    return [
        {"masked_lora": {
            "layers": spans(positions), "roles": sorted(roles), "rank": rank, "alpha": alpha, "gate": OPEN_GATE, **named
        }}
        for roles, positions in alike.items()
    ]  # fmt: skip


def _refuse_split(parameters: Collection[Parameter], targets: Mapping[str, Settings]) -> None:
    first: dict[tuple[str, int, str], tuple[str, Settings | None]] = {}
    for one in parameters:
        if not one.role or not one.name.endswith(".weight") or len(one.shape) != 2:
            continue
        settings = targets.get(one.name.removesuffix(".weight"))
        name, other = first.setdefault((one.stack, one.position, one.role), (one.name, settings))
        if settings != other:
            raise RecipeError(
                f"means {one.name} otherwise than {name}, and both are role {one.role} of layer {one.position}",
                where="target_modules", allowed="all matrices of a role of a layer alike",
            )  # fmt: skip


def lora_config(plan: Plan) -> dict[str, Any]:
    """Return the keys of a `LoraConfig` that attaches a plan's adapters, every module named in full.

    Raises:
        RecipeError: there are none.
    """
    if not plan.adapters:
        raise RecipeError("attaches no adapter", allowed="a recipe with masked_lora", hint="choose another format")
    first = plan.adapters[0].lora
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": first.rank, "lora_alpha": first.alpha,
        "target_modules": sorted(one.module for one in plan.adapters),
        "rank_pattern": {one.module: one.lora.rank for one in plan.adapters if one.lora.rank != first.rank},
        "alpha_pattern": {one.module: one.lora.alpha for one in plan.adapters if one.lora.alpha != first.alpha},
    }  # fmt: skip


def one_rank(plan: Plan) -> Settings:
    """Return rank and alpha of all adapters, for formats that have only one of each.

    Raises:
        RecipeError: there are several.
    """
    settings = {(one.lora.rank, one.lora.alpha) for one in plan.adapters}
    if len(settings) != 1:
        raise RecipeError(
            "adapters have several ranks or scales, and this format has one of each",
            allowed="the format peft, which has rank_pattern and alpha_pattern", hint="export-config peft",
        )  # fmt: skip
    return settings.pop()
