"""Masked LoRA on a live model, on PEFT: a gate on each LoRA matrix, folded into B when the adapter is written."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.utils import parametrize

from surgeon.backend.model.tensors import tensor_reader
from surgeon.core.plan.learned_results import adapter_tensors, result_tensors
from surgeon.core.plan.plan import Adapter, Plan
from surgeon.errors import ArchitectureError

NAME = "default"


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Keep to ourselves what PEFT calls in transformers that will be gone one day: nobody here can mend it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


class Gate(nn.Module):
    """Multiplies B by sigmoid(s): `y = W x + sigmoid(s) * (alpha / rank) * B A x`.

    Source: Understanding Layer Significance in LLM Alignment (ILA), arXiv:2410.17875, the mask's relaxation.
    """

    def __init__(self, start: float) -> None:
        """Start s at `start`."""
        super().__init__()
        self.s = nn.Parameter(torch.tensor(float(start)))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the gated B, in B's dtype."""
        return torch.sigmoid(self.s).to(weight.dtype) * weight


def attach(model: nn.Module, adapters: Sequence[Adapter], seed: int, *, transposed: bool = False) -> PeftModel:
    """Put a gated LoRA on each named module. A is drawn per module from `seed` and its name, B is zero.

    Where an adapter was trained, both are as they were left. `transposed`: modules store weights as (in, out).

    Raises:
        ArchitectureError: a module is not a linear layer of the loaded model.
    """
    modules = dict(model.named_modules())
    for adapter in adapters:
        _refuse_unfit(adapter, modules)
    first = adapters[0].lora
    config = LoraConfig(
        r=first.rank, lora_alpha=first.alpha, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",  # type: ignore[arg-type]
        fan_in_fan_out=transposed,
        target_modules=sorted(adapter.module for adapter in adapters),
        rank_pattern={one.module: one.lora.rank for one in adapters if one.lora.rank != first.rank},
        alpha_pattern={one.module: one.lora.alpha for one in adapters if one.lora.alpha != first.alpha},
    )  # fmt: skip
    peft_model = _wrapped(model, config, adapters)
    layers = lora_layers(peft_model, adapters)
    for adapter, layer in zip(adapters, layers, strict=True):
        digest = hashlib.sha256(f"{seed}:{adapter.module}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        a = layer.lora_A[NAME].weight
        bound = a.shape[1] ** -0.5  # kaiming_uniform_(a=sqrt(5)), as PEFT and nn.Linear start
        with torch.no_grad():
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
        gate = Gate(adapter.lora.gate).to(a.device)
        parametrize.register_parametrization(layer.lora_B[NAME], "weight", gate)
    _restore_learned(peft_model, adapters)
    return peft_model


def _refuse_unfit(adapter: Adapter, modules: Mapping[str, nn.Module]) -> None:
    if adapter.module not in modules:
        raise ArchitectureError(
            "the loaded model has no module of that name",
            where=adapter.module,
            hint="leave this role out of masked_lora",
        )
    module = modules[adapter.module]
    if isinstance(module, nn.Linear) and not _multiplies(module):
        raise ArchitectureError(
            f"is a {type(module).__name__}, which multiplies in a way of its own that PEFT does not follow",
            where=f"{adapter.module}, role {adapter.role}",
            hint="leave this role out: name the others in `roles`",
        )


@torch.no_grad()
def _multiplies(module: nn.Linear) -> bool:
    """Whether a linear layer turns vectors of its inputs into vectors of its outputs; models have some of their own."""
    own = type(module).forward is not nn.Linear.forward and type(module).__module__.startswith("transformers.models.")
    if not own:
        return True
    weight = module.weight
    try:
        out = module(torch.zeros(1, 1, module.in_features, device=weight.device, dtype=weight.dtype))
    except RuntimeError:
        return False
    return tuple(out.shape) == (1, 1, module.out_features)


def _wrapped(model: nn.Module, config: LoraConfig, adapters: Sequence[Adapter]) -> PeftModel:
    """Let PEFT put the adapters on.

    Raises:
        ArchitectureError: it takes a module for something else. In models with experts it reads names such as
            `down_proj` as theirs, wherever they stand, and would do so again when the adapter is loaded.
    """
    before = dict(model.named_modules())
    try:
        with without_deprecations():
            # Of experts that it looked for in vain: what it did with our names is seen below.
            warnings.filterwarnings(
                "ignore", message="The following (rank|alpha)_pattern keys", category=RuntimeWarning
            )
            peft_model: PeftModel = get_peft_model(model, config)
    except ValueError as error:
        _put_back(before)
        raise ArchitectureError(
            f"PEFT refuses: {error}", where="masked_lora", hint="leave such a role out: name the others in `roles`"
        ) from error
    found = dict(peft_model.get_base_model().named_modules())
    lost = [one for one in adapters if not hasattr(found.get(one.module), "lora_A")]
    if lost:
        fit = sorted({one.role for one in adapters} - {one.role for one in lost})
        _put_back(before)
        raise ArchitectureError(
            "PEFT takes a module of that name for experts in a model of this type",
            where=f"{lost[0].module}, role {lost[0].role}",
            allowed=", ".join(fit) or "no role",
            hint="name the others in `roles`",
        )
    return peft_model


def _put_back(before: Mapping[str, nn.Module]) -> None:
    """Put every module back to its place, PEFT having stopped halfway or wrapped what it should not."""
    for name, module in before.items():
        parent, _, child = name.rpartition(".")
        if name:
            before[parent]._modules[child] = module
    vars(before[""]).pop("peft_config", None)


@contextmanager
def attached(model: nn.Module, plan: Plan, seed: int) -> Iterator[tuple[PeftModel, dict[str, nn.Parameter]]]:
    """Yield the model with a plan's adapters as they were learned, or as they start; take them off on leaving.

    With it come all their parameters, A, B and gate, by their names in a result; see
    `surgeon.core.plan.learned_results`.
    """
    peft_model = attach(model, plan.adapters, seed, transposed=bool(plan.structure.family.transposed))
    try:
        yield peft_model, adapter_parameters(peft_model, plan.adapters)
    finally:
        fold_gates(peft_model, plan.adapters)
        peft_model.unload()


def adapter_parameters(peft_model: PeftModel, adapters: Sequence[Adapter]) -> dict[str, nn.Parameter]:
    """Return A, B and the gate of each adapter by their names in a result."""
    found: dict[str, nn.Parameter] = {}
    for adapter, layer in zip(adapters, lora_layers(peft_model, adapters), strict=True):
        gated: Any = layer.lora_B[NAME].parametrizations.weight
        values = (layer.lora_A[NAME].weight, gated.original, gated[0].s)
        found |= dict(zip(adapter_tensors(adapter.name), values, strict=True))
    return found


def _restore_learned(peft_model: PeftModel, adapters: Sequence[Adapter]) -> None:
    """Give adapters that were trained the values they were left with."""
    learned = {adapter.name: adapter.lora.address for adapter in adapters if adapter.lora.address}
    with tensor_reader() as reader, torch.no_grad():
        for name, parameter in adapter_parameters(peft_model, adapters).items():
            address = learned.get(name.rpartition("/")[0])
            stored = result_tensors(address).get(name) if address else None
            if stored is not None:
                parameter.copy_(reader.read(stored))


def lora_layers(peft_model: PeftModel, adapters: Sequence[Adapter]) -> list[Any]:
    """Return the LoRA layers in the order of the adapters."""
    modules = dict(peft_model.get_base_model().named_modules())
    return [modules[adapter.module] for adapter in adapters]


def fold_gates(peft_model: PeftModel, adapters: Sequence[Adapter]) -> None:
    """Fold every gate into its B: what remains is an ordinary PEFT adapter of the same function."""
    for layer in lora_layers(peft_model, adapters):
        parametrize.remove_parametrizations(layer.lora_B[NAME], "weight", leave_parametrized=True)


def write_adapter(model: nn.Module, plan: Plan, base: str, seed: int, directory: Path) -> None:
    """Attach a plan's adapters to the model it is for, fold the gates, and save a PEFT adapter directory.

    `base` is what the adapter names as its base model. The adapter stays on the model.
    """
    peft_model = attach(model, plan.adapters, seed, transposed=bool(plan.structure.family.transposed))
    fold_gates(peft_model, plan.adapters)
    peft_model.peft_config[NAME].base_model_name_or_path = base
    # False: the card is ours, and `auto` would ask a hub whether the embedding was changed.
    peft_model.save_pretrained(str(directory), save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    _sort_targets(directory / "adapter_config.json", [adapter.module for adapter in plan.adapters])


def _sort_targets(path: Path, modules: Sequence[str]) -> None:
    """Name every module in full, in order: PEFT writes a set, in another order and shortened, each time."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(modules)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
