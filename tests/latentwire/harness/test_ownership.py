"""Work with one owner: waiting for it, leaving it for later, one process of several that claims, and no locks."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from types import SimpleNamespace

import pytest

from latentwire.harness import ownership
from latentwire.harness.claims import claimed
from latentwire.harness.ownership import BusyError, deferring, is_deferring, owned
from latentwire.harness.results import ResultWriteError


@pytest.fixture
def alone(monkeypatch) -> SimpleNamespace:
    """Return the state of a job of one process, which looks at claims without a pause."""
    monkeypatch.setattr(ownership, "POLL", 0.01)
    return SimpleNamespace(is_main_process=True, num_processes=1)


def test_the_block_has_the_claim(tmp_path, alone):
    with owned(tmp_path, "work", alone), claimed(tmp_path / "claims", "work") as is_mine:
        assert not is_mine
    assert not (tmp_path / "claims").exists()


def test_another_owner_is_waited_for_and_named_once(tmp_path, alone, capfd):
    begun, let_go, order = threading.Event(), threading.Event(), []

    def hold() -> None:
        with claimed(tmp_path / "claims", "work"):
            begun.set()
            let_go.wait(30)
            order.append("first")

    holder = threading.Thread(target=hold)
    holder.start()
    begun.wait(30)
    threading.Timer(0.2, let_go.set).start()
    with owned(tmp_path, "work", alone):
        order.append("second")
    holder.join()
    assert order == ["first", "second"]
    assert capfd.readouterr().err.count(f"work: waiting for process {os.getpid()} on ") == 1


def test_within_deferring_nobody_waits(tmp_path, alone):
    with claimed(tmp_path / "claims", "work"):
        began = time.monotonic()
        with deferring():
            assert is_deferring()
            message = rf"work: process {os.getpid()} on .* is at work on it in {tmp_path}; wait until it ends, or"
            with pytest.raises(BusyError, match=message), owned(tmp_path, "work", alone):
                pytest.fail("two owners")
        assert not is_deferring() and time.monotonic() - began < 5
    with deferring(), owned(tmp_path, "work", alone):
        pass


def test_other_work_in_the_folder_is_free(tmp_path, alone):
    with claimed(tmp_path / "claims", "work"), deferring(), owned(tmp_path, "other", alone):
        assert sorted(path.name for path in (tmp_path / "claims").iterdir()) == ["other", "work"]


def test_of_several_processes_the_main_one_claims_for_all(tmp_path, alone, monkeypatch):
    """The others hear whether it could, and raise the same error; none waits, as their connections would time out."""
    heard = []

    def broadcast(state, value):
        heard.append(value)
        return heard[0]

    monkeypatch.setattr(ownership, "broadcast_from_main", broadcast)
    ranks = [SimpleNamespace(is_main_process=main, num_processes=2) for main in (True, False)]
    with claimed(tmp_path / "claims", "work"):
        for rank in ranks:
            with pytest.raises(BusyError, match="work: process"), owned(tmp_path, "work", rank):
                pytest.fail("two owners")
    heard.clear()
    with owned(tmp_path, "work", ranks[0]), owned(tmp_path, "work", ranks[1]):
        assert heard == [None, None]


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_without_locks_the_work_is_done_with_a_note(tmp_path, alone, monkeypatch, capfd):
    def flock(descriptor: int, operation: int) -> None:
        raise NotImplementedError

    monkeypatch.setattr(fcntl, "flock", flock)
    with owned(tmp_path, "work", alone):
        done = True
    assert done and "file system without locks; do not run two commands in it at once" in capfd.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path, alone):
    (tmp_path / "file").touch()
    with pytest.raises(ResultWriteError, match="Not a directory"), owned(tmp_path / "file", "work", alone):
        pytest.fail("without a claim")
