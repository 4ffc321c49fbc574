"""A model opened for a learning step: after the draft, with what may change set free in float32; the rest is shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import torch
from torch import nn
from transformers import BitsAndBytesConfig

from surgeon.backend.frozen.frozen_modules import give_masters, hold_frozen, own_weights, release, shared_copy
from surgeon.backend.frozen.stored_model import load_as_stored, readings
from surgeon.backend.model.adapters import attached
from surgeon.backend.model.in_memory_executor import apply_draft
from surgeon.backend.model.loading import forget_model
from surgeon.backend.model.streaming import unmapped_reading
from surgeon.backend.model.tensors import DTYPES, TensorReader, tensor_reader
from surgeon.backend.quantised_loading import bitsandbytes_config, loaded_in
from surgeon.backend.training.training_run import GradientMask
from surgeon.backend.training.weight_mask_bits import WeightMask, bits_of
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.learned_results import adapter_tensors
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.apply_steps import unfrozen
from surgeon.core.recipe.learning_step import LearningStep, is_free, result_names
from surgeon.core.recipe.training_memory import training_bytes, weight_bytes
from surgeon.errors import ArchitectureError, LearningError

if TYPE_CHECKING:
    from surgeon.backend.training.training_request import TrainingRequest


@dataclass(frozen=True)
class TrainableModel:
    """A model ready to be trained, and its trainable parameters, float32, by their name in the result.

    dtypes: what the result is rounded to.   kept: what is not trained, but belongs to the result.
    copies: names of tensors that the checkpoint stores though they are tied, and those of the parameters that they are.
    teacher: the recipe's base, where one is asked for; what is frozen in the model is the same in both.
    mask: keeps gradients inside the draft's weight mask.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    dtypes: Mapping[str, torch.dtype]
    adapted: bool
    kept: Mapping[str, nn.Parameter] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    teacher: nn.Module | None = None
    mask: GradientMask | None = None

    def learning_rate(self, step: LearningStep) -> float:
        """Return the step's learning rate, or what is usual for what is trained."""
        return step.learning_rate or step.learning_rates[self.adapted]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what the parameters have become, rounded once to the checkpoint's dtype."""
        trained = {name: parameter.detach().to(self.dtypes[name]) for name, parameter in self.parameters.items()}
        copies = {
            name: self.parameters[of].detach().to(self.dtypes[name], copy=True)
            for name, of in self.copies.items()
            if of in self.parameters
        }
        return {**{name: parameter.detach() for name, parameter in self.kept.items()}, **trained, **copies}


@contextmanager
def open_trainable(request: TrainingRequest, *, gates: bool = False, taught: bool = False) -> Iterator[TrainableModel]:
    """Load the model after the draft and free what a learning step may change; all else is frozen.

    Of adapters that is A and B, or with `gates` their gates alone. Frozen weights are held as they are stored, by the
    model and, where it is to be `taught`, by its teacher.
    """
    draft, plan = request.draft, compile_plan(request.draft)
    forget_model()
    _tell_memory(request, plan)
    # What is mapped counts as this process's memory until nothing of its file is in use; frozen weights stay in use.
    with tensor_reader() as reader, nullcontext() if plan.adapters else unmapped_reading():
        base = load_as_stored(draft.structure, request.device, _held_in(request, plan))
        base.requires_grad_(requires_grad=False)
        teacher = shared_copy(base) if taught else None
        modules = list(base.modules())
        with apply_draft(base, unfrozen(draft)) as edited:
            edited.requires_grad_(requires_grad=False)
            if teacher is None:
                remaining = set(edited.modules())
                release([module for module in modules if module not in remaining])
            names = {} if plan.adapters else _free_names(edited, draft, plan)
            bits = _bits(request, names)
            masters = give_masters(edited, names.values(), shared=taught)
            _hold_frozen(request, edited, teacher, reader)
            if plan.adapters:
                with attached(edited, plan, request.seed) as (peft_model, parameters):
                    # Before this, PEFT would have the embedding's output ask for gradients.
                    _set_checkpointing(edited, request.step)
                    found = _trainable_adapters(draft, plan, peft_model, parameters, gates=gates)
                    yield replace(found, teacher=teacher)
                return
            _set_checkpointing(edited, request.step)
            trained = {name: masters[live] for name, live in names.items()}
            found = _trainable_weights(edited, draft, plan, trained)
            yield replace(found, teacher=teacher, mask=None if bits is None else WeightMask(bits))


def _held_in(request: TrainingRequest, plan: Plan) -> BitsAndBytesConfig | None:
    """Return how the base is to be quantised as it is loaded, where the recipe says so.

    Raises:
        LearningError: its weights would have to be trained.
    """
    held_in = loaded_in(request.draft)
    if held_in is None:
        return None
    if not plan.adapters:
        raise LearningError(
            f"weights that are held in {held_in} cannot be trained", where="base.load_in",
            allowed="masked_lora before it, so that adapters are", hint="or leave load_in out",
        )  # fmt: skip
    products = torch.bfloat16 if request.precision == "bf16" else torch.float32
    return bitsandbytes_config(held_in, request.draft.structure.checkpoint, products)


def _bits(request: TrainingRequest, names: dict[str, str]) -> dict[str, torch.Tensor] | None:
    """Return the bits of a draft's weight mask by name in the result; names without any are taken out of `names`.

    Raises:
        LearningError: nothing is left.
    """
    draft = request.draft
    if draft.mask is None or not names:
        return None
    own = dict(result_names(draft))
    bits = bits_of(draft.mask, {own[name] for name in names}, request.device)
    for name in [name for name in names if own[name] not in bits]:
        del names[name]
    if not names:
        raise LearningError("every weight inside the mask is frozen", where="train", hint="freeze less, or mask later")
    return bits


def _hold_frozen(request: TrainingRequest, model: nn.Module, teacher: nn.Module | None, reader: TensorReader) -> None:
    """Hold what is frozen once. What the teacher alone uses stays on disk where the device is a CPU."""
    computed_in = torch.bfloat16 if request.precision == "bf16" else torch.float32
    if teacher is None:
        hold_frozen([model], computed_in)
        return
    own, structure = own_weights(teacher, model), request.draft.structure
    on_disk = readings(structure, reader, request.device) if request.device.type == "cpu" else {}
    hold_frozen([model, teacher], computed_in, {name: on_disk[name] for name in own if name in on_disk})


def _trainable_adapters(
    draft: Draft, plan: Plan, model: nn.Module, parameters: Mapping[str, nn.Parameter], *, gates: bool
) -> TrainableModel:
    """Free A and B, or the gates, of all adapters that no freeze holds; these keep all three in the result."""
    names = [name for adapter in plan.adapters if is_free(draft, adapter) for name in adapter_tensors(adapter.name)]
    free = {name: parameters[name] for name in names if (parameters[name].dim() == 0) == gates}
    kept = {name: parameters[name] for name in names if name not in free}
    model.requires_grad_(requires_grad=False)
    for parameter in free.values():
        parameter.requires_grad = True
    return TrainableModel(model, free, dict.fromkeys(free, torch.float32), adapted=True, kept=kept)


def _set_checkpointing(model: Any, step: LearningStep) -> None:
    """Compute activations twice, if asked to, without having a frozen prefix go through a backward pass for it."""
    if not step.gradient_checkpointing:
        return
    if not model.supports_gradient_checkpointing:
        raise ArchitectureError(
            f"{type(model).__name__} cannot compute activations twice", where="gradient_checkpointing",
            allowed="false", hint="save memory by gradient_accumulation_steps, or a shorter max_length",
        )  # fmt: skip
    newer = getattr(model, "activation_checkpointing_enable", None)  # the older name is deprecated where both exist
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    # transformers has the embedding's output ask for gradients, which only re-entrant checkpointing needs.
    model.disable_input_require_grads()


def _free_names(model: nn.Module, draft: Draft, plan: Plan) -> dict[str, str]:
    """Return the tensors that are not frozen by their name in the checkpoint, with their name in the model."""
    live = dict(model.named_parameters())
    found: dict[str, str] = {}
    for tensor in plan.tensors:
        if tensor.name in plan.frozen or DTYPES.get(tensor.dtype) is None or not DTYPES[tensor.dtype].is_floating_point:
            continue
        if tensor.name in draft.structure.sliced:
            raise ArchitectureError(
                "holds one slice for each layer, and cannot be trained and cut", where=f"tensor {tensor.name!r}",
                allowed="training that leaves it as it is", hint="freeze outside: [embedding, norm] before",
            )  # fmt: skip
        (name,) = draft.structure.memory_names([tensor.name])
        parameter = live.get(name)
        if parameter is not None and tuple(parameter.shape) == tensor.shape:
            found[tensor.name] = name
        elif not _is_elsewhere(model, name):
            raise ArchitectureError(
                "has another form once it is loaded, so it cannot be trained and stored back", where=tensor.name,
                allowed="freeze it, or attach masked_lora to other matrices and train that", hint="add a freeze step",
            )  # fmt: skip
    return found


def _trainable_weights(
    model: nn.Module, draft: Draft, plan: Plan, trained: Mapping[str, nn.Parameter]
) -> TrainableModel:
    """Name what is trained as it is named in a result."""
    copies = _copies(model, draft, plan, trained)
    dtypes = {tensor.name: DTYPES[tensor.dtype] for tensor in plan.tensors}
    own = dict(result_names(draft))
    return TrainableModel(
        model, {own[name]: one for name, one in trained.items()},
        {own[name]: dtypes[name] for name in (*trained, *copies)}, adapted=False,
        copies={own[name]: own[of] for name, of in copies.items()},
    )  # fmt: skip


def _copies(model: nn.Module, draft: Draft, plan: Plan, trained: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Return, by name, the stored tensors that are tied to a trained parameter, and its name; frozen or not."""
    live = {name: id(one) for name, one in model.named_parameters(remove_duplicate=False)}
    names = {id(one): name for name, one in trained.items()}
    found = {}
    for tensor in plan.tensors:
        (name,) = draft.structure.memory_names([tensor.name])
        of = names.get(live.get(name, 0))
        if of is not None and of != tensor.name:
            found[tensor.name] = of
    return found


def _is_elsewhere(model: nn.Module, name: str) -> bool:
    """Whether a tensor is a buffer, or tied to another parameter."""
    tied = getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or {}
    return name in dict(model.named_buffers()) or name in tied


def _tell_memory(request: TrainingRequest, plan: Plan) -> None:
    """Say beforehand what a step takes; refuse what does not fit even one example at a time."""
    step, bf16 = request.step, request.precision == "bf16"
    wanted = training_bytes(step, request.draft, plan, bf16=bf16)
    weights = weight_bytes(step, request.draft, plan, bf16=bf16)
    text = f"{step.name}: takes about {wanted / 1e9:.2f} GB; weights and moments {weights / 1e9:.2f} GB of it"
    request.job.log(text)
    one_by_one = msgspec.structs.replace(step, gradient_accumulation_steps=step.batch_size)
    least = training_bytes(one_by_one, request.draft, plan, bf16=bf16)
    there = (
        torch.cuda.get_device_properties(request.device).total_memory
        if request.device.type == "cuda"
        else psutil.virtual_memory().total
    )
    if least > there:
        raise LearningError(
            f"needs {least / 1e9:.1f} GB for one example at a time; there are {there / 1e9:.1f} GB",
            where=step.name, allowed="freeze more layers, or attach masked_lora first: adapters take little",
        )  # fmt: skip
