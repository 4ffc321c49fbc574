"""Judges, once and without weights, whether a checkpoint fits the class that loads it; says whose fault a refusal is.

transformers loads it on the meta device: its own renaming and conversion, no bytes of any tensor.
"""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, dynamic_module_utils
from transformers.utils import logging as transformers_logging

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.quantised_models import unread_quantisation
from surgeon.backend.out_of_memory import is_out_of_memory
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.fit import Fit, judgement, keep_fit, kept_fit
from surgeon.core.structure.uneven_layers import first_gap
from surgeon.errors import ArchitectureError, CheckpointError, SurgeonError

transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
# Whether to run a stranger's code is never asked, whichever library comes to it: without this it is read from stdin.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

_INSTALL = re.compile(r"pip install ([^`\n]+)")
_CONVERSION = "automatic conversion of the weights"


def fit_of(checkpoint: Checkpoint) -> Fit:
    """Return the judgement, from the cache if this transformers has made it.

    Raises:
        ArchitectureError, CheckpointError: transformers cannot load it at all, or would run code for it.
    """
    fit = kept_fit(checkpoint)
    if fit is None or fit.transformers != transformers.__version__:
        fit = _judged(checkpoint)
        keep_fit(checkpoint, fit)
    return fit


def require_fit(checkpoint: Checkpoint) -> Fit:
    """Return the judgement of a checkpoint that fits.

    Raises:
        ArchitectureError, CheckpointError: it does not, or transformers cannot load it.
    """
    fit = fit_of(checkpoint)
    fit.require(checkpoint)
    return fit


def _judged(checkpoint: Checkpoint) -> Fit:
    with explained(checkpoint):
        config = own_config(checkpoint)
        if (quantisation := unread_quantisation(checkpoint)) is not None:
            raise quantisation.refusal("transformers does not know it: it would compute without their scales")
        cls = model_class(checkpoint, config)
        _refuse_more_files(checkpoint, config)
    try:
        with explained(checkpoint):
            model, report = cls.from_pretrained(
                checkpoint.path, device_map="meta", dtype="auto", output_loading_info=True,
                ignore_mismatched_sizes=True, trust_remote_code=checkpoint.trust_remote_code,
            )  # fmt: skip
    except SurgeonError as error:
        # What unpacks weights may need the device that they go to, so that only loading can tell.
        doubtful = is_packed(config) and torch.accelerator.is_available()
        if not doubtful or isinstance(error.__cause__, ImportError):
            raise
        return Fit(class_name=cls.__name__, transformers=transformers.__version__, unjudged=error.what)
    return judgement(type(model).__name__, report, transformers.__version__)


def own_config(checkpoint: Checkpoint) -> Any:
    """Return the config as transformers reads it."""
    return AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.trust_remote_code)


def is_packed(config: PreTrainedConfig) -> bool:
    """Whether transformers takes the weights for quantised ones."""
    parts = (config, config.get_text_config())
    return any(getattr(part, "quantization_config", None) is not None for part in parts)


def model_class(checkpoint: Checkpoint, config: Any = None) -> Any:
    """Return the class of transformers that the config names, or AutoModelForCausalLM where it names none."""
    config = own_config(checkpoint) if config is None else config
    if checkpoint.trust_remote_code and AutoModelForCausalLM.__name__ in (getattr(config, "auto_map", None) or {}):
        return AutoModelForCausalLM  # it takes the class of the model's own code
    found = (getattr(transformers, name, None) for name in config.architectures or ())
    # Some types borrow another's class but not its config: only the Auto class keeps them apart.
    return next((cls for cls in found if getattr(cls, "config_class", None) is type(config)), AutoModelForCausalLM)


def _refuse_more_files(checkpoint: Checkpoint, config: Any) -> None:
    """Refuse a type of which transformers loads files that are not among the checkpoint's shards."""
    for name in getattr(type(config), "extra_files", ()):
        path = checkpoint.path / name
        if path.is_file() and path not in {shard.path for shard in checkpoint.shards}:
            raise CheckpointError(
                "is added by transformers to the weights of a model of this type", where=str(path),
                hint="load it with transformers and save it with save_pretrained: then all is in one place",
            )  # fmt: skip


@contextmanager
def explained(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what transformers raises over a checkpoint into an error that says it is the checkpoint's, and what to do.

    Running out of memory or of disk is not the checkpoint's fault and passes.
    """
    try:
        yield
    except (SurgeonError, MemoryError):
        raise
    except ImportError as error:
        raise _package_missing(checkpoint, error) from error
    except Exception as error:
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            raise
        raise _refusal(checkpoint, error) from error


def _refusal(checkpoint: Checkpoint, error: Exception) -> SurgeonError:
    if not checkpoint.trust_remote_code and "trust_remote_code" in str(error):
        return code_refused(checkpoint.path, checkpoint.own_code)
    if _CONVERSION in str(error):
        gap = _gap(checkpoint)
        what = f"lacks {gap}" if gap else "holds tensors that do not come together as its class expects"
        return CheckpointError(
            f"{what}: transformers cannot convert its weights", where=str(checkpoint.path),
            hint="fetch the weights again, or save them again from the whole model",
        )  # fmt: skip
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, OSError | RuntimeError):
        return CheckpointError(f"transformers cannot load it: {first}", where=str(checkpoint.path))
    return ArchitectureError(f"transformers cannot build it: {first}", where=str(checkpoint.path / "config.json"))


def _gap(checkpoint: Checkpoint) -> str:
    try:
        return first_gap(read_structure(checkpoint))
    except ArchitectureError:
        return ""


def code_refused(path: Path, code: Sequence[str]) -> ArchitectureError:
    """Return the refusal of what cannot be loaded without `code` that it brings, as far as its files are known."""
    files = ", ".join(code)
    return ArchitectureError(
        f"brings code of its own{f' ({files})' if files else ''}, which surgeon does not run",
        where=str(path),
        allowed="models that transformers has a class for",
        hint="if you have read that code and trust it: --trust-remote-code, or trust_remote_code: true in the recipe's "
        "base",
    )


def _package_missing(checkpoint: Checkpoint, error: ImportError) -> ArchitectureError:
    """Say which package is missing and how to install it."""
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    command = _INSTALL.search(str(error))
    words = command[1].rstrip(" .`'\"").split() if command else [error.name] if error.name else []
    packages = [word for word in words if not word.startswith("-")]
    if not packages:
        return ArchitectureError(f"transformers cannot import what it needs: {first}", where=str(checkpoint.path))
    return ArchitectureError(
        f"needs the package {packages[0]}, which is not installed here",
        where=str(checkpoint.path),
        hint=f"pip install {shlex.join(packages)}",
    )
