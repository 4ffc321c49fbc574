"""Names of layers in configs and files: each goes with the layers of its own stack, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import ArchitectureError
from tests.export.handmade_models import doubled, layer_forms, plan_of, pruned, write_model

LLAMA: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": 4}
TOWERS: dict[str, Any] = {
    "model_type": "llava",
    "text_config": {"model_type": "llama", "num_hidden_layers": 4},
    "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 3},
}


def _ignored(base: Path, *steps: Any) -> Any:
    return plan_of(base, *steps).config["quantization_config"]["ignore"]


def _llama(directory: Path, ignore: Any, layers: int = 4, **config: Any) -> Path:
    quantised = {"quant_method": "compressed-tensors", "ignore": ignore}
    forms = layer_forms("model.layers", range(layers))
    return write_model(
        directory, forms, {**LLAMA, "num_hidden_layers": layers, "quantization_config": quantised, **config}
    )


def _towers(directory: Path, ignore: Any, prefix: str = "language_model.model.layers", **files: Any) -> Path:
    forms = layer_forms(prefix, range(4)) | layer_forms("vision_tower.encoder.layers", range(3))
    forms |= layer_forms("talker.model.layers", range(2)) | layer_forms("mtp.layers", range(1))
    quantised = {"quant_method": "compressed-tensors", "ignore": ignore}
    return write_model(directory, forms, {**TOWERS, "quantization_config": quantised}, **files)


def test_other_towers_keep_the_names_of_their_layers(tmp_path: Path) -> None:
    """They are numbered from 0 too, and did not lose any layer."""
    kept = ["vision_tower.encoder.layers.2.mlp", "talker.model.layers.1.mlp", "mtp.layers.0.mlp", "lm_head"]
    base = _towers(tmp_path / "base", ["language_model.model.layers.3.mlp", *kept])

    assert _ignored(base, pruned(0, 1)) == [*kept, "language_model.model.layers.1.mlp"]


@pytest.mark.parametrize("prefix", ["model.language_model", "language_model.model", "language_model", "model"])
def test_a_text_model_is_known_by_the_names_that_other_programs_give_it(prefix: str, tmp_path: Path) -> None:
    """Shards and quantisers of different versions name the same layers differently."""
    base = _towers(tmp_path / "base", [f"{prefix}.layers.3.mlp.down_proj"])

    assert _ignored(base, pruned(0)) == [f"{prefix}.layers.2.mlp.down_proj"]


def test_a_name_that_may_be_of_two_towers_is_refused(tmp_path: Path) -> None:
    base = _towers(tmp_path / "base", ["layers.1.mlp"])

    with pytest.raises(ArchitectureError, match=r"quantization_config.ignore: names 'layers.1.mlp'"):
        plan_of(base, pruned(0))


def test_a_name_within_the_text_models_own_part_is_of_its_layers(tmp_path: Path) -> None:
    text = {"model_type": "llama", "num_hidden_layers": 4, "quantization_config": {"ignore": ["layers.3.mlp"]}}
    forms = layer_forms("language_model.model.layers", range(4)) | layer_forms("vision_tower.encoder.layers", range(4))
    vision = {"model_type": "clip_vision_model", "quantization_config": {"ignore": ["layers.3.mlp"]}}
    base = write_model(tmp_path / "base", forms, {**TOWERS, "text_config": text, "vision_config": vision})
    config = plan_of(base, pruned(0)).config

    assert config["text_config"]["quantization_config"]["ignore"] == ["layers.2.mlp"]
    assert config["vision_config"]["quantization_config"]["ignore"] == ["layers.3.mlp"]


def test_a_tower_that_is_named_but_not_stored_keeps_its_names(tmp_path: Path) -> None:
    """A language model cut out of a larger one still has the config of the whole."""
    base = _llama(tmp_path / "base", ["model.vision_tower.layers.3.mlp", "model.layers.3.mlp"])

    assert _ignored(base, pruned(0)) == ["model.vision_tower.layers.3.mlp", "model.layers.2.mlp"]


def test_layers_behind_the_last_keep_their_entries_as_they_keep_their_tensors(tmp_path: Path) -> None:
    """The layer that predicts several tokens ahead is numbered on, and stays behind the last."""
    forms = layer_forms("model.layers", range(4)) | layer_forms("model.layers", [4], eh_proj__weight=("F32", (4, 8)))
    ignore = ["lm_head", "model.layers.1.mlp.down_proj", "model.layers.4.eh_proj", "model.layers.4.shared_head.head"]
    config = {
        "model_type": "deepseek_v3", "num_hidden_layers": 4, "num_nextn_predict_layers": 1, "first_k_dense_replace": 4,
        "quantization_config": {"quant_method": "compressed-tensors", "ignore": ignore},
    }  # fmt: skip
    base = write_model(tmp_path / "base", forms, config)

    fewer = ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.2.eh_proj", "model.layers.2.shared_head.head"]
    more = ["lm_head", "model.layers.2.mlp.down_proj", "model.layers.5.eh_proj", "model.layers.5.shared_head.head"]
    assert _ignored(base, pruned(0, 2)) == fewer
    assert _ignored(base, doubled(0)) == more


def test_entries_of_layers_behind_the_last_that_were_left_out_stay_behind_it(tmp_path: Path) -> None:
    """Who drops the tensors of multi-token prediction often keeps its entries."""
    base = _llama(tmp_path / "base", ["model.layers.4.eh_proj", "re:.*layers\\.4\\.shared_head"])

    assert _ignored(base, pruned(0, 2)) == ["model.layers.2.eh_proj", "re:.*layers\\.2\\.shared_head"]


def test_a_pattern_of_modules_that_are_not_there_is_renumbered_where_its_layer_is_named(tmp_path: Path) -> None:
    """ModelOpt lists what it leaves alone in each layer, whether the layer has it or not; a guess is refused."""
    base = _llama(tmp_path / "base", ["model.layers.3.linear_attn*", "re:model\\.layers\\.0\\.linear_attn.*"])

    assert _ignored(base, pruned(0)) == ["model.layers.2.linear_attn*"]
    unknown = _llama(tmp_path / "unknown", ["re:.*blk.*layers\\.3\\.linear_attn"])
    with pytest.raises(ArchitectureError, match="names layers by a pattern"):
        plan_of(unknown, pruned(0))


def test_a_repeated_layer_has_its_entries_twice_and_a_moved_one_moves_them(tmp_path: Path) -> None:
    base = _llama(tmp_path / "base", ["model.layers.1.mlp", "model.layers.3.mlp"])

    assert _ignored(base, doubled(1)) == ["model.layers.1.mlp", "model.layers.2.mlp", "model.layers.4.mlp"]
    assert _ignored(base, {"reorder": {"order": [3, 2, 1, 0]}}) == ["model.layers.2.mlp", "model.layers.0.mlp"]


@pytest.mark.parametrize(
    "pattern",
    [
        "re:.*layers\\.[0-9]+\\.mlp.*", "re:.*layers\\.\\d+\\.self_attn\\.q_proj", "re:.*mlp\\.down_proj$",
        "model.layers.*.mlp.down_proj", "re:vision.*layers\\.[0-1]\\.mlp.*", "re:.*lm_head", "Linear",
    ],
)  # fmt: skip
def test_a_pattern_that_means_the_same_of_every_layer_stays(pattern: str, tmp_path: Path) -> None:
    """What decides is what it matches, not whether there are digits in it."""
    base = _towers(tmp_path / "base", [pattern])

    assert _ignored(base, pruned(0)) == [pattern]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("re:.*model\\.layers\\.3\\.mlp.*", ["re:.*model\\.layers\\.2\\.mlp.*"]),
        ("re:model.layers.0.mlp.*", []),
        ("model.layers.3.self_attn*", ["model.layers.2.self_attn*"]),
        ("model.layers.3*", ["model.layers.2*"]),
        ("re:.*layers\\.(2|3)\\.mlp.*", None),
        ("re:.*layers\\.[0-1]\\.mlp.*", None),
        ("model.layers.[12].mlp*", None),
    ],
)
def test_a_pattern_of_one_layer_is_renumbered_and_one_of_some_refused(
    pattern: str, expected: list[str] | None, tmp_path: Path
) -> None:
    base = _llama(tmp_path / "base", [pattern])

    if expected is not None:
        assert _ignored(base, pruned(0)) == expected
        return
    with pytest.raises(ArchitectureError, match=r"quantization_config\.ignore: names layers by a pattern") as caught:
        plan_of(base, pruned(0))
    assert pattern in caught.value.what


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("re:.*layers.1.*", None),
        ("re:.*layers.1.mlp.*", ["re:.*layers.0.mlp.*"]),
        ("model.layers.11*", ["model.layers.10*"]),
        ("model.layers.2*", None),
    ],
)
def test_a_pattern_is_held_to_what_it_matches_and_not_to_how_it_is_written(
    pattern: str, expected: list[str] | None, tmp_path: Path
) -> None:
    """`layers.1.` as an expression means layers 1 and 10 to 19, whose dots are any character."""
    base = _llama(tmp_path / "base", [pattern], layers=22)

    found = None
    try:
        found = _ignored(base, pruned(0))
    except ArchitectureError as error:
        assert pattern in error.what
    assert found == expected


def test_a_pattern_that_means_layers_of_two_towers_is_not_changed_for_one(tmp_path: Path) -> None:
    """Renumbered for the text model, it would mean another layer of the vision tower, which lost none."""
    base = _towers(tmp_path / "base", ["re:.*layers\\.2\\.mlp.*"])
    with pytest.raises(ArchitectureError, match="names layers by a pattern"):
        plan_of(base, pruned(0))
    own = _towers(tmp_path / "own", ["re:.*language_model.*layers\\.2\\.mlp.*", "re:vision.*layers\\.2\\.mlp.*"])
    assert sorted(_ignored(own, pruned(0))) == [
        "re:.*language_model.*layers\\.1\\.mlp.*", "re:vision.*layers\\.2\\.mlp.*",
    ]  # fmt: skip


def test_a_pattern_that_means_both_stacks_is_renumbered_where_both_move_alike(tmp_path: Path) -> None:
    forms = layer_forms("model.decoder.layers", range(4)) | layer_forms("model.encoder.layers", range(4))
    config = {"model_type": "bart", "decoder_layers": 4, "encoder_layers": 4}
    config["quantization_config"] = {"ignore": ["re:.*layers\\.3\\.mlp.*"]}
    base = write_model(tmp_path / "base", forms, config)

    both = [pruned(0, stack="decoder"), pruned(1, stack="encoder")]
    assert _ignored(base, *both) == ["re:.*layers\\.2\\.mlp.*"]
    with pytest.raises(ArchitectureError, match="names layers by a pattern"):
        plan_of(base, both[0])


def test_a_wildcard_that_would_mean_more_layers_is_written_more_narrowly(tmp_path: Path) -> None:
    """ModelOpt's `model.layers.61*` is layer 61 alone; `model.layers.1*` of the shorter model would be eleven."""
    base = _llama(tmp_path / "base", ["model.layers.21*"], layers=22)

    assert _ignored(base, pruned(*range(1, 21))) == ["model.layers.1*"]
    assert _ignored(base, pruned(*range(3, 12))) == ["model.layers.12*"]
    longer = _llama(tmp_path / "longer", ["model.layers.20*"], layers=40)
    assert _ignored(longer, pruned(*range(2, 20))) == ["model.layers.2.*"]


def test_the_first_key_that_matches_stays_the_first(tmp_path: Path) -> None:
    """GPTQModel takes the first expression of `dynamic` that fits: the particular must not come behind the general."""
    dynamic = {"-:.*\\.layers\\.3\\..*": {}, "+:.*\\.layers\\..*": {"bits": 8}, "lm_head": {"bits": 2}}
    config = {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4, "dynamic": dynamic}}
    base = write_model(tmp_path / "base", layer_forms("model.layers", range(4)), config)
    after = plan_of(base, pruned(0)).config["quantization_config"]["dynamic"]

    assert list(after.items()) == [
        ("-:.*\\.layers\\.2\\..*", {}), ("+:.*\\.layers\\..*", {"bits": 8}), ("lm_head", {"bits": 2}),
    ]  # fmt: skip


def test_both_stacks_of_one_model_may_move_at_once(tmp_path: Path) -> None:
    """Each writes its own names; neither undoes what the other wrote."""
    forms = layer_forms("model.decoder.layers", range(4)) | layer_forms("model.encoder.layers", range(4))
    ignore = ["model.decoder.layers.3.mlp", "model.encoder.layers.3.mlp"]
    config = {"model_type": "bart", "decoder_layers": 4, "encoder_layers": 4, "quantization_config": {"ignore": ignore}}
    base = write_model(tmp_path / "base", forms, config)

    assert _ignored(base, pruned(0, stack="decoder")) == ["model.decoder.layers.2.mlp", "model.encoder.layers.3.mlp"]
    both = _ignored(base, pruned(0, stack="decoder"), pruned(1, 2, stack="encoder"))
    assert both == ["model.decoder.layers.2.mlp", "model.encoder.layers.1.mlp"]


def test_mlx_tables_and_single_names_go_with_their_layers(tmp_path: Path) -> None:
    """MLX says under `quantization` and again under `quantization_config` what differs, module by module."""
    table = {"group_size": 64, "bits": 4, "model.layers.0.mlp": {"bits": 8}, "model.layers.3.mlp": False}
    config = {**LLAMA, "quantization": table, "quantization_config": table, "watched": {"module": "model.layers.3.mlp"}}
    base = write_model(tmp_path / "base", layer_forms("model.layers", range(4)), config)
    after = plan_of(base, pruned(0)).config

    expected = {"group_size": 64, "bits": 4, "model.layers.2.mlp": False}
    assert after["quantization"] == after["quantization_config"] == expected
    assert after["watched"] == {"module": "model.layers.2.mlp"}
    with pytest.raises(ArchitectureError, match=r"watched.module: names 'model.layers.3.mlp'"):
        plan_of(base, pruned(3))


@pytest.mark.parametrize("path", [("per_layer_config",), ("cache_config", "per_layer_config"), ("a", "by_layer", "b")])
def test_tables_keyed_by_numbers_of_layers_go_with_them_at_any_depth(path: tuple[str, ...], tmp_path: Path) -> None:
    """What is keyed behind the last layer stays behind it."""
    content: Any = {"1": {"width": 8}, "3": {"width": 16}, "4": {"width": 2}}
    for key in reversed(path):
        content = {key: content}
    base = write_model(tmp_path / "base", layer_forms("model.layers", range(4)), {**LLAMA, **content})
    after: Any = plan_of(base, pruned(1, 2)).config
    for key in path:
        after = after[key]

    assert after == {"1": {"width": 16}, "2": {"width": 2}}


def test_tables_that_only_look_so_stay(tmp_path: Path) -> None:
    """Labels are numbered too, and may be as many as there are layers."""
    labels = {"id2label": {str(number): f"L{number}" for number in range(4)}, "buckets": {"0": 1, "7": 2}}
    base = write_model(tmp_path / "base", layer_forms("model.layers", range(4)), {**LLAMA, **labels})
    after = plan_of(base, pruned(1)).config

    assert {key: after[key] for key in labels} == labels


def test_bare_numbers_in_what_is_said_of_quantisation_are_refused(tmp_path: Path) -> None:
    config = {**LLAMA, "quantization_config": {"quant_method": "own", "skip_layers": [0, 3]}}
    base = write_model(tmp_path / "base", layer_forms("model.layers", range(4)), config)

    with pytest.raises(ArchitectureError, match=r"quantization_config.skip_layers: seems to list layers"):
        plan_of(base, pruned(1))


def test_lists_of_something_per_layer_go_with_the_layers_where_the_key_says_so(tmp_path: Path) -> None:
    config = {**LLAMA, "quantization_config": {"bits_per_layer": [2, 4, 8, 16], "weight_block_size": [2, 2, 2, 2]}}
    base = write_model(tmp_path / "base", layer_forms("model.layers", range(4)), config)
    after = plan_of(base, pruned(1)).config["quantization_config"]

    assert after == {"bits_per_layer": [2, 8, 16], "weight_block_size": [2, 2, 2, 2]}


def test_nothing_is_read_into_a_config_of_which_no_layer_moves(tmp_path: Path) -> None:
    """Freezing asks for no renumbering, however odd the entries are."""
    base = _llama(tmp_path / "base", ["re:.*layers\\.[0-1]\\.mlp.*", "nobody.knows.layers.3"])

    assert _ignored(base, {"freeze": {"layers": [0]}}) == ["re:.*layers\\.[0-1]\\.mlp.*", "nobody.knows.layers.3"]


@pytest.mark.parametrize("said", ["model.layers.0.mlp.down_proj", "re:.*layers\\.0\\.mlp.*"])
def test_layers_that_differ_because_one_is_not_quantised_may_move(said: str, tmp_path: Path) -> None:
    """The entry that leaves it alone explains how it is built, and goes with it."""
    forms = layer_forms("model.layers", range(4))
    for layer in range(1, 4):
        forms[f"model.layers.{layer}.mlp.down_proj.weight_scale"] = ("F32", (4, 1))
    config = {**LLAMA, "quantization_config": {"quant_method": "compressed-tensors", "ignore": [said]}}
    base = write_model(tmp_path / "base", forms, config)

    assert _ignored(base, pruned(1)) == [said]
    assert _ignored(base, pruned(0)) == []
    unsaid = {**config, "quantization_config": {"quant_method": "compressed-tensors", "ignore": []}}
    with pytest.raises(ArchitectureError, match="built differently"):
        plan_of(write_model(tmp_path / "unsaid", forms, unsaid), pruned(1))
