"""Mixtral: a router and experts that are stored one by one and stacked in memory."""

from surgeon.core.structure import Family

FAMILY = Family(
    model_types=("mixtral",),
    in_memory=(
        (r"\.block_sparse_moe\.experts\.\d+\.w[13]\.weight$", ".mlp.experts.gate_up_proj"),
        (r"\.block_sparse_moe\.experts\.\d+\.w2\.weight$", ".mlp.experts.down_proj"),
        (r"\.block_sparse_moe\.gate\.", ".mlp.gate."),
    ),
)
