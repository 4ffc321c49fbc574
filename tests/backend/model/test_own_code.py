"""Code that a model brings is not run, and nothing asks about it, unless the recipe or a person says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.backend.model.fit import fit_of
from surgeon.backend.model.loading import load_tokenizer
from surgeon.core.adapters.opened_model import trusting
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.recipe.recipe import Base, Recipe, load_recipe
from surgeon.errors import ArchitectureError, SurgeonError
from tests.backend.training_recipes import pupil, recipe, training
from tests.jobs import keep_silent, never, perform

MAPPED = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
CONFIG_CODE = "from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = 'own_new'\n"
MODEL_CODE = (
    "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n"
    "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
)
DATA = {"data": "text.jsonl", "sequences": 2, "length": 16}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a type that transformers does not know; whoever runs its code leaves `ran`, who asks fails."""
    base = pupil(tmp_path)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "own_new", "architectures": ["OwnForCausalLM"], "auto_map": MAPPED}
    (base / "config.json").write_text(json.dumps(config))
    mark = f"open({str(tmp_path / 'ran')!r}, 'a').close()\n"
    (base / "configuration_own.py").write_text(mark + CONFIG_CODE)
    (base / "modeling_own.py").write_text(mark + MODEL_CODE)

    def asked(*_: object) -> str:
        raise AssertionError("something asked")

    monkeypatch.setattr("builtins.input", asked)
    return base


def _args(base: Path, *steps: Any, trust: bool = False, **more: Any) -> dict[str, Any]:
    plain = recipe(base, steps)
    plain["base"] |= {"trust_remote_code": True} if trust else {}
    return {"recipe": plain, "root": str(base.parent), **more}


def test_every_job_that_needs_the_model_refuses_it_by_its_files(own: Path, tmp_path: Path) -> None:
    """And says how to trust it; of depth surgery, that it can be written unproved."""
    prune, out = {"prune": {"layers": "1"}}, str(tmp_path / "out")
    jobs = [
        ("score", {**_args(own), "names": ["block_influence"], **DATA}),
        ("ablate", {**_args(own), "roles": ["mlp.up"], **DATA}),
        ("run", _args(own, {"evaluate": {"data": "text.jsonl", "rows": 2}})),
        ("run", _args(own, training(), out=out, verify=False)),
        ("learn", _args(own, training())),
        ("run", _args(own, {"masked_lora": {"rank": 2}}, out=out, verify=False)),
        ("run", _args(own, prune, out=out)),
        ("check", {"model": str(own), "root": "."}),
        ("verify", {"directory": str(own)}),
    ]
    for name, args in jobs:
        with pytest.raises(ArchitectureError) as caught:
            perform(name, args, keep_silent, never)
        assert (
            "code of its own (configuration_own.py, modeling_own.py), which surgeon does not run" in caught.value.what
        )
        assert "--trust-remote-code" in caught.value.hint
        assert ("--no-verify" in caught.value.hint) == (args is jobs[6][1])
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_surgery_that_needs_no_code_is_written_unproved(own: Path, tmp_path: Path) -> None:
    told: list[str] = []
    args = _args(own, {"prune": {"layers": "1"}}, out=str(tmp_path / "out"), verify=False)
    perform("run", args, lambda kind, body: told.append(str(body.get("text"))))
    assert any("code of its own, which is not run" in text for text in told)
    assert (tmp_path / "out" / "modeling_own.py").read_bytes() == (own / "modeling_own.py").read_bytes()
    assert not (tmp_path / "ran").exists()


def test_scores_of_weights_need_none_of_it(own: Path, tmp_path: Path) -> None:
    """Read from files; that the model was not judged is told."""
    told: list[str] = []
    args = {**_args(own), "names": ["weight_norm"], **DATA}
    [score] = perform("score", args, lambda kind, body: told.append(str(body.get("text"))))["scores"]
    assert len(score["values"]) == 2
    assert any("was not judged" in text for text in told)
    assert not (tmp_path / "ran").exists()


def test_a_recipe_that_trusts_it_runs_and_says_so(own: Path, tmp_path: Path) -> None:
    """Proved, and the trust is in the recipe, the card and the provenance of scores."""
    out = tmp_path / "out"
    result = perform("run", _args(own, {"prune": {"layers": "1"}}, trust=True, out=str(out)))
    assert result["proof"]["logits"]["passed"] is True
    assert (tmp_path / "ran").exists()
    assert load_recipe(out / "recipe.yaml").base.trust_remote_code is True
    card = (out / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert "Code that the base brings was run" in card
    [score] = perform("score", {**_args(own, trust=True), "names": ["block_influence"], **DATA})["scores"]
    assert score["provenance"]["trust_remote_code"] is True


def test_the_recipe_of_an_export_does_not_trust_for_who_verifies_it(own: Path, tmp_path: Path) -> None:
    """It came with what is to be checked."""
    out = tmp_path / "out"
    perform("run", _args(own, {"prune": {"layers": "1"}}, trust=True, out=str(out)))
    (tmp_path / "ran").unlink()
    with pytest.raises(ArchitectureError, match="does not run"):
        perform("verify", {"directory": str(out)})
    assert not (tmp_path / "ran").exists()
    proof = perform("verify", {"directory": str(out), "trust_remote_code": True})["proof"]
    assert proof["logits"]["passed"] is True


def test_a_known_type_is_loaded_by_its_own_class_though_it_brings_code(tmp_path: Path) -> None:
    """As transformers loads it where nothing is trusted; trusted, the model's own class is taken."""
    base = pupil(tmp_path)
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (base / "config.json").write_text(json.dumps(config))
    (base / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nclass OwnForCausalLM(LlamaForCausalLM):\n    pass\n"
    )
    assert fit_of(open_checkpoint(base)).class_name == "LlamaForCausalLM"
    assert fit_of(open_checkpoint(base, trust_remote_code=True)).class_name == "OwnForCausalLM"


@pytest.mark.parametrize("whole", [True, False], ids=["of a checkpoint", "of a directory"])
def test_a_tokenizer_that_is_code_is_refused_alike(whole: bool, tmp_path: Path) -> None:
    base = pupil(tmp_path)
    (base / "tokenizer.json").unlink()
    plain = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    (base / "tokenizer_config.json").write_text(json.dumps(plain))
    (base / "tokenization_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').close()\n")
    with pytest.raises(SurgeonError):
        load_tokenizer(open_checkpoint(base) if whole else base)
    assert not (tmp_path / "ran").exists()


def test_trust_is_for_the_model_that_was_named(tmp_path: Path) -> None:
    """Another base under the same recipe is not trusted by it."""
    loaded = Recipe(base=Base(model="./mine", trust_remote_code=True))
    assert trusting(loaded, str(tmp_path / "mine"), tmp_path, trust=False).base.trust_remote_code
    assert not trusting(loaded, str(tmp_path / "other"), tmp_path, trust=False).base.trust_remote_code
    assert trusting(loaded, str(tmp_path / "other"), tmp_path, trust=True).base.trust_remote_code


def test_a_package_that_a_quantised_model_needs_is_named_before_anything_is_written(tmp_path: Path) -> None:
    base = pupil(tmp_path)
    config = json.loads((base / "config.json").read_text())
    number = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": number}},
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    if _installed("compressed_tensors"):
        pytest.skip("the package is installed")
    out = tmp_path / "out"
    with pytest.raises(ArchitectureError, match="needs the package compressed-tensors") as caught:
        perform("run", _args(base, {"prune": {"layers": "1"}}, out=str(out)))
    assert caught.value.hint.startswith("pip install")
    assert "--no-verify" in caught.value.hint
    assert not out.exists()
    perform("run", _args(base, {"prune": {"layers": "1"}}, out=str(out), verify=False))
    assert out.is_dir()
    with pytest.raises(ArchitectureError, match="needs the package"):
        perform("score", {**_args(base), "names": ["block_influence"], **DATA})


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None
