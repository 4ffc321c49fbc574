"""Which parameters of the loaded model are trained: as other tools say it, by name, and as `freeze` steps say it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from surgeon.core.plan.draft import Draft, base_tensors
from surgeon.core.plan.plan import Plan
from surgeon.core.plan.tied_head import outside_tensors
from surgeon.core.selection.spans import spans
from surgeon.core.structure.outside import outside_kind
from surgeon.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the loaded model, and where a recipe finds it.

    name: among `named_parameters()`.   shape: as it is stored.
    stack, position, role: of one that belongs to a layer.   kind: of one that belongs to none, see `draft.OUTSIDE`.
    """

    name: str
    shape: tuple[int, ...]
    stack: str = ""
    position: int = -1
    role: str = ""
    kind: str = ""


def parameters_of(draft: Draft) -> tuple[Parameter, ...]:
    """Return the parameters of the model, layers first.

    Raises:
        ArchitectureError: their names are not known for this family.
    """
    return (*_in_layers(draft), *_outside(draft))


def _in_layers(draft: Draft) -> Iterator[Parameter]:
    structure = draft.structure
    for stack_name, layers in draft.stacks.items():
        stack = structure.stacks[stack_name]
        for position, layer in enumerate(layers):
            for suffix, tensor in base_tensors(layer.source, stack).items():
                (name,) = structure.memory_names([stack.tensor_name(position, suffix)])
                yield Parameter(name, tensor.shape, stack_name, position, structure.role(suffix))


def _outside(draft: Draft) -> Iterator[Parameter]:
    for name, tensor in outside_tensors(draft).items():
        (live,) = draft.structure.memory_names([name])
        yield Parameter(live, tensor.shape, kind=outside_kind(name))


def trainable_names(draft: Draft, plan: Plan) -> frozenset[str]:
    """Return the names of the parameters that a plan leaves trainable."""
    return frozenset(draft.structure.memory_names(plan.trainable))


def freeze_steps(draft: Draft, parameters: Collection[Parameter], trainable: Collection[str]) -> list[dict[str, Any]]:
    """Return the steps that freeze all parameters but the trainable ones.

    Raises:
        RecipeError: nothing stays trainable, or of what `freeze` takes as one only a part does.
    """
    if not any(one.name in trainable for one in parameters):
        raise RecipeError("leaves no parameter of this model trainable", hint="check the names against the model's")
    frozen = [one for one in parameters if one.name not in trainable]
    _refuse_split(parameters, trainable)
    steps = [step for stack in draft.stacks for step in _layer_steps(draft, stack, parameters, frozen)]
    outside = sorted({one.kind for one in frozen if one.kind})
    return steps + ([{"freeze": {"outside": outside}}] if outside else [])


def _refuse_split(parameters: Collection[Parameter], trainable: Collection[str]) -> None:
    """Refuse a role of a layer, or a kind outside them, of which one tensor is trained and another is not."""
    first: dict[tuple[str, int, str, str], Parameter] = {}
    for one in parameters:
        other = first.setdefault((one.stack, one.position, one.role, one.kind), one)
        if (one.name in trainable) != (other.name in trainable):
            what = f"role {one.role} of layer {one.position}" if one.role else f"the {one.kind}"
            raise RecipeError(
                f"trains {other.name if other.name in trainable else one.name} and not "
                f"{one.name if other.name in trainable else other.name}, and both are {what}",
                allowed="all tensors of a role of a layer, or none", hint="name both, or neither",
            )  # fmt: skip


def _layer_steps(
    draft: Draft, stack: str, parameters: Collection[Parameter], frozen: Collection[Parameter]
) -> Iterator[dict[str, Any]]:
    """Yield steps by layers that are alike, or by roles that are, whichever are fewer."""
    all_roles: dict[int, set[str]] = {}
    for one in parameters:
        if one.stack == stack and one.role:
            all_roles.setdefault(one.position, set()).add(one.role)
    roles: dict[int, set[str]] = {}
    layers: dict[str, set[int]] = {}
    for one in frozen:
        if one.stack == stack and one.role:
            roles.setdefault(one.position, set()).add(one.role)
            layers.setdefault(one.role, set()).add(one.position)
    whole = sorted(at for at, some in roles.items() if some == all_roles[at])
    by_layers: dict[frozenset[str], list[int]] = {}
    for at, some in roles.items():
        by_layers.setdefault(frozenset(() if at in whole else some), []).append(at)
    by_roles: dict[frozenset[int], list[str]] = {}
    for role, some_layers in layers.items():
        if left := frozenset(some_layers - set(whole)):
            by_roles.setdefault(left, []).append(role)
    chosen = [(positions, sorted(some)) for some, positions in by_layers.items()]
    others = [(sorted(positions), sorted(some)) for positions, some in by_roles.items()]
    others += [(whole, [])] if whole else []
    named = {} if stack == draft.structure.default_stack else {"stack": stack}
    for positions, some_roles in sorted(chosen if len(chosen) <= len(others) else others):
        yield {"freeze": {"layers": spans(positions), **({"roles": some_roles} if some_roles else {}), **named}}
