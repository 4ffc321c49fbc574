"""axolotl's `unfrozen_parameters`, which Spectrum writes too, and its adapters."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from surgeon.core.interchange.adapter_targets import lora_steps, lora_targets, one_rank
from surgeon.core.interchange.config_format import (
    ConfigFormat,
    ExportedConfig,
    ExportedModel,
    ImportedConfig,
    Plain,
    note_unread,
    refuse_keys,
)
from surgeon.core.interchange.trainable_parameters import Parameter, freeze_steps, parameters_of, trainable_names
from surgeon.core.plan.draft import Draft
from surgeon.errors import RecipeError

_ADAPTER_KEYS = {
    "lora_r": "r", "lora_alpha": "lora_alpha", "lora_target_modules": "target_modules",
    "peft_layers_to_transform": "layers_to_transform", "peft_layers_pattern": "layers_pattern",
    "peft_use_rslora": "use_rslora", "peft_use_dora": "use_dora", "lora_modules_to_save": "modules_to_save",
    "lora_target_parameters": "target_parameters", "peft_init_lora_weights": "init_lora_weights",
    "peft_trainable_token_indices": "trainable_token_indices",
}  # fmt: skip
_OWN = {"base_model", "unfrozen_parameters", "adapter", "lora_target_linear", *_ADAPTER_KEYS}
_RANGE = re.compile(r"^(.+)\[([0-9]*)(?::([0-9]*))?\]$")


class Axolotl(ConfigFormat):
    """Which parameters stay trainable, as regular expressions; or which modules get a LoRA."""

    name = "axolotl"
    summary = "axolotl and Spectrum: unfrozen_parameters; axolotl: adapter: lora"

    @staticmethod
    def recognises(plain: Plain) -> bool:
        """Whether it has a key that only axolotl has."""
        return "unfrozen_parameters" in plain or ("base_model" in plain and "adapter" in plain)

    @staticmethod
    def base(plain: Plain) -> str | None:
        """Return the base model; Spectrum's files name none."""
        return plain.get("base_model")

    @staticmethod
    def read(plain: Plain, draft: Draft) -> ImportedConfig:
        """Return the freezes and the adapters that the file means."""
        parameters = parameters_of(draft)
        notes = note_unread(plain, _OWN)
        if plain.get("adapter"):
            if plain["adapter"] != "lora":
                raise RecipeError(f"is {plain['adapter']!r}", where="adapter", allowed="lora")
            refuse_keys(plain, {"unfrozen_parameters": "goes with full training, not with adapters"}, "leave one out")
            targets = lora_targets(_lora_config(plain), parameters)
            return ImportedConfig(tuple(lora_steps(draft, parameters, targets)), notes)
        patterns = plain.get("unfrozen_parameters") or []
        patterns = [patterns] if isinstance(patterns, str) else patterns
        trainable, fruitless = _matched(patterns, parameters)
        notes += tuple(f"fits no parameter of this model: {pattern}" for pattern in fruitless)
        return ImportedConfig(tuple(freeze_steps(draft, parameters, trainable)), notes)

    @staticmethod
    def write(model: ExportedModel) -> ExportedConfig:
        """Return what stays trainable as patterns, or the adapters."""
        lines = [f"base_model: {json.dumps(model.model)}"] if model.model else []
        if model.plan.adapters:
            rank, alpha = one_rank(model.plan)
            if alpha != int(alpha):
                raise RecipeError(f"is {alpha}", where="alpha", allowed="a whole number, in axolotl")
            lines += ["adapter: lora", f"lora_r: {rank}", f"lora_alpha: {int(alpha)}", "lora_target_modules:"]
            lines += [f"  - {json.dumps(one.module)}" for one in model.plan.adapters]
            return ExportedConfig("\n".join(lines) + "\n")
        parameters = parameters_of(model.draft)
        patterns = list(_patterns(parameters, trainable_names(model.draft, model.plan)))
        lines += ["unfrozen_parameters:", *(f"  - {json.dumps(pattern)}" for pattern in patterns)]
        return ExportedConfig("\n".join(lines) + "\n")


def _lora_config(plain: Plain) -> dict[str, Any]:
    """Return axolotl's keys as those of a `LoraConfig`."""
    config: dict[str, Any] = {own: plain[key] for key, own in _ADAPTER_KEYS.items() if plain.get(key) is not None}
    if plain.get("lora_target_linear"):
        if config.get("target_modules"):
            raise RecipeError("goes beside lora_target_modules", where="lora_target_linear", allowed="one of the two")
        config["target_modules"] = "all-linear"
    return config


def _matched(patterns: Sequence[Any], parameters: Sequence[Parameter]) -> tuple[set[str], list[str]]:
    """Return the names that patterns match, and the patterns that match none.

    As axolotl reads them: from the start of a name, a dot for itself except before a plus sign.

    Raises:
        RecipeError: a pattern is no regular expression, or means only rows of a parameter.
    """
    names = {one.name for one in parameters}
    found: set[str] = set()
    fruitless = []
    for at, pattern in enumerate(patterns):
        where = f"unfrozen_parameters[{at}]"
        if not isinstance(pattern, str):
            raise RecipeError(f"is {pattern!r}", where=where, allowed="a regular expression")
        if _RANGE.match(pattern):
            raise RecipeError(
                f"{pattern!r} means some rows of a parameter", where=where, allowed="whole parameters",
                hint="leave out the range, or the pattern",
            )  # fmt: skip
        try:
            regex = re.compile(re.sub(r"\.(?!\+)", r"\.", pattern))
        except re.error as error:
            raise RecipeError(f"{pattern!r} is no regular expression: {error}", where=where) from error
        fits = {name for name in names if regex.match(name)}
        found |= fits
        fruitless += [] if fits else [pattern]
    return found, fruitless


def _patterns(parameters: Sequence[Parameter], trainable: frozenset[str]) -> Sequence[str]:
    """Return patterns that match the trainable parameters alone: a layer in one where all of it is trained."""
    names = {one.name for one in parameters}
    layers: dict[str, set[str]] = {}
    for one in parameters:
        if one.role and (found := re.match(r"(.*?\.\d+\.)", one.name)):
            layers.setdefault(found[1], set()).add(one.name)
    whole = {prefix: own for prefix, own in layers.items() if own <= trainable and _only(prefix, own, names)}
    told = {name for own in whole.values() for name in own}
    single = sorted(trainable - told, key=lambda name: [int(part) if part.isdigit() else 0 for part in name.split(".")])
    return [f"^{_escaped(prefix)}" for prefix in whole] + [f"^{_escaped(name)}$" for name in single]


def _only(prefix: str, own: set[str], names: set[str]) -> bool:
    return {name for name in names if name.startswith(prefix)} == own


def _escaped(name: str) -> str:
    # A dot stands for itself there; escaping it would make it match a backslash.
    return "".join(part if part == "." else re.escape(part) for part in re.split(r"(\.)", name))
