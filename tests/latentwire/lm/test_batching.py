"""Batches of rows within a budget of positions, on sizes with plans worked out by hand."""

from latentwire.lm.batching import largest_first, pack_joined, pack_padded


def test_largest_first_keeps_the_order_of_equal_sizes():
    assert largest_first([3, 5, 3, 9, 5]) == [3, 1, 4, 0, 2]
    assert largest_first([]) == []


def test_padding_counts_in_a_padded_batch():
    """Two rows, one of them of 9 positions, cost 18 positions; three cost 27."""
    assert pack_padded([3, 9, 5], 27) == [[1, 2, 0]]
    assert pack_padded([3, 9, 5], 26) == [[1, 2], [0]]
    assert pack_padded([3, 9, 5], 18) == [[1, 2], [0]]
    assert pack_padded([3, 9, 5], 17) == [[1], [2, 0]]  # 9; 2 x 5
    assert pack_padded([], 10) == []


def test_padded_batches_follow_a_given_order():
    """A longer row in the order makes the whole batch longer: 3 and 9 cost 2 x 9."""
    assert pack_padded([3, 9, 5], 18, order=[0, 1, 2]) == [[0, 1], [2]]
    assert pack_padded([3, 9, 5], 17, order=[0, 1, 2]) == [[0], [1], [2]]  # 9 and 5 cost 18 too
    assert pack_padded([3, 9, 5], 10, order=iter([2, 0, 1])) == [[2, 0], [1]]
    assert pack_padded([3, 9, 5], 10, order=[2]) == [[2]]


def test_a_row_above_the_budget_gets_its_own_batch():
    assert pack_padded([2, 30, 2, 2], 6) == [[1], [0, 2, 3]]
    assert pack_padded([2, 30, 2, 2], 6, order=range(4)) == [[0], [1], [2, 3]]


def test_joined_groups_sum_their_sizes_in_order():
    """4 + 3 and 2 + 5 fit into 7, and into 8; 4 + 3 + 2 + 5 fit into 14."""
    assert pack_joined([4, 3, 2, 5], 14) == [[0, 1, 2, 3]]
    assert pack_joined([4, 3, 2, 5], 7) == pack_joined([4, 3, 2, 5], 8) == [[0, 1], [2, 3]]
    assert pack_joined([4, 3, 2, 5], 6) == [[0], [1, 2], [3]]
    assert pack_joined([4, 30, 2, 5], 7) == [[0], [1], [2, 3]]  # 30 is above the budget
    assert pack_joined([1, 1], -2) == [[0], [1]]  # a shared beginning above the budget leaves less than nothing
    assert pack_joined([], 7) == []
