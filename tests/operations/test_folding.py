"""Pruned layers folded into the one in front of them, and the means of several layers that this takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.tensors import tensor_reader
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, Mean, Original, Source, draft_of
from surgeon.core.plan.expressions import Copy, express
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import step_of
from surgeon.errors import ArchitectureError, RecipeError
from tests.backend.tiny_models import FAMILIES, LAYERS, save_tiny, write_tokenizer
from tests.export.replaying import run

_SUFFIX = "mlp.up_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("folding") / "base", torch.bfloat16)


@pytest.fixture(scope="module")
def draft(base: Path) -> Draft:
    return draft_of(read_structure(open_checkpoint(base)))


def _prune(draft: Draft, layers: str, **more: Any) -> Draft:
    return fold(draft, [step_of("prune", {"layers": layers, "fold": True, **more}, "test")])


def test_the_layer_in_front_becomes_the_uniform_mean_of_itself_and_what_goes(base: Path, tmp_path: Path) -> None:
    """Every tensor of it, against the float64 mean; every other layer stays as it was, byte for byte."""
    run(base, tmp_path / "out", {"prune": {"layers": "last 2", "fold": True}}, verify=True)

    before, after = (load_file(place / "model.safetensors") for place in (base, tmp_path / "out"))
    prefix = f"model.layers.{LAYERS - 3}."
    folded = {name for name in after if name.startswith(prefix)}
    assert len(folded) == 9
    for name in folded:
        parts = [before[name.replace(prefix, f"model.layers.{at}.")].double() for at in range(LAYERS - 3, LAYERS)]
        mean = sum(parts[1:], parts[0]) / 3
        assert ((after[name].double() - mean).abs() <= mean.abs() * 2**-8 + 1e-30).all()
        assert torch.equal(after[name], mean.float().to(torch.bfloat16))
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - folded)


def test_each_run_is_folded_into_the_layer_directly_in_front_of_it(draft: Draft) -> None:
    """What goes is averaged into its own neighbour, not into the last layer of all."""
    layers = _prune(draft, "1, 4-5").layers()
    assert [layer.key for layer in layers] == ["0", "2", "3"]
    assert layers[0].source == Mean((Original(0), Original(1)))
    assert layers[1].source == Original(2)
    assert layers[2].source == Mean((Original(3), Original(4), Original(5)))


def test_a_run_without_a_layer_in_front_of_it_is_refused(draft: Draft) -> None:
    """There is nothing that could take it in."""
    with pytest.raises(RecipeError, match="layer 0 has no layer in front of it") as caught:
        _prune(draft, "0-1")
    assert "steps[0].prune.layers" in str(caught.value)


def test_layers_that_are_built_differently_are_not_folded(tmp_path: Path) -> None:
    """The tensor whose shape differs is named."""
    from tests.cli.tiny_checkpoints import llama_config, llama_shapes, write_checkpoint

    shapes = llama_shapes(3) | {"model.layers.2.mlp.up_proj.weight": (8, 32)}
    odd = draft_of(read_structure(open_checkpoint(write_checkpoint(tmp_path / "odd", llama_config(3), shapes))))
    with pytest.raises(ArchitectureError, match=r"layers 1 and 2 are built differently"):
        _prune(odd, "last 1")
    assert len(_prune(odd, "1").layers()) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_on_disk_is_folding_in_memory(family: str, tmp_path: Path) -> None:
    """In every family, with an identity among what is folded; verification compares the two bit for bit."""
    base = save_tiny(family, tmp_path / "base", torch.bfloat16)
    steps: list[Any] = [{"expand": {"after": [3]}}, {"prune": {"layers": "2, 4", "fold": True}}]
    proof = run(base, tmp_path / "out", *steps, verify=True)["proof"]
    assert proof["logits"]["passed"]
    assert "bit for bit" in proof["logits"]["detail"]


def _means(leaves: st.SearchStrategy[Source]) -> st.SearchStrategy[Source]:
    trees: st.SearchStrategy[Source] = st.recursive(
        leaves,
        lambda inner: st.lists(inner, min_size=1, max_size=4).map(lambda parts: Mean(tuple(parts))),
        max_leaves=8,
    )
    return trees


_TREES = _means(st.integers(0, LAYERS - 1).map(Original))


def _reference(source: Source, weight: Callable[[int], torch.Tensor]) -> torch.Tensor:
    if isinstance(source, Original):
        return weight(source.index)
    assert isinstance(source, Mean)
    parts = [_reference(part, weight).float() for part in source.parts]
    return (reduce(torch.add, parts) / len(parts)).bfloat16()


def _made(draft: Draft, source: Source) -> torch.Tensor:
    stack = draft.structure.stack()
    with tensor_reader() as reader:
        return reader.evaluate(express(draft.structure, stack, source, _SUFFIX), "BF16", stack.layers[0][_SUFFIX].shape)


@settings(max_examples=60, deadline=None)
@given(source=_TREES)
def test_means_of_means_are_rounded_once_at_each_mean(source: Source, base: Path, draft: Draft) -> None:
    """However they are nested, what is calculated is what plain torch makes of it, to the last bit."""
    stored = load_file(base / "model.safetensors")
    expected = _reference(source, lambda at: stored[f"model.layers.{at}.{_SUFFIX}"])
    # A mean of equal parts is not calculated but is the part; three times x / 3 may differ from x in its last bit.
    assert torch.allclose(_made(draft, source).float(), expected.float(), rtol=2**-7, atol=1e-30)


@settings(max_examples=60, deadline=None)
@given(source=_TREES, count=st.integers(1, 5))
def test_a_mean_of_one_thing_with_itself_is_that_thing(source: Source, count: int, draft: Draft) -> None:
    """It is expressed as the thing itself, so that whole layers stay byte copies."""
    stack = draft.structure.stack()
    one = express(draft.structure, stack, source, _SUFFIX)
    assert express(draft.structure, stack, Mean((source,) * count), _SUFFIX) == one
    if isinstance(source, Original):
        assert isinstance(one, Copy)


@settings(max_examples=40, deadline=None)
@given(layers=st.permutations(range(LAYERS)), count=st.integers(2, LAYERS))
def test_the_order_of_the_parts_matters_at_most_in_the_last_bit(layers: list[int], count: int, draft: Draft) -> None:
    """A mean is a mean: only the order of the additions can show, and of two not even that."""
    chosen = tuple(Original(at) for at in layers[:count])
    left, right = _made(draft, Mean(chosen)), _made(draft, Mean(chosen[::-1]))
    assert torch.allclose(left.float(), right.float(), rtol=2**-7, atol=2**-20)
    assert count > 2 or torch.equal(left, right)


def test_slayers_strategy_trains_the_inserted_layers_and_the_folded_one_alone(tmp_path: Path) -> None:
    """Insert in the first half, fold the last two, train these: everything else stays the base's, byte for byte."""
    base = save_tiny("llama", tmp_path / "base")
    write_tokenizer(base)
    (tmp_path / "t.jsonl").write_text('{"text": "It was a bright cold day in April."}\n' * 3)
    train = {"objective": "lm", "data": "t.jsonl", "steps": 2, "batch_size": 1, "max_length": 32,
             "learning_rate": 0.01, "scheduler": "constant"}  # fmt: skip
    steps: list[Any] = [{"expand": {"after": "1"}}, {"prune": {"layers": "last 2", "fold": True}}]
    run(base, tmp_path / "before", *steps, root=str(tmp_path))
    steps += [{"freeze": {"except": "inserted, last"}}, {"train": train}]
    run(base, tmp_path / "after", *steps, root=str(tmp_path), verify=True)

    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert before.keys() == after.keys()
    assert {name.split(".")[2] for name in moved} == {"2", str(LAYERS - 2)}
    assert len([name for name in moved if name.startswith(f"model.layers.{LAYERS - 2}.")]) == 9
