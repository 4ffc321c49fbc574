"""What a session did since its recipe was last saved, on disk after every step, so that a kill loses nothing.

Each line is the whole state: the steps, how many of them are applied, and the digest of the recipe file it builds on.
The last whole line counts; a line torn by a crash is passed over. A live session holds a lock on its journal.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from surgeon.core.checkpoint.file_system import Lock, sync, try_lock
from surgeon.core.checkpoint.model_location import state_directory
from surgeon.errors import SurgeonError

_MOST_NOTES = 50
_NUMBERED = re.compile(r"-\d+")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The state after one step. `steps` are plain data as `recipe.step_to_builtins` writes them."""

    model: str
    steps: list[dict[str, Any]]
    position: int
    recipe_digest: str = ""


@dataclass(frozen=True)
class Kept:
    """Steps that an ended session left in a journal: beside which recipe, if any, and how many are applied."""

    recipe: Path | None
    applied: int
    written: float


class Journal:
    """One session's journal. Opened for as long as the session lives.

    A journal that cannot be written stops nobody: `fault` says so, and why; it is empty while all is well.
    """

    def __init__(self, path: Path) -> None:
        """Open and lock it, or one of its numbered siblings if other live sessions hold it.

        One that a dead session left something in comes before an empty one, so that it is found and recovered.

        Raises:
            SurgeonError: live sessions hold all of them.
        """
        self.path, self.fault = path, ""
        self._handle: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open(path)
        except OSError as error:
            self.fault = f"a crash would lose the steps: no journal can be kept at {path}: {error.strerror or error}"
            return
        if self._handle is None:
            raise SurgeonError("all journals are held by other sessions", where=str(path), hint="close some of them")

    def _open(self, path: Path) -> None:
        names = [path, *(path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, 100))]
        for self.path in sorted(names, key=_is_empty):
            self._handle, lock = _lock(self.path)
            if lock is Lock.UNSUPPORTED:
                self.fault = f"{path.parent} has no locks: a second session on the same would write to {self.path} too"
            if self._handle is not None:
                return

    def last(self) -> Entry | None:
        """Return the newest whole entry."""
        if self._handle is None:
            return None
        try:
            return _last_entry(self.path)
        except OSError as error:
            self._fail(error)
            return None

    def append(self, entry: Entry) -> None:
        """Write an entry and make sure that it is on disk."""
        if self._handle is None:
            return
        line = msgspec.json.encode(entry) + b"\n"
        try:
            if os.fstat(self._handle).st_size:
                line = b"\n" + line  # a torn line before it must not swallow this one
            view = memoryview(line)
            while view:
                view = view[os.write(self._handle, view) :]
            sync(self._handle)
            self.fault = ""
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.fault = f"a crash would lose the last steps: {self.path} cannot be used: {error.strerror or error}"

    def clear(self) -> None:
        """Forget everything: the recipe holds it now."""
        if self._handle is not None:
            try:
                os.ftruncate(self._handle, 0)
            except OSError as error:
                self._fail(error)

    def close(self, *, keep: bool) -> None:
        """Release it; `keep` leaves what it holds for the next session to recover."""
        if self._handle is None:
            return
        if not keep:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None


def journal_path(fingerprint: str, recipe_path: Path | None) -> Path:
    """Return where a session's journal lies: beside its recipe, or by the model's fingerprint where it has none."""
    if recipe_path is not None:
        return recipe_path.with_name(f".{recipe_path.name}.journal")
    return state_directory() / "journals" / f"{fingerprint}.journal"


def note_recipe(fingerprint: str, recipe_path: Path) -> None:
    """Note that steps on a model are kept beside a recipe, so that they are found when the model is opened without."""
    path, line = _notes_path(fingerprint), str(recipe_path.absolute())
    with suppress(OSError):
        known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if line not in known:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join([*known[-_MOST_NOTES:], line]) + "\n", encoding="utf-8")


def kept_steps(fingerprint: str) -> list[Kept]:
    """Return where ended sessions on a model have left steps that no recipe holds, the newest first."""
    try:
        lines = _notes_path(fingerprint).read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    recipes = [None, *map(Path, dict.fromkeys(reversed(lines)))]
    found = [kept for recipe in recipes if (kept := _kept(fingerprint, recipe)) is not None]
    return sorted(found, key=lambda kept: -kept.written)


def _kept(fingerprint: str, recipe: Path | None) -> Kept | None:
    path = journal_path(fingerprint, recipe)
    for one in sorted(path.parent.glob(f"{path.stem}*{path.suffix}")):
        if _is_empty(one) or (one != path and not _NUMBERED.fullmatch(one.stem.removeprefix(path.stem))):
            continue
        with suppress(OSError):
            handle, _ = _lock(one)
            if handle is None:  # of a session that lives
                continue
            try:
                entry = _last_entry(one)
                # What the recipe was saved with since, or changed by hand to, is not what these steps go on from.
                if entry is not None and entry.recipe_digest == recipe_digest(recipe):
                    return Kept(recipe, entry.position, one.stat().st_mtime)
            finally:
                os.close(handle)
    return None


def _notes_path(fingerprint: str) -> Path:
    return state_directory() / "journals" / f"{fingerprint}.recipes"


def recipe_digest(path: Path | None) -> str:
    """Return the digest of a recipe file; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else ""


def _last_entry(path: Path) -> Entry | None:
    for line in reversed(path.read_bytes().splitlines()):
        with suppress(msgspec.MsgspecError):
            return msgspec.json.decode(line, type=Entry)
    return None


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True


def _lock(path: Path) -> tuple[int | None, Lock]:
    """Return a handle that holds the file's lock, or None if another session holds it; and what came of locking it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            lock = try_lock(handle)
        except OSError:
            os.close(handle)
            raise
        if lock is Lock.TAKEN:
            os.close(handle)
            return None, lock
        if os.fstat(handle).st_nlink:
            return handle, lock
        os.close(handle)  # its last owner removed it before we had the lock: nobody would find it again


@dataclass(frozen=True)
class Recovery:
    """What a crash left in the journal."""

    steps: int
    applied: int
    path: Path
