"""The forms of rows that are read, as a table.

Which form a row has is told by its keys: the first form of the table whose needed keys are all there. Keys that no
part of that form reads are kept by name, so that a person is told of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from surgeon.backend.data.form_readers import Cells, read_dialogue, read_question, read_text
from surgeon.backend.data.row import READING, Row
from surgeon.errors import DataError


@dataclass(frozen=True)
class Form:
    """One form of rows. `needs` and `may` map its parts to the keys that may stand for them, the first there counts."""

    name: str
    looks: str
    says: str
    needs: Mapping[str, tuple[str, ...]]
    may: Mapping[str, tuple[str, ...]]
    read: Callable[[Cells, str], Row]
    also: str = ""

    def cells(self, plain: Mapping[str, Any]) -> Cells | None:
        """Return the parts of a row; None where it lacks one that is needed."""
        found: dict[str, tuple[str, Any]] = {}
        for part, keys in {**self.needs, **self.may}.items():
            key = next((key for key in keys if plain.get(key) is not None), None)
            if key is not None:
                found[part] = (key, plain[key])
            elif part in self.needs:
                return None
        of_kind = all(isinstance(found[part][1], kind) for part, kind in _KINDS.items() if part in self.needs)
        return found if of_kind else None


_KINDS: dict[str, type] = {"text": str, "rewards": list}
"""What a part has to be for the row to be of a form that needs it."""


def row_of(plain: Any, where: str) -> Row:
    """Return the row that plain data is.

    Raises:
        DataError: it has none of the forms, or is no such row of its form.
    """
    if not isinstance(plain, Mapping):
        raise DataError("is no mapping", where=where, allowed=ALLOWED)
    for form in FORMS:
        cells = form.cells(plain)
        if cells is not None:
            row = form.read(cells, where)
            read = {key for key, _ in cells.values()} - set(row.unread)
            unread = tuple(str(key) for key, value in plain.items() if value is not None and key not in read)
            passed_over = row.text is None and ("prompt" in unread or ("input" in unread and row.rewards is not None))
            since = READING if passed_over else row.since
            return replace(row, form=form.name, unread=unread, since=since)
    raise _formless(plain, where)


def _formless(plain: Mapping[str, Any], where: str) -> DataError:
    keys = [f'"{key}"' for key, value in plain.items() if value is not None]
    if any(plain.get(key) for key in ("prompt", "question", "instruction")) or plain.get("prompt") == "":
        what = f"has no answer in a form that is known: its keys are {', '.join(keys)}"
    else:
        what = f"has no text in a form that is known: its keys are {', '.join(keys) or 'none'}"
    return DataError(what, where=where, allowed=ALLOWED)


_Keys = dict[str, tuple[str, ...]]
_AROUND: _Keys = {"system": ("system", "system_prompt"), "tools": ("tools",), "variables": ("chat_template_kwargs",)}
_REWARDS: _Keys = {"rewards": ("reward",)}
_WRONG: _Keys = {"wrong": ("rejected", "rejected_response")}
_CHOSEN: _Keys = {"right": ("chosen", "chosen_response")}
FORMS: tuple[Form, ...] = (
    Form("text", '{"text"}', "running text", {"text": ("text",)}, {}, read_text, "TRL, axolotl, LLaMA-Factory"),
    Form("question with choices", '{"question", "choices": [texts], "answer": 0}',
         "a question, all answers that it offers, and the number of the right one",
         {"choices": ("choices",)}, {"asked": ("prompt", "question"), "number": ("answer",),
                                     "system": ("system", "system_prompt")}, read_question),
    Form("prompt and response", '{"prompt", "response"}', "every answer is learned, those in `prompt` too",
         {"asked": ("prompt",), "right": ("response",)}, _WRONG | _REWARDS | _AROUND, read_dialogue),
    Form("prompt and completion", '{"prompt", "completion"}',
         "`completion` alone is learned; with `\"label\": false` it is a wrong answer",
         {"asked": ("prompt",), "right": ("completion",)}, {"label": ("label",), **_WRONG, **_REWARDS, **_AROUND},
         read_dialogue, "TRL"),
    Form("preference", '{"prompt", "chosen", "rejected"}',
         "a right and a wrong answer; each may be a whole dialogue, and then stands behind its own history",
         {"asked": ("prompt", "question"), **_CHOSEN}, _WRONG | _REWARDS | _AROUND, read_dialogue, "TRL, axolotl"),
    Form("wrong answer", '{"prompt", "rejected"}', "an answer to be forgotten, perhaps with token rewards",
         {"asked": ("prompt", "question"), **_WRONG}, _REWARDS | _AROUND, read_dialogue),
    Form("prompt and output", '{"prompt", "output"}', "as prompt and response",
         {"asked": ("prompt",), "right": ("output", "answer")}, _WRONG | _REWARDS | _AROUND, read_dialogue),
    Form("messages", '{"messages": [{"role", "content"}, …]}',
         "a dialogue; every answer in it is learned. `chosen` and `rejected` may stand beside it",
         {"asked": ("messages",)}, {"right": ("response", "chosen"), **_WRONG, **_REWARDS, **_AROUND},
         read_dialogue, "TRL, axolotl, LLaMA-Factory"),
    Form("ShareGPT", '{"conversations": [{"from", "value"}, …]}',
         "the same: human, gpt, system, function_call, observation; `chosen` and `rejected` may be single messages",
         {"asked": ("conversations",)}, _CHOSEN | _WRONG | _REWARDS | _AROUND, read_dialogue,
         "TRL, axolotl, LLaMA-Factory"),
    Form("Alpaca", '{"instruction", "input", "output"}',
         "an instruction, perhaps with an input in a line of its own below it, and its answer",
         {"asked": ("instruction",), "right": ("output", "response", "chosen", "chosen_response")},
         {"input": ("input", "context"), "history": ("history",), **_WRONG, **_REWARDS, **_AROUND}, read_dialogue,
         "axolotl, LLaMA-Factory"),
    Form("ALLO", '{"input", "output", "reward": [numbers]}', "a wrong answer, a number for each token and for its end",
         {"asked": ("input",), "wrong": ("output", "rejected"), "rewards": ("reward",)},
         {"right": ("response", "chosen"), **_AROUND}, read_dialogue, "ALLO"),
    Form("input preference", '{"input", "chosen", "rejected"}', "as preference",
         {"asked": ("input",), **_CHOSEN, **_WRONG}, _REWARDS | _AROUND, read_dialogue, "axolotl"),
    Form("question and answer", '{"question", "answer"}', "as prompt and response; `response` too",
         {"asked": ("question",), "right": ("answer", "response", "output")}, _WRONG | _AROUND, read_dialogue),
    Form("preference without a prompt", '{"chosen": [messages], "rejected": [messages]}',
         "two whole dialogues; each answer stands behind its own history",
         _CHOSEN, _WRONG | _REWARDS | _AROUND, read_dialogue, "TRL"),
    Form("wrong dialogue", '{"rejected": [messages]}', "a dialogue whose last answer is to be forgotten",
         _WRONG, _REWARDS | _AROUND, read_dialogue),
)  # fmt: skip
COLUMNS = frozenset(
    key for form in FORMS for keys in (*form.needs.values(), *form.may.values()) for key in keys
)  # fmt: skip
"""Every key that some form reads."""
ALLOWED = ", ".join(form.looks for form in FORMS)
