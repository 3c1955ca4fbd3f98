"""Are latents near tokens? The token nearest to each latent, against the tokens that it replaces.

Main entries: `token_groups()`, `nearness()`.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from latentwire.encoders.base import Encoder, Passages
from latentwire.encoders.grouping import bounds_around
from latentwire.lm.vocabulary import Vocabulary

RANDOM_DIRECTIONS = 1000  # whose nearest tokens give the cosine by chance


class Nearness(TypedDict):
    """How near the latents of one passage are to tokens: means over its latents."""

    cosine: float  # with the nearest token
    own: float  # share whose nearest token is one that the latent stands for: its head, or any token of its group
    group: float  # share whose nearest token is in the latent's own group
    in_passage: float  # share whose nearest token is anywhere in the passage
    other: float  # share whose nearest token is in the group at the same place of another passage: by chance


Groups = list[set[int]]  # token ids for each latent


def token_groups(encoder: Encoder, passage: str, ids: list[int]) -> tuple[Groups, Groups]:
    """Return the tokens that each latent stands for, and all tokens of its group.

    `stands_for` is linear in the embeddings, so the identity matrix in their place gives its weights. A group ends with
    the last token that its latent stands for; the last group also has the rest.

    Args:
        encoder: The encoder.
        passage: The passage as text.
        ids: Token ids of the passage, T.

    Returns:
        Token ids of both kinds, for each of L latents; no ids for a latent that stands for no token, such as a marker.
    """
    places = torch.eye(len(ids))[None]  # (1, T, T)
    weights = encoder.stands_for(Passages([passage], [len(ids)], places, [ids]))[0]  # (L, T)
    own = [row.nonzero().flatten().tolist() for row in weights]
    bounds = iter(bounds_around([places[-1] for places in own if places], len(ids)))
    heads = [{ids[place] for place in places} for places in own]
    return heads, [head | set(ids[slice(*next(bounds))]) if head else set() for head in heads]


def nearness(
    latents: Tensor, vocabulary: Vocabulary, own: Groups, group: Groups, ids: list[int], other: Groups
) -> Nearness:
    """Return how near the latents of a passage are to the tokens that they replace.

    Latents that stand for no token, such as markers, do not count.

    Args:
        latents: The latents, (L, D).
        vocabulary: The token embeddings of the LM.
        own: Tokens that each latent stands for, L.
        group: Tokens of the group of each latent, L.
        ids: Token ids of the passage.
        other: Tokens of the groups of another passage.
    """
    latents = latents[torch.tensor([bool(tokens) for tokens in own], device=latents.device)]
    own, group, other = ([tokens for tokens in groups if tokens] for groups in (own, group, other))
    nearest = vocabulary.nearest(latents, 1)[:, 0]  # (L,)
    chosen: list[int] = nearest.tolist()
    found = vocabulary.embeddings[nearest.to(vocabulary.embeddings.device)].to(latents)
    last = len(other) - 1

    def share(hits: list[bool]) -> float:
        return sum(hits) / len(hits)

    return {
        "cosine": float(cosine_similarity(latents, found, dim=-1).mean()),
        "own": share([token in tokens for token, tokens in zip(chosen, own, strict=True)]),
        "group": share([token in tokens for token, tokens in zip(chosen, group, strict=True)]),
        "in_passage": share([token in set(ids) for token in chosen]),
        "other": share([token in other[min(place, last)] for place, token in enumerate(chosen)]),
    }


def random_cosine(vocabulary: Vocabulary, generator: torch.Generator) -> float:
    """Return the mean cosine of RANDOM_DIRECTIONS random directions with their nearest tokens."""
    directions = torch.randn(RANDOM_DIRECTIONS, vocabulary.width, generator=generator).to(vocabulary.embeddings)
    nearest = vocabulary.embeddings[vocabulary.nearest(directions, 1)[:, 0]]
    return float(cosine_similarity(directions, nearest, dim=-1).mean())
