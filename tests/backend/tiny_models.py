"""Tiny random models of the ten families, saved as checkpoints, and what they must compute, told without surgeon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

LAYERS = 6
WORDS = 96
_WIDE: Mapping[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": _WIDE,
    "mistral": {**_WIDE, "sliding_window": 8},
    "qwen2": {**_WIDE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3, "layer_types": None},
    "qwen3": {**_WIDE, "head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {**_WIDE, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_WIDE, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi3": {**_WIDE, "original_max_position_embeddings": 128},
    "gpt2": {
        "vocab_size": WORDS, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "gpt_neox": {**{key: value for key, value in _WIDE.items() if key != "num_key_value_heads"}, "rotary_pct": 0.5},
    "mixtral": {**_WIDE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
}  # fmt: skip
FAMILIES = tuple(CONFIGS)
PLACES = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}


def make_tiny(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """Return a model whose every weight, norms and biases too, is random enough that a mistake shows."""
    torch.manual_seed(FAMILIES.index(family))
    config = AutoConfig.for_model(family, **{**CONFIGS[family], **changes})
    model: nn.Module = AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            if parameter.dim() > 1:
                parameter.copy_(0.15 * noise)
            else:
                parameter.add_(0.1 * noise)
    return model.to(dtype)


def save_tiny(family: str, directory: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Save such a model and return its directory."""
    model: Any = make_tiny(family, dtype, **changes)
    model.save_pretrained(directory)
    return directory


def load_plainly(path: Path) -> Any:
    """Load with plain transformers; nothing may be missing, unexpected or of another shape."""
    auto: Any = AutoModelForCausalLM
    model, report = auto.from_pretrained(path, dtype="auto", output_loading_info=True)
    assert not any(report.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def write_tokenizer(directory: Path, *, bos: bool = False, template: str | None = None) -> None:
    """Write a tokenizer of WORDS words, one per character."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    characters = [chr(code) for code in range(32, 32 + WORDS - len(special))]
    vocabulary = {word: number for number, word in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = template
    fast.save_pretrained(directory)


def layers_of(model: nn.Module, family: str) -> nn.ModuleList:
    """Return the list of a model's layers."""
    found = model.get_submodule(PLACES.get(family, "model.layers"))
    assert isinstance(found, nn.ModuleList)
    return found


def some_tokens(sequences: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Return random token ids, (sequences, length)."""
    return torch.randint(3, WORDS, (sequences, length), generator=torch.Generator().manual_seed(seed))


Call = tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]


class _Passing(nn.Module):
    """Gives back what it was given, and notes how it was called."""

    def __init__(self, calls: list[Call], layer: nn.Module) -> None:
        super().__init__()
        self.calls = calls
        for name in ("attention_type", "layer_type"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls.append((hidden, args, kwargs))
        return hidden


class _Giving(nn.Module):
    """Gives back one hidden state, whatever it was given."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.hidden


@contextmanager
def _with_layers(layers: nn.ModuleList, new: Sequence[nn.Module]) -> Iterator[None]:
    old = list(layers)
    try:
        for position, layer in enumerate(new):
            layers[position] = layer
        yield
    finally:
        for position, layer in enumerate(old):
            layers[position] = layer


@torch.inference_mode()
def reference_logits(model: nn.Module, family: str, order: Sequence[int], tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return what the base computes if its own layers are called in `order`, each as the base calls it."""
    layers = layers_of(model, family)
    real = list(layers)
    calls: list[Call] = []
    with _with_layers(layers, [_Passing(calls, layer) for layer in real]):
        model(input_ids=tokens_BT, use_cache=False)
    hidden = calls[0][0]
    for index in order:
        _, args, kwargs = calls[index]
        output = real[index](hidden, *args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
    passing = [_Passing([], layer) for layer in real[:-1]]
    with _with_layers(layers, [*passing, _Giving(hidden)]):
        logits: torch.Tensor = model(input_ids=tokens_BT, use_cache=False).logits
    return logits
