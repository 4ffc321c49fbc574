"""Values of quantised weights against those of transformers and of bitsandbytes, and what scores make of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from surgeon.backend.scoring.dequantising import dequantised, is_readable
from surgeon.core.checkpoint.tensors import TensorType, tensor_type
from surgeon.core.structure.companions import packed_weights
from surgeon.core.structure.quantisation import Quantisation
from surgeon.errors import ArchitectureError
from tests.backend.quantised_bases import (
    FP8_BLOCKS,
    NF4,
    Pack,
    edit_config,
    fp8_blocks,
    fp8_whole,
    modelopt_base,
    nf4,
    plain_base,
    quantised_base,
    read,
    save,
)
from tests.export.replaying import run
from tests.jobs import keep_silent, never, perform

_DTYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8", torch.int8: "I8", torch.int32: "I32",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e8m0fnu: "F8_E8M0",
}  # fmt: skip
_PACKED: dict[str, tuple[Pack, dict[str, Any]]] = {"fp8": (fp8_blocks, FP8_BLOCKS), "nf4": (nf4, NF4)}
_OF_BITSANDBYTES = json.loads(Path(__file__).with_name("nf4_of_bitsandbytes.json").read_text())


def _types(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorType]:
    return {name: tensor_type(_DTYPES[one.dtype], tuple(one.shape)) for name, one in tensors.items()}


def _values(tensors: Mapping[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    types = _types(tensors)
    (weight,) = packed_weights(types).values()
    quantisation = Quantisation("of a test", "here", settings=settings)
    assert is_readable(weight, types, quantisation)
    return dequantised(weight, types, quantisation, tensors.__getitem__)


def _readable(tensors: Mapping[str, torch.Tensor], **settings: Any) -> bool:
    types = _types(tensors)
    return all(
        is_readable(weight, types, Quantisation("of a test", "here", settings=settings))
        for weight in packed_weights(types).values()
    )


def _fp8(*shape: int) -> torch.Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
@pytest.mark.parametrize("shape", [(256, 384), (3, 128, 256)])
def test_fp8_blocks_are_those_of_transformers(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of single matrices and of stacked experts, with scales of any width."""
    name = "mlp.down_proj.weight" if len(shape) == 2 else "mlp.experts.gate_up_proj"
    weight, grid = _fp8(*shape), (*shape[:-2], shape[-2] // 128, shape[-1] // 128)
    scale = (0.01 + torch.rand(grid)).to(dtype)

    operation: Any = Fp8Dequantize
    expected = operation(None)._dequantize_one(weight, scale, torch.float32)
    assert torch.equal(_values({name: weight, f"{name}_scale_inv": scale}, weight_block_size=[128, 128]), expected)


def test_the_last_fp8_block_of_a_ragged_matrix_is_shorter() -> None:
    """As DeepSeek's own kernel has it; where nothing says how large blocks are, nothing is guessed."""
    weight, scale = _fp8(40, 24), torch.rand(3, 2) + 0.1
    tensors = {"p.weight": weight, "p.weight_scale_inv": scale}

    found = _values(tensors, weight_block_size=[16, 16])
    for row in range(40):
        for column in range(24):
            assert found[row, column] == weight[row, column].float() * scale[row // 16, column // 16]
    assert not _readable(tensors)
    assert not _readable(tensors, weight_block_size=[8, 16])


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (6,), (6, 1)])
def test_fp8_with_a_scale_for_all_or_for_each_row(shape: tuple[int, ...]) -> None:
    weight, scale = _fp8(6, 6), torch.rand(shape) + 0.1
    found = _values({"p.weight": weight, "p.weight_scale": scale, "p.input_scale": torch.ones(())})

    rows = scale.flatten().expand(6) if scale.numel() == 1 else scale.flatten()
    assert torch.equal(found, torch.stack([weight[row].float() * rows[row] for row in range(6)]))


def test_mxfp4_is_that_of_transformers() -> None:
    """Which turns each expert around on loading."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 8, 4, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 140, (3, 8, 4), dtype=torch.uint8, generator=generator)
    name = "mlp.experts.down_proj"

    found = _values({f"{name}_blocks": blocks, f"{name}_scales": scales})
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert torch.equal(found.transpose(1, 2), expected)


@pytest.mark.parametrize("kind", ["single", "double"])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_nf4_is_that_of_bitsandbytes(kind: str, storage: torch.dtype) -> None:
    """With scales as they are, and quantised in turn; stored as bytes, or as if the bytes were floats."""
    given = _OF_BITSANDBYTES[kind]
    raw = torch.frombuffer(bytearray(base64.b64decode(given["weight"])), dtype=storage)[:, None]
    state = torch.tensor(list(given["quant_state"].encode()), dtype=torch.uint8)
    tensors = {
        "p.weight": raw, "p.weight.quant_map": torch.tensor(given["quant_map"]),
        "p.weight.absmax": torch.tensor(given["absmax"], dtype=torch.uint8 if kind == "double" else torch.float32),
        "p.weight.quant_state.bitsandbytes__nf4": state,
    }  # fmt: skip
    if kind == "double":
        table = torch.zeros(256)
        for code, value in given["nested_quant_map"].items():
            table[int(code)] = value
        tensors["p.weight.nested_quant_map"] = table
        tensors["p.weight.nested_absmax"] = torch.tensor(given["nested_absmax"])

    expected = torch.frombuffer(bytearray(base64.b64decode(given["values"])), dtype=torch.float32).reshape(3, 64)
    assert torch.equal(_values(tensors), expected)


@pytest.mark.parametrize(
    "tensors",
    [
        {"p.qweight": torch.zeros(4, 4, dtype=torch.int32), "p.scales": torch.ones(1, 4), "p.qzeros": torch.ones(1, 4)},
        {"p.weight_packed": torch.zeros(4, 4, dtype=torch.int32), "p.weight_scale": torch.ones(4, 1)},
        {"p.weight": torch.zeros(4, 4, dtype=torch.int8), "p.SCB": torch.ones(4)},
        {"p.weight": _fp8(4, 4), "p.weight_scale": torch.ones(4, 1), "p.weight_zero_point": torch.ones(4, 1)},
        {
            "p.weight": torch.zeros(4, 2, dtype=torch.uint8),
            "p.weight_scale": _fp8(4, 1),
            "p.weight_scale_2": torch.ones(()),
        },
        {"p.weight": _fp8(4, 4), "p.weight_scale": torch.ones(4, 1), "p.pre_quant_scale": torch.ones(4)},
        {"p.weight": _fp8(4, 4)},
    ],
)
def test_what_is_no_plain_arithmetic_is_not_read(tensors: dict[str, torch.Tensor]) -> None:
    assert packed_weights(_types(tensors))
    assert not _readable(tensors)


def test_rotated_weights_are_not_read() -> None:
    tensors = {"p.weight": _fp8(4, 4), "p.weight_scale": torch.ones(4, 1)}

    assert _readable(tensors)
    assert not _readable(tensors, transform_config={"groups": {}})


# ── scores ──


def _scored(base: Path, *names: str) -> dict[str, dict[str, Any]]:
    recipe = {"version": 1, "base": {"model": str(base)}}
    found = perform("score", {"recipe": recipe, "root": str(base), "names": list(names)}, keep_silent, never)
    return {score["name"]: score for score in found["scores"]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_base(tmp_path_factory.mktemp("quantised") / "plain")


_WEIGHT_SCORES = ("weight_norm", "stable_rank", "lamp", "random_matrix", "power_law_alpha", "spectrum_compat")


@pytest.mark.parametrize("kind", ["fp8", "nf4", "modelopt"])
def test_scores_of_weights_see_the_weights_and_never_their_scales(kind: str, plain: Path, tmp_path: Path) -> None:
    """Scales rise where the weights fall: to rank them is to remove the wrong layers."""
    if kind == "modelopt":
        base = modelopt_base(plain, tmp_path / "base")
    else:
        base = quantised_base(plain, tmp_path / "base", *_PACKED[kind])
    expected, found = _scored(plain, *_WEIGHT_SCORES), _scored(base, *_WEIGHT_SCORES)

    for key, value in expected["weight_norm"]["values"].items():
        assert found["weight_norm"]["values"][key] == pytest.approx(value, rel=0.02)
    for name in _WEIGHT_SCORES:
        assert found[name]["matrices"].keys() == expected[name]["matrices"].keys()
        for key, row in expected[name]["matrices"].items():
            assert found[name]["matrices"][key].keys() == row.keys()


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_a_selection_by_weights_takes_the_layers_of_the_plain_model(kind: str, plain: Path, tmp_path: Path) -> None:
    base = quantised_base(plain, tmp_path / "base", *_PACKED[kind])
    result = run(base, tmp_path / "out", {"prune": {"layers": {"lowest": 2, "by": "weight_norm"}}})

    assert list(result["recipe"]["steps"][0]["resolved"]["layers"]) == [4, 5]
    before, after = read(base), read(tmp_path / "out")
    for name in (name for name in before if not name.startswith(("model.layers.4.", "model.layers.5."))):
        assert torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))


def test_a_method_that_is_not_read_is_refused_by_its_name(plain: Path, tmp_path: Path) -> None:
    """Before any layer is ranked."""

    def packed(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        module = name.removesuffix(".weight")
        return {f"{module}.qweight": weight.to(torch.int32), f"{module}.scales": weight.abs().amax(1, keepdim=True)}

    base = quantised_base(plain, tmp_path / "base", packed, {"quant_method": "gptq", "bits": 4})
    told: list[str] = []
    recipe = {"version": 1, "base": {"model": str(base)}}
    args = {"recipe": recipe, "root": str(base), "names": ["weight_norm"]}
    with pytest.raises(
        ArchitectureError, match=r"config field quantization_config: the weights are quantised \(gptq\)"
    ):
        perform("score", args, lambda kind, body: told.append(kind), never)
    assert "scored" not in told


def test_a_layer_that_is_not_quantised_is_read_as_it_is(plain: Path, tmp_path: Path) -> None:
    """Mixed models leave some layers alone; both are ranked by the same numbers."""

    def some(name: str, weight: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return fp8_whole(name, weight) if 0 < int(name.split(".")[2]) < 5 else {name: weight.to(torch.bfloat16)}

    ignore = ["model.layers.0", "model.layers.5"]
    config = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ignore}
    base = quantised_base(plain, tmp_path / "base", some, config)

    found, expected = (_scored(one, "weight_norm")["weight_norm"]["values"] for one in (base, plain))
    assert found == {key: pytest.approx(value, rel=0.01) for key, value in expected.items()}


def test_a_scale_beside_an_unpacked_weight_is_not_ranked_either(plain: Path, tmp_path: Path) -> None:
    """Weights in bfloat16 with leftover scales: nobody knows whether they still count, and they are no matrices."""
    base = quantised_base(plain, tmp_path / "base", lambda name, weight: {name: weight.to(torch.bfloat16)})
    tensors = read(base)
    save(base, {**tensors, "model.layers.1.mlp.down_proj.weight_scale": torch.full((32, 1), 1000.0)})
    edit_config(base, dtype="bfloat16")

    with pytest.raises(ArchitectureError, match=r"model.layers.1.mlp.down_proj.weight_scale"):
        _scored(base, "weight_norm")
