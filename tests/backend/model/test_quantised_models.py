"""Quantised models in memory: computed with as they are meant, or refused by what says that they are quantised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.loading import load_model
from surgeon.backend.model.quantised_models import cast_dequantised, require_values, unread_quantisation
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.errors import ArchitectureError, VerifyError
from tests.backend.quantised_bases import (
    FP8_BLOCKS,
    Tensors,
    dequantised_base,
    edit_config,
    fp8_blocks,
    fp8_whole,
    modelopt_base,
    plain_base,
    quantised_base,
    read,
    save,
)
from tests.backend.tiny_models import load_plainly, some_tokens
from tests.export.replaying import job_args, run
from tests.jobs import keep_silent, never, perform

CPU = torch.device("cpu")
MODELOPT = r"hf_quant_config\.json: the weights are quantised \(modelopt MIXED_PRECISION\)"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_base(tmp_path_factory.mktemp("quantised") / "plain")


@pytest.fixture(scope="module")
def modelopt(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modelopt_base(plain, tmp_path_factory.mktemp("modelopt") / "base")


@pytest.fixture(scope="module")
def fp8(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised_base(plain, tmp_path_factory.mktemp("fp8") / "base", fp8_blocks, FP8_BLOCKS)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [{"text": text} for text in ("It was a bright cold day in April.", "Call me Ishmael! Some years ago") * 4]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "texts.jsonl"


def _nll(base: Path, texts: Path) -> float:
    args = job_args(base, texts, [{"evaluate": {"data": str(texts)}}], root=str(texts.parent))
    found = perform("run", {**args, "out": None}, keep_silent, never)["evaluations"][0]["figures"]
    return float(found["nll"]["value"])


def _scored(base: Path, texts: Path, *names: str, **more: Any) -> dict[str, dict[str, float]]:
    recipe = {"version": 1, "base": {"model": str(base)}}
    args = {"recipe": recipe, "root": str(base), "names": list(names), "data": str(texts), "sequences": 4, "length": 16}
    found = perform("score", {**args, **more}, keep_silent, never)["scores"]
    return {score["name"]: score["values"] for score in found}


# ── what transformers does not know ──


@pytest.mark.parametrize(
    "step",
    [{"evaluate": {"data": "texts.jsonl"}}, {"train": {"objective": "lm", "data": "texts.jsonl", "steps": 1}}],
)
def test_what_computes_without_scales_is_refused_by_the_file_that_tells_of_them(
    step: Any, modelopt: Path, texts: Path, tmp_path: Path
) -> None:
    """Transformers would load packed numbers as weights, and say nothing."""
    with pytest.raises(ArchitectureError, match=MODELOPT):
        run(modelopt, tmp_path / "out", step, root=str(texts.parent))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["block_influence", "removal", "taylor", "activation_overlap"])
def test_scores_of_a_model_that_would_lack_its_scales_are_refused(name: str, modelopt: Path, texts: Path) -> None:
    with pytest.raises(ArchitectureError, match=MODELOPT):
        _scored(modelopt, texts, name)


@pytest.mark.parametrize(
    "config", [None, {"quant_method": "modelopt", "quant_algo": "FP8"}, {"bits": 8, "group_size": 32}]
)
def test_a_method_that_transformers_lacks_is_as_unknown_as_none(config: Any, plain: Path, tmp_path: Path) -> None:
    """Of a quant_method that it does not know, it warns and loads the packed numbers."""
    base = quantised_base(plain, tmp_path / "base", fp8_whole, config)

    with pytest.raises(ArchitectureError, match="transformers does not know it") as caught:
        load_model(open_checkpoint(base), None, CPU)
    shown = "field quantization_config" if config else "tensor 'model.layers.0.mlp.down_proj.weight_scale'"
    assert shown in caught.value.where


def test_whole_layers_of_it_move_and_their_bytes_are_proved(modelopt: Path, tmp_path: Path) -> None:
    """The names in the file go with them; what was not loaded is not called proved."""
    proof = run(modelopt, tmp_path / "out", {"prune": {"layers": [1]}}, verify=True)["proof"]

    assert {name: proof[name]["passed"] for name in ("bytes", "scales", "layer names")} == dict.fromkeys(
        ("bytes", "scales", "layer names"), True
    )
    assert {name: proof[name]["passed"] for name in ("keys", "logits", "generation")} == dict.fromkeys(
        ("keys", "logits", "generation")
    )
    assert "hf_quant_config.json" in proof["logits"]["detail"]
    assert json.loads((tmp_path / "out" / "surgeon_proof.json").read_text()) == proof
    said = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]["quantized_layers"]
    assert {name.split(".")[2] for name in said} == {"0", "1", "2", "3", "4"}
    before, after = read(modelopt), read(tmp_path / "out")
    for name in ("self_attn.q_proj.weight", "mlp.down_proj.weight_scale"):
        old, new = before[f"model.layers.4.{name}"], after[f"model.layers.3.{name}"]
        assert torch.equal(old.flatten().view(torch.uint8), new.flatten().view(torch.uint8))


@pytest.mark.parametrize("what", ["weight", "scale", "names"])
def test_verify_finds_what_was_changed_without_loading_the_model(what: str, modelopt: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(modelopt, out, {"prune": {"layers": [1]}})
    if what == "names":
        whole = (out / "hf_quant_config.json").read_text().replace("layers.4.", "layers.5.")
        (out / "hf_quant_config.json").write_text(whole)
    else:
        tensors = read(out)
        name = f"model.layers.2.mlp.up_proj.weight{'_scale' if what == 'scale' else ''}"
        tensors[name] = (tensors[name].float() * 2).to(tensors[name].dtype)
        save(out, tensors)

    with pytest.raises(
        VerifyError, match={"names": "layer names"}.get(what, "bytes: model.layers.2.mlp.up_proj.weight")
    ):
        perform("verify", {"directory": str(out)}, keep_silent, never)


def test_a_weight_that_lost_its_scale_is_found(modelopt: Path, tmp_path: Path) -> None:
    """Without the base too: its neighbours have theirs."""
    shutil.copytree(modelopt, tmp_path / "base")
    tensors = read(tmp_path / "base")
    for layer in range(6):
        del tensors[f"model.layers.{layer}.mlp.up_proj.weight_scale"]
    save(tmp_path / "base", tensors)

    with pytest.raises(VerifyError, match=r"scales: model.layers.0.mlp.up_proj.weight has no scale"):
        perform("verify", {"directory": str(tmp_path / "base")}, keep_silent, never)


# ── what transformers knows ──


def _from_blocks(tensors: Tensors, name: str) -> torch.Tensor:
    scale = tensors[f"{name}_scale_inv"].repeat_interleave(16, 0).repeat_interleave(16, 1)
    return tensors[name].float() * scale


def test_fp8_on_a_cpu_computes_what_its_dequantised_weights_do(fp8: Path, texts: Path, tmp_path: Path) -> None:
    """In one dtype: transformers leaves what is not quantised as it is stored, and two dtypes do not multiply."""
    same = dequantised_base(fp8, tmp_path / "same", _from_blocks)

    model = load_model(open_checkpoint(fp8), torch.float32, CPU).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert _nll(fp8, texts) == pytest.approx(_nll(same, texts), rel=1e-6)
    names = ("block_influence", "removal", "taylor")
    found, expected = _scored(fp8, texts, *names), _scored(same, texts, *names)
    for name in names:
        assert found[name] == {key: pytest.approx(value, rel=1e-4) for key, value in expected[name].items()}


def test_an_export_of_it_is_proved_whole(fp8: Path, tmp_path: Path) -> None:
    proof = run(fp8, tmp_path / "out", {"prune": {"layers": [1]}}, verify=True)["proof"]

    assert all(check["passed"] for check in proof.values())
    assert proof["scales"]["detail"] == "35 quantised weights have theirs"


def test_what_is_frozen_and_repeated_is_recorded_by_weight(fp8: Path, tmp_path: Path) -> None:
    """Scales are no parameters once the model is loaded: who trains it later looks for the names of the weights."""
    steps = ({"expand": {"after": [1], "init": "duplicate"}}, {"freeze": {"layers": [0]}})
    proof = run(fp8, tmp_path / "out", *steps, verify=True)["proof"]

    assert proof["trainable"]["passed"]
    record = json.loads((tmp_path / "out" / "trainable_parameters.json").read_text())
    assert "model.layers.0.mlp.up_proj.weight" in record["frozen"]
    assert not any("scale" in name for name in (*record["frozen"], *record["trainable"]))


def test_blocks_that_transformers_would_cut_otherwise_are_refused(plain: Path, tmp_path: Path) -> None:
    """It divides a matrix by the number of its scales: 48 rows in blocks of 32 would become two of 24."""

    def ragged(name: str, weight: torch.Tensor) -> Tensors:
        grid = [-(-size // 32) for size in weight.shape]
        return {name: weight.to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.rand(grid) + 0.5}

    base = quantised_base(plain, tmp_path / "base", ragged, {**FP8_BLOCKS, "weight_block_size": [32, 32]})
    with pytest.raises(ArchitectureError, match=r"mlp.down_proj.weight': is not made of whole blocks of 32x32"):
        load_model(open_checkpoint(base), None, CPU)


def test_a_plain_model_is_known_to_be_plain(plain: Path) -> None:
    assert unread_quantisation(open_checkpoint(plain)) is None
    assert load_model(open_checkpoint(plain), torch.float32, CPU).fit.missing == ()


# ── what is packed in memory ──


class _Packed(nn.Module):
    """A layer with one matrix whose numbers are packed."""

    def __init__(self, dtype: torch.dtype, *, marked: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4, dtype=dtype), requires_grad=False)
        if marked:
            setattr(self.weight, "quant_state", object())  # noqa: B010 - as bitsandbytes marks its own


@pytest.mark.parametrize(
    "layer", [_Packed(torch.uint8), _Packed(torch.float8_e4m3fn), _Packed(torch.float32, marked=True)]
)
def test_packed_matrices_in_memory_are_never_taken_for_weights(layer: nn.Module, fp8: Path, plain: Path) -> None:
    """As bitsandbytes has them, or FP8 on a GPU: gradients, covariances and ablations would be of bytes."""
    structure = read_structure(open_checkpoint(fp8))

    with pytest.raises(ArchitectureError, match=r"quantization_config: .* taylor needs the values of 'weight'"):
        require_values(structure, [layer], "taylor")
    require_values(structure, [nn.Linear(2, 2)], "taylor")
    require_values(read_structure(open_checkpoint(plain)), [layer], "taylor")


def test_a_model_that_is_quantised_in_memory_keeps_its_dtypes() -> None:
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    packed = nn.Sequential(_Packed(torch.float8_e4m3fn), nn.Linear(2, 2).bfloat16())

    cast_dequantised(packed, torch.float32)
    assert [one.dtype for one in packed.parameters()] == [torch.float8_e4m3fn, torch.bfloat16, torch.bfloat16]
    cast_dequantised(mixed, torch.float32)
    assert {one.dtype for one in mixed.parameters()} == {torch.float32}


def test_a_quantised_model_is_edited_in_memory_as_any_other(fp8: Path, tmp_path: Path) -> None:
    """Its config holds how it is quantised as an object of its own, which is no part of the model."""
    from surgeon.backend.model.in_memory_executor import apply_draft
    from surgeon.core.plan.draft import draft_of
    from surgeon.core.recipe.apply_steps import fold
    from surgeon.core.recipe.recipe import recipe_from_builtins

    model: Any = load_model(open_checkpoint(fp8), torch.bfloat16, CPU).model
    model.config.quantization_config = _Method()
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(fp8)}, "steps": [{"prune": {"layers": [1]}}]})
    draft = fold(draft_of(read_structure(open_checkpoint(fp8))), recipe.steps)
    with torch.inference_mode(), apply_draft(model, draft):
        assert isinstance(model.config.quantization_config, _Method)
        found = model(input_ids=some_tokens(), use_cache=False).logits
    run(fp8, tmp_path / "out", {"prune": {"layers": [1]}})
    with torch.inference_mode():
        assert torch.equal(found, load_plainly(tmp_path / "out")(input_ids=some_tokens(), use_cache=False).logits)


class _Method:
    """Says how a model is quantised, as transformers' own objects do."""

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": "fp8"}


def test_a_config_edit_that_hides_the_quantisation_does_not_hide_it(fp8: Path, tmp_path: Path) -> None:
    """Taking `quantization_config` out leaves FP8 and scales, which say it too."""
    shutil.copytree(fp8, tmp_path / "base")
    edit_config(tmp_path / "base", quantization_config=None)

    with pytest.raises(ArchitectureError, match=r"tensor 'model.layers.0.mlp.down_proj.weight_scale_inv'"):
        load_model(open_checkpoint(tmp_path / "base"), None, CPU)
