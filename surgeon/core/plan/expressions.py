"""How one output tensor is made of stored ones: copied, filled, averaged, truncated or cut. Data, not arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from surgeon.core.checkpoint.dtypes import FLOATS
from surgeon.core.checkpoint.tensors import Tensor
from surgeon.core.parts.division import Runs
from surgeon.core.plan.draft import (
    Grafted,
    Identity,
    Learned,
    Mean,
    Original,
    Part,
    Silenced,
    Source,
    Truncated,
    Truncation,
    base_tensors,
)
from surgeon.core.plan.layer_layouts import applied, config_of, layout_of
from surgeon.core.plan.learned_results import is_learned, layer_tensor, result_tensors
from surgeon.core.structure.fused_projections import Piece, pieces_of
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import ArchitectureError


@dataclass(frozen=True, slots=True)
class Copy:
    """The bytes of a stored tensor."""

    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Fill:
    """One constant everywhere."""

    value: float


@dataclass(frozen=True, slots=True)
class MeanOf:
    """The mean of several, in float32, rounded once to the output's dtype."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class TruncatedOf:
    """A weight without some singular directions of some of the matrices it holds; of each expert's, where stacked."""

    of: Expression
    pieces: tuple[Piece, ...]
    how: Truncation


@dataclass(frozen=True, slots=True)
class PartOf:
    """The spans of a tensor along one dimension, one after another in the order in which they stand here.

    whole: the shape of what they are cut from.
    """

    of: Expression
    whole: tuple[int, ...]
    axis: int
    runs: Runs


@dataclass(frozen=True, slots=True)
class JoinedOf:
    """Several tensors, one after another along a dimension."""

    parts: tuple[Expression, ...]
    axis: int


@dataclass(frozen=True, slots=True)
class LearnedOf:
    """What a learned step made of a tensor; stands only where the result is not there yet."""

    of: Expression
    address: str


Expression = Copy | Fill | MeanOf | TruncatedOf | PartOf | JoinedOf | LearnedOf


def express(structure: Structure, stack: Stack, source: Source, suffix: str) -> Expression:
    """Return how the tensor `suffix` of a layer from `source` is made.

    Raises:
        ArchitectureError: it would have to be calculated from a dtype that surgeon only moves.
    """
    return expressions_of(structure, stack, source)(suffix)


def expressions_of(structure: Structure, stack: Stack, source: Source) -> Callable[[str], Expression]:
    """Return what tells how each tensor of a layer from `source` is made, by its name; it raises as `express` does."""
    if isinstance(source, Original | Grafted):
        stored = base_tensors(source, stack)
        return lambda suffix: Copy(stored[suffix])
    if isinstance(source, Identity | Silenced):
        return _silenced(structure, stack, source)
    if isinstance(source, Part):
        return _cut(structure, stack, source)
    if isinstance(source, Truncated):
        return _truncated(structure, stack, source)
    if isinstance(source, Learned):
        return _learned(structure, stack, source)
    return _averaged(structure, stack, source)


def _silenced(structure: Structure, stack: Stack, source: Identity | Silenced) -> Callable[[str], Expression]:
    inner = expressions_of(structure, stack, source.of)
    constants = silent_values(structure, stack, source)

    def made(suffix: str) -> Expression:
        constant = constants.get(structure.role(suffix))
        return inner(suffix) if constant is None else Fill(constant)

    return made


def silent_values(structure: Structure, stack: Stack, source: Identity | Silenced) -> dict[str, float]:
    """Return the constants that silence a layer, or some of its sublayers, by the roles of the tensors that get them.

    Raises:
        ArchitectureError: it is not known which tensors write what the sublayers put out.
    """
    layer = base_tensors(source, stack)
    ways = structure.silence(layer) if isinstance(source, Identity) else structure.quiet(layer, source.sublayers)
    return {silence.role: silence.value for silence in reversed(ways)}


def _cut(structure: Structure, stack: Stack, source: Part) -> Callable[[str], Expression]:
    inner, part = expressions_of(structure, stack, source.of), applied(structure, stack, source)

    def made(suffix: str) -> Expression:
        old = part.names[suffix]
        of = inner(old)
        if old not in part.cuts or isinstance(of, Fill):
            return of
        return PartOf(of, part.whole[old], *part.cuts[old])

    return made


def _truncated(structure: Structure, stack: Stack, source: Truncated) -> Callable[[str], Expression]:
    inner = expressions_of(structure, stack, source.of)
    model = layout_of(structure, stack, source).types

    def made(suffix: str) -> Expression:
        of, dtype = inner(suffix), model[suffix].dtype
        pieces = truncated_pieces(structure, stack, source, suffix, model[suffix].shape)
        if not pieces or isinstance(of, Fill):
            return of
        if dtype not in FLOATS:
            raise ArchitectureError(
                f"has dtype {dtype}, of which no singular values can be taken",
                where=f"tensor {suffix!r}",
                allowed=", ".join(FLOATS),
                hint="dequantise the checkpoint first",
            )
        return TruncatedOf(of, pieces, source.how)

    return made


def _learned(structure: Structure, stack: Stack, source: Learned) -> Callable[[str], Expression]:
    inner = expressions_of(structure, stack, source.of)
    # Asked for once a layer: looking whether a result is there is a call of the system.
    result = _result(source.address)
    return lambda suffix: _of_result(
        inner(suffix), result, source.address, layer_tensor(stack.name, source.key, suffix)
    )


def _averaged(structure: Structure, stack: Stack, source: Mean) -> Callable[[str], Expression]:
    inner = [expressions_of(structure, stack, part) for part in source.parts]
    model = layout_of(structure, stack, source).types

    def made(suffix: str) -> Expression:
        parts = tuple(part(suffix) for part in inner)
        if all(part == parts[0] for part in parts):
            return parts[0]
        dtype = model[suffix].dtype
        if dtype not in FLOATS:
            raise ArchitectureError(
                f"has dtype {dtype}, of which no mean can be taken",
                where=f"tensor {suffix!r}",
                allowed=", ".join(FLOATS),
                hint="copy the layer instead: that only moves bytes",
            )
        return MeanOf(parts)

    return made


def learned(inner: Expression, address: str, name: str) -> Expression:
    """Return the tensor `name` of a learned result, or `inner` where the result left it as it was."""
    return _of_result(inner, _result(address), address, name)


def _result(address: str) -> Mapping[str, Tensor] | None:
    return result_tensors(address) if is_learned(address) else None


def _of_result(inner: Expression, result: Mapping[str, Tensor] | None, address: str, name: str) -> Expression:
    if result is None:
        return LearnedOf(inner, address)
    stored = result.get(name)
    return inner if stored is None else Copy(stored)


def truncated_pieces(
    structure: Structure, stack: Stack, source: Truncated, suffix: str, shape: tuple[int, ...]
) -> tuple[Piece, ...]:
    """Return the matrices of one tensor that a truncation means; a fused weight by its own role or by a part's."""
    if len(shape) < 2:
        return ()
    role = structure.role(suffix)
    if len(shape) > 2:
        return tuple(piece for piece in _stacked_pieces(structure, role, shape) if piece.role in source.roles)
    if role not in source.roles and not source.roles & set(structure.family.fused.get(role, ())):
        return ()
    pieces = pieces_of(structure, config_of(structure, stack, source), suffix, shape)
    return tuple(piece for piece in pieces if {role, piece.role} & source.roles)


def _stacked_pieces(structure: Structure, role: str, shape: tuple[int, ...]) -> tuple[Piece, ...]:
    """Return the matrices of one expert of a stack; gate and up, stored apart, are above each other once loaded."""
    half = shape[-2] // 2
    if role == "experts.gate_up" and {"experts.gate", "experts.up"} <= set(structure.roles):
        return (Piece("experts.gate", 0, ((0, half),)), Piece("experts.up", 0, ((half, shape[-2]),)))
    return (Piece(role, 0, ((0, shape[-2]),)),)


def inner_of(expression: Expression) -> tuple[Expression, ...]:
    """Return the expressions that one is made of."""
    if isinstance(expression, MeanOf | JoinedOf):
        return expression.parts
    return (expression.of,) if isinstance(expression, TruncatedOf | PartOf | LearnedOf) else ()


def first_leaf(expression: Expression, own_name: str) -> str:
    """Return the name of the first stored tensor that an expression reads; `own_name` if it reads none."""
    while inner := inner_of(expression):
        expression = inner[0]
    return expression.tensor.name if isinstance(expression, Copy) else own_name


def is_pending(expression: Expression) -> bool:
    """Whether it stands for what a learned step has not found yet."""
    return isinstance(expression, LearnedOf) or any(map(is_pending, inner_of(expression)))
