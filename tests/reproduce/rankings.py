"""How far ILA's rankings agree across data sets and across seeds, beside chance."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

from surgeon.architectures.reading import read_structure
from surgeon.backend.bench import Settings
from surgeon.backend.measuring import measure
from surgeon.core.checkpoint import open_checkpoint
from surgeon.core.draft import draft_of
from surgeon.core.locate import locate_model
from surgeon.core.overlap import jaccard, top
from surgeon.core.score_requests import request_text
from tests.reproduce.arms import RECIPES, Arm, plain_recipe, steps_named

SOURCES = ("instructions.jsonl", "gsm8k.jsonl")


def ila_rankings(seeds: int) -> dict[str, Any]:
    """Measure `ila` on two data sets with some seeds; return every matrix's score, by `DATA/SEED`."""
    plain = plain_recipe(Arm("ranking", "ila.yaml"), seed=0)
    (fields,) = steps_named(plain, "masked_lora")
    asked = request_text(fields["matrices"]["by"])
    draft = draft_of(read_structure(open_checkpoint(locate_model("demo"))))
    found: dict[str, Any] = {}
    for source in SOURCES:
        for seed in range(min(seeds, 2)):
            settings = Settings(root=RECIPES, data=str(Path("data") / source), seed=seed)
            (score,) = measure(draft, [asked], settings, lambda _kind, _body: None, lambda: False)
            found[f"{source}/{seed}"] = {f"{layer}.{name}": value for layer, matrices in score.matrices.items()
                                         for name, value in matrices.items()}  # fmt: skip
    return found


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
