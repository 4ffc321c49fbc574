"""The experiments: which arms, and which figure of theirs is compared."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.reproduce import rankings
from tests.reproduce.arms import Arm, Change, Plain, steps_named

LAYERS = 30
MATRICES = ("attention.query", "attention.key", "attention.value", "attention.output", "mlp.gate", "mlp.up", "mlp.down")


@dataclass(frozen=True)
class Figure:
    """A column of an experiment's table: the evaluation at `index`, its value `name`; lower is better unless said."""

    title: str
    index: int
    name: str


@dataclass(frozen=True)
class Experiment:
    """Arms that differ in one thing, run with the same seeds; `note` says what else differs, where something does."""

    name: str
    asks: str
    arms: tuple[Arm, ...]
    figures: tuple[Figure, ...]
    seconds: bool = False
    note: str = ""


def _set(operation: str, **values: Any) -> Change:
    def change(plain: Plain, seed: int) -> None:
        del seed
        for fields in steps_named(plain, operation):
            fields.update(values)

    return change


def _without(*operations: str) -> Change:
    def change(plain: Plain, seed: int) -> None:
        del seed
        plain["steps"] = [step for step in plain["steps"] if not set(operations) & set(step)]

    return change


def _first(*steps: Mapping[str, Any]) -> Change:
    def change(plain: Plain, seed: int) -> None:
        del seed
        plain["steps"] = [*map(dict, steps), *plain["steps"]]

    return change


def _matrices(order: str, share: int = 30) -> Change:
    def change(plain: Plain, seed: int) -> None:
        (fields,) = steps_named(plain, "masked_lora")
        if order in ("highest", "lowest"):
            ranked = dict(fields["matrices"])
            del ranked["highest"]
            fields["matrices"] = {order: f"{share}%", **ranked}
            return
        every = [f"{layer}.{role}" for layer in range(LAYERS) for role in MATRICES]
        count = len(every) if order == "all" else round(share / 100 * len(every))
        fields["matrices"] = ",".join(sorted(random.Random(seed).sample(every, count)))

    return change


def _random_layers(plain: Plain, seed: int) -> None:
    """Freeze as many layers as the gain curve does with this seed, but any."""
    (fields,) = steps_named(plain, "freeze")
    count = rankings.frozen_by_gain(fields["layers"], plain["data"], seed)
    fields["layers"] = ",".join(map(str, sorted(random.Random(seed).sample(range(LAYERS), count))))


def _truncated_after(plain: Plain, seed: int) -> None:
    del seed
    steps = plain["steps"]
    truncate = next(step for step in steps if "truncate" in step)
    steps.remove(truncate)
    steps.insert(-1, truncate)


def _facts(plain: Plain, seed: int) -> None:
    """Inject occupation codes in place of metamath; what was trained on is asked, since facts cannot be guessed."""
    del seed
    plain["data"]["facts"] = "data/occupation_codes.jsonl"
    for fields in steps_named(plain, "train"):
        fields |= {"objective": "sft", "data": "facts"}
    first, _ = steps_named(plain, "evaluate")
    first |= {"metric": "response_perplexity", "data": "facts", "rows": 60}


def _head_and_last_three(plain: Plain, seed: int) -> None:
    """Heal as in arXiv:2411.15558: the head, which is untied for it, the final norm and the last three layers."""
    del seed
    steps: list[Plain] = [step for step in plain["steps"] if not {"masked_lora", "merge_adapters"} & set(step)]
    (at,) = (at for at, step in enumerate(steps) if "train" in step)
    steps[at]["train"]["learning_rate"] = 1e-4
    free = {"freeze": {"layers": "except last 3", "outside": ["embedding"]}}
    plain["steps"] = [*steps[:at], {"untie": {}}, free, *steps[at:]]


_EVEN = (3, 7, 11, 15, 19, 23, 27)

_ONLY_INSERTED = _set("freeze", **{"except": "inserted"})
_TENTH_9 = _set("truncate", deciles=[9])

ILA = Experiment(
    "ila", "Do matrices that ILA ranks high adapt better than others?",
    (
        *(Arm(f"{order} 30 %", "ila.yaml", (_matrices(order),)) for order in ("highest", "random", "lowest")),
        Arm("all matrices", "ila.yaml", (_matrices("all"),)),
    ),
    (Figure("held-out NLL of answers", 0, "nll"),),
    note="The three shares are of 210 matrices, not of weights: where MLP matrices rank high, which are larger, the "
    "highest have more weights to train than the lowest.",
)  # fmt: skip
ALLO = Experiment(
    "allo", "Do the most-changed weights learn preferences better than others?",
    (
        Arm("most-changed 10 %", "allo.yaml"),
        Arm("random 10 %", "allo.yaml", (_set("mask_weights", order="random"),)),
        Arm("least-changed 10 %", "allo.yaml", (_set("mask_weights", order="lowest"),)),
        Arm("all weights", "allo.yaml", (_without("mask_weights"),)),
    ),
    (Figure("reward accuracy (higher is better)", 0, "reward_accuracy"), Figure("reward margin", 0, "reward_margin")),
)  # fmt: skip
_SIZES = (
    "S placement trains eight layers, 28.3 million weights: seven new ones, and the one that the last two are folded "
    "into. The next two arms train seven, 24.8 million, and LoRA of rank 81 on every matrix has 24.7 million."
)
SLAYER = Experiment(
    "slayer", "Where do new layers take up a domain best, and what is forgotten?",
    (
        Arm("S placement", "slayer.yaml"),
        Arm("S placement, nothing pruned", "slayer.yaml", (_without("prune"), _ONLY_INSERTED)),
        Arm("even placement", "slayer.yaml", (
            _without("prune"), _set("expand", after=list(_EVEN)), _ONLY_INSERTED)),
        Arm("LoRA of equal size", "slayer.yaml", (
            _without("prune", "expand", "freeze"), _first({"masked_lora": {"layers": "all", "rank": 81, "alpha": 162}}),
            _set("train", learning_rate=3e-4))),
        Arm("full tuning", "slayer.yaml", (_without("prune", "expand", "freeze"), _set("train", learning_rate=5e-5))),
        Arm("untouched", "slayer.yaml", (_without("prune", "expand", "freeze", "train"),)),
    ),
    (Figure("NLL, metamath", 0, "nll"), Figure("NLL, prose", 1, "nll")),
    note=_SIZES,
)  # fmt: skip
FACTS = Experiment(
    "slayer_facts", "The same with facts that cannot be guessed (occupation codes)",
    tuple(replace(arm, changes=(*arm.changes, _facts)) for arm in SLAYER.arms if "pruned" not in arm.name),
    (Figure("NLL, the trained facts", 0, "nll"), Figure("NLL, prose", 1, "nll")),
    note="Sixty rows, each trained on twice; all of them are asked.",
)  # fmt: skip
FREEZING = Experiment(
    "semantic_freezing", "Is the layer that the gain curve names a good place to stop freezing?",
    (
        Arm("freeze up to the gain's peak", "semantic_freezing.yaml"),
        Arm("freeze as many layers at random", "semantic_freezing.yaml", (_random_layers,)),
        Arm("train everything", "semantic_freezing.yaml", (_without("freeze"),)),
    ),
    (Figure("held-out NLL of answers", 0, "nll"),), seconds=True,
    note="Where the peak is depends on the rows that are read: with seeds 0, 1 and 2 it freezes 21, 21 and 25 layers "
    "of 30, and so does the second arm. The embedding, which is the head too, is trained in the third arm alone.",
)  # fmt: skip
SMALL = Experiment(
    "small_singular_values", "Does fine-tuning mend what truncation took away?",
    (
        Arm("truncated before, smallest tenth", "small_singular_values.yaml"),
        Arm("truncated before, tenth 9", "small_singular_values.yaml", (_TENTH_9,)),
        Arm("truncated after, smallest tenth", "small_singular_values.yaml", (_truncated_after,)),
        Arm("truncated after, tenth 9", "small_singular_values.yaml", (_TENTH_9, _truncated_after)),
        Arm("not truncated", "small_singular_values.yaml", (_without("truncate"),)),
    ),
    (Figure("NLL of answers before fine-tuning", 0, "nll"), Figure("NLL of answers at the end", 1, "nll")),
)  # fmt: skip
HEALING = Experiment(
    "prune_and_heal", "Which quarter of the layers can go, before and after healing?",
    (
        Arm("lowest by block_influence", "prune_and_heal.yaml"),
        Arm("lowest by removal", "prune_and_heal.yaml", (
            _set("prune", layers={"lowest": 8, "by": "removal", "data": "prose", "protect": ["first", "last"]}),)),
        Arm("tail, the last kept", "prune_and_heal.yaml", (_set("prune", layers="21-28"),)),
        Arm("tail", "prune_and_heal.yaml", (_set("prune", layers="last 8"),)),
        Arm("lowest by block_influence; head and last three healed", "prune_and_heal.yaml", (_head_and_last_three,)),
        Arm("lowest by block_influence; healed by distillation", "prune_and_heal.yaml", (
            _set("train", objective="distill"),)),
    ),
    (Figure("NLL before", 0, "nll"), Figure("NLL pruned", 1, "nll"), Figure("NLL healed", 2, "nll")),
)  # fmt: skip
EXPERIMENTS = (ILA, ALLO, SLAYER, FACTS, FREEZING, SMALL, HEALING)
