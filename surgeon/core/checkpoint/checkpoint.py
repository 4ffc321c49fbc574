"""What lies on disk, known from `config.json` and the shard headers alone. Never reads a whole tensor.

Everything that a broken or hostile directory can lie about is checked here, once, so that later rooms may trust it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from surgeon.core.checkpoint.dtypes import FLOATS
from surgeon.core.checkpoint.garbage import nothing_collected
from surgeon.core.checkpoint.headers import read_header
from surgeon.core.checkpoint.shard_index import INDEX
from surgeon.core.checkpoint.side_files import read_document, side_files
from surgeon.core.checkpoint.tensors import Shard, Tensor, TensorType
from surgeon.core.checkpoint.weight_files import (
    SINGLE,
    Placed,
    WeightFiles,
    find_copies,
    find_weight_files,
    place_tensors,
)
from surgeon.errors import CheckpointError

__all__ = ["INDEX", "SINGLE", "Checkpoint", "Tensor", "open_checkpoint"]

_SAMPLE_BYTES = 4096
# Keys that say who wrote the file or how to load it, not what the model computes.
_VOLATILE_CONFIG = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "_attn_implementation")


@dataclass(frozen=True)
class Checkpoint:
    """A directory of config, shards and side files that has been checked.

    `side_files` are paths relative to `path` of all that belongs to the model: tokenizer, generation config, chat
    template, licence, code, the folders that modules.json names.

    unlisted: tensors that the index does not list.   notes: what a person should know of the files.
    trust_remote_code: whether the code that it brings may be run.
    load_in: what a recipe wants the matrices held in while they are loaded, where that is not their own dtype.
    """

    path: Path
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    side_files: tuple[str, ...]
    metadata: Mapping[str, str]
    unlisted: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    trust_remote_code: bool = False
    load_in: str | None = None

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors by name, in the order of the shards and of the offsets within them."""
        return MappingProxyType({tensor.name: tensor for shard in self.shards for tensor in shard.tensors})

    def document(self, name: str) -> Any:
        """Return what a JSON file beside the weights holds, read once; None if it holds no JSON."""
        if name not in self._documents:
            self._documents[name] = read_document(self.path / name)
        return self._documents[name]

    @cached_property
    def _documents(self) -> dict[str, Any]:
        return {}

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(one.nbytes * times for one, times in self._types.items())

    @cached_property
    def parameters(self) -> int:
        """Stored elements; a tied tensor counts once."""
        return sum(self.dtype_parameters.values())

    @cached_property
    def dtype_parameters(self) -> dict[str, int]:
        """Stored elements of each dtype, in the order in which the dtypes occur."""
        found: dict[str, int] = {}
        for one, times in self._types.items():
            found[one.dtype] = found.get(one.dtype, 0) + one.parameters * times
        return found

    @cached_property
    def _types(self) -> Counter[TensorType]:
        return Counter(chain.from_iterable(shard.types for shard in self.shards))

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that name the model: its config, its tensors, and a sample of each one's bytes.

        A tensor of up to 16 KiB is read whole, of a longer one four pieces of 4 KiB spread over it, so a 400 B
        model takes seconds. How the tensors are spread over shards does not matter.
        """
        with _explaining(self.path):
            return self._digest()

    @cached_property
    def headers_digest(self) -> str:
        """A digest of the whole config and of every tensor's name, dtype and shape: of what is known without bytes."""
        import hashlib

        digest = hashlib.sha256(json.dumps(dict(self.config), sort_keys=True).encode())
        texts = {one: f"{one.dtype}{one.shape}" for one in self._types}
        for shard in self.shards:
            digest.update("\0".join((*shard.names, *map(texts.__getitem__, shard.types), "\n")).encode())
        return digest.hexdigest()

    @property
    def own_code(self) -> tuple[str, ...]:
        """The files of code that the config names: the model brings classes of its own."""
        return _own_code(self.config)

    def _digest(self) -> str:
        import hashlib  # late: with it comes OpenSSL, and who looks at a model needs neither

        digest = hashlib.sha256()
        config = {key: value for key, value in self.config.items() if key not in _VOLATILE_CONFIG}
        digest.update(json.dumps(config, sort_keys=True).encode())
        handles: dict[Path, int] = {}
        try:
            for name in sorted(self.tensors):
                tensor = self.tensors[name]
                if tensor.shard not in handles:
                    handles[tensor.shard] = os.open(tensor.shard, os.O_RDONLY)
                digest.update(f"{name}\0{tensor.dtype}\0{tensor.shape}\0".encode())
                for start, count in _sample_ranges(tensor.nbytes):
                    digest.update(os.pread(handles[tensor.shard], count, tensor.start + start))
        finally:
            for handle in handles.values():
                os.close(handle)
        return digest.hexdigest()[:16]


def _sample_ranges(nbytes: int) -> list[tuple[int, int]]:
    if nbytes <= 4 * _SAMPLE_BYTES:
        return [(0, nbytes)]
    stride = (nbytes - _SAMPLE_BYTES) // 3
    return [(piece * stride, _SAMPLE_BYTES) for piece in range(4)]


@nothing_collected()
def open_checkpoint(path: Path, *, trust_remote_code: bool = False, load_in: str | None = None) -> Checkpoint:
    """Read and check a checkpoint directory. `trust_remote_code`: code that it brings may be run when it is loaded.

    `load_in`: see `Checkpoint`.

    Raises:
        CheckpointError: anything is missing, truncated, inconsistent, outside the directory, or a pickle.
    """
    path = Path(path)
    with _explaining(path):
        found = _open(path, trust_remote_code=trust_remote_code)
        return found if load_in is None else replace(found, load_in=load_in)


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror or error}",
            where=str(error.filename or path),
            hint="check its permissions, and that every link leads to a file",
        ) from error


def _open(path: Path, *, trust_remote_code: bool) -> Checkpoint:
    config = _read_config(path)
    files = find_weight_files(path, config)
    placed = _read_shards(files)
    if not any(shard.names for shard in placed.shards):
        raise CheckpointError("holds no tensors", where=str(path), hint="check that the download is complete")
    _refuse_empty(placed.shards)
    return Checkpoint(
        path=path,
        config=MappingProxyType(config),
        shards=placed.shards,
        side_files=tuple(side_files(path, {shard.name for shard in files.paths.values()})),
        metadata=MappingProxyType({key: value for shard in placed.shards for key, value in shard.metadata.items()}),
        unlisted=placed.unlisted,
        notes=(*files.notes, *placed.notes, *_code_notes(config, trusted=trust_remote_code)),
        trust_remote_code=trust_remote_code,
    )


def _own_code(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("auto_map")
    classes = [one for one in named.values() if isinstance(one, str)] if isinstance(named, dict) else []
    return tuple(sorted({f"{one.rpartition('.')[0].replace('.', '/')}.py" for one in classes}))


def _code_notes(config: Mapping[str, Any], *, trusted: bool) -> Iterator[str]:
    code = _own_code(config)
    if code:
        how = "is run, as trust_remote_code says" if trusted else "is not run"
        yield f"the model brings code of its own, which {how}: {', '.join(code)}"


def _read_shards(files: WeightFiles) -> Placed:
    """Read the headers of all shards, and see that each tensor is in one of them, the one that the index says."""
    shards: list[Shard] = []
    agreed = files.index is not None
    for name, path in files.paths.items():
        try:
            shard = read_header(path)
        except (CheckpointError, OSError):
            find_copies(shards, files.index)  # what is wrong with those before it is told first
            raise
        listed = files.index.names[name] if files.index else ()
        if listed == shard.names:
            # The same texts: of 90,000 names, once in memory is enough.
            shard = msgspec.structs.replace(shard, names=listed)
        else:
            agreed = agreed and set(listed) == set(shard.names)
        shards.append(shard)
    # An index lists each tensor once: where they agree, no shard repeats another's.
    return Placed(tuple(shards), frozenset(), ()) if agreed else place_tensors(shards, files.index)


def _refuse_empty(shards: Iterable[Shard]) -> None:
    """Refuse weights of shape [0], which were left on other ranks: who reads them does without, or invents some."""
    empty = [
        (name, shard)
        for shard in shards
        if any(one.shape == (0,) for one in set(shard.types))
        for name, one in zip(shard.names, shard.types, strict=True)
        if one.shape == (0,) and one.dtype in FLOATS and not name.endswith("_extra_state")
    ]
    if empty:
        name, shard = empty[0]
        others = f", and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise CheckpointError(
            f"tensor {name!r} is empty, of shape [0]{others}: it was saved under DeepSpeed ZeRO-3 without gathering",
            where=str(shard.path),
            hint="save it again with stage3_gather_16bit_weights_on_model_save: true, or make the weights of the "
            "ZeRO checkpoint with zero_to_fp32.py",
        )


def _read_config(path: Path) -> dict[str, Any]:
    where = path / "config.json"
    if not path.is_dir():
        raise CheckpointError("no such directory", where=str(path), allowed="a directory with config.json")
    adapter = (path / "adapter_config.json").is_file()
    if not where.is_file():
        raise CheckpointError(
            "there is no config.json",
            where=str(path),
            allowed="a Hugging Face checkpoint directory",
            hint="this is a PEFT adapter: name its base model instead" if adapter else "check the path",
        )
    if adapter:
        raise CheckpointError(
            "holds a PEFT adapter beside the weights, which transformers would put on top of them",
            where=str(path),
            hint="merge the adapter into the weights, or move its files elsewhere",
        )
    try:
        # Python's json and not msgspec: configs may hold Infinity, as transformers reads and writes it.
        config = json.loads(where.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"is not valid JSON: {error}", where=str(where), hint="download it again") from error
    if not isinstance(config, dict):
        raise CheckpointError("is not a JSON object", where=str(where), allowed='{"model_type": …}')
    return config
