"""Operates on one tiny checkpoint with surgeon and says of each operation: exact, refused, or wrong."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.errors import SurgeonError
from tests.architectures.reference import NoReference, Reference, logits_of
from tests.jobs import perform

Steps = list[dict[str, Any]]


_CACHE_TOLERANCE = 2e-3
"""With a cache, sums are taken in another order."""


@dataclass(frozen=True)
class Operation:
    """Steps of a recipe, and the sequence of the base's layers that they must come to."""

    name: str
    steps: Steps
    order: list[int]
    changes: bool = True


def operations(count: int, alike: int) -> list[Operation]:
    """Return what is tried on a model of at least five layers; the one at `alike` is built like the next."""
    every, last, middle = list(range(count)), count - 1, count // 2
    swapped = [0, 2, 1, *every[3:]]
    return [
        Operation("prune first", [{"prune": {"layers": [0]}}], every[1:]),
        Operation("prune middle", [{"prune": {"layers": [middle]}}], [*every[:middle], *every[middle + 1 :]]),
        Operation("prune last", [{"prune": {"layers": [last]}}], every[:-1]),
        Operation(
            "prune several",
            [{"prune": {"layers": [1, middle, last - 1]}}],
            [at for at in every if at not in (1, middle, last - 1)],
        ),
        Operation("expand copy", [{"expand": {"after": [middle], "init": "copy"}}], every, changes=False),
        Operation("expand mean", [{"expand": {"after": [alike], "init": "mean"}}], every, changes=False),
        Operation("expand ends", [{"expand": {"after": [0, last], "init": "copy"}}], every, changes=False),
        Operation("duplicate", [{"expand": {"after": [middle], "init": "duplicate"}}], sorted([*every, middle])),
        Operation("reorder", [{"reorder": {"order": swapped}}], swapped),
        Operation(
            "mixture",
            [
                {"prune": {"layers": [middle]}},
                {"expand": {"after": [1], "init": "copy"}},
                {"expand": {"after": [0], "init": "duplicate"}},
                {"reorder": {"order": [0, 2, 1, *range(3, count + 1)]}},
                {"prune": {"layers": [count]}},
            ],
            [0, 1, 0, *(at for at in every[2:-1] if at != middle)],
        ),
    ]


@dataclass(frozen=True)
class Outcome:
    """What came of an operation: `exact`, `refused` (why names the field), `wrong` or `error`."""

    kind: str
    why: str = ""


class Patient:
    """A tiny checkpoint on disk, the model it was saved from, and what its logits must be."""

    def __init__(self, directory: Path, auto: Any = AutoModelForCausalLM) -> None:
        """Load the checkpoint with plain transformers; nothing of surgeon is used but the name of its layers."""
        self.directory, self.auto = directory, auto
        self.base, self.report = load(directory, auto)
        self.tokens_BT = torch.randint(3, 120, (2, 24), generator=torch.Generator().manual_seed(1))
        found = read_structure(open_checkpoint(directory)).stack()
        self.count, self.prefix = len(found.layers), found.prefix
        builds = [{suffix: tensor.shape for suffix, tensor in layer.items()} for layer in found.layers]
        self.alike = next((at for at in range(1, self.count - 1) if builds[at] == builds[at + 1]), 0)
        self.modules = _module_list(self.base, found.prefix, self.count)
        try:
            self.reference: Reference | None = Reference(self.base, self.modules, self.tokens_BT)
            self.no_reference = ""
        except NoReference as reason:
            self.reference, self.no_reference = None, str(reason)

    def module_prefix(self, position: int) -> str:
        """Return what the names of a layer's parameters begin with in memory."""
        return next(str(name) for name, module in self.base.named_modules() if module is self.modules[position]) + "."

    def operations(self) -> list[Operation]:
        """Return what is tried on it."""
        return operations(self.count, self.alike)

    def try_operation(self, operation: Operation, out: Path, *, verify: bool = False) -> Outcome:
        """Operate, export, reload with plain transformers, and compare."""
        shutil.rmtree(out, ignore_errors=True)
        recipe = {"version": 1, "base": {"model": str(self.directory)}, "steps": operation.steps}
        try:
            perform("run", {"recipe": recipe, "out": str(out), "verify": verify}, _ignore, _never)
        except SurgeonError as error:
            kind = "refused" if type(error).__name__ == "ArchitectureError" else "error"
            return Outcome(kind, f"{error.where}: {error.what}")
        try:
            return self._compare(operation, out)
        except Exception as error:  # whatever the reloaded model does wrong is a finding
            return Outcome(
                "wrong",
                f"reloaded: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            )

    def _compare(self, operation: Operation, out: Path) -> Outcome:
        if self.reference is None:
            return Outcome("error", self.no_reference)
        model, report = load(out, self.auto)
        if report - self.report:
            return Outcome("wrong", "; ".join(sorted(report - self.report)[:3]))
        if operation.name == "expand mean" and not mean_is_right(self.directory, out, self.prefix, self.alike):
            return Outcome("wrong", "the inserted layer is not the mean of its neighbours")
        return self._compare_logits(operation, model, self.reference)

    def _compare_logits(self, operation: Operation, model: nn.Module, reference: Reference) -> Outcome:
        found, expected = logits_of(model, self.tokens_BT), reference.of(operation.order)
        if not torch.isfinite(expected).all():
            return Outcome("error", "the reference is not finite")
        if not torch.equal(found, expected):
            return Outcome("wrong", f"logits differ by {(found - expected).abs().max().item():.2g}")
        if operation.changes and torch.equal(found, reference.logits):
            return Outcome("error", "the operation changed nothing: this model cannot tell right from wrong")
        if not self.cache_is_sound or cache_agrees(model, 0):
            return Outcome("exact")
        return Outcome("wrong", "generation with a cache differs from that without")

    @cached_property
    def cache_is_sound(self) -> bool:
        """Whether the base itself generates the same with and without a cache, on three prompts."""
        return all(cache_agrees(self.base, seed) for seed in range(3))


def load(directory: Path, auto: Any = AutoModelForCausalLM) -> tuple[nn.Module, set[str]]:
    """Load with plain transformers; also what it complained about, layer numbers left out."""
    model, info = auto.from_pretrained(directory, output_loading_info=True)
    complaints = {
        f"{kind.removesuffix('_keys')} {_numberless(str(key))}"
        for kind, keys in info.items()
        if kind.endswith("_keys")
        for key in keys
    }
    with torch.no_grad():
        for parameter in model.parameters():
            # As loaded, it lies where the file puts it, and some kernels round by alignment.
            parameter.data = parameter.data.clone()
    return model.eval(), complaints


def _numberless(key: str) -> str:
    return ".".join("N" if part.isdigit() else part for part in key.split("."))


def _module_list(model: nn.Module, prefix: str, count: int) -> Sequence[nn.Module]:
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    alike = [
        module
        for name, module in lists.items()
        if name == prefix or name.endswith(f".{prefix}") or prefix.endswith(f".{name}")
    ]
    found = alike or [module for name, module in lists.items() if name.rpartition(".")[2] == prefix.rpartition(".")[2]]
    if len(found) != 1:
        raise NoReference(f"{prefix}: {', '.join(lists) or 'no list of that length'}")
    return found[0]  # type: ignore[return-value]


def cache_agrees(model: Any, seed: int) -> bool:
    tokens_BT = torch.randint(3, 120, (1, 8), generator=torch.Generator().manual_seed(seed))
    try:
        (tokens, logits), (other_tokens, other_logits) = (
            _generated(model, tokens_BT, use_cache=use_cache) for use_cache in (True, False)
        )
    except Exception:  # a model that cannot generate has no cache that agrees
        return False
    return torch.equal(tokens, other_tokens) and (logits - other_logits).abs().max().item() < _CACHE_TOLERANCE


def _generated(model: Any, tokens_BT: torch.Tensor, *, use_cache: bool) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    found = model.generate(
        tokens_BT,
        attention_mask=torch.ones_like(tokens_BT),
        do_sample=False,
        max_new_tokens=6,
        min_new_tokens=6,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return found.sequences, torch.stack(found.logits)


def mean_is_right(base: Path, out: Path, prefix: str, left: int) -> bool:
    """Whether each tensor of the layer after `left` is the mean of its neighbours in the base, or a constant."""
    with safe_open(base / "model.safetensors", "pt") as before, safe_open(out / "model.safetensors", "pt") as after:
        start, names = f"{prefix}.{left}.", set(after.keys())
        suffixes = [name.removeprefix(start) for name in before.keys() if name.startswith(start)]  # noqa: SIM118 - no dict
        made = {
            suffix: after.get_tensor(f"{prefix}.{left + 1}.{suffix}")
            for suffix in suffixes
            if f"{prefix}.{left + 1}.{suffix}" in names
        }
        constant = [suffix for suffix, value in made.items() if bool((value == value.flatten()[0]).all())]
        wrong = [
            suffix
            for suffix, value in made.items()
            if suffix not in constant
            and value.is_floating_point()
            and not torch.equal(
                value, (before.get_tensor(start + suffix) + before.get_tensor(f"{prefix}.{left + 1}.{suffix}")) / 2
            )
        ]
    return not wrong and 0 < len(constant) < len(made) == len(suffixes)


def _ignore(kind: str, body: Mapping[str, Any]) -> None:
    del kind, body


def _never() -> bool:
    return False
