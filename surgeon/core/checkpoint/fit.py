"""Whether a checkpoint holds what the class that loads it expects: transformers' judgement, kept as plain data.

It is made once (`surgeon.backend.model.fit`), and read from here without torch.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from surgeon.core.checkpoint.atomic_files import write_bytes
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.model_location import cache_directory
from surgeon.core.checkpoint.weight_files import listed
from surgeon.errors import CheckpointError

_VERSION = 1
"""Raised whenever the same checkpoint would be judged otherwise."""
_FITS = "fits"
_NUMBER = re.compile(r"(\d+)")
_HEADS = ("lm_head.weight", "output.weight", "embed_out.weight", "score.weight")
_WRAPPERS = {
    "_orig_mod.": "as torch.compile wraps a model: save `model._orig_mod`",
    "module.": "as DistributedDataParallel wraps a model: save `model.module`",
    "_fsdp_wrapped_module.": "as FSDP wraps a model: save its full state dict",
    "base_model.model.": "as PEFT wraps a model: save what `merge_and_unload()` returns",
}


class Mismatch(msgspec.Struct, frozen=True):
    """A tensor whose stored shape is not the one that the class has."""

    name: str
    stored: tuple[int, ...]
    expected: tuple[int, ...]


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What transformers says of a checkpoint, names as they are among the parameters of the class.

    missing: what the class expects and the checkpoint lacks: loaded, it would be random numbers.   unexpected: what the
    class does not load.   unjudged: why transformers could not say; then the other fields are empty.
    """

    class_name: str
    transformers: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    unjudged: str = ""

    @property
    def whole(self) -> bool:
        """Whether the class finds every tensor, in its shape, as far as that could be judged."""
        return not self.missing and not self.mismatched

    @property
    def text(self) -> str:
        """The judgement in a sentence."""
        by = f"{self.class_name} of transformers {self.transformers}"
        if self.unjudged:
            return f"{by} could not say whether it fits: {self.unjudged}"
        if not self.whole:
            return f"does not fit {by}: {self._fault()}"
        count = len(self.unexpected)
        rest = f"; {count} tensors are not loaded by it: {listed(self.unexpected)}" if count else ""
        return f"fits {by}{rest}"

    def require(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that does not fit its class.

        Raises:
            CheckpointError: it lacks tensors, or some have another shape.
        """
        if not self.whole:
            raise CheckpointError(self._fault(), where=str(checkpoint.path), hint=self._hint(checkpoint))

    def _fault(self) -> str:
        if self.missing:
            more = f" and {len(self.missing) - 1} more tensors" if len(self.missing) > 1 else ""
            return f"lacks {self.missing[0]}{more}, for which {self.class_name} would take random numbers"
        one = self.mismatched[0]
        more = f", and {len(self.mismatched) - 1} more do not fit" if len(self.mismatched) > 1 else ""
        return f"{one.name} has shape {list(one.stored)}, and {self.class_name} expects {list(one.expected)}{more}"

    def _hint(self, checkpoint: Checkpoint) -> str:
        if not self.missing:
            return "config.json and weights are of different models: fetch both again, from one place"
        renaming = renamed(self.missing, self.unexpected)
        if renaming:
            return renaming
        if self.missing[0].endswith(_HEADS) and len(self.missing) == 1:
            return (
                "fetch the file that holds it; where the model's head is its embedding, write "
                '"tie_word_embeddings": true into config.json'
            )
        if checkpoint.config.get("quantization_config"):
            return "fetch the weights again, or dequantise them with the library that packed them"
        return "fetch the weights again, or save them again from the whole model"


def judgement(class_name: str, report: Mapping[str, Any], transformers: str) -> Fit:
    """Return what a loading report of a version of transformers says."""
    mismatched = (Mismatch(name, tuple(stored), tuple(wanted)) for name, stored, wanted in report["mismatched_keys"])
    return Fit(
        class_name=class_name,
        transformers=transformers,
        missing=_in_order(report["missing_keys"]),
        unexpected=_in_order(report["unexpected_keys"]),
        mismatched=tuple(sorted(mismatched, key=lambda one: _by_number(one.name))),
    )


def renamed(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Say what to rename, where tensors that are missing look as if they were there under another name."""
    wanted = set(missing)
    found = Counter(prefix for name in unexpected for prefix, rest in _cut(name) if rest in wanted)
    if found:
        prefix = found.most_common(1)[0][0]
        why = next((why for wrapper, why in _WRAPPERS.items() if prefix.endswith(wrapper)), "")
        return f"its tensors are called {prefix}…: rename them without {prefix!r}" + (f", {why}" if why else "")
    held = set(unexpected)
    found = Counter(prefix for name in missing for prefix, rest in _cut(name) if rest in held)
    if found:
        prefix = found.most_common(1)[0][0]
        return f"its tensors lack the prefix {prefix!r}: rename them with it"
    ends = {name.split(".", 1)[-1] if name.count(".") > 1 else name: name for name in unexpected}
    alike = next(((name, other) for name in missing for end, other in ends.items() if name.endswith(f".{end}")), None)
    return f"what is called {alike[1]} there is {alike[0]} here: rename such tensors" if alike else ""


def _cut(name: str) -> Iterable[tuple[str, str]]:
    """Yield every way to take a prefix of whole words off a name."""
    parts = name.split(".")
    for at in range(1, len(parts)):
        yield ".".join(parts[:at]) + ".", ".".join(parts[at:])


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(map(str, names), key=_by_number))


def _by_number(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in _NUMBER.split(name)]


def kept_fit(checkpoint: Checkpoint) -> Fit | None:
    """Return the judgement that was made of such a checkpoint before, by whichever version of transformers."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        # The digest takes time, and is only asked for where a judgement of as many tensors is kept.
        if any((cache_directory() / _FITS).glob(f"{_prefix(checkpoint)}*")):
            place = _place(checkpoint)
            return msgspec.json.decode(place.read_bytes(), type=Fit) if place is not None else None
    return None


def keep_fit(checkpoint: Checkpoint, fit: Fit) -> None:
    """Keep a judgement. A full disk is no reason to fail."""
    with contextlib.suppress(OSError):
        (cache_directory() / _FITS).mkdir(parents=True, exist_ok=True)
        place = _place(checkpoint)
        if place is not None and not fit.unjudged:
            write_bytes(place, msgspec.json.encode(fit))


def _place(checkpoint: Checkpoint) -> Path | None:
    """Return the file of a judgement, by all that it is made from; None where it is made by code that may change."""
    directory = cache_directory() / _FITS
    if checkpoint.trust_remote_code or not directory.is_dir():
        return None
    return directory / f"{_prefix(checkpoint)}{checkpoint.headers_digest[:32]}.json"


def _prefix(checkpoint: Checkpoint) -> str:
    return f"{_VERSION}-{sum(len(shard.names) for shard in checkpoint.shards)}-"
