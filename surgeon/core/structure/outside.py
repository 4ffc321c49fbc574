"""Which of the tensors outside the layers are the embedding, the output head or the rest, by their names."""

from __future__ import annotations

_HEADS = ("head.weight", "decoder.weight")
_HEAD_ENDS = (
    "output.weight", "output_projection.weight", "proj_out.weight", "predictions.decoder.weight", "lm_loss.weight",
    "pred_layer.proj.weight",
)  # fmt: skip
_CTRL_EMBEDDING = "transformer.w.weight"


def outside_kind(name: str) -> str:
    """Return which of `draft.OUTSIDE` a tensor outside the layers is."""
    lowered = name.lower()
    if "lm_head" in lowered or "embed_out" in lowered or lowered in _HEADS or lowered.endswith(_HEAD_ENDS):
        return "head"
    if any(part in lowered for part in ("embed", "wte", "wpe")) or lowered == _CTRL_EMBEDDING:
        return "embedding"
    return "norm"
