"""Checkpoints as they occur: quantised in five ways, with layers behind the last, in shards, with names of old."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.expressions import Copy
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins
from surgeon.errors import ArchitectureError
from surgeon.export.checkpoint_writer import export_checkpoint
from tests.export.handmade_shards import Stored, llama_tensors, random_tensor, write_shard
from tests.jobs import job_context

_LAYERS = 4
_MATRICES = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]

# For each way to quantise: what stands in place of a matrix, and what the config says of it.
_QUANTISED: dict[str, tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, Any]]] = {
    "fp8": (
        {"weight": ("U8", (4, 4)), "weight_scale_inv": ("F32", (1, 1))},
        {
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head", "model.layers.2.mlp.down_proj"],
        },
    ),
    "gptq": (
        {"qweight": ("U8", (2, 4)), "qzeros": ("U8", (1, 2)), "scales": ("F16", (1, 4)), "g_idx": ("U8", (4,))},
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 4,
            "dynamic": {"-:.*\\.layers\\.3\\.mlp\\..*": {}, "+:.*\\.layers\\.1\\..*": {"bits": 8}},
        },
    ),
    "awq": (
        {"qweight": ("U8", (2, 4)), "qzeros": ("U8", (1, 2)), "scales": ("F16", (1, 4))},
        {"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["model.layers.0.", "model.layers.3.mlp"]},
    ),
    "bitsandbytes": (
        {
            "weight": ("U8", (8, 1)),
            "weight.absmax": ("F32", (1,)),
            "weight.quant_map": ("F32", (16,)),
            "weight.quant_state.bitsandbytes__nf4": ("U8", (20,)),
        },
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["lm_head"]},
    ),
    "mxfp4": (
        {"weight_blocks": ("U8", (4, 2)), "weight_scales": ("U8", (4, 1))},
        {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.1.mlp.router", "lm_head"],
        },
    ),
}


def _quantised(directory: Path, method: str) -> Path:
    parts, config = _QUANTISED[method]
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": ("F16", (9, 4))}
    for layer in range(_LAYERS):
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = ("F16", (4,))
        shapes |= {
            f"model.layers.{layer}.{matrix}.{part}": form for matrix in _MATRICES for part, form in parts.items()
        }
    return _write(
        directory, shapes, {"model_type": "llama", "num_hidden_layers": _LAYERS, "quantization_config": config}
    )


def _write(directory: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], config: Mapping[str, Any]) -> Path:
    directory.mkdir(parents=True)
    tensors: dict[str, Stored] = {name: random_tensor(shape, dtype, name) for name, (dtype, shape) in shapes.items()}
    write_shard(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return directory


def _plan(base: Path, *steps: Mapping[str, Any]) -> Plan:
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(base)}, "steps": list(steps)})
    return compile_plan(fold(draft_of(read_structure(open_checkpoint(base))), recipe.steps))


def _export(plan: Plan, base: Path, out: Path) -> Path:
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(base)}, "steps": []})
    export_checkpoint(plan, recipe, out, job=job_context())
    return out


def _bytes(directory: Path) -> dict[str, bytes]:
    tensors = open_checkpoint(directory).tensors.values()
    return {tensor.name: tensor.shard.read_bytes()[tensor.start : tensor.end] for tensor in tensors}


@pytest.mark.parametrize("method", _QUANTISED)
def test_whole_layers_of_a_quantised_checkpoint_move_as_bytes(method: str, tmp_path: Path) -> None:
    """Nothing is dequantised: packed weights, scales and zeros go where their layer goes."""
    base = _quantised(tmp_path / "base", method)
    plan = _plan(base, {"prune": {"layers": [1]}}, {"expand": {"after": [0], "init": "duplicate"}})
    before, after = _bytes(base), _bytes(_export(plan, base, tmp_path / "out"))

    for position, origin in enumerate([0, 0, 2, 3]):
        for matrix in _MATRICES:
            for part in _QUANTISED[method][0]:
                assert (
                    after[f"model.layers.{position}.{matrix}.{part}"]
                    == before[f"model.layers.{origin}.{matrix}.{part}"]
                )


@pytest.mark.parametrize("method", _QUANTISED)
@pytest.mark.parametrize("init", ["copy", "mean"])
def test_arithmetic_on_quantised_weights_is_refused_by_name(method: str, init: str, tmp_path: Path) -> None:
    """An identity would need numbers, and there are none."""
    with pytest.raises(ArchitectureError, match="quantization_config"):
        _plan(_quantised(tmp_path / "base", method), {"expand": {"after": [1], "init": init}})


@pytest.mark.parametrize(
    ("method", "key", "expected"),
    [
        ("fp8", "modules_to_not_convert", ["lm_head", "model.layers.1.mlp.down_proj"]),
        ("gptq", "dynamic", {"-:.*\\.layers\\.2\\.mlp\\..*": {}, "+:.*\\.layers\\.0\\..*": {"bits": 8}}),
        ("awq", "modules_to_not_convert", ["model.layers.2.mlp"]),
        ("bitsandbytes", "llm_int8_skip_modules", ["lm_head"]),
        ("mxfp4", "modules_to_not_convert", ["model.layers.*.self_attn", "lm_head", "model.layers.0.mlp.router"]),
    ],
)
def test_names_of_layers_in_the_quantisation_config_are_renumbered(
    method: str, key: str, expected: Any, tmp_path: Path
) -> None:
    """What is left alone in a layer stays left alone where that layer goes; without its layer it goes too."""
    plan = _plan(_quantised(tmp_path / "base", method), {"prune": {"layers": [0]}})

    assert plan.config["quantization_config"][key] == expected


def test_a_regular_expression_over_layer_numbers_is_refused(tmp_path: Path) -> None:
    """It cannot be renumbered."""
    config = {"quant_method": "compressed-tensors", "ignore": ["re:model.layers.[0-1].mlp.*"]}
    shapes = {f"model.layers.{layer}.mlp.down_proj.weight": ("F16", (4, 4)) for layer in range(3)}
    base = _write(
        tmp_path / "base", shapes, {"model_type": "llama", "num_hidden_layers": 3, "quantization_config": config}
    )

    with pytest.raises(ArchitectureError, match="quantization_config"):
        _plan(base, {"prune": {"layers": [0]}})


def test_layers_behind_the_last_stay_behind_it(tmp_path: Path) -> None:
    """Heads that predict several tokens ahead are numbered as layers that follow, and are renumbered with the count."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        f"model.layers.{layer}.mlp.{name}_proj.weight": ("F32", (4, 4))
        for layer in range(5)
        for name in ("gate", "up", "down")
    }
    shapes["model.layers.4.eh_proj.weight"] = ("F32", (4, 8))
    base = _write(
        tmp_path / "base",
        shapes,
        {
            "model_type": "deepseek_v3",
            "num_hidden_layers": 4,
            "num_nextn_predict_layers": 1,
            "first_k_dense_replace": 4,
        },
    )
    out = _export(_plan(base, {"prune": {"layers": [0, 2]}}), base, tmp_path / "out")

    assert _bytes(out)["model.layers.2.eh_proj.weight"] == _bytes(base)["model.layers.4.eh_proj.weight"]
    assert open_checkpoint(out).config["num_hidden_layers"] == 2


def test_buffers_of_old_checkpoints_travel_with_their_layers(tmp_path: Path) -> None:
    """Rotary frequencies and attention masks, once stored, are copied like everything else."""
    shapes = {
        f"model.layers.{layer}.{name}": ("F32", (4,))
        for layer in range(3)
        for name in ("input_layernorm.weight", "self_attn.rotary_emb.inv_freq")
    }
    base = _write(tmp_path / "base", shapes, {"model_type": "llama", "num_hidden_layers": 3})
    plan = _plan(base, {"prune": {"layers": [1]}})

    sources = {tensor.name: tensor.source for tensor in plan.tensors}
    moved = sources["model.layers.1.self_attn.rotary_emb.inv_freq"]
    assert isinstance(moved, Copy)
    assert moved.tensor.name == "model.layers.2.self_attn.rotary_emb.inv_freq"


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_is_read_with_and_without_its_first_name(prefix: str, tmp_path: Path) -> None:
    """The published checkpoint lacks it, later ones have it; in memory it is there."""
    shapes = {
        f"{prefix}h.{layer}.{name}.weight": ("F32", (4, 4))
        for layer in range(3)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")
    }
    shapes[f"{prefix}wte.weight"] = ("F32", (9, 4))
    base = _write(tmp_path / "base", shapes, {"model_type": "gpt2", "n_layer": 3})
    plan = _plan(base, {"prune": {"layers": [0]}}, {"freeze": {"layers": [0]}})

    assert plan.config["n_layer"] == 2
    assert f"{prefix}h.0.attn.c_proj.weight" in plan.frozen
    assert plan.structure.memory_names(["h.1.mlp.c_proj.weight"]) == ["transformer.h.1.mlp.c_proj.weight"]


def test_an_unknown_list_as_long_as_the_model_travels_along_and_is_told_of(tmp_path: Path) -> None:
    """A family of the next release works without a rule, and its reader learns what was guessed."""
    base = tmp_path / "base"
    base.mkdir()
    write_shard(base / "model.safetensors", llama_tensors(4, "F32"))
    config = {"model_type": "of_tomorrow", "num_hidden_layers": 4, "layer_moods": ["calm", "keen", "calm", "wild"]}
    (base / "config.json").write_text(json.dumps(config))
    plan = _plan(base, {"prune": {"layers": [1]}})

    assert plan.config["layer_moods"] == ["calm", "calm", "wild"]
    assert any("layer_moods" in note for note in plan.structure.stack().notes)


def test_layers_that_differ_without_a_reason_are_not_moved(tmp_path: Path) -> None:
    """What decides how they are built may be their position, so moving them would be a guess."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        f"model.layers.{layer}.mlp.down_proj.weight": ("F32", (4, 4)) for layer in range(4)
    }
    shapes["model.layers.0.extra_norm.weight"] = ("F32", (4,))
    base = _write(tmp_path / "base", shapes, {"model_type": "of_tomorrow", "num_hidden_layers": 4})

    with pytest.raises(ArchitectureError, match="built differently"):
        _plan(base, {"prune": {"layers": [2]}})
