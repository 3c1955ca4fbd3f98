"""Places are the different rows of all shards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from kat.density.estimate import distinct_rows
from kat.shards.places import find_places
from tests.helpers.embeddings import rounded, write_embedding_folder
from tests.helpers.random import draws

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(n: int, width: int = 8) -> torch.Tensor:
    return rounded(normalize(torch.randn(n, width, generator=draws(0)), dim=1))


def test_places_by_hand(tmp_path):
    """Seven rows in four shards: a b | b | c a | a d."""
    a, b, c, d = rows(4)
    found = find_places(write_embedding_folder(tmp_path, torch.stack([a, b, b, c, a, a, d]), [2, 1, 2, 2]))
    assert found.place_of.tolist() == [0, 1, 1, 2, 0, 0, 3]
    assert found.first_row.tolist() == [0, 1, 3, 6]
    assert found.copies.tolist() == [3, 2, 1, 1]
    assert len(found) == 4


@pytest.mark.parametrize("sizes", [[300], [1, 99, 150, 50], [60] * 5])
def test_places_are_the_distinct_rows_in_memory(tmp_path, sizes):
    x = rows(80)[torch.randint(0, 80, (300,), generator=draws(1))]
    emb = write_embedding_folder(tmp_path, x, sizes)
    found, (places, place_of, copies) = find_places(emb), distinct_rows(x)
    assert found.place_of.tolist() == place_of.tolist()
    assert found.copies.tolist() == copies.tolist()
    assert torch.equal(emb.take(found.first_row), places)
    assert all(array.dtype == np.int64 for array in vars(found).values())


def test_rows_that_differ_in_one_bit_are_two_places(tmp_path):
    x = rows(3)
    other = x[:1].half().view(torch.int16).clone()
    other[0, -1] ^= 1
    x = torch.cat([x, other.view(torch.float16).float()])
    assert len(find_places(write_embedding_folder(tmp_path, x, [2, 2]))) == 4
