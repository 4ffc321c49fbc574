"""A layer count, and what is said of each layer, in more than one place: all say the same after an edit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import ArchitectureError
from tests.export.handmade_models import doubled, layer_forms, plan_of, pruned, write_model

KINDS = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]


def _model(directory: Path, top: Mapping[str, Any], text: Mapping[str, Any] | None, layers: int = 4) -> Path:
    config = {"model_type": "of_two_parts", **top, **({} if text is None else {"text_config": dict(text)})}
    return write_model(directory, layer_forms("language_model.model.layers", range(layers)), config)


def test_both_places_count_and_list_alike_afterwards(tmp_path: Path) -> None:
    said = {"num_hidden_layers": 4, "layer_types": KINDS, "hidden_size": 4}
    config = plan_of(_model(tmp_path / "base", said, said), pruned(1, 2)).config

    expected = {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"], "hidden_size": 4}
    assert config["text_config"] == expected
    assert {key: config[key] for key in expected} == expected


def test_each_place_keeps_what_it_said_of_each_layer(tmp_path: Path) -> None:
    """Where the top has a list of its own, it travels as it was; no other is put in its place."""
    top = {"num_hidden_layers": 4, "layer_types": KINDS[::-1], "layer_moods": ["a", "b", "c", "d"]}
    config = plan_of(_model(tmp_path / "base", top, {"num_hidden_layers": 4, "layer_types": KINDS}), pruned(0)).config

    assert config["text_config"] == {"num_hidden_layers": 3, "layer_types": KINDS[1:]}
    assert config["layer_types"] == KINDS[::-1][1:]
    assert config["layer_moods"] == ["b", "c", "d"]


def test_a_list_at_the_top_goes_along_though_the_count_is_elsewhere(tmp_path: Path) -> None:
    config = plan_of(_model(tmp_path / "base", {"layer_types": KINDS}, {"num_hidden_layers": 4}), pruned(0)).config

    assert config["layer_types"] == KINDS[1:]
    assert "num_hidden_layers" not in config


def test_a_default_that_was_not_written_is_written(tmp_path: Path) -> None:
    """The text model's own part without a count has its class's, which was the base's."""
    config = plan_of(_model(tmp_path / "base", {"num_hidden_layers": 4}, {"hidden_size": 4}), pruned(0)).config

    assert config["num_hidden_layers"] == config["text_config"]["num_hidden_layers"] == 3


@pytest.mark.parametrize(("top", "inner", "layers"), [(4, 6, 6), (6, 4, 6), (4, 9, 4), (9, 4, 4)])
def test_two_counts_that_differ_are_refused_by_both_names(top: int, inner: int, layers: int, tmp_path: Path) -> None:
    """Nobody knows which one the next reader believes; what leaves the layers alone is still possible."""
    base = _model(tmp_path / "base", {"num_hidden_layers": top}, {"num_hidden_layers": inner}, layers)

    with pytest.raises(ArchitectureError, match="count the same layers") as caught:
        plan_of(base, pruned(0))
    assert {"num_hidden_layers", "text_config.num_hidden_layers"} <= set(caught.value.where.split())
    assert plan_of(base, {"freeze": {"layers": [0]}}).config["num_hidden_layers"] == top


def test_another_word_for_a_count_is_one_where_it_says_the_same(tmp_path: Path) -> None:
    """`num_layers` at the top may be of a projector: where it differs, it is neither refused nor changed."""
    same = _model(tmp_path / "same", {"n_layer": 4}, {"num_hidden_layers": 4})
    other = _model(tmp_path / "other", {"num_layers": 2}, {"num_hidden_layers": 4})

    assert plan_of(same, pruned(0)).config["n_layer"] == 3
    assert plan_of(other, pruned(0)).config["num_layers"] == 2


def test_the_count_of_another_tower_is_no_second_count(tmp_path: Path) -> None:
    forms = layer_forms("language_model.model.layers", range(4)) | layer_forms("vision_tower.encoder.layers", range(4))
    vision = {"model_type": "clip_vision_model", "num_hidden_layers": 4, "layer_types": KINDS}
    config = {"model_type": "two", "text_config": {"num_hidden_layers": 4}, "vision_config": vision}
    after = plan_of(write_model(tmp_path / "base", forms, config), pruned(0)).config

    assert after["text_config"] == {"num_hidden_layers": 3}
    assert after["vision_config"] == vision


def test_a_decoder_that_counts_as_its_encoder_is_counted_for_itself(tmp_path: Path) -> None:
    """T5 without num_decoder_layers has as many layers in the decoder; after an edit of one it would have lost."""
    forms = {
        f"{stack}.block.{layer}.layer.0.SelfAttention.q.weight": ("F32", (4, 4))
        for stack in ("encoder", "decoder")
        for layer in range(3)
    }
    base = write_model(tmp_path / "base", forms, {"model_type": "umt5", "num_layers": 3})

    encoder = plan_of(base, pruned(0, stack="encoder")).config
    assert (encoder["num_layers"], encoder["num_decoder_layers"]) == (2, 3)
    decoder = plan_of(base, pruned(0, stack="decoder")).config
    assert (decoder["num_layers"], decoder["num_decoder_layers"]) == (3, 2)
    assert "num_decoder_layers" not in plan_of(base, {"freeze": {"layers": [0]}}).config


def test_a_count_told_by_the_length_of_a_list_alone_is_written(tmp_path: Path) -> None:
    """Unless the class has no such field, as nemotron_h: else its default would be another."""
    forms = layer_forms("model.layers", range(4))
    base = write_model(tmp_path / "base", forms, {"model_type": "of_tomorrow", "layer_types": KINDS})

    assert plan_of(base, pruned(0)).config == {
        "model_type": "of_tomorrow", "layer_types": KINDS[1:], "num_hidden_layers": 3,
    }  # fmt: skip


def test_a_count_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", layer_forms("model.layers", range(4)), {"model_type": "llama"})

    with pytest.raises(ArchitectureError, match="gives no layer count") as caught:
        plan_of(base)
    assert caught.value.hint == "write the layer count into config.json: 4"


def test_lists_of_numbers_keep_what_is_numbered_behind_the_last_layer(tmp_path: Path) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 4, "mlp_only_layers": [1, 3, 4]}
    base = write_model(tmp_path / "base", layer_forms("model.layers", range(5)), config)

    assert plan_of(base, pruned(0)).config["mlp_only_layers"] == [0, 2, 3]
    assert plan_of(base, doubled(1)).config["mlp_only_layers"] == [1, 2, 4, 5]


def test_a_table_of_layers_with_another_key_is_refused_by_name(tmp_path: Path) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 4, "per_layer_config": {"default": {}}}
    base = write_model(tmp_path / "base", layer_forms("model.layers", range(4)), config)

    with pytest.raises(ArchitectureError, match="per_layer_config: has the key 'default'"):
        plan_of(base)


def test_a_config_does_not_go_on_naming_a_file_of_the_base(tmp_path: Path) -> None:
    """`transformers_weights` names the base's file of weights, and what is written has the usual name."""
    config = {"model_type": "llama", "num_hidden_layers": 4, "transformers_weights": "model.safetensors"}
    base = write_model(tmp_path / "base", layer_forms("model.layers", range(4)), config)

    assert "transformers_weights" not in plan_of(base, pruned(0)).config
