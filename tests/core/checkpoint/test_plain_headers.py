"""Headers and indexes in the usual form are read at once, and nothing is accepted that the careful reader refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgeon.core.checkpoint import checkpoint as checkpoint_module
from surgeon.core.checkpoint import headers, shard_index
from surgeon.core.checkpoint.checkpoint import INDEX, open_checkpoint
from surgeon.core.checkpoint.headers import read_header
from surgeon.core.checkpoint.strict_headers import read_strictly
from surgeon.core.checkpoint.tensors import Shard
from surgeon.errors import CheckpointError
from tests.export.handmade_shards import Stored, header_of, random_tensor, write_index, write_llama, write_shard

TENSORS = {
    "model.layers.0.a": random_tensor((2, 3), "F32"),
    "dtype": random_tensor((4,), "BF16"),
    "empty": Stored("F16", (0, 4), b""),
    "one": random_tensor((), "F32"),
}
_EDITS = st.tuples(
    st.sampled_from(("replace", "insert", "remove", "repeat")),
    st.integers(0, 10_000),
    st.integers(0, 40),
    st.sampled_from([*b'"{}[],:\\019-.eatu \n\x00\xff']),
)
_MANY = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

FORMS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "as safetensors writes it": lambda header: json.dumps(header, separators=(",", ":")).encode(),
    "with white space": lambda header: json.dumps(header, indent=2).encode(),
    "without metadata": lambda header: json.dumps({k: v for k, v in header.items() if k != "__metadata__"}).encode(),
    "metadata behind": lambda header: json.dumps(dict(reversed(header.items()))).encode(),
    "in another order": lambda header: json.dumps(dict(sorted(header.items()))).encode(),
    "keys in another order": lambda header: json.dumps(header, sort_keys=True).encode(),
    "metadata that looks like more": lambda header: json.dumps(
        {**header, "__metadata__": {"dtype": "}", "__metadata__": "{"}}
    ).encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_header_in_a_usual_form_needs_no_careful_reader(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is read as that one reads it."""
    shard = write_shard(tmp_path / "x.safetensors", TENSORS, FORMS[form](header_of(TENSORS)))
    careful = _read_carefully(shard)
    monkeypatch.setattr(headers, "read_strictly", _not_needed)
    assert _told(read_header(shard)) == _told(careful)
    assert {one.name: one.parameters for one in careful.tensors} == {
        "model.layers.0.a": 6, "dtype": 4, "empty": 0, "one": 1,
    }  # fmt: skip


def test_names_in_escapes_are_read_too(tmp_path: Path) -> None:
    """The careful reader takes them."""
    raw = json.dumps({name + "é": entry for name, entry in header_of(TENSORS).items() if name[0] != "_"}).encode()
    shard = write_shard(tmp_path / "x.safetensors", TENSORS, raw)
    assert [tensor.name for tensor in read_header(shard).tensors] == [name + "é" for name in TENSORS]


@_MANY
@given(edits=st.lists(_EDITS, max_size=3), form=st.sampled_from(sorted(FORMS)))
def test_whatever_becomes_of_a_header_both_readers_say_the_same(
    edits: list[tuple[str, int, int, int]], form: str, tmp_path: Path
) -> None:
    """The fast one accepts nothing that the careful one refuses."""
    raw = _edited(FORMS[form](header_of(TENSORS)), edits)
    shard = write_shard(tmp_path / "x.safetensors", TENSORS, raw)
    assert _outcome(lambda: read_header(shard)) == _outcome(lambda: _read_carefully(shard))


@pytest.mark.parametrize(
    "entry",
    [
        b'{"dtype":"U8","other":1,"data_offsets":[0,1]}',
        b'{"dtype":"U8","dtype":"U8","data_offsets":[0,1]}',
        b'{"other":"U8","shape":[1],"data_offsets":[0,1]}',
        b'{"dtype":"U8","shape":[1],"other":[0,1]}',
        b'{"dtype":"U8","shape":[1],"data_offsets":[0,1],"shape":[1]}',
    ],
)
def test_what_is_missing_is_not_made_up_by_something_else(entry: bytes, tmp_path: Path) -> None:
    """As many quotation marks as there should be are not enough."""
    shard = write_shard(tmp_path / "x.safetensors", {"a": Stored("U8", (1,), b"x")}, b'{"a":' + entry + b"}")
    with pytest.raises(CheckpointError):
        read_header(shard)


def test_an_index_in_the_order_of_its_shards_is_compared_with_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else has to be looked for then; in another order too."""
    base = write_llama(tmp_path / "base", shards=3)
    monkeypatch.setattr(shard_index, "_checked_weight_map", _not_needed)
    monkeypatch.setattr(checkpoint_module, "place_tensors", _not_needed)
    told = open_checkpoint(base)
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    write_index(base, dict(sorted(weight_map.items(), reverse=True)))
    assert open_checkpoint(base).tensors == told.tensors


@_MANY
@given(edits=st.lists(_EDITS, max_size=3))
def test_whatever_becomes_of_an_index_it_is_judged_as_carefully(
    edits: list[tuple[str, int, int, int]], tmp_path: Path
) -> None:
    """What is read at once is what the careful reader reads."""
    base = tmp_path / "base"
    if not base.exists():
        write_llama(base, layers=1, shards=2)
        (tmp_path / "index").write_bytes((base / INDEX).read_bytes())
    raw = _edited((tmp_path / "index").read_bytes(), edits)
    plain = shard_index._plain_weight_map(raw, base)
    if plain is not None:
        assert plain == shard_index._checked_weight_map(raw, base / INDEX, base)


def test_of_two_faults_that_of_the_earlier_shard_is_told(tmp_path: Path) -> None:
    """A tensor in two shards before a shard that is truncated."""
    base = write_llama(tmp_path / "base", shards=3)
    first, second, third = sorted(base.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    third.write_bytes(third.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="is also in"):
        open_checkpoint(base)


def _read_carefully(shard: Path) -> Shard:
    raw, size = headers._header_bytes(shard)
    return read_strictly(shard, raw, 8 + len(raw), size)


def _told(shard: Shard) -> tuple[Any, ...]:
    return shard.tensors, shard.metadata


def _outcome(read: Callable[[], Shard]) -> tuple[Any, ...]:
    try:
        return _told(read())
    except CheckpointError as error:
        return (str(error),)


def _edited(raw: bytes, edits: list[tuple[str, int, int, int]]) -> bytes:
    for kind, at, length, byte in edits:
        start = at % (len(raw) + 1)
        piece = raw[start : start + length]
        inside = {"replace": bytes([byte]), "insert": bytes([byte]) + piece, "remove": b"", "repeat": piece + piece}
        raw = raw[:start] + inside[kind] + raw[start + length :]
    return raw


def _not_needed(*_: Any) -> None:
    raise AssertionError("the careful reader was asked")
