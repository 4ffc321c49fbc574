"""Scores of experts, neurons and heads, against sums over what plain transformers hands from module to module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from surgeon.core.recipe.recipe import recipe_from_builtins
from surgeon.errors import ArchitectureError, RecipeError
from tests.scores.sample_models import patient, scores, text_of

pytestmark = pytest.mark.filterwarnings("ignore")
_LAYER = 2


def _loaded(base: Path) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    return model.eval()


def _seen(base: Path, module_of: Callable[[Any], nn.Module]) -> list[tuple[torch.Tensor, ...]]:
    """Return what a module is called with in the whole model, sequence by sequence."""
    model = _loaded(base)
    seen: list[tuple[torch.Tensor, ...]] = []
    module_of(model).register_forward_pre_hook(lambda _module, args: seen.append(args))
    with torch.inference_mode():
        for tokens_T in text_of(base).tokens_BT:
            model(input_ids=tokens_T[None], use_cache=False)
    return seen


def _rows(base: Path, module_of: Callable[[Any], nn.Module]) -> np.ndarray[Any, Any]:
    return np.concatenate([args[0].flatten(0, -2).double().numpy() for args in _seen(base, module_of)])


def test_neurons_are_scored_by_their_mean_absolute_value_and_by_their_fluctuation(tmp_path: Path) -> None:
    base = patient("llama", tmp_path / "base")
    found = scores(base, "neuron_activation, neuron_fluctuation")
    rows = _rows(base, lambda model: model.model.layers[_LAYER].mlp.down_proj)
    weight = _loaded(base).model.layers[_LAYER].mlp.down_proj.weight.detach().double()

    np.testing.assert_allclose(found["neuron_activation"].parts[str(_LAYER)], np.abs(rows).mean(0), rtol=1e-5)
    expected = rows.var(0, ddof=1) * weight.square().sum(0).numpy()
    np.testing.assert_allclose(found["neuron_fluctuation"].parts[str(_LAYER)], expected, rtol=1e-4)
    assert found["neuron_activation"].values[str(_LAYER)] == pytest.approx(np.abs(rows).mean())


def test_neurons_of_transposed_matrices_are_their_rows(tmp_path: Path) -> None:
    base = patient("gpt2", tmp_path / "base")
    found = scores(base, "neuron_fluctuation")["neuron_fluctuation"]
    rows = _rows(base, lambda model: model.transformer.h[_LAYER].mlp.c_proj)
    weight = _loaded(base).transformer.h[_LAYER].mlp.c_proj.weight.detach().double()

    expected = rows.var(0, ddof=1) * weight.square().sum(1).numpy()
    np.testing.assert_allclose(found.parts[str(_LAYER)], expected, rtol=1e-4)


def test_heads_are_scored_by_the_norm_of_what_their_group_puts_out(tmp_path: Path) -> None:
    base = patient("mistral", tmp_path / "base")
    found = scores(base, "head_activation")["head_activation"]
    rows = _rows(base, lambda model: model.model.layers[_LAYER].self_attn.o_proj)

    expected = np.linalg.norm(rows.reshape(len(rows), 2, 16), axis=-1).mean(0)  # 2 key-value heads, 2 query heads of 8
    np.testing.assert_allclose(found.parts[str(_LAYER)], expected, rtol=1e-5)


def test_experts_are_scored_by_gate_times_output_and_by_their_share_of_the_tokens(tmp_path: Path) -> None:
    base = patient("mixtral", tmp_path / "base")
    found = scores(base, "expert_activation, expert_frequency")
    model = _loaded(base)
    block = model.model.layers[_LAYER].mlp
    hidden = torch.cat(
        [args[0].flatten(0, -2) for args in _seen(base, lambda model: model.model.layers[_LAYER].mlp.gate)]
    ).double()
    chances = torch.softmax(hidden @ block.gate.weight.double().T, -1)
    gates, index = chances.topk(2)
    gates = gates / gates.sum(-1, keepdim=True)
    reap, share = [], []
    for expert in range(4):
        tokens, place = (index == expert).nonzero(as_tuple=True)
        gate, up = (hidden[tokens] @ block.experts.gate_up_proj[expert].double().T).chunk(2, -1)
        out = (nn.functional.silu(gate) * up) @ block.experts.down_proj[expert].double().T
        reap.append(float((gates[tokens, place] * out.norm(dim=-1)).mean()) if len(tokens) else 0.0)
        share.append(len(tokens) / len(hidden))

    np.testing.assert_allclose(found["expert_activation"].parts[str(_LAYER)], reap, rtol=1e-4)
    np.testing.assert_allclose(found["expert_frequency"].parts[str(_LAYER)], share, rtol=1e-6)
    assert sum(found["expert_frequency"].parts[str(_LAYER)]) == pytest.approx(2)


def test_scores_are_measured_on_the_model_as_it_was_cut(tmp_path: Path) -> None:
    base = patient("llama", tmp_path / "base")
    found = scores(base, "neuron_activation, head_activation", {"narrow": {"neurons": "0-15", "heads": "1"}})

    assert len(found["neuron_activation"].parts["0"]) == 32
    assert len(found["head_activation"].parts["0"]) == 1


def test_what_has_no_experts_is_refused_by_name_and_left_out_of_all(tmp_path: Path) -> None:
    base = patient("llama", tmp_path / "base")
    with pytest.raises(ArchitectureError, match="no layer of it has experts"):
        scores(base, "expert_frequency")


def test_layers_are_not_chosen_by_scores_of_their_parts() -> None:
    with pytest.raises(RecipeError, match="says nothing of whole layers"):
        recipe_from_builtins(
            {"version": 1, "base": {"model": "x"}, "steps": [{"prune": {"layers": "lowest 2 by expert_frequency"}}]}
        )
