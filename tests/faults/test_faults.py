"""Every planted fault is seen, with its cause; sound sources and transforms give no warning."""

from __future__ import annotations

import pytest

from latentwire.data.examples import DataSpec, load_data
from tests.faults.catalogue import FAULTS
from tests.faults.planting import Bench, bench, flags

pytestmark = [pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def tiny_bench(tiny) -> Bench:
    return bench(tiny, load_data(DataSpec("short_qa", "short_qa")))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_flagged(tiny_bench, fault):
    found, right = flags(fault, tiny_bench)
    assert right, found


def test_the_names_of_the_faults_differ():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40
