"""Decile ablation against a naive loop: a saved model with one decile zeroed by numpy, run whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgeon.backend.model.loading import forget_model, resident_model
from surgeon.backend.scoring.score_runner import measure
from surgeon.backend.scoring.singular_value_ablation import Ablations, ablate
from surgeon.errors import Cancelled, SelectionError
from tests.backend.tiny_models import LAYERS, layers_of, load_plainly
from tests.jobs import job_context, keep_silent, never
from tests.scores.sample_models import Array, few, open_draft, patient, text_of
from tests.scores.test_losses import naive_losses


def ablated(base: Path, *roles: str, emit: Any = keep_silent, cancelled: Any = never, **changes: Any) -> Ablations:
    """Ablate on the usual few sequences."""
    return ablate(open_draft(base), roles, few(base, **changes), job_context(emit, cancelled))


def without_decile(weight: Array, number: int) -> tuple[Array, float]:
    """Zero one tenth of the singular values, and return the squared norm that went."""
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    count = len(values)
    gone = slice(round(count * (number - 1) / 10), round(count * number / 10))
    lost = (values[gone] ** 2).sum()
    values[gone] = 0
    return (left * values) @ right, float(lost)


@torch.inference_mode()
def naive(base: Path, family: str, path: str, part: Any, number: int) -> tuple[Array, float]:
    """Return the losses without a decile of one matrix of every layer, and the share of energy that went."""
    model, lost, energy = load_plainly(base), 0.0, 0.0
    for layer in layers_of(model, family):
        weight = layer.get_parameter(path)
        whole = weight.double().numpy()
        new, gone = without_decile(whole[part], number)
        energy += (whole[part] ** 2).sum()
        lost += gone
        weight.copy_(torch.from_numpy(np.concatenate([new if at == "part" else whole[at] for at in around(part)])))
    tokens_BT = text_of(base).tokens_BT
    return naive_losses(model(input_ids=tokens_BT, use_cache=False).logits, tokens_BT), lost / energy


def around(part: slice) -> list[Any]:
    """Return what lies before a part, the part, and what lies behind it."""
    return [slice(0, part.start), "part", slice(part.stop, None)]


@pytest.mark.parametrize(
    ("family", "role", "path", "part"),
    [
        ("llama", "mlp.up", "mlp.up_proj.weight", slice(0, 48)),
        ("llama", "attention.output", "self_attn.o_proj.weight", slice(0, 32)),
        ("phi3", "mlp.up", "mlp.gate_up_proj.weight", slice(48, 96)),
    ],
)
def test_every_decile_costs_what_a_naive_loop_says(
    family: str, role: str, path: str, part: slice, tmp_path: Path
) -> None:
    """Rise of the loss with its standard error, and the share of energy, of fused projections too."""
    base = patient(family, tmp_path / "base")
    found = ablated(base, role)
    tokens_BT = text_of(base).tokens_BT
    with torch.inference_mode():
        whole = naive_losses(load_plainly(base)(input_ids=tokens_BT, use_cache=False).logits, tokens_BT)
    assert found.base == pytest.approx(whole.mean(), rel=1e-5)
    assert [row.decile for row in found.rows] == list(range(1, 11))
    assert sum(row.energy for row in found.rows) == pytest.approx(1)
    for row in found.rows:
        losses, energy = naive(base, family, path, part, row.decile)
        rise = losses - whole
        assert row.rise == pytest.approx(rise.mean(), abs=1e-5 * whole.mean())
        assert row.error == pytest.approx(rise.std(ddof=1) / np.sqrt(len(rise)), abs=1e-5 * whole.mean())
        assert row.energy == pytest.approx(energy, rel=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mixtral", "gemma2"])
def test_a_streamed_model_is_ablated_to_the_same_numbers(family: str, tmp_path: Path) -> None:
    """Layer by layer: nothing needs the whole model."""
    base = patient(family, tmp_path / "base")
    role = "experts.up" if family == "mixtral" else "mlp.up"
    streamed = ablated(base, role, stream=True)
    forget_model()
    assert streamed == ablated(base, role, stream=False)
    assert sum(row.energy for row in streamed.rows) == pytest.approx(1)


def test_rows_arrive_role_by_role_and_the_model_is_whole_again(tmp_path: Path) -> None:
    """Every row is an event of its own."""
    base = patient("llama", tmp_path / "base")
    heard: list[dict[str, Any]] = []

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "ablated":
            heard.append(body["ablation"])

    model = resident_model(open_draft(base).structure, torch.float32, torch.device("cpu")).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = ablated(base, "mlp.up", "mlp.down", emit=emit)
    assert [(row["role"], row["decile"]) for row in heard] == [(row.role, row.decile) for row in found.rows]
    assert len(heard) == 20
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    asked = iter([False] * 40 + [True] * 1000)
    with pytest.raises(Cancelled):
        ablated(base, "attention.value", cancelled=lambda: next(asked))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_role_that_is_not_there_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    """With the roles there are."""
    base = patient("llama", tmp_path / "base")
    forget_model()
    (base / "model.safetensors").rename(base / "model.safetensors.away")
    (base / "model.safetensors").symlink_to(base / "model.safetensors.away")
    with pytest.raises(SelectionError) as caught:
        ablated(base, "mlp.upp")
    assert "mlp.up" in caught.value.allowed
    with pytest.raises(SelectionError, match="no matrix"):
        ablated(base, "norm.input")
    assert LAYERS == 6


def test_an_untrained_adapter_changes_nothing_and_nothing_is_said_of_it(tmp_path: Path) -> None:
    """Its B is zero: the model computes with the weights below it."""
    base = patient("llama", tmp_path / "base")
    attached = open_draft(base, {"masked_lora": {"layers": "all"}})
    heard: list[str] = []

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "log":
            heard.append(f"{body['level']}: {body['text']}")

    assert ablate(attached, ["mlp.up"], few(base), job_context(emit)).rows == ablated(base, "mlp.up").rows
    measure(attached, ["weight_norm"], few(base), job_context(emit))
    assert not any("adapters" in text for text in heard)


@pytest.mark.slow
def test_on_a_real_model_the_smallest_decile_of_up_costs_far_more_than_its_neighbour(demo_model: Path) -> None:
    """And that of the attention output nothing: the finding of the paper at 135M."""
    found = ablated(demo_model, "mlp.up", "attention.output", sequences=2, length=256, batch_tokens=512)
    rise = {(row.role, row.decile): row.rise for row in found.rows}
    assert rise["mlp.up", 10] > 3 * rise["mlp.up", 9]
    assert rise["mlp.up", 1] == max(rise["mlp.up", number] for number in range(1, 11))
    assert abs(rise["attention.output", 10]) < 0.05
    assert rise["attention.output", 1] > 3
    forget_model()
