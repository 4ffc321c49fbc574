"""Mixtral and the families that store experts as it does: under `block_sparse_moe`, one by one; loaded, under `mlp`."""

from surgeon.architectures.shared import MOE_IS_MLP
from surgeon.core.structure.structure import Family

FAMILIES = (
    Family(model_types=("mixtral", "minimax_m2"), in_memory=(MOE_IS_MLP,)),
    Family(model_types=("phimoe",), in_memory=((r"\.block_sparse_moe\.gate\.", ".mlp.router."), MOE_IS_MLP)),
    Family(
        model_types=("granitemoe", "granitemoehybrid", "granitemoeshared"),
        in_memory=(
            (r"\.block_sparse_moe\.input_linear\.weight$", ".block_sparse_moe.experts.gate_up_proj"),
            (r"\.block_sparse_moe\.output_linear\.weight$", ".block_sparse_moe.experts.down_proj"),
            (r"\.block_sparse_moe\.router\.layer\.", ".block_sparse_moe.router."),
        ),
    ),
    Family(
        model_types=("aria_text", "aria"),
        in_memory=(
            (r"\.experts\.fc1\.weight$", ".experts.gate_up_proj"),
            (r"\.experts\.fc2\.weight$", ".experts.down_proj"),
        ),
    ),
)
