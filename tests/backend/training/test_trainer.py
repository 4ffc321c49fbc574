"""The training loop, against a plain loop in torch."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file
from torch.nn import functional

from surgeon.backend.data.examples import Examples, collate, examples_of_step, read_examples
from surgeon.backend.model.loading import load_tokenizer
from surgeon.errors import ArchitectureError, LearningError
from tests.backend.tiny_models import load_plainly
from tests.backend.training_recipes import learn_args, pupil, training
from tests.jobs import keep_silent, never, perform

CPU = torch.device("cpu")


def learned(model: Path, **fields: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Train; return the tensors by their names in the checkpoint, and the report."""
    result = perform("learn", learn_args(model, training(**fields), device="cpu"), keep_silent, never)
    ((address, report),) = result["reports"].items()
    tensors = load_file(Path(os.environ["SURGEON_CACHE"]) / "learned" / address / "learned.safetensors")
    return {_plain_name(name): tensor for name, tensor in tensors.items()}, report


def _plain_name(name: str) -> str:
    """Undo `core.learned`'s names, for a model whose layers are where they were."""
    place, _, rest = name.partition("/")
    return rest if place == "outside" else f"model.{place}.{rest.replace('/', '.')}"


def examples_of(model: Path) -> Examples:
    return read_examples("text.jsonl", model.parent, load_tokenizer(model), "text", 24)


def plain_loss(model: Any, examples: Examples, numbers: Any) -> torch.Tensor:
    """Return the mean loss of next tokens, from the model's own logits, shifted by hand."""
    tokens_BT = collate([examples.examples[number] for number in numbers], numbers, CPU).tokens_BT
    logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
    return functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())


def plainly_trained(path: Path, steps: int, rate: float, decay: float) -> tuple[Any, list[float]]:
    """AdamW with a linear warm-up and decay, in a loop that knows nothing of surgeon but which examples come when."""
    model, examples = load_plainly(path), examples_of(path)
    model.train()
    flat = [one for one in model.parameters() if one.dim() <= 1]
    deep = [one for one in model.parameters() if one.dim() > 1]
    optimizer = torch.optim.AdamW([{"params": deep, "weight_decay": decay}, {"params": flat, "weight_decay": 0.0}])
    losses, warmup = [], math.ceil(0.25 * steps)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(step / warmup, (steps - step) / (steps - warmup))
        loss = plain_loss(model, examples, examples_of_step(step, 4, len(examples.examples), 0))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    return model, losses


FIELDS = {"steps": 8, "scheduler": "linear", "warmup_ratio": 0.25, "weight_decay": 0.1, "max_grad_norm": 0.5}


def test_training_is_what_a_plain_loop_does(tmp_path: Path) -> None:
    """The same losses and weights as AdamW, a schedule and a clipped gradient written out by hand."""
    path = pupil(tmp_path)
    tensors, report = learned(path, **FIELDS)
    model, losses = plainly_trained(path, 8, 1e-2, 0.1)
    assert report["losses"] == pytest.approx(losses, abs=1e-5)
    assert tensors.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(tensors[name], parameter.detach(), atol=2e-5, rtol=1e-4, msg=name)


def test_bf16_is_for_products_alone(tmp_path: Path) -> None:
    """What torch's autocast makes of the same loop; the weights and what is added to them stay float32."""
    path = pupil(tmp_path)
    tensors, report = learned(path, **FIELDS, mixed_precision="bf16")
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        model, losses = plainly_trained(path, 8, 1e-2, 0.1)
    full, _ = plainly_trained(path, 8, 1e-2, 0.1)
    assert report["losses"] == pytest.approx(losses, abs=2e-3)
    exact = dict(full.named_parameters())
    off = {name: (tensors[name] - one).abs().max().item() for name, one in model.named_parameters()}
    apart = {name: (exact[name] - one).abs().max().item() for name, one in model.named_parameters()}
    assert max(off.values()) < 0.1 * max(apart.values())
    assert any((one != one.bfloat16()).any() for one in tensors.values())


def test_a_batch_in_parts_is_the_same_batch(tmp_path: Path) -> None:
    """Gradients are summed over the parts, and so is the loss that is told."""
    path = pupil(tmp_path)
    whole, once = learned(path)
    parts, often = learned(path, gradient_accumulation_steps=3)
    assert often["losses"] == pytest.approx(once["losses"], abs=1e-5)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=2e-5, rtol=1e-4, msg=name)


def test_a_launchers_accumulation_is_none_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate config` says of it divides no gradient, which would slip under the norm it is cut to."""
    path = pupil(tmp_path)
    expected, _ = learned(path, max_grad_norm=1.0)
    os.environ["SURGEON_CACHE"] += "-other"
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1000")
    found, _ = learned(path, max_grad_norm=1.0)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_spread_over_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what came out of it would be the weights as they were."""
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(LearningError, match="FSDP") as caught:
        learned(pupil(tmp_path))
    assert "data parallel" in caught.value.allowed


def test_any_whole_number_is_a_seed(tmp_path: Path) -> None:
    """A date and time is one, and so is one below zero: other seeds, other orders of the examples."""
    path, losses = pupil(tmp_path), []
    for seed in (20240101123456, -3):
        args = learn_args(path, training(steps=2), device="cpu")
        args["recipe"]["seed"] = seed
        (report,) = perform("learn", args, keep_silent, never)["reports"].values()
        losses.append(report["losses"])
    assert losses[0] != losses[1]


def test_a_family_that_cannot_compute_twice_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what saves memory instead."""
    from transformers import LlamaForCausalLM

    path = pupil(tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(ArchitectureError, match="gradient_checkpointing") as caught:
        learned(path, gradient_checkpointing=True)
    assert "gradient_accumulation_steps" in caught.value.hint


def test_a_course_of_one_step_learns_something(tmp_path: Path) -> None:
    """Though a warm-up begins with a learning rate of zero: there is no later step for it to rise to."""
    path = pupil(tmp_path)
    tensors, _ = learned(path, steps=1)
    base = dict(load_plainly(path).named_parameters())
    assert all((tensors[name] != base[name]).any() for name in tensors if "embed" not in name)


def test_tokens_are_told_without_their_padding(tmp_path: Path) -> None:
    """What the model reads, as `tokens` of a step counts them."""
    path = pupil(tmp_path)
    rows = [{"prompt": "?", "response": "a" * length} for length in (2, 5, 9, 14)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, report = learned(path, objective="sft", data="answers.jsonl", steps=3)
    assert report["tokens"] == 3 * sum(len(row["prompt"]) + 1 + len(row["response"]) + 1 for row in rows)


def test_activations_computed_twice_change_nothing(tmp_path: Path) -> None:
    """So the result has the same address, with gradient checkpointing or without."""
    path = pupil(tmp_path)
    plain, report = learned(path)
    os.environ["SURGEON_CACHE"] += "-other"
    again, other = learned(path, gradient_checkpointing=True)
    assert report["losses"] == other["losses"]
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_held_out_loss_is_that_of_the_model_that_came_out(tmp_path: Path) -> None:
    """Before, meanwhile and after: the mean over the rows kept back, which no step has seen."""
    path = pupil(tmp_path)
    tensors, report = learned(path, held_out="20%", eval_steps=2)
    examples = examples_of(path)
    _, held_out = examples.split(0.2)
    model = load_plainly(path)
    with torch.no_grad():
        before = plain_loss(model, held_out, range(len(held_out.examples))).item()
        assert not model.load_state_dict(tensors, strict=False).unexpected_keys
        after = plain_loss(model, held_out, range(len(held_out.examples))).item()
    assert report["held_out"]["before"]["loss"] == pytest.approx(before, abs=1e-5)
    assert report["held_out"]["after"]["loss"] == pytest.approx(after, abs=1e-5)
    assert [number for number, _ in report["held_out"]["steps"]] == [2, 4]
    meanwhile = [figures["loss"] for _, figures in report["held_out"]["steps"]]
    assert before > meanwhile[0] > meanwhile[1] > after


def test_looking_at_the_held_out_loss_changes_nothing_else(tmp_path: Path) -> None:
    """The same weights however often it is looked at, so it is no part of the address."""
    path = pupil(tmp_path)
    seldom, _ = learned(path, held_out="20%")
    os.environ["SURGEON_CACHE"] += "-other"
    often, _ = learned(path, held_out="20%", eval_steps=1)
    assert all(torch.equal(seldom[name], often[name]) for name in seldom)


def test_every_step_tells_how_it_goes(tmp_path: Path) -> None:
    """Number, total, loss, speed, time left, held-out loss before and now."""
    told: list[dict[str, Any]] = []
    args = learn_args(pupil(tmp_path), training(held_out="20%", eval_steps=3), device="cpu")
    result = perform("learn", args, lambda kind, body: told.append(body) if "loss" in body else None, never)
    (report,) = result["reports"].values()
    assert [body["done"] for body in told] == [1, 2, 3, 4, 5, 6, 6]
    assert {body["total"] for body in told} == {6}
    assert [body["loss"] for body in told[:6]] == report["losses"]
    assert all(body["tokens_per_second"] > 0 and body["eta_seconds"] >= 0 for body in told)
    before, after = (report["held_out"][when]["loss"] for when in ("before", "after"))
    ((_, meanwhile),) = report["held_out"]["steps"]
    assert {body["held_out_before_loss"] for body in told} == {before}
    assert [body["held_out_loss"] for body in told] == [before] * 3 + [meanwhile["loss"]] * 3 + [after]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 8 GB"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("call", [1, 3])
def test_running_out_of_memory_says_what_takes_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, call: int
) -> None:
    """The settings to change with what they are now, not a trace; nothing counts as a result."""
    from transformers import LlamaForCausalLM

    real, calls = LlamaForCausalLM.forward, iter(range(1, 100))

    def forward(*args: Any, **kwargs: Any) -> Any:
        if next(calls) >= call:
            raise error
        return real(*args, **kwargs)

    path = pupil(tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(LearningError) as raised:
        learned(path, gradient_accumulation_steps=2, max_length=96)
    says = str(raised.value)
    for part in ("train: there is not enough memory", "gradient_checkpointing: true", "masked_lora", "freeze"):
        assert part in says
    assert "gradient_accumulation_steps" not in says  # it has come down to one example at once
    assert "max_length: 64 instead of 96" in says
    assert not list(Path(os.environ["SURGEON_CACHE"]).glob("learned/*/result.json"))


def test_other_failures_keep_their_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only running out of memory is explained as that."""
    from transformers import LlamaForCausalLM

    def forward(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the sizes do not match")

    path = pupil(tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(RuntimeError, match="the sizes do not match"):
        learned(path)
