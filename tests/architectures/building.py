"""Builds tiny random models of any type from their config class, random enough that every mistake shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.architectures.settings import OWN, SMALL, VISION

_KEPT = ("model_type", "architectures", "vocab_size", "num_hidden_layers")
_TEXT_PARTS = ("text", "decoder", "llm", "language")


def causal_types() -> list[str]:
    """Return every model type that `AutoModelForCausalLM` knows."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(model_type: str, own: Mapping[str, Any] | None = None) -> PreTrainedConfig:
    """Return the config of a tiny model of a type."""
    cls = CONFIG_MAPPING[model_type]
    settings = OWN.get(model_type, {}) if own is None else own
    return cls(**_settings(cls, SMALL, settings))


def _settings(cls: type[PreTrainedConfig], small: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    chosen = {name: value for name, value in small.items() if name in names}
    for key, spec in cls.sub_configs_defaults.items():
        if spec.optional and key not in own:
            continue
        sub = (
            spec.config_class
            if issubclass(spec.config_class, PreTrainedConfig)
            else spec.get_config_class(spec.model_type)
        )
        defaults = SMALL if key.startswith(_TEXT_PARTS) else {**SMALL, **VISION}
        own_part = own.get(key)
        chosen[key] = _settings(sub, defaults, own_part if isinstance(own_part, Mapping) else {})
        if spec.config_class is not sub:
            chosen[key]["model_type"] = spec.model_type
    return {**chosen, **{name: value for name, value in own.items() if name not in cls.sub_configs_defaults}}


def tiny_model(config: PreTrainedConfig, auto: Any = AutoModelForCausalLM) -> nn.Module:
    """Return a model with random weights, biases and norms: a layer that is skipped or misread changes the logits."""
    torch.manual_seed(0)
    model: nn.Module = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=None)
            if parameter.dim() <= 1:
                parameter.add_(0.2 * noise)
            elif parameter.std() < 0.1:
                parameter.copy_(0.15 * noise)
        stored = model.state_dict()
        for name, buffer in model.named_buffers():
            if name in stored and buffer.is_floating_point():
                buffer.add_(0.1 * torch.randn(buffer.shape))
    return model


def sparse_config(config: PreTrainedConfig, legacy: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the shortest config.json that loads as this config: what depends on positions is left implicit.

    `legacy` are older keys, such as a window's period, that say what newer lists say.
    """
    full = config.to_dict()
    if legacy and "text_config" not in full:
        legacy = legacy.get("text_config", legacy)  # the model was given the text part of its config alone
    return _without_implied(type(config), {**full, **_merged(full, legacy or {})}, full)


def as_saved(plain: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the values of a saved one, where it has them: infinities are written as mappings there."""
    return {
        key: as_saved(value, saved[key])
        if isinstance(value, dict) and key.endswith("config") and key in saved
        else saved.get(key, value)
        for key, value in plain.items()
    }


def _merged(full: Mapping[str, Any], legacy: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {**full[key], **_merged(full[key], value)}
        if isinstance(value, dict) and isinstance(full.get(key), dict)
        else value
        for key, value in legacy.items()
    }


def _without_implied(cls: type[PreTrainedConfig], plain: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    parts = [key for key, value in plain.items() if isinstance(value, dict) and key.endswith("config")]
    paths = [(key,) for key in plain if key not in parts] + [(part, key) for part in parts for key in plain[part]]
    for path in sorted(paths, key=lambda path: not isinstance(_at(plain, path), list)):
        shorter = _removed(plain, path)
        if path[-1] not in _KEPT and _same(cls, shorter, full):
            plain = shorter
    return plain


def _at(plain: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    return plain[path[0]] if len(path) == 1 else _at(plain[path[0]], path[1:])


def _removed(plain: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    if len(path) == 1:
        return {key: value for key, value in plain.items() if key != path[0]}
    return {**plain, path[0]: _removed(plain[path[0]], path[1:])}


def _same(cls: type[PreTrainedConfig], plain: dict[str, Any], full: dict[str, Any]) -> bool:
    try:
        return _comparable(cls.from_dict(dict(plain)).to_dict()) == _comparable(full)
    except Exception:  # whatever a config class objects to, this key was needed
        return False


def _comparable(plain: Mapping[str, Any]) -> str:
    return repr(
        {
            key: value
            for key, value in sorted(plain.items())
            if key not in ("transformers_version", "dtype", "_name_or_path")
        }
    )
