"""A base that is not what it says is refused by every job before anything is measured, trained or written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from surgeon.backend.model import fit as fit_module
from surgeon.backend.model.fit import fit_of, require_fit
from surgeon.backend.model.loading import load_model
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.fit import Fit, kept_fit, renamed
from surgeon.errors import CheckpointError, SurgeonError
from tests.backend.broken_bases import FAULTS, broken
from tests.backend.tiny_models import load_plainly
from tests.backend.training_recipes import Step, pupil, recipe, training
from tests.jobs import keep_silent, never, perform

Ask = Callable[[Path, Path], tuple[str, dict[str, Any]]]
DATA = {"data": "text.jsonl", "sequences": 2, "length": 16}
PRUNE: Step = {"prune": {"layers": "1"}}


def _run(*steps: Step, **more: Any) -> Ask:
    return lambda base, out: ("run", {"recipe": recipe(base, steps), "out": str(out), **more})


def _score(name: str) -> Ask:
    return lambda base, out: ("score", {"recipe": recipe(base, []), "names": [name], **DATA})


ASKS: dict[str, Ask] = {
    "score of losses": _score("removal"),
    "score of hidden states": _score("block_influence"),
    "score of weights": _score("weight_norm"),
    "all scores": _score("all"),
    "ablate": lambda base, out: ("ablate", {"recipe": recipe(base, []), "roles": ["mlp.up"], **DATA}),
    "evaluate": _run({"evaluate": {"data": "text.jsonl", "rows": 2}}),
    "require": _run({"require": {"perplexity": {"data": "text.jsonl", "at_most": 1e9}}}),
    "train": _run(training(), verify=False),
    "learn": lambda base, out: ("learn", {"recipe": recipe(base, [training()])}),
    "prune": _run(PRUNE),
    "expand": _run({"expand": {"after": "0"}}),
    "a measured selection": _run({"prune": {"layers": "lowest 1 by weight_norm"}}, verify=False),
    "adapter alone": _run({"masked_lora": {"layers": "all", "rank": 2}}),
    "adapter alone, unproved": _run({"masked_lora": {"layers": "all", "rank": 2}}, verify=False),
    "verify": lambda base, out: ("verify", {"directory": str(base)}),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pupil(tmp_path_factory.mktemp("sound"), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def bases(sound: Path) -> dict[str, Path]:
    return {name: broken(sound, fault, sound.parent / name) for name, fault in FAULTS.items()}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("ask", ASKS)
def test_every_job_refuses_it_by_the_tensor_and_leaves_nothing(
    ask: str, fault: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """What is wrong is said to be wrong with the base, and how to repair it."""
    out = tmp_path / "out"
    name, args = ASKS[ask](bases[fault], out)
    with pytest.raises(SurgeonError) as caught:
        perform(name, {"root": str(bases[fault].parent), **args}, keep_silent, never)
    error = caught.value
    assert isinstance(error, CheckpointError)
    assert FAULTS[fault].first in error.what
    assert FAULTS[fault].hint in error.hint
    assert error.where == str(bases[fault])
    assert "report" not in str(error)
    assert not list(tmp_path.iterdir())


def test_a_model_is_judged_once(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever asks first; the next one reads it, without transformers too."""
    assert kept_fit(open_checkpoint(sound)) is None
    first = fit_of(open_checkpoint(sound))
    monkeypatch.setattr(fit_module, "_judged", None)
    assert fit_of(open_checkpoint(sound)) == first == kept_fit(open_checkpoint(sound))
    assert first.whole
    assert first.text.startswith("fits LlamaForCausalLM of transformers")


def test_another_version_of_transformers_judges_anew(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_of(open_checkpoint(sound))
    monkeypatch.setattr(transformers, "__version__", "9.9.9")
    assert fit_of(open_checkpoint(sound)).transformers == "9.9.9"


def test_a_changed_config_or_tensor_is_judged_anew(sound: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    """The place of a judgement goes by all that it is made from."""
    fits = {name: fit_of(open_checkpoint(place)) for name, place in bases.items()}
    assert not any(one.whole for one in fits.values())
    assert fit_of(open_checkpoint(sound)).whole


@pytest.mark.parametrize("fault", ["no head", "compiled", "another shape"])
def test_the_judgement_is_that_of_loading(fault: str, bases: dict[str, Path]) -> None:
    """Made from the meta device; the same with weights."""
    checkpoint = open_checkpoint(bases[fault])
    loaded = load_model(checkpoint, None, torch.device("cpu"), whole=False)
    assert loaded.fit == fit_of(checkpoint)


def test_a_sound_model_is_the_one_that_plain_transformers_loads(sound: Path) -> None:
    checkpoint = open_checkpoint(sound)
    assert require_fit(checkpoint).unexpected == ()
    ours, plain = load_model(checkpoint, None, torch.device("cpu")).model, load_plainly(sound)
    left, right = ours.state_dict(), plain.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_head_that_is_the_embedding_is_not_missed(tmp_path: Path) -> None:
    assert fit_of(open_checkpoint(pupil(tmp_path, tie_word_embeddings=True))).whole


@pytest.mark.parametrize(
    ("missing", "unexpected", "hint"),
    [
        (("model.a", "model.b"), ("base_model.model.model.a",), "without 'base_model.model.'"),
        (("model.a", "model.b"), ("a", "b"), "lack the prefix 'model.'"),
        (("model.layers.0.x.weight",), ("transformer.layers.0.x.weight",), "is model.layers.0.x.weight here"),
        (("model.layers.0.x.weight",), ("something.else",), ""),
    ],
)
def test_names_that_look_alike_are_a_hint(missing: tuple[str, ...], unexpected: tuple[str, ...], hint: str) -> None:
    found = renamed(missing, unexpected)
    assert (hint in found) if hint else not found


def test_the_check_job_says_it_in_a_sentence(sound: Path, bases: dict[str, Path]) -> None:
    assert perform("check", {"model": str(sound), "root": "."})["whole"] is True
    found = perform("check", {"model": str(bases["no head"]), "root": "."})
    assert found["whole"] is False
    assert re.match(r"does not fit LlamaForCausalLM of transformers [\d.]+: lacks lm_head\.weight", found["text"])
    assert list(found["fit"]["missing"]) == ["lm_head.weight"]


def test_written_unproved_what_is_known_of_it_is_told(bases: dict[str, Path], tmp_path: Path) -> None:
    """Files alone are edited: the fault stays, and is not hidden."""
    base = bases["no head"]
    fit_of(open_checkpoint(base))
    told: list[str] = []
    args = {"recipe": recipe(base, [PRUNE]), "out": str(tmp_path / "out"), "verify": False, "root": "."}
    perform("run", args, lambda kind, body: told.append(str(body.get("text"))))
    assert any("lacks lm_head.weight" in text for text in told)


def test_a_judgement_that_cannot_be_read_is_made_again(sound: Path) -> None:
    """A file of another program, or cut short."""
    from surgeon.core.checkpoint.fit import _place

    checkpoint = open_checkpoint(sound)
    fit = fit_of(checkpoint)
    place = _place(checkpoint)
    assert place is not None
    place.write_bytes(b'{"class_na')
    assert kept_fit(checkpoint) is None
    assert fit_of(checkpoint) == fit
    assert isinstance(kept_fit(checkpoint), Fit)
