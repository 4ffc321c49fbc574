"""Output heads that are tied to the token embedding: what they are called, and what an untied one begins as."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from surgeon.core.checkpoint.tensors import Tensor
from surgeon.core.plan.draft import Draft
from surgeon.core.structure.structure import Structure
from surgeon.errors import ArchitectureError

FIELD = "tie_word_embeddings"
HEADS: tuple[tuple[str, str], ...] = (
    (r"(?:model\.(?:decoder\.|language_model\.)?)embed_tokens\.weight", "lm_head.weight"),
    (r"language_model\.model\.embed_tokens\.weight", "language_model.lm_head.weight"),
    (r"transformer\.(?:wte|w|word_embeddings|tokens_embed)\.weight", "lm_head.weight"),
    (r"backbone\.embeddings\.weight", "lm_head.weight"),
    (r"biogpt\.embed_tokens\.weight", "output_projection.weight"),
    (r"gpt_neox\.embed_in\.weight", "embed_out.weight"),
)
"""(regular expression for the embedding's name, the name of the head tied to it), as checkpoints have them."""
_OWN_HEADS = {"whisper": "proj_out.weight", "trocr": "output_projection.weight"}


def tied_names(structure: Structure) -> tuple[str, str]:
    """Return the names of the head and of the embedding that it is tied to.

    Raises:
        ArchitectureError: nothing is tied, or it is not known what the head would be called.
    """
    config = structure.checkpoint.config
    where = f"config field {FIELD}"
    found = [
        (name, _OWN_HEADS.get(structure.model_type, head))
        for name in structure.outside
        for pattern, head in HEADS
        if re.fullmatch(pattern, name)
    ]
    stored = [head for _, head in found if head in structure.checkpoint.tensors]
    if stored or config.get(FIELD) is False:
        raise ArchitectureError(
            f"nothing is tied: the checkpoint stores a head of its own, {stored[0]!r}" if stored else "nothing is tied",
            where=where, hint="leave the step out",
        )  # fmt: skip
    if len(found) != 1:
        raise ArchitectureError(
            "it is not known what an output head of its own would be called",
            where=f"model_type {structure.model_type}, {where}",
            allowed="an embedding called " + ", ".join(sorted({pattern for pattern, _ in HEADS})),
        )
    ((embedding, head),) = found
    return head, embedding


def outside_tensors(draft: Draft) -> Mapping[str, Tensor]:
    """Return the tensors outside the layers; an untied head has the shape and the bytes of the embedding."""
    outside = draft.structure.outside
    if draft.untied is None:
        return outside
    head, embedding = tied_names(draft.structure)
    return {**outside, head: msgspec.structs.replace(outside[embedding], name=head)}


def results_of(draft: Draft, name: str) -> tuple[tuple[str, str], ...]:
    """Return the results that may hold a tensor outside the layers, oldest first, and its name in the checkpoint then.

    An untied head was the embedding until it was untied.
    """
    if draft.untied is None or name != tied_names(draft.structure)[0]:
        return tuple((address, name) for address in draft.learned)
    embedding = tied_names(draft.structure)[1]
    since = draft.learned[len(draft.untied) :]
    return (*((address, embedding) for address in draft.untied), *((address, name) for address in since))


def write_untied(config: dict[str, Any], draft: Draft) -> None:
    """Say in a config that the head is the model's own: at the top, where transformers looks, and beside the layers."""
    if draft.untied is None:
        return
    config[FIELD] = False
    part = config
    for key in draft.structure.stack().config_path:
        part = part[key]
        part[FIELD] = False
