"""Layers pushed one by one compute what the whole model computes, however they are built."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.backend.model import layer_runner
from surgeon.backend.model.layer_runner import LayerRunner
from surgeon.backend.scoring.layer_passes import LayerPass, push_layers
from surgeon.errors import ArchitectureError, ScoreError
from tests.backend.tiny_models import FAMILIES, LAYERS, WORDS, layers_of, make_tiny, some_tokens
from tests.jobs import never


def pushed(model: nn.Module, layers: nn.ModuleList, *batches: torch.Tensor, room: int = 1 << 20) -> list[LayerPass]:
    """Push all layers over some batches, with room for so many bytes of hidden states."""
    return list(push_layers(LayerRunner(model, layers, batches[0]), batches, never, room))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_run_on_their_own_see_what_they_see_in_a_whole_forward(family: str) -> None:
    """Bit for bit, over batches of different sizes, and the model is as it was afterwards."""
    model = make_tiny(family)
    layers, batches = layers_of(model, family), [some_tokens(2, 16, 1), some_tokens(1, 16, 2)]
    before = list(layers)
    found = pushed(model, layers, *batches)
    assert [(one.layer, one.batch, one.last) for one in found] == [
        (layer, batch, batch == 1) for layer in range(LAYERS) for batch in (0, 1)
    ]
    assert list(layers) == before
    for one in found:
        seen: list[torch.Tensor] = []
        handle = layers[one.layer].register_forward_hook(
            lambda _m, _args, output, seen=seen: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        with torch.inference_mode():
            model(input_ids=batches[one.batch], use_cache=False)
        handle.remove()
        assert torch.equal(one.hidden_out_BTD, seen[0])


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("most", [5, 40, 1 << 20])
def test_losses_are_those_of_a_whole_forward_however_few_logits_fit(
    family: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few tokens at a time, or several sequences; the softmax once more in float64."""
    monkeypatch.setitem(layer_runner._LOGITS, "cpu", most * WORDS)
    model, tokens_BT = make_tiny(family), some_tokens(3, 16)
    layers = layers_of(model, family)
    last = pushed(model, layers, tokens_BT)[-1].hidden_out_BTD
    found = LayerRunner(model, layers, tokens_BT).losses(tokens_BT, last)
    surprise_BTV = -model(input_ids=tokens_BT, use_cache=False).logits.double().log_softmax(dim=-1)
    expected = surprise_BTV[:, 1:-1].gather(-1, tokens_BT[:, 2:, None]).squeeze(-1).mean(dim=1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


class _Looking(nn.Module):
    """A llama whose head also sees what entered the third layer, or the tokens before."""

    def __init__(self, seen: str) -> None:
        super().__init__()
        self.inner: Any = make_tiny("llama")
        self.seen = seen

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.inner.lm_head
        return head

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        entered: list[torch.Tensor] = []
        third = self.inner.model.layers[2]
        handle = third.register_forward_pre_hook(lambda _m, args: entered.append(args[0])) if self.seen else None
        hidden = self.inner.model(input_ids=input_ids, use_cache=use_cache).last_hidden_state
        if handle is not None:
            handle.remove()
            hidden = hidden + (entered[0] if self.seen == "layers" else hidden.cumsum(1))
        return SimpleNamespace(logits=self.inner.lm_head(hidden))


@torch.inference_mode()
@pytest.mark.parametrize("seen", ["", "layers", "tokens"])
def test_a_head_that_sees_more_than_the_last_hidden_state_is_refused(seen: str) -> None:
    """Else every loss of a sweep would be wrong, and none would say so."""
    model = _Looking(seen)
    runner = LayerRunner(model, model.inner.model.layers, some_tokens())
    with pytest.raises(ArchitectureError, match="uses more than the last hidden state") if seen else nullcontext():
        runner.require_plain_end(some_tokens())


def test_recording_how_layers_are_called_makes_no_logits() -> None:
    """For a large vocabulary they would be the largest thing in memory."""
    model: Any = make_tiny("llama")
    entered: list[object] = []
    model.lm_head.register_forward_hook(lambda *_: entered.append(1))
    runner = LayerRunner(model, model.model.layers, some_tokens())
    assert len(runner.record(some_tokens()).calls) == LAYERS
    assert not entered


class _OldLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states: torch.Tensor, scale: float) -> tuple[torch.Tensor, None]:
        return hidden_states + scale * self.linear(hidden_states), None


class _OldModel(nn.Module):
    """A model as of transformers 4: layers return tuples, and the model takes their first part."""

    def __init__(self, between: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(96, 8)
        self.layers = nn.ModuleList([_OldLayer() for _ in range(3)])
        self.between = between

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        hidden: torch.Tensor = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, scale=2.0)[0] + self.between
        return hidden


@torch.inference_mode()
def test_layers_that_return_tuples_are_unpacked_where_the_model_unpacks_them() -> None:
    """The recorder returns a tuple exactly where the layer does."""
    model, tokens_BT = _OldModel(), some_tokens(3, 8)
    assert LayerRunner(model, model.layers, tokens_BT).tupled
    assert torch.equal(pushed(model, model.layers, tokens_BT)[-1].hidden_out_BTD, model(tokens_BT))


@torch.inference_mode()
def test_a_model_that_does_something_between_its_layers_is_run_whole() -> None:
    """Rather than measured wrongly: each layer's input is then not the output of the one before."""
    model, tokens_BT = _OldModel(between=1.0), some_tokens(3, 8)
    found = pushed(model, model.layers, tokens_BT)
    assert [one.layer for one in found] == [0, 1, 2]
    assert torch.equal(found[1].hidden_in_BTD, found[0].hidden_out_BTD + 1)
    assert torch.equal(found[2].hidden_out_BTD + 1, model(tokens_BT))


def test_a_hidden_state_that_overflows_is_an_error_that_names_the_layer() -> None:
    """With the advice to measure in float32 where that is not done already."""
    model: Any = make_tiny("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(float("inf"))
    for dtype, hint in ((torch.float32, "look for inf or nan in the weights"), (torch.bfloat16, "--dtype float32")):
        with pytest.raises(ScoreError) as caught:
            pushed(model.to(dtype), model.model.layers, some_tokens())
        assert caught.value.where == "layer 2"
        assert hint in caught.value.hint
