"""Decoding: a batch, a shared prefix and a cache leave the answer to a prompt unchanged."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from latentwire.lm.batching import plan_batches, split_beginnings
from latentwire.lm.decoding import Decoder, Generated, encode_prefix
from latentwire.lm.models import LanguageModel
from tests.helpers.random import draws, shifted

pytestmark = pytest.mark.float_path

NEW = 12


class Silent:
    """A tokenizer whose tokens are letters, except for the given newlines."""

    def __init__(self, newlines: tuple[int, ...] = ()) -> None:
        self.newlines = newlines

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join("\n" if i in self.newlines else chr(ord("a") + i % 26) for i in ids)


@pytest.fixture(scope="module")
def sliding() -> LanguageModel:
    """A Gemma whose first layer attends to 8 positions, far fewer than the prefix has."""
    torch.manual_seed(shifted(0))
    config = Gemma3TextConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        initializer_range=0.5,
        eos_token_id=None,
        pad_token_id=0,
        bos_token_id=None,
    )
    return LanguageModel(Gemma3ForCausalLM(config).eval(), Silent())


@pytest.fixture(scope="module")
def llama(tiny: LanguageModel) -> LanguageModel:
    return replace(tiny, tokenizer=Silent())


def draw_ids(lm: LanguageModel, *lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = draws(seed)
    return [torch.randint(1, lm.model.config.vocab_size, (n,), generator=generator) for n in lengths]


def decode(lm: LanguageModel, prefix: torch.Tensor, prompts: list[torch.Tensor], new: int = NEW) -> list[Generated]:
    return Decoder(lm, encode_prefix(lm, prefix), new).decode(prompts)[0]


@pytest.mark.parametrize("name", ["llama", "sliding"])
@pytest.mark.parametrize("prefix_length", [0, 1, 30])
def test_decoding_token_embeddings_equals_generate(name, prefix_length, request):
    lm = request.getfixturevalue(name)
    prefix, *prompts = draw_ids(lm, prefix_length, 5, 9, 9, 17, 1)
    ours = decode(lm, prefix, [lm.embed(prompt) for prompt in prompts])
    for prompt, answer in zip(prompts, ours, strict=True):
        ids = torch.cat([prefix, prompt])[None]
        theirs = lm.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False
        )[0, ids.shape[1] :].tolist()
        end = theirs.index(0) if lm.model.generation_config.eos_token_id == 0 and 0 in theirs else len(theirs)
        assert list(answer.token_ids) == theirs[:end]


@pytest.mark.parametrize("name", ["llama", "sliding"])
def test_an_answer_does_not_depend_on_its_batch(name, request):
    lm = request.getfixturevalue(name)
    prefix, *prompts = draw_ids(lm, 30, 4, 21, 8, 8, 13, 2, seed=1)
    generator = draws(2)
    embeds = [lm.embed(p) + 0.2 * torch.randn(len(p), lm.embed(p).shape[-1], generator=generator) for p in prompts]
    alone = [decode(lm, prefix, [e])[0] for e in embeds]
    for batch in ([0, 1, 2, 3, 4, 5], [5, 1], [2, 3], [4, 0, 1]):
        assert decode(lm, prefix, [embeds[i] for i in batch]) == [alone[i] for i in batch]


@pytest.mark.parametrize("name", ["llama", "sliding"])
def test_the_shared_prefix_equals_the_prefix_written_out(name, request):
    lm = request.getfixturevalue(name)
    prefix, *prompts = draw_ids(lm, 25, 6, 11, 3, seed=3)
    shared = decode(lm, prefix, [lm.embed(p) for p in prompts])
    written = decode(lm, prefix[:0], [lm.embed(torch.cat([prefix, p])) for p in prompts])
    assert shared == written


def test_only_a_prefix_that_is_copied_counts_for_every_row(llama, sliding):
    for lm, copied in ((llama, 0), (sliding, 25)):
        assert Decoder(lm, encode_prefix(lm, draw_ids(lm, 25)[0]), NEW).added == NEW + copied


def test_rows_that_finish_early_do_not_change_the_others(llama):
    prefix, *prompts = draw_ids(llama, 10, 7, 7, 7, 7, 7, 7, seed=4)
    embeds = [llama.embed(p) for p in prompts]
    free = decode(llama, prefix, embeds)
    stop = free[2].token_ids[3]  # now this token is a newline
    stopping = replace(llama, tokenizer=Silent(newlines=(stop,)))
    answers = decode(stopping, prefix, embeds)
    for before, after in zip(free, answers, strict=True):
        ids = list(before.token_ids)
        expected = ids[: ids.index(stop) + 1] if stop in ids else ids
        assert list(after.token_ids) == expected
        assert after.cut_off == (stop not in ids)
        assert "\n" not in after.text
    assert len(answers[2].token_ids) <= 4


def test_an_end_token_ends_the_answer_and_is_not_part_of_it(llama):
    prefix, prompt = draw_ids(llama, 5, 9, seed=5)
    free = decode(llama, prefix, [llama.embed(prompt)])[0]
    decoder = Decoder(llama, encode_prefix(llama, prefix), NEW)
    end = free.token_ids[2]
    decoder.end_ids = frozenset([end])
    answer = decoder.decode([llama.embed(prompt)])[0][0]
    assert answer.token_ids == free.token_ids[: free.token_ids.index(end)]
    assert not answer.cut_off


def test_text_ends_at_the_first_newline(llama):
    class Fixed:
        def decode(self, ids, skip_special_tokens=True):
            return "  two words \n and more"

    answer = decode(replace(llama, tokenizer=Fixed()), torch.tensor([1, 2]), [llama.embed(torch.tensor([3]))])[0]
    assert answer.text == "two words"
    assert len(answer.token_ids) == 1


@pytest.mark.parametrize("new", [1, 2, 5])
def test_no_more_than_max_new_tokens(llama, new):
    prefix, prompt = draw_ids(llama, 3, 6, seed=6)
    answer = decode(llama, prefix, [llama.embed(prompt)], new)[0]
    assert len(answer.token_ids) <= new


def test_equal_inputs_are_decoded_once(llama):
    prefix, first, second = draw_ids(llama, 8, 5, 6, seed=7)
    decoder = Decoder(llama, encode_prefix(llama, prefix), NEW)
    batch = [llama.embed(first), llama.embed(second)]
    answers, reused = decoder.decode(batch)
    assert not reused
    again, reused = decoder.decode([tensor.clone() for tensor in batch])
    assert reused
    assert again == answers
    batch[1][0, 0] += 1e-3
    assert not decoder.decode(batch)[1]
    assert not decoder.decode(batch[::-1])[1]


@pytest.mark.parametrize("together", [[0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 2], [0, 0, 1, 2, 2, 2, 3]])
def test_shared_beginnings_of_prompts_are_read_once(llama, together):
    """The answers do not change."""
    prefix, *beginnings = draw_ids(llama, 20, 30, 41, 17, 26, seed=8)
    ends = draw_ids(llama, 5, 9, 1, 7, 12, 3, 6, seed=9)
    prompts = [torch.cat([beginnings[group], end]) for group, end in zip(together, ends, strict=False)]
    embeds = [llama.embed(prompt) for prompt in prompts]
    assert split_beginnings(embeds)[0] == together
    alone = [decode(llama, prefix, [e])[0] for e in embeds]
    assert decode(llama, prefix, embeds) == alone
    read = []
    forward = llama.model.forward

    def counting(*args, inputs_embeds=None, **kwargs):
        read.append(0 if inputs_embeds is None else inputs_embeds.shape[0] * inputs_embeds.shape[1])
        return forward(*args, inputs_embeds=inputs_embeds, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama.model, "forward", counting)
        decoder = Decoder(llama, encode_prefix(llama, prefix), NEW)
        read.clear()
        decoder.decode(embeds)
    assert 0 < sum(read) < len(embeds) * max(len(e) for e in embeds)


def test_beginnings_end_where_the_prompts_differ():
    x = torch.randn(3, 40, 4, generator=draws(0))
    first, second, third = x[0, :20], torch.cat([x[0, :15], x[1, :9]]), x[2, :30]
    assert split_beginnings([first, second, third]) == ([0, 0, 1], [15, 15, 21])  # 5, 9 and therefore 9 tokens remain
    other = second.clone()
    other[14, 0] += 1e-6
    assert split_beginnings([first, other])[1] == [14, 14]
    assert split_beginnings([first, third])[1] == [0, 0]  # nothing shared, nothing cut
    assert split_beginnings([first[:9], first[:9], x[1], x[2]])[1] == [0] * 4  # 8 of 98 positions: not worth it
    assert split_beginnings([first, first])[1] == [19, 19]  # at least one token of each remains
    assert split_beginnings([first])[1] == [0]


@settings(max_examples=200, deadline=None)
@given(
    prompts=st.lists(st.tuples(st.integers(1, 300), st.sampled_from("abcde")), max_size=40),
    added=st.integers(1, 500),
    budget=st.integers(1, 6000),
)
def test_the_plan_has_each_prompt_once_within_the_budget(prompts, added, budget):
    lengths, passages = [length for length, _ in prompts], [passage for _, passage in prompts]
    batches = plan_batches(lengths, passages, added, budget)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * (longest + added) <= budget
    # Questions of a passage stay together, passages come by their longest prompt.
    assert [passages[index] for index in order] == sorted(
        (passages[index] for index in order),
        key=lambda p: (-max(length for length, passage in prompts if passage == p), p),
    )
    # No batch could have taken the next prompt too.
    for batch, after in itertools.pairwise(batches):
        wider = max(lengths[index] for index in [*batch, after[0]])
        assert (len(batch) + 1) * (wider + added) > budget


def test_models_with_capped_scores_share_no_prefix():
    """Attention that the shared prefix does not implement gives other logits, which the trial run detects."""
    for cap in (0.5, None):
        torch.manual_seed(shifted(0))
        config = Gemma2Config(
            vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, layer_types=["full_attention"] * 2, attn_logit_softcapping=cap,
            initializer_range=0.5, eos_token_id=None, pad_token_id=0, bos_token_id=None,
        )  # fmt: skip
        lm = LanguageModel(Gemma2ForCausalLM(config).eval(), Silent())
        assert Decoder(lm, encode_prefix(lm, draw_ids(lm, 25)[0]), NEW).shares == (cap is None)
