"""RWKV: a norm of its own in the first layer; numbers are rescaled every so many layers."""

from surgeon.core.structure.boundary_layer_tensors import EndTensor
from surgeon.core.structure.layer_dependencies import IndexDependent
from surgeon.core.structure.structure import Family

FAMILY = Family(
    model_types=("rwkv",),
    roles=(
        (r"attention\.(?:key|value|receptance)\.weight", "attention.inner"),
        (r"attention\.output\.weight", "attention.output"),
        (r"feed_forward\.value\.weight", "mlp.down"),
        (r"feed_forward\.key\.weight", "mlp.up"),
        (r"feed_forward\.receptance\.weight", "mlp.gate"),
        (r".*\.time_\w+", "attention.inner"),
    ),
    fields=(
        IndexDependent("rescale_every", lambda config: bool(config.get("rescale_every", 6))),
        EndTensor("pre_ln, a norm of its own", r"pre_ln\..+"),
    ),
)
