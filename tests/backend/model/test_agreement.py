"""In memory = on disk: exports reload in plain transformers and compute what the live edited model computes.

The third witness knows nothing of surgeon: the untouched base, its own layers called in another order.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.in_memory_executor import apply_draft
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins
from tests.backend.tiny_models import FAMILIES, LAYERS, load_plainly, reference_logits, save_tiny, some_tokens
from tests.export.replaying import Step, run

Order = list[int | None]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One saved tiny model per family, made when it is first asked for."""
    root = tmp_path_factory.mktemp("bases")
    return functools.cache(lambda family, dtype=torch.float32: save_tiny(family, root / f"{family}-{dtype}", dtype))


load = functools.cache(load_plainly)


def steps_and_order(draw: Any) -> tuple[list[dict[str, Any]], Order]:
    """Draw a recipe, and tell by list arithmetic which base layer then stands where (None: an identity)."""
    order: Order = list(range(LAYERS))
    steps: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        places = draw(st.lists(st.integers(0, len(order) - 1), min_size=1, max_size=3, unique=True))
        kind = draw(st.sampled_from(["prune", "copy", "mean", "duplicate", "freeze"]))
        if kind == "freeze":
            steps.append({"freeze": {"layers": places}})
        elif kind == "prune":
            left = [layer for at, layer in enumerate(order) if at not in places]
            if not any(layer is not None for layer in left):
                continue
            order = left
            steps.append({"prune": {"layers": places}})
        else:
            steps.append({"expand": {"after": places, "init": kind}})
            twice = {at: order[at] if kind == "duplicate" else None for at in places}
            order = [one for at, layer in enumerate(order) for one in ([layer, twice[at]] if at in twice else [layer])]
    return steps, order


def draft(base: Path, steps: Sequence[Mapping[str, Any]]) -> Any:
    """Return the draft of a recipe."""
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(base)}, "steps": list(steps)})
    return fold(draft_of(read_structure(open_checkpoint(base))), recipe.steps)


@torch.inference_mode()
def logits(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return a model's logits."""
    found: torch.Tensor = model(input_ids=tokens_BT, use_cache=False).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_of_steps_computes_the_same_on_disk_in_memory_and_by_hand(
    family: str, data: st.DataObject, bases: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bit for bit, whatever was pruned, inserted, duplicated or frozen, and in whatever order."""
    steps, order = steps_and_order(data.draw)
    base, out = bases(family), tmp_path_factory.mktemp("out") / "out"
    run(base, out, *steps)
    tokens_BT = some_tokens()
    exported = load_plainly(out)
    found = logits(exported, tokens_BT)
    by_hand = reference_logits(load(base), family, [layer for layer in order if layer is not None], tokens_BT)
    with apply_draft(load(base), draft(base, steps)) as live:
        in_memory = logits(live, tokens_BT)
    assert torch.equal(found, by_hand)
    assert torch.equal(found, in_memory)
    assert exported.config.num_hidden_layers == len(order)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_told_to_change_nothing_is_the_base(family: str, bases: Any) -> None:
    """So that the witness can be believed."""
    model = load(bases(family))
    expected = logits(model, some_tokens())
    assert torch.equal(reference_logits(model, family, range(LAYERS), some_tokens()), expected)
    other = reference_logits(model, family, [0, 2, 1, 3, 4, 5], some_tokens())
    assert (other - expected).abs().max() > 1e-3


@pytest.mark.parametrize("init", ["copy", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_inserted_identities_do_not_change_a_bit(family: str, init: str, bases: Any, tmp_path: Path) -> None:
    """After every layer, the last one too, and with a prompt longer than the sliding window."""
    base = bases(family)
    run(base, tmp_path / "out", {"expand": {"after": list(range(LAYERS)), "init": init}})
    model = load(tmp_path / "out")
    assert model.config.num_hidden_layers == 2 * LAYERS
    assert torch.equal(logits(model, some_tokens()), logits(load(base), some_tokens()))


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_equals_generation_without(family: str, bases: Any, tmp_path: Path) -> None:
    """Layer numbers, per-layer lists and cache slots fit after removing and inserting."""
    steps: list[Step] = [
        {"prune": {"layers": [1]}},
        {"expand": {"after": [0, 2], "init": "duplicate"}},
        {"prune": {"layers": [4]}},
    ]
    run(bases(family), tmp_path / "out", *steps)
    model = load(tmp_path / "out")
    tokens_BT = some_tokens(1, 12)
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(tokens_BT),
        "do_sample": False,
        "max_new_tokens": 16,
        "min_new_tokens": 16,
    }
    cached = model.generate(tokens_BT, use_cache=True, **options)
    assert torch.equal(cached, model.generate(tokens_BT, use_cache=False, **options))
    assert cached.shape == (1, 28)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mean_of_weights_is_the_float64_mean_rounded_once(dtype: torch.dtype, bases: Any, tmp_path: Path) -> None:
    """Every tensor of the inserted layer but the silenced ones, against numpy in float64."""
    from safetensors.torch import load_file

    base = bases("llama", dtype)
    run(base, tmp_path / "out", {"expand": {"after": [2], "init": "mean"}})
    before, after = (load_file(place / "model.safetensors") for place in (base, tmp_path / "out"))
    inserted = {name for name in after if name.startswith("model.layers.3.")}
    for name in inserted:
        suffix = name.removeprefix("model.layers.3.")
        if suffix in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            assert not after[name].any()
            continue
        left, right = (before[f"model.layers.{at}.{suffix}"].double().numpy() for at in (2, 3))
        assert torch.equal(after[name], torch.from_numpy((left + right) / 2).to(dtype))
    assert len(inserted) == 9


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gpt2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("init", ["copy", "mean"])
def test_the_first_step_moves_only_the_silenced_tensors_of_an_identity(
    family: str, init: str, bases: Any, tmp_path: Path
) -> None:
    """Behind a zeroed projection no gradient arrives: q, k, v, gate, up and the norms are exactly still."""
    run(bases(family), tmp_path / "out", {"expand": {"after": [2], "init": init}})
    model = load_plainly(tmp_path / "out").train()
    tokens_BT = some_tokens()
    model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    outputs = ("o_proj", "down_proj", "attn.c_proj", "mlp.c_proj", "dense.", "dense_4h_to_h")
    moved = set()
    for name, parameter in model.named_parameters():
        if ".3." in name and parameter.grad is not None and parameter.grad.any():
            moved.add(name)
    assert moved
    assert all(any(part in name for part in outputs) for name in moved), moved
    assert len({part for part in outputs for name in moved if part in name}) == 2


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_a_gemma_identity_learns_without_exploding(family: str, bases: Any, tmp_path: Path) -> None:
    """Its norms are silenced, not the projections before them: there the norm's Jacobian would be about 1000."""
    run(bases(family), tmp_path / "out", {"expand": {"after": [2], "init": "copy"}})
    model = load_plainly(tmp_path / "out").train()
    tokens_BT = some_tokens()
    model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    gradients = {
        name: parameter.grad.norm().item() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    inserted = {name: norm for name, norm in gradients.items() if ".layers.3." in name}
    moved = {name for name, norm in inserted.items() if norm > 0}
    assert {name.split(".")[-2] for name in moved} == {"post_attention_layernorm", "post_feedforward_layernorm"}
    others = max(norm for name, norm in gradients.items() if ".layers." in name and name not in inserted)
    assert max(inserted.values()) < 10 * others


@pytest.mark.parametrize("family", FAMILIES)
def test_verification_passes_what_is_right(family: str, bases: Any, tmp_path: Path) -> None:
    """The proof names every check; nothing is missing from any family's."""
    steps: list[Step] = [
        {"prune": {"layers": [4]}},
        {"expand": {"after": [1], "init": "mean"}},
        {"freeze": {"except": "inserted"}},
    ]
    proof = run(bases(family), tmp_path / "out", *steps, verify=True)["proof"]
    assert set(proof) == {"keys", "logits", "text", "identities", "tokenizer", "trainable", "adapter", "generation"}
    # A base without a tokenizer has none to compare, and no text.
    assert {name for name, check in proof.items() if not check["passed"]} <= {"tokenizer", "text"}
    assert all(check["passed"] is not False for check in proof.values())
    assert "1 inserted" in proof["identities"]["detail"]


def test_the_base_is_whole_again_after_an_operation_even_after_an_error(bases: Any) -> None:
    """The resident model serves the next job."""
    base = bases("gemma2")
    model = load_plainly(base)
    before, config = logits(model, some_tokens()), model.config.to_dict()
    edited = draft(base, [{"prune": {"layers": [0, 3]}}, {"expand": {"after": [1], "init": "duplicate"}}])
    with pytest.raises(KeyError), apply_draft(model, edited):
        raise KeyError
    assert torch.equal(logits(model, some_tokens()), before)
    assert model.config.to_dict() == config
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(LAYERS))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi3", "mixtral"])
def test_what_is_calculated_is_rounded_in_float32_too_as_it_is_written(family: str, bases: Any, tmp_path: Path) -> None:
    """A bfloat16 checkpoint that is measured in float32, as on a CPU, has the weights of its export."""
    base = bases(family, torch.bfloat16)
    steps: list[Step] = [
        {"expand": {"after": [1], "init": "mean"}},
        {"prune": {"layers": "last 2", "fold": True}},
        {"truncate": {"layers": "0-2", "roles": ["attention.output"], "deciles": [10]}},
    ]
    run(base, tmp_path / "out", *steps)
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(base)}, "steps": steps})
    draft = fold(draft_of(read_structure(open_checkpoint(base))), recipe.steps)
    with apply_draft(load_plainly(base).float(), draft) as model:
        found = {name: value.clone() for name, value in model.state_dict().items()}
    written = load_plainly(tmp_path / "out").state_dict()
    assert found.keys() == written.keys()
    for name, value in written.items():
        assert torch.equal(found[name], value.float()), name
