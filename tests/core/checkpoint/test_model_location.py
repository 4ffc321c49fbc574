"""What a person typed becomes a directory, or an error that says what would have been accepted."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from surgeon.core.checkpoint.model_location import cache_directory, demo_directory, locate_model, state_directory
from surgeon.errors import CheckpointError


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute, relative, through a link, below home; even if its name looks like a hub id."""
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to("org")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(tmp_path), "org", "org/model", "link/model", "~/org"):
        assert locate_model(name).is_dir()
    assert locate_model("org/model") == Path("org/model")


def test_demo_is_the_demo_model_once_it_is_there() -> None:
    """Before that it says how to get it."""
    with pytest.raises(CheckpointError) as caught:
        locate_model("demo")
    assert "surgeon demo" in caught.value.hint
    demo_directory().mkdir(parents=True)
    (demo_directory() / "config.json").write_text("{}")
    assert locate_model("demo") == demo_directory()


def test_a_file_is_answered_with_its_directory(tmp_path: Path) -> None:
    """The likely mistake is naming the weights."""
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file") as caught:
        locate_model(str(file))
    assert str(tmp_path) in caught.value.hint


@pytest.mark.parametrize("name", ["", "nowhere", "/no/where", "a/b/c", "org/", "-x/y", "org/mo del", "./a/b", "demo2"])
def test_what_is_neither_is_refused_with_what_is_allowed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without asking the hub."""
    monkeypatch.chdir(tmp_path)
    if name == "":
        assert locate_model(name) == Path()
        return
    with pytest.raises(CheckpointError) as caught:
        locate_model(name)
    assert caught.value.where == name
    assert "`demo`" in caught.value.allowed
    assert caught.value.hint


def test_a_hub_id_is_fetched_without_weights_in_other_formats(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what surgeon reads or carries on is downloaded."""
    import huggingface_hub

    asked: dict[str, Any] = {}

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert locate_model("org/model-1.5_b") == tmp_path
    assert asked["name"] == "org/model-1.5_b"

    def wanted(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in asked["patterns"])

    belonging = (
        "model.safetensors", "config.json", "tokenizer.model", "tokenizer.model.v3", "vocab.bpe", "LICENSE",
        "NOTICE.txt", "additional_chat_templates/x.jinja", "modeling_own.py", "USE_POLICY.md",
        "1_Pooling/config.json",        "2_Dense/pytorch_model.bin",
    )  # fmt: skip
    for name in belonging:
        assert wanted(name), name
    for name in ("pytorch_model.bin", "model.gguf", "model.onnx", "flax_model.msgpack", "training_args.bin"):
        assert not wanted(name), name


def test_a_hub_that_does_not_answer_is_an_error_in_words() -> None:
    """Tests run offline: as on a machine without network."""
    with pytest.raises(CheckpointError) as caught:
        locate_model("nobody/nothing-here")
    assert caught.value.where == "nobody/nothing-here"
    assert "hub" in caught.value.what
    assert "network" in caught.value.hint


def test_caches_and_state_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one variable each; without it they are where the platform keeps such things."""
    monkeypatch.setenv("SURGEON_CACHE", "/a/b")
    assert cache_directory() == Path("/a/b")
    monkeypatch.delenv("SURGEON_CACHE")
    monkeypatch.delenv("SURGEON_STATE")
    assert cache_directory().name == state_directory().name == "surgeon"
    assert cache_directory() != state_directory()
