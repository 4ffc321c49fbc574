"""The command table."""

from __future__ import annotations

import inspect
from collections import Counter

from textual.actions import parse

from surgeon.core.recipe.operation import operations
from surgeon.ui.command_line import command_names
from surgeon.ui.commands import commands
from surgeon.ui.screens.main_screen import MainScreen


def test_no_key_is_used_twice() -> None:
    counts = Counter(key for command in commands() for key in command.keys)
    assert [key for key, count in counts.items() if count > 1] == []
    ids = Counter(command.id for command in commands())
    assert max(ids.values()) == 1


def test_every_operation_has_its_key_and_its_word() -> None:
    for name, kind in operations().items():
        assert any(command.id == f"draft.{name}" and command.keys == (kind.key,) for command in commands())
        assert name.replace("_", "-") in command_names()


def test_no_two_words_of_the_key_line_are_the_same() -> None:
    """In a mode that shows both."""
    for mode in ("browse", "pending"):
        words = Counter(command.footer for command in commands() if command.footer and mode in command.modes)
        assert [word for word, count in words.items() if count > 1] == []


def test_every_command_has_its_action_on_the_main_screen() -> None:
    for command in commands():
        _, name, arguments = parse(command.action)
        method = getattr(MainScreen, f"action_{name}")
        inspect.signature(method).bind(None, *arguments)
