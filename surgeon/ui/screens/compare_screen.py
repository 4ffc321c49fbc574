"""The current draft beside the base: sizes, layers and config, computed from headers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.evaluation_metrics import EvaluationResult
from surgeon.session import Session
from surgeon.ui.screens.text_screen import TextScreen
from surgeon.ui.state.comparison import draft_sizes, flatten_config
from surgeon.ui.state.step_results import average_text
from surgeon.ui.theme import ThemeStyles

_NAME_CELLS, _VALUE_CELLS = 24, 22


class CompareScreen(TextScreen):
    """Two columns: the base, and the draft after the applied steps. Differences are highlighted."""

    heading = "compared with the base"

    def __init__(self, session: Session, results: Sequence[EvaluationResult] = ()) -> None:
        super().__init__()
        self._session, self._results = session, results

    def lines(self, styles: ThemeStyles) -> Iterator[Text]:
        """Yield the sizes, then the config fields that differ."""
        session = self._session
        base = session.draft_at(0)
        before, after = draft_sizes(base, compile_plan(base)), draft_sizes(session.draft, session.plan)
        yield self._line(styles, "", "base", f"after {session.position} steps")
        for name in before:
            yield self._line(styles, name, before[name], after[name])
        yield Text()
        yield from self._measured(styles)
        old, new = flatten_config(session.checkpoint.config), flatten_config(session.plan.config)
        changed = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
        yield Text(" config.json" if changed else " config.json stays as it is", styles.key)
        for key in changed:
            yield self._line(styles, key, old.get(key, "—"), new.get(key, "—"))

    def _measured(self, styles: ThemeStyles) -> Iterator[Text]:
        """Yield the figures of the evaluations at the end of the recipe."""
        yield Text(" measured" if self._results else " nothing is measured after the last edit: m measures", styles.key)
        for result in self._results:
            for name, average in result.figures.items():
                base = result.base.get(name)
                before = "—" if base is None else average_text(base)
                yield self._line(styles, f"{name}{f' on {result.data}' if result.data else ''}", before,
                                 average_text(average))  # fmt: skip
        yield Text()

    @staticmethod
    def _line(styles: ThemeStyles, name: str, before: str, after: str) -> Text:
        line = Text(no_wrap=True)
        line.append(f"   {name:<{_NAME_CELLS}} ", styles.dim)
        line.append(f"{_truncated(before):<{_VALUE_CELLS}} ", styles.foreground)
        line.append(_truncated(after), styles.accent if before != after else styles.dim)
        return line


def _truncated(text: str) -> str:
    return text if len(text) <= _VALUE_CELLS else f"{text[: _VALUE_CELLS - 1]}…"
