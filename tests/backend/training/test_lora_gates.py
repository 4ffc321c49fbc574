"""Training adapters and learning their masks: against plain PEFT, plain torch, and differences in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file

from surgeon.backend.data.examples import collate, examples_of_step, read_examples
from surgeon.backend.model.adapters import NAME, attach, lora_layers
from surgeon.backend.model.loading import load_tokenizer
from surgeon.backend.training.training_run import is_stable
from surgeon.core.plan.learned_results import TENSORS, result_directory, result_report
from surgeon.core.plan.plan import compile_plan
from surgeon.errors import RecipeError
from tests.architectures.building import small_config, tiny_model
from tests.backend.tiny_models import load_plainly, some_tokens
from tests.export.replaying import run
from tests.jobs import keep_silent, never, perform
from tests.scores.sample_models import open_draft, patient

# What PEFT calls in transformers; where surgeon calls PEFT it is filtered there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA = {"masked_lora": {"layers": "all", "rank": 3, "alpha": 6.0}}
ROWS = [{"prompt": f"what is {a}+{b}?", "response": f"it is {a + b}"} for a in range(5) for b in range(5)]


def sums(directory: Path) -> str:
    """Write questions and answers."""
    path = directory / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return str(path)


def train(data: str, **more: Any) -> dict[str, Any]:
    """Return a step that moves every B well away from zero."""
    settings = {"objective": "sft", "data": data, "batch_size": 3, "max_length": 48, "steps": 4, "learning_rate": 1e-2}
    return {"train": {**settings, **more}}


def masks(data: str, **more: Any) -> dict[str, Any]:
    """Return a step that learns the gates."""
    settings = {"objective": "sft", "data": data, "batch_size": 3, "max_length": 48, "steps": 5}
    return {"learn_masks": {**settings, **more}}


def addresses(done: Mapping[str, Any]) -> list[str]:
    """Return the addresses of a run's results."""
    return [step["resolved"]["learned"][0] for step in done["recipe"]["steps"] if "learned" in step.get("resolved", {})]


def tensors(address: str) -> dict[str, torch.Tensor]:
    """Return what a result holds."""
    return load_file(result_directory(address) / TENSORS)


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    """Return a model's logits on random tokens."""
    found: torch.Tensor = model(input_ids=some_tokens(), use_cache=False).logits
    return found


def gated(base: Path, done: Mapping[str, Any], under: Path | None = None) -> PeftModel:
    """Return a plainly loaded model with the live gated adapters of a run."""
    plan = compile_plan(open_draft(base, *done["recipe"]["steps"]))
    return attach(load_plainly(under or base), plan.adapters, 0, transposed=bool(plan.structure.family.transposed))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "mixtral"])
def test_a_trained_and_masked_adapter_is_exported_as_the_live_gated_model(family: str, tmp_path: Path) -> None:
    """Logits of plain PEFT equal the gated ones bit for bit; fused modules count as one, experts stay out."""
    base, out = patient(family, tmp_path / "base"), tmp_path / "out"
    data = sums(tmp_path)
    done = run(base, out, LORA, train(data), masks(data, learning_rate=0.5), verify=True)
    plain = PeftModel.from_pretrained(load_plainly(base), str(out)).eval()
    assert torch.equal(logits(plain), logits(gated(base, done)))
    assert not torch.allclose(logits(plain), logits(load_plainly(base)), atol=1e-2)
    proof = perform("verify", {"directory": str(out)}, keep_silent, never)["proof"]["adapter"]
    assert "live gated model: equal bit for bit" in proof["detail"]
    report = result_report(addresses(done)[1])["masks"]
    names = {name.rpartition("/")[2] for name in report}
    assert names == {name.partition(".layers.")[2].partition(".")[2] for name in modules(plain)} or family == "gpt2"
    assert all(mask["trained"] and abs(mask["s"] - 4) > 1e-3 for mask in report.values())
    assert {"phi3": 4, "gpt_neox": 4, "gpt2": 4, "mixtral": 4, "llama": 7}[family] * 6 == len(report)


def module(model: Any, name: str) -> Any:
    """Return a module of a PEFT model's base."""
    return model.get_base_model().get_submodule(name)


def modules(model: Any) -> set[str]:
    """Return the names of the modules that carry an adapter."""
    return {name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}


def test_an_adapter_trained_on_an_edited_model_lies_beside_it(tmp_path: Path) -> None:
    """Pruned, adapted, trained: the exported pair computes what the live gated edited model does."""
    base, out = patient("llama", tmp_path / "base"), tmp_path / "out"
    done = run(base, out, {"prune": {"layers": [0, 4]}}, LORA, train(sums(tmp_path)), verify=True)
    assert "live gated model: equal bit for bit" in done["proof"]["adapter"]["detail"]
    plain = PeftModel.from_pretrained(load_plainly(out), str(out / "adapter")).eval()
    assert torch.equal(logits(plain), logits(gated(base, done, under=out)))
    assert not torch.allclose(logits(plain), logits(load_plainly(out)), atol=1e-2)


def test_a_damaged_adapter_is_found_out(tmp_path: Path) -> None:
    """One number in one B, and verifying says how far the logits are apart."""
    from safetensors.torch import save_file

    from surgeon.errors import VerifyError

    base, out = patient("llama", tmp_path / "base"), tmp_path / "out"
    run(base, out, LORA, train(sums(tmp_path)), verify=True)
    path = out / "adapter_model.safetensors"
    stored = load_file(path)
    next(value for name, value in stored.items() if "lora_B" in name)[0, 0] += 0.5
    save_file(stored, path)
    with pytest.raises(VerifyError, match="live gated model: differ by up to"):
        perform("verify", {"directory": str(out)}, keep_silent, never)


def test_training_moves_a_and_b_alone_and_masking_the_gates_alone(tmp_path: Path) -> None:
    """Bit by bit, in what the results hold."""
    base, data = patient("llama", tmp_path / "base"), sums(tmp_path)
    done = run(base, tmp_path / "out", LORA, train(data), masks(data))
    trained, masked = map(tensors, addresses(done))
    assert trained.keys() == masked.keys()
    assert len(trained) == 6 * 7 * 3
    for name, value in trained.items():
        kind = name.rpartition("/")[2]
        assert torch.equal(value, masked[name]) == (kind != "gate")
        if kind == "gate":
            assert value.item() == 4
        if kind == "lora_B":
            assert value.any()
    report = result_report(addresses(done)[1])["masks"]
    for name, mask in report.items():
        assert mask["s"] == masked[f"{name}/gate"].item()
        assert mask["gamma"] == pytest.approx(torch.sigmoid(masked[f"{name}/gate"]).item(), abs=1e-7)


def test_masks_are_what_adam_on_a_plain_peft_model_finds(tmp_path: Path) -> None:
    """Ordinary PEFT, its B replaced by sigmoid(s) B in each forward, torch's own Adam, the same batches."""
    base, data = patient("llama", tmp_path / "base"), sums(tmp_path)
    done = run(base, tmp_path / "out", LORA, train(data), masks(data, learning_rate=0.05, init=2.0))
    trained, masked = map(tensors, addresses(done))
    plan = compile_plan(open_draft(base, *done["recipe"]["steps"]))
    # Trained with gates of 4: on disk B is folded.
    plain = PeftModel.from_pretrained(load_plainly(base), str(tmp_path / "out")).requires_grad_(False).train()
    names = {one.name: f"base_model.model.{one.module}.lora_B.{NAME}.weight" for one in plan.adapters}
    s = {name: torch.tensor(2.0, requires_grad=True) for name in names}
    adam = torch.optim.Adam(s.values(), lr=0.05)
    examples = read_examples(data, tmp_path, load_tokenizer(base), "answers", 48).examples
    for step in range(5):
        batch = collate(
            [examples[at] for at in examples_of_step(step, 3, len(examples), 0)], range(3), torch.device("cpu")
        )
        gates = {names[name]: torch.sigmoid(one) * trained[f"{name}/lora_B"] for name, one in s.items()}
        inputs = {"input_ids": batch.tokens_BT, "attention_mask": batch.mask_BT, "use_cache": False}
        out = torch.func.functional_call(plain, gates, (), inputs).logits
        chosen = batch.labels_BT >= 0
        loss = torch.nn.functional.cross_entropy(out[chosen], batch.labels_BT[chosen])
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(s.values(), 1.0)
        adam.step()
    for name, one in s.items():
        assert masked[f"{name}/gate"].item() == pytest.approx(one.item(), abs=2e-4)


def test_adapters_with_open_gates_are_trained_as_plain_peft_trains_them(tmp_path: Path) -> None:
    """Stage 1 of ILA: ordinary PEFT from the same A, torch's own AdamW, the same batches."""
    base, data = patient("llama", tmp_path / "base"), sums(tmp_path)
    lora = {"masked_lora": {**LORA["masked_lora"], "gate": 100.0}}
    run(base, tmp_path / "start", lora)
    done = run(base, tmp_path / "out", lora, train(data, scheduler="constant", warmup_ratio=0.0))
    plain = PeftModel.from_pretrained(load_plainly(base), str(tmp_path / "start"), is_trainable=True).train()
    wanted = [one for one in plain.parameters() if one.requires_grad]
    adam = torch.optim.AdamW(wanted, lr=1e-2, weight_decay=0.0)
    examples = read_examples(data, tmp_path, load_tokenizer(base), "answers", 48).examples
    for step in range(4):
        numbers = examples_of_step(step, 3, len(examples), 0)
        batch = collate([examples[at] for at in numbers], range(3), torch.device("cpu"))
        out = plain(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT, use_cache=False).logits
        chosen = batch.labels_BT >= 0
        adam.zero_grad()
        torch.nn.functional.cross_entropy(out[chosen], batch.labels_BT[chosen]).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        adam.step()
    trained = tensors(addresses(done)[0])
    for one in compile_plan(open_draft(base, lora)).adapters:
        layer = module(plain, one.module)
        for part, values in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            assert torch.allclose(trained[f"{one.name}/{part}"], values[NAME].weight, atol=2e-4)
        assert trained[f"{one.name}/lora_B"].abs().max() > 5e-3


def test_the_gradient_of_a_gate_is_its_finite_difference(tmp_path: Path) -> None:
    """In float64, by central differences of the loss. GPT-2: its norms do not fall back to float32."""
    base = patient("gpt2", tmp_path / "base")
    plan = compile_plan(open_draft(base, LORA))
    model = attach(load_plainly(base).double(), plan.adapters, 0, transposed=True).double()
    generator = torch.Generator().manual_seed(3)
    gates = []
    for layer in lora_layers(model, plan.adapters):
        weight = layer.lora_B[NAME].parametrizations["weight"]
        with torch.no_grad():
            weight.original.copy_(0.3 * torch.randn(weight.original.shape, generator=generator))
        gates.append(weight[0].s)
    tokens_BT = some_tokens()

    def loss() -> torch.Tensor:
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
        assert logits_BTV.dtype == torch.float64
        return torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())

    loss().backward()  # type: ignore[no-untyped-call]
    h = 1e-4
    for gate in gates[::5]:
        with torch.no_grad():
            values = []
            for at in (4 + h, 4 - h):
                gate.fill_(at)
                values.append(loss().item())
            gate.fill_(4)
        assert gate.grad is not None
        assert gate.grad.item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-11)


def test_matrices_with_nothing_to_mask_are_said_to_be_untrained(tmp_path: Path) -> None:
    """Adapters that a freeze held while the others were trained: B is zero, and their gates stay where they were."""
    base, data = patient("llama", tmp_path / "base"), sums(tmp_path)
    held: list[dict[str, Any]] = [
        {"masked_lora": {"layers": [1, 2], "rank": 3}},
        {"freeze": {"matrices": ["1.mlp.up", "2.attention.query"]}},
        train(data),
    ]
    done = run(base, tmp_path / "out", *held, verify=True)
    trained = tensors(addresses(done)[0])
    assert len(trained) == (14 - 2) * 3
    assert not any("layers/1/mlp.up_proj" in name or "layers/2/self_attn.q_proj" in name for name in trained)
    plain = PeftModel.from_pretrained(load_plainly(base), str(tmp_path / "out"))
    zero = {name for name in modules(plain) if not module(plain, name).lora_B[NAME].weight.any()}
    assert zero == {"model.layers.1.mlp.up_proj", "model.layers.2.self_attn.q_proj"}
    late = {"masked_lora": {"layers": [4], "rank": 2, "roles": ["mlp"]}}
    done = run(base, tmp_path / "late", held[0], train(data), late, masks(data))
    report = result_report(addresses(done)[1])["masks"]
    untrained = {name.partition("layers/")[2] for name, mask in report.items() if not mask["trained"]}
    assert untrained == {"4/mlp.gate_proj", "4/mlp.up_proj", "4/mlp.down_proj"}
    assert all(mask["s"] == 4 for mask in report.values() if not mask["trained"])


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (["masks"], "there are no adapters"),
        (["lora", "masks"], "as they were attached"),
        (["lora", "freeze", "train"], "every adapter is on a frozen matrix"),
        (["lora", "train", "lora"], "already has an adapter"),
        (["drop"], "none of the chosen matrices has an adapter"),
        (["norm", "train"], "norm is no matrix: an adapter does not fit it"),
        (["norm and mlp", "train"], "norm is no matrix: an adapter does not fit it"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(steps: list[str], said: str, tmp_path: Path) -> None:
    """In the recipe's words."""
    base, data = patient("llama", tmp_path / "base"), sums(tmp_path)
    known = {
        "lora": LORA, "train": train(data), "masks": masks(data), "freeze": {"freeze": {"layers": "all"}},
        "drop": {"drop_adapters": {"layers": [1]}}, "norm": {"masked_lora": {"layers": "all", "roles": ["norm"]}},
        "norm and mlp": {"masked_lora": {"layers": "all", "roles": ["norm", "mlp"]}},
    }  # fmt: skip
    with pytest.raises(RecipeError, match=said):
        open_draft(base, *[known[step] for step in steps])


def test_adapters_that_would_stand_on_nothing_are_refused(tmp_path: Path) -> None:
    """Of Jamba only layer 4 has attention: the training after it would be of all weights, with nobody told."""
    tiny_model(small_config("jamba")).save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(RecipeError, match="no matrix that an adapter fits") as refused:
        open_draft(tmp_path, {"masked_lora": {"layers": [0, 2], "roles": ["attention"]}}, train("text.jsonl"))
    assert refused.value.where == "steps[0].masked_lora.layers"
    assert "mixer.inner" in refused.value.allowed
    plan = compile_plan(open_draft(tmp_path, {"masked_lora": {"layers": [0, 4], "roles": ["attention"]}}))
    assert {one.layer for one in plan.adapters} == {4}


def test_gates_that_cannot_move_are_told_of(tmp_path: Path) -> None:
    """At 100 the sigmoid is flat in float32: nothing is learned, and the report must not rank by it."""
    base, data = patient("llama", tmp_path / "base"), sums(tmp_path)
    open_wide = {"masked_lora": {"layers": [1], "rank": 2, "roles": ["mlp"], "gate": 100.0}}
    for more, stuck in (({"init": 100.0}, 3), ({"init": 4.0}, 0)):
        done = run(base, tmp_path / str(stuck), open_wide, train(data), masks(data, **more))
        report = result_report(addresses(done)[1])
        assert sum(not mask["trained"] for mask in report["masks"].values()) == stuck
        assert report["remarks"] == ([f"{stuck} of 3 gates did not move: {_WHY}"] if stuck else [])


_WHY = "the B of their adapters is zero, or they start where the sigmoid is flat"


def test_dropped_adapters_are_left_out_of_the_export(tmp_path: Path) -> None:
    """Whole layers by role, single matrices; the others do what they did."""
    base, out, data = patient("llama", tmp_path / "base"), tmp_path / "out", sums(tmp_path)
    drops: list[dict[str, Any]] = [
        {"drop_adapters": {"layers": [0, 1], "roles": ["attention"]}},
        {"drop_adapters": {"matrices": ["3.mlp", "5.attention.output"]}},
    ]
    done = run(base, out, LORA, train(data), *drops, verify=True)
    gone = {f"model.layers.{at}.self_attn.{part}_proj" for at in (0, 1) for part in "qkvo"}
    gone |= {f"model.layers.3.mlp.{part}_proj" for part in ("gate", "up", "down")} | {"model.layers.5.self_attn.o_proj"}
    plain = PeftModel.from_pretrained(load_plainly(base), str(out)).eval()
    everything = modules(gated(base, {"recipe": {"steps": [LORA]}}))
    assert modules(plain) == everything - gone
    assert set(json.loads((out / "adapter_config.json").read_text())["target_modules"]) == everything - gone
    trained = tensors(addresses(done)[0])
    by_name = {one.module: one.name for one in compile_plan(open_draft(base, LORA)).adapters}
    for name in everything - gone:
        layer = module(plain, name)
        assert torch.equal(layer.lora_A[NAME].weight, trained[f"{by_name[name]}/lora_A"])


@given(st.lists(st.floats(0, 8), max_size=200), st.floats(0.001, 2))
def test_a_loss_is_stable_when_two_windows_in_a_row_agree(losses: list[float], epsilon: float) -> None:
    """Looked at only where a window ends; never without two of them."""
    windows = [sum(losses[at : at + 32]) / 32 for at in range(0, len(losses) - 31, 32)]
    expected = len(losses) % 32 == 0 and len(windows) >= 2 and abs(windows[-1] - windows[-2]) < epsilon
    difference = abs(windows[-1] - windows[-2]) if len(windows) >= 2 else 1.0
    assert is_stable(losses, epsilon) == expected or difference == pytest.approx(epsilon)
    assert not is_stable(losses, None)


def test_training_ends_once_its_loss_is_stable(tmp_path: Path) -> None:
    """Any two windows agree to 100 nats: after the second, 64 of 66 steps; the report says so."""
    base, data = patient("llama", tmp_path / "base"), sums(tmp_path)
    lora = {"masked_lora": {"layers": [0], "rank": 1, "roles": ["mlp.up"]}}
    ends = {}
    for epsilon in (100.0, 1e-9):
        step = train(data, steps=66, epsilon=epsilon, batch_size=1, max_length=32)
        (address,) = addresses(run(base, tmp_path / str(epsilon), lora, step))
        report = result_report(address)
        ends[epsilon] = (len(report["losses"]), report["stable"])
    assert ends == {100.0: (64, True), 1e-9: (66, False)}
