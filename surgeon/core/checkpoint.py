"""What lies on disk, known from `config.json` and the shard headers alone. Never reads a whole tensor.

Everything that a broken or hostile directory can lie about is checked here, once, so that later rooms may trust it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from surgeon.core.dtypes import BITS
from surgeon.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SAMPLE_BYTES = 4096
# Keys that say who wrote the file or how to load it, not what the model computes.
_VOLATILE_CONFIG = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "_attn_implementation")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One stored tensor. `start` and `end` are byte offsets in the file at `shard`, not in its data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: Path
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.end - self.start

    @property
    def parameters(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Checkpoint:
    """A directory of config, shards and side files that has been checked.

    `tensors` is in the order of the shards and of the offsets within them. `side_files` are paths relative to
    `path` of everything that travels unchanged: tokenizer, generation config, chat template, licence, code.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    side_files: tuple[str, ...]
    metadata: Mapping[str, str]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def parameters(self) -> int:
        """Stored elements; a tied tensor counts once."""
        return sum(tensor.parameters for tensor in self.tensors.values())

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that name the model: its config, its tensors, and a sample of each one's bytes.

        A tensor of up to 16 KiB is read whole, of a longer one four pieces of 4 KiB spread over it, so a 400 B
        model takes seconds. How the tensors are spread over shards does not matter.
        """
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


def open_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint directory.

    Raises:
        CheckpointError: anything is missing, truncated, inconsistent, outside the directory, or a pickle.
    """
    path = Path(path)
    config = _read_config(path)
    shards, weight_map = _find_shards(path)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        found, shard_metadata = read_header(shard)
        metadata.update(shard_metadata)
        for tensor in found:
            if tensor.name in tensors:
                raise CheckpointError(
                    f"tensor {tensor.name!r} is also in {tensors[tensor.name].shard.name}", where=str(shard),
                    allowed="each tensor in one shard", hint="download or save the checkpoint again",
                )
            tensors[tensor.name] = tensor
    if weight_map is not None:
        _check_index(path / INDEX, weight_map, tensors)
    if not tensors:
        raise CheckpointError("holds no tensors", where=str(path), hint="check that the download is complete")
    return Checkpoint(
        path=path,
        config=MappingProxyType(config),
        tensors=MappingProxyType(tensors),
        side_files=tuple(_side_files(path, {shard.name for shard in shards})),
        metadata=MappingProxyType(metadata),
    )


def _read_config(path: Path) -> dict[str, Any]:
    where = path / "config.json"
    if not path.is_dir():
        raise CheckpointError("no such directory", where=str(path), allowed="a directory with config.json")
    if not where.is_file():
        adapter = (path / "adapter_config.json").is_file()
        raise CheckpointError(
            "there is no config.json", where=str(path), allowed="a Hugging Face checkpoint directory",
            hint="this is a PEFT adapter: name its base model instead" if adapter else "check the path",
        )
    try:
        config = msgspec.json.decode(where.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"is not valid JSON: {error}", where=str(where)) from error
    if not isinstance(config, dict):
        raise CheckpointError("is not a JSON object", where=str(where))
    return config


def _find_shards(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    if (path / INDEX).is_file():
        return _shards_of_index(path)
    if (path / SINGLE).is_file():
        return [path / SINGLE], None
    strays = sorted(path.glob("*.safetensors"))
    if len(strays) == 1:
        return strays, None
    if strays:
        raise CheckpointError(
            f"{len(strays)} safetensors files but no {INDEX}", where=str(path),
            allowed=f"{SINGLE}, or shards with {INDEX}", hint="the download is incomplete: fetch the index too",
        )
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"holds only pickle files ({', '.join(pickles[:3])}), which can run code when opened", where=str(path),
            allowed="safetensors",
            hint="if you trust them, convert: python -c \"from transformers import AutoModelForCausalLM as M; "
            f"M.from_pretrained('{path}').save_pretrained('{path}-safetensors')\", "
            "and copy the tokenizer files beside it",
        )
    raise CheckpointError("there are no safetensors files", where=str(path), allowed=f"{SINGLE}, or shards with {INDEX}")


def _shards_of_index(path: Path) -> tuple[list[Path], dict[str, str]]:
    where = path / INDEX
    try:
        weight_map = msgspec.json.decode(where.read_bytes())["weight_map"]
        weight_map = msgspec.convert(weight_map, dict[str, str])
    except (msgspec.MsgspecError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"has no readable weight_map: {error}", where=str(where)) from error
    names = list(dict.fromkeys(weight_map.values()))
    for name in names:
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name or inside.suffix != ".safetensors":
            raise CheckpointError(
                f"names {name!r}, which is not a safetensors file inside the directory", where=str(where),
                allowed="relative *.safetensors paths without '..'", hint="do not trust this checkpoint",
            )
        if not (path / inside).is_file():
            raise CheckpointError(
                f"names {name!r}, which is missing", where=str(where),
                hint="the download is incomplete: fetch that file again",
            )
    return [path / name for name in sorted(names)], weight_map


def _check_index(where: Path, weight_map: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"promises tensor {name!r} in {shard}, which does not hold it", where=str(where))
        if tensors[name].shard != where.parent / shard:
            raise CheckpointError(f"puts {name!r} in {shard}, but it is in {tensors[name].shard.name}", where=str(where))


def read_header(shard: Path) -> tuple[list[Tensor], dict[str, str]]:
    """Read one shard's header: its tensors in the order of their offsets, and its metadata.

    Raises:
        CheckpointError: the file is truncated, or the header contradicts itself or the file.
    """
    size = shard.stat().st_size
    with shard.open("rb") as file:
        prefix = file.read(8)
        header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or header_bytes > size - 8:
            raise CheckpointError(
                f"is truncated: {size} bytes, but its header alone claims {header_bytes + 8}", where=str(shard),
                hint="download it again",
            )
        if header_bytes > _MAX_HEADER_BYTES:
            raise CheckpointError(
                f"claims a header of {header_bytes} bytes", where=str(shard),
                allowed=f"at most {_MAX_HEADER_BYTES}", hint="this is not a safetensors file",
            )
        raw = file.read(header_bytes)
    try:
        header = msgspec.json.decode(raw, type=dict[str, dict[str, Any]])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"has a header that is not valid JSON: {error}", where=str(shard)) from error
    metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
    tensors = [_tensor(shard, name, entry, 8 + header_bytes) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_offsets(shard, tensors, 8 + header_bytes, size)
    return tensors, metadata


def _tensor(shard: Path, name: str, entry: Mapping[str, Any], data_start: int) -> Tensor:
    where = f"{shard}, tensor {name!r}"
    try:
        dtype = msgspec.convert(entry["dtype"], str)
        shape = msgspec.convert(entry["shape"], tuple[int, ...])
        start, end = msgspec.convert(entry["data_offsets"], tuple[int, int])
    except (KeyError, msgspec.ValidationError) as error:
        raise CheckpointError(f"has a malformed entry: {error}", where=where) from error
    if dtype not in BITS:
        raise CheckpointError(f"has dtype {dtype!r}", where=where, allowed=", ".join(BITS))
    tensor = Tensor(name, dtype, shape, shard, data_start + start, data_start + end)
    if min((*shape, 0)) < 0 or start < 0 or end < start:
        raise CheckpointError("has a negative size or offset", where=where, hint="do not trust this file")
    bits = tensor.parameters * BITS[dtype]
    if bits != 8 * tensor.nbytes:
        raise CheckpointError(
            f"of shape {list(shape)} and dtype {dtype} needs {bits // 8} bytes, but its offsets span {tensor.nbytes}",
            where=where, hint="do not trust this file",
        )
    return tensor


def _check_offsets(shard: Path, tensors: Iterable[Tensor], data_start: int, size: int) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.end > size:
            raise CheckpointError(
                f"is truncated: tensor {tensor.name!r} ends at byte {tensor.end} of {size}", where=str(shard),
                hint="download it again",
            )
        if tensor.start != position:
            fault = "overlaps the one before it" if tensor.start < position else "leaves a hole before it"
            raise CheckpointError(
                f"tensor {tensor.name!r} {fault}", where=str(shard), allowed="contiguous offsets",
                hint="do not trust this file",
            )
        position = tensor.end
    if position != size:
        raise CheckpointError(f"holds {size - position} bytes that no tensor owns", where=str(shard))


def _side_files(path: Path, shards: set[str]) -> list[str]:
    skipped = {"config.json", INDEX, *shards}
    return sorted(
        file.name
        for file in path.iterdir()
        if file.is_file()
        and file.name not in skipped
        and not file.name.startswith(".")
        and file.suffix not in (*_PICKLES, ".safetensors", ".gguf", ".onnx", ".h5", ".msgpack")
        and not file.name.endswith(".index.json")
    )
