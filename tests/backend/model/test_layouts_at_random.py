"""However a directory of weights looks: what is computed with is what transformers loads, or it is refused."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from surgeon.backend.model.loading import load_model
from surgeon.backend.model.tensors import TensorReader
from surgeon.core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from surgeon.errors import SurgeonError
from tests.backend.layouts import LAYOUTS, Layout, write_layout
from tests.backend.tiny_models import save_tiny
from tests.backend.training_recipes import recipe
from tests.jobs import perform

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "vocab_size": 16, "num_attention_heads": 2
}  # fmt: skip
EXPORTED = 4
"""One draw in so many is exported too."""
_QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("sound") / "model", **SMALL, tie_word_embeddings=False)


@settings(max_examples=250, **_QUIET)  # type: ignore[arg-type]
@given(layout=LAYOUTS)
def test_a_layout_is_loaded_as_transformers_loads_it_or_refused(layout: Layout, sound: Path) -> None:
    outcome_of(layout, sound)


@pytest.mark.slow
def test_thousands_of_layouts(sound: Path) -> None:
    """Neither is always what happens."""
    seen: Counter[str] = Counter()

    @settings(max_examples=3000, database=None, **_QUIET)  # type: ignore[arg-type]
    @given(layout=LAYOUTS)
    def tried(layout: Layout) -> None:
        seen[outcome_of(layout, sound)] += 1

    tried()
    print(dict(seen))
    assert sum(seen.values()) >= 3000
    assert min(seen["refused"], seen["equal"], seen["exported"]) > 100, seen


def outcome_of(layout: Layout, sound: Path) -> str:
    """Write a layout, open, load and sometimes export it; compare all that with plain transformers."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "base"
        write_layout(layout, sound, load_file(sound / "model.safetensors"), place)
        try:
            checkpoint = open_checkpoint(place)
            ours: Any = load_model(checkpoint, None, CPU).model
        except SurgeonError as error:
            assert "report" not in str(error)
            return "refused"
        plain, report = _plainly(place)
        assert not report["missing_keys"]
        assert not report["mismatched_keys"]
        state = plain.state_dict()
        assert _same(ours.state_dict(), state)
        assert _stored_as(checkpoint, state)
        if layout.seed % EXPORTED:
            return "equal"
        return _exported(place, Path(directory) / "out", state)


def _plainly(place: Path) -> tuple[Any, dict[str, Any]]:
    auto: Any = AutoModelForCausalLM
    model, report = auto.from_pretrained(
        place, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
    )
    return model, report


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(_bits(left[name], right[name]) for name in left)


def _bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left.float(), right.float())


def _stored_as(checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> bool:
    """Whether the tensors that headers tell of are those that were loaded, where they are not dequantised first."""
    reader = TensorReader()
    try:
        stored = {
            name: one for name, one in checkpoint.tensors.items() if f"{name}_scale_inv" not in checkpoint.tensors
        }
        # transformers takes off such a prefix where all have it.
        both = ({name.removeprefix(prefix): one for name, one in stored.items()} for prefix in ("", "model."))
        named = next(filter(None, ({name: one for name, one in part.items() if name in state} for part in both)), {})
        assert named
        return all(_bits(reader.read(one).to(state[name].dtype), state[name]) for name, one in named.items())
    finally:
        reader.close()


def _exported(base: Path, out: Path, state: dict[str, torch.Tensor]) -> str:
    """Take the middle one of three layers away on disk; what is left is what was."""
    try:
        perform(
            "run", {"recipe": recipe(base, [{"prune": {"layers": "1"}}]), "out": out, "verify": False, "root": base}
        )
    except SurgeonError as error:
        assert "report" not in str(error)
        return "not exported"
    model, report = _plainly(out)
    assert not report["missing_keys"]
    kept = {name.replace("layers.2.", "layers.1."): one for name, one in state.items() if "layers.1." not in name}
    assert _same(model.state_dict(), kept)
    return "exported"
