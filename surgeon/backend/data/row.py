"""The one normal form of rows, whatever file they come from: what scores, trainings and evaluations are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from surgeon.backend.data.dialogues import Message, Messages

READING = 2
"""Raised whenever a row comes to mean something else; what was learned from it before is then not taken again."""


@dataclass(frozen=True)
class Row:
    """One row: running text, or a dialogue with a right answer, a wrong one, or both.

    asked, asked_wrong: the messages before the right and before the wrong answer; they may differ.
    given: how many messages at the start are context alone, whose answers are not learned.
    rewards: weigh the tokens of the wrong answer.   choices: all answers that a question offers.
    tools, variables: what the chat template is given besides the messages.   unread: keys that nothing reads.
    since: the version of this reading in which the row came to mean what it means.
    """

    where: str
    form: str = ""
    text: str | None = None
    asked: Messages = ()
    right: Message | None = None
    wrong: Message | None = None
    asked_wrong: Messages = ()
    given: int = 0
    rewards: tuple[float, ...] | None = None
    choices: tuple[str, ...] = ()
    tools: tuple[Any, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    since: int = 1

    @property
    def messages(self) -> Messages:
        """The dialogue with its right answer, or else with the wrong one."""
        return self.ended_rightly if self.right is not None else self.ended_wrongly

    @property
    def ended_rightly(self) -> Messages:
        """The dialogue with its right answer."""
        return (*self.asked, self.right) if self.right is not None else self.asked

    @property
    def ended_wrongly(self) -> Messages:
        """The dialogue with its wrong answer."""
        return (*self.asked_wrong, self.wrong) if self.wrong is not None else self.asked
