"""Progress output: plain lines in a file, a live bar on a terminal, and only from the first process."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
from types import SimpleNamespace

import pytest

from latentwire.harness import progress
from latentwire.harness.progress import Progress, is_main_process, log


@pytest.fixture(autouse=True)
def first_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """Return a clock that changes only when a test sets it."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Terminal:
    """A pseudo-terminal of 120 columns that replaces standard error inside `with`."""

    def __init__(self) -> None:
        self.reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
        self.file = os.fdopen(writer, "w")

    def __enter__(self) -> Terminal:
        self.covered, sys.stderr = sys.stderr, self.file
        return self

    def __exit__(self, *_: object) -> None:
        sys.stderr = self.covered
        self.file.close()
        os.close(self.reader)

    def shown(self) -> str:
        """Return what was written since the last call."""
        self.file.flush()
        shown = b""
        while select.select([self.reader], [], [], 0.05)[0]:
            shown += os.read(self.reader, 65536)
        return shown.decode()


def test_only_the_first_process_logs(monkeypatch, capsys):
    assert is_main_process()
    log("alone")
    monkeypatch.setenv("RANK", "0")
    assert is_main_process()
    log("first")
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()
    log("second")
    assert capsys.readouterr() == ("", "alone\nfirst\n")


def test_without_a_terminal_the_end_is_a_plain_line(capsys, clock):
    with Progress("[3/35] anchor_eps0.05", 4) as bar:
        bar.advance(3, "F1 0.250")
        assert capsys.readouterr() == ("", "")
        bar.advance(1, "F1 0.500")
    assert capsys.readouterr() == ("", "[3/35] anchor_eps0.05  4/4  0 s left  F1 0.500\n")


def test_plain_lines_come_every_ten_seconds_with_the_time_left(capsys, clock):
    lines = []
    with Progress("baseline", 40) as bar:
        for clock.now in range(104, 124, 4):  # 4 to 20 seconds after the start
            bar.advance(2, "F1 0.500")
            lines.append(capsys.readouterr().err)
    # after 12 s 6 of 40 are done: 2 s each, 68 s for the rest
    assert lines == ["", "", "baseline  6/40  68 s left  F1 0.500\n", "", ""]


def test_other_processes_print_nothing(monkeypatch, capsys, clock):
    monkeypatch.setenv("RANK", "1")
    with Progress("baseline", 2) as bar:
        clock.now += 60
        bar.advance(1, "F1 0.500")
        bar.advance(1, "F1 0.500")
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_live_bar_shows_name_count_and_score():
    with Terminal() as terminal, Progress("[3/35] baseline", 4) as bar:
        assert "[3/35] baseline" in terminal.shown()
        bar.bar.mininterval = 0  # draw although no time has passed
        bar.advance(3, "F1 0.250")
        shown = terminal.shown()
        assert shown.startswith("\r[3/35] baseline  ")
        assert "█" in shown
        assert " 3/4 " in shown
        assert " left " in shown
        assert "F1 0.250" in shown
        bar.advance(1, "F1 0.500")
        assert "\n" not in terminal.shown()  # no plain lines with it
        bar.__exit__(None, None, None)
        assert terminal.shown().strip() == ""  # erased: the result's line takes its place


def test_a_message_is_printed_above_the_live_bar():
    with Terminal() as terminal, Progress("baseline", 4):
        terminal.shown()
        log("warning: mind the step")
        wiped, message, bar = terminal.shown().replace("\r\n", "\n").partition("warning: mind the step\n")
    assert message
    assert wiped.strip() == ""
    assert "baseline" in bar


def test_other_processes_draw_no_bar(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Terminal() as terminal:
        with Progress("baseline", 2) as bar:
            bar.bar.mininterval = 0
            bar.advance(2, "F1 0.500")
            log("second")
        assert terminal.shown() == ""
