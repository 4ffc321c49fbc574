"""Frozen weights stay as they are stored, once, and whatever is computed with them is what float32 weights give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.frozen import frozen_weight
from surgeon.backend.frozen.frozen_modules import hold_frozen
from surgeon.backend.frozen.frozen_weight import FrozenWeight
from surgeon.backend.frozen.stored_model import load_as_stored
from surgeon.backend.model.loading import load_model
from surgeon.backend.training.trainable_model import TrainableModel, open_trainable
from surgeon.backend.training.training_request import TrainingRequest
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.learned_results import result_report, result_tensors
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins
from tests.backend.tiny_models import FAMILIES, WORDS, save_tiny
from tests.backend.training_recipes import as_dtype, learn_args, pupil, recipe, training
from tests.jobs import job_context, perform

CPU = torch.device("cpu")
LORA = {"masked_lora": {"layers": "all", "rank": 2}}
_TOKENS_BT = torch.arange(1, 25).reshape(2, 12) % WORDS


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have products of tiny matrices go in chunks too."""
    monkeypatch.setattr(frozen_weight, "_CHUNK", {"cpu": 200})


def frozen_and_float32(family: str, place: Path, computed_in: torch.dtype) -> tuple[Any, Any]:
    """Return a bf16 checkpoint as it is held for training, and as it is loaded in float32."""
    path = save_tiny(family, place, torch.bfloat16)
    frozen = load_as_stored(read_structure(open_checkpoint(path)), CPU).requires_grad_(requires_grad=False)
    hold_frozen([frozen], computed_in)
    return frozen, load_model(open_checkpoint(path), torch.float32, CPU).model.requires_grad_(requires_grad=False)


def embedding_gradient(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits, and the gradient of their squares with respect to the embedded tokens."""
    embedded_BTD = model.get_input_embeddings()(_TOKENS_BT).detach().requires_grad_()
    logits_BTV = model(inputs_embeds=embedded_BTD, use_cache=False).logits
    logits_BTV.float().square().sum().backward()
    assert embedded_BTD.grad is not None
    return logits_BTV.detach(), embedded_BTD.grad


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("family", FAMILIES)
def test_products_in_float32_are_those_of_float32_weights(family: str, tmp_path: Path) -> None:
    """To the rounding of sums in another order, forwards and backwards; nothing is kept in float32."""
    frozen, plain = frozen_and_float32(family, tmp_path, torch.float32)
    for found, expected in zip(embedding_gradient(frozen), embedding_gradient(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    matrices = [one.data for one in frozen.parameters() if one.dim() > 1]
    assert all(isinstance(one, FrozenWeight) and one.held.dtype == torch.bfloat16 for one in matrices)


@pytest.mark.parametrize("family", FAMILIES)
def test_products_in_bf16_are_those_of_autocast_to_the_bit(family: str, tmp_path: Path) -> None:
    frozen, plain = frozen_and_float32(family, tmp_path, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = list(zip(embedding_gradient(frozen), embedding_gradient(plain), strict=True))
    assert all(torch.equal(found, expected) for found, expected in pairs)


@given(st.data())
def test_a_product_in_chunks_is_the_product(data: st.DataObject) -> None:
    """Against float64, whichever way the matrix lies, with a bias or without, in chunks of any size."""
    rows, columns, batch = (data.draw(st.integers(1, 17)) for _ in range(3))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    stored = torch.randn(columns, rows).T if data.draw(st.booleans()) else torch.randn(rows, columns)
    stored = stored.bfloat16()
    first = torch.randn(batch, rows)
    bias = torch.randn(columns) if data.draw(st.booleans()) else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen_weight, "_CHUNK", {"cpu": data.draw(st.integers(1, 300))})
        weight = FrozenWeight(stored)
        found = first @ weight if bias is None else torch.addmm(bias, first, weight)
    exact = first.double() @ stored.double() + (0 if bias is None else bias.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_frozen_weight_cannot_be_written_to() -> None:
    weight = FrozenWeight(torch.ones(3, 3, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="write to a frozen weight"):
        weight.add_(1.0)
    assert torch.equal(weight.float(), torch.ones(3, 3))


@contextmanager
def opened(model: Path, *steps: Any, **fields: Any) -> Iterator[TrainableModel]:
    """Open a model for distillation after steps."""
    plain = recipe_from_builtins(recipe(model, (*steps, training(objective="distill", **fields))))
    draft = fold(draft_of(read_structure(open_checkpoint(model))), plain.steps[:-1])
    request = TrainingRequest(draft, plain.steps[-1].operation, {}, model.parent, 0, CPU, job_context())  # type: ignore[arg-type]
    with open_trainable(request, taught=True) as trainable:
        yield trainable


def held(model: Any) -> dict[str, int]:
    """Return by name where each weight of a model lies in memory; 0 for what stays on disk."""
    found = {}
    for name, one in model.named_parameters():
        stored = one.data.stored if isinstance(one.data, FrozenWeight) else one.data
        found[name] = 0 if stored is None else stored.data_ptr()
    return found


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_teacher_has_no_weights_of_its_own(precision: str, tmp_path: Path) -> None:
    """What was pruned and what is trained in place is read from disk; all else is the same memory."""
    model = save_bf16_pupil(tmp_path)
    with opened(model, {"prune": {"layers": "0"}}, LORA, mixed_precision=precision) as trainable:
        ours, theirs = set(held(trainable.model).values()), held(trainable.teacher)
        assert all((place == 0) == name.startswith("model.layers.0.") for name, place in theirs.items())
        assert {place for place in theirs.values() if place} <= ours
    frozen = {"freeze": {"layers": "0", "outside": ["embedding", "norm", "head"]}}
    with opened(model, frozen, mixed_precision=precision) as trainable:
        ours, theirs = set(held(trainable.model).values()), held(trainable.teacher)
        assert all((place == 0) == name.startswith("model.layers.1.") for name, place in theirs.items())
        assert {place for place in theirs.values() if place} <= ours


@pytest.mark.parametrize("steps", [({"prune": {"layers": "0"}}, LORA), ()])
def test_a_teacher_is_the_base_to_the_bit_of_float32(steps: tuple[Any, ...], tmp_path: Path) -> None:
    model = save_bf16_pupil(tmp_path)
    plain = load_model(open_checkpoint(model), torch.float32, CPU).model
    with opened(model, *steps) as trainable, torch.no_grad():
        assert trainable.teacher is not None
        for one in trainable.parameters.values():
            one.add_(1.0)  # training moves the model, not its teacher
        torch.testing.assert_close(trainable.teacher(_TOKENS_BT).logits, plain(_TOKENS_BT).logits)


def save_bf16_pupil(place: Path) -> Path:
    """Save the model that tests train, in bf16."""
    model = pupil(place)
    as_dtype(model, torch.bfloat16)
    return model


@pytest.mark.parametrize("fields", [{}, {"mixed_precision": "bf16"}, {"objective": "distill"}])
@pytest.mark.parametrize("steps", [(LORA,), ({"prune": {"layers": "0"}}, LORA), ()])
def test_training_on_a_bf16_base_is_training_on_the_same_numbers_in_float32(
    fields: dict[str, Any], steps: tuple[Any, ...], tmp_path: Path
) -> None:
    model = save_bf16_pupil(tmp_path)
    reports, results = [], []
    for dtype in (torch.bfloat16, torch.float32):
        as_dtype(model, dtype)
        done = perform("learn", learn_args(model, *steps, training(**fields)))
        (address,) = done["recipe"]["steps"][-1]["resolved"]["learned"]
        reports.append(result_report(address)["losses"])
        results.append({name: load_file(one.shard)[name] for name, one in result_tensors(address).items()})
    assert reports[0] == pytest.approx(reports[1], rel=1e-5)
    assert results[0].keys() == results[1].keys()
    relative, absolute = (1e-4, 1e-5) if steps else (2**-7, 1e-4)  # weights are rounded to bf16
    for name, found in results[0].items():
        torch.testing.assert_close(found.float(), results[1][name], rtol=relative, atol=absolute)
