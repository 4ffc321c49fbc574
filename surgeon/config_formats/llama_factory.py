"""LLaMA-Factory's settings of freeze tuning, LLaMA Pro's too, and of LoRA."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from surgeon.core.interchange.adapter_targets import lora_steps, lora_targets, one_rank
from surgeon.core.interchange.config_format import (
    ConfigFormat,
    ExportedConfig,
    ExportedModel,
    ImportedConfig,
    Plain,
    note_unread,
    number,
    words,
)
from surgeon.core.interchange.trainable_parameters import Parameter, freeze_steps, parameters_of, trainable_names
from surgeon.core.plan.draft import Draft
from surgeon.errors import RecipeError

_FREEZE = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules", "use_llama_pro")
_LORA = {"lora_rank": "r", "lora_alpha": "lora_alpha", "use_rslora": "use_rslora", "use_dora": "use_dora",
         "additional_target": "modules_to_save"}  # fmt: skip
_OWN = {"model_name_or_path", "finetuning_type", "lora_target", "pissa_init", *_FREEZE, *_LORA}


class LlamaFactory(ConfigFormat):
    """Which layers and modules stay trainable, by count; or which modules get a LoRA."""

    name = "llama_factory"
    summary = "LLaMA-Factory: finetuning_type: freeze (LLaMA Pro too) or lora"

    @staticmethod
    def recognises(plain: Plain) -> bool:
        """Whether it says how to fine-tune in LLaMA-Factory's words."""
        return "finetuning_type" in plain or any(key in plain for key in _FREEZE)

    @staticmethod
    def base(plain: Plain) -> str | None:
        """Return the base model."""
        return plain.get("model_name_or_path")

    @staticmethod
    def read(plain: Plain, draft: Draft) -> ImportedConfig:
        """Return the freezes or the adapters that the settings mean."""
        parameters, kind = parameters_of(draft), plain.get("finetuning_type", "freeze")
        notes = note_unread(plain, _OWN)
        if kind == "freeze":
            trainable = trained_parameters(plain, parameters, len(draft.layers()))
            return ImportedConfig(tuple(freeze_steps(draft, parameters, trainable)), notes)
        if kind == "full":
            return ImportedConfig((), notes)
        if kind != "lora":
            raise RecipeError(f"is {kind!r}", where="finetuning_type", allowed="freeze, lora, full")
        if plain.get("use_llama_pro"):
            raise RecipeError("goes with freeze here", where="use_llama_pro", hint="finetuning_type: freeze")
        config: dict[str, Any] = {own: plain[key] for key, own in _LORA.items() if plain.get(key)}
        config |= {"init_lora_weights": "pissa"} if plain.get("pissa_init") else {}
        config["lora_alpha"] = number(plain, "lora_alpha", 2 * number(plain, "lora_rank", 8))
        wanted = words(plain, "lora_target") or ["all"]
        config["target_modules"] = "all-linear" if wanted == ["all"] else wanted
        return ImportedConfig(tuple(lora_steps(draft, parameters, lora_targets(config, parameters))), notes)

    @staticmethod
    def write(model: ExportedModel) -> ExportedConfig:
        """Return the settings that leave the same parameters trainable, or the adapters."""
        settings: dict[str, Any] = {"model_name_or_path": model.model} if model.model else {}
        if model.plan.adapters:
            rank, alpha = one_rank(model.plan)
            if alpha != int(alpha):
                raise RecipeError(f"is {alpha}", where="alpha", allowed="a whole number, in LLaMA-Factory")
            modules = ",".join(one.module for one in model.plan.adapters)
            settings |= {"finetuning_type": "lora", "lora_rank": rank, "lora_alpha": int(alpha), "lora_target": modules}
        else:
            settings |= {"finetuning_type": "freeze", **_freeze_settings(model)}
        return ExportedConfig("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))


def trained_parameters(plain: Plain, parameters: Sequence[Parameter], count: int) -> set[str]:
    """Return the names of the parameters that stay trainable, as LLaMA-Factory finds them: by parts of names.

    Raises:
        RecipeError: a module is none of this model's, or layers cannot be told from the count.
    """
    hidden, outside = set[str](), set[str]()
    for name in (one.name for one in parameters):
        for mark in (".0.", ".1."):
            if mark in name:
                hidden.add(name.split(mark)[-1].split(".")[0])
                break
        if re.search(r"\.\d+\.", name) is None and "." in name:
            outside.add(name.split(".")[-2])
    parts = []
    for module in words(plain, "freeze_trainable_modules") or ["all"]:
        if module != "all" and module not in hidden:
            raise RecipeError(
                f"{module!r} is no module",
                where="freeze_trainable_modules",
                allowed=", ".join(["all", *sorted(hidden)]),
            )
        parts += [f".{layer}.{'' if module == 'all' else module}" for layer in _layers(plain, count)]
    for module in words(plain, "freeze_extra_modules"):
        if module not in outside:
            raise RecipeError(
                f"{module!r} is no module", where="freeze_extra_modules", allowed=", ".join(sorted(outside))
            )
        parts.append(module)
    return {one.name for one in parameters if any(part in one.name for part in parts)}


def _layers(plain: Plain, count: int) -> range:
    trained = int(number(plain, "freeze_trainable_layers", 2))
    if plain.get("use_llama_pro"):
        if trained < 1 or count % trained:
            raise RecipeError(
                f"is {trained}, and the model has {count} layers", where="freeze_trainable_layers",
                allowed="a divisor of the number of layers, with use_llama_pro",
            )  # fmt: skip
        stride = count // trained
        return range(stride - 1, count + stride - 1, stride)
    return range(max(0, count - trained), count) if trained > 0 else range(min(-trained, count))


def _freeze_settings(model: ExportedModel) -> dict[str, Any]:
    """Return settings that leave exactly the plan's trainable parameters trainable: the first that do.

    Raises:
        RecipeError: none do.
    """
    parameters, count = parameters_of(model.draft), len(model.draft.layers())
    wanted = trainable_names(model.draft, model.plan)
    for settings in _candidates(parameters, wanted, count):
        try:
            if trained_parameters(settings, parameters, count) == wanted:
                return settings
        except RecipeError:
            continue
    raise RecipeError(
        "leaves trainable what LLaMA-Factory has no words for",
        allowed="the first or the last layers, or each n-th, whole or the same modules of each",
        hint="export-config axolotl names single parameters",
    )


def _candidates(parameters: Sequence[Parameter], wanted: frozenset[str], count: int) -> Iterator[dict[str, Any]]:
    layers = {one.position for one in parameters if one.role and one.name in wanted}
    modules = sorted({
        one.name.split(f".{one.position}.", 1)[1].split(".")[0] for one in parameters if one.role and one.name in wanted
    })  # fmt: skip
    extra = sorted({one.name.split(".")[-2] for one in parameters if not one.role and one.name in wanted})
    also = {"freeze_extra_modules": ",".join(extra)} if extra else {}
    for chosen in ("all", ",".join(modules)):
        for trained in (len(layers), -len(layers)):
            yield {"freeze_trainable_layers": trained, "freeze_trainable_modules": chosen, **also}
        pro = {"freeze_trainable_layers": len(layers), "freeze_trainable_modules": chosen, "use_llama_pro": True}
        if layers and count % len(layers) == 0:
            yield {**pro, **also}
