"""BLT: the layers of its global transformer, over patches; encoder and decoder, over bytes, stay as they are."""

from surgeon.core.structure.structure import Family, StackRule

FAMILY = Family(
    model_types=("blt_global_transformer",),
    stacks=(StackRule("global", r"(?:.*\.)?global_transformer\.layers", ("num_hidden_layers",)),),
)
