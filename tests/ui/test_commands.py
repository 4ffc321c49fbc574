"""The command table and the `:` line."""

from __future__ import annotations

from collections import Counter

import pytest

from surgeon.core.recipe.operation import operations
from surgeon.errors import UsageError
from surgeon.ui.commands import commands
from surgeon.ui.state.command_line import completion, known_scores, line_words, parse_line


def test_no_key_is_used_twice() -> None:
    counts = Counter(key for command in commands() for key in command.keys)
    assert [key for key, count in counts.items() if count > 1] == []
    ids = Counter(command.id for command in commands())
    assert max(ids.values()) == 1


def test_every_operation_has_its_key_and_its_word() -> None:
    for name, kind in operations().items():
        assert any(command.id == f"draft.{name}" and command.keys == (kind.key,) for command in commands())
        assert name.replace("_", "-") in line_words()


def test_no_two_words_of_the_key_line_are_the_same() -> None:
    """In a mode that shows both."""
    for mode in ("room", "draft"):
        words = Counter(command.footer for command in commands() if command.footer and mode in command.modes)
        assert [word for word, count in words.items() if count > 1] == []


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
        ("prune 3", "belongs to no option"),
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
        known_scores(("block_influense",))


def test_scores_with_settings_are_typed_as_on_the_shell() -> None:
    line = parse_line("score --by semantic_gain(gain=log,train_at_most=4),removal", "tiny")
    assert line.options["by"] == ("semantic_gain(gain=log,train_at_most=4)", "removal")
    assert known_scores(("block_removal( longest=2 )", "removal")) == ("block_removal(longest=2)", "removal")
    assert "ila" not in known_scores(("all",))


def test_completion_knows_commands_options_and_values() -> None:
    assert completion("pru") == "prune"
    assert completion("prune --lay") == "prune --layers"
    assert completion("expand --init d") == "expand --init duplicate"
    assert completion("prune --layers lowest 2 by block_i") == "prune --layers lowest 2 by block_influence"
    assert completion("") is None
