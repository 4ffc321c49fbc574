"""The model card of an export: where it comes from, what was done, how to load it. The same recipe, the same card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from surgeon.core.checkpoint.base_path import is_relative
from surgeon.core.plan.plan import Plan
from surgeon.core.recipe.evaluation_metrics import EvaluationResult
from surgeon.core.recipe.recipe import Recipe, dump_recipe
from surgeon.core.scoring.score import Average

_HOME = "https://pypi.org/project/model-surgeon/"
_LICENCE = re.compile(r"^(license(?:_name|_link)?): *(.+)$", re.MULTILINE)


def model_card(plan: Plan, recipe: Recipe, results: Sequence[EvaluationResult] = ()) -> str:
    """Return the README.md of an export."""
    before = plan.structure.checkpoint
    base = recipe.base.model
    layers = ", ".join(
        f"{len(stack.layers)} → {plan.layer_counts[name]}" for name, stack in plan.structure.stacks.items()
    )
    lines = [
        "---",
        *_licence(before.path),
        *_base_line(base),
        f"library_name: {'peft' if plan.adapter_alone else 'transformers'}",
        "tags: [model-surgeon]",
        "---",
        "",
    ]
    lines += [
        f"# {Path(base).name}, operated", "",
        f"Made from `{base}` (fingerprint `{before.fingerprint}`) by [surgeon]({_HOME}).", "",
        "| | base | this model |", "|---|---:|---:|",
        f"| layers | {layers.replace(' → ', ' | ')} |",
        f"| parameters | {before.parameters:,} | {plan.parameters:,} |",
        f"| bytes | {before.nbytes:,} | {plan.nbytes:,} |", "",
    ]  # fmt: skip
    if recipe.base.trust_remote_code:
        lines += ["Code that the base brings was run while this was made, and is needed to load it.", ""]
    if plan.inserted:
        lines += ["Inserted layers: " + ", ".join(f"`{name}`" for name in plan.inserted) + ".", ""]
    lines += _measured(results)
    lines += ["## Recipe", "", "```yaml", dump_recipe(recipe).rstrip(), "```", ""]
    lines += ["`surgeon run recipe.yaml --out DIR` makes it again, byte for byte. Load it with plain transformers:", ""]
    return "\n".join([*lines, *_how_to_load(plan, trusted=recipe.base.trust_remote_code)])


def _measured(results: Sequence[EvaluationResult]) -> list[str]:
    if not results:
        return []
    rows = [
        f"| {one.step} | {one.name} | {one.data or 'built-in text'} | {figure} | {value.value:.4g}{_spread(value)} |"
        for one in results
        for figure, value in one.figures.items()
    ]
    header = ["| step | what | data | figure | value ± standard error |", "|---:|---|---|---|---:|"]
    return ["## Measured", "", *header, *rows, ""]


def _spread(value: Average) -> str:
    return "" if value.error is None else f" ± {value.error:.2g}"


def _licence(directory: Path) -> list[str]:
    readme = directory / "README.md"
    if not readme.is_file():
        return []
    text = readme.read_text(encoding="utf-8", errors="replace")
    head = text.split("---", 2)[1] if text.startswith("---") else ""
    return [f"{key}: {value}" for key, value in _LICENCE.findall(head)]


def _base_line(base: str) -> list[str]:
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not is_relative(base) and not Path(base).exists()
    return [f"base_model: {base}"] if on_hub else []


def _how_to_load(plan: Plan, *, trusted: bool) -> list[str]:
    call = f'AutoModelForCausalLM.from_pretrained("DIR"{", trust_remote_code=True" if trusted else ""})'
    code = ["from transformers import AutoModelForCausalLM", f"model = {call}"]
    if plan.adapter_alone:
        code.insert(0, "# With peft installed this loads the base and puts the adapter on it.")
    elif plan.adapters:
        code[0:0] = ["from peft import PeftModel"]
        code.append('model = PeftModel.from_pretrained(model, "DIR/adapter")')
    return ["```python", *code, "```", ""]
