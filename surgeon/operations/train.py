"""Trains what is not frozen."""

from __future__ import annotations

from typing import Annotated

import msgspec

from surgeon.core.plan.draft import OUTSIDE, Draft
from surgeon.core.plan.layer_moves import blocks_of
from surgeon.core.recipe.learning_step import LearningStep, learned_layer, with_learned_adapters, with_learned_weights
from surgeon.core.recipe.objective import ObjectiveChoice
from surgeon.errors import RecipeError


class Train(LearningStep, frozen=True, kw_only=True):
    """Train the model on data, with one of the objectives.

    Where adapters are attached, they alone are trained, as in PEFT. Otherwise every weight that is not frozen is. AdamW
    in float32, whatever the checkpoint's dtype; the result is rounded once. Inside a weight mask, if there is one.
    """

    name = "train"
    key = "T"
    summary = "train what is not frozen, or the adapters, with one of the objectives"

    objective: Annotated[
        ObjectiveChoice,
        msgspec.Meta(description='what is minimised: lm, sft, dpo, npo, distill, blockwise, or "dpo: {beta: 0.2}"'),
    ]

    epsilon: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        msgspec.Meta(description="end once the mean loss of 32 steps differs by less from that of the 32 before"),
    ] = None

    @property
    def procedure(self) -> str:
        """The name of what carries it out; layer by layer is another way of training."""
        return "train_blockwise" if self.objective.objective.blockwise else self.name

    def learned(self, draft: Draft, address: str) -> Draft:
        """Let adapters, or else all weights that are not frozen, come from the result."""
        if draft.mask is not None and self.weight_decay > 0:
            raise RecipeError(
                f"is {self.weight_decay}, and would move the weights outside the mask", where="weight_decay",
                allowed="0 inside a weight mask", hint="leave out weight_decay, or mask_weights",
            )  # fmt: skip
        if self.objective.objective.blockwise:
            return self._healed(draft, address)
        if draft.adapted:
            return with_learned_adapters(draft, address)
        learned = with_learned_weights(draft, address)
        if learned.stacks == draft.stacks and learned.learned == draft.learned:
            raise RecipeError(
                "everything is frozen", allowed=f"layers, or {', '.join(OUTSIDE)}", hint="freeze less before training"
            )
        return learned

    def _healed(self, draft: Draft, address: str) -> Draft:
        """Let the changed layers come from the result.

        Raises:
            RecipeError: nothing was changed, or a setting or a step before says what cannot be done layer by layer.
        """
        refused = {
            "held_out": self.held_out is not None, "epsilon": self.epsilon is not None,
            "gradient_checkpointing": self.gradient_checkpointing, "mixed_precision": self.mixed_precision == "bf16",
            "gradient_accumulation_steps": self.gradient_accumulation_steps > 1,
        }  # fmt: skip
        for name in (name for name, said in refused.items() if said):
            raise RecipeError("does not go with blockwise", where=name, hint="leave it out; evaluate before and after")
        held_in = draft.structure.checkpoint.load_in
        if held_in is not None:
            raise RecipeError(
                f"weights that are held in {held_in} cannot be trained", where="base.load_in",
                allowed="masked_lora and another objective", hint="or leave load_in out",
            )  # fmt: skip
        if draft.adapted or draft.mask is not None:
            what = "adapters are attached" if draft.adapted else "there is a weight mask"
            raise RecipeError(
                f"{what}, and blockwise trains whole layers", hint="leave them out, or train with distill"
            )
        changed = {block.layer.key for block in blocks_of(draft) if block.changed}
        if not changed:
            raise RecipeError(
                "no layer was changed or removed", where="objective", hint="blockwise goes behind prune, …"
            )
        name = draft.structure.stack().name
        layers = tuple(
            learned_layer(draft, layer, name, address) if layer.key in changed else layer for layer in draft.layers()
        )
        if layers == draft.layers():
            raise RecipeError("every changed layer is frozen", hint="freeze less before training")
        return draft.with_layers(layers)
