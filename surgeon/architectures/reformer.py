"""Reformer: reversible layers; attention and MLP each write into one of two streams, and leave it alone at 0."""

from surgeon.core.structure.structure import Family

FAMILY = Family(
    model_types=("reformer",),
    roles=((r"feed_forward\.dense\.dense\..+", "mlp.up"), (r"feed_forward\.output\.dense\..+", "mlp.down")),
)
