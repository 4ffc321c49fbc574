"""Dialogues in a chat template that writes today's date."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from surgeon.backend.data.chat_template import rendered, rendered_row
from surgeon.backend.data.row import Row
from surgeon.backend.data.rows import read_rows
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
