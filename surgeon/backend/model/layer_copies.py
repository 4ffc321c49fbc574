"""Copies of loaded layers: of the base, and with the weights of another model's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from surgeon.backend.model.layer_list import layer_list
from surgeon.backend.model.loading import load_model
from surgeon.backend.model.streaming import weights_of, without_hooks
from surgeon.core.plan.draft import Grafted
from surgeon.core.structure.structure import Stack


def copied_layer(layer: nn.Module) -> nn.Module:
    """Return a layer of its own, with its weights in memory."""
    with weights_of(layer) as whole:
        return without_hooks(copy.deepcopy(whole))


def grafted_layer(stack: Stack, source: Grafted, base: Sequence[nn.Module]) -> nn.Module:
    """Return a copy of a base layer that is built and configured alike, with the weights of another model's layer."""
    donor = stack.donors[source.donor]
    module = copied_layer(base[donor.twins[source.index]])
    layers = layer_list(_donor_model(donor.checkpoint.path), stack, len(donor.layers))
    module.load_state_dict(layers[source.index].state_dict())
    return module


def forget_donor() -> None:
    """Drop the other model that was loaded last."""
    _donor_model.cache_clear()


@lru_cache(maxsize=1)
def _donor_model(path: Path) -> nn.Module:
    """Return another model as transformers loads it, kept while a draft is built."""
    return load_model(path, None, torch.device("cpu")).model
