"""A recipe does what it says: what was measured for other words, another base or other data is measured anew."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from surgeon.backend.scoring import score_runner as scoring
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.job_results import ScoreResult
from surgeon.core.recipe.recipe import load_recipe
from surgeon.errors import RecipeError
from surgeon.session import Session
from tests.cli.conftest import Run, fresh
from tests.cli.tiny_checkpoints import tiny_llama
from tests.test_session import result_with

Measured = list[str]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """What is measured from now on."""
    names: Measured = []
    real = scoring.measure

    def measure(draft: Any, asked: Any, *rest: Any) -> Any:
        names.extend(asked)
        return real(draft, asked, *rest)

    monkeypatch.setattr(scoring, "measure", measure)
    return names


class Place:
    """A directory with a base, texts, and recipes that are run in it."""

    def __init__(self, directory: Path, run: Run) -> None:
        self.directory, self.command, self._made = directory, run, 0
        self.said = ""

    def write(self, *steps: str, name: str = "r.yaml") -> Path:
        path = self.directory / name
        head = "version: 1\nbase: {model: ./base}\ndata: {docs: docs.txt}\nsteps:\n"
        path.write_text(head + "".join(f"  - {step}\n" for step in steps))
        return path

    def run(self, recipe: Path, *words: object) -> Path:
        """Run a recipe; return where its result is."""
        self._made += 1
        out = self.directory / f"out-{self._made}"
        result = self.command("run", recipe, "--out", out, "--no-verify", *words)
        assert result.exit_code == 0, result.stderr
        self.said = result.stderr
        return out

    def refused(self, *words: object) -> str:
        result = self.command(*words)
        assert result.exit_code == 2, result.stdout
        return result.stderr


@pytest.fixture
def place(tmp_path: Path, run: Run) -> Place:
    tiny_llama(tmp_path / "base")
    (tmp_path / "docs.txt").write_text("one text")
    return Place(tmp_path, run)


def steps_of(out: Path) -> list[Any]:
    return list(load_recipe(out / "recipe.yaml").steps)


def resolved(out: Path) -> list[Any]:
    return [step.resolved for step in steps_of(out)]


def edit(path: Path, *changes: tuple[str, str]) -> Path:
    """Change a recipe by hand."""
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    return path


def older(out: Path) -> Path:
    """Turn an exported recipe into one of before there were digests."""
    path = out / "recipe.yaml"
    path.write_text(re.sub(r"\n +resolved_for: .*", "", path.read_text()))
    return path


LOWEST = "prune: {layers: {lowest: 1, by: weight_norm}}"


def test_an_unchanged_recipe_is_not_measured_again_wherever_it_is_run_from(
    place: Place, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data may be gone, and its result is the same to the byte."""
    first = place.run(place.write("prune: {layers: {lowest: 1, by: weight_norm, data: docs}}"))
    assert measured == ["weight_norm"]
    (place.directory / "docs.txt").unlink()
    (place.directory / "away").mkdir()
    monkeypatch.chdir(place.directory / "away")
    again = place.run(Path("../out-1/recipe.yaml"))
    assert measured == ["weight_norm"]
    for file in ("recipe.yaml", "model.safetensors", "config.json"):
        assert (first / file).read_bytes() == (again / file).read_bytes()


SPOTS: list[Any] = [
    # the step before, its words afterwards, the path of --set and its value
    ("prune: {layers: lowest 1 by weight_norm}", "prune: {layers: lowest 1 by stable_rank}", "prune.layers"),
    ("prune: {layers: lowest 1 by weight_norm}", "prune: {layers: lowest 2 by weight_norm}", "prune.layers"),
    ("expand: {after: lowest 1 by weight_norm}", "expand: {after: highest 1 by weight_norm}", "expand.after"),
    ("freeze: {except: lowest 1 by weight_norm}", "freeze: {except: lowest 1 by stable_rank}", "freeze.except"),
    ("freeze: {layers: through highest by weight_norm}", "freeze: {layers: through lowest by weight_norm}",
     "freeze.layers"),
    ("freeze: {matrices: lowest 25% by weight_norm}", "freeze: {matrices: lowest 25% by stable_rank}",
     "freeze.matrices"),
    ("prune: {layers: except highest 4 by weight_norm}", "prune: {layers: except lowest 4 by weight_norm}",
     "prune.layers"),
]  # fmt: skip


@pytest.mark.parametrize("how", ["by hand", "--set", "--set, an older recipe"])
@pytest.mark.parametrize(("words", "others", "path"), SPOTS)
def test_other_words_are_measured_anew(
    place: Place, measured: Measured, words: str, others: str, path: str, how: str
) -> None:
    """As a fresh recipe with these words is; the new recipe says the same."""
    expected = steps_of(place.run(place.write(others)))
    recipe = place.run(place.write(words)) / "recipe.yaml"
    measured.clear()
    if how == "by hand":
        out = place.run(edit(recipe, (words, others)))
    else:
        if "older" in how:
            older(recipe.parent)
        out = place.run(recipe, "--set", f"steps.0.{path}={others.partition(': ')[2][1:-1].partition(': ')[2]}")
    assert measured
    assert steps_of(out) == expected
    old = next(iter(steps_of(recipe.parent)[0].resolved.values()))
    assert ",".join(map(str, old)) in place.said
    assert others.partition(": ")[2][1:-1].partition(": ")[2] in place.said
    assert "measured anew" in place.said


@pytest.mark.parametrize("how", ["by hand", "--set", "--set, an older recipe"])
def test_layers_that_are_named_now_are_those_that_go(place: Place, measured: Measured, how: str) -> None:
    """With no `resolved` beside them that says otherwise."""
    recipe = place.run(place.write(LOWEST)) / "recipe.yaml"
    measured.clear()
    if how == "by hand":
        out = place.run(edit(recipe, ("{lowest: 1, by: weight_norm}", "0-2")))
    else:
        if "older" in how:
            older(recipe.parent)
        out = place.run(recipe, "--set", "steps.0.prune.layers=0-2")
    assert (measured, resolved(out)) == ([], [None])
    assert open_checkpoint(out).config["num_hidden_layers"] == 3


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ("0-2", "is 4, but prune says 0-2, which is 0-2"),
        ("{lowest: 4, by: weight_norm}", "is 4, but prune says lowest 4 by weight_norm, which is 4 of them"),
    ],
)
def test_an_older_recipe_that_contradicts_itself_is_refused(place: Place, others: str, said: str) -> None:
    """Everywhere, and both are named."""
    out = place.run(place.write(LOWEST))
    (number,) = resolved(out)[0]["layers"]
    edit(older(out), ("{lowest: 1, by: weight_norm}", others))
    said = "steps[0].resolved.layers: " + said.replace("is 4, but", f"is {number}, but")
    recipe = out / "recipe.yaml"
    new = ("--out", place.directory / "new")
    for words in (("run", recipe, *new), ("run", recipe, "--dry-run"), ("verify", out),
                  ("score", place.directory / "base", "--by", "weight_norm", "--recipe", recipe)):  # fmt: skip
        assert said in place.refused(*words)
    with pytest.raises(RecipeError, match=re.escape(said)):
        Session.open(str(place.directory / "base"), recipe)


def test_a_seed_and_data_of_other_bytes_or_another_name_are_measured_anew(place: Place, measured: Measured) -> None:
    out = place.run(place.write("prune: {layers: {lowest: 1, by: weight_norm, data: docs}}"))
    measured.clear()
    (place.directory / "docs.txt").write_text("another text")
    place.run(out / "recipe.yaml")
    assert measured == ["weight_norm"]
    assert "was found on other bytes of ../docs.txt; it is measured anew" in place.said
    (place.directory / "docs.txt").write_text("one text")
    place.run(out / "recipe.yaml")
    assert measured == ["weight_norm"]
    (place.directory / "more.txt").write_text("one text")
    for change in ("data.docs=../more.txt", "seed=1"):
        measured.clear()
        place.run(out / "recipe.yaml", "--set", change)
        assert measured == ["weight_norm"]


def test_data_that_is_gone_is_missed_before_anything_where_it_has_to_be_read_again(place: Place) -> None:
    out = place.run(place.write("prune: {layers: {lowest: 1, by: weight_norm, data: docs}}"))
    (place.directory / "docs.txt").unlink()
    result = place.command(
        "run", out / "recipe.yaml", "--set", "steps.0.prune.layers.by=stable_rank", "--out", out / "n"
    )
    assert result.exit_code == 1
    assert "steps[0].prune.layers.data: names ../docs.txt" in result.stderr


def test_another_base_is_measured_anew(place: Place, measured: Measured) -> None:
    """A base with another fingerprint is refused; whoever takes the fingerprint out wants the recipe for this one."""
    out = place.run(place.write(LOWEST))
    other = write_other(place.directory / "other")
    assert "fingerprint" in place.refused("run", out / "recipe.yaml", "--model", other, "--out", out / "n")
    measured.clear()
    recipe = out / "recipe.yaml"
    recipe.write_text(re.sub(r"\n +fingerprint: .*", "", recipe.read_text()))
    done = place.run(recipe, "--model", other)
    assert measured == ["weight_norm"]
    assert resolved(done) != resolved(out)
    assert "was found on a base with fingerprint" in place.said
    with pytest.raises(RecipeError, match="on a base with fingerprint"):
        Session.open(str(other), recipe)


def write_other(directory: Path) -> Path:
    """Write a model of other weights, whose layers rank otherwise."""
    tiny_llama(directory)
    file = directory / "model.safetensors"
    raw = bytearray(file.read_bytes())
    count = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + count])
    start, end = header["model.layers.0.mlp.up_proj.weight"]["data_offsets"]
    raw[8 + count + start : 8 + count + end] = bytes(end - start)
    file.write_bytes(raw)
    return directory


@pytest.mark.parametrize("stays", [True, False])
def test_a_step_behind_is_measured_anew_where_the_one_before_comes_to_something_else(
    place: Place, measured: Measured, stays: bool
) -> None:
    """By `highest 5` of six the same layer is left out as by `lowest 1`: then the next answer holds."""
    out = place.run(place.write(LOWEST, LOWEST))
    measured.clear()
    other = "{except: {highest: 5, by: weight_norm}}" if stays else "{lowest: 1, by: stable_rank}"
    done = place.run(edit(out / "recipe.yaml", ("{lowest: 1, by: weight_norm}", other)))
    assert len(measured) == (1 if stays else 2)
    assert (resolved(done) == resolved(out)) == stays


def test_what_stands_in_resolved_itself_may_be_set(place: Place, measured: Measured) -> None:
    """A person who says so wants that layer whatever the score says; what is measured behind it is measured anew."""
    out = place.run(place.write(LOWEST, LOWEST))
    measured.clear()
    (chosen,) = resolved(out)[0]["layers"]
    other = (chosen + 1) % 6
    done = place.run(out / "recipe.yaml", "--set", f"steps.0.resolved.layers=[{other}]")
    assert resolved(done)[0] == {"layers": (other,)}
    assert measured == ["weight_norm"]


def test_a_dry_run_says_what_has_to_be_measured_again(place: Place) -> None:
    out = place.run(place.write(LOWEST))
    (number,) = resolved(out)[0]["layers"]
    words = ("run", out / "recipe.yaml", "--set", "steps.0.prune.layers.by=stable_rank", "--dry-run")
    text = place.command(*words).stdout
    assert f"asks for layers lowest 1 by stable_rank, but its `resolved` (layers {number}) was found for other" in text
    assert "steps[0] has to be measured first: stable_rank" in text
    report = json.loads(place.command(*words, "--json").stdout)
    assert report["steps"][0]["stale"].startswith("steps[0].prune asks for")
    assert report["exact"] is False
    unchanged = json.loads(place.command("run", out / "recipe.yaml", "--dry-run", "--json").stdout)
    assert (unchanged["steps"][0]["stale"], unchanged["exact"]) == ("", True)


@pytest.mark.parametrize("change", [("weight_norm", "stable_rank"), ("seed: 0", "seed: 1")])
def test_a_changed_recipe_of_an_export_is_not_verified_and_not_shown(place: Place, change: tuple[str, str]) -> None:
    """What was exported is not what it says."""
    out = place.run(place.write(LOWEST))
    recipe = edit(out / "recipe.yaml", change)
    assert "was found for other words" in place.refused("verify", out)
    assert "was found for other words" in place.refused("verify", out, "--base", place.directory / "base")
    shutil.move(place.directory / "base", place.directory / "gone")
    assert "was found for other words" in place.refused("verify", out)
    with pytest.raises(RecipeError, match="was found for other words"):
        Session.open(str(place.directory / "gone"), recipe)


def test_a_score_after_a_recipe_is_measured_on_what_the_recipe_says(place: Place, measured: Measured) -> None:
    out = place.run(place.write(LOWEST))
    edit(out / "recipe.yaml", ("weight_norm", "stable_rank"))
    measured.clear()
    words = ("score", place.directory / "base", "--by", "weight_norm", "--recipe", out / "recipe.yaml", "--json")
    layers = json.loads(place.command(*words).stdout)["scores"][0]["values"]
    fresh_out = place.run(place.write("prune: {layers: {lowest: 1, by: stable_rank}}"))
    (gone,) = resolved(fresh_out)[0]["layers"]
    assert measured[0] == "stable_rank"
    assert str(gone) not in layers


def test_a_journal_with_answers_for_another_model_is_not_recovered(place: Place) -> None:
    """It lies beside its recipe, whatever model the recipe is opened with."""
    recipe, base = place.write("reorder: {order: [0, 1, 2, 3, 4, 5]}"), str(place.directory / "base")
    donor = steps_of(place.run(place.write(LOWEST, name="other.yaml")))[0]
    session = Session.open(base, recipe)
    session.undo()
    session.apply(donor)
    session.close(keep_journal=True)
    again = Session.open(base, recipe)
    assert again.recovered is not None
    again.close(keep_journal=True)
    other = write_other(place.directory / "other")
    with pytest.raises(RecipeError, match=r"on a base with fingerprint") as caught:
        Session.open(str(other), recipe)
    assert caught.value.where.endswith("r.yaml.journal")


def test_a_session_signs_what_it_resolves(place: Place, measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run of the recipe it saves measures nothing, and a change of it is noticed."""
    monkeypatch.chdir(place.directory)
    session = Session.open("base")
    session.take_scores(ScoreResult(**result_with(session, [6.0, 5.0, 4.0, 1.0, 2.0, 3.0])))
    session.apply(session.step("prune", {"layers": "lowest 2 by removal"}))
    saved = session.save(place.directory / "saved.yaml")
    session.close()
    out = place.run(saved)
    assert (measured, resolved(out)) == ([], [{"layers": (3, 4)}])
    assert load_recipe(saved).base.model == "./base"
    again = Session.open(str(place.directory / "base"), out / "recipe.yaml")
    assert again.draft == Session.open(str(place.directory / "base"), saved).draft
    with pytest.raises(RecipeError, match="was found for other words"):
        Session.open(str(place.directory / "base"), edit(saved, ("removal", "taylor")))


def test_a_recipe_and_its_base_are_found_from_anywhere(place: Place) -> None:
    """In processes of their own, from another directory, once both were moved."""
    place.run(place.write(LOWEST))
    moved = place.directory / "moved"
    moved.mkdir()
    for name in ("base", "out-1", "docs.txt", "r.yaml"):
        shutil.move(place.directory / name, moved / name)
    for recipe, out in (("out-1/recipe.yaml", "again"), ("r.yaml", "anew")):
        ran = fresh("run", moved / recipe, "--out", place.directory / out, "--no-verify", cwd="/")
        assert ran.returncode == 0, ran.stderr
    assert resolved(place.directory / "again") == resolved(place.directory / "anew")
    assert load_recipe(place.directory / "again" / "recipe.yaml").base.model == "../moved/base"
    assert fresh("verify", moved / "out-1", cwd="/", env=None).returncode in (0, 1)  # no tokenizer; the base is found
