"""The ila score: through the measuring engine, the cache, recipes; ranks where nothing was trained."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.backend.scoring.learned_scores import score_of_matrices
from surgeon.backend.scoring.score_runner import measure
from surgeon.core.checkpoint.model_location import cache_directory
from surgeon.core.scoring.gate_ranking import rank_values
from surgeon.core.scoring.ranking_agreement import chance_jaccard, jaccard, top
from surgeon.core.scoring.requests import requested_scores
from surgeon.core.scoring.score_kinds import LearnedValues, score_kinds
from surgeon.core.selection.ranking import extreme_layers
from surgeon.errors import Cancelled, DataError, ScoreError, SelectionError
from surgeon.scores.ila import Ila
from tests.backend.tiny_models import LAYERS
from tests.export.replaying import run
from tests.jobs import job_context
from tests.scores.sample_models import few, open_draft, patient, scores

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

QUICK = "ila(rank=2,steps=3,mask_steps=4,learning_rate=0.01,batch_size=3,max_length=48)"


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Return a file of questions and answers."""
    rows = [{"prompt": f"what is {a}+{b}?", "response": f"it is {a + b}"} for a in range(4) for b in range(5)]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize(("family", "matrices"), [("llama", 7), ("phi3", 4), ("gpt2", 4), ("mixtral", 4)])
def test_every_matrix_is_ranked_and_a_layer_is_their_mean(
    family: str, matrices: int, tmp_path: Path, data: str
) -> None:
    """Fused projections count as one matrix; experts are left out, and the notes say so."""
    score = scores(patient(family, tmp_path / "base"), QUICK, data=data)["ila"]
    assert list(score.values) == list(score.matrices) == [str(layer) for layer in range(LAYERS)]
    for key, row in score.matrices.items():
        assert len(row) == matrices
        assert score.values[key] == pytest.approx(sum(row.values()) / matrices)
    every = [value for row in score.matrices.values() for value in row.values()]
    assert len(set(every)) > len(every) / 2
    assert all(3.9 < value < 4.1 for value in every)
    assert len(score.details["mask_losses"]) == 4
    assert any("experts" in note for note in score.notes) == (family == "mixtral")


def test_both_stages_tell_how_far_they_are_and_rows_come_at_the_end(tmp_path: Path, data: str) -> None:
    """Progress of the LoRA, of the masks, then layer by layer."""
    heard: list[tuple[str, Any]] = []
    base = patient("llama", tmp_path / "base")
    scores(base, QUICK, data=data, emit=lambda kind, body: heard.append((kind, body)))
    told = [body["what"] if kind == "progress" else body["layer"] for kind, body in heard if kind != "log"]
    training = [what for what in told if str(what).startswith("ila: ")]
    assert training == ["ila: train"] * 3 + ["ila: learn_masks"] * 4
    assert told[len(training) :] == [str(layer) for layer in range(LAYERS)]


def test_nothing_is_trained_twice(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the score nor, with other mask settings, the LoRA under it."""
    from surgeon.backend.training import learning_steps

    base = patient("llama", tmp_path / "base")
    begun: list[str] = []
    carry_out = learning_steps.carry_out

    def noting(order: Any, state: Path) -> Any:
        begun.append(order.step.name)
        return carry_out(order, state)

    monkeypatch.setattr(learning_steps, "carry_out", noting)
    first = scores(base, QUICK, data=data)["ila"]
    assert begun == ["train", "learn_masks"]
    assert scores(base, QUICK, data=data, sequences=3, length=8)["ila"] == first
    assert begun == ["train", "learn_masks"]
    scores(base, QUICK.replace("mask_steps=4", "mask_steps=5"), data=data)
    assert begun == ["train", "learn_masks", "learn_masks"]
    assert scores(base, QUICK, data=data, seed=1)["ila"].matrices != first.matrices


def test_what_to_know_before_trusting_it_is_told_each_time(tmp_path: Path, data: str) -> None:
    """Also where the score comes from the cache."""
    base = patient("llama", tmp_path / "base")
    for _ in range(2):
        heard: list[str] = []
        scores(base, QUICK, data=data, emit=lambda kind, body, told=heard: told.append(str(body.get("text"))))
        assert "ila: stage 1 ended after 3 steps and was not stable to 0.01 nats" in heard


@pytest.mark.parametrize("stage", ["train", "learn_masks"])
def test_a_score_that_was_stopped_goes_on_and_ends_with_the_same_numbers(stage: str, tmp_path: Path, data: str) -> None:
    """After the second step of either stage; what was done is not done again."""
    base, heard = patient("llama", tmp_path / "base"), list[str]()

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "progress":
            heard.append(body["what"])

    with pytest.raises(Cancelled):
        scores(base, QUICK, data=data, emit=emit, cancelled=lambda: heard.count(f"ila: {stage}") >= 2)
    resumed = scores(base, QUICK, data=data, emit=emit)["ila"]
    assert [heard.count(f"ila: {name}") for name in ("train", "learn_masks")] == [3, 4]
    shutil.rmtree(cache_directory())
    assert scores(base, QUICK, data=data)["ila"] == resumed


def test_recipes_choose_matrices_by_it(tmp_path: Path, data: str) -> None:
    """Adapters on the highest, a freeze of the lowest: what they resolve to is in the score's order."""
    base = patient("llama", tmp_path / "base")
    matrices = scores(base, QUICK, data=data)["ila"].matrices
    ranked = sorted((value, f"{key}.{name}") for key, row in matrices.items() for name, value in row.items())
    roles = {"self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key",
             "self_attn.v_proj": "attention.value", "self_attn.o_proj": "attention.output",
             "mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down"}  # fmt: skip

    def spots(part: list[tuple[float, str]]) -> set[str]:
        split = (name.removesuffix(".weight").partition(".") for _, name in part)
        return {f"{key}.{roles[suffix]}" for key, _, suffix in split}

    def by(order: str, share: str) -> dict[str, Any]:
        return {"matrices": {order: share, "by": QUICK, "data": data}}

    steps = [
        {"freeze": by("lowest", "25%")},
        {"masked_lora": by("highest", "30%")},
        {"drop_adapters": by("lowest", "80%")},
    ]
    done = run(base, tmp_path / "out", *steps)
    resolved = [set(step["resolved"]["matrices"]) for step in done["recipe"]["steps"]]
    assert resolved == [
        spots(ranked[: round(0.25 * 42)]),
        spots(ranked[-round(0.3 * 42) :]),
        spots(ranked[: round(0.8 * 42)]),
    ]
    targets = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) == 42 - round(0.8 * 42)


def test_it_is_learned_only_when_it_is_named(tmp_path: Path) -> None:
    """`all` measures; it does not train, and reads no adapters."""
    assert not {"ila", "gate"} & {kind.name for kind in requested_scores(["all"])}
    named = [name for name, kind in score_kinds().items() if kind.of_adapters or kind.needs == "learning"]
    assert {"ila", "gate"} < set(named)
    assert {kind.name for kind in requested_scores(["all", *named])} == set(score_kinds())


def test_text_without_answers_is_refused_or_read_as_text(tmp_path: Path) -> None:
    """The built-in text has none; `objective=lm` learns from every token."""
    base = patient("llama", tmp_path / "base")
    with pytest.raises(DataError, match="has no answer"):
        scores(base, QUICK)
    quick = QUICK.replace("ila(", "ila(objective=lm,")
    assert len(scores(base, quick)["ila"].values) == LAYERS


@given(
    st.dictionaries(st.text(max_size=5), st.tuples(st.floats(-20, 20), st.booleans()), min_size=1), st.integers(0, 9)
)
def test_untrained_matrices_rank_below_all_others_and_apart(gates: dict[str, tuple[float, bool]], seed: int) -> None:
    """Whoever was trained keeps its s; the rest are lower, all different, and the same for the same seed."""
    if not any(trained for _, trained in gates.values()):
        with pytest.raises(ScoreError, match="no matrix was trained"):
            rank_values(gates, seed, "ila")
        return
    found = rank_values(gates, seed, "ila")
    assert found == rank_values(dict(reversed(gates.items())), seed, "ila")
    known = [s for s, trained in gates.values() if trained]
    lower = [found[name] for name, (_, trained) in gates.items() if not trained]
    assert all(found[name] == s for name, (s, trained) in gates.items() if trained)
    assert len(set(lower)) == len(lower)
    assert all(value < min(known) for value in lower)
    assert all(map(math.isfinite, found.values()))


def test_the_lot_favours_no_depth() -> None:
    """Among many untrained matrices, earlier and later layers come out in both orders."""
    gates = {f"model.layers/{at}/mlp.up_proj": (4.0, at == 0) for at in range(200)}
    order = sorted(gates, key=rank_values(gates, 0, "ila").__getitem__)
    places = [order.index(f"model.layers/{at}/mlp.up_proj") for at in range(1, 200)]
    first, last = sum(places[:99]) / 99, sum(places[-99:]) / 99
    # The mean of 99 of 199 places has a standard deviation of about 4.1.
    assert abs(first - last) < 35
    assert order != sorted(gates, key=rank_values(gates, 1, "ila").__getitem__)


def test_the_lot_does_not_make_two_data_sets_agree() -> None:
    """With the same seed, but other gates learned, those that were not trained come out in another order."""
    names = [f"model.layers/{at}/mlp.up_proj" for at in range(2000)]
    tops = []
    for s in (4.0, 4.01):
        found = rank_values({name: (s, at == 0) for at, name in enumerate(names)}, 0, "ila")
        tops.append(top(found, 0.3))
    # Two random sets of 600 of 2000: the standard deviation of their overlap is about 0.01.
    assert jaccard(*tops) == pytest.approx(chance_jaccard(600, 2000), abs=0.06)


def test_a_layer_without_a_ranked_matrix_has_no_score(tmp_path: Path) -> None:
    """Any number would put it first or last: what is not there cannot be the least important."""
    draft = open_draft(patient("llama", tmp_path / "base"))
    learnt = LearnedValues({f"layers/{at}/mlp.up_proj": 4.0 + at for at in range(LAYERS) if at != 2})
    score = score_of_matrices(draft, Ila(), learnt, few(tmp_path))
    assert list(score.values) == list(score.matrices) == [str(at) for at in range(LAYERS) if at != 2]
    with pytest.raises(SelectionError, match="ila has no value for layer 2"):
        extreme_layers("lowest", "1", score, draft.layers(), set())


def test_a_weight_mask_is_no_hindrance(tmp_path: Path, data: str) -> None:
    """It says what later training may change, as a freeze does; the numbers are those without it."""
    base = patient("llama", tmp_path / "base")
    draft = replace(open_draft(base), mask="0123456789abcdef")
    (found,) = measure(draft, [QUICK], few(base, data=data), job_context())
    shutil.rmtree(cache_directory())
    assert found == scores(base, QUICK, data=data)["ila"]


def test_settings_reach_both_trainings(tmp_path: Path, data: str) -> None:
    """Roles joined by +, precision, and where the gates start; the reports say what was done."""
    base = patient("llama", tmp_path / "base")
    words = QUICK.replace("ila(", "ila(roles=mlp.up+attention.query,mixed_precision=bf16,init=2,epsilon=0,")
    score = scores(base, words, data=data)["ila"]
    assert {name for row in score.matrices.values() for name in row} == {
        "mlp.up_proj.weight",
        "self_attn.q_proj.weight",
    }
    assert all(abs(value - 2) < 0.1 for row in score.matrices.values() for value in row.values())
    assert not any("stable" in note for note in score.notes)
    usual = scores(base, QUICK, data=data)["ila"]
    assert usual.notes == ("stage 1 ended after 3 steps and was not stable to 0.01 nats",)
    steps = requested_scores([words])[0].recipe("d")  # type: ignore[attr-defined]
    assert [next(iter(step)) for step in steps] == ["masked_lora", "train", "learn_masks"]
    assert all(one["mixed_precision"] == "bf16" for step in steps[1:] for one in step.values())
