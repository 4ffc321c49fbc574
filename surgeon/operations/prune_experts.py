"""Removes experts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from surgeon.core.parts.counts import expert_groups, experts_per_token
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.part_counts import without_parts
from surgeon.core.recipe.operation import Chosen, ExpertChoice, Operation
from surgeon.core.selection.part_selection import numbers_by_position, part_counts
from surgeon.core.structure.quantisation import quantisation_documents
from surgeon.errors import ArchitectureError

_NAMED = re.compile(r"experts\\*\.\d+")
_LEAST_IN_GROUP = 2
"""Routers that choose groups compare them by their two best experts."""


class PruneExperts(Operation, frozen=True, kw_only=True):
    """Remove any experts, as many in each layer, with their rows in the router and its biases; shared experts stay.

    Tokens that went to a removed expert go to the best of those that are left: the result is the base with the choice
    of the removed ones masked out.
    """

    name = "prune_experts"
    key = "X"
    summary = "remove experts"
    paper = "REAP the Experts, arXiv:2510.13999"

    experts: ExpertChoice

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Drop the chosen experts."""
        _refuse_named(draft)
        counts = part_counts(draft, self.stack, "experts")
        gone = numbers_by_position(chosen["experts"])
        after = without_parts(draft, "experts", gone, self.stack)
        self._check_choice(draft, counts, gone)
        return after

    def _check_choice(self, draft: Draft, counts: Mapping[int, int], gone: Mapping[int, Sequence[int]]) -> None:
        """Refuse to leave a router fewer experts than it chooses, or groups that it cannot compare."""
        structure = draft.structure
        config = structure.stack_config(structure.stack(self.stack))
        left = min((count - len(gone.get(at, ())) for at, count in counts.items()), default=0)
        top_k = experts_per_token(config)
        if top_k is not None and left < top_k[1]:
            raise ArchitectureError(
                f"each token goes to {top_k[1]} experts, and {left} would be left",
                where=f"config field {top_k[0]}", allowed=f"at least {top_k[1]} experts in each layer",
                hint="remove fewer",
            )  # fmt: skip
        groups = expert_groups(config)
        if groups is None:
            return
        field, number, used = groups
        for at, count in counts.items():
            size = count // number
            kept = [size - sum(one // size == group for one in gone.get(at, ())) for group in range(number)]
            enough = top_k is None or used * min(kept) >= top_k[1]
            if len(set(kept)) > 1 or kept[0] < _LEAST_IN_GROUP or not enough:
                raise ArchitectureError(
                    f"the experts of layer {at} form {number} groups, which would have {', '.join(map(str, kept))}",
                    where=f"config field {field}",
                    allowed=f"as many in each, at least {_LEAST_IN_GROUP}, and enough in {used} groups for a token",
                    hint="choose the experts by their numbers, as many of each group",
                )


def _refuse_named(draft: Draft) -> None:
    """Refuse where what says how weights are quantised names experts by their numbers: these change."""
    for where, document in quantisation_documents(draft.structure.checkpoint):
        found = _NAMED.search(msgspec.json.encode(document).decode())
        if found:
            raise ArchitectureError(
                f"names experts by their numbers ({found[0]}), which would be others",
                where=where, allowed="entries that mean all experts of a layer",
                hint="write them without the experts' numbers",
            )  # fmt: skip
