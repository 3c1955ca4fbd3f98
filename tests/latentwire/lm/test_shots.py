"""Shots with vectors in place of their passages, compared with the shots as tokens."""

from __future__ import annotations

import pytest
import torch

from latentwire.data.examples import Example
from latentwire.data.prompts import PromptWriter
from latentwire.lm.decoding import encode_prefix, encode_prefix_embeds
from latentwire.lm.shots import shots_embeds

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]

BOAT = "Old Anna rows a boat."
SHOWN = [
    [Example("s", "The mill is red.", "What colour is the mill?", ("red",))],
    [Example("t", BOAT, "Who rows?", ("Anna",)), Example("u", BOAT, "What?", ("a boat",))],
]


def test_passages_as_their_own_embeddings_change_nothing(tiny):
    writer = PromptWriter(tiny.tokenizer)
    embeds = [tiny.embed(torch.tensor(writer.ids(f" {examples[0].context}"))) for examples in SHOWN]
    found = encode_prefix_embeds(tiny, shots_embeds(tiny, writer.shot_pieces(SHOWN), embeds))
    expected = encode_prefix(tiny, writer.shots(SHOWN))
    assert found.length == expected.length
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert torch.allclose(ours[0], theirs[0], atol=1e-5) and torch.allclose(ours[1], theirs[1], atol=1e-5)
    other = encode_prefix_embeds(tiny, shots_embeds(tiny, writer.shot_pieces(SHOWN), [embeds[0], -embeds[1]]))
    assert not torch.allclose(other.layers[0][0], expected.layers[0][0], atol=1e-3)


def test_each_passage_is_replaced_in_its_place(tiny):
    writer = PromptWriter(tiny.tokenizer)
    first, second = torch.full((2, 64), 5.0, dtype=torch.float64), torch.full((1, 64), 7.0)
    found = shots_embeds(tiny, writer.shot_pieces(SHOWN), [first, second])
    ids = writer.ids
    between = ids("\nQuestion:") + ids(" What colour is the mill?") + ids("\nAnswer:") + ids(" red") + ids("\n\n")
    start = len(ids("Context:"))
    assert found.dtype == tiny.dtype
    assert torch.equal(found[:start], tiny.embed(torch.tensor(ids("Context:"))))
    assert torch.equal(found[start : start + 2], first.float())
    place = start + 2 + len(between) + start
    assert torch.equal(found[start + 2 : place - start], tiny.embed(torch.tensor(between)))
    assert torch.equal(found[place], second[0])
    assert int((found == 7).all(dim=1).sum()) == 1 and int((found == 5).all(dim=1).sum()) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_each_passage_needs_one_replacement(tiny, count):
    pieces = PromptWriter(tiny.tokenizer).shot_pieces(SHOWN)
    with pytest.raises(ValueError, match="zip"):
        shots_embeds(tiny, pieces, [torch.zeros(2, 64)] * count)


def test_an_empty_prefix_has_no_layers(tiny):
    assert encode_prefix_embeds(tiny, torch.zeros(0, 64)) == encode_prefix(tiny, torch.zeros(0, dtype=torch.long))
