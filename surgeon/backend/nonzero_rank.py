"""What every process but the first does: it takes part in learning steps until the first process ends."""

from __future__ import annotations

from typing import NoReturn

from surgeon.backend.distributed import serve_as_follower
from surgeon.backend.training.learning_steps import join_training


def follow() -> NoReturn:
    """Train along whenever the first process asks for it, until it has gone."""
    serve_as_follower(join_training)
