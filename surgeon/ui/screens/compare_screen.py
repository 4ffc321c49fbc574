"""The model of now beside its base: sizes, layers and config, by arithmetic on headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from surgeon.core.plan.draft import Draft
from surgeon.core.plan.kv_cache import kv_cache
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.command_text import option_text
from surgeon.session import Session
from surgeon.ui.screens.text_screens import ReadingScreen
from surgeon.ui.state.formatting import bytes_text, count_text
from surgeon.ui.state.layer_rows import adapter_parameters, trainable_parameters
from surgeon.ui.theme import Looks

_WORD_CELLS, _CELLS = 24, 22


def figures_of(draft: Draft, plan: Plan) -> dict[str, str]:
    """Return what there is to say about one state of the model."""
    found = {f"layers {name}".removesuffix(f" {draft.structure.default_stack}"): str(len(layers))
             for name, layers in draft.stacks.items()}  # fmt: skip
    caches = [kv_cache(draft, name).bytes_per_token for name in draft.stacks]
    known = [cache for cache in caches if cache is not None]
    return {
        **found,
        "parameters": count_text(plan.parameters),
        "bytes": bytes_text(plan.nbytes),
        "KV cache per token": bytes_text(sum(known)) if len(known) == len(caches) else "not known",
        "trainable": count_text(trainable_parameters(plan)),
        "adapter parameters": count_text(adapter_parameters(plan)),
        "tensors": str(len(plan.tensors)),
    }


def flat(config: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Return the fields of a config, nested ones by dotted paths, as text."""
    found: dict[str, str] = {}
    for key, value in config.items():
        where = f"{path}.{key}" if path else str(key)
        found |= flat(value, where) if isinstance(value, Mapping) else {where: option_text(value)}
    return found


class CompareScreen(ReadingScreen):
    """Two columns: the base, and the model after the applied steps. What differs stands out."""

    heading = "compared with the base"

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def lines(self, looks: Looks) -> Iterator[Text]:
        """Write the sizes, then the config fields that differ."""
        session = self._session
        base = session.draft_at(0)
        before, after = figures_of(base, compile_plan(base)), figures_of(session.draft, session.plan)
        yield self._line(looks, "", "base", f"after {session.position} steps")
        for name in before:
            yield self._line(looks, name, before[name], after[name])
        yield Text()
        old, new = flat(session.checkpoint.config), flat(session.plan.config)
        changed = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
        yield Text(" config.json" if changed else " config.json stays as it is", looks.key)
        for key in changed:
            yield self._line(looks, key, old.get(key, "—"), new.get(key, "—"))

    @staticmethod
    def _line(looks: Looks, name: str, before: str, after: str) -> Text:
        line = Text(no_wrap=True)
        line.append(f"   {name:<{_WORD_CELLS}} ", looks.dim)
        line.append(f"{_short(before):<{_CELLS}} ", looks.ink)
        line.append(_short(after), looks.accent if before != after else looks.dim)
        return line


def _short(text: str) -> str:
    return text if len(text) <= _CELLS else f"{text[: _CELLS - 1]}…"
