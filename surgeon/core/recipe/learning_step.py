"""A learning step: an operation whose result is found by training, kept by the address of all that made it.

Its `apply` stays a pure function: given the address, it says which tensors of the draft come from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from surgeon.core.plan.draft import OUTSIDE, Draft, Layer, Learned, Lora
from surgeon.core.plan.layer_layouts import layout_of
from surgeon.core.plan.layer_means import refuse_quantised
from surgeon.core.plan.learned_results import PENDING, layer_tensor, outside_tensor
from surgeon.core.plan.plan import Adapter, layer_roles
from surgeon.core.plan.tied_head import outside_tensors
from surgeon.core.recipe.operation import Chosen, Operation
from surgeon.errors import RecipeError

LEARNED = "learned"
"""The key under which a step's `resolved` holds the address of its result."""

WITHOUT_EFFECT = ("save_steps", "eval_steps", "gradient_checkpointing")
"""Settings of learning steps that change no weight."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Schedule = Literal["constant", "linear", "cosine", "constant_with_warmup"]


class ResultStep(Operation, frozen=True, kw_only=True):
    """A step whose tensors are made once and kept by the address of all that made them."""

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Return the draft with what was made, or will be."""
        return self.learned(draft, next(iter(chosen.get(LEARNED, ())), PENDING))

    def learned(self, draft: Draft, address: str) -> Draft:
        """Say what comes from the result at `address`.

        Raises:
            RecipeError: there is nothing in this draft for the step to work on.
        """
        raise NotImplementedError


class LearningStep(ResultStep, frozen=True, kw_only=True):
    """What every learning step declares. Names are those of transformers' TrainingArguments where it has one.

    learning_rates: the default where nothing is said, for full weights and for adapters.
    """

    needs_model = True
    learning_rates: ClassVar[tuple[float, float]] = (1e-5, 2e-4)

    data: Annotated[
        str | None, msgspec.Meta(description="a name from the recipe's data, or a file; none: built in")
    ] = None
    held_out: Annotated[
        str | None, msgspec.Meta(description="data to watch the loss on: a name, a file, or a share such as 5%")
    ] = None
    steps: Annotated[Positive | None, msgspec.Meta(description="optimiser steps; or say tokens, or epochs")] = None
    tokens: Annotated[Positive | None, msgspec.Meta(description="about so many tokens of data")] = None
    epochs: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None, msgspec.Meta(description="times through the data; default 1")
    ] = None
    batch_size: Annotated[Positive, msgspec.Meta(description="examples per optimiser step, over all devices")] = 8
    gradient_accumulation_steps: Annotated[Positive, msgspec.Meta(description="parts a batch is run in")] = 1
    max_length: Annotated[int, msgspec.Meta(ge=4, description="tokens of an example; longer ones are cut")] = 512
    learning_rate: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        msgspec.Meta(description="peak; default 1e-5 for weights, 2e-4 for adapters"),
    ] = None
    scheduler: Annotated[Schedule, msgspec.Meta(description="how the learning rate falls")] = "cosine"
    warmup_ratio: Annotated[
        Share, msgspec.Meta(description="share of the steps in which it rises; not with constant")
    ] = 0.03
    weight_decay: Annotated[float, msgspec.Meta(ge=0, description="decoupled, on matrices alone")] = 0.0
    max_grad_norm: Annotated[float, msgspec.Meta(gt=0, description="the gradient is cut to this norm")] = 1.0
    gradient_checkpointing: Annotated[bool, msgspec.Meta(description="compute activations twice to save memory")] = (
        False
    )
    mixed_precision: Annotated[
        Literal["no", "bf16"] | None, msgspec.Meta(description="matrix products in bf16; default: where a GPU has it")
    ] = None
    deterministic: Annotated[
        bool, msgspec.Meta(description="refuse kernels that do not repeat to the bit; a GPU warns")
    ] = True
    save_steps: Annotated[Positive, msgspec.Meta(description="steps after which a broken run can go on")] = 50
    eval_steps: Annotated[
        Positive | None,
        msgspec.Meta(description="steps between two looks at the held-out loss; none: before and after"),
    ] = None

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Return the draft with what was learned, or will be.

        Raises:
            RecipeError: settings say the same twice, or nothing; or `learned` finds nothing to work on.
            ArchitectureError: the weights are quantised.
        """
        given = [name for name in ("steps", "tokens", "epochs") if getattr(self, name) is not None]
        if len(given) > 1:
            raise RecipeError(
                f"{' and '.join(given)} say twice how long it takes", allowed="one of them", hint="leave out the others"
            )
        if self.eval_steps is not None and self.held_out is None:
            raise RecipeError("is of no use without held_out", where="eval_steps", hint="held_out: 5%, or other data")
        refuse_quantised(draft.structure, "training")
        return super().apply(draft, chosen)


def with_learned_weights(draft: Draft, address: str) -> Draft:
    """Return the draft in which every layer and tensor that is not frozen comes from a result."""
    stacks = {
        name: tuple(_learned_layer(draft, layer, name, address) for layer in layers)
        for name, layers in draft.stacks.items()
    }
    outside = () if draft.frozen >= set(OUTSIDE) else (address,)
    return replace(draft, stacks=stacks, learned=(*draft.learned, *outside))


def _learned_layer(draft: Draft, layer: Layer, stack: str, address: str) -> Layer:
    if layer_roles(draft, layer, stack) <= layer.frozen:
        return layer
    return replace(layer, source=Learned(layer.source, address, layer.key))


def with_learned_adapters(draft: Draft, address: str) -> Draft:
    """Return the draft in which the values of every adapter on a matrix that is not frozen come from a result.

    Raises:
        RecipeError: all of them are frozen, or there is a weight mask, which says nothing of adapters.
    """
    if draft.mask is not None:
        raise RecipeError(
            "there is a weight mask, and adapters are attached: it says nothing of them",
            allowed="mask_weights, or masked_lora", hint="leave out one of the two",
        )  # fmt: skip
    if not any(layer.lora.keys() - layer.frozen for layers in draft.stacks.values() for layer in layers):
        raise RecipeError(
            "every adapter is on a frozen matrix", allowed="adapters on others", hint="freeze less before training"
        )
    stacks = {
        name: tuple(replace(layer, lora=_learned_lora(layer, address)) if layer.lora else layer for layer in layers)
        for name, layers in draft.stacks.items()
    }
    return replace(draft, stacks=stacks)


def _learned_lora(layer: Layer, address: str) -> dict[str, Lora]:
    return {role: lora if role in layer.frozen else replace(lora, address=address) for role, lora in layer.lora.items()}


def is_free(draft: Draft, adapter: Adapter) -> bool:
    """Whether training may change an adapter: a freeze holds a matrix's adapter too."""
    stack, key, _ = adapter.name.split("/", 2)
    return any(adapter.role not in layer.frozen for layer in draft.stacks[stack] if layer.key == key)


def result_names(draft: Draft) -> Iterator[tuple[str, str]]:
    """Yield every tensor's name in the checkpoint after this draft, and its name in a result."""
    structure = draft.structure
    for stack, layers in draft.stacks.items():
        for position, layer in enumerate(layers):
            for suffix in layer_suffixes(draft, layer, stack):
                yield structure.stacks[stack].tensor_name(position, suffix), layer_tensor(stack, layer.key, suffix)
    for name in outside_tensors(draft):
        yield name, outside_tensor(name)


def layer_suffixes(draft: Draft, layer: Layer, stack: str) -> Iterator[str]:
    """Yield the names of a layer's tensors within it."""
    yield from layout_of(draft.structure, draft.structure.stacks[stack], layer.source).types


def draft_state(draft: Draft) -> Any:
    """Return everything about a draft that a learned result depends on, as plain data for a digest."""
    layers = {
        name: [(one.key, one.source, one.settings, sorted(one.frozen), sorted(one.lora.items())) for one in stack]
        for name, stack in draft.stacks.items()
    }
    return (
        layers,
        sorted(draft.frozen),
        draft.learned,
        draft.mask,
        *([draft.untied] if draft.untied is not None else []),
    )
