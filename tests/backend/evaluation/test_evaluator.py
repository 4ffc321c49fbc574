"""Evaluations against plain torch in float64, gates, and what a run keeps of both."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.backend.evaluation.items import read_items
from surgeon.backend.model.adapters import without_deprecations
from surgeon.backend.model.loading import load_tokenizer
from surgeon.core.recipe.evaluation_metrics import Measure, RawResults, figures_of
from surgeon.errors import DataError, GateError, RecipeError, UsageError
from tests.backend.tiny_models import load_plainly, save_tiny, write_tokenizer
from tests.export.replaying import digests, job_args, run, start_run
from tests.jobs import job_context, keep_silent, never

_TEXTS = ["It was a bright cold day in April.", "Call me Ishmael! Some years ago", "x", "- never mind how long -"]
_PAIRS = [("What?", "Nothing at all.", "Go away"), ("Who?", "Me", "Nobody you know"), ("Why?", "So", "Because of it")]
_QUESTIONS = [("One and one?", ["two", "three, surely", "1"], 0), ("A colour", ["stone", "red"], 1)] * 3
_PRUNE = {"prune": {"layers": [2]}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = save_tiny("llama", tmp_path_factory.mktemp("evaluating") / "base", max_position_embeddings=512)
    write_tokenizer(place)
    return place


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows: dict[str, list[dict[str, Any]]] = {
        "texts": [{"text": text} for text in _TEXTS],
        "pairs": [{"prompt": asked, "chosen": good, "rejected": bad} for asked, good, bad in _PAIRS],
        "questions": [{"question": asked, "choices": all_, "answer": right} for asked, all_, right in _QUESTIONS],
    }
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return tmp_path


def _evaluated(base: Path, root: Path, *steps: Mapping[str, Any], **more: Any) -> list[dict[str, Any]]:
    from tests.jobs import perform

    args = job_args(base, root / "out", steps, root=str(root), **more)
    found: list[dict[str, Any]] = perform("run", args, keep_silent, never)["evaluations"]
    return found


def _values(result: Mapping[str, Any]) -> dict[str, float]:
    return {name: found["value"] for name, found in result["figures"].items()}


def _log_probs(model: Any, before: Sequence[int], after: Sequence[int]) -> float:
    """The log-likelihood of `after` behind `before`, in float64, one sequence and no padding."""
    tokens_BT = torch.tensor([[*before, *after]])
    with torch.inference_mode():
        logits_TV = model(input_ids=tokens_BT, use_cache=False).logits[0].double()
    likely_TV = torch.log_softmax(logits_TV, dim=-1)
    return sum(likely_TV[len(before) - 1 + at, token].item() for at, token in enumerate(after))


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("length", [8, 512])
def test_perplexity_is_that_of_plain_torch_over_every_token_of_the_text(base: Path, data: Path, length: int) -> None:
    """Documents parted by the end-of-text token, which is no text; windows begin with the token before them."""
    (result,) = _evaluated(base, data, {"evaluate": {"data": "texts.jsonl", "max_length": length}})

    model, tokenizer = load_plainly(base), load_tokenizer(base)
    end = tokenizer.eos_token_id
    stream = [end, *(token for text in _TEXTS for token in (*_ids(tokenizer, text), end))]
    nats, tokens = 0.0, 0
    for at in range(1, len(stream), length):
        window = stream[at - 1 : at + length]
        for position in range(1, len(window)):
            if window[position] != end:
                nats -= _log_probs(model, window[:position], window[position : position + 1])
                tokens += 1
    assert tokens == sum(map(len, _TEXTS))
    assert _values(result) == pytest.approx(
        {"nll": nats / tokens, "perplexity": math.exp(nats / tokens),
         "bits_per_byte": nats / math.log(2) / sum(len(text.encode()) for text in _TEXTS)}, rel=1e-6,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text("abc é\n", min_size=1, max_size=40), min_size=1, max_size=5),
    length=st.integers(4, 30), bos=st.booleans(),
)  # fmt: skip
def test_every_token_of_a_text_is_predicted_exactly_once(
    texts: list[str], length: int, bos: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the windows' length, and whether or not the tokenizer adds a BOS."""
    place = tmp_path_factory.mktemp("text")
    write_tokenizer(place, bos=bos)
    tokenizer = load_tokenizer(place)
    (place / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    items = read_items(Measure(kind="text", max_length=length), "t.jsonl", place, tokenizer)

    labels = [label for (window,) in items.examples for label in window.labels if label >= 0]
    assert labels == [token for text in texts for token in _ids(tokenizer, text)]
    assert items.nbytes == sum(len(text.encode()) for text in texts)
    assert [size for (size,) in items.sizes] == [
        sum(label >= 0 for label in window.labels) for (window,) in items.examples
    ]
    for (window,) in items.examples:
        assert len(window.tokens) == len(window.labels) <= length
        assert all(window.tokens[at + 1] == label for at, label in enumerate(window.labels[:-1]) if label >= 0)


def test_multiple_choice_is_told_by_the_whole_likelihood_and_by_that_per_byte(base: Path, data: Path) -> None:
    """Choice by choice in plain torch."""
    (result,) = _evaluated(base, data, {"evaluate": {"metric": "multiple_choice", "data": "questions.jsonl"}})

    model, tokenizer = load_plainly(base), load_tokenizer(base)
    hits = [0.0, 0.0]
    for asked, choices, right in _QUESTIONS:
        sums = [
            _log_probs(model, _ids(tokenizer, f"{asked}\n"), [*_ids(tokenizer, choice), tokenizer.eos_token_id])
            for choice in choices
        ]
        by_byte = [value / len(choice.encode()) for value, choice in zip(sums, choices, strict=True)]
        hits = [hits[0] + (sums.index(max(sums)) == right), hits[1] + (by_byte.index(max(by_byte)) == right)]
    expected = {"multiple_choice": hits[0] / 6, "multiple_choice_normalised": hits[1] / 6}
    assert _values(result) == pytest.approx(expected)
    assert result["examples"] == 6


def test_normalising_changes_which_choice_is_the_likeliest() -> None:
    """A short answer wins as a whole, a long one per byte; the error is that of a mean of ones and zeros."""
    raw = RawResults(values=[[-2.0, -6.0], [-2.0, -6.0]], sizes=[[1, 12], [1, 12]], answers=[0, 1])
    figures = figures_of(Measure(kind="choices"), raw, None)
    assert figures["multiple_choice"].value == figures["multiple_choice_normalised"].value == 0.5
    assert figures["multiple_choice"].error == pytest.approx(0.5)
    assert figures_of(Measure(kind="choices"), RawResults(values=[[-2.0, -6.0]], sizes=[[1, 12]], answers=[1]), None)[
        "multiple_choice_normalised"
    ].value == 1.0  # fmt: skip


def test_preferences_are_likelihoods_and_rewards_are_told_against_the_base(base: Path, data: Path) -> None:
    """On a pruned model, by its export and the base in plain torch; DPO's rewards with the beta that is given."""
    step = {"evaluate": {"metric": "preference", "data": "pairs.jsonl", "beta": 0.3}}
    (result,) = _evaluated(base, data, _PRUNE, step)

    tokenizer = load_tokenizer(base)
    margins: list[list[float]] = []
    for model in (load_plainly(data / "out"), load_plainly(base)):
        answers = [[_log_probs(model, _ids(tokenizer, f"{asked}\n"), [*_ids(tokenizer, text), tokenizer.eos_token_id])
                    for text in (good, bad)] for asked, good, bad in _PAIRS]  # fmt: skip
        margins.append([good - bad for good, bad in answers])
    rewards = [0.3 * (own - base) for own, base in zip(*margins, strict=True)]
    assert _values(result) == pytest.approx(
        {"preference": sum(one > 0 for one in margins[0]) / 3, "preference_margin": sum(margins[0]) / 3,
         "reward_accuracy": sum(one > 0 for one in rewards) / 3, "reward_margin": sum(rewards) / 3}, rel=1e-4,
    )  # fmt: skip


def test_perplexity_of_responses_counts_their_tokens_alone(base: Path, data: Path) -> None:
    """What was asked is context; the end of the turn is part of the response."""
    model, tokenizer = load_plainly(base), load_tokenizer(base)
    nats, tokens = 0.0, 0
    rows = [{"prompt": asked, "response": good} for asked, good, _ in _PAIRS]
    for row in rows:
        answer = [*_ids(tokenizer, row["response"]), tokenizer.eos_token_id]
        nats -= _log_probs(model, _ids(tokenizer, f"{row['prompt']}\n"), answer)
        tokens += len(answer)
    (data / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    (result,) = _evaluated(base, data, {"evaluate": {"metric": "response_perplexity", "data": "asked.jsonl"}})
    assert _values(result) == pytest.approx(
        {"nll": nats / tokens, "response_perplexity": math.exp(nats / tokens)}, rel=1e-5
    )


def test_exact_match_compares_greedy_answers_without_the_space_around_them(base: Path, data: Path) -> None:
    """Two prompts of three answered as a plain loop of argmax does, one of them with spaces around it."""
    model, tokenizer = load_plainly(base), load_tokenizer(base)
    rows = []
    for prompt in ("Speak", "Now then", "Well?"):
        tokens = _ids(tokenizer, f"{prompt}\n")
        for _ in range(6):
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                break
        answer = tokenizer.decode(tokens[len(prompt) + 1 :], skip_special_tokens=True)
        rows.append({"prompt": prompt, "response": f" {answer}\n" if prompt == "Speak" else answer})
    rows[1]["response"] += "!"
    (data / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    step = {"evaluate": {"metric": "exact_match", "data": "asked.jsonl", "max_new_tokens": 6}}
    (result,) = _evaluated(base, data, step)
    assert _values(result) == pytest.approx({"exact_match": 2 / 3})
    assert result["figures"]["exact_match"]["error"] == pytest.approx(1 / 3)


def test_the_error_of_a_perplexity_is_that_of_a_ratio_estimate() -> None:
    """Windows of equal length are a plain mean, whose standard error everyone knows."""
    nats = [10.0, 14.0, 9.0, 11.0]
    raw = RawResults(values=[[value] for value in nats], sizes=[[5]] * 4, nbytes=40)
    figures = figures_of(Measure(kind="text"), raw, None)
    losses = torch.tensor(nats, dtype=torch.float64) / 5
    assert figures["nll"].error == pytest.approx((losses.std() / 2).item())
    assert figures["perplexity"].error == pytest.approx((losses.std() / 2 * losses.mean().exp()).item())


def test_what_was_learned_and_adapters_are_measured_too(base: Path, data: Path) -> None:
    """The figures are those of the exported checkpoint with its adapter on it, in plain transformers and PEFT."""
    from peft import PeftModel

    train = {"train": {"objective": "lm", "data": "texts.jsonl", "steps": 3, "batch_size": 2, "max_length": 16,
                       "learning_rate": 0.05, "scheduler": "constant"}}  # fmt: skip
    before, after = _evaluated(
        base, data, _PRUNE, {"freeze": {"layers": "0-2"}}, train, {"masked_lora": {"layers": "all"}},
        {"evaluate": {"data": "texts.jsonl", "name": "untrained"}}, train,
        {"evaluate": {"data": "texts.jsonl", "name": "trained"}},
    )  # fmt: skip
    tokenizer = load_tokenizer(base)
    items = read_items(Measure(kind="text"), "texts.jsonl", data, tokenizer)
    plain = load_plainly(data / "out")

    def nll(model: Any) -> float:
        (window,) = items.examples[0]
        tokens_BT, labels_BT = torch.tensor([window.tokens]), torch.tensor([window.labels])
        with torch.inference_mode():
            logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
        return float(torch.nn.functional.cross_entropy(logits_BTV[0].double(), labels_BT[0], ignore_index=-1))

    assert len(items.examples) == 1
    assert (before["name"], after["name"]) == ("untrained", "trained")
    assert _values(before)["nll"] == pytest.approx(nll(plain), rel=1e-5)
    with without_deprecations():
        adapted = PeftModel.from_pretrained(plain, str(data / "out" / "adapter"))
    assert _values(after)["nll"] == pytest.approx(nll(adapted), rel=1e-5)
    assert _values(after)["nll"] < _values(before)["nll"] - 0.01


def test_a_gate_that_is_not_met_names_step_figure_and_bound_and_nothing_is_written(base: Path, data: Path) -> None:
    """Also what the base has, if the bound is a multiple of it."""
    gate = {"require": {"perplexity": {"data": "texts.jsonl", "at_most": "1.0001x"}}}
    with pytest.raises(GateError) as caught:
        run(base, data / "out", {"prune": {"layers": [1, 2, 3]}}, gate, root=str(data))
    said = str(caught.value)
    assert said.startswith("steps[1].require.perplexity: perplexity is ")
    assert "times the base's" in said
    assert "at most 1.0001x (" in said
    assert caught.value.exit_code == 3
    assert not (data / "out").exists()
    assert not list(data.glob("out*"))


def test_a_gate_that_is_met_lets_the_run_go_on_and_is_written_down(base: Path, data: Path) -> None:
    """With a number and with a multiple; an unknown base figure is measured for the multiple alone."""
    gate = {"require": {"bits_per_byte": {"data": "texts.jsonl", "at_most": "3x", "at_least": 0.01}}}
    (result,) = _evaluated(base, data, _PRUNE, gate)
    base_bits = result["base"]["bits_per_byte"]["value"]
    assert result["bounds"] == {"bits_per_byte": f"at most 3x ({3 * base_bits:.6g}), at least 0.01"}
    written = json.loads((data / "out" / "surgeon_results.json").read_text())
    assert written == {"evaluations": [result]}
    card = (data / "out" / "README.md").read_text()
    assert (
        f"| 1 | bits_per_byte | texts.jsonl | bits_per_byte | {result['figures']['bits_per_byte']['value']:.4g}" in card
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "requires nothing"),
        ({"perplexity": {}}, "has no bound"),
        ({"exact_match": {"at_least": 0.5}}, r"exact_match\.data: is needed"),
        ({"reward_margin": {"data": "texts.jsonl", "at_least": "1x"}}, "against the base already"),
    ],
)
def test_a_gate_that_says_nothing_is_refused(base: Path, data: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(base, data / "out", {"require": fields}, root=str(data))


def test_a_multiple_of_a_figure_that_is_not_positive_is_refused(base: Path, data: Path) -> None:
    """A margin may be negative: twice of it would be less."""
    (data / "worse.jsonl").write_text(
        "".join(json.dumps({"prompt": "?", "chosen": one * 9, "rejected": "a"}) + "\n" for one in "bcd")
    )
    gate = {"require": {"preference_margin": {"data": "worse.jsonl", "at_least": "1.1x"}}}
    with pytest.raises(RecipeError, match=r"steps\[0\]\.require\.preference_margin\.at_least: is a multiple"):
        run(base, data / "out", gate, root=str(data))


def test_a_gate_after_an_evaluation_of_the_same_runs_no_model(base: Path, data: Path) -> None:
    """Nor does the same recipe again: figures are kept by weights, data and settings."""
    told: list[str] = []

    def hear(kind: str, body: dict[str, Any]) -> None:
        told.append(f"{kind} {body.get('what', '')}".strip())

    evaluate = {"evaluate": {"data": "texts.jsonl"}}
    gate = {"require": {"bits_per_byte": {"data": "texts.jsonl", "at_most": 100}}}
    run(base, data / "a", _PRUNE, evaluate, root=str(data), emit=hear)
    assert told.count("progress evaluating") == 1
    assert told.count("evaluated") == 1
    run(base, data / "b", _PRUNE, evaluate, {"freeze": {"layers": "0"}}, gate, root=str(data), emit=hear)
    assert told.count("progress evaluating") == 1
    assert told.count("evaluated") == 3
    run(base, data / "c", {"prune": {"layers": [3]}}, evaluate, root=str(data), emit=hear)
    assert told.count("progress evaluating") == 2


def test_two_runs_write_the_same_bytes_whatever_was_kept(
    base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a process of its own with a cache of its own."""
    steps: list[Any] = [
        _PRUNE,
        {"evaluate": {"data": "texts.jsonl"}},
        {"evaluate": {"metric": "preference", "data": "pairs.jsonl"}},
    ]
    written = []
    for name in ("one", "two"):
        monkeypatch.setenv("SURGEON_CACHE", str(data / f"cache-{name}"))
        process = start_run(base, data / name, *steps, root=str(data))
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        written.append(digests(data / name))
    assert written[0] == written[1]
    assert "surgeon_results.json" in written[0]


def test_a_recipe_that_only_looks_needs_no_place_to_write_to(base: Path, data: Path) -> None:
    """A recipe that changes anything does."""
    args = {**job_args(base, data / "out", [{"evaluate": {"data": "texts.jsonl"}}], root=str(data)), "out": None}
    from tests.jobs import perform

    result = perform("run", args, keep_silent, never)
    assert result["out"] is None
    assert len(result["evaluations"]) == 1
    args["recipe"]["steps"].append(_PRUNE)
    with pytest.raises(UsageError, match="needs a directory"):
        perform("run", args, keep_silent, never)


def test_rows_that_do_not_fit_are_left_out_and_counted(base: Path, data: Path) -> None:
    """Cut answers would be measured wrongly."""
    told: list[str] = []

    def hear(kind: str, body: dict[str, Any]) -> None:
        if body.get("level") == "warning":
            told.append(str(body["text"]))

    step = {"evaluate": {"metric": "multiple_choice", "data": "questions.jsonl", "max_length": 16}}
    result = run(base, data / "out", step, root=str(data), emit=hear)["evaluations"][0]
    assert result["examples"] == 3
    assert told == ["questions.jsonl: 3 rows are longer than 16 tokens and left out"]
    with pytest.raises(DataError, match="nothing of at most 6 tokens"):
        run(base, data / "b", {"evaluate": {**step["evaluate"], "max_length": 6}}, root=str(data))


def test_scores_of_a_recipe_with_gates_pass_them_over(base: Path, data: Path) -> None:
    """What is measured on the draft does not wait for evaluations, and no gate can stop it."""
    from surgeon.backend.replay import replayed_draft
    from surgeon.core.jobs import RunJob

    gate = {"require": {"perplexity": {"data": "missing.jsonl", "at_most": 1}}}
    with replayed_draft(RunJob(**job_args(base, data / "out", [_PRUNE, gate])), job_context()) as draft:
        assert len(draft.layers()) == 5


def test_a_large_vocabulary_is_added_up_without_drift() -> None:
    """Torch's cross_entropy is off by 1e-5 nats on average here, always to the same side."""
    from surgeon.backend.data.tokens import Tokens
    from surgeon.backend.evaluation.model_outputs import log_likelihoods

    words = 50_000
    generator = torch.Generator().manual_seed(0)
    logits_TV = 3 * torch.randn(64, words, generator=generator) + 12
    labels = torch.randint(0, words, (64,), generator=generator).tolist()

    class Fixed(torch.nn.Linear):
        def forward(self, *_: Any, **__: Any) -> Any:
            return SimpleNamespace(logits=logits_TV[None])

    (found,) = log_likelihoods(Fixed(1, 1), [Tokens([0] * 64, labels)], words, lambda done: None)
    exact = torch.log_softmax(logits_TV.double(), -1)[range(64), labels].sum().item()
    assert found == pytest.approx(exact, rel=1e-7)
