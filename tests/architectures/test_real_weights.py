"""The real model, its weights expressed as other families: the same operations give the same answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.architectures import masking
from tests.jobs import perform

Tensors = dict[str, torch.Tensor]
_STEPS = [{"prune": {"layers": [13, 14, 21]}}, {"expand": {"after": [2, 20], "init": "mean"}}]
_EXPERTS = 4


def _as_mistral(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    config.update(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=None)
    return tensors


def _as_qwen2(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Its query, key and value have biases: zeros."""
    config.update(model_type="qwen2", architectures=["Qwen2ForCausalLM"], use_sliding_window=False)
    projections = [name for name in tensors if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]
    zeros = {
        name.replace(".weight", ".bias"): torch.zeros(tensors[name].shape[0], dtype=tensors[name].dtype)
        for name in projections
    }
    return {**tensors, **zeros}


def _as_phi3(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Query, key and value are one matrix, gate and up another."""
    config.update(model_type="phi3", architectures=["Phi3ForCausalLM"], sliding_window=None, pad_token_id=0)
    fused = dict(tensors)
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}"
        fused[f"{start}.self_attn.qkv_proj.weight"] = torch.cat(
            [fused.pop(f"{start}.self_attn.{name}_proj.weight") for name in "qkv"]
        )
        fused[f"{start}.mlp.gate_up_proj.weight"] = torch.cat(
            [fused.pop(f"{start}.mlp.{name}_proj.weight") for name in ("gate", "up")]
        )
    return fused


def _as_mixtral(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Every expert is the same MLP, so a router of noise changes nothing but rounding."""
    config.update(
        model_type="mixtral",
        architectures=["MixtralForCausalLM"],
        num_local_experts=_EXPERTS,
        num_experts_per_tok=2,
        sliding_window=None,
    )
    spread = dict(tensors)
    random = torch.Generator().manual_seed(0)
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}"
        for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            matrix = spread.pop(f"{start}.mlp.{ours}_proj.weight")
            spread |= {
                f"{start}.block_sparse_moe.experts.{number}.{theirs}.weight": matrix.clone()
                for number in range(_EXPERTS)
            }
        spread[f"{start}.block_sparse_moe.gate.weight"] = torch.randn(_EXPERTS, config["hidden_size"], generator=random)
    return spread


def _express(demo: Path, directory: Path, change: Callable[[Tensors, dict[str, Any]], Tensors]) -> Path:
    directory.mkdir(parents=True)
    config = json.loads((demo / "config.json").read_text())
    config["dtype"] = "float32"
    tensors = change({name: tensor.float() for name, tensor in load_file(demo / "model.safetensors").items()}, config)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _operated(base: Path, out: Path) -> torch.Tensor:
    recipe = {"version": 1, "base": {"model": str(base)}, "steps": _STEPS}
    perform("run", {"recipe": recipe, "out": str(out), "verify": False}, lambda _kind, _body: None, lambda: False)
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    assert not any(keys for name, keys in report.items() if name.endswith("_keys"))
    tokens_BT = torch.randint(0, 49152, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answer: torch.Tensor = model.eval()(input_ids=tokens_BT).logits
    return answer


@pytest.fixture(scope="module")
def llama(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The answers of the Llama form after the operations."""
    work = tmp_path_factory.mktemp("llama")
    return _operated(_express(demo_model, work / "base", lambda tensors, _config: tensors), work / "out")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "tolerance"),
    [(_as_mistral, 0.0), (_as_qwen2, 0.0), (_as_phi3, 0.0), (_as_mixtral, 1e-4)],
    ids=["mistral", "qwen2", "phi3", "mixtral"],
)
def test_the_same_operations_on_the_same_weights_give_the_same_answers(
    change: Callable[[Tensors, dict[str, Any]], Tensors],
    tolerance: float,
    demo_model: Path,
    llama: torch.Tensor,
    tmp_path: Path,
) -> None:
    """Separate or fused, with zero biases, as four equal experts: pruned and expanded, it is the same model."""
    found = _operated(_express(demo_model, tmp_path / "base", change), tmp_path / "out")

    assert (found - llama).abs().max().item() <= tolerance


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_mixtral_of_the_real_weights_pruned_to_two_experts_is_the_base_with_the_others_masked(
    demo_model: Path, tmp_path: Path
) -> None:
    """Experts that differ: each is the real MLP with noise of its own, so that choosing others changes the answer."""
    base = _express(demo_model, tmp_path / "base", _as_noisy_mixtral)
    steps = [{"prune_experts": {"experts": "0,3"}}]
    recipe = {"version": 1, "base": {"model": str(base)}, "steps": steps}
    done = perform(
        "run", {"recipe": recipe, "out": str(tmp_path / "out"), "verify": True}, lambda *_: None, lambda: False
    )
    tokens_BT = torch.randint(0, 49152, (1, 48), generator=torch.Generator().manual_seed(0))
    whole, pruned = (_loaded(place) for place in (base, tmp_path / "out"))
    with torch.inference_mode():
        found, before = pruned(input_ids=tokens_BT).logits, whole(input_ids=tokens_BT).logits
        with masking.without_experts(whole.model.layers, dict.fromkeys(range(len(whole.model.layers)), (0, 3))):
            expected = whole(input_ids=tokens_BT).logits

    assert "bit for bit" in done["proof"]["logits"]["detail"]
    assert pruned.config.num_local_experts == 2
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (before - expected).abs().max() > 0.05 * expected.abs().max()


def _loaded(place: Path) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    return model.eval()


def _as_noisy_mixtral(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    spread, random = _as_mixtral(tensors, config), torch.Generator().manual_seed(1)
    for tensor in (tensor for name, tensor in spread.items() if ".experts." in name):
        tensor.add_(0.3 * tensor.std() * torch.randn(tensor.shape, generator=random))
    return spread
