"""PEFT's `LoraConfig`, as TRL and others take it: `adapter_config.json`, or its keys in a YAML file."""

from __future__ import annotations

import json

from surgeon.core.interchange.adapter_targets import READ, lora_config, lora_steps, lora_targets
from surgeon.core.interchange.config_format import (
    ConfigFormat,
    ExportedConfig,
    ExportedModel,
    ImportedConfig,
    Plain,
)
from surgeon.core.interchange.trainable_parameters import parameters_of
from surgeon.core.plan.draft import Draft


class Peft(ConfigFormat):
    """Where adapters go: modules, layers, patterns of ranks."""

    name = "peft"
    summary = "PEFT and TRL: LoraConfig with target_modules, layers_to_transform, layers_pattern, rank_pattern"

    @staticmethod
    def recognises(plain: Plain) -> bool:
        """Whether it says which modules to adapt."""
        return "target_modules" in plain

    @staticmethod
    def base(plain: Plain) -> str | None:
        """Return the base model, if the config names one."""
        return plain.get("base_model_name_or_path")

    @staticmethod
    def read(plain: Plain, draft: Draft) -> ImportedConfig:
        """Return the steps that attach the adapters."""
        parameters = parameters_of(draft)
        steps = lora_steps(draft, parameters, lora_targets(plain, parameters))
        unread = [key for key, value in plain.items() if key not in READ and value]
        return ImportedConfig(tuple(steps), (f"not taken over: {', '.join(unread)}",) if unread else ())

    @staticmethod
    def write(model: ExportedModel) -> ExportedConfig:
        """Return the adapters as a `LoraConfig`."""
        config = lora_config(model.plan)
        if model.model:
            config["base_model_name_or_path"] = model.model
        if model.draft.structure.family.transposed:
            config["fan_in_fan_out"] = True
        return ExportedConfig(json.dumps(config, indent=2) + "\n")
