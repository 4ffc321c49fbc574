"""Names and numbers of layers inside configs and files, such as the modules that `quantization_config` leaves alone.

Entries of lists and keys of mappings that name a layer go where the layers of their own stack go; other towers keep
theirs. Mappings keep their order, which may decide which key holds. What is keyed by the bare number of a layer goes
with it too. What cannot be told is refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import msgspec

from surgeon.core.structure.layer_patterns import Pattern, is_pattern, matched, means, renumbered
from surgeon.core.structure.layer_runs import LayerRun, Moves, run_of
from surgeon.errors import ArchitectureError

Path = tuple[str, ...]
_NOT_OF_LAYERS = frozenset(
    {"_name_or_path", "architectures", "auto_map", "model_type", "id2label", "label2id", "transformers_version"}
)
_TABLE_OF_LAYERS = re.compile(r"layer|block", re.IGNORECASE)
_LIST_OF_LAYERS = re.compile(r"(?:^|_)layers?(?:_|$)")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "depth", "model_type")
"""A part of a config that has one of them describes a model of its own."""


class NamedLayer(msgspec.Struct, frozen=True):
    """A layer that an entry names: its number, what stands before it and behind it."""

    run: LayerRun
    number: int
    before: str
    behind: str


class LayerNames(msgspec.Struct, frozen=True, dict=True):
    """The names of layers in one document.

    where: what the document is called in messages.   runs: all that is numbered in the checkpoint.
    config: whether it is the model's config, of which parts describe stacks, and others other models.
    told: ways to values that per-layer fields account for.
    """

    where: str
    runs: Sequence[LayerRun]
    config: bool = False
    told: Collection[Path] = ()

    def renamed(self, document: Any, moves: Mapping[str, Moves]) -> Any:
        """Return the document as it has to be after the layers of the stacks have gone where `moves` says.

        Raises:
            ArchitectureError: an entry cannot be told, or cannot say what it has to; it is named.
        """
        if not any(one.moved for one in moves.values()):
            return document
        return _Renaming(self, moves).value(document, (), None)

    def said_of_layers(self, document: Any, run: LayerRun) -> list[tuple[Any, ...]]:
        """Return what the document says of each layer of a run, whatever its number: for comparing layers."""
        found: list[list[tuple[Path, str, str]]] = [[] for _ in range(run.count)]
        for path, text, says, scope in self._texts(document, (), None):
            if is_pattern(text):
                for number in range(run.count) if Pattern(text).numbered else ():
                    found[number].append((path, text, repr(sorted(matched(text, run, number, number)))))
            elif (named := self.named(text, scope)) and named.run is run and named.number < run.count:
                found[named.number].append((path, f"{named.before}*{named.behind}", repr(says)))
        return [tuple(sorted(said)) for said in found]

    def numbers(self, document: Any) -> Iterator[tuple[str, NamedLayer]]:
        """Yield every entry that names a layer of a stack by its number, and the layer."""
        for path, text, _, scope in self._texts(document, (), None):
            named = None if is_pattern(text) else self.named(text, scope)
            if named is not None and named.run.name:
                yield f"{'.'.join(path)}: {text}", named

    def named(self, text: str, scope: LayerRun | None) -> NamedLayer | None:
        """Return the layer that a plain name means; None if it means none, or nobody can tell."""
        found = self.named_or_unclear(text, scope)
        return found if isinstance(found, NamedLayer) else None

    def named_or_unclear(self, text: str, scope: LayerRun | None) -> NamedLayer | str | None:
        """Return the layer that a plain name means, None if it means none, or its beginning if nobody can tell."""
        if not self.mentions(text):
            return None
        for expression in self._expressions:
            match = expression.fullmatch(text)
            if match is None:
                continue
            run = run_of(self.runs, match["head"], scope)
            if run is None:
                return match["head"]
            if isinstance(run, LayerRun):
                return NamedLayer(run, int(match["number"]), f"{match['head']}.", match["rest"])
        return None

    def mentions(self, text: str) -> bool:
        """Whether the word that stands before the numbers of a stack's layers occurs in a text."""
        return any(container in text for container in self._containers)

    @cached_property
    def _containers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.container for run in self.runs if run.name))

    @cached_property
    def _expressions(self) -> list[re.Pattern[str]]:
        ends = r"\.(?P<number>\d+)(?P<rest>(?:\..*)?)"
        return [re.compile(rf"(?P<head>(?:.*?[^A-Za-z0-9_])?{word}){ends}") for word in self._containers]

    def scope_of(self, path: Path, part: Any, scope: LayerRun | None) -> LayerRun | bool | None:
        """Return the run that a part of the config is about; False where it is about another model than the text's."""
        if not self.config or not path:
            return scope
        about = [run for run in self.runs if any(known[: len(path)] == path for known in run.paths)]
        if about:
            return about[0] if len(about) == 1 and path in about[0].paths else scope
        alone = isinstance(part, Mapping) and not part.keys().isdisjoint(_COUNTS)
        return False if alone else scope

    def _texts(
        self, value: Any, path: Path, scope: LayerRun | None
    ) -> Iterator[tuple[Path, str, Any, LayerRun | None]]:
        inner = self.scope_of(path, value, scope)
        if isinstance(inner, bool):
            return
        if isinstance(value, Mapping):
            for key, part in value.items():
                if key not in _NOT_OF_LAYERS:
                    yield path, str(key), part, inner
                    yield from self._texts(part, (*path, str(key)), inner)
        elif isinstance(value, list):
            for part in value:
                if isinstance(part, str):
                    yield path, part, None, inner
                else:
                    yield from self._texts(part, path, inner)


class _Renaming(msgspec.Struct, frozen=True):
    """One document on its way to the edited model."""

    names: LayerNames
    moves: Mapping[str, Moves]

    def value(self, value: Any, path: Path, scope: LayerRun | None) -> Any:
        inner = self.names.scope_of(path, value, scope)
        if isinstance(inner, bool) or path in self.names.told:
            return value
        if isinstance(value, Mapping):
            return self._mapping(value, path, inner)
        if isinstance(value, list):
            listed = self._by_layer(value, path, inner)
            return self._entries(value, path, inner) if listed is None else listed
        if isinstance(value, str):
            return self._only_text(value, path, inner)
        return value

    def _mapping(self, value: Mapping[str, Any], path: Path, scope: LayerRun | None) -> dict[str, Any]:
        table = self._table(value, path, scope)
        if table is not None:
            return table
        found: dict[str, Any] = {}
        for key, part in value.items():
            if key in _NOT_OF_LAYERS:
                found[key] = part
                continue
            says = self.value(part, (*path, str(key)), scope)
            for number, name in enumerate(self._texts(str(key), path, scope)):
                found[name] = copy.deepcopy(says) if number else says
        return found

    def _table(self, value: Mapping[str, Any], path: Path, scope: LayerRun | None) -> dict[str, Any] | None:
        """Return a mapping keyed by numbers of layers, renumbered; None if it is not keyed so."""
        if not value or not all(isinstance(key, str) and key.isdecimal() for key in value):
            return None
        run = self._meant(scope)
        numbers = {int(key) for key in value}
        counts = {one.count for one in self.moves.values() if one.count > 1}
        called = any(map(_TABLE_OF_LAYERS.search, path if self.names.config else (self.names.where, *path)))
        whole = any(numbers == set(range(count)) for count in counts)
        if not called and not whole:
            return None
        if not called and not self.names.config:
            raise self._refusal(
                path, f"is keyed by {len(value)} numbers, as many as there are layers, and may mean them"
            )
        if run is None:
            raise self._refusal(path, "is keyed by numbers of layers, and there are several stacks that it may mean")
        moves = self.moves[run.name]
        found = {place: value[key] for key in value for place in moves.places(int(key))}
        return {
            str(place): self.value(copy.deepcopy(found[place]), (*path, str(place)), scope) for place in sorted(found)
        }

    def _meant(self, scope: LayerRun | None) -> LayerRun | None:
        """Return the stack that bare numbers mean; None where there are several."""
        stacks = [run for run in self.names.runs if run.name in self.moves]
        return scope or (stacks[0] if len(stacks) == 1 else None)

    def _by_layer(self, value: list[Any], path: Path, scope: LayerRun | None) -> list[Any] | None:
        """Return a list of what is said of each layer, or None if it is none; refuse one of layers' numbers."""
        run = self._meant(scope)
        called = path[-1] if path else self.names.where.removesuffix(".json")
        if not value or run is None or not _LIST_OF_LAYERS.search(called):
            return None
        moves = self.moves[run.name]
        texts = [part for part in value if isinstance(part, str)]
        if any(is_pattern(text) or self.names.named_or_unclear(text, scope) for text in texts):
            return None
        numbers = [part for part in value if isinstance(part, int) and not isinstance(part, bool)]
        rising = all(first < second for first, second in pairwise(numbers))
        quantised = not self.names.config or any(part.startswith(("quantization", "compression")) for part in path)
        if quantised and len(numbers) == len(value) and rising and numbers[-1] < moves.count:
            raise self._refusal(path, f"seems to list layers by their bare numbers, {numbers}")
        if len(value) == moves.count > 1:
            return [copy.deepcopy(value[origin]) for origin in moves.origins]
        return None

    def _entries(self, value: Sequence[Any], path: Path, scope: LayerRun | None) -> list[Any]:
        """Return the entries of a list, those that name layers behind the others."""
        others: list[Any] = []
        layers: list[str] = []
        for part in value:
            texts = self._texts(part, path, scope) if isinstance(part, str) else None
            if texts is None:
                others.append(self.value(part, path, scope))
            elif texts != [part] or self._is_moved(part, scope):
                layers += texts
            else:
                others.append(part)
        return [*others, *layers]

    def _is_moved(self, text: str, scope: LayerRun | None) -> bool:
        named = None if is_pattern(text) else self.names.named(text, scope)
        return named is not None and named.run.name in self.moves

    def _only_text(self, text: str, path: Path, scope: LayerRun | None) -> str:
        if not self.names.mentions(text):
            return text
        found = self._texts(text, path, scope)
        if len(found) != 1:
            raise self._refusal(path, f"names {text!r}, of which there would be {len(found)}")
        return found[0]

    def _texts(self, text: str, path: Path, scope: LayerRun | None) -> list[str]:
        if is_pattern(text):
            return self._patterns(text, path)
        named = self.names.named_or_unclear(text, scope)
        if isinstance(named, str):
            raise self._refusal(path, f"names {text!r}, and it cannot be told whether {named!r} are layers that moved")
        if named is None or named.run.name not in self.moves:
            return [text]
        places = self.moves[named.run.name].places(named.number)
        return [f"{named.before}{place}{named.behind}" for place in places]

    def _patterns(self, text: str, path: Path) -> list[str]:
        if not Pattern(text).numbered:
            return [text]
        if any(means(text, run) for run in self.names.runs):
            found = renumbered(text, self.names.runs, self.moves)
        else:
            moved = [run for run in self.names.runs if run.name in self.moves and self.moves[run.name].moved]
            new = [self._of_nothing(text, run, self.moves[run.name]) for run in moved]
            found = new[0] if all(one == new[0] for one in new) else None
        if found is None:
            raise self._refusal(path, f"names layers by a pattern, '{text}', which cannot be renumbered")
        return found

    def _of_nothing(self, text: str, run: LayerRun, moves: Moves) -> list[str] | None:
        """Renumber a pattern of what is not there: of modules, or of layers behind the last, that were left out."""
        if re.search(rf"{run.container}\\?\.[\[(\\]?\d", text) is None:
            return [text]
        pattern = Pattern(text)
        match = pattern.number(run.container)
        if match is None:
            return None
        head = pattern.body[: match.start()].replace("\\.", ".").rstrip(".")
        if int(match[1]) < run.count and run_of(self.names.runs, head, None) is not run:
            return None
        return [pattern.with_number(match, place)[0] for place in moves.places(int(match[1]))]

    def _refusal(self, path: Path, what: str) -> ArchitectureError:
        field = ".".join(path)
        where = f"config field {field}" if self.names.config else ", ".join(filter(None, (self.names.where, field)))
        return ArchitectureError(
            what,
            where=where,
            allowed="entries that name one layer each by its full name, or all of them",
            hint="write them out, or leave them out, in a copy of the base",
        )
