"""Groups of tokens that share a latent: `group_bounds()` of equal size, `choose_heads()` around rare words."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

FORMAT = 2  # version of `information`, part of the run hash; raise it when the choice of words changes
SPACE = "▁"  # SentencePiece's space, which a tokenizer drops when it decodes a single token


def group_bounds(tokens: int, positions: int) -> list[tuple[int, int]]:
    """Split tokens into groups of nearly equal size, in order.

    Args:
        tokens: Number of tokens.
        positions: Number of groups; if there are more groups than tokens, some groups share a token.

    Returns:
        First token of each group, and the token after its last.
    """
    starts = [place * tokens // positions for place in range(positions + 1)]
    return [(start, max(end, start + 1)) for start, end in itertools.pairwise(starts)]


def bounds_around(heads: list[int], tokens: int) -> list[tuple[int, int]]:
    """Split tokens into groups that end with their heads, in order; the last group also takes the remaining tokens.

    Function words thus join the noun after them: `of the river` is one group.

    Args:
        heads: Indices of the heads, in order.
        tokens: Number of tokens.

    Returns:
        First token of each group, and the token after its last.
    """
    ends = [*(head + 1 for head in heads[:-1]), tokens]
    return list(itertools.pairwise([0, *ends]))


def pooling_matrix(tokens: int, groups: list[list[tuple[int, int]]]) -> Tensor:
    """Return matrices that compute the means of groups of neighbouring tokens.

    Args:
        tokens: Number of columns, T.
        groups: For each of B passages, first token of each group and the token after its last.

    Returns:
        (B, L, T), with L the largest number of groups; rows beyond a passage's own groups are zero.
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
    """Return the information of each token: the mean information of its word over all occurrences of the token.

    The information of a word is -log p, with p from word counts plus one. The token's own frequency would underrate
    digits: in numbers written digit by digit each digit is frequent, yet most numbers are rare.

    Args:
        texts: Token ids of each text.
        begins: Whether a token begins a word, (V,).

    Returns:
        Information in nats, (V,). A token that does not occur gets the information of a word that does not occur.
    """
    starts = begins.tolist()
    words: Counter[tuple[int, ...]] = Counter()
    for ids in texts:
        words.update(tuple(ids[a:b]) for a, b in word_spans([starts[token] for token in ids]))
    unseen = math.log(words.total() + len(words))  # information of a word that does not occur
    totals, occurrences = [0.0] * len(starts), [0] * len(starts)
    for word, count in words.items():
        for token in word:
            totals[token] += count * (unseen - math.log(count + 1))
            occurrences[token] += count
    return torch.tensor([total / n if n else unseen for total, n in zip(totals, occurrences, strict=True)])


def word_spans(begins: list[bool]) -> list[tuple[int, int]]:
    """Return the first token of each word of a text, and the token after its last.

    Args:
        begins: Whether each token begins a word, (T,); the first token always does.
    """
    starts = [place for place, begin in enumerate(begins) if begin or place == 0]
    return list(itertools.pairwise([*starts, len(begins)]))


def word_begins(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """Return whether each token begins a word: it starts with a space, or with neither a letter nor a digit.

    A token that holds only part of a letter's bytes continues the word.

    Args:
        tokenizer: The LM's tokenizer.
        size: Number of rows of the LM's embedding table, V.

    Returns:
        (V,) bool; True for rows without a token.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    begins = [not piece or piece.startswith(SPACE) or not _continues_word(tokenizer, piece) for piece in pieces]
    return torch.tensor(begins + [True] * (size - len(begins)))


def _continues_word(tokenizer: PreTrainedTokenizerBase, piece: str) -> bool:
    """Return whether a piece starts with a letter, a digit or part of a letter's bytes."""
    first = tokenizer.convert_tokens_to_string([piece])[:1]
    return first.isalnum() or first == "\N{REPLACEMENT CHARACTER}"


def choose_heads(token_information: list[float], begins: list[bool], positions: int) -> list[int]:
    """Choose the tokens that get their own latent: whole words, in order of their tokens' mean information.

    Half a name answers no question, so a word that no longer fits is skipped. The remaining positions go to the single
    tokens with the most information.

    Args:
        token_information: Information of each token of a passage, (T,).
        begins: Whether each token begins a word, (T,).
        positions: Number of tokens to choose, at most T.

    Returns:
        Indices of the chosen tokens, in order.
    """
    words = word_spans(begins)
    means = {(a, b): sum(token_information[a:b]) / (b - a) for a, b in words}
    heads: set[int] = set()
    for a, b in sorted(words, key=lambda word: (-means[word], word)):
        if b - a <= positions - len(heads):
            heads.update(range(a, b))
    others = sorted(set(range(len(token_information))) - heads, key=lambda token: (-token_information[token], token))
    return sorted([*heads, *others[: positions - len(heads)]])
