from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from surgeon.backend.data.examples import Examples, collate, examples_of_step, read_examples
from surgeon.backend.data.rows import source_digest
from surgeon.backend.data.tokens import Tokens
from surgeon.backend.model.losses import IGNORED
from surgeon.core.recipe.objective import Rows
from surgeon.errors import DataError
from tests.backend.tiny_models import write_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)
THINKING = (
    "{% for m in messages %}[{{ m['role'][0] }}]{{ 'hm: ' if loop.last and m['role'] == 'assistant' }}"
    "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
"""As Qwen3's: the last answer alone has its thoughts before it."""
PAIR = {"prompt": "2+2", "chosen": "4", "rejected": "fish"}
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "no"},
]


@pytest.fixture
def plain(tmp_path: Path) -> Any:
    """A tokenizer of one token per character, without a chat template."""
    write_tokenizer(tmp_path / "plain")
    return AutoTokenizer.from_pretrained(tmp_path / "plain")


@pytest.fixture
def chatty(tmp_path: Path) -> Any:
    """One that starts every text with <s>, and has a chat template that writes <s> too."""
    write_tokenizer(tmp_path / "chatty", bos=True, template=TEMPLATE)
    return AutoTokenizer.from_pretrained(tmp_path / "chatty")


def read(rows: Sequence[Any], kind: Rows, tokenizer: Any, root: Path, length: int = 64) -> Examples:
    (root / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_examples("data.jsonl", root, tokenizer, kind, length)


def labelled(one: Tokens, tokenizer: Any) -> str:
    """Return the text of the labels, after checking that each stands before its own token."""
    assert len(one.labels) == len(one.tokens)
    assert all(label in (IGNORED, after) for label, after in zip(one.labels, one.tokens[1:], strict=False))
    assert one.labels[-1] == IGNORED
    return str(tokenizer.decode([label for label in one.labels if label != IGNORED])).replace(" ", "")


def text_of(one: Tokens, tokenizer: Any) -> str:
    return str(tokenizer.decode(one.tokens)).replace(" ", "")


def test_an_answer_is_labelled_to_its_end_and_the_prompt_is_not(plain: Any, tmp_path: Path) -> None:
    """Labels cover the response and the token that ends it."""
    ((one,),) = read([{"prompt": "ask", "response": "tell"}], "answers", plain, tmp_path).examples
    assert labelled(one, plain) == "tell</s>"


def test_every_answer_of_a_dialogue_is_learned(chatty: Any, tmp_path: Path) -> None:
    """And nothing of what was asked, nor of the template's own marks."""
    ((one,),) = read([{"messages": TALK}], "answers", chatty, tmp_path).examples
    assert labelled(one, chatty) == "yes</s>no</s>"


def test_a_template_that_writes_the_first_token_gets_no_second_one(chatty: Any, tmp_path: Path) -> None:
    """The tokens are those of the template alone, as transformers makes them."""
    ((one,),) = read([{"messages": TALK}], "answers", chatty, tmp_path).examples
    assert one.tokens == chatty.apply_chat_template(TALK, tokenize=True, return_dict=False)


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_an_answer_has_the_tokens_it_has_within_the_dialogue(scheme: str, tmp_path: Path) -> None:
    """Not those of a text of its own, in front of which tokenizers like Llama's write a space."""
    spaced = space_first(scheme)
    for template in (TEMPLATE, None):
        spaced.chat_template = template
        ((one,),) = read([{"messages": TALK}], "answers", spaced, tmp_path).examples
        text = spaced.apply_chat_template(TALK, tokenize=False) if template else "hi\nyes</s>and\nno</s>"
        assert one.tokens == spaced(text, add_special_tokens=False)["input_ids"]
        answers = spaced.convert_ids_to_tokens([label for label in one.labels if label != IGNORED])
        assert answers == [*"yes", "</s>", *"no", "</s>"]
    ((chosen, rejected),) = read([PAIR], "pairs", spaced, tmp_path).examples
    assert chosen.tokens == spaced("2+2\n4</s>", add_special_tokens=False)["input_ids"]
    assert rejected.tokens == spaced("2+2\nfish</s>", add_special_tokens=False)["input_ids"]


def space_first(scheme: str) -> Any:
    """Return a tokenizer of one token per character that writes a space in front of texts."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", "\n", "▁", *map(chr, range(33, 127))]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False),
            pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"),
        ]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_of_a_pair_the_last_answers_alone_count(chatty: Any, tmp_path: Path) -> None:
    """Both share all that goes before."""
    ((chosen, rejected),) = read([{"messages": TALK, "rejected": "fish"}], "pairs", chatty, tmp_path).examples
    assert labelled(chosen, chatty) == "no</s>"
    assert labelled(rejected, chatty) == "fish</s>"
    shared = chosen.labels.index(next(label for label in chosen.labels if label != IGNORED)) + 1
    assert chosen.tokens[:shared] == rejected.tokens[:shared]


def test_answers_that_a_template_rewrites_are_context_and_are_not_learned(tmp_path: Path) -> None:
    """Of pairs the last answers count anyhow; a training on every answer cannot be had, and is refused."""
    write_tokenizer(tmp_path / "thinking", template=THINKING)
    thinking = AutoTokenizer.from_pretrained(tmp_path / "thinking")
    ((chosen, rejected),) = read([{"messages": TALK, "rejected": "fish"}], "pairs", thinking, tmp_path).examples
    assert chosen.tokens == thinking.apply_chat_template(TALK, tokenize=True, return_dict=False)
    assert [labelled(one, thinking) for one in (chosen, rejected)] == ["hm:no</s>", "hm:fish</s>"]
    ((one,),) = read([{"messages": TALK[:2]}], "answers", thinking, tmp_path).examples
    assert labelled(one, thinking) == "hm:yes</s>"
    with pytest.raises(DataError, match="rewrites all but the last") as caught:
        read([{"messages": TALK}], "answers", thinking, tmp_path)
    assert caught.value.where.endswith("line 1")
    ((one,),) = read([{"messages": TALK[:3]}], "text", thinking, tmp_path, length=23).examples
    assert text_of(one, thinking) == "[u]hi</s>[a]yes</s>[u]and</s></s>"


def test_a_template_that_asks_with_more_than_it_keeps_parts_where_the_two_do(tmp_path: Path) -> None:
    """As TRL does; what is asked with and not kept is not learned, and no first letter of an answer is lost to it."""
    write_tokenizer(tmp_path / "asking", template=TEMPLATE.replace("%}[a]{%", "%}[a]hm{%"))
    asking = AutoTokenizer.from_pretrained(tmp_path / "asking")
    ((chosen, rejected),) = read([{**PAIR, "rejected": "herring"}], "pairs", asking, tmp_path).examples
    assert [text_of(one, asking) for one in (chosen, rejected)] == [
        "<s>[u]2+2</s>[a]4</s>",
        "<s>[u]2+2</s>[a]herring</s>",
    ]
    assert [labelled(one, asking) for one in (chosen, rejected)] == ["4</s>", "herring</s>"]


def test_pairs_of_message_lists_are_read_as_pairs_of_texts(chatty: Any, tmp_path: Path) -> None:
    """The prompt apart or within them."""
    asked, good, bad = ({"role": role, "content": text} for role, text in
                        [("user", "2+2"), ("assistant", "4"), ("assistant", "fish")])  # fmt: skip
    forms = [
        PAIR,
        {"prompt": [asked], "chosen": [good], "rejected": [bad]},
        {"chosen": [asked, good], "rejected": [asked, bad]},
        {"prompt": "2+2", "chosen": [asked, good], "rejected": [asked, bad]},
    ]
    found = read(forms, "pairs", chatty, tmp_path).examples
    assert all(one == found[0] for one in found)


def test_a_truncated_answer_keeps_the_labels_that_are_left(plain: Any, tmp_path: Path) -> None:
    """And a row whose answer lies wholly beyond the length is left out and counted."""
    rows = [{"prompt": "ask", "response": "telling"}, {"prompt": "a long question", "response": "no"}]
    found = read(rows, "answers", plain, tmp_path, length=8)
    ((one,),) = found.examples
    assert len(one.tokens) == 8
    assert labelled(one, plain) == "tell"
    assert found.left_out == 1


@settings(deadline=None, max_examples=30)
@given(prompt=st.text("abc ", max_size=9), answer=st.text("xyz", max_size=9), length=st.integers(4, 24))
def test_truncation_only_ever_cuts_at_the_end(
    prompt: str, answer: str, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the length, tokens and labels are the beginning of the whole ones."""
    root = tmp_path_factory.mktemp("cut")
    write_tokenizer(root)
    tokenizer = AutoTokenizer.from_pretrained(root)
    rows = [{"prompt": prompt, "response": answer}]
    ((whole,),) = read(rows, "answers", tokenizer, root, length=99).examples
    try:
        ((cut,),) = read(rows, "answers", tokenizer, root, length=length).examples
    except DataError:
        assert all(label == IGNORED for label in whole.labels[: length - 1])
        return
    assert cut.tokens == whole.tokens[:length]
    assert cut.labels == [*whole.labels[: min(length, len(whole.tokens)) - 1], IGNORED]


def test_token_rewards_stand_at_the_labels_they_judge(plain: Any, tmp_path: Path) -> None:
    """One for each token of the wrong answer, its end included, in both spellings of a row."""
    rewards = [0.25, 0.5, 0.75, 1.0, 0.0]
    rows = [
        {"prompt": "2+2", "rejected": "fish", "reward": rewards},
        {"input": "2+2", "output": "fish", "reward": rewards, "ref_prob": [0.0] * 5},
        {"prompt": "2+2", "response": "fish", "reward": rewards},
        {"prompt": "2+2", "chosen": "4", "rejected": "fish", "reward": rewards},
    ]
    for (one,) in read(rows, "rejected", plain, tmp_path).examples:
        assert labelled(one, plain) == "fish</s>"
        assert one.weights is not None
        found = [weight for weight, label in zip(one.weights, one.labels, strict=True) if label != IGNORED]
        assert found == rewards


def test_token_rewards_judge_the_last_answer_of_a_dialogue(chatty: Any, tmp_path: Path) -> None:
    """Earlier answers need none."""
    row = {"messages": TALK, "rejected": "ox", "reward": [0.1, 0.2, 0.3]}
    ((one,),) = read([row], "rejected", chatty, tmp_path).examples
    assert labelled(one, chatty) == "ox</s>"


@pytest.mark.parametrize(
    ("row", "kind", "what"),
    [
        ({"text": "prose"}, "answers", "no answer"),
        ({"messages": TALK[:3]}, "answers", "no answer"),
        ({"prompt": "2+2", "rejected": "fish"}, "answers", "wrong answer alone"),
        ({"prompt": "2+2", "rejected": "fish"}, "pairs", "chosen"),
        ({"prompt": "2+2", "response": "4"}, "pairs", "chosen"),
        ({"prompt": "2+2", "response": "4"}, "rejected", "no wrong answer"),
        ({"prompt": "2+2", "rejected": "fish", "reward": [0.5]}, "rejected", "1 token rewards for an answer of 5"),
        ({"prompt": "2+2", "rejected": "fish", "reward": ["x"]}, "rejected", "no list of numbers"),
        ({"prompt": "2+2"}, "answers", "no answer"),
        ({"prompt": "", "response": None}, "answers", "no answer"),
        ({"prompt": 3, "response": "x"}, "answers", "no text"),
        ({"messages": []}, "answers", "no text"),
        ({"messages": [{"role": "user"}]}, "answers", "role or content"),
        ({"messages": ["hello"]}, "answers", "role or content"),
        ({"prompt": "x", "response": 4}, "answers", "role or content"),
        ([1, 2], "text", "no mapping"),
    ],
)
def test_a_row_without_what_the_objective_needs_is_refused_by_file_and_line(
    row: Any, kind: Rows, what: str, plain: Any, tmp_path: Path
) -> None:
    """A blank line counts as a line."""
    good = {"prompt": "2+2", "chosen": "4", "rejected": "fish", **({"reward": [0.5] * 5} if "reward" in row else {})}
    (tmp_path / "data.jsonl").write_text("\n".join([json.dumps(good), "", json.dumps(row)]))
    with pytest.raises(DataError, match=what) as caught:
        read_examples("data.jsonl", tmp_path, plain, kind, 64)
    assert caught.value.where.endswith("data.jsonl, line 3")


def test_rewards_that_do_not_fit_an_answer_are_told_how_it_ends(chatty: Any, tmp_path: Path) -> None:
    """What a template writes behind an answer is tokens too, and is easily forgotten."""
    with pytest.raises(DataError, match="2 token rewards for an answer of 3") as caught:
        read([{"messages": TALK, "rejected": "ox", "reward": [0.1, 0.2]}], "rejected", chatty, tmp_path)
    assert "'ox</s>'" in str(caught.value)


def test_rows_with_token_rewards_do_not_mix_with_rows_without(plain: Any, tmp_path: Path) -> None:
    """A missing reward must not be read as one of 0."""
    with pytest.raises(DataError, match="no token rewards") as caught:
        read([PAIR | {"reward": [0.5] * 5}, PAIR], "rejected", plain, tmp_path)
    assert caught.value.where.endswith("line 2")


def test_padding_counts_for_nothing(plain: Any, tmp_path: Path) -> None:
    """Of pairs the chosen ones come first; padding has no label, no weight and no attention."""
    found = read([PAIR, {"prompt": "a", "chosen": "long answer", "rejected": "x"}], "pairs", plain, tmp_path).examples
    batch = collate(found, [0, 1], torch.device("cpu"))
    sequences = [found[0][0], found[1][0], found[0][1], found[1][1]]
    for row, one in enumerate(sequences):
        width = len(one.tokens)
        assert batch.tokens_BT[row, :width].tolist() == one.tokens
        assert batch.labels_BT[row].tolist() == one.labels + [IGNORED] * (batch.labels_BT.shape[1] - width)
        assert batch.mask_BT[row].tolist() == [1] * width + [0] * (batch.labels_BT.shape[1] - width)


def test_weights_of_labels_are_padded_with_nothing(plain: Any, tmp_path: Path) -> None:
    """Each row's weights stand where its labels do, whatever the other rows' lengths."""
    rows = [
        {"prompt": "2+2", "rejected": "ox", "reward": [0.5, 0.25, 0.75]},
        {"prompt": "a longer question", "rejected": "x", "reward": [1.0, 0.125]},
    ]
    found = read(rows, "rejected", plain, tmp_path).examples
    batch = collate(found, [0, 1], torch.device("cpu"))
    assert batch.weights_BT is not None
    for row, plain_row in enumerate(rows):
        kept = batch.labels_BT[row] != IGNORED
        assert batch.weights_BT[row][kept].tolist() == plain_row["reward"]
        assert not batch.weights_BT[row][~kept].any()


def test_packed_text_loses_no_token_but_the_last_part(chatty: Any, tmp_path: Path) -> None:
    """Documents are parted by the end-of-text token, and each sequence starts as the model's texts do."""
    rows = [{"text": "one"}, {"text": "three"}, {"text": "five"}]
    sequences = [one for (one,) in read(rows, "text", chatty, tmp_path, length=5).examples]
    assert "".join(text_of(one, chatty).removeprefix("<s>") for one in sequences) == "one</s>three</s>fi"
    assert all(one.labels == [*one.tokens[1:], IGNORED] for one in sequences)


@pytest.mark.parametrize("share", [0.0, 0.9, -0.1])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    """0 % and more than half."""
    with pytest.raises(DataError, match="share"):
        Examples([()] * 10, "").split(share)


@given(count=st.integers(1, 20), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_pass_sees_every_example_once(count: int, size: int, seed: int) -> None:
    """Whatever the batch size; and the order of each pass follows from the seed alone."""
    seen = [one for step in range(2 * count) for one in examples_of_step(step, size, count, seed)]
    passes = [seen[at : at + count] for at in range(0, len(seen) - count + 1, count)]
    assert all(sorted(one) == list(range(count)) for one in passes)


def test_a_hub_id_without_the_package_says_what_to_install(
    plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And names no file that could not be found."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        read_examples("owner/pairs", tmp_path, plain, "pairs", 64)


def test_a_hub_id_is_read_by_split_and_named_by_its_rows(
    plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the hub cannot be asked, the digest follows the rows: the same name may hold other data tomorrow."""
    hub: dict[str, list[Mapping[str, Any]]] = {"train": [PAIR], "test": [PAIR, PAIR]}
    module = ModuleType("datasets")
    module.load_dataset = lambda name, config, *, split, **_: hub[split] if name == "owner/pairs" else []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert len(read_examples("owner/pairs", tmp_path, plain, "pairs", 64).examples) == 1
    assert len(read_examples("owner/pairs:test", tmp_path, plain, "pairs", 64).examples) == 2
    before = source_digest("owner/pairs", tmp_path)
    hub["train"] = [{**PAIR, "chosen": "5"}]
    assert source_digest("owner/pairs", tmp_path) != before
    with pytest.raises(DataError, match="cannot be loaded"):
        read_examples("owner/pairs:nothing", tmp_path, plain, "pairs", 64)


def test_a_file_is_never_taken_for_a_hub_id(plain: Any, tmp_path: Path) -> None:
    """Neither one that is there nor one that is misspelt."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prose").write_text("some text here")
    assert read_examples("data/prose", tmp_path, plain, "text", 8).examples
    with pytest.raises(DataError, match="No such file"):
        read_examples("data/prose.jsonl", tmp_path, plain, "text", 8)


def test_rows_that_hold_a_wrong_answer_alone_are_told_where_text_of_any_kind_is_learned(
    plain: Any, tmp_path: Path
) -> None:
    """Nothing in running text tells it from a right one."""
    wrong = [{"prompt": "2+2", "completion": "5", "label": False}, {"prompt": "2+2", "rejected": "6"}]
    found = read([*wrong, PAIR, {"prompt": "2+2", "completion": "4", "label": True}], "text", plain, tmp_path)
    assert "2 rows hold a wrong answer alone" in found.unread
    assert read([PAIR, {"text": "2+2=4"}], "text", plain, tmp_path).unread == ""
    assert read(wrong, "rejected", plain, tmp_path).unread == ""
