"""How much a learning step trains, and what it takes in memory: arithmetic on a plan, nothing loaded.

Weights that are frozen stay in the checkpoint's dtype; what is trained is float32, with a gradient and AdamW's two
moments. What a backward pass keeps is counted matrix by matrix, as torch keeps it in a transformer: the output of what
reads the residual stream, the output of attention and of the activation function, the inputs of norms and of what is
trained. Tests hold the sum against measured steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from surgeon.core.plan.draft import Draft
from surgeon.core.plan.layer_moves import blocks_of
from surgeon.core.plan.plan import Plan, PlannedLayer, PlannedTensor
from surgeon.core.recipe.learning_step import LearningStep, is_free, objective_of

_GATES_ALONE = ("learn_masks",)
_TRAINED, _FLOAT, _BF16 = 12, 4, 2
"""Bytes: of the float32 master and moments of what is trained, and of one number in each dtype."""
_LOGITS = 4
"""Copies of the logits, float32, as the backward pass of a loss begins: logits, log-probabilities, and gradients."""
_LOGITS_BESIDE_A_TEACHER = 8
_COMPOSITE = {"gelu_new": 4, "gelu_fast": 4, "gelu_pytorch_tanh": 1, "gelu": 1}
"""Tensors that an activation function without a gate keeps; by the config's name for it."""
_MATRIX = 2


def trained_parameters(step: LearningStep, draft: Draft, plan: Plan) -> int:
    """Return how many numbers a step trains on a draft: gates, adapters, or weights that are not frozen."""
    free = [adapter for adapter in plan.adapters if is_free(draft, adapter)]
    if step.name in _GATES_ALONE:
        return len(free)
    if is_blockwise(step):
        return sum(_healed_parameters(draft, plan))
    if plan.adapters:
        return sum(sum(adapter.shape) * adapter.lora.rank for adapter in free)
    return plan.trainable_parameters


def training_bytes(step: LearningStep, draft: Draft, plan: Plan, *, bf16: bool | None = None) -> int:
    """Return the memory that a step takes at its peak: weights, gradients, moments and activations.

    bf16: whether matrix products are taken in bfloat16, where the step itself does not say. Examples count as long as
    they may be. What a teacher has of its own is read from disk as it is used, on a CPU; a GPU holds it besides.
    """
    if is_blockwise(step):
        return _blockwise_bytes(step, draft, plan)
    products = step.mixed_precision == "bf16" if step.mixed_precision is not None or bf16 is None else bf16
    saved = _Saved(step, draft, plan, products)
    trained = trained_parameters(step, draft, plan)
    gradients = _FLOAT * trained
    return weight_bytes(step, draft, plan, bf16=products) + max(saved.nbytes(), gradients)


def weight_bytes(step: LearningStep, draft: Draft, plan: Plan, *, bf16: bool) -> int:
    """Return what lies in memory between two steps: frozen weights, adapters, what is trained, and its moments."""
    trained = trained_parameters(step, draft, plan)
    adapters = sum(sum(adapter.shape) * adapter.lora.rank for adapter in plan.adapters)
    masters = set() if plan.adapters else set(plan.trainable)
    held_in = plan.structure.checkpoint.load_in if plan.adapters else None
    outside = {one.name for one in plan.outside}
    frozen = sum(
        _frozen_bytes(one, bf16=bf16, held_in=None if one.name in outside else held_in)
        for one in plan.tensors
        if one.name not in masters
    )
    gated = _FLOAT * adapters // _MATRIX  # B times its gate, made anew in each step
    moments = _TRAINED * trained - (_FLOAT * trained if plan.adapters else 0)
    return frozen + moments + _FLOAT * adapters + gated


def _frozen_bytes(tensor: PlannedTensor, *, bf16: bool, held_in: str | None) -> int:
    elements = math.prod(tensor.shape)
    if len(tensor.shape) < _MATRIX:
        return _FLOAT * elements
    if held_in == "nf4":  # half a byte, and a scale for each 64
        return elements // 2 + _FLOAT * elements // 64
    if held_in == "int8":
        return elements + _FLOAT * tensor.shape[0]
    return min(tensor.nbytes, _BF16 * elements) if bf16 else tensor.nbytes


@dataclass(frozen=True)
class _Saved:
    """What autograd keeps of one part of a batch."""

    step: LearningStep
    draft: Draft
    plan: Plan
    bf16: bool

    @property
    def tokens(self) -> int:
        """How many tokens are in the model at once."""
        rows = math.ceil(self.step.batch_size / self.step.gradient_accumulation_steps)
        sequences = 2 if objective_of(self.step).rows == "pairs" else 1
        return rows * sequences * self.step.max_length

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return min(max(one.shape) for layer in self.plan.layers.values() for one in layer.tensors("") if one.shape)

    def logits(self) -> int:
        """Bytes of logits and what a loss makes of them."""
        words = max((max(one.shape) for one in self.plan.outside if len(one.shape) == _MATRIX), default=0)
        copies = _LOGITS_BESIDE_A_TEACHER if objective_of(self.step).teacher else _LOGITS
        copies += bool(self.plan.config.get("final_logit_softcapping"))
        return copies * _FLOAT * words * self.tokens

    def nbytes(self) -> int:
        """Bytes that are kept as the backward pass begins, from the first layer that is trained on."""
        names = list(self.plan.layers)
        trained = [self.trained(name) for name in names]
        first = 0 if self._outside_is_trained() else next((at for at, one in enumerate(trained) if one), len(names))
        layers = [
            self.layer(self.plan.layers[name], roles) for name, roles in list(zip(names, trained, strict=True))[first:]
        ]
        if not layers:
            return self.logits()
        stream = _FLOAT * self.width
        ends = stream * (2 if self._outside_is_trained() else 1)
        if self.step.gradient_checkpointing:
            again = self.tokens * max(layers) + self.logits() // _LOGITS  # of the logits themselves
            return self.tokens * (stream * len(layers) + ends) + max(again, self.logits())
        return self.tokens * (sum(layers) + ends) + self._casts() + self.logits()

    def _casts(self) -> int:
        """Bytes of trained matrices in bfloat16, which are made once in each pass and kept for its way back."""
        if not self.bf16:
            return 0
        if self.plan.adapters:
            return _BF16 * sum(sum(one.shape) * one.lora.rank for one in self.plan.adapters)
        free = set(self.plan.trainable)
        matrices = (one for one in self.plan.tensors if one.name in free and len(one.shape) >= _MATRIX)
        return _BF16 * sum(math.prod(one.shape) for one in matrices)

    def _outside_is_trained(self) -> bool:
        return not self.plan.adapters and any(one.name not in self.plan.frozen for one in self.plan.outside)

    def trained(self, prefix: str) -> frozenset[str]:
        """Return the roles of a layer whose weights or adapters are trained."""
        if self.plan.adapters:
            mine = (one for one in self.plan.adapters if one.module.startswith(f"{prefix}."))
            return frozenset(one.role for one in mine if is_free(self.draft, one))
        role = self.plan.structure.role
        names = (one.name for one in self.plan.layers[prefix].tensors(prefix) if one.name not in self.plan.frozen)
        return frozenset(role(name.removeprefix(f"{prefix}.")) for name in names)

    def layer(self, layer: PlannedLayer, trained: frozenset[str]) -> int:
        """Return the bytes that a layer keeps of each token; `trained` are the roles that are."""
        size = _BF16 if self.bf16 else _FLOAT
        return size * round(sum(self._products(layer, trained))) + _FLOAT * self._norms(layer, trained)

    def _products(self, layer: PlannedLayer, trained: frozenset[str]) -> Iterator[float]:
        """Yield numbers kept of each token in the dtype of products."""
        needs_input = trained if self.step.name not in _GATES_ALONE else frozenset()
        read: set[str] = set()
        gated = any("gate" in role.rpartition(".")[2] for role, _, _ in self._matrices(layer) if role != "router")
        for role, (outer, inner), share in self._matrices(layer):
            place = role.partition(".")[0]
            if role not in self.plan.structure.outputs:
                yield share * outer
                if role in needs_input and (self.bf16 or place not in read):  # each casts the same input anew
                    read.add(place)
                    yield share * inner
                continue
            if place in ("mlp", "experts"):
                yield share * inner * (1 if gated else self._activations() - 1)
                yield share * inner if role in needs_input else 0
            else:
                yield inner + self._attention_weights()
                yield inner if role in needs_input and self.bf16 and self.plan.adapters else 0

    def _attention_weights(self) -> int:
        """Return the numbers that attention keeps of each token where no fused kernel knows its form: two per pair."""
        config = self.plan.config
        capped = config.get("attn_logit_softcapping")
        return 2 * config["num_attention_heads"] * self.step.max_length if capped else 0

    def _activations(self) -> int:
        config = self.plan.config
        name = next(
            (config[key] for key in ("activation_function", "hidden_act", "hidden_activation") if key in config), ""
        )
        return _COMPOSITE.get(str(name), 1)

    def _norms(self, layer: PlannedLayer, trained: frozenset[str]) -> int:
        """Return the numbers kept of each token in float32: what norms read, normalised too if trained."""
        found = 0
        names = set(layer.layout.types)
        for suffix, model in layer.layout.types.items():
            role = self.plan.structure.role(suffix)
            if role.startswith("norm") and suffix.endswith("weight"):
                centred = suffix.removesuffix("weight") + "bias" in names  # a LayerNorm keeps its input alone
                found += model.shape[0] * (1 + (role in trained and not centred))
        return found

    def _matrices(self, layer: PlannedLayer) -> Iterator[tuple[str, tuple[int, int], float]]:
        """Yield the matrices of a layer: role, (out, in), and the share of the tokens that each multiplies."""
        structure = self.plan.structure
        config = self.plan.config
        chosen = config.get("num_experts_per_tok") or config.get("moe_top_k") or 1
        experts = (
            config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts") or chosen
        )
        for suffix, model in layer.layout.types.items():
            role = structure.role(suffix)
            if len(model.shape) < _MATRIX or (not suffix.endswith("weight") and len(model.shape) == _MATRIX):
                continue
            outer, inner = model.shape[-2:] if role not in structure.family.transposed else model.shape[:-3:-1]
            share = chosen / experts if role.startswith("experts.") else 1.0
            if self.bf16 and role.startswith("experts."):
                share *= _FLOAT // _BF16  # grouped products are none that autocast knows
            yield role, (outer, inner), share * math.prod(model.shape[:-2])


def is_blockwise(step: LearningStep) -> bool:
    """Whether a step trains one changed layer after the other."""
    choice = getattr(step, "objective", None)
    return choice is not None and choice.objective.blockwise


def _blockwise_bytes(step: LearningStep, draft: Draft, plan: Plan) -> int:
    """Return what blockwise healing takes: what is outside the layers, one of each model, and one in training.

    All of it is float32. One sequence is in a layer at once; hidden states that do not fit beside it go to a file.
    """
    saved = _Saved(step, draft, plan, bf16=False)
    outside = sum(tensor.parameters for tensor in plan.outside)
    largest = max(layer.parameters for layer in plan.layers.values())
    kept = max(saved.layer(layer, saved.trained(name)) for name, layer in plan.layers.items())
    trained = max(_healed_parameters(draft, plan), default=0)
    return _FLOAT * (outside + 2 * largest + trained) + _TRAINED * trained + step.max_length * kept


def _healed_parameters(draft: Draft, plan: Plan) -> list[int]:
    """Return how many numbers are trained of each changed layer."""
    found, stack = [], draft.structure.stack()
    for block in blocks_of(draft):
        layer = plan.layers[stack.tensor_name(block.position, "")[:-1]]
        types = layer.layout.types.items()
        frozen = (one.parameters for suffix, one in types if stack.tensor_name(block.position, suffix) in plan.frozen)
        found += [layer.parameters - sum(frozen)] if block.changed else []
    return found
