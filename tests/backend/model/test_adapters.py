"""Masked LoRA: the gates, their fold into an ordinary PEFT adapter, and how that adapter loads."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.adapters import NAME, attach, fold_gates, lora_layers, write_adapter
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.model_location import demo_directory
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.plan import Adapter, Plan, compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import load_recipe, recipe_from_builtins, recipe_to_builtins
from surgeon.errors import ArchitectureError
from tests.architectures.building import small_config, tiny_model
from tests.backend.tiny_models import load_plainly, save_tiny, some_tokens
from tests.export.replaying import Step, digests, run, start_run
from tests.jobs import keep_silent, never, perform

# What PEFT calls in transformers; where surgeon calls PEFT it is filtered there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA = {"masked_lora": {"layers": [1, 3], "rank": 4, "alpha": 6.0}}
# Twelve layers, so that layer 1 is the beginning of the names of 10 and 11.
TWO_RANKS = [
    {"masked_lora": {"layers": [1], "rank": 2, "alpha": 8.0, "roles": ["attention"]}},
    {"masked_lora": {"layers": [11], "rank": 5, "alpha": 3.0, "roles": ["attention.query", "mlp"]}},
    {"masked_lora": {"layers": [2], "rank": 5, "alpha": 8.0, "roles": ["mlp.down"]}},
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Saved tiny models of twelve layers, by family."""
    root = tmp_path_factory.mktemp("bases")

    def make(family: str) -> Path:
        count: dict[str, Any] = {"n_layer" if family == "gpt2" else "num_hidden_layers": 12}
        return save_tiny(family, root / family, **count)

    return functools.cache(make)


def plan_of(base: Path, *steps: Any) -> Plan:
    """Compile a recipe's plan."""
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(base)}, "steps": list(steps)})
    return compile_plan(fold(draft_of(read_structure(open_checkpoint(base))), recipe.steps))


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    """Return a model's logits on random tokens."""
    found: torch.Tensor = model(input_ids=some_tokens(), use_cache=False).logits
    return found


def randomise(model: PeftModel, adapters: Sequence[Adapter], gates: float | None = None) -> None:
    """Give every B random weights, and every gate `gates` or a random number."""
    generator = torch.Generator().manual_seed(7)
    for layer in lora_layers(model, adapters):
        weight = layer.lora_B[NAME].parametrizations["weight"]
        with torch.no_grad():
            weight.original.copy_(torch.randn(weight.original.shape, generator=generator))
            weight[0].s.copy_(torch.randn((), generator=generator) if gates is None else torch.tensor(gates))


def attached(base: Path, *steps: Any) -> tuple[PeftModel, Plan]:
    """Return a base with gated adapters, B and gates still as they start."""
    plan = plan_of(base, *steps)
    return attach(load_plainly(base), plan.adapters, 0, transposed=bool(plan.structure.family.transposed)), plan


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "gemma3_text"])
def test_attaching_changes_nothing_until_b_is_trained(family: str, bases: Any) -> None:
    """B starts at zero."""
    model, plan = attached(bases(family), LORA)
    assert torch.equal(logits(model), logits(load_plainly(bases(family))))
    roles = {adapter.role for adapter in plan.adapters}
    assert all(role.startswith(("attention", "mlp")) for role in roles)
    assert len(plan.adapters) == 2 * len(roles)


def plain_lora(base: Path, plan: Plan, gated: PeftModel) -> PeftModel:
    """Return ordinary PEFT with the same A and B, built without surgeon."""
    lora = plan.adapters[0].lora
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=[adapter.module for adapter in plan.adapters],
        fan_in_fan_out=bool(plan.structure.family.transposed),
    )
    plain = get_peft_model(load_plainly(base), config).eval()
    for mine, theirs in zip(lora_layers(gated, plan.adapters), lora_layers(plain, plan.adapters), strict=True):
        with torch.no_grad():
            theirs.lora_A[NAME].weight.copy_(mine.lora_A[NAME].weight)
            theirs.lora_B[NAME].weight.copy_(mine.lora_B[NAME].parametrizations["weight"].original)
    return plain


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_gate_wide_open_is_plain_lora_and_a_shut_one_is_the_base(family: str, bases: Any) -> None:
    """The sigmoid of 100 is 1 in float32, that of -200 is 0: both are equal bit for bit."""
    base = bases(family)
    model, plan = attached(base, LORA)
    randomise(model, plan.adapters, gates=100.0)
    plain = plain_lora(base, plan, model)
    assert torch.equal(logits(model), logits(plain))
    assert not torch.allclose(logits(plain), logits(load_plainly(base)), atol=1e-2)
    randomise(model, plan.adapters, gates=-200.0)
    assert torch.equal(logits(model), logits(load_plainly(base)))


def test_a_gate_between_scales_the_update_as_the_formula_says(bases: Any) -> None:
    """Y = W x + sigmoid(s) * (alpha / rank) * B A x, for one module, by hand in float64."""
    model, plan = attached(bases("llama"), LORA)
    randomise(model, plan.adapters)
    for adapter, layer in zip(plan.adapters, lora_layers(model, plan.adapters), strict=True):
        weight = layer.lora_B[NAME].parametrizations["weight"]
        x = torch.randn(3, adapter.shape[1], generator=torch.Generator().manual_seed(1))
        w, a, b = (
            one.detach().double() for one in (layer.base_layer.weight, layer.lora_A[NAME].weight, weight.original)
        )
        expected = x.double() @ w.T + torch.sigmoid(weight[0].s.detach().double()) * (6.0 / 4) * (
            x.double() @ a.T @ b.T
        )
        with torch.no_grad():
            assert torch.allclose(layer(x).double(), expected, atol=1e-4)


def test_only_the_adapters_and_their_gates_can_be_trained(bases: Any) -> None:
    """And a gate gets a gradient as soon as its B is not zero."""
    model, plan = attached(bases("llama"), LORA)
    randomise(model, plan.adapters)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_A" in name or "lora_B" in name for name in trainable)
    assert sum(name.endswith(".s") for name in trainable) == len(plan.adapters)
    tokens_BT = some_tokens()
    model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
    gates = [layer.lora_B[NAME].parametrizations["weight"][0].s for layer in lora_layers(model, plan.adapters)]
    assert all(gate.grad is not None and gate.grad != 0 for gate in gates)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
def test_folding_the_gates_keeps_the_function(family: str, bases: Any, tmp_path: Path) -> None:
    """Masked model, folded model, and the saved adapter in plain PEFT: the same logits bit for bit."""
    base = bases(family)
    steps = [{"masked_lora": {"layers": [1, 11], "roles": ["attention"]}}]
    model, plan = attached(base, *steps)
    randomise(model, plan.adapters)
    masked = logits(model)
    assert not torch.allclose(masked, logits(load_plainly(base)), atol=1e-2)
    fold_gates(model, plan.adapters)
    assert torch.equal(logits(model), masked)
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    assert not any("parametrizations" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    plain = PeftModel.from_pretrained(load_plainly(base), str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(plain), masked)


def lora_shapes(model: Any) -> dict[str, tuple[int, float]]:
    """Return rank and scaling of every LoRA layer of a PEFT model, by module."""
    return {
        name: (module.r[NAME], module.scaling[NAME])
        for name, module in model.get_base_model().named_modules()
        if hasattr(module, "lora_A") and NAME in module.lora_A
    }


def test_ranks_and_alphas_reach_their_own_modules_and_no_others(bases: Any, tmp_path: Path) -> None:
    """Layer 1 is not 11; what PEFT reads back from disk has exactly the ranks that were asked."""
    base = bases("llama")
    plan = plan_of(base, *TWO_RANKS)
    expected = {one.module: (one.lora.rank, one.lora.alpha / one.lora.rank) for one in plan.adapters}
    assert expected["model.layers.1.self_attn.q_proj"] == (2, 4.0)
    assert expected["model.layers.11.self_attn.q_proj"] == (5, 0.6)
    assert expected["model.layers.2.mlp.down_proj"] == (5, 1.6)
    assert len(expected) == 4 + 4 + 1
    model = attach(load_plainly(base), plan.adapters, 0)
    assert lora_shapes(model) == expected
    run(base, tmp_path / "out", *TWO_RANKS)
    assert lora_shapes(PeftModel.from_pretrained(load_plainly(base), str(tmp_path / "out"))) == expected


@pytest.mark.parametrize("place", range(12))
def test_target_modules_match_one_layer_exactly(place: int, bases: Any) -> None:
    """PEFT matches names by their ends: no other layer may be caught."""
    plan = plan_of(bases("gpt2"), {"masked_lora": {"layers": [place], "roles": ["mlp"]}})
    model = attach(load_plainly(bases("gpt2")), plan.adapters, 0, transposed=True)
    assert set(lora_shapes(model)) == {f"transformer.h.{place}.mlp.{part}" for part in ("c_fc", "c_proj")}


def test_an_adapter_on_the_base_alone_is_a_peft_directory(bases: Any, tmp_path: Path) -> None:
    """No weights are copied; plain PEFT puts it on the base; verifying it again passes."""
    base, out = bases("qwen2"), tmp_path / "out"
    proof = run(base, out, LORA, verify=True)["proof"]
    assert proof["adapter"]["passed"]
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "recipe.yaml", "surgeon_proof.json",
    }  # fmt: skip
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["target_modules"] == sorted(one.module for one in plan_of(base, LORA).adapters)
    adapted = PeftModel.from_pretrained(load_plainly(base), str(out)).eval()
    assert torch.equal(logits(adapted), logits(load_plainly(base)))
    assert perform("verify", {"directory": str(out)}, keep_silent, never)["proof"]["adapter"]["passed"]


@pytest.mark.parametrize("name", ["base", "./base", "../place/base"])
def test_a_base_with_a_relative_name_is_found_by_plain_peft_from_here(
    name: str, bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what was typed was; the recipe beside it names the base from its own place, and the same comes of it again."""
    place = tmp_path / "place"
    (place / "deep").mkdir(parents=True)
    (place / "base").symlink_to(bases("qwen2"))
    monkeypatch.chdir(place)
    lora = {"masked_lora": {"layers": "first", "roles": ["mlp.up"]}}
    recipe = {"version": 1, "base": {"model": name}, "steps": [lora]}
    perform("run", {"recipe": recipe, "root": place, "out": place / "deep" / "out", "verify": False, "device": "cpu"})
    config = json.loads((place / "deep" / "out" / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]).samefile(bases("qwen2"))
    assert "base_model:" not in (place / "deep" / "out" / "README.md").read_text()
    written = load_recipe(place / "deep" / "out" / "recipe.yaml")
    assert written.base.model == "../../base"
    again = {"recipe": recipe_to_builtins(written), "root": place / "deep" / "out", "out": place / "deep" / "again"}
    perform("run", {**again, "verify": False, "device": "cpu"})
    assert json.loads((place / "deep" / "again" / "adapter_config.json").read_text()) == config


def test_plain_transformers_loads_the_adapter_of_the_demo_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`demo` is a word that only surgeon knows; the card's two lines are carried out as they stand there."""
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    save_tiny("llama", demo_directory())
    run(Path("demo"), out, {"masked_lora": {"layers": [1, 3], "rank": 4, "gate": 0.5}})
    card = (out / "README.md").read_text()
    assert "library_name: peft" in card
    told = card.rpartition("```python\n")[2].partition("```")[0].replace("DIR", str(out))
    names: dict[str, Any] = {}
    exec(told, names)
    loaded = {name for name, module in names["model"].named_modules() if hasattr(module, "lora_A")}
    assert len(loaded) == 14
    assert {name.split(".")[2] for name in loaded} == {"1", "3"}
    assert torch.equal(logits(names["model"]), logits(load_plainly(demo_directory())))


def test_an_adapter_on_an_edited_model_lies_beside_its_weights(bases: Any, tmp_path: Path) -> None:
    """The numbers of its modules are those after the edit, and it fits the exported checkpoint."""
    base, out = bases("llama"), tmp_path / "out"
    steps: list[Step] = [
        {"prune": {"layers": [0, 5]}},
        {"expand": {"after": [3], "init": "copy"}},
        {"masked_lora": {"layers": "inserted"}},
    ]
    proof = run(base, out, *steps, verify=True)["proof"]
    assert "7 LoRA matrices fit" in proof["adapter"]["detail"]
    adapted = PeftModel.from_pretrained(load_plainly(out), str(out / "adapter")).eval()
    assert {name.split(".")[2] for name in lora_shapes(adapted)} == {"4"}
    assert torch.equal(logits(adapted), logits(load_plainly(out)))


def test_the_same_adapter_comes_out_of_every_process(bases: Any, tmp_path: Path) -> None:
    """A is drawn from the seed and the module's name; PEFT's sets are written in order."""
    base = bases("llama")
    everything = {"masked_lora": {"layers": "all"}}
    for name, seed in (("one", "1"), ("two", "2")):
        process = start_run(base, tmp_path / name, everything, hash_seed=seed)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    matrices = load_file(tmp_path / "one" / "adapter_model.safetensors")
    starts = {name: value for name, value in matrices.items() if "lora_A" in name}
    assert len({value.numpy().tobytes() for value in starts.values()}) == len(starts) == 84
    assert all(value.abs().max() <= value.shape[1] ** -0.5 for value in starts.values())
    assert not any(value.any() for name, value in matrices.items() if "lora_B" in name)


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**63])
def test_any_seed_of_a_recipe_will_do(seed: int, bases: Any) -> None:
    """Another seed, another A."""
    plan = plan_of(bases("llama"), LORA)
    first, second = (
        lora_layers(attach(load_plainly(bases("llama")), plan.adapters, at), plan.adapters)[0] for at in (seed, 5)
    )
    assert not torch.equal(first.lora_A[NAME].weight, second.lora_A[NAME].weight)


def test_a_module_that_the_model_lacks_is_named(bases: Any, tmp_path: Path) -> None:
    """Rather than an adapter on nothing."""
    plan = plan_of(bases("llama"), LORA)
    with pytest.raises(ArchitectureError, match="no module of that name"):
        write_adapter(nn.Sequential(nn.Linear(2, 2)), plan, "base", 0, tmp_path)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("deepseek_v3", "PEFT takes a module of that name for experts"),
        ("mamba", "PEFT refuses: .*out_proj"),
        ("deepseek_v4", "is a DeepseekV4GroupedLinear"),
    ],
)
def test_what_peft_would_misread_is_refused_by_its_role(kind: str, said: str, tmp_path: Path) -> None:
    """And the model is as it was; other roles of it can be adapted."""
    tiny_model(small_config(kind)).save_pretrained(tmp_path)  # type: ignore[operator]
    model = load_plainly(tmp_path)
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ArchitectureError, match=said):
        attach(model, plan_of(tmp_path, {"masked_lora": {"layers": "all"}}).adapters, 0)
    assert {name: type(module) for name, module in model.named_modules()} == before
    fit = {"deepseek_v3": "attention", "mamba": "mixer.inner", "deepseek_v4": "mlp"}[kind]
    plan = plan_of(tmp_path, {"masked_lora": {"layers": "all", "roles": [fit]}})
    assert plan.adapters
    assert len(lora_shapes(attach(model, plan.adapters, 0))) == len(plan.adapters)


def test_a_linear_layer_of_a_models_own_kind_can_be_adapted(tmp_path: Path) -> None:
    """Falcon multiplies in a class of its own, but as a linear layer does."""
    tiny_model(small_config("falcon")).save_pretrained(tmp_path)  # type: ignore[operator]
    model, plan = attached(tmp_path, {"masked_lora": {"layers": "all"}})
    kinds = {type(layer.base_layer).__name__ for layer in lora_layers(model, plan.adapters)}
    assert kinds == {"FalconLinear"}
    before = logits(model)
    randomise(model, plan.adapters)
    assert not torch.allclose(before, logits(model), atol=1e-3)
