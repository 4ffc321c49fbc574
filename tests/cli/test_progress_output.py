from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from surgeon.cli.formatting import bytes_text, change_text, count_text, setting_text, table, value_text
from surgeon.cli.progress_output import ConsoleReporter, on_terminal
from surgeon.core.events import Event
from tests.jobs import event_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    screen = Terminal()
    monkeypatch.setattr("surgeon.cli.progress_output.sys", SimpleNamespace(stderr=screen))
    monkeypatch.setenv("TERM", "xterm")
    return screen


def progress(done: int, total: int, unit: str = "layers") -> Event:
    return event_of("progress", done=done, total=total, unit=unit, what="scoring")


def test_a_terminal_gets_a_bar_that_rows_are_written_above(terminal: Terminal) -> None:
    reporter = ConsoleReporter()
    reporter.on_event(progress(3, 6))
    reporter.on_event(event_of("scored", score="s", layer="2", value=0.5, error=None))
    reporter.finish()
    bar = "scoring  ████████████░░░░░░░░░░░░  50%  3 / 6 layers"
    assert terminal.getvalue() == f"{bar}\r\x1b[Ks  layer 2  0.5000\n{bar}\r\x1b[K"


def test_a_bar_of_bytes_or_of_unknown_length_is_readable(terminal: Terminal) -> None:
    ConsoleReporter().on_event(progress(1_500_000, 3_000_000, "bytes"))
    assert "50%  1.5 MB / 3.0 MB" in terminal.getvalue()
    ConsoleReporter().on_event(progress(7, 0))
    assert terminal.getvalue().endswith("scoring  7 layers")


def test_a_file_gets_each_stage_once_and_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter()
    for done in range(3):
        reporter.on_event(progress(done, 3))
    reporter.finish()
    assert capsys.readouterr().err == "scoring\n"


def test_quiet_says_nothing_and_verbose_says_more(capsys: pytest.CaptureFixture[str]) -> None:
    heard = [
        progress(1, 2), event_of("log", level="info", text="loading"), event_of("log", level="warning", text="odd"),
        event_of("stat", rss_bytes=2_000_000, device_bytes=0, threads=1),
    ]  # fmt: skip
    for reporter in (ConsoleReporter(quiet=True), ConsoleReporter(), ConsoleReporter(verbose=True)):
        for one in heard:
            reporter.on_event(one)
    assert capsys.readouterr().err.splitlines() == ["scoring", "odd", "scoring", "loading", "odd", "memory 2.0 MB"]


def test_nobody_listening_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("surgeon.cli.progress_output.sys", SimpleNamespace(stderr=Gone()))
    ConsoleReporter().write_line("anything")


def test_a_dumb_terminal_is_none(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_terminal(terminal)
    monkeypatch.setenv("TERM", "dumb")
    assert not on_terminal(terminal)
    assert not on_terminal(io.StringIO())


@pytest.mark.parametrize(
    ("number", "count", "size"),
    [
        (0, "0", "0 B"),
        (999, "999", "999 B"),
        (1000, "1.00k", "1.0 kB"),
        (17_280, "17.3k", "17.3 kB"),
        (999_999, "1.00M", "1.0 MB"),
        (134_515_008, "134.5M", "134.5 MB"),
        (70_553_706_496, "70.6B", "70.6 GB"),
        (3 * 10**15, "3000.0T", "3000.0 TB"),
    ],
)
def test_numbers_are_short(number: int, count: str, size: str) -> None:
    assert (count_text(number), bytes_text(number)) == (count, size)


def test_differences_have_a_sign() -> None:
    assert [change_text(number, count_text) for number in (-1500, 0, 1500)] == ["-1.50k", "0", "+1.50k"]


def test_values_keep_four_digits() -> None:
    assert [value_text(value) for value in (0.12345, 358, 1e-9, float("nan"), None)] == [
        "0.1235", "358.0", "1.000e-09", "nan", "–",
    ]  # fmt: skip


def test_long_settings_are_shortened_and_say_how_many() -> None:
    assert setting_text([1, 2]) == "[1,2]"
    assert setting_text(["full_attention"] * 30).endswith("… (30 entries)")


def test_a_table_is_aligned_and_has_no_trailing_spaces() -> None:
    text = table(["a", "bb"], [["x", "1"], ["long", "22"]], right="bb")
    assert text == "a     bb\nx      1\nlong  22"
