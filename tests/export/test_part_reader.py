"""Parts of tensors, and slices of those outside the layers: by bytes, by torch, and by numpy, which knows nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.tensors import tensor_reader
from surgeon.core.checkpoint.checkpoint import Tensor, open_checkpoint
from surgeon.core.plan.draft import Identity, draft_of
from surgeon.core.plan.expressions import Copy, Expression, PartOf
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.plan.stored_parts import StoredPart, stored_part
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins
from surgeon.errors import ArchitectureError, CheckpointError
from surgeon.export import part_reader
from surgeon.export.part_reader import gathered
from tests.export.handmade_shards import Stored, random_tensor, write_shard

LAYERS, WIDTH, WORDS, HIDDEN = 4, 3, 7, 5
_PER_LAYER = "model.embed_tokens_per_layer.weight"
_PROJECTION = "model.per_layer_model_projection.weight"
_SLICED = {_PER_LAYER: ((WORDS, LAYERS * WIDTH), 1), _PROJECTION: ((LAYERS * WIDTH, HIDDEN), 0)}


def _stored(directory: Path, shape: tuple[int, ...], dtype: str) -> tuple[Tensor, Any]:
    one = random_tensor(shape, dtype, f"{shape}")
    write_shard(directory / "model.safetensors", {"before": random_tensor((3,), "U8"), "sliced": one})
    (directory / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    kinds = {"F64": "<u8", "F32": "<u4", "BF16": "<u2"}
    return open_checkpoint(directory).tensors["sliced"], np.frombuffer(one.data, kinds[dtype]).reshape(shape)


def _drawn_runs(data: st.DataObject, size: int) -> tuple[tuple[int, int], ...]:
    """Spans in any order, some of them of what others hold too."""
    bounds = st.tuples(st.integers(0, size - 1), st.integers(1, size)).filter(lambda pair: pair[0] < pair[1])
    return tuple(data.draw(st.lists(bounds, min_size=1, max_size=4), "runs"))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_parts_are_moved_as_numpy_takes_them(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the dimensions, spans and order, cut once or of what was cut before, read a few bytes at a time."""
    shape = tuple(
        data.draw(st.integers(1, 6), f"size {at}") for at in range(data.draw(st.integers(1, 4), "dimensions"))
    )
    directory = tmp_path_factory.mktemp("one")
    tensor, expected = _stored(directory, shape, data.draw(st.sampled_from(["F64", "F32", "BF16"])))
    expression: Expression = Copy(tensor)
    for _ in range(data.draw(st.integers(1, 3), "cuts")):
        axis = data.draw(st.integers(0, len(shape) - 1), "axis")
        runs = _drawn_runs(data, expected.shape[axis])
        expression = PartOf(expression, tuple(expected.shape), axis, runs)
        expected = np.take(expected, [at for start, stop in runs for at in range(start, stop)], axis=axis)
    assert isinstance(expression, PartOf)
    part = stored_part(expression)
    assert part is not None

    source = os.open(tensor.shard, os.O_RDONLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_reader, "_PIECE", data.draw(st.integers(1, 200), "bytes at a time"))
        found = b"".join(gathered(source, part))
    ranges = b"".join(os.pread(source, end - start, start) for start, end in part.ranges())
    os.close(source)
    with tensor_reader() as reader:
        calculated = reader.evaluate(expression, tensor.dtype, tuple(expected.shape))

    assert found == ranges == expected.tobytes()
    assert part.nbytes == len(found)
    assert calculated.contiguous().view(torch.uint8).numpy().tobytes() == found
    assert tuple(calculated.shape) == expected.shape


def test_a_shard_that_shrank_is_named(tmp_path: Path) -> None:
    """Rather than gather slices of what is not there."""
    tensor, _ = _stored(tmp_path, (4, 6), "F32")
    os.truncate(tensor.shard, tensor.start + 40)
    source = os.open(tensor.shard, os.O_RDONLY)
    with pytest.raises(CheckpointError, match="shorter"):
        list(gathered(source, StoredPart(tensor, {1: ((0, 2), (4, 6))})))
    os.close(source)


def _gemma(directory: Path, **replaced: Stored) -> Path:
    directory.mkdir()
    inside = ("self_attn.o_proj", "post_attention_layernorm", "post_feedforward_layernorm", "post_per_layer_input_norm")
    shapes = {f"model.layers.{layer}.{name}.weight": (HIDDEN,) for layer in range(LAYERS) for name in inside}
    shapes |= {f"model.layers.{layer}.layer_scalar": (1,) for layer in range(LAYERS)}
    tensors = {name: random_tensor(shape, "F32", name) for name, shape in shapes.items()}
    tensors |= {name: random_tensor(shape, "BF16", name) for name, (shape, _) in _SLICED.items()}
    write_shard(directory / "model.safetensors", {**tensors, **replaced})
    (directory / "config.json").write_text(
        f'{{"model_type": "gemma4_text", "num_hidden_layers": {LAYERS}, "hidden_size_per_layer_input": {WIDTH}, '
        '"layer_types": ["full_attention", "full_attention", "full_attention", "full_attention"]}'
    )
    return directory


def _plan(base: Path, *steps: dict[str, Any]) -> Plan:
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(base)}, "steps": list(steps)})
    return compile_plan(fold(draft_of(read_structure(open_checkpoint(base))), recipe.steps))


def test_slices_follow_their_layers(tmp_path: Path) -> None:
    """Cut with a layer, repeated with a duplicate, moved with an order; whole-layer edits need no arithmetic."""
    plan = _plan(
        _gemma(tmp_path / "base"),
        {"prune": {"layers": [1]}},
        {"expand": {"after": [0], "init": "duplicate"}},
        {"reorder": {"order": [3, 0, 2, 1]}},
    )
    planned = {tensor.name: tensor for tensor in plan.tensors}

    for name, (shape, axis) in _SLICED.items():
        source = planned[name].source
        assert isinstance(source, PartOf)
        spans = [(WIDTH * layer, WIDTH * (layer + 1)) for layer in (3, 0, 2, 0)]
        assert (source.axis, list(source.runs)) == (axis, spans)
        assert planned[name].shape == tuple(4 * WIDTH if at == axis else size for at, size in enumerate(shape))
        assert planned[name].nbytes == 2 * planned[name].parameters == 2 * int(np.prod(planned[name].shape))
    assert not plan.needs_arithmetic


def test_a_mean_of_layers_has_the_mean_of_their_slices(tmp_path: Path) -> None:
    """Taken in float32 and rounded once, as all its weights are."""
    base = _gemma(tmp_path / "base")
    plan = _plan(base, {"expand": {"after": [1], "init": "mean"}})
    (slices,) = [tensor for tensor in plan.tensors if tensor.name == _PER_LAYER]
    before = open_checkpoint(base).tensors[_PER_LAYER]

    with tensor_reader() as reader:
        whole = reader.read(before).double()
        made = reader.evaluate(slices.source, slices.dtype, slices.shape)

    assert plan.needs_arithmetic
    parts = torch.split(whole, WIDTH, dim=1)
    expected = torch.cat([parts[0], parts[1], (parts[1] + parts[2]) / 2, parts[2], parts[3]], dim=1)
    assert torch.equal(made, expected.to(torch.bfloat16))


def test_an_identity_of_a_scaled_layer_scales_by_one(tmp_path: Path) -> None:
    """Its norms at 0 leave the residual stream, and the scale behind it must be 1, whatever the base's is."""
    draft = fold(
        draft_of(read_structure(open_checkpoint(_gemma(tmp_path / "base")))),
        recipe_from_builtins(
            {"version": 1, "base": {"model": "base"}, "steps": [{"expand": {"after": [1], "init": "copy"}}]}
        ).steps,
    )
    assert isinstance(draft.layers()[2].source, Identity)
    ways = draft.structure.silence(draft.structure.stack().layers[1])

    assert {way.role: way.value for way in ways} == {
        "norm.post_attention": 0.0,
        "norm.post_mlp": 0.0,
        "norm.post_input": 0.0,
        "residual.scale": 1.0,
    }


@pytest.mark.parametrize(
    "stored", [random_tensor((WORDS, LAYERS * WIDTH), "U8"), random_tensor((WORDS, LAYERS * WIDTH + 1), "BF16")]
)
def test_what_cannot_be_cut_is_refused_by_its_name(stored: Stored, tmp_path: Path) -> None:
    """Packed weights have no slices, and other sizes no layers."""
    base = _gemma(tmp_path / "base", **{_PER_LAYER: stored})
    with pytest.raises(ArchitectureError, match="embed_tokens_per_layer"):
        _plan(base, {"prune": {"layers": [0]}})
    assert _plan(base, {"freeze": {"layers": [0]}}).tensors
