"""Claims on work: one owner at a time, named in the file, and free as soon as its process is killed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from latentwire.harness import claims
from latentwire.harness.claims import NoLocksError, Owner, claimed
from latentwire.harness.results import ResultWriteError, open_atomically, sweep_up
from tests.helpers.programs import environment

HOLDER = """
import sys, time
from pathlib import Path
from latentwire.harness.claims import claimed
with claimed(Path(sys.argv[1]), "work") as is_mine:
    print(is_mine, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Return a process that holds a claim."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "claims")]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_claim_names_its_owner_and_ends_with_the_block(tmp_path):
    with claimed(tmp_path / "claims", "work") as is_mine:
        assert is_mine
        owner = Owner.of(tmp_path / "claims" / "work")
        assert owner is not None and (owner.host, owner.pid) == (socket.gethostname(), os.getpid())
        assert str(owner) == f"process {os.getpid()} on {socket.gethostname()}, since {owner.since}"
        with claimed(tmp_path / "claims", "other") as other:
            assert other
        assert (tmp_path / "claims" / "work").exists()
    assert not (tmp_path / "claims").exists()


def test_a_second_claim_is_refused_and_leaves_the_first(tmp_path):
    with claimed(tmp_path / "claims", "work"):
        before = (tmp_path / "claims" / "work").read_text()
        for _ in range(2):
            with claimed(tmp_path / "claims", "work") as is_mine:
                assert not is_mine
        assert (tmp_path / "claims" / "work").read_text() == before


def test_the_claim_of_a_killed_process_is_free(tmp_path, holder):
    owner = Owner.of(tmp_path / "claims" / "work")
    assert owner is not None and owner.pid == holder.pid
    with claimed(tmp_path / "claims", "work") as is_mine:
        assert not is_mine
    holder.kill()
    holder.wait()
    with claimed(tmp_path / "claims", "work") as is_mine:
        assert is_mine
        assert json.loads((tmp_path / "claims" / "work").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "claims").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "a"}', '{"host": "a", "pid": "x", "since": ""}'])
def test_a_file_without_an_owner_names_none(tmp_path, content):
    (tmp_path / "claim").write_text(content)
    assert Owner.of(tmp_path / "claim") is None
    assert Owner.of(tmp_path / "missing") is None


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_refused_with_a_remedy(tmp_path, monkeypatch, number):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    message = r"claims: the file system has no locks.*choose another folder"
    with pytest.raises(NoLocksError, match=message), claimed(tmp_path / "claims", "work"):
        pytest.fail("without a claim")
    assert not (tmp_path / "claims").exists()


def test_a_full_disk_leaves_the_work_free(tmp_path, monkeypatch):
    """The owner cannot be written, so the claim is given back."""
    with monkeypatch.context() as patch:
        patch.setattr(claims.json, "dumps", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(ResultWriteError, match="full"), claimed(tmp_path / "claims", "work"):
            pytest.fail("without a claim")
    with claimed(tmp_path / "claims", "work") as is_mine:
        assert is_mine


@pytest.mark.parametrize(("folder", "reason"), [("file/claims", "Not a directory"), ("file", "File exists")])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, folder, reason):
    (tmp_path / "file").touch()
    with pytest.raises(ResultWriteError, match=reason), claimed(tmp_path / folder, "work"):
        pytest.fail("without a claim")


def test_threads_that_claim_and_release_at_once_never_share(tmp_path):
    """The last claim removes the folder at any moment, which no other claim takes for an error."""
    at_work, worst, errors = [0], [0], []
    counting = threading.Lock()

    def work() -> None:
        try:
            for _ in range(100):
                with claimed(tmp_path / "claims", "work") as is_mine:
                    if is_mine:
                        with counting:
                            at_work[0] += 1
                            worst[0] = max(worst[0], at_work[0])
                        with counting:
                            at_work[0] -= 1
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and worst == [1]


def test_sweeping_up_spares_the_file_that_a_process_writes(tmp_path):
    """The temporary file of a killed process is removed, the one of a live writer is not."""
    (tmp_path / ".left.json.x.tmp").write_text("half")
    with open_atomically(tmp_path / "result.json") as file:
        file.write(b"{}")
        sweep_up(tmp_path)
        (writing,) = tmp_path.glob(".*.tmp")
        assert writing.name.startswith(".result.json.")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_bytes() == b"{}"


def test_sweeping_up_while_files_are_written_loses_none(tmp_path):
    """A writer makes a hundred files while another thread sweeps up without a pause."""
    ended = threading.Event()

    def sweep() -> None:
        while not ended.is_set():
            sweep_up(tmp_path)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(100):
            with open_atomically(tmp_path / f"{number}.json") as file:
                file.write(b"%d" % number)
    finally:
        ended.set()
        sweeper.join()
    assert {int(path.stem): int(path.read_bytes()) for path in Path(tmp_path).glob("*.json")} == dict(
        zip(range(100), range(100), strict=True)
    )
    assert not list(tmp_path.glob(".*.tmp"))
