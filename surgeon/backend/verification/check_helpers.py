"""What checks of an export share: a check and its outcome, random prompts, and how two outputs compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surgeon.backend.model.loading import load_tokenizer
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.errors import VerifyError


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `detail` says what was seen.

    passed: None where it could not be looked at: it is not proved.   hint: what to do where it failed.
    """

    name: str
    passed: bool | None
    detail: str
    hint: str = "please report this: the export does not do what was planned"

    def require(self, where: Path) -> None:
        """Raise VerifyError if it failed."""
        if self.passed is False:
            raise VerifyError(f"{self.name}: {self.detail}", where=str(where), hint=self.hint)

    def plain(self) -> dict[str, Any]:
        """Return what a proof holds of it."""
        return {"passed": self.passed, "detail": self.detail}


Proof = dict[str, dict[str, Any]]


def random_tokens(
    model: torch.nn.Module, device: torch.device, sequences: int, length: int, seed: int = 0
) -> torch.Tensor:
    """Return random token ids of a model's vocabulary, (sequences, length)."""
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    return torch.randint(0, int(vocabulary), (sequences, length), generator=torch.Generator().manual_seed(seed)).to(
        device
    )


TEXTS = (
    'The surgeon opened the checkpoint, counted 30 layers, and said: "def f(x): return x + 1" is not prose.\n',
    "Übergröße 3½ × π ≈ 11 – 手術, عملية 🙂\n\n\t1. one\n\t2. two",
)
"""What tokenizers are compared on: prose with code in it; other scripts, signs, and white space."""
LENGTH = 32
"""How many tokens of a prompt are compared."""
_NOT_A_NUMBER = (
    "look for inf or nan in the base's weights; weights that are sound overflow in their dtype: store the base in a "
    "wider one. --no-verify writes the result unproved"
)


def token_rows(tokenizer: Any, model: torch.nn.Module, device: torch.device) -> list[torch.Tensor]:
    """Return the texts as the tokenizer cuts them, (1, at most LENGTH); none that the embedding has no row for."""
    words = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    rows = [list(tokenizer(text)["input_ids"])[:LENGTH] for text in TEXTS]
    return [torch.tensor([row], device=device) for row in rows if row and max(row) < words]


def compare(name: str, what: str, expected: torch.Tensor, found: torch.Tensor) -> Check:
    """Return the check that two outputs of `what` are equal bit for bit; the live base gave what is expected."""
    if torch.equal(expected, found):
        return Check(name, True, f"{what}: equal bit for bit")
    if expected.isnan().any():
        return Check(name, False, f"{what}: nothing to compare, the base in memory gives nan", _NOT_A_NUMBER)
    return Check(name, False, f"{what}: differ by up to {(expected.float() - found.float()).abs().max().item():.3g}")


def model_logits(model: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model, or the last hidden state of one without a head."""
    more: dict[str, Any] = {"decoder_input_ids": tokens_BT} if model.config.is_encoder_decoder else {}
    if model.can_generate():
        more["use_cache"] = False
    return model(input_ids=tokens_BT, **more)[0]  # type: ignore[no-any-return]


def reallocate_parameters(*models: torch.nn.Module) -> None:
    """Move parameters to where their own allocation puts them: some kernels round by a tensor's place in memory."""
    for model in models:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()


def working_tokenizer(base: Checkpoint) -> Any:
    """Return a checkpoint's tokenizer; None where it has none that works."""
    try:
        tokenizer = load_tokenizer(base)
        tokenizer(TEXTS[0])
    except Exception:  # transformers tells in many ways that files or libraries are missing
        return None
    return tokenizer
