"""Puts an adapter from disk on the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from surgeon.core.adapters.carried_adapter import with_adapter
from surgeon.core.adapters.peft_files import PeftAdapter, open_adapter
from surgeon.core.checkpoint.base_path import locate_base
from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.operation import Chosen, Operation
from surgeon.errors import RecipeError


class LoadAdapter(Operation, frozen=True, kw_only=True):
    """Put an adapter that PEFT has saved on the model, as it is at this step.

    From then on it is as one that was trained here: layers take it with them where they go, it can be trained on,
    dropped in part or merged, and an export writes it for the edited model. LoRA, rsLoRA, rank_pattern and
    alpha_pattern are read; what else it holds is refused by its name. `fingerprint` names its bytes; a run writes it.
    """

    name = "load_adapter"
    key = "P"
    summary = "put an adapter that PEFT has saved on the model"
    paper = "LoRA, arXiv:2106.09685; rsLoRA, arXiv:2312.03732"

    from_: Annotated[str, msgspec.Meta(description="the adapter: a directory, a hub id")] = msgspec.field(name="from")
    fingerprint: Annotated[str | None, msgspec.Meta(description="of the adapter; written by a run")] = None

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Attach the adapters."""
        del chosen
        return with_adapter(draft, self._adapter(draft.root))

    def pinned(self, root: Path) -> LoadAdapter:
        """Return the step with the adapter's fingerprint."""
        if self.fingerprint is not None:
            return self
        return msgspec.structs.replace(self, fingerprint=self._adapter(root).fingerprint)

    def _adapter(self, root: Path) -> PeftAdapter:
        adapter = open_adapter(locate_base(self.from_, root))
        if self.fingerprint not in (None, adapter.fingerprint):
            raise RecipeError(
                f"is {self.fingerprint}, but {adapter.path} has {adapter.fingerprint}", where="fingerprint",
                hint="name the right adapter, or remove the fingerprint to use this one",
            )  # fmt: skip
        return adapter
