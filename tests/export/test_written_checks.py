"""What is wrong with a written checkpoint, as far as it can be seen without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from surgeon.export.written_checks import differing_bytes, missing_files, stray_names, unscaled_weights
from tests.export.handmade_models import layer_forms, plan_of, pruned, write_model
from tests.export.handmade_shards import write_llama
from tests.export.replaying import PRUNE, run

LLAMA: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": 3}


def _written(directory: Path, config: dict[str, Any], layers: int = 3, **files: Any) -> Checkpoint:
    return open_checkpoint(
        write_model(directory, layer_forms("model.layers", range(layers)), {**LLAMA, **config}, **files)
    )


def test_a_name_of_a_layer_that_is_not_there_is_found_wherever_it_stands(tmp_path: Path) -> None:
    config = {"quantization_config": {"ignore": ["model.layers.2.mlp", "model.layers.3.mlp"]}}
    said: dict[str, Any] = {"quantization": {"quantized_layers": {"model.layers.5.mlp": {}}}}
    found = list(stray_names(read_structure(_written(tmp_path / "out", config, hf_quant_config=said))))

    assert found == [
        "config.json, quantization_config.ignore: model.layers.3.mlp: there are 3 layers",
        "hf_quant_config.json, quantization.quantized_layers: model.layers.5.mlp: there are 3 layers",
    ]


@pytest.mark.parametrize(("config", "layers"), [({"num_nextn_predict_layers": 1}, 3), ({}, 4)])
def test_what_predicts_further_tokens_is_numbered_behind_the_last(config: Any, layers: int, tmp_path: Path) -> None:
    """Whether its tensors are there or not."""
    config = {**config, "quantization_config": {"ignore": ["model.layers.3.eh_proj"]}}

    assert not list(stray_names(read_structure(_written(tmp_path / "out", config, layers))))


def test_code_and_folders_that_configs_name_have_to_be_there(tmp_path: Path) -> None:
    """But for what lies in another repository, and folders of modules that have none."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"st.{kind}"} for path, kind in kinds.items()]
    config = {"auto_map": {"AutoConfig": "own_config.C", "AutoModel": "org/name--other.M"}}
    tokenizer = {"auto_map": {"AutoTokenizer": ["own_tokenizer.Slow", None]}}
    written = _written(tmp_path / "out", config, modules=modules, tokenizer_config=tokenizer)
    (tmp_path / "out" / "own_config.py").touch()

    assert list(missing_files(written)) == [
        "tokenizer_config.json names own_tokenizer.py",
        "modules.json names 1_Pooling",
    ]
    (tmp_path / "out" / "1_Pooling").mkdir()
    (tmp_path / "out" / "own_tokenizer.py").touch()
    assert not list(missing_files(written))


def test_a_packed_weight_without_a_scale_is_found_where_others_have_one(tmp_path: Path) -> None:
    """Where none has one and no config asks for any, nobody knows that there should be."""
    weight = {"mlp.up_proj.weight": ("F8_E4M3", (4, 4))}
    forms = layer_forms("model.layers", range(3)) | layer_forms("model.layers", range(3), **weight)
    bare = open_checkpoint(write_model(tmp_path / "bare", forms, LLAMA))
    forms["model.layers.0.mlp.up_proj.weight_scale"] = ("F32", ())
    some = open_checkpoint(write_model(tmp_path / "some", forms, LLAMA))

    assert not list(unscaled_weights(bare))
    assert list(unscaled_weights(some)) == [f"model.layers.{layer}.mlp.up_proj.weight has no scale" for layer in (1, 2)]
    asked = {**LLAMA, "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "bare" / "config.json").write_text(json.dumps(asked))
    assert len(list(unscaled_weights(open_checkpoint(tmp_path / "bare")))) == 3


def test_bytes_are_compared_with_those_they_were_copied_from(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base", layers=4, shards=2)
    run(base, tmp_path / "out", PRUNE)
    plan = plan_of(base, PRUNE)

    assert not list(differing_bytes(plan, open_checkpoint(tmp_path / "out")))
    other = plan_of(base, pruned(0, 1))
    wrong = list(differing_bytes(other, open_checkpoint(tmp_path / "out")))
    assert "model.layers.0.mlp.up_proj.weight is not model.layers.2.mlp.up_proj.weight of the base" in wrong
    assert not any("model.layers.1." in one for one in wrong)
