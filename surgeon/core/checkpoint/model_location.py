"""Finds the directory of a model that a person named: a directory, `demo`, or a hub id.

Downloads hub models through huggingface_hub, imported only then.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from surgeon.errors import CheckpointError

DEMO = "demo"
ADAPTER_CONFIG = "adapter_config.json"
"""What PEFT writes beside an adapter."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = (
    "*.json", "*.safetensors", "*.model", "*.model.v*", "*.txt", "*.jinja", "*.tiktoken", "*.vocab", "*.bpe", "*.codes",
    "*.py", "[1-9]*_*/*", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*", "README.md",
)  # fmt: skip
"""Weights, tokenizers, code that is carried along and not run, folders of sentence-transformers, and notices."""


def cache_directory() -> Path:
    """Where surgeon keeps what it can make again; `SURGEON_CACHE` moves it."""
    from platformdirs import user_cache_path  # late: looking at a model takes no longer than its own import

    moved = os.environ.get("SURGEON_CACHE")
    return Path(moved) if moved else user_cache_path("surgeon")


def state_directory() -> Path:
    """Where journals of unnamed recipes and the worker's logs live; `SURGEON_STATE` moves it."""
    from platformdirs import user_state_path

    moved = os.environ.get("SURGEON_STATE")
    return Path(moved) if moved else user_state_path("surgeon")


def demo_directory() -> Path:
    """Where `surgeon demo` puts the demo model."""
    return cache_directory() / "demo" / "SmolLM2-135M-Instruct"


def locate_model(name: str) -> Path:
    """Turn what a person typed into a directory that exists.

    Raises:
        CheckpointError: there is no such directory and it is neither `demo` nor a hub id that can be had.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name == DEMO:
        return _demo()
    if path.is_file():
        raise CheckpointError(
            "is a file",
            where=name,
            allowed="a directory that holds config.json and *.safetensors",
            hint=f"name its directory: {path.parent}",
        )
    if _HUB_ID.fullmatch(name):
        return _download(name)
    raise CheckpointError(
        "no such directory",
        where=name,
        allowed="a directory with config.json and *.safetensors, a hub id such as org/model, or `demo`",
        hint="check the spelling, or run `surgeon demo` for a model to try",
    )


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter that PEFT has saved, and no model."""
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def adapter_beside(path: Path) -> str:
    """Say that a directory holds a PEFT adapter that opening its checkpoint leaves out; empty where it holds none."""
    if not (path / "adapter" / ADAPTER_CONFIG).is_file():
        return ""
    recipe = path / "recipe.yaml"
    hint = f"; {recipe} opens base, steps and adapter" if recipe.is_file() else ""
    return f"the adapter in {path / 'adapter'} is left out: these are the weights below it{hint}"


def known_elsewhere(name: str) -> str:
    """Return what other programs may call a model that a person named: `demo` is a word of ours, and ~ a shell's."""
    return str(demo_directory()) if name == DEMO and not Path(name).is_dir() else str(Path(name).expanduser())


def _demo() -> Path:
    if not (demo_directory() / "config.json").is_file():
        raise CheckpointError("the demo model is not here yet", where=DEMO, hint="run `surgeon demo` once")
    return demo_directory()


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_WANTED)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"is no directory here, and the hub did not give it: {reason}",
            where=name,
            allowed="a directory, a hub id that this machine can reach, or `demo`",
            hint="check the spelling and the network; for a gated model log in with `hf auth login`",
        ) from error
