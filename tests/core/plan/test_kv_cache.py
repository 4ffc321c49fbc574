from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.plan.kv_cache import KvCache, LayerCache, kv_cache
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import step_of
from tests.cli.tiny_checkpoints import (
    HEAD,
    HEADS,
    HIDDEN,
    KV_HEADS,
    Shapes,
    llama_config,
    llama_shapes,
    write_checkpoint,
)

EACH = 2 * KV_HEADS * HEAD * 4  # key and value, float32


def draft(directory: Path, shapes: Shapes | None = None, layers: int = 4, **config: Any) -> Draft:
    whole = {key: value for key, value in llama_config(layers, **config).items() if value is not None}
    return draft_of(read_structure(open_checkpoint(write_checkpoint(directory, whole, shapes or llama_shapes(layers)))))


def cache(directory: Path, shapes: Shapes | None = None, layers: int = 4, **config: Any) -> KvCache:
    return kv_cache(draft(directory, shapes, layers, **config))


def without(shapes: Shapes, part: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if part not in name}


def test_grouped_heads_count_once_per_group(tmp_path: Path) -> None:
    found = cache(tmp_path)
    assert found.layers == (LayerCache(EACH),) * 4
    assert found.bytes_per_token == 4 * EACH


def test_the_cache_has_the_dtype_of_the_model(tmp_path: Path) -> None:
    assert cache(tmp_path / "a", torch_dtype="bfloat16").bytes_per_token == 2 * EACH
    assert cache(tmp_path / "b", torch_dtype=None, dtype="float16").bytes_per_token == 2 * EACH
    assert cache(tmp_path / "c", torch_dtype=None).bytes_per_token == 4 * EACH
    assert cache(tmp_path / "d", torch_dtype="float8_e4m3fn").bytes_per_token is None


def test_every_head_counts_where_none_are_grouped(tmp_path: Path) -> None:
    shapes = llama_shapes(1)
    shapes |= {f"model.layers.0.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "kv"}
    assert cache(tmp_path, shapes, 1, num_key_value_heads=None).bytes_per_token == 2 * HEADS * HEAD * 4


def test_a_head_width_of_its_own_is_honoured(tmp_path: Path) -> None:
    shapes = llama_shapes(1)
    shapes |= {f"model.layers.0.self_attn.{name}_proj.weight": (KV_HEADS * 16, HIDDEN) for name in "kv"}
    assert cache(tmp_path, shapes, 1, head_dim=16).bytes_per_token == 2 * KV_HEADS * 16 * 4


def test_fused_attention_is_checked_against_its_width(tmp_path: Path) -> None:
    shapes = without(without(without(llama_shapes(1), "q_proj"), "k_proj"), "v_proj")
    fused = "model.layers.0.self_attn.qkv_proj.weight"
    fits = shapes | {fused: ((HEADS + 2 * KV_HEADS) * HEAD, HIDDEN)}
    assert cache(tmp_path / "a", fits, 1).bytes_per_token == EACH
    assert cache(tmp_path / "b", shapes | {fused: (99, HIDDEN)}, 1).bytes_per_token is None


def test_config_and_shapes_that_disagree_make_it_unknown(tmp_path: Path) -> None:
    assert cache(tmp_path, num_key_value_heads=4).bytes_per_token is None


@pytest.mark.parametrize("more", [{"kv_lora_rank": 8}, {"v_head_dim": 4}, {"num_key_value_heads": [2, 2, 2]}])
def test_a_cache_that_the_tensors_do_not_explain_is_unknown(tmp_path: Path, more: dict[str, Any]) -> None:
    assert cache(tmp_path, **more).bytes_per_token is None


RANK, ROPE = 12, 4
LATENT = (RANK + ROPE) * 4  # float32


def latent_shapes(*projections: str, width: int = RANK + ROPE) -> Shapes:
    """Return a model of one layer whose attention makes latents, by projections of these names."""
    shapes = without(without(llama_shapes(1), "k_proj"), "v_proj")
    return shapes | {f"model.layers.0.{name}.weight": (width, HIDDEN) for name in projections}


def latent_cache(directory: Path, shapes: Shapes, **config: Any) -> LayerCache:
    more = {"kv_lora_rank": RANK, "qk_rope_head_dim": ROPE, "v_head_dim": 8, **config}
    return cache(directory, shapes, 1, **more).layers[0]


def test_of_latents_the_rank_and_the_positions_are_kept(tmp_path: Path) -> None:
    shapes = latent_shapes("self_attn.kv_a_proj_with_mqa")
    assert latent_cache(tmp_path / "a", shapes) == LayerCache(LATENT, latent=True)
    assert latent_cache(tmp_path / "b", shapes, torch_dtype="bfloat16") == LayerCache(LATENT // 2, latent=True)


def test_a_layer_with_two_attentions_keeps_two_latents(tmp_path: Path) -> None:
    shapes = latent_shapes("self_attn.0.kv_a_proj_with_mqa", "self_attn.1.kv_a_proj_with_mqa")
    assert latent_cache(tmp_path, shapes) == LayerCache(2 * LATENT, latent=True)


def test_latents_of_which_anything_is_in_doubt_are_unknown(tmp_path: Path) -> None:
    name = "self_attn.kv_a_proj_with_mqa"
    assert latent_cache(tmp_path / "a", latent_shapes(name, width=RANK)).bytes_per_token is None
    assert latent_cache(tmp_path / "b", latent_shapes(name), qk_rope_head_dim=None).bytes_per_token is None
    assert latent_cache(tmp_path / "c", latent_shapes(name, "self_attn.indexer.wk")).bytes_per_token is None
    assert latent_cache(tmp_path / "d", latent_shapes()).bytes_per_token is None


def test_quantised_latents_are_known_where_a_shape_shows_their_width(tmp_path: Path) -> None:
    name, quantised = "self_attn.kv_a_proj_with_mqa", {"quantization_config": {"bits": 4}}
    assert latent_cache(tmp_path / "a", latent_shapes(name), **quantised).bytes_per_token == LATENT
    packed = latent_shapes() | {
        f"model.layers.0.{name}.{part}": shape
        for part, shape in {"qweight": (HIDDEN, 2), "scales": (1, RANK + ROPE)}.items()
    }
    assert latent_cache(tmp_path / "b", packed, **quantised).bytes_per_token == LATENT
    flat = latent_shapes() | {f"model.layers.0.{name}.weight": (HIDDEN * 8, 1)}
    assert latent_cache(tmp_path / "c", flat, **quantised).bytes_per_token is None


def test_quantised_weights_are_judged_by_the_config(tmp_path: Path) -> None:
    shapes = llama_shapes(1) | {"model.layers.0.self_attn.k_proj.weight": (3, 5)}
    assert cache(tmp_path / "a", shapes, 1, quantization_config={"bits": 4}).bytes_per_token == EACH
    bare = cache(tmp_path / "b", shapes, 1, quantization_config={"bits": 4}, num_key_value_heads=None)
    assert bare.bytes_per_token is None


def test_windows_are_marked_layer_by_layer(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "chunked_attention", "full_attention"]
    found = cache(tmp_path, layer_types=kinds, sliding_window=16, attention_chunk_size=8)
    assert [layer.window for layer in found.layers] == [16, None, 8, None]
    assert found.bytes_per_token == 4 * EACH


def test_a_family_with_a_window_everywhere_is_marked_everywhere(tmp_path: Path) -> None:
    assert {layer.window for layer in cache(tmp_path / "a", model_type="mistral", sliding_window=16).layers} == {16}
    assert {layer.window for layer in cache(tmp_path / "b", model_type="mistral", sliding_window=None).layers} == {None}
    assert {layer.window for layer in cache(tmp_path / "c", model_type="llama", sliding_window=16).layers} == {None}


def test_a_layer_without_attention_keeps_nothing(tmp_path: Path) -> None:
    shapes = without(llama_shapes(4), "layers.2.self_attn")
    found = cache(tmp_path, shapes)
    assert [layer.bytes_per_token for layer in found.layers] == [EACH, EACH, 0, EACH]
    assert found.bytes_per_token == 3 * EACH


def test_a_layer_with_a_state_of_its_own_is_unknown(tmp_path: Path) -> None:
    kinds = ["full_attention", "linear_attention", "full_attention", "full_attention"]
    found = cache(tmp_path / "a", layer_types=kinds)
    assert [layer.bytes_per_token for layer in found.layers] == [EACH, None, EACH, EACH]
    assert found.bytes_per_token is None
    shapes = without(llama_shapes(4), "layers.2.self_attn") | {"model.layers.2.mixer.in_proj.weight": (4, HIDDEN)}
    assert cache(tmp_path / "b", shapes).layers[2].bytes_per_token is None


def test_layers_that_share_a_cache_keep_nothing_of_their_own(tmp_path: Path) -> None:
    base = draft(tmp_path)
    shared = [replace(layer, settings={"num_kv_shared_layers": layer.original in (2, 3)}) for layer in base.layers()]
    found = kv_cache(base.with_layers(tuple(shared)))
    assert [layer.bytes_per_token for layer in found.layers] == [EACH, EACH, 0, 0]


def test_it_follows_the_edits_of_a_draft(tmp_path: Path) -> None:
    base = draft(tmp_path)
    shorter = fold(base, [step_of("prune", {"layers": "1-2"}, "test")])
    assert kv_cache(shorter).bytes_per_token == 2 * EACH
