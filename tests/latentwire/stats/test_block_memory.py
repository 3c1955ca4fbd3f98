"""Statistics of many systems and examples take memory in blocks, not for all pairs or all clusters at once."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from latentwire.stats.clusters import SampledClusters
from latentwire.stats.selection import level_with_best
from tests.helpers.random import numbers

MIB = 2**20


def peak(work: Callable[[], object]) -> float:
    """Return the most memory in MiB that numpy and Python held during some work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


def test_sums_of_many_clusters_need_no_matrix_of_them():
    clusters = SampledClusters([i // 2 for i in range(20_000)])
    scores = numbers(0).random((3, 20_000))
    found = {}
    assert peak(lambda: found.update(sums=clusters.sums(scores))) < 20  # a matrix of all clusters takes 1,526 MiB
    assert found["sums"] == pytest.approx(scores.reshape(3, 10_000, 2).sum(axis=2))


def test_clusters_in_any_order_have_their_sums():
    labels = ["b", "a", "b", "c", "a", "b"]
    found = SampledClusters(labels).sums(np.array([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]]))
    assert found.tolist() == [[37.0, 18.0, 8.0]]


@pytest.mark.slow
def test_pairs_of_many_systems_are_compared_in_blocks():
    systems = (numbers(1).random((300, 60)) < 0.5).astype(float)
    systems[0] = 1.0  # the best
    clusters, found = SampledClusters.single(60), {}
    assert peak(lambda: found.update(level=level_with_best(systems, clusters, 0))) < 300  # at once: 684 MiB
    assert found["level"][0]
    assert found["level"].sum() < 30  # half of the examples against all of them


def test_blocks_change_no_result(monkeypatch):
    systems = (numbers(2).random((12, 40)) < np.linspace(0.2, 0.8, 12)[:, None]).astype(float)
    clusters = SampledClusters([i // 2 for i in range(40)])
    whole = level_with_best(systems, clusters, 3)
    monkeypatch.setattr("latentwire.stats.selection.BLOCK", 1)  # one pair at a time
    assert level_with_best(systems, clusters, 3).tolist() == whole.tolist()
    assert 0 < whole.sum() < 12
