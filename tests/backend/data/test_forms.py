"""Every form of rows, as the one normal form that scores, trainings and evaluations are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.backend.data.forms import ALLOWED, FORMS, row_of
from surgeon.backend.data.row import READING, Row
from surgeon.errors import DataError

Plain = Mapping[str, Any]


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASK, GOOD, BAD = turn("user", "2+2"), turn("assistant", "4"), turn("assistant", "fish")
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}]
SAME: Mapping[str, Plain] = {
    "prompt and response": {"prompt": "2+2", "response": "4"},
    "prompt and completion": {"prompt": "2+2", "completion": "4"},
    "completion as messages": {"prompt": [ASK], "completion": [GOOD]},
    "prompt and output": {"prompt": "2+2", "output": "4"},
    "question and answer": {"question": "2+2", "answer": "4"},
    "messages": {"messages": [ASK, GOOD]},
    "messages with an answer apart": {"messages": [ASK], "chosen": "4"},
    "ShareGPT": {"conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]},
    "from and value under messages": {
        "messages": [{"from": "user", "value": "2+2"}, {"from": "assistant", "value": "4"}]
    },
    "Alpaca": {"instruction": "2+2", "input": "", "output": "4"},
    "a single message as answer": {"prompt": "2+2", "response": GOOD},
    "an unpaired preference": {"prompt": "2+2", "completion": "4", "label": True},
    "null beside it": {"prompt": "2+2", "response": None, "chosen": "4"},
}


@pytest.mark.parametrize("form", SAME)
def test_a_question_and_its_answer_are_the_same_in_every_form(form: str) -> None:
    row = row_of(SAME[form], "here")
    assert (row.asked, row.right, row.wrong, row.unread) == ((ASK,), GOOD, None, ())


PAIRS: Mapping[str, Plain] = {
    "texts": {"prompt": "2+2", "chosen": "4", "rejected": "fish"},
    "explicit": {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
    "implicit": {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    "a text and whole dialogues": {"prompt": "2+2", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    "single messages": {"prompt": "2+2", "chosen": GOOD, "rejected": BAD},
    "messages and single answers": {"messages": [ASK], "chosen": GOOD, "rejected": BAD},
    "messages that end in the right one": {"messages": [ASK, GOOD], "rejected": "fish"},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "2+2"}],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "fish"},
    },
    "Alpaca": {"instruction": "2+2", "input": "", "chosen": "4", "rejected": "fish"},
    "axolotl's names": {"question": "2+2", "chosen_response": "4", "rejected_response": "fish"},
    "input": {"input": "2+2", "chosen": "4", "rejected": "fish"},
}


@pytest.mark.parametrize("form", PAIRS)
def test_a_preference_is_the_same_in_every_form(form: str) -> None:
    row = row_of(PAIRS[form], "here")
    assert (row.ended_rightly, row.ended_wrongly, row.unread) == ((ASK, GOOD), (ASK, BAD), ())


FIRST = [turn("user", "Q1"), turn("assistant", "A1"), turn("user", "Q2")]
OTHER = [turn("user", "Q1"), turn("assistant", "OTHER"), turn("user", "Q3")]
SYSTEM = [turn("system", "SYS"), turn("user", "Q1")]


@pytest.mark.parametrize("before", [FIRST, SYSTEM])
@pytest.mark.parametrize("prompt", ["Q1", None, "spelled out"])
def test_a_whole_dialogue_in_a_preference_keeps_every_turn(before: list[Plain], prompt: str | None) -> None:
    """With the prompt as a text, in the dialogues alone, or with the whole history in it."""
    forms: dict[str | None, Plain] = {None: {}, "Q1": {"prompt": "Q1"}, "spelled out": {"prompt": before}}
    asked: Plain = forms[prompt]
    row = row_of({**asked, "chosen": [*before, GOOD], "rejected": [*before, BAD]}, "here")
    assert (row.ended_rightly, row.ended_wrongly) == ((*before, GOOD), (*before, BAD))


def test_each_answer_stands_behind_its_own_history() -> None:
    row = row_of({"chosen": [*FIRST, GOOD], "rejected": [*OTHER, BAD]}, "here")
    assert (row.ended_rightly, row.ended_wrongly) == ((*FIRST, GOOD), (*OTHER, BAD))


def test_an_answer_of_several_messages_goes_on_from_the_prompt() -> None:
    """As in TRL: a call, what the tool said, and the answer."""
    call, said = {"role": "assistant", "tool_calls": CALL}, turn("tool", "4")
    row = row_of({"prompt": [ASK], "completion": [call, said, GOOD]}, "here")
    assert (row.asked, row.right, row.given) == ((ASK, call, said), GOOD, 1)


def test_system_tools_history_and_calls_are_kept() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    row = row_of({"system": "SYS", "tools": tools, "prompt": "2+2", "response": "4"}, "here")
    assert row.asked == (turn("system", "SYS"), ASK)
    assert row.tools == tuple(tools)
    assert row_of({"tools": '[{"a": 1}]', "prompt": "2+2", "response": "4"}, "here").tools == ({"a": 1},)
    row = row_of({"instruction": "2+2", "history": [["a", "b"]], "output": "4"}, "here")
    assert row.asked == (turn("user", "a"), turn("assistant", "b"), ASK)
    talk = [{"from": "human", "value": "2+2"}, {"from": "function_call", "value": '{"name": "add", "arguments": {}}'},
            {"from": "observation", "value": "4"}, {"from": "gpt", "value": "4"}]  # fmt: skip
    row = row_of({"conversations": talk}, "here")
    assert [one["role"] for one in row.messages] == ["user", "assistant", "tool", "assistant"]
    assert row.messages[1]["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {}}}]


def test_an_unpaired_preference_that_is_not_good_is_a_wrong_answer() -> None:
    row = row_of({"prompt": "2+2", "completion": "fish", "label": False}, "here")
    assert (row.right, row.wrong, row.ended_wrongly) == (None, BAD, (ASK, BAD))


def test_a_label_that_says_neither_and_a_reward_of_a_whole_answer_are_not_read() -> None:
    row = row_of({"prompt": "2+2", "completion": "4", "label": 7, "reward": 0.5, "id": 1, "more": None}, "here")
    assert (row.right, row.rewards) == (GOOD, None)
    assert row.unread == ("label", "reward", "id")


FAULTS: Mapping[str, tuple[Any, str]] = {
    "keys that no form has": ({"sentence": "a", "label": 1}, '"sentence", "label"'),
    "a prompt alone": ({"prompt": "a", "id": 3}, "no answer.*\"prompt\", \"id\""),
    "a dialogue that begins otherwise": (
        {"prompt": "Q", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "does not occur"
    ),
    "a prompt that is no beginning": (
        {"prompt": FIRST, "chosen": [*OTHER, GOOD], "rejected": [*FIRST, BAD]}, "does not occur"
    ),
    "an answer that ends with a question": (
        {"prompt": "2+2", "chosen": [ASK], "rejected": "x"}, "ends with a message of user"
    ),
    "texts without a prompt": ({"chosen": "a", "rejected": "b"}, "nothing that was asked"),
    "an answer alone": ({"messages": [GOOD]}, "no text"),
    "an answer behind an answer": ({"messages": [ASK, GOOD], "chosen": "5"}, "another one in \"chosen\""),
    "two system messages": ({"system": "A", "messages": [turn("system", "B"), ASK, GOOD]}, "differ"),
    "a role that ShareGPT has not": ({"conversations": [{"from": "narrator", "value": "x"}]}, "narrator"),
    "a call that is no JSON": ({"conversations": [{"from": "function_call", "value": "add"}]}, "function_call"),
    "a message without content": ({"messages": [ASK, {"role": "assistant"}]}, "role or content"),
    "a list as content": ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "role or content"),
    "tools that are no list": ({"tools": {"a": 1}, "prompt": "a", "response": "b"}, "tools"),
    "a template of the row's own": (
        {"chat_template_kwargs": {"chat_template": "x"}, "prompt": "a", "response": "b"}, "chat_template_kwargs"
    ),
    "history of another form": ({"history": ["a"], "instruction": "a", "output": "b"}, "history"),
    "ALLO's names without rewards": ({"input": "a", "output": "b", "reward": 0.5}, "no text"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_has_no_form_is_refused_with_its_place_and_what_is_allowed(fault: str) -> None:
    plain, what = FAULTS[fault]
    with pytest.raises(DataError, match=what) as caught:
        row_of(plain, "file, line 7")
    assert caught.value.where == "file, line 7"
    assert caught.value.allowed


BEFORE: tuple[Plain, ...] = (
    {"text": "x", "messages": [ASK, GOOD], "prompt": "y"}, {"messages": [ASK, GOOD]},
    {"messages": [*FIRST, GOOD], "id": 3}, {"prompt": "2+2", "response": "4", "input": "x"},
    {"prompt": "2+2", "response": "4"}, {"prompt": [*FIRST], "response": "4"}, {"prompt": "2+2", "chosen": "4"},
    {"prompt": "2+2", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    {"prompt": "2+2", "rejected": "fish", "reward": [0.5, 1]}, {"input": "2+2", "output": "fish", "reward": [0.5]},
    {"question": "a", "choices": ["b", "c"], "answer": 1},
    {"messages": [ASK, turn("assistant", "", tool_calls=CALL), turn("tool", "4"), GOOD]},
)  # fmt: skip
SINCE: tuple[Plain, ...] = (
    {"prompt": "2+2", "completion": "4"}, {"prompt": "2+2", "output": "4"},
    {"messages": [ASK, {**GOOD, "tool_calls": CALL}]},
    {"prompt": "Q1", "chosen": [*FIRST, GOOD], "rejected": [*FIRST, BAD]},
    {"chosen": [*FIRST, GOOD], "rejected": [*OTHER, BAD]},
    {"system": "S", "prompt": "2+2", "response": "4"}, {"prompt": "a", "messages": [ASK, GOOD]},
    {"tools": [{"a": 1}], "messages": [ASK, GOOD]},
)  # fmt: skip


def test_rows_that_mean_more_than_they_did_say_so() -> None:
    """What was learned from them as they were read before is not to be taken for what is asked now."""
    assert [row_of(plain, "here").since for plain in BEFORE] == [1] * len(BEFORE)
    assert [row_of(plain, "here").since for plain in SINCE] == [READING] * len(SINCE)


def test_the_table_shows_forms_that_it_reads() -> None:
    """Each form's own keys lead to it; the list of what is allowed names them all."""
    sample: Mapping[str, Any] = {
        "text": "x", "choices": ["a", "b"], "reward": [0.5], "messages": [ASK, GOOD], "chosen": [ASK, GOOD],
        "answer": "a",
        "rejected": [ASK, BAD], "conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}],
    }  # fmt: skip
    for form in FORMS:
        plain = {keys[0]: sample.get(keys[0], "2+2") for keys in form.needs.values()}
        if form.name == "question with choices":
            plain |= {"question": "q", "answer": 0}
        if "asked" in form.needs:
            plain |= {key: "4" for key in plain if key in ("chosen", "rejected")}
        assert row_of(plain, "here").form == form.name
        assert form.looks in ALLOWED


WORDS = st.sampled_from(["role", "content", "from", "value", "user", "assistant"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=3) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = sorted({key for form in FORMS for keys in {**form.needs, **form.may}.values() for key in keys})


@settings(max_examples=400)
@given(plain=st.dictionaries(st.sampled_from([*KEYS, "other"]), JSON, max_size=5) | JSON)
def test_whatever_a_row_holds_it_is_read_or_refused_in_words(plain: Any) -> None:
    """Data comes from strangers."""
    try:
        row = row_of(plain, "file, line 1")
    except DataError as error:
        assert error.where == "file, line 1"
        return
    assert isinstance(row, Row)
    assert row.text is not None or row.messages
    assert row.text is not None or all(isinstance(one["role"], str) for one in row.messages)
