"""Search in lists: what it finds, against brute force, and how many lists a recall needs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from kat.density.lists import fit_lists, list_count, lists_needed, nearest_lists, search_lists
from tests.helpers.lifelike import lifelike
from tests.helpers.random import draws

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(n: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(n, width, generator=draws(seed)), dim=1)


def members_of(x: torch.Tensor, centres: torch.Tensor):
    """Return the list of each row, and the function that reads a list."""
    own = nearest_lists(x, centres, 1)[:, 0]

    def members(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = (own == number).nonzero()[:, 0]
        return x[ids], ids

    return own, members


def brute_force(queries: torch.Tensor, own: torch.Tensor, x: torch.Tensor, k: int):
    products = queries @ x.T
    products[torch.arange(len(queries)), own] = -math.inf
    return products.topk(k)


@pytest.mark.parametrize("product", [2**25, 64])
def test_all_lists_are_brute_force(monkeypatch, product):
    """In blocks of any size, and in any order of the lists."""
    monkeypatch.setattr("kat.density.lists.PRODUCT", product)
    x, own = rows(300), torch.arange(300).flip(0)[:170]
    centres = fit_lists(x, 20, 0)
    probes = torch.stack([torch.randperm(20, generator=draws(n)) for n in range(170)])
    products, ids = search_lists(x[own], own, probes, members_of(x, centres)[1], 7)
    expected = brute_force(x[own], own, x, 7)
    torch.testing.assert_close(products, expected.values)
    assert torch.equal(ids, expected.indices)
    assert ids.dtype == torch.int64 and products.dtype == torch.float32
    assert (ids != own[:, None]).all()
    assert (products.diff(dim=1) <= 0).all()


def test_only_the_given_lists_are_searched():
    """Each list is read once for the queries for which it is the nearest, and once for all others."""
    x, own = rows(200), torch.arange(200)
    centres = fit_lists(x, 12, 0)
    of_row, members = members_of(x, centres)
    read = []

    def counted(number: int):
        read.append(number)
        return members(number)

    probes = nearest_lists(x, centres, 4)
    _, ids = search_lists(x, own, probes, counted, 5)
    searched = (of_row[ids.clamp(min=0)][:, :, None] == probes[:, None, :]).any(2)
    assert searched[ids >= 0].all()
    assert max(read.count(number) for number in read) <= 2


def test_rows_equal_to_a_query_are_its_neighbours():
    """A query is left out by its number, so a copy of it is found."""
    x = torch.cat([rows(30), rows(30)[:1]])
    products, ids = search_lists(x, torch.arange(31), torch.zeros(31, 1).long(), lambda _: (x, torch.arange(31)), 3)
    assert ids[0, 0] == 30 and ids[30, 0] == 0
    assert products[[0, 30], 0].tolist() == pytest.approx([1, 1])


def test_short_lists_leave_the_end_empty():
    x = rows(5, 4)
    parts = {0: torch.tensor([0, 1, 2]), 1: torch.tensor([3]), 2: torch.tensor([], dtype=torch.int64)}
    probes = torch.tensor([[0, 1], [1, 2], [2, 2]])
    products, ids = search_lists(
        x[[0, 3, 4]], torch.tensor([0, 3, 4]), probes, lambda name: (x[parts[name]], parts[name]), 4
    )
    assert sorted(ids[0].tolist()[:3]) == [1, 2, 3] and ids[0, 3] == -1
    assert ids[1:].tolist() == [[-1] * 4] * 2
    assert (products == -math.inf).tolist() == [[False, False, False, True], [True] * 4, [True] * 4]


def test_lists_needed_by_hand():
    """Rows at 0 and 90 degrees, lists at 0, 60 and 100 degrees."""
    degrees = torch.tensor([0.0, 60.0, 100.0]).deg2rad()
    centres = torch.stack([degrees.cos(), degrees.sin()], dim=1)
    queries = torch.eye(2)
    of_neighbours = torch.tensor([[0, 1], [2, 0]])  # ranks 1 and 2 for the first query, 1 and 3 for the second
    needed = {
        recall: lists_needed(queries, centres, of_neighbours, recall) for recall in (0.0, 0.5, 0.51, 0.75, 0.76, 1.0)
    }
    assert needed == {0.0: 1, 0.5: 1, 0.51: 2, 0.75: 2, 0.76: 3, 1.0: 3}


@pytest.mark.statistical
@pytest.mark.parametrize("recall", [0.5, 0.9, 0.99])
def test_the_needed_lists_reach_the_recall_and_one_less_does_not(recall):
    x = lifelike(0, n=600, width=24)
    centres = fit_lists(x, list_count(600), 0)
    of_row, members = members_of(x, centres)
    sample = torch.randperm(600, generator=draws(1))[:150]
    true = brute_force(x[sample], sample, x, 10).indices
    count = lists_needed(x[sample], centres, of_row[true], recall)

    def recall_with(lists: int) -> float:
        ids = search_lists(x[sample], sample, nearest_lists(x[sample], centres, lists), members, 10)[1]
        return float((ids[:, :, None] == true[:, None, :]).any(1).double().mean())

    assert recall_with(count) >= recall
    assert 1 < count < len(centres) and recall_with(count - 1) < recall


def test_nearest_lists_are_those_of_the_largest_products(monkeypatch):
    monkeypatch.setattr("kat.density.lists.BLOCK", 7)
    x, centres = rows(30), rows(9, seed=1)
    assert torch.equal(nearest_lists(x, centres, 4), (x @ centres.T).argsort(descending=True)[:, :4])


def test_centres_are_unit_rows_of_clusters():
    """With the same seed they are the same; there are at most as many as rows."""
    x = lifelike(0, n=400, width=24)
    centres = fit_lists(x, 30, 3)
    assert centres.shape == (30, 24) and centres.dtype == torch.float32
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(30))
    assert torch.equal(centres, fit_lists(x, 30, 3))
    assert not torch.equal(centres, fit_lists(x, 30, 4))
    near, random = ((x @ rows.T).amax(1).mean() for rows in (centres, x[:30]))
    assert near > random
    assert fit_lists(x[:8], 30, 0).shape == (8, 24)


def test_the_number_of_lists():
    assert [list_count(n) for n in (1, 2, 100, 10_000, 10**7)] == [1, 2, 40, 400, 12_649]
