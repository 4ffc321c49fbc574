from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from surgeon.backend.training import weight_mask_selection
from surgeon.backend.training.rewriter_rewards import TASK
from surgeon.backend.training.weight_mask_bits import WeightMask, pack, unpack
from surgeon.core.plan.learned_results import REPORT, TENSORS, result_directory
from surgeon.errors import DataError, LearningError, RecipeError
from tests.backend.tiny_models import load_plainly, save_tiny, write_tokenizer
from tests.export.replaying import job_args
from tests.jobs import job_context, never, perform

Step = Mapping[str, Mapping[str, Any]]
PAIRS = [{"prompt": f"{at} and {at}", "chosen": f"is {2 * at}", "rejected": f"no idea {at}"} for at in range(12)]
TRIAL = {"data": "pairs.jsonl", "steps": 3, "batch_size": 3, "max_length": 32, "learning_rate": 1e-2}
TRAIN: Step = {"train": {"objective": {"dpo": {"keep_rejected": 0.2}}, **TRIAL}}


def mask(**fields: Any) -> Step:
    return {"mask_weights": {**TRIAL, **fields}}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny bfloat16 model with tied embeddings, its tokenizer, and pairs beside it."""
    return prepared(tmp_path, torch.bfloat16)


def prepared(directory: Path, dtype: torch.dtype) -> Path:
    model = save_tiny("qwen3", directory / "model", dtype, num_hidden_layers=3)
    write_tokenizer(model)
    (directory / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    return model


class Done:
    """A recipe that was run: the checkpoint's tensors, the results by step, and what was said."""

    def __init__(self, base: Path, out: Path, steps: Sequence[Step], **more: Any) -> None:
        self.said: list[str] = []
        args = job_args(base, out, steps, root=str(base.parent), device="cpu", **more)
        result = perform("run", args, lambda kind, body: self.said.append(str(body.get("text", ""))), never)
        self.tensors = load_file(out / "model.safetensors")
        self.addresses = [step["resolved"]["learned"][0] for step in result["recipe"]["steps"] if "resolved" in step]

    def report(self, at: int) -> dict[str, Any]:
        return dict(json.loads((result_directory(self.addresses[at]) / REPORT).read_text()))

    def result(self, at: int) -> dict[str, torch.Tensor]:
        return load_file(result_directory(self.addresses[at]) / TENSORS)


def result_name(name: str) -> str:
    """Return what a tensor of the untouched base is called in a result."""
    if not name.startswith("model.layers."):
        return f"outside/{name}"
    _, _, at, suffix = name.split(".", 3)
    return f"layers/{at}/{suffix}"


def bits_of(packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Unpack with numpy."""
    bits = np.unpackbits(packed.numpy(), bitorder="little", count=shape.numel())
    return torch.from_numpy(bits.astype(bool)).view(shape)


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_are_packed_as_numpy_packs_them(values: list[bool]) -> None:
    """The first in the lowest bit; and they come back."""
    bools = torch.tensor(values)
    packed = pack(bools)
    assert packed.numpy().tobytes() == np.packbits(bools.numpy(), bitorder="little").tobytes()
    assert torch.equal(unpack(packed, bools.shape), bools)


numbers = st.sampled_from([0.0, 1e-30, 0.5, 0.50000006, 1.0, 3.0]) | st.floats(0, 2.0**99, width=32)
importances = st.lists(st.lists(numbers, min_size=1, max_size=40), min_size=1, max_size=4)


@settings(deadline=None)
@given(values=importances, share=st.floats(0.01, 1), highest=st.booleans())
def test_exactly_the_most_important_weights_are_kept(values: list[list[float]], share: float, highest: bool) -> None:
    """As a stable sort of all weights of all tensors would choose them: ties go by position."""
    tensors = {f"{at}": torch.tensor(one, dtype=torch.float32) for at, one in enumerate(values)}
    everything = torch.cat(list(tensors.values()))
    wanted = max(1, round(share * len(everything)))
    order = "highest" if highest else "lowest"

    def keys() -> Any:
        for name, one in tensors.items():
            yield from weight_mask_selection._keys_of(name, one, order, 0)

    found = dict(weight_mask_selection._masks(tensors, weight_mask_selection.threshold_of(keys, wanted), order, 0))
    chosen = torch.cat([bits_of(found[name], one.shape) for name, one in tensors.items()])
    expected = torch.zeros(len(everything), dtype=torch.bool)
    expected[everything.sort(descending=highest, stable=True).indices[:wanted]] = True
    assert torch.equal(chosen, expected)


def test_weights_are_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the pieces changes nothing."""
    values = {"a": torch.rand(7, 11), "b": torch.rand(50).round(decimals=1)}
    found = []
    for size in (8, 1 << 20):
        monkeypatch.setattr(weight_mask_selection, "_CHUNK", size)

        def keys() -> Any:
            for name, one in values.items():
                yield from weight_mask_selection._keys_of(name, one, "highest", 0)

        found.append(
            dict(weight_mask_selection._masks(values, weight_mask_selection.threshold_of(keys, 40), "highest", 0))
        )
    assert all(torch.equal(found[0][name], found[1][name]) for name in values)


@pytest.mark.parametrize("fused", [False, True])
def test_a_masked_gradient_is_a_masked_update(fused: bool) -> None:
    """Bit for bit AdamW with moments from the whole gradient and an update times the mask, clipping included.

    The reference takes the unmasked step and gives the weights outside the mask their old values back.
    """
    torch.manual_seed(0)
    inputs, targets = torch.randn(16, 5), torch.randn(16, 3)
    nets = [torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    start = {name: one.detach().clone() for name, one in nets[0].named_parameters()}
    masks = {name: torch.rand(one.shape) < 0.3 for name, one in start.items()}
    inside = WeightMask({name: pack(one.flatten()) for name, one in masks.items()})
    optimizers = [torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0, fused=fused) for net in nets]
    for _ in range(20):
        for at, net in enumerate(nets):
            optimizers[at].zero_grad()
            torch.nn.functional.mse_loss(net(inputs), targets).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            if at == 0:
                for name, parameter in net.named_parameters():
                    assert parameter.grad is not None
                    inside(name, parameter.grad)
            optimizers[at].step()
        with torch.no_grad():
            for name, parameter in nets[1].named_parameters():
                parameter.copy_(torch.where(masks[name], parameter, start[name]))
    for (name, ours), reference in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(ours, reference), name
        assert torch.equal(ours[~masks[name]], start[name][~masks[name]])
        assert (ours != start[name])[masks[name]].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_gradient_is_masked_in_whatever_form_it_comes(dtype: torch.dtype, transposed: bool) -> None:
    """Longer than what is looked at in one go, of a length that fills no last byte, in any layout and dtype."""
    bools = torch.rand(777, 523, generator=torch.Generator().manual_seed(0)) < 0.3
    whole = torch.randn(777, 523, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradient = whole.t().contiguous().t() if transposed else whole.clone()
    WeightMask({"w": pack(bools.flatten())})("w", gradient)
    assert torch.equal(gradient, whole * bools)


def test_a_gradient_that_is_not_finite_outside_the_mask_is_zero_too() -> None:
    """Multiplying would leave nan."""
    gradient = torch.tensor([math.nan, 2.0, math.inf])
    WeightMask({"w": pack(torch.tensor([False, True, False]))})("w", gradient)
    assert gradient.tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize("order", ["highest", "lowest"])
def test_the_mask_holds_the_weights_that_a_trial_run_moves_most(order: str, tmp_path: Path) -> None:
    """The same run as a train step, from whose float32 export every weight's way is computed and sorted here."""
    base = prepared(tmp_path, torch.float32)
    trained = Done(base, tmp_path / "trained", [{"train": {"objective": "dpo", **TRIAL}}])
    masked = Done(base, tmp_path / "masked", [mask(keep=0.2, order=order)])
    before = load_file(base / "model.safetensors")
    assert all(torch.equal(masked.tensors[name], one) for name, one in before.items())
    packed = masked.result(0)
    assert set(packed) == {result_name(name) for name in before}
    found = {name: bits_of(packed[result_name(name)], one.shape) for name, one in before.items()}
    ways = {name: (trained.tensors[name] - one).abs() for name, one in before.items()}
    total = sum(one.numel() for one in before.values())
    assert sum(int(one.sum()) for one in found.values()) == round(0.2 * total)
    kept = torch.cat([ways[name][one] for name, one in found.items()])
    dropped = torch.cat([ways[name][~one] for name, one in found.items()])
    if order == "highest":
        assert kept.min() >= dropped.max()
    else:
        assert kept.max() <= dropped.min()


def test_weights_outside_the_mask_keep_every_bit(base: Path, tmp_path: Path) -> None:
    """In the exported bfloat16 bytes; inside it, weights of most tensors move; the density is exact to the weight."""
    done = Done(base, tmp_path / "out", [mask(keep=0.1), TRAIN], verify=True)
    before, packed = load_file(base / "model.safetensors"), done.result(0)
    total = sum(one.numel() for one in before.values())
    masks = {name: bits_of(packed[result_name(name)], one.shape) for name, one in before.items()}
    assert sum(int(one.sum()) for one in masks.values()) == round(0.1 * total)
    assert done.report(0)["mask"]["density"] == round(0.1 * total) / total
    moved = 0
    for name, one in before.items():
        changed = done.tensors[name].view(torch.int16) != one.view(torch.int16)
        assert not (changed & ~masks[name]).any(), name
        moved += int(changed.sum())
    assert moved > 0.5 * round(0.1 * total)


def test_training_inside_the_mask_is_training_with_a_masked_update(tmp_path: Path) -> None:
    """A loop of its own, in plain torch and transformers on the same batches, ends with the same float32 weights."""
    base = prepared(tmp_path, torch.float32)
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "2+2", "response": "is four"}))
    fields = {"data": "one.jsonl", "steps": 4, "batch_size": 1, "max_length": 32, "learning_rate": 1e-2}
    step: Step = {"train": {"objective": "sft", "scheduler": "constant", "warmup_ratio": 0.0, **fields}}
    done = Done(base, tmp_path / "out", [mask(keep=0.3), step])
    packed, model = done.result(0), load_plainly(base)
    names = {id(one): name for name, one in model.named_parameters()}
    start = {name: one.detach().clone() for name, one in model.named_parameters()}
    masks = {name: bits_of(packed[result_name(name)], one.shape) for name, one in start.items()}
    tokenizer = AutoTokenizer.from_pretrained(base)
    asked = tokenizer("2+2\n", add_special_tokens=False)["input_ids"]
    told = tokenizer("is four</s>", add_special_tokens=False)["input_ids"]
    tokens, labels = torch.tensor([asked + told]), torch.tensor([[-100] * len(asked) + told])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(4):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for one in model.parameters():
                one.copy_(torch.where(masks[names[id(one)]], one, start[names[id(one)]]))
    for name, one in model.named_parameters():
        torch.testing.assert_close(done.tensors[name], one.detach(), rtol=1e-3, atol=1e-4)


def test_a_random_mask_follows_the_seed_and_has_the_same_density(base: Path, tmp_path: Path) -> None:
    """What the highest are compared with: as many weights, drawn evenly."""
    done = Done(base, tmp_path / "out", [mask(keep=0.25, order="random", steps=1)])
    total = sum(one.numel() for one in load_file(base / "model.safetensors").values())
    figures = done.report(0)["mask"]
    assert figures["kept"] == round(0.25 * total)
    assert figures["weights"] == total
    assert figures["by_role"]["mlp.up"] == pytest.approx(0.25, abs=0.05)
    shape = torch.Size([500])
    named = [("a", 0), ("a", 0), ("a", 1), ("b", 0)]
    drawn = [next(weight_mask_selection._keys_of(name, torch.zeros(shape), "random", seed)) for name, seed in named]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])


def test_what_is_excluded_or_frozen_has_no_bits_and_does_not_move(base: Path, tmp_path: Path) -> None:
    """The share is one of the weights that are left; a tied embedding is one tensor and counts once."""
    steps: list[Step] = [{"freeze": {"layers": [0]}}, mask(keep=0.5, exclude=["embedding", "norm"]), TRAIN]
    done = Done(base, tmp_path / "out", steps)
    before = load_file(base / "model.safetensors")
    left = {name: one for name, one in before.items() if name.startswith(("model.layers.1.", "model.layers.2."))}
    assert set(done.result(0)) == {result_name(name) for name in left}
    assert done.report(0)["mask"]["weights"] == sum(one.numel() for one in left.values())
    assert all(torch.equal(done.tensors[name], one) for name, one in before.items() if name not in left)


def test_a_head_that_is_stored_beside_the_embedding_it_is_tied_to_goes_with_it(base: Path, tmp_path: Path) -> None:
    """Both copies hold what was trained, outside the mask what was there, and the export is that of the live model."""
    stored = load_file(base / "model.safetensors")
    before = stored["model.embed_tokens.weight"]
    save_file({**stored, "lm_head.weight": before.clone()}, base / "model.safetensors", metadata={"format": "pt"})
    done = Done(base, tmp_path / "out", [mask(keep=0.3), TRAIN], verify=True)
    after = done.tensors["model.embed_tokens.weight"]
    inside = bits_of(done.result(0)["outside/model.embed_tokens.weight"], before.shape)
    assert torch.equal(done.tensors["lm_head.weight"], after)
    assert torch.equal(after[~inside], before[~inside])
    assert not torch.equal(after, before)


def test_a_mask_follows_its_layers(base: Path, tmp_path: Path) -> None:
    """After pruning, positions are others and bits are not; a layer inserted later is outside the mask."""
    steps: list[Step] = [mask(keep=0.2), {"prune": {"layers": [0]}}, {"expand": {"after": [0], "init": "copy"}}, TRAIN]
    done = Done(base, tmp_path / "out", steps)
    before, packed = load_file(base / "model.safetensors"), done.result(0)
    for old, new in ((1, 0), (2, 2)):
        for name in (name for name in before if name.startswith(f"model.layers.{old}.")):
            now = done.tensors[name.replace(f".{old}.", f".{new}.", 1)]
            outside = ~bits_of(packed[result_name(name)], before[name].shape)
            assert torch.equal(now[outside], before[name][outside])
    assert torch.equal(done.tensors["model.layers.1.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"])
    assert not done.tensors["model.layers.1.mlp.down_proj.weight"].any()


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        ([mask(), {"train": {**TRAIN["train"], "weight_decay": 0.1}}], "weight_decay"),
        ([mask(), {"masked_lora": {"layers": "all"}}, TRAIN], "mask"),
        ([{"masked_lora": {"layers": "all"}}, mask()], "adapters"),
        ([{"freeze": {"layers": "all"}}, mask(exclude=["embedding", "head", "norm"])], "excluded"),
        ([mask(exclude=["head"])], "tied to the embedding"),
        ([mask(keep=0)], "keep"),
        ([mask(order="middle")], "order"),
    ],
)
def test_what_does_not_go_with_a_mask_is_refused_by_name(
    steps: list[Step], what: str, base: Path, tmp_path: Path
) -> None:
    """Weight decay would move weights by itself; adapters are no weights of the model; a tied head is none either."""
    with pytest.raises(RecipeError, match=what):
        Done(base, tmp_path / "out", steps)


def test_a_mask_of_which_all_is_frozen_leaves_nothing_to_train(base: Path, tmp_path: Path) -> None:
    """Said by name, not by an optimiser without parameters."""
    steps: list[Step] = [mask(exclude=["embedding", "norm"]), {"freeze": {"layers": "all"}}, TRAIN]
    with pytest.raises(LearningError, match="inside the mask"):
        Done(base, tmp_path / "out", steps)


FORGET = {"train": {"objective": "npo", **TRIAL}}


def test_forgetting_without_token_rewards_is_called_untargeted(base: Path, tmp_path: Path) -> None:
    """In what is said and in the result's report."""
    done = Done(base, tmp_path / "out", [FORGET])
    assert any("untargeted" in text for text in done.said)
    assert any("untargeted" in text for text in done.report(0)["remarks"])


def test_rows_that_are_left_out_are_told_of(base: Path, tmp_path: Path) -> None:
    """Rows whose answer lies beyond the length must not vanish in silence."""
    rows = [*PAIRS, {"prompt": "a question that is far too long for it", "chosen": "yes", "rejected": "no"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = Done(base, tmp_path / "out", [TRAIN])
    assert done.report(0)["remarks"] == ["1 of 13 rows have no answer within 32 tokens and are left out"]


def test_token_rewards_of_a_file_say_what_is_forgotten(base: Path, tmp_path: Path) -> None:
    """Tokens above the threshold lose nothing: where all are, nothing is learned; and the run counts as targeted."""
    for name, reward in (("keep", 0.9), ("drop", 0.1)):
        rows = [{**pair, "reward": [reward] * (len(pair["rejected"]) + 1)} for pair in PAIRS]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = load_file(base / "model.safetensors")
    moved = {}
    for name in ("keep", "drop"):
        done = Done(base, tmp_path / name, [{"train": {**FORGET["train"], "data": f"{name}.jsonl"}}])
        assert done.report(0)["remarks"] == []
        moved[name] = any(not torch.equal(done.tensors[key], one) for key, one in before.items())
    assert moved == {"keep": False, "drop": True}


def test_a_rewriter_judges_each_token_of_a_wrong_answer(base: Path, tmp_path: Path) -> None:
    """Its probabilities are those of plain transformers, and the run counts as targeted."""
    from surgeon.backend.data.rows import read_rows
    from surgeon.backend.training.rewriter_rewards import rewarding_of
    from surgeon.objectives.npo import NegativePreference

    tokenizer = AutoTokenizer.from_pretrained(base)
    rewarding = rewarding_of(
        NegativePreference(rewriter="model"), tmp_path, tokenizer, torch.device("cpu"), job_context()
    )
    assert rewarding is not None
    rows = rewarding(read_rows("pairs.jsonl", tmp_path)[0])
    model = load_plainly(base).float()
    for row, pair in zip(rows, PAIRS, strict=True):
        asked = TASK.format(asked=pair["prompt"], right=pair["chosen"], wrong=pair["rejected"])
        told = tokenizer(f"{asked}\n", add_special_tokens=False)["input_ids"]
        wrong = tokenizer(f"{pair['rejected']}</s>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            every = model(torch.tensor([told + wrong])).logits[0].softmax(-1)
        expected = [every[len(told) - 1 + at, token].item() for at, token in enumerate(wrong)]
        assert row.rewards == pytest.approx(expected, rel=1e-4)
    step: Step = {"train": {"objective": {"npo": {"rewriter": "model"}}, **TRIAL}}
    done = Done(base, tmp_path / "out", [step])
    assert done.report(0)["remarks"] == []


def test_a_rewriter_with_other_tokens_is_refused(base: Path, tmp_path: Path) -> None:
    """Its rewards would fit none of the model's tokens."""
    other = save_tiny("llama", tmp_path / "other")
    write_tokenizer(other, template="{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}!{% endfor %}")
    step: Step = {"train": {"objective": {"npo": {"rewriter": "other"}}, **TRIAL}}
    with pytest.raises(DataError, match="other tokens") as caught:
        Done(base, tmp_path / "out", [step])
    assert caught.value.where.endswith("line 1")
