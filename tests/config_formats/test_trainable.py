"""Trainable parameters and adapters as axolotl, LLaMA-Factory and PEFT say them: the same names in both directions."""

from __future__ import annotations

import functools
import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from surgeon.backend.model.adapters import without_deprecations
from surgeon.config_formats.axolotl import Axolotl
from surgeon.config_formats.llama_factory import LlamaFactory
from surgeon.config_formats.peft import Peft
from surgeon.core.interchange.config_format import ConfigFormat, config_formats, format_of
from surgeon.core.recipe.yaml_document import parse_value
from surgeon.errors import RecipeError
from tests.backend.tiny_models import load_plainly, save_tiny
from tests.config_formats.peers import draft_at, exported, lora_modules, planned_lora, planned_trainable, trainable

FAMILIES = ("llama", "qwen3", "gpt2", "mixtral")
Bases = Callable[[str], Path]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    root = tmp_path_factory.mktemp("bases")
    return functools.cache(lambda family: save_tiny(family, root / family, torch.float32))


load = functools.cache(load_plainly)


def names_of(base: Path) -> list[str]:
    return [name for name, _ in load(base).named_parameters()]


def left_trainable(base: Path, kind: type[ConfigFormat], plain: dict[str, Any]) -> set[str]:
    return planned_trainable(exported(base, kind.read(plain, draft_at(base)).steps))


@pytest.mark.parametrize("family", FAMILIES)
def test_unfrozen_parameters_are_matched_as_axolotl_matches_them(bases: Bases, family: str) -> None:
    """The reference: axolotl's documented rule, on the names of the loaded model."""
    base = bases(family)
    prefix = {"gpt2": "transformer.h", "llama": "model.layers"}.get(family, "model.layers")
    layer = sorted({name for name in names_of(base) if name.startswith(f"{prefix}.2.")})
    patterns = [f"^{prefix}.[13].", f"^{layer[0].rsplit('.', 1)[0]}", "^lm_head.weight$"]
    expected = {name for name in names_of(base) if any(re.match(one.replace(".", r"\."), name) for one in patterns)}
    assert expected
    assert left_trainable(base, Axolotl, {"unfrozen_parameters": patterns}) == expected


def test_a_pattern_that_fits_nothing_is_told(bases: Bases) -> None:
    found = Axolotl.read({"unfrozen_parameters": ["model.norm", r"model\.layers"], "lr": 1}, draft_at(bases("llama")))
    assert found.notes == ("not taken over: lr", r"fits no parameter of this model: model\.layers")


@pytest.mark.parametrize(
    ("kind", "plain", "where"),
    [
        (Axolotl, {"unfrozen_parameters": ["model.embed_tokens.weight[:10]"]}, "unfrozen_parameters[0]"),
        (Axolotl, {"unfrozen_parameters": ["("]}, "unfrozen_parameters[0]"),
        (Axolotl, {"unfrozen_parameters": ["nothing"]}, ""),
        (Axolotl, {"adapter": "qlora", "base_model": "x"}, "adapter"),
        (Axolotl, {"adapter": "lora", "lora_target_linear": True, "peft_use_dora": True}, "use_dora"),
        (LlamaFactory, {"freeze_trainable_modules": "nothing"}, "freeze_trainable_modules"),
        (LlamaFactory, {"freeze_extra_modules": "nothing"}, "freeze_extra_modules"),
        (LlamaFactory, {"freeze_trainable_layers": 4, "use_llama_pro": True}, "freeze_trainable_layers"),
        (LlamaFactory, {"finetuning_type": "oft"}, "finetuning_type"),
        (LlamaFactory, {"finetuning_type": "lora", "pissa_init": True}, "init_lora_weights"),
        (Peft, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "modules_to_save"),
        (Peft, {"target_modules": ["q_proj"], "bias": "all"}, "bias"),
        (Peft, {"target_modules": ["q_proj"], "r": "8"}, "r"),
        (Peft, {"target_modules": ["nothing"]}, "target_modules"),
        (Peft, {"target_modules": ["lm_head"]}, "target_modules"),
        (Peft, {"target_modules": None}, "target_modules"),
    ],
)
def test_what_no_step_can_say_is_refused_by_its_key(
    bases: Bases, kind: type[ConfigFormat], plain: dict[str, Any], where: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        kind.read(plain, draft_at(bases("llama")))
    assert caught.value.where == where


def test_a_part_of_a_role_is_refused(bases: Bases) -> None:
    with pytest.raises(RecipeError, match=r"both are role attention\.qkv of layer 0"):
        Axolotl.read({"unfrozen_parameters": ["transformer.h.0.attn.c_attn.weight"]}, draft_at(bases("gpt2")))


LAYERS = st.lists(st.integers(0, 5), min_size=1, unique=True)
ROLES = st.sampled_from([("mlp.up",), ("attention",), ("norm",), ("all",)])
FREEZES = st.lists(
    st.one_of(
        st.builds(lambda layers, roles: {"freeze": {"layers": layers, "roles": roles}}, LAYERS, ROLES),
        st.builds(lambda kind: {"freeze": {"outside": [kind]}}, st.sampled_from(["embedding", "head", "norm"])),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(steps=FREEZES)
def test_what_axolotl_is_told_is_read_again_as_the_same(bases: Bases, steps: list[dict[str, Any]]) -> None:
    model = exported(bases("llama"), steps)
    if not planned_trainable(model):
        return
    plain = parse_value(Axolotl.write(model).text)
    assert left_trainable(bases("llama"), Axolotl, plain) == planned_trainable(model)


@settings(max_examples=60)
@given(steps=FREEZES)
def test_what_llama_factory_is_told_is_read_again_as_the_same_or_refused(
    bases: Bases, steps: list[dict[str, Any]]
) -> None:
    model = exported(bases("llama"), steps)
    try:
        plain = parse_value(LlamaFactory.write(model).text)
        assert left_trainable(bases("llama"), LlamaFactory, plain) == planned_trainable(model)
    except RecipeError as error:
        assert "no words" in str(error) or "no parameter" in str(error)


def adapted_by_peft(base: Path, config: dict[str, Any]) -> dict[str, tuple[int, float]]:
    with without_deprecations():
        return lora_modules(get_peft_model(load_plainly(base), LoraConfig(**config)))


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8},
        {"target_modules": ["up_proj"], "layers_to_transform": [1, 3], "layers_pattern": "layers"},
        {"target_modules": ["up_proj", "q_proj"], "layers_to_transform": 2},
        {"target_modules": r".*\.[02]\.mlp\.(up|down)_proj", "use_rslora": True, "r": 4},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, "layers.1.mlp.*": 6}, "r": 4},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["o_proj"], "alpha_pattern": {"^model.layers.5.self_attn.o_proj": 3}},
    ],
)
def test_adapters_go_where_peft_puts_them(bases: Bases, config: dict[str, Any]) -> None:
    base = bases("llama")
    expected = adapted_by_peft(base, config)
    model = exported(base, Peft.read(config, draft_at(base)).steps)
    assert expected
    assert sorted(planned_lora(model)) == sorted(expected)
    for name, (rank, scale) in planned_lora(model).items():
        assert rank == expected[name][0]
        assert scale == pytest.approx(expected[name][1])
    assert adapted_by_peft(base, json.loads(Peft.write(model).text)) == planned_lora(model)


LORA = [{"masked_lora": {"layers": "1-2", "roles": ["attention.query", "mlp"], "rank": 4, "alpha": 8, "gate": 40}}]


@pytest.mark.parametrize("kind", [Axolotl, LlamaFactory])
def test_adapters_are_told_and_read_again(bases: Bases, kind: type[ConfigFormat]) -> None:
    model = exported(bases("llama"), LORA)
    plain = parse_value(kind.write(model).text)
    assert format_of(plain) is kind
    again = exported(bases("llama"), kind.read(plain, draft_at(bases("llama"))).steps)
    assert planned_lora(again) == planned_lora(model)


def test_several_ranks_need_peft(bases: Bases) -> None:
    two = [*LORA, {"masked_lora": {"layers": "4", "roles": ["mlp"], "rank": 2}}]
    with pytest.raises(RecipeError, match="several ranks"):
        Axolotl.write(exported(bases("llama"), two))


def test_each_file_is_of_one_format_and_a_recipe_of_none() -> None:
    samples = {
        "mergekit": {"merge_method": "passthrough", "slices": []},
        "axolotl": {"unfrozen_parameters": ["x"]},
        "llama_factory": {"finetuning_type": "freeze", "model_name_or_path": "x"},
        "peft": {"peft_type": "LORA", "target_modules": ["q_proj"], "base_model_name_or_path": "x"},
    }
    assert {name: getattr(format_of(plain), "name", None) for name, plain in samples.items()} == dict(
        zip(config_formats(), sorted(config_formats()), strict=True)
    )
    assert format_of({"version": 1, "base": {"model": "x"}, "steps": []}) is None
    assert format_of([1]) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_axolotl_s_own_code_leaves_the_same_trainable(bases: Bases, family: str) -> None:
    freeze = pytest.importorskip("axolotl.utils.freeze", exc_type=ImportError)
    base = bases(family)
    steps = [{"freeze": {"except": [1, 4]}}, {"freeze": {"layers": [4], "roles": ["attention"]}}]
    model = exported(base, steps)
    loaded = load_plainly(base)
    freeze.freeze_layers_except(loaded, parse_value(Axolotl.write(model).text)["unfrozen_parameters"])
    assert trainable(loaded) == planned_trainable(model)


@pytest.mark.parametrize(
    "plain",
    [
        {"freeze_trainable_layers": 2},
        {"freeze_trainable_layers": -3, "freeze_trainable_modules": "mlp", "freeze_extra_modules": "norm"},
        {"freeze_trainable_layers": 3, "use_llama_pro": True, "freeze_extra_modules": "embed_tokens"},
    ],
)
def test_llama_factory_s_own_code_leaves_the_same_trainable(bases: Bases, plain: dict[str, Any]) -> None:
    adapter = pytest.importorskip("llamafactory.model.adapter", exc_type=ImportError)
    base = bases("llama")
    loaded = load_plainly(base)
    args = Namespace(
        use_llama_pro=plain.get("use_llama_pro", False), freeze_trainable_layers=plain["freeze_trainable_layers"],
        freeze_trainable_modules=plain.get("freeze_trainable_modules", "all").split(","),
        freeze_extra_modules=plain["freeze_extra_modules"].split(",") if "freeze_extra_modules" in plain else None,
        freeze_multi_modal_projector=True, freeze_vision_tower=True, freeze_language_model=False,
    )  # fmt: skip
    adapter._setup_freeze_tuning(loaded, args, is_trainable=True, cast_trainable_params_to_fp32=False)
    assert left_trainable(base, LlamaFactory, plain) == trainable(loaded)
