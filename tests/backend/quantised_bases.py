"""Tiny Llamas in quantised layouts, and the same with the weights that they stand for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.backend.tiny_models import save_tiny, write_tokenizer

Tensors = dict[str, torch.Tensor]
Pack = Callable[[str, torch.Tensor], Mapping[str, torch.Tensor]]
FP8_BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
NF4 = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
}  # fmt: skip
CODES = torch.tensor(
    [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
     0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
)  # fmt: skip


def plain_base(directory: Path) -> Path:
    """Write a Llama whose weights fall from layer to layer, with a tokenizer."""
    base = save_tiny("llama", directory, max_position_embeddings=512)
    write_tokenizer(base)
    tensors = read(base)
    save(base, {name: tensor * (1.6 - 0.25 * layer_of(name)) for name, tensor in tensors.items()})
    return base


def quantised_base(plain: Path, directory: Path, pack: Pack, config: Mapping[str, Any] | None = None) -> Path:
    """Write a copy whose matrices are packed; all else is in bfloat16. `config` is its quantization_config."""
    shutil.copytree(plain, directory)
    packed: Tensors = {}
    for name, tensor in read(plain).items():
        packed |= pack(name, tensor) if is_matrix(name, tensor) else {name: tensor.to(torch.bfloat16)}
    save(directory, packed)
    edit_config(directory, dtype="bfloat16", **({"quantization_config": dict(config)} if config else {}))
    return directory


def fp8_blocks(name: str, weight: torch.Tensor) -> Tensors:
    """Pack in FP8 with a scale for every 16 rows and columns, the larger the later the layer."""
    rows, columns = (size // 16 for size in weight.shape)
    scale = (0.002 * (1 + layer_of(name)) * (1 + torch.arange(rows * columns) % 3)).reshape(rows, columns)
    spread = scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
    return {name: (weight / spread).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}


def fp8_whole(name: str, weight: torch.Tensor) -> Tensors:
    """Pack in FP8 with one scale, as ModelOpt does."""
    scale = weight.abs().max() / 448
    return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale}


def nf4(name: str, weight: torch.Tensor) -> Tensors:
    """Pack in bitsandbytes' NF4."""
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(1)
    nearest = (blocks[..., None] / largest[:, None, None] - CODES).abs().argmin(-1).reshape(-1, 2)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
    text = json.dumps(state) + " " * layer_of(name)  # its length differs from layer to layer, as it does in real ones
    return {
        name: (nearest[:, :1] * 16 + nearest[:, 1:]).to(torch.uint8),
        f"{name}.absmax": largest,
        f"{name}.quant_map": CODES,
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(text.encode()), dtype=torch.uint8),
    }


def modelopt_base(plain: Path, directory: Path) -> Path:
    """Write FP8 of which `hf_quant_config.json` alone tells, matrix by matrix."""
    base = quantised_base(plain, directory, fp8_whole)
    layers = {
        name.removesuffix(".weight"): {"quant_algo": "FP8"} for name in read(plain) if name.endswith("_proj.weight")
    }
    said = {"quant_algo": "MIXED_PRECISION", "exclude_modules": ["lm_head"], "quantized_layers": layers}
    whole = {"producer": {"name": "modelopt"}, "quantization": said}
    (base / "hf_quant_config.json").write_text(json.dumps(whole))
    return base


def dequantised_base(base: Path, directory: Path, values: Callable[[Tensors, str], torch.Tensor]) -> Path:
    """Write a copy of a quantised base in float32; `values` gives those of a matrix."""
    shutil.copytree(base, directory)
    (directory / "hf_quant_config.json").unlink(missing_ok=True)
    tensors = read(base)
    names = [name for name in tensors if not name.endswith(("_scale", "_scale_inv"))]
    save(
        directory,
        {name: values(tensors, name) if is_matrix(name, tensors[name]) else tensors[name].float() for name in names},
    )
    config = json.loads((directory / "config.json").read_text())
    config.pop("quantization_config", None)
    (directory / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return directory


def layer_of(name: str) -> int:
    """Return the layer of a tensor; 0 for one that is of none."""
    return int(name.split(".")[2]) if name.startswith("model.layers.") else 0


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is a weight of two dimensions within a layer."""
    return name.startswith("model.layers.") and name.endswith(".weight") and tensor.dim() == 2


def read(directory: Path) -> Tensors:
    """Return all tensors."""
    return load_file(directory / "model.safetensors")


def save(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write all tensors."""
    whole = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(whole, directory / "model.safetensors", metadata={"format": "pt"})


def edit_config(directory: Path, **changes: Any) -> None:
    """Change keys of the config."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}, indent=1))
