"""Sources of rows: how a file is written is told from its suffix or its content, and faults from their lines."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.backend.data.hub_data import HubData, hub_data, hub_digest, pinned
from surgeon.backend.data.rows import read_rows, rows_of, source_digest
from surgeon.backend.data.sources import open_source
from surgeon.errors import DataError

ROWS = [{"prompt": f"What is {n}?", "response": f"It is {n}, NA, null"} for n in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b"prompt,response\n" + b"".join(f'{row["prompt"]},"{row["response"]}"\n'.encode() for row in ROWS)
TSV = CSV.replace(b',"', b"\t").replace(b'"', b"").replace(b"prompt,", b"prompt\t")


def _table(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(ROWS)
    if path.suffix == ".parquet" or path.name == "parquet":
        pq.write_table(table, path)
        return
    make = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table)


FILES: Mapping[str, bytes | Callable[[Path], None]] = {
    "rows.jsonl": LINES,
    "rows.ndjson": LINES,
    "rows.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=1).encode(),
    "rows.csv": CSV,
    "rows.tsv": TSV,
    "rows.parquet": _table,
    "rows.arrow": _table,
    "stream.arrow": _table,
    "rows.jsonl.gz": gzip.compress(LINES),
    "rows.json.bz2": bz2.compress(json.dumps(ROWS).encode()),
    "rows.csv.xz": lzma.compress(CSV),
    "rows.csv.gz": gzip.compress(CSV),
    "lines": LINES,
    "array": json.dumps(ROWS, indent=2).encode(),
    "cells": CSV,
    "tabbed.data": TSV,
    "parquet": _table,
    "packed": gzip.compress(LINES),
    "marked.jsonl": b"\xef\xbb\xbf" + LINES,
    "marked.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "marked.csv": b"\xef\xbb\xbf" + CSV,
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n"),
    "crlf.csv": CSV.replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_rows_are_read_however_they_are_written(name: str, tmp_path: Path) -> None:
    """No cell of a table is taken for a number or for nothing."""
    content = FILES[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        content(tmp_path / name)
    rows, _ = read_rows(name, tmp_path)
    found = [{"prompt": row.asked[0]["content"], "response": (row.right or {})["content"]} for row in rows]
    assert found == ROWS


def test_line_ends_and_a_byte_order_mark_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_bytes(b"one\ntwo\n\n\nthree")
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n\r\nthree")
    assert [row.text for row in read_rows("marked.txt", tmp_path)[0]] == ["one\ntwo", "three"]
    assert [row.text for row in read_rows("plain.txt", tmp_path)[0]] == ["one\ntwo", "three"]


def test_prose_that_begins_as_code_does_is_prose(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("[1] a footnote\n{x} is a set")
    assert [row.text for row in read_rows("notes", tmp_path)[0]] == ["[1] a footnote\n{x} is a set"]


def test_cells_that_no_row_of_a_table_gives_are_left_out(tmp_path: Path) -> None:
    """A table has every key in every row, and every argument in every call."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def talk(**arguments: str) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        }

    pq.write_table(pa.Table.from_pylist([talk(x="1"), talk(y="2")]), tmp_path / "t.parquet")
    rows, _ = read_rows("t.parquet", tmp_path)
    assert [row.asked for row in rows] == [({"role": "user", "content": "q"},)] * 2
    assert [(row.right or {})["tool_calls"][0]["function"]["arguments"] for row in rows] == [{"x": "1"}, {"y": "2"}]


FAULTS: Mapping[str, tuple[str, bytes, str, str]] = {
    "too few cells": ("a.csv", b"prompt,response\na,b\nc\n", "line 3", "1 cells, and the header names 2"),
    "too many cells": ("a.csv", b"prompt,response\na,b,c\nd,e,f\n", "line 2", "3 cells, and the header names 2"),
    "a quote without its end": ("a.csv", b'prompt,response\na,"b\nc,d\n', "line 1", "not well formed"),
    "a column twice": ("a.csv", b"text,text\na,b\n", "a.csv", "twice"),
    "no header": ("a.csv", b"", "a.csv", "empty"),
    "an empty answer": ("a.csv", b"prompt,response\na,\n", "line 2", 'its keys are "prompt"'),
    "unknown columns": ("a.csv", b"sentence,label\na,b\n", "line 2", '"sentence", "label"'),
    "other bytes": ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl", "not UTF-8 text: line 2"),
    "UTF-16": ("a.txt", "text".encode("utf-16"), "a.txt", "not UTF-8"),
    "half a character": ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud83d"}\n', "line 2", "half a surrogate pair"),
    "half a character in a key": ("a.json", b'[{"text": "a", "\\uDC00": 1}]', "row 0", "half a surrogate pair"),
    "a line that is no JSON": ("a.ndjson", b'{"text": "a"}\n{"text"\n', "line 2", "not valid JSON"),
    "a packed line": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text"\n'), "line 2", "not valid JSON"),
    "bottomless nesting": ("a.jsonl", b"[" * 99999, "a.jsonl", "not valid JSON"),
    "no parquet": ("a.parquet", b"PAR1 and more", "a.parquet", "cannot be read as parquet"),
    "half a gzip": ("a.txt.gz", gzip.compress(b"text" * 99)[:20], "a.txt.gz", "cannot be unpacked"),
    "a table packed again": ("a.parquet.gz", gzip.compress(b"PAR1"), "a.parquet.gz", "another compression"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_its_file_and_line(fault: str, tmp_path: Path) -> None:
    name, content, where, what = FAULTS[fault]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        read_rows(name, tmp_path)
    assert caught.value.where.startswith(str(tmp_path / name))
    assert caught.value.where.endswith(where)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1, max_size=9).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4),
    ends=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
def test_lines_and_cells_of_any_text_come_back_as_they_were(
    rows: list[tuple[str, str]], ends: str, mark: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Quotes, separators, line ends and unusual characters in them too."""
    place = tmp_path_factory.mktemp("any")
    start = "\ufeff" if mark else ""
    lines = ends.join(json.dumps({"prompt": a, "response": b}, ensure_ascii=False) for a, b in rows)
    cells = ends.join(
        ",".join('"' + one.replace('"', '""') + '"' for one in row) for row in [("prompt", "response"), *rows]
    )
    (place / "t.jsonl").write_bytes((start + lines).encode())
    (place / "t.csv").write_bytes((start + cells + ends).encode())
    for name in ("t.jsonl", "t.csv"):
        found = [(row.asked[0]["content"], (row.right or {})["content"]) for row in read_rows(name, place)[0]]
        assert found == rows


def test_files_that_mean_what_they_meant_keep_the_digest_that_results_are_kept_under(tmp_path: Path) -> None:
    """And files in which something was left out before, or taken for prose, have another one."""
    same = {
        "a.jsonl": b'{"prompt": "a", "response": "b", "id": 3}\n', "b.json": b'[{"text": "a"}]',
        "c.txt": b"some\n\n\ntext",
    }  # fmt: skip
    other = {
        "d.jsonl": b'{"prompt": "a", "completion": "b"}\n', "e.txt": b"some\r\ntext", "f.csv": b"text\na\n",
        "g.ndjson": b'{"text": "a"}', "h.txt": b"\xef\xbb\xbfsome text",
    }  # fmt: skip
    for name, content in (same | other).items():
        (tmp_path / name).write_bytes(content)
        before = hashlib.sha256(content).hexdigest()[:16] + ("" if name[2:].startswith("json") else "-text")
        assert (source_digest(name, tmp_path) == before) is (name in same)


HUB: Mapping[str, HubData] = {
    "owner/name": HubData("owner/name", "owner/name"),
    "owner/name:test": HubData("owner/name:test", "owner/name", split="test"),
    "owner/name/main": HubData("owner/name/main", "owner/name", "main"),
    "owner/name/wiki-2.0:test@refs/pr/3": HubData(
        "owner/name/wiki-2.0:test@refs/pr/3", "owner/name", "wiki-2.0", "test", "refs/pr/3"
    ),
    "owner/name@abc": HubData("owner/name@abc", "owner/name", revision="abc"),
}


@pytest.mark.parametrize("data", HUB)
def test_a_data_set_on_the_hub_is_named_with_config_split_and_revision(data: str, tmp_path: Path) -> None:
    assert hub_data(data, tmp_path) == HUB[data]


@pytest.mark.parametrize(
    "data", ["data/rows.csv", "data/rows.jsonl.gz", "a/b/c/d", "name", "./a/b", "a/b:train[:9]", "/a/b"]
)
def test_what_looks_like_a_file_is_no_data_set(data: str, tmp_path: Path) -> None:
    assert hub_data(data, tmp_path) is None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub with one endless data set; what is asked of it, and how many rows were taken."""
    asked: list[Any] = []

    def load(name: str, config: str | None, **settings: Any) -> Any:
        asked.append((name, config, settings["split"], settings["revision"], settings["streaming"]))
        if name != "owner/endless":
            raise ValueError(f"{name} does not exist\nand more")
        number = 0
        while True:
            asked.append(number)
            yield {"text": f"row {number}", "meta": None}
            number += 1

    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    pinned.cache_clear()
    return asked


def test_no_more_rows_of_a_data_set_are_taken_than_are_wanted(hub: list[Any], tmp_path: Path) -> None:
    source = open_source("owner/endless/main:test@v1", tmp_path)
    assert [row.text for row in rows_of(source, 3)] == ["row 0", "row 1", "row 2"]
    assert hub[0] == ("owner/endless", "main", "test", "v1", True)
    assert len(hub) <= 5


def test_a_data_set_that_cannot_be_had_is_an_error_in_words(hub: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="owner/missing does not exist") as caught:
        read_rows("owner/missing", tmp_path)
    assert "CONFIG:SPLIT@REVISION" in caught.value.allowed


def test_a_data_set_is_named_by_its_commit_where_the_hub_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is fetched for it; another commit, config or split has another name."""
    commits = {None: "aaa", "v1": "bbb"}
    monkeypatch.setattr("surgeon.backend.data.hub_data.pinned", lambda data: commits[data.revision])
    names = ["o/n", "o/n/c", "o/n:test", "o/n@v1"]
    digests = [hub_digest(found) for name in names if (found := hub_data(name, Path("/nowhere")))]
    assert len(set(digests)) == len(names)
