"""`base: {load_in: nf4}`: scores and adapters on a base held by bitsandbytes; merging is into the stored weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from surgeon.backend import quantised_loading
from surgeon.core.plan.learned_results import result_report, result_tensors
from surgeon.core.recipe.recipe import dump_recipe, load_recipe, recipe_from_builtins
from surgeon.errors import ArchitectureError, LearningError, RecipeError, UsageError
from tests.backend.tiny_models import save_tiny, write_tokenizer
from tests.backend.training_recipes import LINES, recipe, training
from tests.jobs import perform

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra surgeon[quantized]"
)
# What PEFT calls in transformers; where surgeon calls PEFT it is filtered there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
BOTH = pytest.mark.parametrize("load_in", ["nf4", "int8"])
LORA = {"masked_lora": {"layers": "all", "rank": 4}}
SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "head_dim": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with matrices of whole blocks, and a text beside it."""
    path = save_tiny("llama", tmp_path_factory.mktemp("quantised") / "model", torch.bfloat16, **SIZE)
    write_tokenizer(path)
    (path.parent / "text.jsonl").write_text("".join('{"text": "' + line * 3 + '"}\n' for line in LINES * 6))
    return path


def held(model: Path, load_in: str | None, *steps: Any) -> dict[str, Any]:
    """Return the arguments of a job on a base that is held so."""
    plain = recipe(model, steps)
    if load_in is not None:
        plain["base"]["load_in"] = load_in
    return {"recipe": plain, "root": str(model.parent)}


def score(model: Path, load_in: str | None, name: str, *steps: Any, **more: Any) -> dict[str, Any]:
    args = {**held(model, load_in, *steps), "names": [name], "data": "text.jsonl", "sequences": 3, "length": 24, **more}
    (found,) = perform("score", args)["scores"]
    return dict(found)


def plainly_held(model: Path, load_in: str) -> Any:
    """Load a model with transformers and bitsandbytes alone."""
    make: Any = BitsAndBytesConfig
    config = (
        make(load_in_8bit=True)
        if load_in == "int8"
        else make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    )
    auto: Any = AutoModelForCausalLM
    loaded = auto.from_pretrained(model, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"})
    quantised_loading.keep_packing(loaded)
    return loaded


def test_it_is_a_field_of_the_recipe(tmp_path: Path, model: Path) -> None:
    plain = held(model, "nf4")["recipe"]
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe_from_builtins(plain)))
    assert load_recipe(tmp_path / "recipe.yaml").base.load_in == "nf4"
    with pytest.raises(RecipeError, match="load_in"):
        recipe_from_builtins(held(model, "int3")["recipe"])


def test_a_missing_package_is_told_with_how_to_install_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised_loading, "find_spec", lambda _: None)
    for job, more in (("learn", ()), ("score", ())):
        with pytest.raises(UsageError, match="bitsandbytes") as caught:
            if job == "learn":
                perform("learn", held(model, "nf4", LORA, training()))
            else:
                score(model, "nf4", "block_influence", *more)
        assert "pip install 'surgeon[quantized]'" in caught.value.hint


@needs_package
@BOTH
def test_a_score_is_that_of_the_quantised_model_and_says_so(load_in: str, model: Path) -> None:
    """Removal of a layer, against the losses that transformers and bitsandbytes alone give."""
    found, plain = score(model, load_in, "block_influence"), score(model, None, "block_influence")
    assert found["provenance"]["load_in"] == load_in
    assert "load_in" not in plain["provenance"] or not plain["provenance"]["load_in"]
    assert found["values"] != plain["values"]
    assert found["values"] == pytest.approx(plain["values"], abs=0.2)
    pruned = score(model, load_in, "block_influence", {"prune": {"layers": "1"}})
    assert len(pruned["values"]) == 2


@needs_package
@BOTH
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_adapters_are_trained_on_the_quantised_base(load_in: str, precision: str, model: Path) -> None:
    """The first loss is that of the base as transformers and bitsandbytes hold it; it falls; the address is its own."""
    steps = LORA, training(steps=8, batch_size=2, mixed_precision=precision)
    done = {key: perform("learn", held(model, key, *steps))["reports"] for key in (load_in, None)}
    ((address, report),), ((other, plain),) = done[load_in].items(), done[None].items()
    assert address != other
    assert report["losses"][0] != plain["losses"][0]
    assert report["losses"][0] == pytest.approx(plain["losses"][0], rel=0.05)
    assert report["losses"][-1] < 0.9 * report["losses"][0]
    assert result_tensors(address).keys() == result_tensors(other).keys()


@needs_package
@BOTH
def test_a_teacher_is_the_quantised_base(load_in: str, model: Path) -> None:
    """Nothing has been pruned or trained yet: the two are equal, and so is every token's distribution.

    In int8 bitsandbytes rounds activations too, but on a CPU not in training: the teacher's are rounded.
    """
    distilled = training(objective="distill", steps=2, scheduler="constant", warmup_ratio=0.0)
    (report,) = perform("learn", held(model, load_in, LORA, distilled))["reports"].values()
    assert report["losses"][0] == pytest.approx(0.0, abs=1e-2 if load_in == "int8" else 1e-6)


@needs_package
@BOTH
def test_an_export_is_an_ordinary_adapter_of_the_base(load_in: str, model: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    args = {**held(model, load_in, LORA, training(steps=4)), "out": str(tmp_path / "out")}
    done = perform("run", args)
    assert done["proof"] is not None
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    base: Any = plainly_held(model, load_in)
    tokens_BT = torch.arange(5, 29).reshape(2, 12)
    with torch.no_grad():
        before = base(tokens_BT).logits
        after = PeftModel.from_pretrained(base, str(tmp_path / "out"))(tokens_BT).logits
    assert (after - before).abs().max() > 0.01


@needs_package
@BOTH
def test_merging_is_into_the_stored_weights_and_tells_what_it_costs(load_in: str, model: Path, tmp_path: Path) -> None:
    """The norm against one of our own, KL on the text of an evaluation; the export is not quantised."""
    merge: dict[str, Any] = {"merge_adapters": {}}
    look = {"evaluate": {"metric": "perplexity", "data": "text.jsonl"}}
    args = {**held(model, load_in, LORA, training(steps=4), merge, look), "out": str(tmp_path / "out")}
    done = perform("run", args)
    address = done["recipe"]["steps"][2]["resolved"]["learned"][0]
    report = result_report(address)
    stored, quantised = load_file(model / "model.safetensors"), plainly_held(model, load_in)
    squares = 0.0
    for name, module in quantised.named_modules():
        if type(module).__module__.startswith("bitsandbytes."):
            eye = torch.eye(module.in_features)
            with torch.no_grad():
                values = (
                    module(eye).T if load_in == "nf4" else quantised_loading.as_held(stored[f"{name}.weight"], load_in)
                )
            squares += (values.double() - stored[f"{name}.weight"].double()).square().sum().item()
    assert report["quantisation"]["difference"] == pytest.approx(squares**0.5, rel=1e-3)
    merged, kept = done["evaluations"]
    assert (merged["name"], merged["step"]) == ("merged", 2)
    assert 0 < merged["figures"]["kl"]["value"] < 0.5
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert {one.dtype for one in exported.values()} == {torch.bfloat16}
    loaded: Any = AutoModelForCausalLM
    assert loaded.from_pretrained(tmp_path / "out", dtype=torch.float32) is not None
    assert kept["figures"]["perplexity"]["value"] > 1


@needs_package
def test_what_needs_the_numbers_of_a_matrix_is_refused(model: Path) -> None:
    """By the field that stops it; scores of stored weights are as ever."""
    with pytest.raises(LearningError, match="nf4 cannot be trained") as caught:
        perform("learn", held(model, "nf4", training()))
    assert caught.value.where == "base.load_in"
    for name in ("activation_overlap", "fisher"):
        with pytest.raises(ArchitectureError, match=r"held in nf4"):
            score(model, "nf4", name)
    with pytest.raises(ArchitectureError, match="identity"):
        score(model, "nf4", "block_influence", {"expand": {"after": "1", "init": "mean"}})
    with pytest.raises(UsageError, match="stay on disk"):
        score(model, "nf4", "block_influence", stream=True)
    assert score(model, "nf4", "weight_norm")["values"] == score(model, None, "weight_norm")["values"]
