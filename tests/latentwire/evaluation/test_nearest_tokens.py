"""The tokens nearest to latents, against the groups of tokens that the latents replace."""

from __future__ import annotations

import pytest
import torch

from latentwire.encoders.base import Encoder, LMFacts, Passages
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.encoders.registry import encoder_lm_config
from latentwire.evaluation.nearest_tokens import nearness, random_cosine, token_groups
from latentwire.lm.vocabulary import Vocabulary
from tests.helpers.choices import default_dials
from tests.helpers.models import model_spec

pytestmark = pytest.mark.usefixtures("one_thread")


def encoder(tiny, vocabulary, groups: str, ratio: int) -> torch.nn.Module:
    dials = default_dials("encoder", "lm_layers", layers=1, ratio=ratio, groups=groups)
    lm = encoder_lm_config("lm_layers", tiny.model)
    spec = LatentSpec("lm_layers", dials, 8, "baseline", {}, model_spec("tiny_random").identity(), "tiny_random", lm)
    return Latents(spec, vocabulary).encoder


def test_groups_of_equal_size_are_what_their_latents_stand_for(tiny, vocabulary):
    own, group = token_groups(encoder(tiny, vocabulary, "equal", 2), "text", [7, 8, 9, 10, 11])
    assert own == group == [{7}, {8, 9}, {10, 11}]  # bounds 0, 5 // 3, 10 // 3, 5


def test_groups_by_words_have_a_head_and_the_tokens_before_it(tiny, vocabulary):
    """By the counts `the` is frequent, `old` and `left` are rare; the last group has the rest of the passage."""
    words = encoder(tiny, vocabulary, "words", 2)
    counted = tiny.tokenizer(" the the the ferry ferry left")["input_ids"]
    words.learn([counted], tiny.tokenizer)
    text = " the old the left the"
    the, old, _, left, _ = ids = tiny.tokenizer(text)["input_ids"]
    own, group = token_groups(words, text, ids)
    assert own[1:] == [{old}, {left}] or own[:2] == [{old}, {left}]
    assert set().union(*group) == {the, old, left} and all(
        head <= whole for head, whole in zip(own, group, strict=True)
    )
    assert group[own.index({left})] == {the, left}


def test_latents_without_tokens_belong_to_no_group():
    """A marker after two latents: it takes no tokens, and the last latent with a token has the rest."""

    class Marked(Encoder):
        """Two latents, which stand for the first and the fourth token, and a marker."""

        z_width = 1

        def stands_for(self, passages: Passages) -> torch.Tensor:
            weights = torch.zeros(1, 3, 5)
            weights[0, 0, 0] = weights[0, 1, 3] = 1
            return weights @ passages.embeds

        def forward(self, passages: Passages) -> torch.Tensor:
            raise NotImplementedError

    own, group = token_groups(Marked(LMFacts(6, 1.0)), "text", [5, 6, 7, 8, 9])
    assert own == [{5}, {8}, set()] and group == [{5}, {6, 7, 8, 9}, set()]


def test_shares_of_nearest_tokens_by_hand():
    """Latents of any length point at the tokens 0, 1, 2 and 5. The marker at the end does not count."""
    vocabulary = Vocabulary(torch.eye(6))
    latents = torch.eye(6)[[0, 1, 2, 5, 0]] * torch.tensor([[1.0], [100.0], [0.01], [3.0], [1.0]])
    latents[0, 3] = 0.75  # a cosine of 1 / 1.25
    found = nearness(
        latents, vocabulary, own=[{0}, {4}, {3}, {0}, set()], group=[{0, 4}, {1, 4}, {3}, {0}, set()],
        ids=[0, 1, 2, 3, 4], other=[{1}, {1}, {5}, set()],
    )  # fmt: skip
    assert found == {
        "cosine": pytest.approx((0.8 + 3) / 4), "own": 1 / 4, "group": 2 / 4, "in_passage": 3 / 4, "other": 2 / 4
    }  # fmt: skip


def test_random_directions_have_the_cosine_of_chance():
    """In two dimensions with tokens along both axes, the angle to the nearer one is at most 45 or 180 degrees."""
    vocabulary = Vocabulary(torch.cat([torch.eye(2), -torch.eye(2)]))
    found = random_cosine(vocabulary, torch.Generator().manual_seed(0))
    assert found == pytest.approx(2 * 2**0.5 / torch.pi, abs=0.01)  # mean of cos over -45 to 45 degrees
