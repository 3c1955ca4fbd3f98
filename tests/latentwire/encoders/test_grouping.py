"""Groups of tokens that share a latent, checked by hand."""

from __future__ import annotations

import math
from collections import Counter
from typing import ClassVar

import pytest
import torch

from latentwire.encoders.grouping import (
    bounds_around,
    choose_heads,
    group_bounds,
    group_means,
    information,
    pooling_matrix,
    word_begins,
    word_spans,
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


def test_a_group_contains_the_tokens_before_its_head():
    assert bounds_around([1, 2, 5], 8) == [(0, 2), (2, 3), (3, 8)]  # the last group also has the tokens after its head
    assert bounds_around([3], 4) == [(0, 4)]


def test_information_of_a_token_is_the_mean_over_its_words():
    begins = torch.tensor([True, True, False, False, True])  # 2 and 3 continue a word
    found = information([[0, 1, 2], [0, 1, 3, 3], [0], [1, 2]], begins)
    said = {
        word: -math.log((count + 1) / 9) for word, count in (("0", 3), ("12", 2), ("133", 1))
    }  # 6 words, plus one for each of the 3
    expected = [said["0"], (2 * said["12"] + said["133"]) / 3, said["12"], said["133"], math.log(9)]
    assert found.tolist() == pytest.approx(expected)


def test_a_continuation_at_the_start_of_a_text_begins_a_word():
    assert word_spans([False, False, True, True, False]) == [(0, 2), (2, 3), (3, 5)]
    assert word_spans([]) == []


def test_numbers_have_most_information_despite_frequent_digits():
    nouns, space, digits = range(10, 30), 30, range(10)  # a number is a space and its digits
    begins = torch.tensor([token >= 10 for token in range(31)])
    texts = [[10 + n % 20, space, *map(int, str(n))] for n in range(100, 400)]
    times = Counter(token for ids in texts for token in ids)
    assert max(times[token] for token in nouns) < min(times[token] for token in (*digits, space))
    said = information(texts, begins).tolist()
    assert min(said[token] for token in (*digits, space)) > max(said[token] for token in nouns)


def test_a_word_begins_after_a_space_or_with_a_non_letter():
    class Pieces:
        """Byte-level pieces, such as the spellings of a space, a dash and a part of a letter."""

        known: ClassVar = {"Ġthe": " the", "fish": "fish", "42": "42", ",": ",", "âĢĶ": "\N{EM DASH}", "Ã": "\ufffd",
                           "Ċ": "\n", "▁a": "a"}  # fmt: skip

        def __len__(self) -> int:
            return len(self.known)

        def convert_ids_to_tokens(self, ids):
            return [list(self.known)[i] for i in ids]

        def convert_tokens_to_string(self, pieces):
            return self.known[pieces[0]]

    found = word_begins(Pieces(), 9)  # one row of the table has no token
    assert found.tolist() == [True, False, False, True, True, False, True, True, True]


def test_words_of_a_real_tokenizer(tiny):
    begins = word_begins(tiny.tokenizer, 10**6)
    assert len(begins) == 10**6
    ids = tiny.tokenizer(" zebrafish")["input_ids"]
    assert [bool(begins[i]) for i in ids] == [True] + [False] * (len(ids) - 1)
    assert len(ids) > 1


def test_words_are_kept_whole_by_mean_information():
    said = [1.0, 9.0, 5.0, 2.0, 8.0, 8.0, 8.0]
    begins = [True, True, False, True, True, False, False]  # words: 0 | 1 2 | 3 | 4 5 6
    assert choose_heads(said, begins, 3) == [4, 5, 6]  # a mean of 8 before one of 7
    assert choose_heads(said, begins, 5) == [1, 2, 4, 5, 6]
    assert choose_heads(said, begins, 2) == [1, 2]  # the longer word has no room and is passed over
    assert choose_heads(said, begins, 1) == [3]  # the next word does not fit either
    assert choose_heads(said, begins, 7) == list(range(7))
    assert choose_heads([9.0, 5.0, 5.0], [True, True, False], 2) == [0, 1]  # not by their sum, which is 10


def test_room_that_no_word_fits_goes_to_single_tokens():
    assert choose_heads([1.0, 4.0, 2.0, 3.0], [True, False, False, False], 2) == [1, 3]
    assert choose_heads([1.0, 1.0, 1.0], [False, False, False], 2) == [0, 1]  # a tie: the first ones
