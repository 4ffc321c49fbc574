"""Adapters from PEFT: read, carried where the layers go, merged, exported for the edited base, refused by name."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from surgeon.backend.model.adapters import without_deprecations
from surgeon.core.adapters.peft_files import open_adapter
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import dump_recipe, load_recipe, recipe_from_builtins
from surgeon.errors import CheckpointError, RecipeError, SurgeonError
from surgeon.session import Session
from tests.backend.tiny_models import load_plainly, save_tiny, some_tokens
from tests.config_formats.peers import draft_at, recipe_of
from tests.export.replaying import run

Bases = Callable[[str], Path]
Adapters = Callable[..., Path]
CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "v_proj", "up_proj"]},
    "patterns": {
        "target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}
    },
    "rslora": {"target_modules": ["o_proj", "down_proj"], "use_rslora": True},
}  # fmt: skip
EDIT = ({"prune": {"layers": [1, 4]}}, {"reorder": {"order": [0, 2, 1, 3]}})
ORDER = (0, 3, 2, 5)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    root = tmp_path_factory.mktemp("bases")
    return functools.cache(lambda family: save_tiny(family, root / family))


@pytest.fixture(scope="module")
def adapters(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    root = tmp_path_factory.mktemp("adapters")
    made: dict[str, Path] = {}

    def adapter(name: str, family: str = "llama", **config: Any) -> Path:
        key = f"{family}-{name}"
        if key not in made:
            made[key] = save_adapter(bases(family), root / key, **{"r": 4, "lora_alpha": 16, **config})
        return made[key]

    return adapter


def save_adapter(base: Path, directory: Path, **config: Any) -> Path:
    """Save an adapter whose B is not zero."""
    with without_deprecations():
        model: Any = get_peft_model(load_plainly(base), LoraConfig(**config))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(directory), save_embedding_layers=False)
    return directory


def load(adapter: Path) -> dict[str, Any]:
    return {"load_adapter": {"from": str(adapter)}}


def adapted(base: Path, *steps: Any) -> Draft:
    return fold(draft_at(base), recipe_of(base, steps).steps)


def with_peft(model: nn.Module, adapter: Path) -> Any:
    with without_deprecations():
        return PeftModel.from_pretrained(model, str(adapter))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(some_tokens(), use_cache=False).logits
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_goes_where_its_layers_go(bases: Bases, adapters: Adapters, name: str, tmp_path: Path) -> None:
    """Told without surgeon: PEFT's own model, its adapted layers called in the new order."""
    base, adapter = bases("llama"), adapters(name, **CONFIGS[name])
    result = run(base, tmp_path / "out", load(adapter), *EDIT, verify=True)
    assert "equal bit for bit" in result["proof"]["adapter"]["detail"]
    reference = with_peft(load_plainly(base), adapter)
    inner: Any = reference.get_base_model().model
    inner.layers = nn.ModuleList([inner.layers[at] for at in ORDER])
    expected = logits(reference)
    found = logits(with_peft(load_plainly(tmp_path / "out"), tmp_path / "out" / "adapter"))
    assert not torch.equal(found, logits(load_plainly(tmp_path / "out")))
    if name == "rslora":  # its scale is told as an alpha, which rounds once more
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found, expected)


def test_weights_stored_the_other_way_round_keep_their_adapters(
    bases: Bases, adapters: Adapters, tmp_path: Path
) -> None:
    config = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    base, adapter = bases("gpt2"), adapters("lora", "gpt2", **config)
    result = run(base, tmp_path / "out", load(adapter), {"prune": {"layers": [0]}}, verify=True)
    assert "equal bit for bit" in result["proof"]["adapter"]["detail"]
    reference = with_peft(load_plainly(base), adapter)
    blocks = reference.get_base_model().transformer
    blocks.h = nn.ModuleList(list(blocks.h)[1:])
    found = with_peft(load_plainly(tmp_path / "out"), tmp_path / "out" / "adapter")
    assert torch.equal(logits(found), logits(reference))


def test_an_unedited_base_gets_the_same_adapter_back(bases: Bases, adapters: Adapters, tmp_path: Path) -> None:
    adapter = adapters("lora", **CONFIGS["lora"])
    run(bases("llama"), tmp_path / "out", load(adapter), verify=True)
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", CONFIGS)
def test_merging_is_peft_s_merging(bases: Bases, adapters: Adapters, name: str, tmp_path: Path) -> None:
    base, adapter = bases("llama"), adapters(name, **CONFIGS[name])
    run(base, tmp_path / "out", load(adapter), {"merge_adapters": {}}, verify=True)
    expected = with_peft(load_plainly(base), adapter).merge_and_unload().state_dict()
    found: Any = load_plainly(tmp_path / "out")
    for key, value in found.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_part_can_be_dropped(bases: Bases, adapters: Adapters) -> None:
    steps = (load(adapters("lora", **CONFIGS["lora"])), {"drop_adapters": {"layers": "0-3", "roles": ["mlp"]}})
    modules = [one.module for one in compile_plan(adapted(bases("llama"), *steps)).adapters]
    assert len(modules) == 6 * 3 - 4
    assert "model.layers.0.mlp.up_proj" not in modules


def test_a_copy_of_an_adapted_layer_is_refused(bases: Bases, adapters: Adapters) -> None:
    with pytest.raises(RecipeError, match="trained adapter"):
        adapted(bases("llama"), load(adapters("lora", **CONFIGS["lora"])), {"expand": {"after": [0]}})


def test_a_second_adapter_on_a_matrix_is_refused(bases: Bases, adapters: Adapters) -> None:
    adapter = adapters("lora", **CONFIGS["lora"])
    with pytest.raises(RecipeError, match="layer 0 already has an adapter"):
        adapted(bases("llama"), load(adapter), load(adapter))


def test_masks_of_open_gates_need_a_start(bases: Bases, adapters: Adapters) -> None:
    adapter = load(adapters("lora", **CONFIGS["lora"]))
    with pytest.raises(RecipeError, match="none would move"):
        adapted(bases("llama"), adapter, {"learn_masks": {}})
    adapted(bases("llama"), adapter, {"learn_masks": {"init": 4}})


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, "DoRA"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "lm_head"),
        ({"target_modules": ["embed_tokens"]}, "LoRA on an embedding"),
        ({"target_modules": ["lm_head"]}, "belongs to no layer"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3]}, "trainable tokens"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "pissa"),
    ],
)
def test_what_cannot_be_carried_is_named(bases: Bases, config: dict[str, Any], named: str, tmp_path: Path) -> None:
    adapter = save_adapter(bases("llama"), tmp_path / "adapter", **{"r": 4, **config})
    with pytest.raises(SurgeonError, match=r"merge it with PEFT|matrices of layers") as caught:
        adapted(bases("llama"), load(adapter))
    assert named in str(caught.value)


def test_an_adapter_of_another_model_is_refused(bases: Bases, adapters: Adapters) -> None:
    adapter = adapters("lora", **CONFIGS["lora"])
    with pytest.raises(SurgeonError, match="is no module of this model"):
        adapted(bases("gpt2"), load(adapter))
    pruned = adapted(bases("llama"), {"prune": {"layers": [5]}})
    assert len(pruned.layers()) == 5
    with pytest.raises(SurgeonError, match=r"model\.layers\.5"):
        adapted(bases("llama"), {"prune": {"layers": [5]}}, load(adapter))


def changed(adapter: Path, directory: Path, **config: Any) -> Path:
    shutil.copytree(adapter, directory)
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return directory


def test_a_config_that_contradicts_the_weights_is_refused(adapters: Adapters, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the config says rank 5"):
        open_adapter(changed(adapters("lora", **CONFIGS["lora"]), tmp_path / "other", r=5))


def test_other_kinds_and_pickles_are_refused(adapters: Adapters, tmp_path: Path) -> None:
    adapter = adapters("lora", **CONFIGS["lora"])
    with pytest.raises(CheckpointError, match="IA3"):
        open_adapter(changed(adapter, tmp_path / "ia3", peft_type="IA3"))
    pickle = changed(adapter, tmp_path / "pickle")
    (pickle / "adapter_model.safetensors").rename(pickle / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="in safetensors"):
        open_adapter(pickle)
    with pytest.raises(CheckpointError, match="there is no adapter_config"):
        open_adapter(tmp_path)


def test_a_half_of_a_pair_is_refused(adapters: Adapters, tmp_path: Path) -> None:
    half = changed(adapters("lora", **CONFIGS["lora"]), tmp_path / "half")
    tensors = load_file(half / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.2.mlp.up_proj.lora_B.weight"]
    save_file(tensors, half / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="not both A and B"):
        open_adapter(half)


def test_the_fingerprint_names_the_bytes_and_the_scale(adapters: Adapters, tmp_path: Path) -> None:
    adapter = adapters("lora", **CONFIGS["lora"])
    own = open_adapter(adapter).fingerprint
    assert open_adapter(changed(adapter, tmp_path / "moved", base_model_name_or_path="x")).fingerprint == own
    assert open_adapter(changed(adapter, tmp_path / "scaled", lora_alpha=8)).fingerprint != own


def test_a_changed_adapter_is_noticed(bases: Bases, adapters: Adapters) -> None:
    step = {"load_adapter": {"from": str(adapters("lora", **CONFIGS["lora"])), "fingerprint": "0" * 16}}
    with pytest.raises(RecipeError, match="fingerprint"):
        adapted(bases("llama"), step)


def test_base_with_an_adapter_is_short_for_the_step(bases: Bases, adapters: Adapters, tmp_path: Path) -> None:
    adapter = adapters("lora", **CONFIGS["lora"])
    base = {"model": str(bases("llama")), "adapter": str(adapter)}
    recipe = recipe_from_builtins({"version": 1, "base": base, "steps": [{"prune": {"layers": "2"}}]})
    assert [step.operation.name for step in recipe.steps] == ["load_adapter", "prune"]
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_opening_an_adapter_opens_its_base_with_it(bases: Bases, adapters: Adapters, tmp_path: Path) -> None:
    adapter = adapters("lora", **CONFIGS["lora"])
    session = Session.open(str(adapter))
    assert session.structure.checkpoint.path == bases("llama")
    assert len(session.plan.adapters) == 18
    session.apply(session.step("prune", {"layers": "0-1"}))
    path = session.save(tmp_path / "recipe.yaml")
    session.close()
    again = Session.open(str(adapter), path)
    assert len(again.plan.adapters) == 12
    again.close()


def test_the_adapter_beside_an_export_finds_its_base(bases: Bases, adapters: Adapters, tmp_path: Path) -> None:
    run(bases("llama"), tmp_path / "out", load(adapters("lora", **CONFIGS["lora"])), *EDIT)
    session = Session.open(str(tmp_path / "out" / "adapter"))
    assert session.structure.checkpoint.path.resolve() == (tmp_path / "out").resolve()
    assert len(session.plan.adapters) == 12
    session.close()


def test_an_adapter_without_a_base_says_what_to_do(adapters: Adapters, tmp_path: Path) -> None:
    orphan = changed(adapters("lora", **CONFIGS["lora"]), tmp_path / "orphan", base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="names no base model"):
        Session.open(str(orphan))


def test_matrices_are_dropped_by_a_score_of_their_adapters(bases: Bases, adapters: Adapters, tmp_path: Path) -> None:
    """The smallest of all by their norm, told from the files."""
    adapter = adapters("patterns", **CONFIGS["patterns"])
    steps = (load(adapter), {"drop_adapters": {"matrices": "lowest 5 by adapter_norm"}})
    run(bases("llama"), tmp_path / "out", *steps)
    weights = load_plainly(bases("llama")).state_dict()
    opened, stored = open_adapter(adapter), load_file(adapter / "adapter_model.safetensors")

    def norm(module: str) -> float:
        a, b = (stored[f"base_model.model.{module}.lora_{part}.weight"].double() for part in "AB")
        pair = opened.pairs[module]
        return float(pair.alpha / pair.rank * (b @ a).norm() / weights[f"{module}.weight"].double().norm())

    kept = sorted(opened.pairs, key=norm)[5:]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == sorted(kept)


def test_scores_of_adapters_need_adapters(bases: Bases, tmp_path: Path) -> None:
    with pytest.raises(SurgeonError, match="no trained adapters"):
        run(bases("llama"), tmp_path / "out", {"prune": {"layers": "lowest 1 by adapter_norm"}})
