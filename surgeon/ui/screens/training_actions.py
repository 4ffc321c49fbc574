"""Steps that learn, on screen: the worker carries them out before they are applied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.recipe import Step
from surgeon.errors import SurgeonError
from surgeon.ui.commands import command_of
from surgeon.ui.state.formatting import count_text, seconds_text
from surgeon.ui.state.pending_step import Proposal, step_text

if TYPE_CHECKING:
    from surgeon.ui.screens.actions import Errands


class Lessons:
    """Applies what is drafted, at once or once it is learned."""

    def __init__(self, errands: Errands) -> None:
        self.errands, self.room = errands, errands.room
        self.under_way = False

    @property
    def kept(self) -> str:
        """What is left of a job that was stopped."""
        return "its state is kept: the same step goes on from there" if self.under_way else ""

    def apply(self) -> None:
        """Apply the draft, if it can be applied."""
        self.room.judge()
        if self.room.proposal is not None:
            self.do(self.room.proposal)

    def do(self, proposal: Proposal) -> None:
        """Apply a judged proposal; one that learns is carried out first."""
        preview = proposal.preview
        if preview is None:
            return
        if not isinstance(preview.step.operation, LearningStep):
            self.room.do(proposal)
            self.errands.screen.show()
            return
        reason = command_of("export").reason(self.room)
        if reason is None:
            self.room.leave()
            self._learn(_title(preview.step), preview.step)
        else:
            self.room.say(reason, "warning")
            self.errands.screen.show_message()

    def catch_up(self) -> None:
        """Carry out the applied steps that have still to be learned."""
        self._learn("learn what is pending", None)

    def _learn(self, title: str, step: Step | None) -> None:
        screen = self.errands.screen
        device = {"device": screen.surgeon.device} if screen.surgeon.device else {}
        self.room.say(f"{title}: its result becomes a step once it is there\nx stops it, and it can go on later")
        self.errands.start("learn", self.room.session.learn_job(step, **device), title, self._learned)
        screen.show()

    def _learned(self, result: Mapping[str, Any]) -> None:
        if not self.take(result):
            return
        reports = list(result["reports"].values())
        step = self.room.session.steps[self.room.session.position - 1]
        self.room.say(f"applied: {step_text(step)} · u undoes\n{report_text(reports[-1])}", "good")

    def take(self, result: Mapping[str, Any]) -> bool:
        """Take in what a job resolved; False where the steps have become others meanwhile."""
        try:
            self.room.session.take_learned(result)
        except SurgeonError as error:
            self.room.say(str(error), "bad")
            return False
        self.room.renew()
        return True


def _title(step: Step) -> str:
    objective = getattr(step.operation, "objective", None)
    name = step.operation.name.replace("_", "-")
    return f"{name} {objective.objective.name}" if objective is not None else name


def report_text(report: Mapping[str, Any]) -> str:
    """Say in a line what a learned step came to."""
    losses, held_out = report.get("losses") or [], report.get("held_out") or {}
    parts = [f"loss {losses[0]:.3f}→{losses[-1]:.3f} in {len(losses)} steps"] if losses else []
    before, after = held_out.get("before") or {}, held_out.get("after") or {}
    parts += [f"held-out {name} {before[name]:.3f}→{after[name]:.3f}" for name in after if name in before]
    if report.get("tokens"):
        parts.append(f"{count_text(report['tokens'])} tokens in {seconds_text(report.get('seconds') or 0)}")
    return " · ".join(parts)
