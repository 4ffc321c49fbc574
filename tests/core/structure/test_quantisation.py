"""Quantised is quantised, wherever it is said: in a config, in a file beside it, or by the tensors alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.structure.companions import companion_of, packed_weights, plain_name
from surgeon.core.structure.quantisation import Quantisation, read_quantisation
from surgeon.errors import ArchitectureError
from tests.export.handmade_models import Form, layer_forms, plan_of, write_model

LLAMA: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": 2}


def _found(
    directory: Path, forms: dict[str, Form] | None = None, config: Any = None, **files: Any
) -> Quantisation | None:
    forms = forms or layer_forms("model.layers", range(2))
    base = write_model(directory, forms, {**LLAMA, **(config or {})}, **files)
    structure = read_structure(open_checkpoint(base))
    whole = read_quantisation(structure.checkpoint)
    by_layouts = structure.quantisation
    assert (whole is None) == (by_layouts is None)
    if whole is not None and by_layouts is not None:
        assert (whole.method, whole.where) == (by_layouts.method, by_layouts.where)
    return whole


@pytest.mark.parametrize(
    ("config", "method", "where", "declared"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8", "quantization_config", True),
        (
            {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}},
            "bitsandbytes nf4", "quantization_config", True,
        ),
        (
            {"text_config": {"quantization_config": {"quant_method": "compressed-tensors", "format": "packed"}}},
            "compressed-tensors packed", "text_config.quantization_config", True,
        ),
        ({"compression_config": {"format": "int"}}, "compressed-tensors int", "compression_config", False),
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX, 4 bits", "quantization", False),
        ({"quantization_config": {"group_size": 64, "bits": 4}}, "MLX, 4 bits", "quantization_config", False),
        ({"audio": {"quantization_config": {"quant_method": "awq"}}}, "awq", "audio.quantization_config", False),
    ],
)  # fmt: skip
def test_a_config_says_it_in_many_places(config: Any, method: str, where: str, declared: bool, tmp_path: Path) -> None:
    """Only what stands where transformers looks, with a method, is declared to it."""
    found = _found(tmp_path / "base", config=config)

    assert found is not None
    assert (found.method, found.where, found.declared) == (method, f"config field {where}", declared)


@pytest.mark.parametrize(
    ("name", "content", "method"),
    [
        (
            "hf_quant_config",
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": []}},
            "modelopt NVFP4",
        ),
        ("quantize_config", {"bits": 4, "group_size": 128}, "gptq"),
        ("quant_config", {"zero_point": True, "q_group_size": 128, "w_bit": 4}, "awq"),
        (
            "quant_model_description_w8a8",
            {"model.layers.0.mlp.down_proj.weight": "W8A8", "x": "FLOAT"},
            "msModelSlim W8A8",
        ),
    ],
)
def test_a_file_beside_the_config_says_it(name: str, content: Any, method: str, tmp_path: Path) -> None:
    found = _found(tmp_path / "base", **{name: content})

    assert found is not None
    assert (found.method, found.where, found.declared) == (method, f"{name}.json", False)


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({"mlp.down_proj.weight": ("F8_E4M3", (4, 4))}, "mlp.down_proj.weight"),
        ({"mlp.down_proj.weight_scale": ("F32", (4, 1))}, "mlp.down_proj.weight_scale"),
        ({"mlp.up_proj.qweight": ("I32", (1, 4)), "mlp.up_proj.scales": ("F16", (1, 4))}, "mlp.up_proj.scales"),
        (
            {"mlp.up_proj.weight": ("U8", (8, 1)), "mlp.up_proj.weight.absmax": ("F32", (1,))},
            "mlp.up_proj.weight.absmax",
        ),
        ({"mlp.up_proj.weight": ("I8", (4, 4)), "mlp.up_proj.SCB": ("F32", (4,))}, "mlp.up_proj.SCB"),
        ({"mlp.experts.up_proj_blocks": ("U8", (2, 4, 1, 16))}, "mlp.experts.up_proj_blocks"),
        ({"mlp.up_proj.weight": ("U32", (4, 1)), "mlp.up_proj.biases": ("F16", (4, 1))}, "mlp.up_proj.biases"),
        ({"mlp.up_proj.weight_packed": ("I32", (4, 1))}, "mlp.up_proj.weight_packed"),
    ],
)
def test_tensors_alone_say_it(more: dict[str, Form], shown: str, tmp_path: Path) -> None:
    """A packed dtype or a companion is enough, and the first of them is named."""
    forms = layer_forms("model.layers", range(2)) | layer_forms("model.layers", range(2), **more)
    found = _found(tmp_path / "base", forms)

    assert found is not None
    assert found.where == f"tensor 'model.layers.0.{shown}'"
    assert not found.declared


@pytest.mark.parametrize(
    "more",
    [
        {"attn.bias": ("U8", (1, 1, 4, 4)), "attn.masked_bias": ("F32", ())},
        {"attn.relative_position_index": ("I64", (4, 4)), "mlp.tid2eid": ("I64", (9, 2))},
        {"mlp.scale": ("F32", (4,)), "layer_scale.scales": ("F32", (4, 4)), "attn.logit_scale": ("F32", ())},
        {"self_attn.k_scale": ("F32", ()), "self_attn.v_scale": ("F32", ())},
        {"self_attn.q_proj.input_scale": ("F32", ())},
    ],
)
def test_masks_tables_and_learned_scales_are_no_quantisation(more: dict[str, Form], tmp_path: Path) -> None:
    """Integers that are no weights, and scales beside none that is packed."""
    forms = layer_forms("model.layers", range(2)) | layer_forms("model.layers", range(2), **more)

    assert _found(tmp_path / "base", forms) is None


def test_a_quantised_cache_is_no_quantised_weight(tmp_path: Path) -> None:
    quantised = {"quant_algo": None, "kv_cache_quant_algo": "FP8"}

    assert _found(tmp_path / "base", hf_quant_config={"quantization": quantised}) is None
    assert _found(tmp_path / "empty", config={"quantization_config": {}}) is None


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("mlp.gate_proj.weight_scale_inv", "mlp.gate_proj.weight"),
        ("mlp.gate_proj.qweight", "mlp.gate_proj.weight"),
        ("mlp.gate_proj.qzeros", "mlp.gate_proj.weight"),
        ("mlp.gate_proj.weight.quant_state.bitsandbytes__nf4", "mlp.gate_proj.weight"),
        ("mlp.gate_proj.weight_packed", "mlp.gate_proj.weight"),
        ("mlp.experts.gate_up_proj_scale_inv", "mlp.experts.gate_up_proj"),
        ("mlp.experts.gate_up_proj_blocks", "mlp.experts.gate_up_proj"),
        ("mlp.experts.gate_up_proj_bias", "mlp.experts.gate_up_proj_bias"),
        ("mlp.gate_proj.bias", "mlp.gate_proj.bias"),
    ],
)
def test_every_part_of_a_weight_knows_its_name(name: str, weight: str, tmp_path: Path) -> None:
    """And has the weight's role: gate_proj's scales were once taken for a router."""
    assert plain_name(name) == weight
    structure = read_structure(
        open_checkpoint(write_model(tmp_path / "b", layer_forms("model.layers", range(2)), LLAMA))
    )

    assert structure.role(name) == structure.role(weight)
    assert structure.role("mlp.gate_proj.weight_scale_inv") == "mlp.gate"
    assert companion_of("mlp.gate_proj.bias") is None


def test_a_scale_of_small_floats_is_no_weight_of_its_own(tmp_path: Path) -> None:
    """DeepSeek's own format has `scale` beside `weight`, in F8_E8M0."""
    forms = layer_forms("model.layers", [0]) | {
        "model.layers.0.mlp.up_proj.weight": ("F8_E4M3", (4, 4)),
        "model.layers.0.mlp.up_proj.scale": ("F8_E8M0", (1, 1)),
    }
    base = write_model(tmp_path / "base", forms, {**LLAMA, "num_hidden_layers": 1})
    (layer,) = read_structure(open_checkpoint(base)).stack().layers
    packed = packed_weights(layer.layout.types)

    assert list(packed) == ["mlp.up_proj.weight"]
    assert packed["mlp.up_proj.weight"].parts == {"scale": "mlp.up_proj.scale"}


@pytest.mark.parametrize(
    "step",
    [
        {"expand": {"after": [0], "init": "copy"}},
        {"expand": {"after": [0], "init": "mean"}},
        {"prune": {"layers": [1], "fold": True}},
        {"truncate": {"layers": [0], "roles": ["mlp.down"], "rank": 1}},
        {"train": {"objective": "lm", "steps": 1}},
        {"mask_weights": {"objective": "lm", "steps": 1}},
    ],
)
@pytest.mark.parametrize("said", ["file", "tensors", "config"])
def test_whatever_needs_the_values_refuses_and_says_what_says_so(step: Any, said: str, tmp_path: Path) -> None:
    """Before anything is loaded, and for every way to say it."""
    forms = layer_forms("model.layers", range(2))
    files: dict[str, Any] = {}
    config, where = dict(LLAMA), ""
    if said == "file":
        files, where = {"hf_quant_config": {"quantization": {"quant_algo": "FP8"}}}, "hf_quant_config.json"
    elif said == "config":
        config, where = {**LLAMA, "compression_config": {"format": "x"}}, "config field compression_config"
    else:
        forms |= layer_forms("model.layers", range(2), mlp__down_proj__weight_scale=("F32", (4, 1)))
        where = "tensor 'model.layers.0.mlp.down_proj.weight_scale'"
    base = write_model(tmp_path / "base", forms, config, **files)

    with pytest.raises(ArchitectureError, match="the weights are quantised") as caught:
        plan_of(base, step)
    assert where in caught.value.where


def test_an_untied_head_of_a_quantised_model_is_refused(tmp_path: Path) -> None:
    """Nothing says whether it would be quantised, and its scales are not the embedding's."""
    forms = layer_forms("model.layers", range(2)) | {"model.embed_tokens.weight": ("F32", (9, 4))}
    config = {**LLAMA, "tie_word_embeddings": True, "quantization_config": {"quant_method": "fp8"}}
    base = write_model(tmp_path / "base", forms, config)

    with pytest.raises(ArchitectureError, match="quantization_config: the weights are quantised"):
        plan_of(base, {"untie": {}})
