"""Hunyuan V4: several residual streams; some layers look at the tokens that a layer before them chose."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from surgeon.architectures.positions import first
from surgeon.core.layer_fields import Config, EachLayer
from surgeon.core.layer_ties import Borrows
from surgeon.core.structure import Family


def _indexers(config: Config, count: int) -> Sequence[str]:
    del config
    return ["full" if index == 0 or (index - 1) % 4 == 0 else "shared" for index in range(count)]


def _choosers(config: Config, count: int) -> Sequence[tuple[Hashable, bool]]:
    return [("choice", kind == "shared") for kind in config.get("indexer_types") or _indexers(config, count)]


FAMILY = Family(
    model_types=("hy_v4",),
    fields=(
        EachLayer("mlp_layer_types", first(1)),
        EachLayer("indexer_types", _indexers),
        Borrows("choice of tokens", "indexer_types", _choosers),
    ),
    no_identity="its layers mix several streams with weights that no values of its tensors turn into an identity",
)
