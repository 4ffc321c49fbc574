"""Likelihoods and divergences of a model whose layers lie on disk: one layer in memory, pushed over all sequences.

What follows the last layer treats every token on its own, so that few logits need to be in memory at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from surgeon.backend.data.tokens import Tokens
from surgeon.backend.evaluation.divergence import AsBase, divergence_of, log_probs
from surgeon.backend.evaluation.model_outputs import MOST_LOGITS
from surgeon.backend.hidden_states import HiddenStates
from surgeon.backend.model.layer_runner import LayerRunner
from surgeon.backend.model.losses import IGNORED
from surgeon.backend.scoring.layer_passes import push_layers
from surgeon.core.job_context import JobContext

_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class StreamedModel:
    """A model arranged as a draft has it, its layers on disk.

    layers: the list that holds them, whichever way it is arranged.   memory: bytes of hidden states kept in memory.
    """

    model: nn.Module
    as_base: AsBase
    layers: nn.ModuleList
    memory: int
    job: JobContext

    @torch.inference_mode()
    def log_likelihoods(self, sequences: Sequence[Tokens], words: int) -> list[float]:
        """Return the summed log-probability of each sequence's labels, in nats; `words` is the vocabulary's size."""
        found = [0.0] * len(sequences)
        batches = _batches(sequences)
        with HiddenStates(self.memory // 2) as states:
            self._push(sequences, batches, states, 0)
            runner = self._runner(sequences, batches)
            for number, row, span in _spans(sequences, batches, words):
                sequence = sequences[batches[number][row]]
                logits_NV, labels_N = self._logits(runner, sequence, states.get(0, number)[row : row + 1], span)
                picked_N = logits_NV.gather(1, labels_N[:, None])[:, 0].double() - logits_NV.logsumexp(1).double()
                found[batches[number][row]] += picked_N.sum().item()
        return found

    @torch.inference_mode()
    def divergences(self, sequences: Sequence[Tokens], words: int) -> list[list[float]]:
        """Return for each sequence what `divergence.divergences` does; each arrangement reads every layer once."""
        found = [[0.0, 0.0] for _ in sequences]
        batches = _batches(sequences)
        with HiddenStates(self.memory // 2) as states:
            with self.as_base():
                self._push(sequences, batches, states, 0)
                base = self._runner(sequences, batches)
            self._push(sequences, batches, states, 1)
            edited = self._runner(sequences, batches)
            for number, row, span in _spans(sequences, batches, words // 2 + 1):
                sequence = sequences[batches[number][row]]
                with self.as_base():
                    expected_NV, _ = self._logits(base, sequence, states.get(0, number)[row : row + 1], span)
                got_NV, _ = self._logits(edited, sequence, states.get(1, number)[row : row + 1], span)
                kl_N, same_N = divergence_of(log_probs(expected_NV), log_probs(got_NV))
                sums = found[batches[number][row]]
                sums[0] += kl_N.sum().item()
                sums[1] += same_N.sum().item()
        return found

    def _runner(self, sequences: Sequence[Tokens], batches: Sequence[Sequence[int]]) -> LayerRunner:
        runner = LayerRunner(self.model, self.layers, self._tokens(sequences, batches[0]))
        runner.require_plain_end(self._tokens(sequences, batches[0]))
        return runner

    def _push(
        self, sequences: Sequence[Tokens], batches: Sequence[Sequence[int]], states: HiddenStates, variant: int
    ) -> None:
        """Push all batches through all layers, and keep what comes out of the last."""
        tokens = [self._tokens(sequences, batch) for batch in batches]
        runner = LayerRunner(self.model, self.layers, tokens[0])
        for one in push_layers(runner, tokens, self.job.is_cancelled, self.memory // 2):
            if one.layer == len(self.layers) - 1:
                states.put(variant, one.batch, one.hidden_out_BTD)
            if one.last:
                self.job.progress(one.layer + 1, len(self.layers), "layers", "evaluating")

    def _tokens(self, sequences: Sequence[Tokens], batch: Sequence[int]) -> torch.Tensor:
        device = next(one.device for one in self.model.parameters() if not one.is_meta)
        return torch.tensor([sequences[number].tokens for number in batch], device=device)

    def _logits(
        self, runner: LayerRunner, sequence: Tokens, hidden_1TD: torch.Tensor, span: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 logits (N, V) and labels (N,) of the positions of a span that have a label."""
        self.job.stop_if_cancelled()
        labels_T = torch.tensor(sequence.labels[span], device=hidden_1TD.device)
        tokens_1T = torch.tensor([sequence.tokens[span]], device=hidden_1TD.device)
        logits_TV = runner.logits(tokens_1T, hidden_1TD[:, span])[0]
        return logits_TV[labels_T != IGNORED].float(), labels_T[labels_T != IGNORED]


def _batches(sequences: Sequence[Tokens]) -> list[list[int]]:
    """Return numbers of sequences that go together: only those of one length, so that nothing has to be padded."""
    alike: dict[int, list[int]] = defaultdict(list)
    for number, one in enumerate(sequences):
        alike[len(one.tokens)].append(number)
    batches = []
    for length, numbers in sorted(alike.items(), reverse=True):
        size = max(1, _BATCH_TOKENS // length)
        batches += [numbers[at : at + size] for at in range(0, len(numbers), size)]
    return batches


def _spans(
    sequences: Sequence[Tokens], batches: Sequence[Sequence[int]], words: int
) -> Iterator[tuple[int, int, slice]]:
    """Yield number of a batch, row in it, and a span of tokens whose logits may be there at once."""
    most = max(1, MOST_LOGITS // words)
    for number, batch in enumerate(batches):
        for row, sequence in enumerate(batch):
            for at in range(0, len(sequences[sequence].tokens), most):
                yield number, row, slice(at, at + most)
