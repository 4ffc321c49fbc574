"""BART and the encoder-decoders that, like it, normalise the residual stream after each sublayer."""

from surgeon.architectures.shared import POST_NORM
from surgeon.core.structure.structure import Family, StackRule

FAMILIES = (
    Family(model_types=("bart", "blenderbot-small", "marian", "mvp", "plbart"), no_identity=POST_NORM),
    Family(
        model_types=("trocr",),
        no_identity=POST_NORM,
        # Here num_hidden_layers means the decoder's layers.
        stacks=(StackRule("decoder", r"(?:.*\.)?decoder\.layers", ("decoder_layers", "num_hidden_layers")),),
    ),
)
