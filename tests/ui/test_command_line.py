"""The `:` line."""

from __future__ import annotations

import pytest

from surgeon.errors import UsageError
from surgeon.ui.command_line import completion, parse_line, score_requests


@pytest.mark.parametrize(
    ("text", "operation", "options"),
    [
        ("prune --layers 4-5", "prune", {"layers": "4-5"}),
        ("surgeon prune MODEL --layers 4-5", "prune", {"layers": "4-5"}),
        ('prune --layers "lowest 4 by block_influence"', "prune", {"layers": "lowest 4 by block_influence"}),
        ("prune --layers lowest 4 by block_influence", "prune", {"layers": "lowest 4 by block_influence"}),
        ("expand --after=3 --init copy", "expand", {"after": "3", "init": "copy"}),
        ("freeze --except inserted", "freeze", {"except": "inserted"}),
        (
            "masked-lora --layers 1 --rank 4 --roles attention,mlp.down",
            "masked_lora",
            {"layers": "1", "rank": 4, "roles": ["attention", "mlp.down"]},
        ),
    ],
)
def test_a_line_is_the_shell_s_words(text: str, operation: str, options: dict[str, object]) -> None:
    line = parse_line(text, "MODEL")
    assert (line.operation, dict(line.options)) == (operation, options)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prun --layers 3", "did you mean 'prune'"),
        ("prune --layer 3", "did you mean --layers"),
        ("evaluate 3", "belongs to no option"),
        ("prune --layers", "needs a value"),
        ('prune --layers "3', "quotation"),
        ("undo 3", "takes no words"),
        ("", "nothing is typed"),
    ],
)
def test_a_wrong_line_is_refused_in_words(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_line(text, "MODEL")


def test_a_score_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'block_influence'"):
        score_requests(("block_influense",))


def test_scores_with_settings_are_typed_as_on_the_shell() -> None:
    line = parse_line("score --by semantic_gain(gain=log,train_at_most=4),removal", "tiny")
    assert line.options["by"] == ("semantic_gain(gain=log,train_at_most=4)", "removal")
    assert score_requests(("block_removal( longest=2 )", "removal")) == ("block_removal(longest=2)", "removal")
    assert "ila" not in score_requests(("all",))


def test_completion_knows_commands_options_and_values() -> None:
    assert completion("pru") == "prune"
    assert completion("prune --lay") == "prune --layers"
    assert completion("expand --init d") == "expand --init duplicate"
    assert completion("prune --layers lowest 2 by block_i") == "prune --layers lowest 2 by block_influence"
    assert completion("") is None
