"""What a loaded model says to what an evaluation puts before it: log-likelihoods, and greedy answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from surgeon.backend.data.examples import collate
from surgeon.backend.data.tokens import Tokens
from surgeon.backend.model.losses import IGNORED

MOST_LOGITS = 2**25
"""How many logits may be there at once."""

Tell = Callable[[int], None]
"""Told how many sequences are done; raises to stop."""


@torch.inference_mode()
def log_likelihoods(model: nn.Module, sequences: Sequence[Tokens], words: int, tell: Tell) -> list[float]:
    """Return the summed log-probability of each sequence's labels, in nats; `words` is the vocabulary's size."""
    device = next(model.parameters()).device
    found = [0.0] * len(sequences)
    done = 0
    for numbers in batches_by_length([len(one.tokens) for one in sequences], max(1, MOST_LOGITS // words)):
        batch = collate([(sequences[number],) for number in numbers], numbers, device)
        logits_BTV = model(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT, use_cache=False).logits
        sums = _summed_log_probs(logits_BTV, batch.labels_BT)
        for number, value in zip(numbers, sums.tolist(), strict=True):
            found[number] = value
        done += len(numbers)
        tell(done)
    return found


def _summed_log_probs(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return the sum of the log-probabilities of each sequence's labels, float64, (B,).

    Not by cross_entropy: on a CPU it adds up a large vocabulary in float32 one by one, and its mean over tokens is then
    off by 1e-5 nats, always to the same side. logsumexp adds in pairs and is off by less than 1e-7.
    """
    counted_BT = labels_BT != IGNORED
    logits_NV, labels_N = logits_BTV[counted_BT].float(), labels_BT[counted_BT]
    values_N = logits_NV.gather(1, labels_N[:, None])[:, 0].double() - logits_NV.logsumexp(1).double()
    return (
        torch.zeros(labels_BT.shape, dtype=torch.float64, device=labels_BT.device)
        .masked_scatter(counted_BT, values_N)
        .sum(dim=1)
    )


def batches_by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield numbers of sequences that fit together into about so many tokens, alike in length, the longest first."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


@torch.inference_mode()
def greedy_answers(model: Any, tokenizer: Any, prompts: Sequence[Tokens], most: int, tell: Tell) -> list[str]:
    """Return what the model answers to each prompt: the likeliest token each time, until an end token or `most`.

    Only prompts of one length go together, so that nothing has to be padded: not every family can take that.
    """
    device = next(model.parameters()).device
    ends = end_tokens(model, tokenizer)
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, num_beams=1, max_new_tokens=most, eos_token_id=ends or None, pad_token_id=filler
    )
    together: dict[int, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        together[len(prompt.tokens)].append(number)
    found = [""] * len(prompts)
    done = 0
    for length, numbers in sorted(together.items()):
        size = max(1, 4096 // (length + most))
        for part in (numbers[at : at + size] for at in range(0, len(numbers), size)):
            asked_BT = torch.tensor([prompts[number].tokens for number in part], device=device)
            told_BT = model.generate(
                input_ids=asked_BT, attention_mask=torch.ones_like(asked_BT), generation_config=greedy
            )
            for number, tokens in zip(part, told_BT[:, length:].tolist(), strict=True):
                found[number] = tokenizer.decode(_until(tokens, ends), skip_special_tokens=True)
            done += len(part)
            tell(done)
    return found


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: those of the model's generation config, and the tokenizer's."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return sorted({int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None})


def _until(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    stop = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:stop])
