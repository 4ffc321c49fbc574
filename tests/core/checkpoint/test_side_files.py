"""What belongs to a model besides its weights: which files travel, which are rewritten, which stay behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.errors import ArchitectureError, CheckpointError
from tests.export.handmade_models import layer_forms, plan_of, pruned, write_model
from tests.export.handmade_shards import write_llama
from tests.export.replaying import PRUNE, run

LLAMA: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": 4}


def _modules(base: Path, *modules: tuple[str, str]) -> None:
    entries = [{"idx": at, "path": path, "type": f"st.models.{kind}"} for at, (path, kind) in enumerate(modules)]
    (base / "modules.json").write_text(json.dumps(entries))


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """A base with the folders of a sentence-transformers model."""
    base = write_llama(tmp_path / "base")
    _modules(base, ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize"))
    for folder, name in (("1_Pooling", "config.json"), ("2_Dense", "model.safetensors"), ("2_Dense", "deep/own.bin")):
        (base / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (base / folder / name).write_text(f"{folder} of layers.3.mlp")
    (base / "other").mkdir()
    (base / "other" / "notes.txt").write_text("no part of it")
    return base


def test_the_folders_that_modules_json_names_travel_byte_for_byte(sentences: Path, tmp_path: Path) -> None:
    """Weights too: they are another module's. One that normalises has no folder."""
    run(sentences, tmp_path / "out", PRUNE)
    for name in ("1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/deep/own.bin", "modules.json"):
        assert (tmp_path / "out" / name).read_bytes() == (sentences / name).read_bytes()
    assert not (tmp_path / "out" / "other").exists()


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "1_Pooling/../../elsewhere", "a\\b"])
def test_a_folder_outside_is_refused(path: str, sentences: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    _modules(sentences, ("", "Transformer"), (path, "Pooling"))

    with pytest.raises(CheckpointError, match="does not lie inside the directory"):
        open_checkpoint(sentences)


@pytest.mark.parametrize("linked", ["1_Pooling", "2_Dense/deep", "2_Dense/secret"])
def test_a_link_that_leads_out_is_not_followed(linked: str, sentences: Path, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("mine")
    place = sentences / linked
    if place.exists():
        place.rename(tmp_path / "aside")
    place.symlink_to(tmp_path / "secrets" / ("key" if linked.endswith("secret") else ""))

    with pytest.raises(CheckpointError, match="does not lie inside the directory"):
        open_checkpoint(sentences)


def test_the_hubs_own_links_are_followed(sentences: Path, tmp_path: Path) -> None:
    """There every file of a snapshot is a link to ../../blobs."""
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "rev", tmp_path / "hub" / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in sentences.rglob("*") if path.is_file())):
        place = snapshot / file.relative_to(sentences)
        place.parent.mkdir(parents=True, exist_ok=True)
        content = file.read_bytes()
        (blobs / str(number)).write_bytes(content)
        place.symlink_to(blobs / str(number))

    run(snapshot, tmp_path / "out", PRUNE)
    assert (tmp_path / "out" / "2_Dense" / "deep" / "own.bin").read_text() == "2_Dense of layers.3.mlp"


def test_a_transformer_in_a_folder_of_its_own_is_another_copy(sentences: Path, tmp_path: Path) -> None:
    """Edited here, it would still be loaded from there as it was: modules.json stays behind, and that is said."""
    _modules(sentences, ("0_Transformer", "Transformer"), ("1_Pooling", "Pooling"))
    (sentences / "0_Transformer").mkdir()
    (sentences / "0_Transformer" / "model.safetensors").write_text("the base's weights")
    told: list[str] = []
    run(sentences, tmp_path / "out", PRUNE, emit=lambda kind, body: told.append(str(body.get("text"))))

    assert not {"modules.json", "0_Transformer", "1_Pooling"} & {path.name for path in (tmp_path / "out").iterdir()}
    assert any("modules.json is left out" in text and "0_Transformer" in text for text in told)


def test_files_that_list_modules_by_layer_are_written_anew(tmp_path: Path) -> None:
    """Others stay as they are to the byte, however they are written."""
    quantised = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head", "model.layers.3.mlp*"]}}
    base = write_llama(tmp_path / "base")
    (base / "hf_quant_config.json").write_text(json.dumps(quantised))
    (base / "quantize_config.json").write_text('{ "bits" :4, "dynamic": {"-:model.layers.1.mlp": {}}}')
    (base / "own.json").write_text('{"of": ["model.layers.2.mlp"],\n\n "é": 1e-05}')
    (base / "plain.json").write_text('{ "a" :  [1,2,3] }\r\n')
    (base / "tokenizer.json").write_text('{"model": {"vocab": {"model.layers.2.mlp": 7}}}')
    run(base, tmp_path / "out", PRUNE)

    def read(name: str) -> Any:
        return json.loads((tmp_path / "out" / name).read_text())

    assert read("hf_quant_config.json")["quantization"]["exclude_modules"] == ["lm_head", "model.layers.1.mlp*"]
    assert read("quantize_config.json") == {"bits": 4, "dynamic": {}}
    assert read("own.json") == {"of": [], "é": 1e-05}
    for name in ("plain.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()


def test_a_file_of_quantisation_that_cannot_say_the_result_is_refused_by_name(tmp_path: Path) -> None:
    """What another file cannot say is left out instead: it is not needed to load the model."""
    ignore = {"ignore": ["re:.*layers\\.[0-1]\\.mlp.*"]}
    forms = layer_forms("model.layers", range(4))
    base = write_model(tmp_path / "base", forms, LLAMA, hf_quant_config={"quantization": ignore}, own=ignore)

    with pytest.raises(ArchitectureError) as caught:
        plan_of(base, pruned(0))
    assert caught.value.where == "hf_quant_config.json, quantization.ignore"
    (base / "hf_quant_config.json").unlink()
    files = plan_of(base, pruned(0)).files
    assert "own.json" not in files.copied
    assert "cannot be renumbered" in files.left_out["own.json"]


def test_a_table_that_may_be_keyed_by_bare_numbers_of_layers_does_not_travel(tmp_path: Path) -> None:
    """Such as the scales of an FP8 cache by rank and layer; a list of what each layer has goes with them."""
    scales = {"kv_cache": {"dtype": "float8_e4m3fn", "scaling_factor": {"0": {str(n): n / 8 for n in range(4)}}}}
    forms = layer_forms("model.layers", range(4))
    files = {"kv_cache_scales": scales, "layer_scores": [0.5, 1, 7, 2], "names": {"id2label": {"0": "a", "1": "b"}}}
    base = write_model(tmp_path / "base", forms, LLAMA, **files)
    found = plan_of(base, pruned(1)).files

    assert "as many as there are layers" in found.left_out["kv_cache_scales.json"]
    assert found.rewritten == {"layer_scores.json": [0.5, 7, 2]}
    assert found.copied == ("names.json",)


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3], [1, 3]])
def test_layers_of_a_quantisation_by_bare_numbers_are_refused(numbers: list[int], tmp_path: Path) -> None:
    """All of them are as many entries as there are layers, and would be taken for what each layer has."""
    forms = layer_forms("model.layers", range(4))
    base = write_model(tmp_path / "base", forms, LLAMA, quant_config={"w_bit": 4, "quant_layers": numbers})
    with pytest.raises(ArchitectureError, match="bare numbers") as caught:
        plan_of(base, pruned(1))
    assert caught.value.where == "quant_config.json, quant_layers"


@pytest.mark.parametrize("content", [{"n_layers": 4, "dim": 8}, {"model": {"decoder": {"num_hidden_layers": 4}}}])
def test_a_file_that_counts_the_bases_layers_is_left_out_and_said(content: Any, tmp_path: Path) -> None:
    """Mistral's params.json goes with consolidated weights, which do not travel either."""
    base = write_llama(tmp_path / "base")
    (base / "params.json").write_text(json.dumps(content))
    (base / "other_sizes.json").write_text('{"depth": [2, 2], "num_layers": "4"}')
    (base / "consolidated.safetensors").write_text("the same weights once more")
    told: list[str] = []
    run(base, tmp_path / "out", PRUNE, emit=lambda kind, body: told.append(str(body.get("text"))))

    assert not (tmp_path / "out" / "params.json").exists()
    assert (tmp_path / "out" / "other_sizes.json").exists()
    assert any(text.startswith("params.json is left out: states") for text in told)
    assert any("consolidated.safetensors" in text for text in told)
    run(base, tmp_path / "same", {"freeze": {"layers": [0]}})
    assert (tmp_path / "same" / "params.json").exists()


def test_tokenizers_code_and_notices_travel(tmp_path: Path) -> None:
    """Whatever a hub model brings that is no weight in another form."""
    base = write_llama(tmp_path / "base")
    names = [
        "vocab.bpe",
        "tokenizer.model.v3",
        "bpe.codes",
        "modeling_own.py",
        "NOTICE",
        "USE_POLICY.md",
        "LICENCE.txt",
    ]
    names.append("custom_generate/generate.py")
    for name in names:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(name)
    run(base, tmp_path / "out", PRUNE)

    assert {name: (tmp_path / "out" / name).read_text() for name in names} == {name: name for name in names}
