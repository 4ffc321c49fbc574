"""Scores of the residual stream against naive formulas on whole forwards with hooks, in numpy and float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgeon.core.scoring.score import Score
from tests.backend.tiny_models import LAYERS, layers_of, load_plainly
from tests.scores.sample_models import MEASURED_FAMILIES, Array, few, patient, scores, text_of, values


@torch.inference_mode()
def streams(model: Any, family: str, tokens_BT: torch.Tensor) -> Array:
    """Return h_0 … h_L in float64, (L + 1, sequences, tokens, width)."""
    found: list[torch.Tensor] = []

    def enter(_module: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    def leave(_module: object, _args: object, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    layers = layers_of(model, family)
    handles = [layer.register_forward_hook(leave) for layer in layers]
    handles.append(layers[0].register_forward_pre_hook(enter, with_kwargs=True))
    model(input_ids=tokens_BT, use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(found).double().numpy()


def cosine(one: Array, other: Array) -> Array:
    """Return the cosine along the last axis."""
    product = (one * other).sum(-1)
    return np.asarray(product / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1))


def standard_error(by_sequence: Array) -> Array:
    """Return it over the last axis."""
    return np.asarray(by_sequence.std(-1, ddof=1) / np.sqrt(by_sequence.shape[-1]))


@pytest.mark.parametrize("family", MEASURED_FAMILIES)
def test_the_angle_of_every_run_of_layers_is_that_of_its_two_ends(family: str, tmp_path: Path) -> None:
    """At the last token; all lengths from one pass."""
    base = patient(family, tmp_path / "base")
    (score,) = scores(base, "angular_distance").values()
    seen = streams(load_plainly(base), family, text_of(base).tokens_BT)[:, :, -1]
    assert sorted(score.blocks) == list(range(1, LAYERS + 1))
    for length, found in score.blocks.items():
        for first, distance in enumerate(found):
            naive = np.arccos(cosine(seen[first], seen[first + length])) / np.pi
            assert distance == pytest.approx(naive.mean(), abs=1e-5)
            if length == 1:
                assert score.values[str(first)] == distance
                assert score.errors[str(first)] == pytest.approx(standard_error(naive), abs=1e-5)


def naive_deviations(base: Path, family: str, *, normed: bool, **data: Any) -> list[Array]:
    """Return, for each sequence that has labels, 1 - cos(h, w_y W+) of its tokens, (L + 1, tokens)."""
    model = load_plainly(base)
    text = text_of(base, **data)
    seen = streams(model, family, text.tokens_BT)
    head = model.get_output_embeddings().weight.detach().double().numpy()
    if normed:
        norm = model.transformer.ln_f if family == "gpt2" else model.model.norm
        with torch.inference_mode():
            seen = norm(torch.from_numpy(seen).float()).double().numpy()
    inverse = np.linalg.pinv(head)
    found = []
    for sequence, targets in enumerate(text.targets_BT.numpy()):
        where = np.flatnonzero(targets >= 0)
        if len(where):
            bases = np.eye(len(head))[targets[where]] @ inverse.T
            found.append(1 - cosine(seen[:, sequence, where], bases[None]))
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("state", ["raw", "normed"])
def test_the_semantic_deviation_is_its_formula(family: str, state: str, tmp_path: Path) -> None:
    """With numpy's pseudo-inverse of the whole head, over every position but the first."""
    base = patient(family, tmp_path / "base")
    found = scores(base, f"semantic_deviation(state={state}),semantic_gain(state={state})")
    naive = np.stack([one.mean(1) for one in naive_deviations(base, family, normed=state == "normed")], axis=1)
    deviation, gain = found["semantic_deviation"], found["semantic_gain"]
    assert np.allclose(deviation.details["curve"], naive.mean(1), atol=2e-5)
    assert np.allclose(values(deviation), naive.mean(1)[:-1], atol=2e-5)
    assert np.allclose(list(deviation.errors.values()), standard_error(naive[:-1]), atol=2e-5)
    assert np.allclose(values(gain), (naive[:-1] - naive[1:]).mean(1), atol=2e-5)
    assert np.allclose(list(gain.errors.values()), standard_error(naive[:-1] - naive[1:]), atol=2e-5)


def test_labelled_rows_are_judged_by_the_first_token_of_their_answer(tmp_path: Path) -> None:
    """One token a row, at the end of its prompt; everything else has no label."""
    base = patient("llama", tmp_path / "base")
    rows = [{"prompt": f"ab{number}", "response": "xyz"[number % 3 :]} for number in range(40)]
    (tmp_path / "base" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = text_of(base, data="rows.jsonl")
    assert 0 < (text.targets_BT >= 0).sum() < text.targets_BT.numel() / 4
    score = scores(base, "semantic_deviation", data="rows.jsonl")["semantic_deviation"]
    naive = naive_deviations(base, "llama", normed=False, data="rows.jsonl")
    expected = np.mean([one.mean(1) for one in naive], axis=0)
    assert np.allclose(score.details["curve"], expected, atol=2e-5)


def test_freezing_ends_at_the_largest_gain_that_is_allowed(tmp_path: Path) -> None:
    """Not at the last layer unless asked, nor before the budget of trained layers is met; with votes and interval."""
    base = patient("llama", tmp_path / "base")
    for settings, allowed in {
        "": range(LAYERS - 1),
        "(leave_out=0)": range(LAYERS),
        "(leave_out=2)": range(LAYERS - 2),
        "(train_at_most=3)": range(LAYERS - 1 - 3, LAYERS - 1),
        "(gain=log,leave_out=0)": range(LAYERS),
    }.items():
        score = scores(base, f"semantic_gain{settings}")["semantic_gain"]
        gains = {layer: score.values[str(layer)] for layer in allowed}
        assert score.details["end_of_freezing"] == max(gains, key=gains.__getitem__), settings
        low, high = score.details["interval"]
        assert low <= score.details["end_of_freezing"] <= high
        assert set(score.details["votes"]) == set(map(str, allowed))
        assert sum(score.details["votes"].values()) == 5 * 14


def naive_overlap(weight: Array, inputs: Array) -> Array:
    """The largest |v_k . f_j| of each right singular vector, by numpy; rows of `inputs` are what entered."""
    centred = inputs - inputs.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred / len(inputs))
    _, _, right = np.linalg.svd(weight, full_matrices=False)
    return np.asarray(np.abs(right @ directions).max(1))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_the_overlap_is_that_of_numpy_on_the_same_inputs(family: str, tmp_path: Path) -> None:
    """Inputs noted by plain hooks; position 0 does not count; fused projections apart, GPT-2's turned round."""
    from surgeon.scores.activation_overlap import ActivationOverlap, chance, overlaps

    base = patient(family, tmp_path / "base")
    score = scores(base, "activation_overlap", sequences=8)["activation_overlap"]
    model = load_plainly(base)
    layer = layers_of(model, family)[2]
    path, part = {
        "llama": ("mlp.down_proj", ""),
        "gpt2": ("attn.c_attn", "[attention.key]"),
        "phi3": ("mlp.gate_up_proj", "[mlp.up]"),
    }[family]
    module = layer.get_submodule(path)
    entered: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: entered.append(args[0]))
    with torch.inference_mode():
        model(input_ids=text_of(base, sequences=8).tokens_BT, use_cache=False)
    handle.remove()
    inputs = entered[0][:, 1:].flatten(0, 1).double().numpy()
    weight: Any = module.get_parameter("weight").detach().double().numpy()
    weight = {"llama": weight, "gpt2": weight[:, 32:64].T, "phi3": weight[48:]}[family]
    naive = naive_overlap(weight, inputs)
    mean, deviation = chance(weight.shape[1])
    covariance = torch.from_numpy(np.cov(inputs.T, bias=True))
    assert np.allclose(overlaps(torch.from_numpy(weight), covariance).numpy(), naive, atol=1e-6)
    assert ActivationOverlap().matrix(torch.from_numpy(weight), covariance) == (naive > mean + 3 * deviation).mean()
    share = (naive > mean + 3 * deviation).mean()
    assert score.matrices["2"][f"{path}.weight{part}"] == pytest.approx(share, abs=1.01 / len(naive))


def test_random_matrices_overlap_no_more_than_chance() -> None:
    """Neither on the average nor beyond the band of three standard deviations."""
    from surgeon.scores.activation_overlap import ActivationOverlap, chance, overlaps

    torch.manual_seed(0)
    weight, inputs = torch.randn(300, 400), torch.randn(4000, 400, dtype=torch.float64)
    covariance = inputs.T @ inputs / 4000
    mean, deviation = chance(400)
    found = overlaps(weight, covariance)
    assert float(found.mean()) == pytest.approx(mean, rel=0.02)
    assert float(found.std()) == pytest.approx(deviation, rel=0.15)
    assert ActivationOverlap().matrix(weight, covariance) < 0.03


def test_a_matrix_turned_towards_its_inputs_overlaps_fully() -> None:
    """Singular vectors that are the eigenvectors, whatever their sign."""
    from surgeon.scores.activation_overlap import ActivationOverlap

    torch.manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))
    covariance = directions @ torch.diag(torch.arange(1.0, 65, dtype=torch.float64)) @ directions.T
    weight = torch.diag(torch.arange(64.0, 0, -1, dtype=torch.float64)) @ -directions.T
    assert ActivationOverlap().matrix(weight, covariance) == 1


def test_too_few_data_to_tell_two_layers_apart_are_called_so(tmp_path: Path) -> None:
    """Where the two least important layers are within two standard errors of each other."""
    base = patient("llama", tmp_path / "base")
    said: list[str] = []

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "log" and body["level"] == "warning":
            said.append(body["text"])

    found: Score = scores(base, "semantic_deviation", sequences=2, emit=emit)["semantic_deviation"]
    low, high = sorted(found.values, key=found.values.__getitem__)[:2]
    gap = found.values[high] - found.values[low]
    assert gap < 2 * np.hypot(found.errors[low], found.errors[high])
    assert found.notes
    assert f"{low} and {high}" in found.notes[0]
    assert said == [f"semantic_deviation: {note}" for note in found.notes]


def test_one_sequence_has_no_standard_error(tmp_path: Path) -> None:
    """Rather than one of zero."""
    base = patient("llama", tmp_path / "base")
    assert scores(base, "block_influence", sequences=1)["block_influence"].errors == {}
    assert few(base).sequences == 5
