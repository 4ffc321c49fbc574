"""A weight that nobody trains: held as it is stored, float32 to whoever calculates with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map

_ATEN = torch.ops.aten
_VIEWS = frozenset({
    _ATEN.alias.default, _ATEN.detach.default, _ATEN.expand.default, _ATEN.permute.default, _ATEN.select.int,
    _ATEN.slice.Tensor, _ATEN.split.Tensor, _ATEN.split_with_sizes.default, _ATEN.squeeze.dim, _ATEN.t.default,
    _ATEN.transpose.int, _ATEN.unbind.int, _ATEN.unsqueeze.default, _ATEN.view.default, _ATEN._unsafe_view.default,
})  # fmt: skip
_MOVES = frozenset({
    _ATEN.clone.default, _ATEN.gather.default, _ATEN.index.Tensor, _ATEN.index_select.default,
})  # fmt: skip
"""What only chooses or moves elements is done to what is stored, and the outcome is a frozen weight again."""
_CHUNK = {"cpu": 1 << 19}
_LARGE_CHUNK = 1 << 24
"""Elements of a matrix that are converted at once for a product: on a CPU they must not leave the cache."""


class FrozenWeight(torch.Tensor):
    """Has the values of `stored`, and says that it is float32: every calculation comes to what float32 weights would.

    Widening bfloat16 and float16 to float32 loses nothing. It is done for each product anew, so that neither the model
    nor autograd, which keeps the frozen weight itself for the backward pass, ever holds the wide values. Where autocast
    asks for the dtype that is stored, it gets what is stored, without a copy. A cast to a narrower dtype than that is
    made once and kept. Writing to one is an error.

    `read` gives the stored tensor each time that it is asked for, where it is not held in memory; `like` is then
    shaped as it is, on the meta device or elsewhere.
    """

    stored: torch.Tensor | None
    _read: Callable[[], torch.Tensor] | None
    _casts: dict[Any, torch.Tensor]

    @staticmethod
    def __new__(
        cls, like: torch.Tensor, read: Callable[[], torch.Tensor] | None = None,
        device: torch.device | None = None, casts: dict[Any, torch.Tensor] | None = None,
    ) -> FrozenWeight:  # fmt: skip
        """Hold a tensor, or what `read` returns; a view shares the casts of what it is a view of."""
        made: FrozenWeight = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), storage_offset=like.storage_offset(), dtype=torch.float32,
            device=device or like.device, requires_grad=False,
        )  # fmt: skip
        made.stored, made._read = (like, None) if read is None else (None, read)
        made._casts = {} if casts is None else casts
        return made

    def __init__(self, *_: Any) -> None:
        """All is done before."""

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Say what is held."""
        del tensor_contents
        held = "on disk" if self.stored is None else str(self.stored.dtype)
        return f"FrozenWeight({tuple(self.shape)}, {held})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def held(self) -> torch.Tensor:
        """The stored tensor, in its own dtype."""
        if self.stored is not None:
            return self.stored
        assert self._read is not None
        return self._read()

    def cast(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the values in a dtype. A narrower one than is stored is made once for each part of the weight."""
        held = self.held
        if held.dtype == dtype:
            return held
        if held.dtype.itemsize < dtype.itemsize:
            return held.to(dtype)
        part = (dtype, held.storage_offset(), held.shape, held.stride())
        if part not in self._casts:
            self._casts[part] = held.to(dtype)
        return self._casts[part]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[Any, Any] | None = None
    ) -> Any:
        """Do what is asked for with the values in float32, or with what is stored where that comes to the same."""
        del types
        kwargs = kwargs or {}
        if func in _VIEWS or func in _MOVES:
            return _moved(func, args, kwargs)
        if func is _ATEN._to_copy.default and kwargs.get("dtype") is not None:
            plain = {name: value for name, value in kwargs.items() if name != "dtype"}
            cast = args[0].cast(kwargs["dtype"])
            return cast if plain.get("device", cast.device) == cast.device else func(cast, **plain)
        if func is _ATEN.embedding.default and isinstance(args[0], cls):
            return func(args[0].held, *args[1:], **kwargs).float()
        if func in (_ATEN.mm.default, _ATEN.addmm.default) and isinstance(args[-1], cls) and not kwargs:
            return _product(*args)
        _refuse_writing(func, args)
        return func(*tree_map(_widened, args), **tree_map(_widened, kwargs))


def _widened(value: Any) -> Any:
    return value.held.float() if isinstance(value, FrozenWeight) else value


def _moved(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Choose or move elements of what is stored; of a view the casts are those of the whole."""
    weight = args[0]
    if not isinstance(weight, FrozenWeight) or any(isinstance(one, FrozenWeight) for one in args[1:]):
        return func(*tree_map(_widened, args), **tree_map(_widened, kwargs))
    if func is _ATEN.detach.default and weight.stored is None:
        return FrozenWeight(weight.to("meta"), weight._read, weight.device, weight._casts)
    casts = weight._casts if func in _VIEWS and weight.stored is not None else None
    return tree_map(lambda one: FrozenWeight(one, None, None, casts), func(weight.held, *args[1:], **kwargs))


def _product(*args: torch.Tensor) -> torch.Tensor:
    """Return `first @ weight`, with a bias before them if there is one; a chunk of the weight is float32 at a time.

    Chunks are contiguous in memory: rows, over which sums go on, or columns, which give columns of the product.
    """
    *before, first, weight = args
    assert isinstance(weight, FrozenWeight)
    first, stored = _widened(first), weight.held
    bias: torch.Tensor | None = _widened(before[0]) if before else None
    rows, columns = stored.shape
    chunk = _CHUNK.get(stored.device.type, _LARGE_CHUNK)
    if rows * columns <= chunk:
        return _multiply(bias, first, stored.float())
    out: torch.Tensor = first.new_empty(first.shape[0], columns)
    if stored.stride(1) == 1 and rows > 1:
        height = max(1, chunk // columns)
        torch.mm(first[:, :height], stored[:height].float(), out=out)
        for start in range(height, rows, height):
            out.addmm_(first[:, start : start + height], stored[start : start + height].float())
        return out if bias is None else out.add_(bias)
    width = max(1, chunk // rows)
    for start in range(0, columns, width):
        part = slice(start, start + width)
        out[:, part] = _multiply(None if bias is None else bias[..., part], first, stored[:, part].float())
    return out


def _multiply(bias: torch.Tensor | None, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.mm(first, second) if bias is None else torch.addmm(bias, first, second)


def _refuse_writing(func: Any, args: Sequence[Any]) -> None:
    schema = func._schema
    if schema.is_mutable:
        for argument, value in zip(schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, FrozenWeight):
                raise RuntimeError(f"{func} would write to a frozen weight")
