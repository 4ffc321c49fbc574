"""What lies on disk, known from `config.json` and the shard headers alone. Never reads a whole tensor.

Everything that a broken or hostile directory can lie about is checked here, once, so that later rooms may trust it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from surgeon.core.checkpoint.garbage import nothing_collected
from surgeon.core.checkpoint.headers import read_header
from surgeon.core.checkpoint.shard_index import INDEX, ShardIndex, read_index
from surgeon.core.checkpoint.side_files import PICKLES, read_document, side_files
from surgeon.core.checkpoint.tensors import Shard, Tensor, TensorType
from surgeon.errors import CheckpointError

__all__ = ["INDEX", "SINGLE", "Checkpoint", "Tensor", "open_checkpoint"]

SINGLE = "model.safetensors"
_SAMPLE_BYTES = 4096
# Keys that say who wrote the file or how to load it, not what the model computes.
_VOLATILE_CONFIG = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "_attn_implementation")


@dataclass(frozen=True)
class Checkpoint:
    """A directory of config, shards and side files that has been checked.

    `side_files` are paths relative to `path` of all that belongs to the model: tokenizer, generation config, chat
    template, licence, code, the folders that modules.json names.
    `load_in`: what a recipe wants the matrices held in while they are loaded, where that is not their own dtype.
    """

    path: Path
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    side_files: tuple[str, ...]
    metadata: Mapping[str, str]
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
def open_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint directory.

    Raises:
        CheckpointError: anything is missing, truncated, inconsistent, outside the directory, or a pickle.
    """
    path = Path(path)
    with _explaining(path):
        return _open(path)


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


def _open(path: Path) -> Checkpoint:
    config = _read_config(path)
    paths, index = _find_shards(path)
    shards = _read_shards(paths, index)
    if not any(shard.names for shard in shards):
        raise CheckpointError("holds no tensors", where=str(path), hint="check that the download is complete")
    return Checkpoint(
        path=path,
        config=MappingProxyType(config),
        shards=tuple(shards),
        side_files=tuple(side_files(path, {shard.name for shard in paths.values()})),
        metadata=MappingProxyType({key: value for shard in shards for key, value in shard.metadata.items()}),
    )


def _read_shards(paths: Mapping[str, Path], index: ShardIndex | None) -> list[Shard]:
    """Read the headers of all shards, and see that each tensor is in one of them, the one that the index says."""
    shards: list[Shard] = []
    agreed = index is not None
    for name, path in paths.items():
        try:
            shard = read_header(path)
        except (CheckpointError, OSError):
            _homes(shards)  # what is wrong with those before it is told first
            raise
        listed = index.names[name] if index else ()
        if listed == shard.names:
            # The same texts: of 90,000 names, once in memory is enough.
            shard = msgspec.structs.replace(shard, names=listed)
        else:
            agreed = agreed and set(listed) == set(shard.names)
        shards.append(shard)
    if not agreed:  # the index lists each tensor once: else a shard may repeat another's
        homes = _homes(shards)
        if index is not None:
            index.check(homes)
    return shards


def _homes(shards: Iterable[Shard]) -> Mapping[str, Path]:
    """Return the shard of each tensor; refuse one that is in two."""
    homes: dict[str, Path] = {}
    for shard in shards:
        for name in shard.names:
            first = homes.setdefault(name, shard.path)
            if first is not shard.path:
                raise CheckpointError(
                    f"tensor {name!r} is also in {first.name}",
                    where=str(shard.path),
                    allowed="each tensor in one shard",
                    hint="download or save the checkpoint again",
                )
    return homes


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


def _find_shards(path: Path) -> tuple[Mapping[str, Path], ShardIndex | None]:
    """Return the shards by name, in order, and their index, if there is one."""
    if (path / INDEX).is_file():
        index = read_index(path)
        return index.paths, index
    if (path / SINGLE).is_file():
        return {SINGLE: path / SINGLE}, None
    strays = sorted(path.glob("*.safetensors"))
    if len(strays) == 1 and not re.search(r"-\d+-of-\d+", strays[0].name):
        return {strays[0].name: strays[0]}, None
    if strays:
        raise CheckpointError(
            f"{len(strays)} of several safetensors files, but no {INDEX}",
            where=str(path),
            allowed=f"{SINGLE}, or shards with {INDEX}",
            hint="the download is incomplete: fetch the index too",
        )
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"holds only pickle files ({', '.join(pickles[:3])}), which can run code when opened",
            where=str(path),
            allowed="safetensors",
            hint=f"if you trust them: {_conversion(path)}",
        )
    raise CheckpointError(
        "there are no safetensors files", where=str(path), allowed=f"{SINGLE}, or shards with {INDEX}"
    )


def _conversion(path: Path) -> str:
    """Return the command that turns pickles into safetensors, tokenizer included."""
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; _, old, new = sys.argv; "
        "M.from_pretrained(old, dtype='auto').save_pretrained(new); T.from_pretrained(old).save_pretrained(new)"
    )
    return shlex.join(["python", "-c", code, str(path), f"{path}-safetensors"])
