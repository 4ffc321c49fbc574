"""mergekit's YAML: slices of layers, passed through."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from surgeon.core.interchange.config_format import (
    ConfigFormat,
    ExportedConfig,
    ExportedModel,
    ImportedConfig,
    Plain,
    refuse_keys,
)
from surgeon.core.interchange.layer_sequence import Place, sequence_steps
from surgeon.core.interchange.trainable_parameters import parameters_of
from surgeon.core.plan.draft import Draft, Grafted, Identity, Layer, Original, base_tensors
from surgeon.core.recipe.recipe import step_to_builtins
from surgeon.core.structure.structure import Stack
from surgeon.errors import RecipeError

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_ADVICE = "surgeon moves layers as they are: merge with mergekit, and open the result"


class Mergekit(ConfigFormat):
    """Slices of one model or of several with `merge_method: passthrough`; `scale: 0` on what a layer writes with."""

    name = "mergekit"
    summary = "mergekit: slices, passed through, of one model or of several"
    names_base = True

    @staticmethod
    def recognises(plain: Plain) -> bool:
        """Whether it is a merge config."""
        return "merge_method" in plain

    @staticmethod
    def base(plain: Plain) -> str | None:
        """Return the model of the first slice: mergekit takes the embedding from there."""
        _refuse_other_methods(plain)
        return _model(_source(_slices(plain)[0], "slices[0]"), "slices[0]")

    @staticmethod
    def read(plain: Plain, draft: Draft) -> ImportedConfig:
        """Return the steps that put the slices together."""
        _refuse_other_methods(plain)
        _refuse_other_dtype(plain, draft)
        base = Mergekit.base(plain)
        slices = _slices(plain)
        last = _model(_source(slices[-1], "the last slice"), "the last slice")
        if last != base:
            raise RecipeError(
                f"is of {last}, and the first of {base}: mergekit takes the norm and the head from there, the "
                "embedding from here", where="the last slice", allowed="the same model first and last",
            )  # fmt: skip
        named = plain.get("base_model")
        if named is not None and _model({"model": named}, "base_model") != base:
            raise RecipeError(
                f"is {named}, and the first slice of {base}: config and tokenizer would be another model's",
                where="base_model", allowed=str(base),
            )  # fmt: skip
        _refuse_tokenizer(plain, str(base))
        wanted = [place for at, part in enumerate(slices) for place in _places(plain, part, at, str(base), draft)]
        return ImportedConfig(tuple(sequence_steps(wanted, len(draft.layers()), {})))

    @staticmethod
    def write(model: ExportedModel) -> ExportedConfig:
        """Return the structural part of a recipe as slices."""
        draft = model.draft
        if len(draft.stacks) > 1 or draft.learned or draft.untied is not None:
            raise RecipeError(
                "changes more than the order of layers", allowed="prune, reorder, graft, and expand with copy or "
                "duplicate", hint="name the exported model in mergekit's file instead",
            )  # fmt: skip
        lines = ["merge_method: passthrough", "slices:"]
        for source, first, end, silenced in _runs(model):
            lines += ["  - sources:", f"      - model: {json.dumps(source)}", f"        layer_range: [{first}, {end}]"]
            if silenced:
                lines.append("        parameters:\n          scale:")
                lines += [f"            - {{filter: {json.dumps(name)}, value: 0.0}}" for name in silenced]
                lines.append("            - {value: 1.0}")
        notes = []
        if draft.adapted or any(layer.frozen for layer in draft.layers()):
            notes.append("left out: what is frozen, and adapters, of which mergekit knows nothing")
        return ExportedConfig("\n".join(lines) + "\n", tuple(notes))


def _refuse_other_methods(plain: Plain) -> None:
    if plain["merge_method"] != "passthrough":
        raise RecipeError(
            f"is {plain['merge_method']}, which calculates new weights of several models'", where="merge_method",
            allowed="passthrough", hint=_ADVICE,
        )  # fmt: skip
    refuse_keys(plain, {"chat_template": "changes the tokenizer"}, "leave it out")


def _refuse_other_dtype(plain: Plain, draft: Draft) -> None:
    stored = {_DTYPES.get(one.dtype, one.dtype) for one in draft.structure.checkpoint.tensors.values()}
    for key in ("dtype", "out_dtype"):
        if plain.get(key) is not None and stored != {plain[key]}:
            raise RecipeError(
                f"is {plain[key]}, and the weights are stored in {', '.join(sorted(stored))}", where=key,
                allowed="the dtype of the weights, which surgeon does not change", hint="leave it out",
            )  # fmt: skip


def _refuse_tokenizer(plain: Plain, base: str) -> None:
    tokenizer = plain.get("tokenizer")
    settings = tokenizer if isinstance(tokenizer, Mapping) else {}
    refuse_keys(settings, {"tokens": "adds tokens", "pad_to_multiple_of": "pads the embedding"}, "leave it out")
    source = settings.get("source", plain.get("tokenizer_source"))
    if source not in (None, "base", base):
        raise RecipeError(
            f"is {source!r}", where="tokenizer_source", allowed="base: the first slice's model", hint="leave it out"
        )


def _slices(plain: Plain) -> Sequence[Plain]:
    """Return the slices, wherever they stand.

    Raises:
        RecipeError: there are none, or of several modules.
    """
    modules = plain.get("modules")
    if isinstance(modules, Mapping):
        if len(modules) != 1:
            raise RecipeError(f"are {', '.join(modules)}", where="modules", allowed="one of them")
        plain = next(iter(modules.values()))
    slices = plain.get("slices")
    if not isinstance(slices, list) or not slices:
        raise RecipeError(
            "is missing", where="slices", allowed="a list of slices", hint="whole models, passed through, need no step"
        )
    return slices


def _source(part: Plain, where: str) -> Plain:
    """Return the one source of a slice."""
    sources = part.get("sources") if isinstance(part, Mapping) else None
    if not isinstance(sources, list) or not sources or not isinstance(sources[0], Mapping):
        raise RecipeError("has no sources", where=where, allowed="sources: [{model, layer_range}]")
    if len(sources) > 1:
        raise RecipeError("has several sources", where=f"{where}.sources", allowed="one, passed through", hint=_ADVICE)
    return sources[0]


def _model(source: Plain, where: str) -> str:
    """Return the name of a source's model.

    Raises:
        RecipeError: it is more than a name: an adapter or a revision goes with it.
    """
    model = source.get("model")
    if isinstance(model, Mapping):
        refuse_keys(model, {"lora": "adds an adapter", "override_architecture": "names another architecture"}, _ADVICE)
        model = model.get("model", model)
    if isinstance(model, Mapping):
        refuse_keys(model, {"revision": "names a revision"}, "download it, and name its directory")
        model = model.get("path")
    if not isinstance(model, str) or not model:
        raise RecipeError(f"is {model!r}", where=f"{where}.model", allowed="a directory or a hub id")
    if "+" in model or "@" in model:
        what = "an adapter" if "+" in model else "a revision"
        raise RecipeError(f"{model!r} names {what} too", where=f"{where}.model", allowed="a model alone", hint=_ADVICE)
    return model


def _places(plain: Plain, part: Plain, at: int, base: str, draft: Draft) -> Iterator[Place]:
    where = f"slices[{at}]"
    source = _source(part, where)
    model = _model(source, where)
    span = source.get("layer_range")
    if not (isinstance(span, list) and len(span) == 2 and all(type(one) is int for one in span)) or span[0] >= span[1]:
        raise RecipeError(f"is {span}", where=f"{where}.layer_range", allowed="[first, end], end not included")
    count = len(draft.layers())
    if span[0] < 0 or (model == base and span[1] > count):
        raise RecipeError(f"is {span}", where=f"{where}.layer_range", allowed=f"[0, {count}] or within")
    modules = plain.get("modules")
    module = next(iter(modules.values())) if isinstance(modules, Mapping) else {}
    holders = [one.get("parameters") or {} for one in (source, part, module, plain)]
    for key in (key for one in holders for key in one if key != "scale"):
        raise RecipeError("is no parameter of passthrough", where=f"{where}.parameters.{key}", allowed="scale")
    scale = next((one["scale"] for one in holders if "scale" in one), None)
    for layer in range(*span):
        name = None if model == base else model
        yield Place(name, layer, _silenced(scale, draft, layer, name, where))


def _silenced(scale: Any, draft: Draft, layer: int, model: str | None, where: str) -> bool:
    """Whether a scale makes a layer an identity; False where it changes nothing.

    Raises:
        RecipeError: it does something else.
    """
    rules = scale if isinstance(scale, list) else [scale]
    if scale is None or all(_factor(rule) == 1 for rule in rules):
        return False
    own = [one for one in parameters_of(draft) if one.role and one.position == layer]
    stack = draft.structure.stack()
    silent = draft.structure.silence(stack.layers[layer]) if model is None else ()
    writes = {one.role for one in silent if one.value == 0}
    scaled = {one.name: next((_factor(rule) for rule in rules if _fits(rule, one.name)), 1) for one in own}
    zero = {one.name for one in own if one.role in writes}
    if not zero or any(factor != (0 if name in zero else 1) for name, factor in scaled.items()):
        raise RecipeError(
            f"scales weights of layer {layer} by what makes it no identity", where=f"{where}.parameters.scale",
            allowed="0 for all matrices that write the layer's output, and 1 for the others", hint=_ADVICE,
        )  # fmt: skip
    return True


def _factor(rule: Any) -> Any:
    return rule.get("value") if isinstance(rule, Mapping) else rule


def _fits(rule: Any, name: str) -> bool:
    wanted = rule.get("filter") if isinstance(rule, Mapping) else None
    return wanted in (None, "*") or str(wanted) in name


def _runs(model: ExportedModel) -> Iterator[tuple[str, int, int, tuple[str, ...]]]:
    """Yield model, first layer, end and what is silenced of each run of layers."""
    draft = model.draft
    stack = draft.structure.stack()
    parts = [_part(model, stack, layer) for layer in draft.layers()]
    at = 0
    while at < len(parts):
        source, first, silenced = parts[at]
        end = at + 1
        while end < len(parts) and parts[end] == (source, first + end - at, silenced):
            end += 1
        yield source, first, first + end - at, silenced
        at = end


def _part(model: ExportedModel, stack: Stack, layer: Layer) -> tuple[str, int, tuple[str, ...]]:
    source = layer.source
    if isinstance(source, Original):
        return model.recipe.base.model, source.index, ()
    if isinstance(source, Grafted):
        grafts = (step_to_builtins(step).get("graft") or {} for step in model.recipe.steps)
        return next(one["from"] for one in grafts if one.get("fingerprint") == source.donor), source.index, ()
    if isinstance(source, Identity) and isinstance(source.of, Original):
        structure, tensors = model.draft.structure, base_tensors(source, stack)
        silent = structure.silence(tensors)
        if all(one.value == 0 for one in silent):
            roles = {one.role for one in silent}
            names = tuple(suffix for suffix, role in structure.roles_of(tensors.layout).items() if role in roles)
            return model.recipe.base.model, source.of.index, names
    raise RecipeError(
        "has weights that were calculated or trained", where=f"layer {layer.key}",
        allowed="layers as they are stored, or identities of them", hint="name the exported model in mergekit's file",
    )  # fmt: skip
