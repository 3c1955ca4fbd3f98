"""Processes that share work in a folder: who may begin, and claims of killed processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from latentwire.harness.claims import claimed
from latentwire.harness.ownership import BusyError
from latentwire.harness.participants import require_idle, taking_part
from tests.helpers.paths import ROOT

OTHER = """
import sys, time
from pathlib import Path
from latentwire.harness.participants import taking_part

with taking_part(Path(sys.argv[1]), sys.argv[2]):
    print("there", flush=True)
    sys.stdin.read()
"""


def other_process(folder: Path, key: str) -> subprocess.Popen[str]:
    """Start a process that takes part until its standard input is closed."""
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(folder), key], stdin=subprocess.PIPE, text=True,
                               stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


@pytest.fixture
def shares(tmp_path: Path) -> Path:
    return tmp_path / "shares"


def test_processes_with_one_key_take_part_and_another_key_waits(shares):
    with other_process(shares, "aa") as other:
        with taking_part(shares, "aa"):
            assert len(list((shares / "claims").iterdir())) == 2
        owner = f"process {other.pid} on {socket.gethostname()}, since "
        refused = pytest.raises(BusyError, match=rf"{shares}: {owner}.* does other work there; wait until it")
        with refused, taking_part(shares, "a"):
            pytest.fail("began")
        with pytest.raises(BusyError, match=rf"{shares}: {owner}.* does work there"):
            require_idle(shares)
        other.communicate()
    require_idle(shares)
    with taking_part(shares, "a"):
        pass
    assert not (shares / "claims").exists()


def test_a_unit_in_work_keeps_a_folder_from_being_cleared(shares):
    with claimed(shares / "claims", "00003"):
        with pytest.raises(BusyError, match=rf"process {os.getpid()} on "):
            require_idle(shares)
        with taking_part(shares, "aa"):  # units have no key in their names
            pass


def test_the_claim_of_a_killed_process_counts_at_no_time(shares):
    with other_process(shares, "aa") as other:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert len(list((shares / "claims").iterdir())) == 1
    with taking_part(shares, "bb"):
        assert [path.name.split(".")[0] for path in (shares / "claims").iterdir()] == ["bb"]
    require_idle(shares)
    assert not (shares / "claims").exists()
