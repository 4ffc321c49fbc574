"""Shards: header first, then bytes straight from their source."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from surgeon.core.checkpoint.checkpoint import Tensor, open_checkpoint
from surgeon.core.plan.expressions import Copy, Fill
from surgeon.core.plan.plan import Plan, PlannedTensor
from surgeon.errors import Cancelled, CheckpointError
from surgeon.export import shard_writer
from surgeon.export.shard_writer import write_shards
from tests.export.handmade_shards import BYTES, Stored, random_tensor, write_shard


def copied(name: str, tensor: Tensor) -> PlannedTensor:
    """Plan to copy a stored tensor under a name."""
    return PlannedTensor(name, tensor.dtype, tensor.shape, Copy(tensor), tensor.nbytes, tensor.parameters)


def filled(name: str, value: float, shape: tuple[int, ...], dtype: str = "BF16") -> PlannedTensor:
    """Plan a constant."""
    count = 1
    for size in shape:
        count *= size
    return PlannedTensor(name, dtype, shape, Fill(value), count * BYTES[dtype], count)


def plan_of(*tensors: PlannedTensor) -> Plan:
    """Return a plan of nothing but tensors, in this order."""
    fields: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Plan))
    plan = Plan(**{**fields, "outside": tensors, "layers": {}})
    vars(plan)["tensors"] = tensors
    return plan


def write(plan: Plan, directory: Path) -> list[int]:
    """Write a plan; return the counts of bytes it told of."""
    told: list[int] = []
    directory.mkdir(exist_ok=True)
    write_shards(plan, directory, None, told.append, lambda: False)
    return told


def read_back(path: Path) -> dict[str, Stored]:
    """Read a shard with no code of ours: safetensors for the header's meaning, plain reading for the bytes."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    found = {}
    with safe_open(path, "np") as reader:
        for name in reader.keys():  # noqa: SIM118 - it is no mapping
            start, end = header[name]["data_offsets"]
            one = reader.get_slice(name)
            found[name] = Stored(one.get_dtype(), tuple(one.get_shape()), raw[8 + length + start : 8 + length + end])
        assert reader.metadata() == {"format": "pt"}
    assert (8 + length) % 8 == 0
    return found


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Tensor]:
    """Tensors in two files, some adjacent, of several dtypes, one empty and one scalar."""
    first = {f"a{n}": random_tensor((5, n + 1), seed=str(n)) for n in range(6)}
    second = {"b0": random_tensor((3,), "U8"), "b1": random_tensor((), "F32"), "b2": Stored("F32", (0, 7), b"")}
    (tmp_path / "config.json").write_text("{}")
    write_shard(tmp_path / "one.safetensors", first)
    write_shard(tmp_path / "two.safetensors", second)
    index: dict[str, object] = {
        "metadata": {},
        "weight_map": dict.fromkeys(first, "one.safetensors") | dict.fromkeys(second, "two.safetensors"),
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return dict(open_checkpoint(tmp_path).tensors)


def bytes_of(tensor: Tensor) -> bytes:
    """Read a stored tensor plainly."""
    return tensor.shard.read_bytes()[tensor.start : tensor.end]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_copied_in_whatever_order_keeps_its_bytes(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Runs, gaps, repetitions, constants between them, cut into shards anywhere."""
    directory = tmp_path_factory.mktemp("shards")
    names = [f"t{n}" for n in range(7)]
    dtypes = data.draw(st.lists(st.sampled_from(sorted(BYTES)), min_size=7, max_size=7))
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=7, max_size=7))
    source = {
        name: random_tensor((size, 2), dtype, name) for name, dtype, size in zip(names, dtypes, sizes, strict=True)
    }
    (directory / "config.json").write_text("{}")
    write_shard(directory / "model.safetensors", source)
    tensors = open_checkpoint(directory).tensors
    chosen = data.draw(st.lists(st.sampled_from([*names, None]), min_size=1, max_size=12))
    planned = [
        filled(f"out.{n}", 0.0, (3,)) if name is None else copied(f"out.{n}", tensors[name])
        for n, name in enumerate(chosen)
    ]
    limit = data.draw(st.integers(1, 200))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writer, "SHARD_BYTES", limit)
        patch.setattr(shard_writer, "_PIECE", data.draw(st.integers(1, 64)))
        if data.draw(st.booleans()):
            patch.delattr(os, "copy_file_range", raising=False)
        told = write(plan_of(*planned), directory / "out")
    found: dict[str, Stored] = {}
    for file in sorted((directory / "out").glob("*.safetensors")):
        here = read_back(file)
        assert len(here) == 1 or sum(len(one.data) for one in here.values()) <= limit
        found |= here
    assert sum(told) == sum(one.nbytes for one in planned)
    assert set(found) == {f"out.{n}" for n in range(len(chosen))}
    for n, name in enumerate(chosen):
        assert found[f"out.{n}"] == (Stored("BF16", (3,), bytes(6)) if name is None else source[name])


def test_adjacent_tensors_are_copied_as_one_range(
    stored: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three neighbours and one from further on are two copies."""
    calls: list[int] = []
    real = shard_writer._copy

    def count(source: int, piece: shard_writer._Range, *rest: Any) -> None:
        calls.append(piece.end - piece.start)
        real(source, piece, *rest)

    monkeypatch.setattr(shard_writer, "_copy", count)
    planned = [copied(name, stored[name]) for name in ("a0", "a1", "a2", "a5")]
    write(plan_of(*planned), tmp_path / "out")
    assert calls == [sum(stored[name].nbytes for name in ("a0", "a1", "a2")), stored["a5"].nbytes]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_where_the_system_cannot_copy_the_bytes_are_read_and_written(
    code: int, stored: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between file systems, on old kernels, in some containers."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    write(plan_of(*(copied(name, one) for name, one in stored.items())), tmp_path / "out")
    found = read_back(tmp_path / "out" / "model.safetensors")
    assert {name: one.data for name, one in found.items()} == {name: bytes_of(one) for name, one in stored.items()}


def test_a_system_that_copies_a_little_and_then_nothing_is_helped_out(
    stored: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some kernels return 0 although bytes remain: the rest is read and written."""
    real = getattr(os, "copy_file_range", None)
    if real is None:
        pytest.skip("this system has no copy_file_range")
    calls = iter([5, 3])

    def a_little(source: int, out: int, count: int, offset_src: int) -> int:
        allowed = next(calls, 0)
        return int(real(source, out, min(count, allowed), offset_src=offset_src)) if allowed else 0

    monkeypatch.setattr(os, "copy_file_range", a_little)
    write(plan_of(copied("a5", stored["a5"])), tmp_path / "out")
    assert read_back(tmp_path / "out" / "model.safetensors")["a5"].data == bytes_of(stored["a5"])


def test_other_failures_of_the_system_are_not_swallowed(
    stored: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is no reason to try again another way."""

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with pytest.raises(OSError, match="No space"):
        write(plan_of(copied("a5", stored["a5"])), tmp_path / "out")


def test_bytes_beyond_four_gigabytes_are_found(tmp_path: Path) -> None:
    """Offsets of more than 32 bits; the file is sparse, so it takes no room."""
    size = 2**32 + 2**26
    header = json.dumps({"big": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    shard = tmp_path / "model.safetensors"
    with shard.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        start = file.tell()
        for at in (0, 2**31 - 1, 2**32 - 1, size - 4):
            file.seek(start + at)
            file.write(b"mark")
    (tmp_path / "config.json").write_text("{}")
    if shard.stat().st_blocks * 512 > 2**30:
        pytest.skip("this file system has no sparse files")
    big = open_checkpoint(tmp_path).tensors["big"]
    out = tmp_path / "out.bin"
    piece = shard_writer._Range(shard, start + 2**32 - 2, big.end)
    handles = os.open(shard, os.O_RDONLY), os.open(out, os.O_WRONLY | os.O_CREAT)
    told: list[int] = []
    shard_writer._copy(handles[0], piece, handles[1], told.append, lambda: False)
    for handle in handles:
        os.close(handle)
    assert sum(told) == out.stat().st_size == size - 2**32 + 2
    with out.open("rb") as file:
        assert file.read(6) == b"\0mark\0"
        file.seek(-4, os.SEEK_END)
        assert file.read() == b"mark"


def test_a_source_that_vanished_or_shrank_is_named(stored: dict[str, Tensor], tmp_path: Path) -> None:
    """The base is at fault, and not the place that is written to."""
    big, small = stored["a5"], stored["a0"]
    os.truncate(big.shard, big.end - 2)
    with pytest.raises(CheckpointError, match="shorter") as caught:
        write(plan_of(copied("a5", big)), tmp_path / "out")
    assert caught.value.where == str(big.shard)
    small.shard.unlink()
    with pytest.raises(CheckpointError, match="cannot be read any more") as caught:
        write(plan_of(copied("a0", small)), tmp_path / "again")
    assert caught.value.where == str(small.shard)


def test_a_cancel_is_heeded_within_a_tensor(
    stored: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single huge tensor must not delay it."""
    monkeypatch.setattr(shard_writer, "_PIECE", 4)
    told: list[int] = []
    (tmp_path / "out").mkdir()
    with pytest.raises(Cancelled):
        write_shards(plan_of(copied("a5", stored["a5"])), tmp_path / "out", None, told.append, lambda: len(told) == 3)
    assert told == [4, 4, 4]


def test_constants_are_written_in_every_float(tmp_path: Path) -> None:
    """What numpy reads is the constant."""
    planned = [
        filled(f"{value} {dtype}", value, (2, 3), dtype) for value in (0.0, -1.0) for dtype in ("F64", "F32", "F16")
    ]
    write(plan_of(*planned), tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as reader:
        for name in reader.keys():  # noqa: SIM118
            assert (reader.get_tensor(name) == float(name.split()[0])).all()
            assert reader.get_tensor(name).shape == (2, 3)
