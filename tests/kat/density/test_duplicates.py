"""Groups of near-duplicates."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from kat.density.duplicates import describe_groups, near_duplicate_groups
from kat.density.estimate import DensitySpec
from kat.density.whitening import whiten
from latentwire.harness.errors import UserError
from tests.helpers.random import draws

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = DensitySpec()


def rows(n: int, width: int = 32) -> torch.Tensor:
    return normalize(torch.randn(n, width, generator=draws(0)), dim=1)


def test_copies_and_near_copies_are_one_group():
    x = rows(60)
    near = normalize(x[3:4] + 0.02 * torch.randn(2, 32, generator=draws(1)), dim=1)
    groups = near_duplicate_groups(torch.cat([x, near, x[5:6]]), 0.7, SPEC)
    assert groups[[3, 60, 61]].tolist() == [3, 3, 3] and groups[[5, 62]].tolist() == [5, 5]
    assert groups[:60].tolist() == list(range(60))


def test_the_threshold_is_the_whitened_cosine():
    """Two prompts with a common direction have a cosine of .9, and are different prompts."""
    x = normalize(rows(60) + 3 * torch.eye(32)[0], dim=1)
    assert float((x @ x.T).min()) > 0.7
    y = whiten(x)
    largest = float((y @ y.T).fill_diagonal_(-1).max())
    assert len(near_duplicate_groups(x, largest + 1e-3, SPEC).unique()) == 60
    assert len(near_duplicate_groups(x, largest - 1e-3, SPEC).unique()) == 59


def test_a_chain_is_one_group_of_any_size():
    """Thirty near copies, more than the neighbours that are searched."""
    near = normalize(rows(1) + 0.01 * torch.randn(30, 32, generator=draws(2)), dim=1)
    groups = near_duplicate_groups(torch.cat([rows(60), near]), 0.7, SPEC)
    assert groups[60:].unique().tolist() == [0]


def test_only_equal_rows_at_one():
    x = torch.cat([rows(4, 2), rows(4, 2)[:2]])
    assert near_duplicate_groups(x, 1.0, SPEC).tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01])
def test_a_threshold_that_is_no_cosine_is_refused(threshold):
    with pytest.raises(UserError, match=r"near_duplicate=.*must be a cosine"):
        near_duplicate_groups(rows(20), threshold, SPEC)


def test_groups_by_hand():
    found = describe_groups(torch.tensor([0, 1, 0, 2, 2, 2]), lambda rows: [("abcdef"[i], "ABCDEF"[i]) for i in rows])
    assert found == {
        "groups": 3,
        "groups_of_several": 2,
        "prompts_in_them": 5,
        "largest": [
            {"size": 3, "ids": ["d", "e", "f"], "texts": ["D", "E", "F"]},
            {"size": 2, "ids": ["a", "c"], "texts": ["A", "C"]},
        ],
    }
