"""Which tokens share a position, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from latentwire.grouping import (
    bounds_around,
    choose_heads,
    group_bounds,
    group_means,
    information,
    pooling_matrix,
    word_begins,
)


def test_groups_are_of_nearly_equal_size_and_in_order():
    assert group_bounds(5, 2) == [(0, 2), (2, 5)]
    assert group_bounds(6, 3) == [(0, 2), (2, 4), (4, 6)]
    assert group_bounds(3, 3) == [(0, 1), (1, 2), (2, 3)]
    assert group_bounds(2, 4) == [(0, 1), (0, 1), (1, 2), (1, 2)]


def test_group_means_by_hand():
    x = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]])
    assert group_means(x, 2).tolist() == [[1.0, 0.0], [4.0, 3.0]]
    assert group_means(x, 3).tolist() == x.tolist()


def test_the_pooling_matrix_leaves_padding_out():
    matrix = pooling_matrix(4, [[(0, 2), (2, 4)], [(0, 2)]])
    assert matrix.tolist() == [[[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], [[0.5, 0.5, 0, 0], [0, 0, 0, 0]]]


def test_a_group_takes_along_what_stands_before_its_head():
    assert bounds_around([1, 2, 5], 8) == [(0, 2), (2, 3), (3, 8)]  # the last one what comes after it, too
    assert bounds_around([3], 4) == [(0, 4)]


def test_information_is_that_of_the_frequencies():
    found = information([[0, 0, 0], [2]], 4)  # counts 3, 0, 1, 0, plus one each, of 8
    assert found.tolist() == pytest.approx([-math.log(n / 8) for n in (4, 1, 2, 1)])


def test_a_word_begins_after_a_space_and_with_what_is_no_letter(tiny):
    ids = tiny.tokenizer(" the zebrafish, Qyx 42!")["input_ids"]
    begins = word_begins(tiny.tokenizer, tiny.token_embeddings().shape[0])
    pieces = tiny.tokenizer.convert_ids_to_tokens(ids)
    assert len(begins) == tiny.token_embeddings().shape[0]
    assert [bool(begins[i]) for i in ids] == [p.startswith("Ġ") or not p[0].isalnum() for p in pieces]
    assert {True, False} == {bool(begins[i]) for i in ids}  # the tiny tokenizer splits these words


def test_words_are_kept_whole_and_those_that_say_most_first():
    said = [1.0, 9.0, 5.0, 2.0, 8.0, 8.0, 8.0]
    begins = [True, True, False, True, True, False, False]  # words: 0 | 1 2 | 3 | 4 5 6
    assert choose_heads(said, begins, 3) == [4, 5, 6]  # a mean of 8 before one of 7
    assert choose_heads(said, begins, 5) == [1, 2, 4, 5, 6]
    assert choose_heads(said, begins, 2) == [1, 2]  # the longer word has no room and is passed over
    assert choose_heads(said, begins, 1) == [3]  # nor has the next
    assert choose_heads(said, begins, 7) == list(range(7))


def test_room_that_no_word_fits_goes_to_single_tokens():
    assert choose_heads([1.0, 4.0, 2.0, 3.0], [True, False, False, False], 2) == [1, 3]
    assert choose_heads([1.0, 1.0, 1.0], [False, False, False], 2) == [0, 1]  # a tie: the first ones
