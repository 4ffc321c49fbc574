"""Models with several stacks of layers, and text towers inside other models, compared with transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.structure.structure import Stack, Structure
from tests.architectures.building import small_config, tiny_model
from tests.architectures.settings import OWN
from tests.jobs import perform

_SEQ2SEQ = {
    "T5ForConditionalGeneration": "t5",
    "BartForConditionalGeneration": "bart",
    "PegasusForConditionalGeneration": "pegasus",
    "MBartForConditionalGeneration": "mbart",
    "T5GemmaForConditionalGeneration": "t5gemma",
}
_ENCODERS = {
    "BertForMaskedLM": "bert",
    "RobertaModel": "roberta",
    "ModernBertForMaskedLM": "modernbert",
    "DistilBertForMaskedLM": "distilbert",
    "EmbeddingGemma2TextModel": "embedding_gemma2_text",
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_SMALL: dict[str, dict[str, Any]] = {
    "t5": {"num_layers": 4, "num_decoder_layers": 5, "d_kv": 8, "d_ff": 48, "is_decoder": False},
    "bart": {"encoder_layers": 4, "decoder_layers": 5, "is_decoder": False},
    "pegasus": {"encoder_layers": 4, "decoder_layers": 4, "is_decoder": False},
    "mbart": {"encoder_layers": 4, "decoder_layers": 5, "is_decoder": False},
    "qwen2_vl": {"text_config": _MROPE},
    "qwen2_5_vl": {"text_config": _MROPE},
    "bert": {"is_decoder": False},
    "roberta": {"is_decoder": False},
    "distilbert": {"dim": 32, "hidden_dim": 48},
}


def _save(cls_name: str, model_type: str, directory: Path) -> Any:
    cls: Any = getattr(transformers, cls_name)
    config = small_config(model_type, {**OWN.get(model_type, {}), **_SMALL.get(model_type, {})})

    class _Builder:
        from_config = staticmethod(cls._from_config)

    model: Any = tiny_model(config, _Builder)
    model.save_pretrained(directory)
    return cls


def _run(base: Path, out: Path, *steps: dict[str, Any]) -> None:
    recipe = {"version": 1, "base": {"model": str(base)}, "steps": list(steps)}
    perform("run", {"recipe": recipe, "out": str(out), "verify": True}, lambda _kind, _body: None, lambda: False)


@torch.inference_mode()
def _answer(model: Any, skipped: nn.Module | None = None) -> torch.Tensor:
    """Return what a model says, with one layer passing its input through."""
    tokens_BT = torch.randint(3, 120, (2, 10), generator=torch.Generator().manual_seed(0))
    hook = None
    if skipped is not None:

        def passed(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        hook = skipped.register_forward_hook(passed, with_kwargs=True)
    more = {"decoder_input_ids": tokens_BT} if model.config.is_encoder_decoder else {}
    answer: torch.Tensor = model(input_ids=tokens_BT, **more)[0]
    if hook is not None:
        hook.remove()
    return answer


def _layer(model: nn.Module, stack: Stack, structure: Structure, position: int) -> nn.Module:
    suffix = next(iter(stack.layers[position]))
    (name,) = structure.memory_names([stack.tensor_name(position, suffix)])
    return model.get_submodule(name.removesuffix(f".{suffix}"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize(
    "cls_name",
    [
        "T5ForConditionalGeneration",
        "BartForConditionalGeneration",
        "PegasusForConditionalGeneration",
        "MBartForConditionalGeneration",
    ],
)
def test_either_stack_of_an_encoder_decoder_can_be_pruned(cls_name: str, stack: str, tmp_path: Path) -> None:
    """`stack:` chooses; the other stack, and its count, stay as they are."""
    cls = _save(cls_name, _SEQ2SEQ[cls_name], tmp_path / "base")
    structure = read_structure(open_checkpoint(tmp_path / "base"))
    assert list(structure.stacks) == ["decoder", "encoder"]

    _run(tmp_path / "base", tmp_path / "out", {"prune": {"layers": [2], "stack": stack}})

    base, pruned = cls.from_pretrained(tmp_path / "base").eval(), cls.from_pretrained(tmp_path / "out").eval()
    expected = _answer(base, _layer(base, structure.stacks[stack], structure, 2))
    assert torch.equal(_answer(pruned), expected)
    assert not torch.equal(expected, _answer(base))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls_name", ["T5ForConditionalGeneration", "PegasusForConditionalGeneration"])
def test_either_stack_of_an_encoder_decoder_can_be_expanded(cls_name: str, tmp_path: Path) -> None:
    """Self attention, cross attention and MLP are all silenced."""
    cls = _save(cls_name, _SEQ2SEQ[cls_name], tmp_path / "base")
    steps = [
        {"expand": {"after": after, "init": init, "stack": stack}}
        for stack, after, init in (("encoder", [0, 1], "copy"), ("decoder", [1], "mean"))
    ]
    _run(tmp_path / "base", tmp_path / "out", *steps)

    assert torch.equal(
        _answer(cls.from_pretrained(tmp_path / "out").eval()), _answer(cls.from_pretrained(tmp_path / "base").eval())
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls_name", _ENCODERS)
def test_encoders_can_be_pruned(cls_name: str, tmp_path: Path) -> None:
    """BERT and its kin: one stack, loaded with the class that the config names."""
    cls = _save(cls_name, _ENCODERS[cls_name], tmp_path / "base")
    structure = read_structure(open_checkpoint(tmp_path / "base"))
    _run(tmp_path / "base", tmp_path / "out", {"prune": {"layers": [3]}})

    base, pruned = cls.from_pretrained(tmp_path / "base").eval(), cls.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(_answer(pruned), _answer(base, _layer(base, structure.stack(), structure, 3)))


_TOWERS = {
    "Gemma3ForConditionalGeneration": "gemma3",
    "Qwen2VLForConditionalGeneration": "qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "LlavaForConditionalGeneration": "llava",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "Mistral3ForConditionalGeneration": "mistral3",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls_name", _TOWERS)
def test_the_text_tower_of_a_model_that_sees_is_the_one_that_is_operated_on(cls_name: str, tmp_path: Path) -> None:
    """Its count lies in `text_config`; the vision tower is as it was."""
    cls = _save(cls_name, _TOWERS[cls_name], tmp_path / "base")
    structure = read_structure(open_checkpoint(tmp_path / "base"))
    assert structure.stack().config_path == ("text_config",)
    _run(tmp_path / "base", tmp_path / "out", {"prune": {"layers": [2]}}, {"expand": {"after": [0], "init": "copy"}})

    base, apply_draft = cls.from_pretrained(tmp_path / "base").eval(), cls.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(_answer(apply_draft), _answer(base, _layer(base, structure.stack(), structure, 2)))
    vision = [name for name in structure.outside if "vis" in name]
    assert vision
    assert set(vision) == {name for name in open_checkpoint(tmp_path / "out").tensors if "vis" in name}
