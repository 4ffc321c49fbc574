"""What an export costs, beside `cp` of the same bytes and, if at hand, mergekit: python -m tests.benchmarks.export.

Makes a random Llama of 3 GB (24 layers, bf16, four shards) without torch, removes 6 layers again and again in turn
with each tool, and prints medians of wall time, of CPU time (user + system) and of peak resident memory. Before every
turn dirty pages are written out, so that nobody pays for the one before. `cp` does not wait for the disk; surgeon does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LAYERS, WIDTH, INNER, WORDS, HEADS = 24, 2048, 5632, 64_000, 16
REMOVED = range(14, 20)
SHARDS = 4
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": WORDS,
    "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS, "max_position_embeddings": 2048, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
MERGE = """\
merge_method: passthrough
dtype: bfloat16
slices:
- sources: [{{model: {model}, layer_range: [0, 14]}}]
- sources: [{{model: {model}, layer_range: [20, 24]}}]
"""


@dataclass(frozen=True)
class Turn:
    """What one run cost."""

    wall_seconds: float
    cpu_seconds: float
    peak_mb: float


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of the model, in order."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, WIDTH)}
    for layer in range(LAYERS):
        inside = {
            "input_layernorm": (WIDTH,),
            "mlp.down_proj": (WIDTH, INNER),
            "mlp.gate_proj": (INNER, WIDTH),
            "mlp.up_proj": (INNER, WIDTH),
            "post_attention_layernorm": (WIDTH,),
            **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "kqvo"},
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    return shapes | {"model.norm.weight": (WIDTH,), "lm_head.weight": (WORDS, WIDTH)}


def write_model(directory: Path) -> None:
    """Write the random model, header first."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2))
    noise = bytearray(os.urandom(64 * 2**20))
    noise[1::2] = bytes(0x3C | byte & 0x81 for byte in noise[1::2])  # small finite numbers of either sign
    shapes = list(tensor_shapes().items())
    weight_map: dict[str, str] = {}
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        chosen = dict(shapes[len(shapes) * number // SHARDS : len(shapes) * (number + 1) // SHARDS])
        _write_shard(directory / name, chosen, memoryview(noise))
        weight_map |= dict.fromkeys(chosen, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], noise: memoryview) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + 2 * shape[0] * (shape[1] if shape[1:] else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        while position:
            position -= file.write(noise[: min(position, len(noise))])


def run(command: Sequence[str], log: Path) -> Turn:
    """Run a command and return what it and its children cost."""
    os.sync()
    with log.open("ab") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed:\n{log.read_text()[-3000:]}")
    return Turn(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def compare(place: Path, rounds: int, mergekit: Path | None) -> dict[str, list[Turn]]:
    """Let every tool have its turn, `rounds` times."""
    model, out, copy, merged = (place / name for name in ("model", "out", "copy", "merged"))
    log, recipe = place / "log", place / "merge.yaml"
    # In a process of its own: the peak of a child counts from its parent's size at the fork.
    subprocess.run([sys.executable, "-m", "tests.benchmarks.export", "--make", str(model)], check=True)
    recipe.write_text(MERGE.format(model=model))
    layers = f"{REMOVED.start}-{REMOVED.stop - 1}"
    turns: dict[str, list[Turn]] = {"surgeon": [], "cp": [], "mergekit": []}
    for _ in range(rounds):
        surgeon = [sys.executable, "-m", "surgeon", "prune", str(model), "--layers", layers, "--out", str(out)]
        turns["surgeon"].append(run([*surgeon, "--no-verify"], log))
        turns["cp"].append(run(["cp", "-r", str(out), str(copy)], log))
        if mergekit is not None:
            merge = [str(mergekit), str(recipe), str(merged), "--no-write-model-card", "--quiet"]
            turns["mergekit"].append(run(merge, log))
        for written in (out, copy, merged):
            shutil.rmtree(written, ignore_errors=True)
    return {name: found for name, found in turns.items() if found}


def show(turns: dict[str, list[Turn]]) -> None:
    """Print medians, ranges of wall time, and ratios."""
    medians = {name: _medians(found) for name, found in turns.items()}
    print(f"{'':<10}{'wall s':>9}{'lowest':>9}{'highest':>9}{'CPU s':>9}{'peak MB':>9}")
    for name, (wall, cpu, peak) in medians.items():
        walls = [turn.wall_seconds for turn in turns[name]]
        print(f"{name:<10}{wall:>9.2f}{min(walls):>9.2f}{max(walls):>9.2f}{cpu:>9.2f}{peak:>9.0f}")
    own = medians["surgeon"]
    print(f"surgeon / cp: wall {own[0] / medians['cp'][0]:.2f}")
    if "mergekit" in medians:
        other = medians["mergekit"]
        wall, cpu, peak = (theirs / ours for theirs, ours in zip(other, own, strict=True))
        print(f"mergekit / surgeon: wall {wall:.2f}, CPU {cpu:.2f}, memory {peak:.2f}")


def _medians(turns: Sequence[Turn]) -> list[float]:
    rows = [(turn.wall_seconds, turn.cpu_seconds, turn.peak_mb) for turn in turns]
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def main() -> None:
    """Measure and clean up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mergekit", type=Path, help="its mergekit-yaml")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()), help="a disk with 11 GB free")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        write_model(options.make)
        return
    with tempfile.TemporaryDirectory(dir=options.place, prefix="surgeon-benchmark-") as place:
        show(compare(Path(place), options.rounds, options.mergekit))


if __name__ == "__main__":
    main()
