"""Headers of shards: what is read from them, and every lie they may tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from surgeon.core.checkpoint.headers import read_header
from tests.core.refusals import refusal
from tests.export.handmade_shards import Stored, header_of, random_tensor, write_config, write_llama, write_shard

TWO = {"first": random_tensor((2, 3), "F32"), "second": random_tensor((4,), "BF16")}


def _change(name: str, **fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: {**header, name: {**header[name], **fields}}


def _without(name: str, field: str) -> Callable[[dict[str, Any]], Any]:
    return lambda header: {**header, name: {key: value for key, value in header[name].items() if key != field}}


LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "offsets that overlap": (_change("second", data_offsets=[20, 28]), "overlaps"),
    "offsets that leave a hole": (_change("second", data_offsets=[25, 33]), "truncated|hole"),
    "offsets beyond the file": (_change("second", data_offsets=[1000, 1008]), "truncated"),
    "offsets that disagree with the shape": (_change("first", shape=[2, 4]), "needs 32 bytes"),
    "offsets that disagree with the dtype": (_change("first", dtype="F64"), "needs 48 bytes"),
    "a negative size": (_change("first", shape=[-2, -3]), "negative"),
    "a negative offset": (_change("first", data_offsets=[-8, 16]), "negative"),
    "an end before its start": (_change("first", data_offsets=[24, 0]), "negative"),
    "a size that is a fraction": (_change("first", shape=[1.5, 4]), "malformed"),
    "a size that is true": (_change("first", shape=[True, 6]), "malformed"),
    "sizes whose product is endless": (_change("first", shape=[2**62, 2**62, 2**62]), "needs"),
    "three offsets": (_change("first", data_offsets=[0, 24, 24]), "malformed"),
    "no dtype": (_without("first", "dtype"), "dtype"),
    "no shape": (_without("first", "shape"), "shape"),
    "no offsets": (_without("first", "data_offsets"), "data_offsets"),
    "an unknown dtype": (_change("first", dtype="COMPLEX"), "COMPLEX"),
    "an entry that is a list": (lambda header: {**header, "first": [1]}, "not valid"),
    "metadata that is no text": (lambda header: {**header, "__metadata__": {"format": 1}}, "not valid"),
    "a list for a header": (lambda header: [header], "not valid"),
    "no JSON": (lambda header: b'{"first": ', "not valid"),
    "bytes that are no text": (lambda header: b"\xff\xfe{}", "not valid"),
    "endless nesting": (lambda header: b'{"a":' * 100_000, "not valid"),
    "bytes that nobody owns": (lambda header: {"first": header["first"]}, "no tensor owns"),
    "one tensor named twice": (
        lambda header: json.dumps(header).replace('"second"', '"first"').encode(),
        "'first' is named twice",
    ),
    "the same entry named twice": (
        lambda header: (
            b'{"a": {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]},'
            b' "a": {"dtype": "I8", "shape": [32], "data_offsets": [0, 32]}}'
        ),
        "'a' is named twice",
    ),
    "a dtype named twice": (
        lambda header: b'{"a": {"dtype": "U8", "dtype": "I8", "shape": [32], "data_offsets": [0, 32]}}',
        "'dtype' is named twice",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    """Nothing in a header is believed before it fits the file and itself."""
    change, told = LIES[lie]
    write_config(tmp_path, 1)
    write_shard(tmp_path / "model.safetensors", TWO, change(header_of(TWO)))
    error = refusal(tmp_path)
    assert any(word in str(error) for word in told.split("|")), error
    assert "model.safetensors" in error.where


def test_a_hole_between_tensors_is_refused(tmp_path: Path) -> None:
    """Bytes that no tensor owns could smuggle anything."""
    tensors = {"first": TWO["first"], "gap": Stored("U8", (3,), b"abc"), "second": TWO["second"]}
    header = header_of(tensors)
    del header["gap"]
    write_config(tmp_path, 1)
    write_shard(tmp_path / "model.safetensors", tensors, header)
    assert "hole" in refusal(tmp_path).what


@pytest.mark.parametrize("kept", [0, 3, 8, 100, -1])
def test_a_truncated_shard_is_refused_by_its_name(kept: int, tmp_path: Path) -> None:
    """Wherever a download broke off, the file is named and downloading again advised."""
    base = write_llama(tmp_path / "base", shards=2)
    shard = base / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept])
    error = refusal(base)
    assert "truncated" in error.what
    assert str(shard) in error.where
    assert "again" in error.hint


def test_a_header_beyond_the_formats_limit_is_refused_unread(tmp_path: Path) -> None:
    """100 MB is the format's own limit; a sparse file makes a larger claim true."""
    shard = tmp_path / "model.safetensors"
    with shard.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)
    write_config(tmp_path, 1)
    assert "claims a header of 200000000 bytes" in refusal(tmp_path).what


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    """A clone without LFS is the commonest broken download."""
    base = write_llama(tmp_path / "base")
    (base / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    error = refusal(base)
    assert "LFS" in error.what
    assert "git lfs pull" in error.hint


def test_a_header_reads_as_safetensors_reads_it(tmp_path: Path) -> None:
    """Independent reader, same names, shapes and dtypes; metadata too."""
    shard = write_shard(
        tmp_path / "x.safetensors", {**TWO, "none": Stored("F16", (0, 4), b""), "one": random_tensor((), "F32")}
    )
    header = read_header(shard)
    with safe_open(shard, "np") as reader:
        assert reader.metadata() == header.metadata
        assert {tensor.name: list(tensor.shape) for tensor in header.tensors} == {
            name: reader.get_slice(name).get_shape()
            for name in reader.keys()  # noqa: SIM118 - it is no mapping
        }
        assert {tensor.name: tensor.dtype for tensor in header.tensors} == {
            name: reader.get_slice(name).get_dtype()
            for name in reader.keys()  # noqa: SIM118
        }
