"""Scores of the demo model: how far ILA's rankings agree, beside chance, and where freezing ends."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.scoring.context import Settings
from surgeon.backend.scoring.score_runner import measure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.model_location import locate_model
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.scoring.ranking_agreement import jaccard, top
from surgeon.core.scoring.requests import request_text
from surgeon.core.scoring.score import END_OF_FREEZING
from tests.jobs import job_context
from tests.reproduce.arms import RECIPES, Arm, plain_recipe, steps_named

SOURCES = ("instructions.jsonl", "gsm8k.jsonl")


def ila_rankings(seeds: int) -> dict[str, Any]:
    """Measure `ila` on two data sets with some seeds; return every matrix's score, by `DATA/SEED`."""
    plain = plain_recipe(Arm("ranking", "ila.yaml"), seed=0)
    (fields,) = steps_named(plain, "masked_lora")
    asked = request_text(fields["matrices"]["by"])
    draft = _demo()
    found: dict[str, Any] = {}
    for source in SOURCES:
        for seed in range(min(seeds, 2)):
            settings = Settings(root=RECIPES, data=str(Path("data") / source), seed=seed)
            (score,) = measure(draft, [asked], settings, job_context())
            found[f"{source}/{seed}"] = {f"{layer}.{name}": value for layer, matrices in score.matrices.items()
                                         for name, value in matrices.items()}  # fmt: skip
    return found


def frozen_by_gain(selection: Mapping[str, Any], data: Mapping[str, str], seed: int) -> int:
    """Return how many layers `through highest by semantic_gain` is, measured as a run of the recipe measures it."""
    settings = Settings(root=RECIPES, data=data[selection["data"]], seed=seed)
    (score,) = measure(_demo(), [request_text(selection["by"])], settings, job_context())
    return int(score.details[END_OF_FREEZING]) + 1


def _demo() -> Draft:
    return draft_of(read_structure(open_checkpoint(locate_model("demo"))))


def overlaps(rankings: dict[str, dict[str, float]], share: float) -> list[tuple[str, float]]:
    """Return the Jaccard overlap of the top share of every two rankings, labelled by what differs."""
    found = []
    for (one, left), (other, right) in combinations(sorted(rankings.items()), 2):
        same_data = one.partition("/")[0] == other.partition("/")[0]
        same_seed = one.partition("/")[2] == other.partition("/")[2]
        label = "seeds" if same_data else "data sets" if same_seed else "both"
        chosen, others = top(left, share), top(right, share)
        found.append((label, jaccard(chosen, others)))
    return found
