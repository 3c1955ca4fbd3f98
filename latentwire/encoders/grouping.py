"""Which tokens share a position: neighbours in groups of nearly equal size, or around the words that say most."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

FORMAT = 2  # of `information`; goes into what a training run is of: raise it whenever other words are chosen
SPACE = "▁"  # SentencePiece's, which is lost where a token is spelled out by itself


def group_bounds(tokens: int, positions: int) -> list[tuple[int, int]]:
    """Split tokens into groups of nearly equal size, in order; with more positions than tokens some share a token."""
    starts = [place * tokens // positions for place in range(positions + 1)]
    return [(start, max(end, start + 1)) for start, end in itertools.pairwise(starts)]


def bounds_around(heads: list[int], tokens: int) -> list[tuple[int, int]]:
    """Split tokens into groups that end with their heads, in order; the last one takes what is left.

    What stands before a noun belongs to it: `of the river` is one group.
    """
    ends = [*(head + 1 for head in heads[:-1]), tokens]
    return list(itertools.pairwise([0, *ends]))


def pooling_matrix(tokens: int, groups: list[list[tuple[int, int]]]) -> Tensor:
    """Return matrices that take the means of groups of neighbouring tokens; rows beyond a passage's own are zero.

    Args:
        tokens: Columns, T.
        groups: Of each of B passages, first token and the one after the last.

    Returns:
        (B, L, T), L being the groups of the passage with most.
    """
    matrix = torch.zeros(len(groups), max(map(len, groups)), tokens)
    for row, bounds in enumerate(groups):
        for place, (start, end) in enumerate(bounds):
            matrix[row, place, start:end] = 1 / (end - start)
    return matrix


def group_means(x: Tensor, positions: int) -> Tensor:
    """Return the means of `positions` groups of neighbouring tokens of nearly equal size: (T, D) -> (positions, D)."""
    return pooling_matrix(len(x), [group_bounds(len(x), positions)])[0].to(x) @ x


def information(texts: Iterable[list[int]], begins: Tensor) -> Tensor:
    """Return how much each token says when it comes: what its word says, the mean over all the places where it comes.

    A word says -log p, with p from counts plus one. By its own frequency a digit would say little where numbers are
    written digit by digit, though hardly any number comes twice.

    Args:
        texts: Tokens of each.
        begins: Whether a word begins with a token, (V,).

    Returns:
        (V,), nats; of a token that does not come as of a word that does not.
    """
    starts = begins.tolist()
    words: Counter[tuple[int, ...]] = Counter()
    for ids in texts:
        words.update(tuple(ids[a:b]) for a, b in word_spans([starts[token] for token in ids]))
    most = math.log(words.total() + len(words))
    said, times = [0.0] * len(starts), [0] * len(starts)
    for word, count in words.items():
        for token in word:
            said[token] += count * (most - math.log(count + 1))
            times[token] += count
    return torch.tensor([total / n if n else most for total, n in zip(said, times, strict=True)])


def word_spans(begins: list[bool]) -> list[tuple[int, int]]:
    """Return where the words of a text lie, first token and the one after the last; its first token begins one."""
    starts = [place for place, begin in enumerate(begins) if begin or place == 0]
    return list(itertools.pairwise([*starts, len(begins)]))


def word_begins(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """Tell of each token whether a word begins with it, (size,): it has a space in front, or is no letter or digit.

    A piece of a letter's bytes goes on with the word.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    begins = [not piece or piece.startswith(SPACE) or not _goes_on(tokenizer, piece) for piece in pieces]
    return torch.tensor(begins + [True] * (size - len(begins)))


def _goes_on(tokenizer: PreTrainedTokenizerBase, piece: str) -> bool:
    first = tokenizer.convert_tokens_to_string([piece])[:1]
    return first.isalnum() or first == "\N{REPLACEMENT CHARACTER}"


def choose_heads(said: list[float], begins: list[bool], positions: int) -> list[int]:
    """Choose the tokens that shall have a position each: whole words, those first whose tokens say most on average.

    Half a name answers nothing, so a word that no longer fits is passed over; what room the words leave goes to the
    single tokens that say most.

    Args:
        said: Information of each token of a passage, (T,).
        begins: Whether a word begins with it, (T,).
        positions: How many, at most T.

    Returns:
        The places of `positions` tokens, in order.
    """
    words = word_spans(begins)
    worth = {(a, b): sum(said[a:b]) / (b - a) for a, b in words}
    heads: set[int] = set()
    for a, b in sorted(words, key=lambda word: (-worth[word], word)):
        if b - a <= positions - len(heads):
            heads.update(range(a, b))
    others = sorted(set(range(len(said))) - heads, key=lambda place: (-said[place], place))
    return sorted([*heads, *others[: positions - len(heads)]])
