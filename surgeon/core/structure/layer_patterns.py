"""Regular expressions and wildcards that mean layers by their numbers, as configs of quantisation have them.

They are held to what they mean: which modules of which layers they match, before and after. A pattern that means the
same after an edit stays; one with a single number is renumbered if it then means the same; any other is refused.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from surgeon.core.structure.layer_runs import LayerRun, Moves

_LEADS = ("re:", "+:", "-:")
"""What regular expressions begin with: compressed-tensors and Quark; GPTQModel's `dynamic`."""
_REGEX = re.compile(r"[\\()|^$+\[\]{}]")
_NUMBER = re.compile(r"(?<![\w\\\[{,-])(\d+)(?![\w\]},-])")
_DIGITS = re.compile(r"\\d|\d|\[[^\]]*-[^\]]*\]")


class Pattern:
    """One such text, apart into how it is led in and what is matched."""

    def __init__(self, text: str) -> None:
        """Take a text for which `is_pattern` holds."""
        self.text = text
        self.lead = next((lead for lead in _LEADS if text.startswith(lead)), "")
        self.body = text.removeprefix(self.lead)

    @property
    def numbered(self) -> bool:
        """Whether numbers matter to it."""
        return _DIGITS.search(self.body) is not None

    def number(self, container: str) -> re.Match[str] | None:
        """Return the number of the only layer it names: behind the container's name, or the only one there is."""
        found = list(_NUMBER.finditer(self.body))
        behind = [one for one in found if re.search(rf"{container}\\?\.$", self.body[: one.start()])]
        chosen = behind or found
        return chosen[0] if len(chosen) == 1 else None

    def with_number(self, match: re.Match[str], number: int) -> list[str]:
        """Return what may mean the same of another layer, the likeliest first."""
        before, after = self.lead + self.body[: match.start()] + str(number), self.body[match.end() :]
        # `layers.6*` means layer 60 too; `layers.6.*` does not.
        return [before + after, *([f"{before}.{after}"] if after.startswith("*") else [])]


def is_pattern(text: str) -> bool:
    """Whether a text is a regular expression or has wildcards."""
    return text.startswith(_LEADS) or _REGEX.search(text) is not None or "*" in text or "?" in text


@lru_cache(maxsize=512)
def compiled(text: str) -> re.Pattern[str] | None:
    """Return what matches names; None if it is no regular expression after all."""
    pattern = Pattern(text)
    glob = not pattern.lead and _REGEX.search(pattern.body.replace("[", "").replace("]", "")) is None
    try:
        return re.compile(fnmatch.translate(pattern.body) if glob else pattern.body)
    except re.error:
        return None


def matched(text: str, run: LayerRun, number: int, origin: int) -> frozenset[tuple[str, str]]:
    """Return which modules of the base's layer `origin` a text means where the layer has this number."""
    return _matched(text, run, number, run.modules(origin))


@lru_cache(maxsize=8192)
def _matched(text: str, run: LayerRun, number: int, modules: frozenset[str]) -> frozenset[tuple[str, str]]:
    expression = compiled(text)
    if expression is None:
        return frozenset()
    return frozenset(
        (prefix, module)
        for prefix in run.prefixes
        for module in modules
        if expression.match(f"{prefix}.{number}.{module}")
    )


def means(text: str, run: LayerRun) -> bool:
    """Whether a text matches anything of a run."""
    return any(matched(text, run, number, number) for number in range(len(run.layers)))


def renumbered(text: str, runs: Sequence[LayerRun], moves: Mapping[str, Moves]) -> list[str] | None:
    """Return the texts that mean in the edited model what one means in the base; None if there are none known.

    They have to mean it of every tower: an expression for layer 3 may be of the vision tower's too.
    """
    pairs = {run: list(_pairs(run, moves)) for run in runs}
    wanted = {run: [matched(text, run, origin, origin) for _, origin in pairs[run]] for run in runs}

    def mean(texts: Sequence[str]) -> bool:
        return all(
            frozenset(match for one in texts for match in matched(one, run, place, origin)) == before
            for run in runs
            for (place, origin), before in zip(pairs[run], wanted[run], strict=True)
        )

    return next((texts for texts in _candidates(text, runs, moves) if mean(texts)), None)


def _pairs(run: LayerRun, moves: Mapping[str, Moves]) -> Iterator[tuple[int, int]]:
    if run.name in moves:
        yield from moves[run.name].pairs(run.tail)
    else:
        yield from ((number, number) for number in range(len(run.layers)))


def _candidates(text: str, runs: Sequence[LayerRun], moves: Mapping[str, Moves]) -> Iterator[list[str]]:
    yield [text]
    pattern = Pattern(text)
    for run in runs:
        match = pattern.number(run.container) if run.name in moves else None
        if match is not None:
            forms = [pattern.with_number(match, place) for place in moves[run.name].places(int(match[1]))]
            for form in range(2):
                yield [choices[min(form, len(choices) - 1)] for choices in forms]
