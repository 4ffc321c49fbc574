"""What looking at a model and planning an edit cost, beside reading its headers: python -m tests.benchmarks.plan.

Makes a sparse checkpoint of DeepSeek-V3's shape (671 B parameters in blocks of FP8, 90,000 tensors, 163 shards; some
MB on disk), and prints medians of CPU time (user + system) over rounds in which all take turns: `json.loads` of the
headers, nothing else counted; `surgeon inspect` and a dry run of `surgeon prune`, each a process from its start to its
end, its modules compiled before; and, in a session that is open, the preview of an edit, applying and undoing it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path

LAYERS, DENSE, EXPERTS, SHARDS, BLOCK = 61, 3, 256, 163, 128
WIDTH, INNER, EXPERT_INNER, WORDS = 7168, 18432, 2048, 129280
HEADS, QUERY_RANK, RANK, ROPE, HEAD = 128, 1536, 512, 64, 128
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
    "num_hidden_layers": LAYERS, "first_k_dense_replace": DENSE, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
    "hidden_size": WIDTH, "intermediate_size": INNER, "moe_intermediate_size": EXPERT_INNER, "vocab_size": WORDS,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "q_lora_rank": QUERY_RANK, "kv_lora_rank": RANK,
    "qk_rope_head_dim": ROPE, "qk_nope_head_dim": HEAD, "v_head_dim": HEAD, "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]},
}  # fmt: skip
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
EDITS: dict[str, dict[str, object]] = {
    "prune": {"layers": "5"},
    "expand": {"after": "9", "init": "duplicate"},
    "freeze": {"except": "last 2"},
    "masked_lora": {"layers": "all", "roles": ["attention"]},
}
Form = tuple[str, tuple[int, ...]]


def matrix(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, Form]]:
    """Yield a matrix in blocks of FP8: its weight, and a scale for each block."""
    yield f"{name}.weight", ("F8_E4M3", (outputs, inputs))
    yield f"{name}.weight_scale_inv", ("F32", (-(-outputs // BLOCK), -(-inputs // BLOCK)))


def gated(name: str, inner: int) -> Iterator[tuple[str, Form]]:
    """Yield an MLP with a gate."""
    yield from matrix(f"{name}.gate_proj", inner, WIDTH)
    yield from matrix(f"{name}.up_proj", inner, WIDTH)
    yield from matrix(f"{name}.down_proj", WIDTH, inner)


def layer(number: int) -> Iterator[tuple[str, Form]]:
    """Yield the tensors of a layer by their names within it."""
    yield "input_layernorm.weight", ("BF16", (WIDTH,))
    yield from matrix("self_attn.q_a_proj", QUERY_RANK, WIDTH)
    yield "self_attn.q_a_layernorm.weight", ("BF16", (QUERY_RANK,))
    yield from matrix("self_attn.q_b_proj", HEADS * (HEAD + ROPE), QUERY_RANK)
    yield from matrix("self_attn.kv_a_proj_with_mqa", RANK + ROPE, WIDTH)
    yield "self_attn.kv_a_layernorm.weight", ("BF16", (RANK,))
    yield from matrix("self_attn.kv_b_proj", HEADS * 2 * HEAD, RANK)
    yield from matrix("self_attn.o_proj", WIDTH, HEADS * HEAD)
    yield "post_attention_layernorm.weight", ("BF16", (WIDTH,))
    if number < DENSE:
        yield from gated("mlp", INNER)
        return
    yield "mlp.gate.weight", ("BF16", (EXPERTS, WIDTH))
    yield "mlp.gate.e_score_correction_bias", ("F32", (EXPERTS,))
    for expert in range(EXPERTS):
        yield from gated(f"mlp.experts.{expert}", EXPERT_INNER)
    yield from gated("mlp.shared_experts", EXPERT_INNER)


def model() -> Iterator[tuple[str, Form]]:
    """Yield all tensors."""
    yield "model.embed_tokens.weight", ("BF16", (WORDS, WIDTH))
    for number in range(LAYERS):
        yield from ((f"model.layers.{number}.{name}", form) for name, form in layer(number))
    yield "model.norm.weight", ("BF16", (WIDTH,))
    yield "lm_head.weight", ("BF16", (WORDS, WIDTH))


def write_sparse(directory: Path) -> None:
    """Write headers, index and config; where the weights would be, there are holes."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2))
    tensors = [(name, form, BYTES[form[0]] * prod(form[1])) for name, form in model()]
    total = sum(nbytes for _, _, nbytes in tensors)
    shards: list[dict[str, object]] = [{"__metadata__": {"format": "pt"}}]
    sizes, weight_map = [0], dict[str, int]()
    for name, (dtype, shape), nbytes in tensors:
        if sum(sizes) > total * len(shards) / SHARDS:
            shards.append({"__metadata__": {"format": "pt"}})
            sizes.append(0)
        shards[-1][name] = {"dtype": dtype, "shape": shape, "data_offsets": [sizes[-1], sizes[-1] + nbytes]}
        sizes[-1] += nbytes
        weight_map[name] = len(shards)
    names = [f"model-{number:05}-of-{len(shards):06}.safetensors" for number in range(1, len(shards) + 1)]
    for file, header, size in zip(names, shards, sizes, strict=True):
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        with (directory / file).open("wb") as out:
            out.write(len(raw).to_bytes(8, "little") + raw)
            out.truncate(8 + len(raw) + size)
    index = {"metadata": {"total_size": total}, "weight_map": {name: names[at - 1] for name, at in weight_map.items()}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    print(f"{len(tensors):,} tensors, {total / 1e9:.0f} GB in {len(shards)} shards")


def loads_headers(directory: Path) -> dict[str, float]:
    """Return the CPU seconds that `json.loads` takes for all headers, however they came to be read."""
    raw = []
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            raw.append(file.read(int.from_bytes(file.read(8), "little")))
    start = time.process_time()
    for header in raw:
        json.loads(header)
    return {"json.loads": time.process_time() - start}


def edits(directory: Path) -> dict[str, float]:
    """Return the CPU seconds of edits in an open session: the slowest preview of several, applying and undoing it."""
    from surgeon.session import Session

    session = Session.open(str(directory))
    found: dict[str, float] = {}

    def timed(name: str, act: Callable[[], object]) -> None:
        start = time.process_time()
        act()
        found[name] = max(found.get(name, 0.0), time.process_time() - start)

    for operation, fields in EDITS.items():
        step = session.step(operation, fields)
        timed("preview", partial(session.preview, step))
        timed("apply", partial(session.apply, step))
        timed("undo", lambda: (session.undo(), session.plan))
        session.redo()
    session.close()
    return found


def of_child(words: Sequence[str], environment: dict[str, str]) -> dict[str, float]:
    """Run this file in a process of its own and return what it measured."""
    command = [sys.executable, "-m", "tests.benchmarks.plan", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return {name: float(seconds) for name, seconds in json.loads(done.stdout).items()}


def of_command(words: Sequence[str], environment: dict[str, str]) -> float:
    """Return the CPU seconds of a whole process of surgeon."""
    process = subprocess.Popen([sys.executable, "-m", "surgeon", *words], stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"surgeon {' '.join(words)} failed")
    return used.ru_utime + used.ru_stime


def compare(directory: Path, rounds: int, environment: dict[str, str]) -> dict[str, float]:
    """Let all take turns, and return medians."""
    seconds: dict[str, list[float]] = {}
    commands = {
        "inspect": ["inspect", str(directory)],
        "dry run": ["prune", str(directory), "--layers", "5", "--dry-run"],
    }
    for words in commands.values():
        of_command(words, environment)  # what is compiled now need not be again
    for _ in range(rounds):
        found = of_child(["--loads", str(directory)], environment)
        found |= {name: of_command(words, environment) for name, words in commands.items()}
        found |= of_child(["--edits", str(directory)], environment)
        for name, taken in found.items():
            seconds.setdefault(name, []).append(taken)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    """Measure and clean up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loads", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--edits", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loads or options.edits:
        print(json.dumps(loads_headers(options.loads) if options.loads else edits(options.edits)))
        return
    with tempfile.TemporaryDirectory(prefix="surgeon-benchmark-") as name:
        place = Path(name)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPYCACHEPREFIX": str(place / "compiled"), "SURGEON_STATE": str(place / "state")}
        write_sparse(place / "model")
        found = compare(place / "model", options.rounds, environment)
    loads = found["json.loads"]
    for what, taken in found.items():
        ratio = f"{taken / loads:8.2f} × json.loads" if what in ("inspect", "dry run") else ""
        print(f"{what:<11}{taken * 1000:8.1f} ms{ratio}")


if __name__ == "__main__":
    main()
