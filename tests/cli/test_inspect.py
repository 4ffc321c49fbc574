from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run
from tests.cli.tiny_checkpoints import HEAD, HIDDEN, INNER, KV_HEADS, WORDS, tiny_llama, write_checkpoint

LAYER = 2 * HIDDEN + 2 * HIDDEN * HIDDEN + 2 * KV_HEADS * HEAD * HIDDEN + 3 * HIDDEN * INNER


def test_json_tells_everything_about_every_layer(run: Run, model: str) -> None:
    report = json.loads(run("inspect", model, "--json").stdout)
    assert report["parameters"] == 6 * LAYER + WORDS * HIDDEN + HIDDEN
    assert report["bytes"] == 4 * report["parameters"]
    assert report["model_type"] == "llama"
    assert report["dtypes"] == {"F32": report["parameters"]}
    layers = report["stacks"]["layers"]["layers"]
    assert [layer["position"] for layer in layers] == list(range(6))
    assert layers[0]["parameters"] == LAYER
    assert layers[0]["kv_cache_bytes_per_token"] == 2 * KV_HEADS * HEAD * 4
    assert report["kv_cache_bytes_per_token"] == 6 * layers[0]["kv_cache_bytes_per_token"]
    assert {tensor["role"] for tensor in layers[0]["tensors"]} >= {"attention.output", "mlp.down", "norm.input"}
    assert report["roles"]["mlp.down"]["shapes"] == [[HIDDEN, INNER]]
    assert {tensor["kind"] for tensor in report["outside"]} == {"embedding", "norm"}


def test_quantised_weights_are_told_and_what_says_so(run: Run, model: str, tmp_path: Path) -> None:
    quantised = {"quantization_config": {"quant_method": "fp8"}}
    place = tiny_llama(tmp_path / "m", 3, **quantised)
    report = json.loads(run("inspect", place, "--json").stdout)
    said = {"method": "fp8", "where": "config field quantization_config", "declared": True}
    assert report["quantisation"] == said
    assert "quantised (fp8), config field quantization_config says so" in run("inspect", place).stdout
    assert json.loads(run("inspect", model, "--json").stdout)["quantisation"] is None


def test_the_table_groups_neighbours_that_are_alike(run: Run, model: str) -> None:
    lines = run("inspect", model).stdout.splitlines()
    assert "6 layers" in lines[0]
    assert any(line.startswith("0-5 ") for line in lines)
    assert any(line.startswith("mlp.down ") for line in lines)


def test_each_gives_every_layer_a_row(run: Run, model: str) -> None:
    lines = run("inspect", model, "--each").stdout.splitlines()
    assert [line.split()[0] for line in lines if line[:1].isdigit()] == ["0", "1", "2", "3", "4", "5"]


def test_columns_are_aligned(run: Run, model: str) -> None:
    text = run("inspect", model).stdout
    header, first, second = text.split("\n\n")[1].splitlines()[:3]
    assert header.index("dtype") == first.index("F32") == second.index("F32")


def test_per_layer_settings_and_windows_are_shown(run: Run, tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    text = run("inspect", tiny_llama(tmp_path / "m", 3, layer_types=kinds, sliding_window=8)).stdout
    assert "layer_types=sliding_attention" in text
    assert "in the last 8" in text
    assert "1-2 " in text


def test_an_unknown_cache_is_called_unknown(run: Run, tmp_path: Path) -> None:
    assert "KV cache unknown" in run("inspect", tiny_llama(tmp_path / "m", 2, kv_lora_rank=4)).stdout


def test_a_list_that_nobody_declared_is_noted(run: Run, tmp_path: Path) -> None:
    text = run("inspect", tiny_llama(tmp_path / "m", 3, odd_scales=[1, 2, 3])).stdout
    assert "note: config field odd_scales" in text


def test_a_model_that_is_not_there_is_an_error_with_advice(run: Run) -> None:
    result = run("inspect", "nix")
    assert result.exit_code == 1
    assert result.stderr.startswith("surgeon: nix: no such directory\n  allowed: ")
    assert result.stdout == ""


def test_a_broken_model_is_an_error_in_words(run: Run, tmp_path: Path) -> None:
    broken = tiny_llama(tmp_path / "m", 2)
    shard = broken / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    result = run("inspect", broken)
    assert result.exit_code == 1
    assert "truncated" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_adapter_is_told_from_its_header(run: Run, model: str, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shapes = {
        f"base_model.model.model.layers.{layer}.mlp.up_proj.lora_{part}.weight": shape
        for layer in (1, 2) for part, shape in (("A", (4, 32)), ("B", (48, 4)))
    }  # fmt: skip
    write_checkpoint(adapter, {}, {**shapes, "base_model.model.lm_head.weight": (64, 32)})
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "config.json").unlink()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "base_model_name_or_path": model}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    text = run("inspect", adapter).stdout
    assert f"adapter of {model} · 2 matrices" in text
    assert "mlp.up_proj  1-2        4      6    1.5  4×32  48×4  F32" in text
    assert "cannot be carried to an edited model: base_model.model.lm_head.weight" in text
    found = json.loads(run("inspect", adapter, "--json").stdout)
    assert found["matrices"]["model.layers.2.mlp.up_proj"]["scale"] == 1.5
    assert found["not_carried"].keys() == {"base_model.model.lm_head.weight"}
