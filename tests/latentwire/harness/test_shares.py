"""Division of jobs among workers: nothing is lost, the loads are even, and groups stay together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentwire.harness.shares import Cost, divide

COSTS = st.lists(st.builds(Cost, st.sampled_from("abc"), st.sampled_from([0.0, 1.0, 2.5, 40.0]), st.just(3.0)),
                 min_size=1, max_size=30)  # fmt: skip


def load(costs: list[Cost], share: list[int]) -> float:
    return sum(costs[place].seconds for place in share)


@given(COSTS, st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_every_job_is_in_one_share_with_its_group(costs, workers):
    """The shares, one after the other, are the groups one after the other, each in its order."""
    shares = divide(costs, workers)
    line = [place for share in shares for place in share]
    order = list(dict.fromkeys(cost.group for cost in costs))
    assert line == sorted(range(len(costs)), key=lambda place: order.index(costs[place].group))
    assert len(shares) <= workers and all(shares)


@given(st.lists(st.sampled_from([0.5, 1.0, 2.5, 40.0]), min_size=1, max_size=30), st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_no_share_is_a_job_above_the_mean(seconds, workers):
    costs = [Cost("a", one) for one in seconds]
    even = sum(seconds) / workers
    for share in divide(costs, workers):
        assert load(costs, share) <= even + max(seconds) + 1e-9


def test_each_share_counts_what_it_loads():
    """Eight jobs whose group takes long to load, in two shares that both load it; then jobs of two groups."""
    assert [len(share) for share in divide([Cost("a", 1.0, 4.0)] * 8, 2)] == [4, 4]
    assert [len(share) for share in divide([Cost("a", 0.2, 4.0)] * 4, 4)] == [1] * 4
    assert divide([Cost("b", 0.0001, 3.0), *[Cost("a", 1.0)] * 3], 2) == [[0], [1, 2, 3]]
    costs = [Cost("a", 1.0), Cost("a", 1.0), Cost("a", 1.0), Cost("b", 0.0001, 3.0)]
    assert divide(costs, 2) == [[0, 1, 2], [3]]
    assert divide([*costs[:3], Cost("b", 0.0001)], 2) == [[0, 1], [2, 3]]


def test_finished_jobs_cost_nothing():
    """A group whose jobs are all finished is not loaded."""
    finished = [Cost("a", 0.0, 100.0)] * 6
    shares = divide([*finished, Cost("b", 1.0), Cost("b", 1.0)], 2)
    assert [6 in share for share in shares] == [True, False] and 7 in shares[1]


@pytest.mark.parametrize("seconds", [1.0, 0.0])
def test_equal_jobs_are_divided_by_number(seconds):
    for count, workers in ((6, 3), (5, 2), (1, 4), (7, 7)):
        sizes = [len(share) for share in divide([Cost("", seconds)] * count, workers)]
        assert len(sizes) == min(count, workers) and max(sizes) - min(sizes) <= 1
