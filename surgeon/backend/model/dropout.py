"""Training without dropout, for objectives that compare a model with what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Set all rates of dropout to 0, as in the code of DPO (arXiv:2305.18290): they are no part of a log-ratio.

    With it, a model that has not moved differs from its reference, most at the tokens that dropout happens to hit.
    Modules stay in training mode, without which transformers does not recompute activations.
    """
    before = list(_rates(model))
    try:
        for holder, name, _ in before:
            setattr(holder, name, 0.0)
        yield
    finally:
        for holder, name, rate in before:
            setattr(holder, name, rate)


def _rates(model: nn.Module) -> Iterator[tuple[Any, str, float]]:
    """Yield (holder, attribute, rate): of dropout modules, and of what modules hand to functions themselves."""
    modules = list(model.modules())
    configs = {id(config): config for module in modules if (config := getattr(module, "config", None)) is not None}
    for holder in (*modules, *configs.values()):
        is_dropout = isinstance(holder, nn.modules.dropout._DropoutNd)
        for name, value in vars(holder).items():
            if isinstance(value, float) and value > 0 and ("drop" in name or (is_dropout and name == "p")):
                yield holder, name, value
