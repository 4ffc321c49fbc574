"""Any sequence of operations leaves config and tensors in step, and undoing it leaves the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.plan.plan import Plan, PlannedTensor, compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import Recipe, recipe_from_builtins
from surgeon.errors import ArchitectureError, RecipeError
from surgeon.export.checkpoint_writer import export_checkpoint
from tests.architectures.families import FAMILIES, HandMade
from tests.jobs import job_context

_TIES = ("shared keys and values", "names and shapes of tensors")
_NAMES = [family.name for family in FAMILIES]


@pytest.fixture(scope="module", params=FAMILIES, ids=_NAMES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family: HandMade = request.param
    return family.write(tmp_path_factory.mktemp("families") / family.name)


def _steps(data: st.DataObject, draft: Draft, path: Path) -> tuple[Draft, list[dict[str, Any]]]:
    """Draw operations that the model at each step allows; what it refuses is drawn again without it."""
    steps: list[dict[str, Any]] = []
    for _ in range(data.draw(st.integers(1, 6))):
        stack = data.draw(st.sampled_from(sorted(draft.stacks)))
        count = len(draft.layers(stack))
        some = st.lists(st.integers(0, count - 1), min_size=1, max_size=3, unique=True)
        step = data.draw(
            st.one_of(
                some.map(lambda layers: {"prune": {"layers": layers}}),
                st.tuples(some, st.sampled_from(["copy", "mean", "duplicate"])).map(
                    lambda drawn: {"expand": {"after": drawn[0], "init": drawn[1]}}
                ),
                st.permutations(range(count)).map(lambda order: {"reorder": {"order": list(order)}}),
                some.map(lambda layers: {"freeze": {"layers": layers}}),
            )
        )
        step = {name: {**fields, "stack": stack} for name, fields in step.items()}
        try:
            after = fold(draft_of(draft.structure), _recipe([*steps, step], path).steps)
            compile_plan(after)
        except (ArchitectureError, RecipeError):
            continue
        draft, steps = after, [*steps, step]
    return draft, steps


def _recipe(steps: list[dict[str, Any]], path: Path) -> Recipe:
    return recipe_from_builtins({"version": 1, "base": {"model": str(path)}, "steps": steps})


def _zeros(tensor: PlannedTensor) -> bytes:
    return bytes(tensor.nbytes)


def _export(plan: Plan, recipe: Recipe, out: Path) -> Path:
    export_checkpoint(plan, recipe, out, job=job_context(), arithmetic=_zeros)
    return out


_SETTINGS = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


_UNDECLARED = ("layer_flavours", "intermediate_size")


def _tells(value: Any) -> bool:
    """Whether a setting says anything: a layer that no name mentions is not told from one where there are no names."""
    return bool(value != ((), None))


@_SETTINGS
@given(data=st.data())
def test_any_sequence_of_operations_keeps_config_and_tensors_in_step(
    data: st.DataObject, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is written reads back as the draft: as many layers, each built and described as the one it came from."""
    structure = read_structure(open_checkpoint(base))
    draft, steps = _steps(data, draft_of(structure), base)
    out = _export(compile_plan(draft), _recipe(steps, base), tmp_path_factory.mktemp("out") / "model")

    written = read_structure(open_checkpoint(out))
    for name, layers in draft.stacks.items():
        stack = written.stacks[name]
        assert len(stack.layers) == len(layers)
        assert len(stack.tail) == len(structure.stacks[name].tail)
        for position, layer in enumerate(layers):
            said = {key: value for key, value in layer.settings.items() if key not in _TIES and _tells(value)}
            if len(layers) == 1:  # an undeclared list of one entry is no longer known to be about layers
                said = {key: value for key, value in said.items() if key not in _UNDECLARED}
            assert {key: stack.settings[position].get(key) for key in said} == said
    assert set(written.outside) == set(structure.outside)
    for name, rule in structure.sliced.items():
        width = structure.stack_config(structure.stack())[rule.width_key]
        assert written.outside[name].shape[rule.axis] == width * len(draft.layers())


@_SETTINGS
@given(data=st.data())
def test_undoing_every_step_gives_the_base_byte_for_byte(
    data: st.DataObject, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Undo takes steps away; with none left the export holds the base's config and the base's tensors."""
    structure = read_structure(open_checkpoint(base))
    _, steps = _steps(data, draft_of(structure), base)
    undone = fold(draft_of(structure), _recipe(steps[:0], base).steps)
    out = _export(compile_plan(undone), _recipe([], base), tmp_path_factory.mktemp("out") / "model")

    assert open_checkpoint(out).config == structure.checkpoint.config
    assert (out / "model.safetensors").read_bytes() == _as_exported(base)


def _as_exported(base: Path) -> bytes:
    """Return the base's file with its header as an export spaces it; the tensors' bytes are untouched."""
    raw = (base / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].decode().replace(", ", ",").replace(": ", ":").rstrip()
    header += " " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header.encode() + raw[8 + size :]


@pytest.mark.parametrize("family", FAMILIES, ids=_NAMES)
def test_a_family_can_be_pruned_at_all(family: HandMade, tmp_path: Path) -> None:
    """Or the properties above would hold for nothing."""
    structure = read_structure(open_checkpoint(family.write(tmp_path / "base")))
    done = 0
    for layer in range(len(structure.stack().layers)):
        try:
            compile_plan(fold(draft_of(structure), _recipe([{"prune": {"layers": [layer]}}], tmp_path / "base").steps))
        except ArchitectureError:
            continue
        done += 1
    assert done
