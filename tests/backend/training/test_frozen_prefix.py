"""What freezing a prefix guarantees: no gradient, no graph and no second forward at or below where freezing ends.

Semantic-based Layer Freezing, arXiv:2406.11753; and what the first step moves in layers that Llama SLayer,
arXiv:2410.02330, inserts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from surgeon.backend.training import finetuning, trainer
from surgeon.backend.training.training_run import TrainingReport, TrainingRun
from tests.backend.tiny_models import LAYERS, load_plainly, save_tiny, some_tokens, write_tokenizer
from tests.backend.training_recipes import training
from tests.export.replaying import run

_EOF = 3
_FROZEN = {"freeze": {"layers": f"0-{_EOF}", "outside": ["embedding"]}}


@dataclass
class Watched:
    """What was seen of one training: by layer, and gradients by parameter before each optimiser step."""

    forwards: Counter[int] = field(default_factory=Counter)
    graphs: set[int] = field(default_factory=set)
    backwards: set[int] = field(default_factory=set)
    saved: Counter[int] = field(default_factory=Counter)
    gradients: list[dict[str, float]] = field(default_factory=list)
    embedded: list[bool] = field(default_factory=list)


@contextmanager
def _hooked(model: Any, seen: Watched) -> Iterator[None]:
    current: list[int] = []

    def entering(number: int) -> Any:
        def hook(*_: Any) -> None:
            current[:] = [number]

        return hook

    def computing(number: int) -> Any:
        def hook(*_: Any) -> None:
            seen.forwards[number] += torch.is_grad_enabled()

        return hook

    def leaving(number: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            current.clear()
            hidden = output[0] if isinstance(output, tuple) else output
            if not torch.is_grad_enabled():
                return
            if hidden.requires_grad:
                seen.graphs.add(number)
                hidden.register_hook(lambda _: seen.backwards.add(number))

        return hook

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen.saved[current[-1] if current else -1] += 1
        return tensor

    def before_step(*_: Any) -> None:
        found = {name: one.grad for name, one in model.named_parameters()}
        seen.gradients.append({name: grad.norm().item() for name, grad in found.items() if grad is not None})

    (layers,) = [one for name, one in model.named_modules() if name.endswith("model.layers")]
    handles = [layer.register_forward_pre_hook(entering(number)) for number, layer in enumerate(layers)]
    handles += [layer.register_forward_hook(leaving(number)) for number, layer in enumerate(layers)]
    handles += [layer.mlp.register_forward_pre_hook(computing(number)) for number, layer in enumerate(layers)]
    inputs = model.get_input_embeddings()
    handles.append(inputs.register_forward_hook(lambda _, __, out: seen.embedded.append(out.requires_grad)))
    handles.append(register_optimizer_step_pre_hook(before_step))
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Watch what surgeon's trainer does to the model that it is given."""
    watched, real = Watched(), trainer.train

    def train(run: TrainingRun) -> TrainingReport:
        with _hooked(run.model, watched):
            return real(run)

    monkeypatch.setattr(finetuning, "train", train)
    return watched


@pytest.fixture
def base(tmp_path: Path) -> Path:
    place = save_tiny("llama", tmp_path / "base")
    write_tokenizer(place)
    rows = [f"{at} bottles of beer on the wall" for at in range(40)]
    (tmp_path / "text.jsonl").write_text("".join('{"text": "' + row + '"}\n' for row in rows))
    return place


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
def test_below_a_frozen_prefix_there_is_no_gradient_and_no_backward_pass(
    adapted: bool, checkpointing: bool, base: Path, tmp_path: Path, seen: Watched
) -> None:
    """Autograd saves nothing for it; with activations computed twice, the frozen layers are still computed once."""
    lora = [{"masked_lora": {"layers": f"{_EOF + 1}-{LAYERS - 1}"}}] if adapted else []
    step = training(steps=2, gradient_checkpointing=checkpointing)
    run(base, tmp_path / "out", _FROZEN, *lora, step, root=str(tmp_path))

    trained = set(range(_EOF + 1, LAYERS))
    assert seen.graphs == trained
    assert seen.backwards == trained
    assert not seen.embedded or not any(seen.embedded)
    # Checkpointing hands every layer's input to autograd for a moment, and keeps it where there is a graph.
    assert checkpointing or not {number for number in seen.saved if 0 <= number <= _EOF}
    assert len(seen.gradients) == 2
    for gradients in seen.gradients:
        assert gradients
        assert {_layer(name) for name in gradients} - {None} == trained
        assert not any("embed_tokens" in name for name in gradients)
        assert adapted == all("lora_" in name for name in gradients)
    assert {seen.forwards[number] for number in range(_EOF + 1)} == {2}
    assert {seen.forwards[number] for number in trained} == {4 if checkpointing else 2}


def test_without_a_freeze_the_same_watch_sees_gradients_everywhere(base: Path, tmp_path: Path, seen: Watched) -> None:
    """So that what it does not see above is not there."""
    run(base, tmp_path / "out", training(steps=1), root=str(tmp_path))
    assert seen.graphs == seen.backwards == set(range(LAYERS))
    assert set(range(LAYERS)) <= seen.saved.keys()
    assert {_layer(name) for name in seen.gradients[0]} == {*range(LAYERS), None}
    assert any("embed_tokens" in name for name in seen.gradients[0])


def test_a_frozen_layer_between_trained_ones_passes_gradients_on_and_gets_none(
    base: Path, tmp_path: Path, seen: Watched
) -> None:
    """Only a prefix is free of cost: a frozen layer further up is still gone through backwards."""
    run(base, tmp_path / "out", {"freeze": {"layers": "3"}}, training(steps=1), root=str(tmp_path))
    assert 3 in seen.backwards
    assert {_layer(name) for name in seen.gradients[0]} == {*set(range(LAYERS)) - {3}, None}


@pytest.mark.parametrize("init", ["mean", "copy"])
def test_the_first_step_of_slayer_moves_only_what_writes_the_output_of_new_layers(
    init: str, base: Path, tmp_path: Path, seen: Watched
) -> None:
    """Behind layers 1 and 3; before, it is the base bit for bit, and from the second step on the rest learns too."""
    expand = {"expand": {"after": "1,3", "init": init}}
    run(base, tmp_path / "wide", expand, root=str(tmp_path), verify=True)
    before, wide = load_plainly(base), load_plainly(tmp_path / "wide")
    assert torch.equal(wide(some_tokens()).logits, before(some_tokens()).logits)

    step = training(steps=2, scheduler="constant", warmup_ratio=0.0)
    run(base, tmp_path / "out", expand, {"freeze": {"except": "inserted"}}, step, root=str(tmp_path))
    first, second = seen.gradients
    new = {2, 5}
    moved = {name for name, norm in first.items() if norm > 0}
    assert {_layer(name) for name in first} == new
    assert {(_layer(name), name.split(".")[-2]) for name in moved} == {
        (number, part) for number in new for part in ("o_proj", "down_proj")
    }
    assert len(first) == 2 * 9
    assert all(norm > 0 for norm in second.values())
    assert seen.graphs == set(range(2, LAYERS + 2))


def _layer(name: str) -> int | None:
    _, found, rest = name.partition("layers.")
    return int(rest.partition(".")[0]) if found else None
