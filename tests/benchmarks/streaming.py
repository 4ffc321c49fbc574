"""Scores a checkpoint larger than the memory it gets: peak resident memory of each score, and the same numbers.

    python -m tests.benchmarks.streaming [--layers 28] [--sequences 1] [--length 64] [--by A,B]

Writes a random Llama of 3 GB (bf16, without torch) into a temporary directory and scores it with --stream in a process
of its own for each score; with the usual text, 12 x 256 tokens, removal takes an hour of a core. Then a model of the
same width with three layers is scored streamed and in memory, and every number has to be the same bit for bit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.backend.tiny_models import write_tokenizer

WIDTH, INNER, WORDS, HEADS = 2048, 5632, 32_000, 16
SCORES = "block_influence,removal,random_matrix"
_NOISE = 1 << 22


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    width: int = WIDTH
    inner: int = INNER
    words: int = WORDS
    heads: int = HEADS


def write_model(directory: Path, layers: int, shape: Shape | None = None) -> int:
    """Write a random Llama with tied embeddings, one shard, and return its size in bytes."""
    of = shape or Shape()
    directory.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "vocab_size": of.words,
        "hidden_size": of.width, "intermediate_size": of.inner, "num_hidden_layers": layers,
        "num_attention_heads": of.heads, "num_key_value_heads": of.heads, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05, "tie_word_embeddings": True, "hidden_act": "silu",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    write_tokenizer(directory)
    width, inner = of.width, of.inner
    shapes = {"model.embed_tokens.weight": (of.words, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        start = f"model.layers.{layer}."
        shapes |= {f"{start}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{start}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{start}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{start}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return _write_shard(directory / "model.safetensors", shapes)


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            count = math.prod(shape)
            if len(shape) == 1:
                file.write(_bfloat16(np.ones(count, np.float32)))
                continue
            # One block of noise, begun anywhere: no two matrices are the same, and writing stays fast.
            noise = _bfloat16(
                generator.standard_normal(_NOISE, np.float32) * (0.02 if "embed" in name else 0.5 / WIDTH**0.5)
            )
            for at in range(0, count, _NOISE):
                file.write(noise[: 2 * min(_NOISE, count - at)])
    return path.stat().st_size


def _bfloat16(values: np.ndarray) -> bytes:
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def score(model: Path, by: str, options: argparse.Namespace, *flags: str) -> tuple[dict[str, object], float, float]:
    """Return the scores by a process of its own, its peak resident memory in MB, and its wall seconds."""
    with tempfile.TemporaryDirectory() as cache:
        report = Path(cache) / "report.json"
        program = (
            "import sys, resource\n"
            "import json; from tests.jobs import perform\n"
            "result = perform('score', json.loads(sys.argv[1]), lambda *_: None, lambda: False)\n"
            "open(sys.argv[2], 'w').write(json.dumps(result))\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        )
        args = {
            "recipe": {"version": 1, "base": {"model": str(model)}, "seed": 0, "steps": []}, "root": str(model),
            "names": by.split(","), "data": None, "sequences": options.sequences, "length": options.length,
            "stream": "--stream" in flags,
        }  # fmt: skip
        environment = {**os.environ, "SURGEON_CACHE": cache}
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program, json.dumps(args), str(report)], env=environment, check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        spent = time.monotonic() - start
        return json.loads(report.read_text()), int(done.stdout.split()[-1]) * 1024 / 1e6, spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--by", default=SCORES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="surgeon-benchmark-") as place:
        small = Path(place) / "small"
        write_model(small, 3)
        live = ",".join(name for name in options.by.split(",") if name != "random_matrix")
        if live:
            streamed, whole = score(small, live, options, "--stream")[0], score(small, live, options)[0]
            print(
                f"three layers, streamed and in memory: {'the same bit for bit' if streamed == whole else 'DIFFERENT'}"
            )
        large = Path(place) / "large"
        size = write_model(large, options.layers)
        print(
            f"checkpoint of {size / 1e9:.2f} GB, {options.layers} layers, {options.sequences} x {options.length} tokens"
        )
        for name in options.by.split(","):
            _, peak_mb, seconds = score(large, name, options, "--stream")
            print(f"{name}: peak {peak_mb:.0f} MB resident, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
