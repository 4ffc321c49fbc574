"""Experts, neurons and heads removed, sublayers silenced: against the masked base, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon.cli.dry_run import fold_recipe
from surgeon.core.plan.kv_cache import kv_cache
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.recipe import recipe_from_builtins, recipe_to_builtins
from surgeon.errors import ArchitectureError, RecipeError, SurgeonError
from tests.architectures import masking
from tests.architectures.building import small_config, tiny_model
from tests.backend.quantised_bases import fp8_blocks, fp8_whole, plain_base, quantised_base
from tests.backend.tiny_models import load_plainly, save_tiny, some_tokens, write_tokenizer
from tests.export.replaying import run
from tests.scores.sample_models import open_draft, patient

pytestmark = pytest.mark.filterwarnings("ignore")
_RANKED = {
    "narrow": {"neurons": "lowest 25% by neuron_activation", "heads": "lowest 1 by head_activation", "multiple": 8}
}


def _saved(model_type: str, directory: Path, **own: Any) -> Path:
    model: Any = tiny_model(small_config(model_type, own or None))
    model.save_pretrained(directory)
    return directory


def _refused(base: Path, *steps: Mapping[str, Any]) -> SurgeonError:
    with pytest.raises((ArchitectureError, RecipeError)) as caught:
        compile_plan(open_draft(base, *steps))
    assert caught.value.allowed or caught.value.hint
    return caught.value


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "mixtral"])
def test_what_is_written_is_what_was_previewed(family: str, tmp_path: Path) -> None:
    base = save_tiny(family, tmp_path / "base", torch.bfloat16)
    write_tokenizer(base)
    cut: Any = (
        {"prune_experts": {"experts": "1"}} if family == "mixtral" else {"narrow": {"neurons": "0-7", "heads": "0"}}
    )
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(base)}, "steps": [cut]})
    folded = fold_recipe(recipe, tmp_path)
    proof = run(base, tmp_path / "out", cut, verify=True)["proof"]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    before = load_file(base / "model.safetensors")

    assert "bit for bit" in proof["logits"]["detail"]
    assert sum(tensor.numel() for tensor in stored.values()) == folded.plan.parameters
    assert (
        sum(tensor.nbytes for tensor in stored.values())
        == folded.plan.nbytes
        < sum(tensor.nbytes for tensor in before.values())
    )
    assert folded.reports[0].changes == "cut 6"
    caches = [kv_cache(open_draft(base)), kv_cache(folded.drafts[-1])]
    assert (caches[0] == caches[1]) == (family == "mixtral")


def test_a_choice_by_scores_is_recorded_and_replayed(tmp_path: Path) -> None:
    """What the scores came to stands in the recipe; run again, the weights are the same."""
    base = patient("llama", tmp_path / "base")
    run(base, tmp_path / "out", _RANKED)
    written = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "resolved" in written
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["intermediate_size"], config["num_key_value_heads"], config["head_dim"]) == (
        40,
        1,
        8,
    )  # 36, up to a multiple of 8
    run(base, tmp_path / "again", _RANKED)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_cuts_follow_each_other_and_layers_of_them_are_pruned_duplicated_and_averaged(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    write_tokenizer(base)
    steps = (
        {"narrow": {"neurons": "0-7"}},
        {"narrow": {"neurons": "0-7", "heads": "1"}},
        {"prune": {"layers": [1]}},
        {"expand": {"after": [2], "init": "mean"}},
        {"expand": {"after": [0], "init": "duplicate"}},
    )
    proof = run(base, tmp_path / "out", *steps, verify=True)["proof"]
    once = {"narrow": {"neurons": "0-15", "heads": "1"}}
    run(base, tmp_path / "once", once, *steps[2:])
    found, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "once"))

    assert "bit for bit" in proof["logits"]["detail"]
    assert found.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in found.items())


def test_a_silenced_sublayer_is_gone_to_the_bit(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    write_tokenizer(base)
    run(base, tmp_path / "out", {"silence": {"sublayers": ["1.mlp", "3.attention"]}}, verify=True)
    model = load_plainly(base)
    with (
        masking.without_sublayer(model.model.layers, 1, "mlp"),
        masking.without_sublayer(model.model.layers, 3, "attention"),
    ):
        expected = model(some_tokens()).logits

    assert torch.equal(load_plainly(tmp_path / "out")(some_tokens()).logits, expected)


def test_correction_biases_are_masked_in_the_choice_of_experts_not_in_the_score(tmp_path: Path) -> None:
    base = _saved("deepseek_v3", tmp_path / "base")
    run(base, tmp_path / "out", {"prune_experts": {"experts": "0"}})
    stored = load_file(tmp_path / "out" / "model.safetensors")

    biases = [tensor for name, tensor in stored.items() if name.endswith("e_score_correction_bias")]
    assert biases and all(bias.shape == (3,) for bias in biases)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["n_routed_experts"] == 3


@pytest.mark.parametrize(
    ("model_type", "step", "where"),
    [
        ("mixtral", {"prune_experts": {"experts": "0-2"}}, "num_experts_per_tok"),
        ("mixtral", {"prune_experts": {"experts": "0.1"}}, "num_local_experts"),
        ("llama", {"prune_experts": {"experts": "0"}}, "model_type llama"),
        ("deepseek_v4", {"prune_experts": {"experts": "0"}}, "tid2eid"),
        ("deepseek_v3", {"narrow": {"heads": "0"}}, "model_type deepseek_v3"),
        ("gpt_oss", {"narrow": {"heads": "0"}}, "sinks"),
        ("bloom", {"narrow": {"heads": "0"}}, "head_dim"),
        ("gpt2", {"narrow": {"heads": "0"}}, "head_dim"),
        ("mamba2", {"narrow": {"heads": "0"}}, "mamba2"),
        ("qwen3_next", {"narrow": {"heads": "0"}}, ""),
        ("bitnet", {"narrow": {"neurons": "0"}}, "ffn_sub_norm"),
        ("llama", {"narrow": {"neurons": "3.0"}}, "intermediate_size"),
        ("deepseek_v4", {"silence": {"layers": [1], "sublayer": "mlp"}}, "hc_attn_fn"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_the_name_of_what_stops_it(
    model_type: str, step: Mapping[str, Any], where: str, tmp_path: Path
) -> None:
    error = _refused(_saved(model_type, tmp_path / "base"), step)
    assert where in f"{error.where} {error.what}"


def test_groups_of_experts_lose_as_many_each(tmp_path: Path) -> None:
    base = save_grouped(tmp_path / "base")
    assert "n_group" in _refused(base, {"prune_experts": {"experts": "0,1"}}).where
    run(base, tmp_path / "out", {"prune_experts": {"experts": "0,4"}})
    model, expected = load_plainly(tmp_path / "out"), load_plainly(base)
    gone = dict.fromkeys(range(1, 8), (0, 4))
    with masking.without_experts(expected.model.layers, gone, experts=8):
        masked = expected(some_tokens()).logits
    torch.testing.assert_close(model(some_tokens()).logits, masked, rtol=1e-4, atol=1e-5)


def save_grouped(directory: Path) -> Path:
    """Save a DeepSeek-V3 of two groups of four experts, of which a token may use one."""
    from tests.architectures.settings import OWN

    own = {**OWN["deepseek_v3"], "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    return _saved("deepseek_v3", directory, **own)


@pytest.mark.parametrize("pack", [fp8_blocks, fp8_whole])
@pytest.mark.parametrize(
    "step",
    [{"narrow": {"neurons": "0-15"}}, {"narrow": {"heads": "0"}}, {"silence": {"layers": [1], "sublayer": "mlp"}}],
)
def test_quantised_weights_are_not_cut_and_not_silenced(pack: Any, step: Mapping[str, Any], tmp_path: Path) -> None:
    config = {"quant_method": "fp8", "weight_block_size": [16, 16]} if pack is fp8_blocks else None
    base = quantised_base(plain_base(tmp_path / "plain"), tmp_path / "base", pack, config)
    error = _refused(base, step)
    assert "quanti" in f"{error.where} {error.what}" or "scale" in error.where


def test_scales_travel_with_their_experts(tmp_path: Path) -> None:
    """Every tensor of an expert that stays is its own under its new number; the router keeps their rows."""
    plain = save_tiny("mixtral", tmp_path / "base", torch.bfloat16)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        packed = fp8_whole(name, tensor.float()) if ".experts." in name else {name: tensor}
        tensors |= packed
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    run(plain, tmp_path / "out", {"prune_experts": {"experts": "0,2"}}, verify=False)
    found = load_file(tmp_path / "out" / "model.safetensors")

    for name, tensor in found.items():
        of = name.replace("experts.1.", "experts.3.").replace("experts.0.", "experts.1.")
        kept = tensors[of][[1, 3]] if name.endswith("gate.weight") else tensors[of]
        assert tensor.dtype == kept.dtype and torch.equal(tensor.float(), kept.float()), name
    assert sum("_scale" in name for name in found) == 6 * 2 * 3


def test_the_recipe_keeps_what_was_asked_for() -> None:
    plain = {
        "version": 1,
        "base": {"model": "x"},
        "steps": [dict(_RANKED), {"silence": {"sublayers": "lowest 2 by shapley"}}],
    }
    assert recipe_to_builtins(recipe_from_builtins(plain))["steps"] == plain["steps"]


def test_a_count_that_the_config_says_twice_is_changed_twice(tmp_path: Path) -> None:
    base = save_tiny("mixtral", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    text = {"num_hidden_layers": config["num_hidden_layers"], "num_local_experts": 4, "model_type": "mixtral"}
    (base / "config.json").write_text(json.dumps({**config, "text_config": text}))
    found = compile_plan(open_draft(base, {"prune_experts": {"experts": "0"}})).config

    assert found["num_local_experts"] == found["text_config"]["num_local_experts"] == 3


def test_what_was_learned_is_cut_as_it_was_learned(tmp_path: Path) -> None:
    """Trained and then cut: the written weights are the trained ones without the neurons that go."""
    base = patient("llama", tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text('{"text": "abcabcabcabc"}\n' * 4)
    learning = {"steps": 2, "batch_size": 1, "learning_rate": 0.1}
    train = {"train": {"objective": "lm", "data": str(tmp_path / "rows.jsonl"), **learning}}
    run(base, tmp_path / "whole", train)
    proof = run(base, tmp_path / "cut", train, {"narrow": {"neurons": "0-7"}}, verify=True)["proof"]
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))

    assert "bit for bit" in proof["logits"]["detail"]
    name = "model.layers.2.mlp.down_proj.weight"
    assert torch.equal(cut[name], whole[name][:, 8:])
    assert not torch.equal(whole[name], load_file(base / "model.safetensors")[name])
