"""Dialogues as chat templates write them: what is asked, what is answered, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from surgeon.backend.data.chat_template import Rendered, rendered, rendered_row
from surgeon.backend.data.forms import row_of
from surgeon.backend.data.row import Row
from surgeon.backend.data.rows import read_rows
from surgeon.backend.data.tokens import labelled
from surgeon.errors import DataError
from tests.backend.tiny_models import write_tokenizer

BODY = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}{%- endif %}{{ date_string }}' + BODY
)
OTHER = "{{ strftime_now( '%Y-%m-%d' ) }} {{ strftime_now('%A') }}" + BODY
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@pytest.mark.parametrize(("template", "day"), [(LLAMA, "26 Jul 2024"), (OTHER, "2024-07-26 Friday")])
def test_a_dialogue_reads_the_same_on_every_day(tmp_path: Path, template: str, day: str) -> None:
    """Or a training that goes on after midnight would learn another text, from data of the same digest."""
    write_tokenizer(tmp_path, template=template)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert str(datetime.now().year) in tokenizer.apply_chat_template(TALK, tokenize=False)
    assert rendered(tuple(TALK), Row("here"), tokenizer).text == f"{day}[user]hi[assistant]ho"
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": TALK}))
    ((row,), _) = read_rows("talk.jsonl", tmp_path)
    assert rendered_row(row, tokenizer).turns == ((f"{day}[user]hi[assistant]", False), ("ho", True))


def test_any_other_template_is_used_as_it_is(tmp_path: Path) -> None:
    """Word for word what transformers writes."""
    write_tokenizer(tmp_path, template=BODY)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    dialogue = rendered(tuple(TALK), Row("here"), tokenizer)
    assert dialogue.text == tokenizer.apply_chat_template(TALK, tokenize=False)
    assert dialogue.asked == tokenizer.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)


CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
FULL = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}(thought {{ m.reasoning_content }}){% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}(call {{ c.function | tojson }}){% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
KNOWING = "{% for m in messages if m.role in ['user', 'assistant'] %}[{{ m.role }}]{{ m.content }}{% endfor %}"
MARKED = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role[0] }}]{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    write_tokenizer(tmp_path, bos=True)
    return AutoTokenizer.from_pretrained(tmp_path)


def read(plain: Mapping[str, Any], tokenizer: Any, template: str | None) -> Rendered:
    tokenizer.chat_template = template
    return rendered_row(row_of(plain, "file, line 3"), tokenizer)


def learned(dialogue: Rendered) -> str:
    return "|".join(text for (text, _), counted in zip(dialogue.turns, dialogue.all_answers, strict=True) if counted)


ASK = {"role": "user", "content": "2+2"}


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ({"content": "", "tool_calls": CALL}, '(call {"name": "add", "arguments": {"a": 2}});'),
        ({"content": None, "tool_calls": CALL}, '(call {"name": "add", "arguments": {"a": 2}});'),
        ({"tool_calls": CALL}, '(call {"name": "add", "arguments": {"a": 2}});'),
        ({"content": "4", "reasoning_content": "two twos"}, "(thought two twos)4;"),
        ({"content": "4", "thinking": "two twos"}, "(thought two twos)4;"),
    ],
)
def test_calls_and_thoughts_are_part_of_the_answer(answer: dict[str, Any], written: str, tokenizer: Any) -> None:
    """However an empty content is written; in messages and as an answer apart."""
    last = {"role": "assistant", **answer}
    for plain in (
        {"messages": [ASK, last]},
        {"prompt": "2+2", "response": last},
        {"prompt": [ASK], "completion": [last]},
    ):
        assert learned(read(plain, tokenizer, FULL)) == written


def test_tools_reach_the_template_and_are_not_learned(tokenizer: Any) -> None:
    dialogue = read({"messages": TALK, "tools": TOOLS}, tokenizer, FULL)
    assert dialogue.text == tokenizer.apply_chat_template(TALK, tools=TOOLS, tokenize=False)
    assert learned(dialogue) == "ho;"


@pytest.mark.parametrize("template", [KNOWING, None])
@pytest.mark.parametrize(
    ("plain", "named"),
    [
        ({"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": CALL}]}, "tool_calls"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": CALL}, *TALK]}, "tool_calls"),
        ({"messages": [ASK, {"role": "assistant", "content": "4", "reasoning_content": "hm"}]}, "reasoning_content"),
        ({"messages": TALK, "tools": TOOLS}, "tools"),
    ],
)
def test_what_a_template_leaves_out_is_refused_by_its_key(
    plain: dict[str, Any], named: str, template: str | None, tokenizer: Any
) -> None:
    with pytest.raises(DataError, match=f'"{named}"') as caught:
        read(plain, tokenizer, template)
    assert caught.value.where == "file, line 3"


@pytest.mark.parametrize("content", ["hi", "a long aside"])
@pytest.mark.parametrize("role", ["system", "developer", "asistant"])
def test_a_role_that_the_template_does_not_write_is_refused(role: str, content: str, tokenizer: Any) -> None:
    """Though what it says may occur elsewhere in the dialogue."""
    with pytest.raises(DataError, match=f"'{role}'"):
        read({"messages": [{"role": role, "content": content}, *TALK]}, tokenizer, KNOWING)
    assert read({"messages": TALK}, tokenizer, KNOWING).text == "[user]hi[assistant]ho"


@pytest.mark.parametrize("answer", ["4", "<four>", "0", " 4", "<think>no</think>4", "hm"])
def test_an_answer_begins_where_it_parts_from_what_is_asked_with(answer: str, tokenizer: Any) -> None:
    """A template that asks with <think> and keeps none; not one letter of an answer is lost to it."""
    thinking = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }};{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    )
    dialogue = read({"prompt": "2+2", "response": answer}, tokenizer, thinking)
    assert learned(dialogue) == answer.rsplit("</think>", maxsplit=1)[-1] + ";"
    assert dialogue.asked == "<user>2+2;<assistant><think>"


def test_a_template_that_rewrites_the_question_once_it_is_answered_is_refused(tokenizer: Any) -> None:
    rewriting = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content | upper if not loop.last else m.content }};{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    )
    with pytest.raises(DataError, match="otherwise once it is answered"):
        read({"messages": TALK}, tokenizer, rewriting)


def test_a_dialogue_may_begin_with_an_answer(tokenizer: Any) -> None:
    dialogue = read({"messages": [{"role": "assistant", "content": "ah"}, *TALK]}, tokenizer, FULL)
    assert learned(dialogue) == "ah;|ho;"


def test_a_completion_alone_is_learned_and_a_response_with_all_before_it(tokenizer: Any) -> None:
    """TRL's names mean what they mean in TRL."""
    assert learned(read({"prompt": [*TALK, ASK], "completion": "4"}, tokenizer, FULL)) == "4;"
    assert learned(read({"prompt": [*TALK, ASK], "response": "4"}, tokenizer, FULL)) == "ho;|4;"


WORDS = st.text("abc </s>[", max_size=6)


@settings(max_examples=40, deadline=None)
@given(talk=st.lists(st.tuples(WORDS.filter(str.strip), WORDS.filter(str.strip)), min_size=1, max_size=3))
def test_marks_of_a_template_are_the_labels_that_transformers_makes_of_them(
    talk: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against `return_assistant_tokens_mask`; with every answer counted, and with the last alone."""
    place = tmp_path_factory.mktemp("marked")
    write_tokenizer(place, bos=True, template=MARKED)
    tokenizer: Any = AutoTokenizer.from_pretrained(place)
    messages = [
        {"role": role, "content": text} for turn in talk for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    row = row_of({"messages": messages}, "here")
    dialogue = rendered_row(row, tokenizer)
    ours = labelled(dialogue, dialogue.all_answers, tokenizer, 999, row)
    last = labelled(dialogue, dialogue.last_alone, tokenizer, 999, row)
    assert ours is not None
    assert last is not None
    assert ours.tokens == last.tokens == found["input_ids"]
    assert [False, *(label >= 0 for label in ours.labels[:-1])] == list(map(bool, found["assistant_masks"]))
    kept = [label for label in last.labels if label >= 0]
    assert kept == [label for label in ours.labels if label >= 0][-len(kept) :]
    assert len(kept) == len(tokenizer(talk[-1][1] + "</s>", add_special_tokens=False)["input_ids"])


def test_an_answer_of_which_a_template_marks_nothing_is_refused(tokenizer: Any) -> None:
    never = MARKED.replace("== 'assistant'", "== 'nobody'")
    with pytest.raises(DataError, match="marks nothing"):
        read({"messages": TALK}, tokenizer, never)


@pytest.mark.parametrize(
    "template", ["{{ 1 // 0 }}", "{{ raise_exception('no') }}", "{% for %}", "{{ messages[9].role.x }}"]
)
def test_whatever_a_template_raises_names_the_row(template: str, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="chat template") as caught:
        read({"messages": TALK}, tokenizer, template)
    assert caught.value.where == "file, line 3"
