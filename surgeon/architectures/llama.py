"""Llama and the families built like it: pre-norm, separate projections, one residual stream."""

from surgeon.core.structure.structure import Family

FAMILY = Family(model_types=("llama", "mistral"))
