"""Sampling of completions: drawn tokens, independence of the batch, and log-probabilities equal to the model's."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from kat.grpo.decoding import fast_linears, roomy_cache
from kat.grpo.objective import kl_divergence
from kat.grpo.policy import Policy, PolicyRow, frozen_blocks, micro_batches, pack_rows
from kat.grpo.rollout import Completion, Sampling, batches_of_prompts, draw_tokens, end_tokens, sample
from kat.grpo.validation import divergences
from kat.training.tree_mask import tree_mask
from kat.training.tuning import TuningSpec, make_trainable
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
from tests.helpers.random import draws

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [300, 20], [7, 7, 7], [1000, 4, 90, 2]]
KEYS = [("test", i) for i in range(4)]
COMMON = frozenset(range(0, 2048, 8))  # end tokens, frequent enough that lengths differ


def sampling(**settings) -> Sampling:
    usual = {"num_generations": 3, "max_new_tokens": 9, "temperature": 1.0, "top_p": 1.0, "batch_tokens": 4096}
    return Sampling(**{**usual, **settings})


def ids_of(groups):
    return [[c.ids for c in group] for group in groups]


@pytest.fixture
def policy_model(tiny):
    """The tiny model with its last block trainable; frozen again after the test."""
    model, parameters = make_trainable(tiny.model, TuningSpec("last_blocks", 1, 0, 0), 0)
    yield model, parameters
    model.requires_grad_(False)


def greedy_or_drawn(model, prompt, key, settings, ends):
    """Return one completion, decoded token by token without batch, cache or padding."""
    uniform = torch.rand(settings.max_new_tokens, generator=generator_for(3, *key), dtype=torch.float64)
    ids, logps, entropy = list(prompt), [], []
    for step in range(settings.max_new_tokens):
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double() / settings.temperature
        p = logits.softmax(-1)
        token = int((p.cumsum(0) <= uniform[step] * p.sum()).sum())
        logps.append(float(p[token].log()))
        entropy.append(float(-(p * p.log()).sum()))
        ids.append(token)
        if token in ends:
            break
    return tuple(ids[len(prompt) :]), logps, entropy


@torch.no_grad()
def test_sampling_equals_decoding_token_by_token(tiny):
    """The definition decodes one completion at a time, without batch, cache or padding."""
    settings = sampling(temperature=0.8)
    groups = sample(tiny.model, PROMPTS, KEYS, settings, seed=3, ends=COMMON)
    lengths = set()
    for prompt, key, group in zip(PROMPTS, KEYS, groups, strict=True):
        assert len(group) == 3
        for g, completion in enumerate(group):
            ids, logps, entropy = greedy_or_drawn(tiny.model, prompt, (*key, g), settings, COMMON)
            assert completion.ids == ids
            assert completion.ended == (ids[-1] in COMMON)
            assert completion.logps.tolist() == pytest.approx(logps, abs=1e-4)
            assert completion.entropy.tolist() == pytest.approx(entropy, abs=1e-4)
            lengths.add(len(ids))
    assert len(lengths) > 3 and max(lengths) == 9  # some ended early, some were cut off


def test_completions_do_not_depend_on_the_batch(tiny):
    together = sample(tiny.model, PROMPTS, KEYS, sampling(), seed=3, ends=COMMON)
    apart = sample(tiny.model, PROMPTS, KEYS, sampling(batch_tokens=1), seed=3, ends=COMMON)
    assert ids_of(together) == ids_of(apart)
    order = [2, 0, 3, 1]
    mixed = sample(tiny.model, [PROMPTS[i] for i in order], [KEYS[i] for i in order], sampling(), seed=3, ends=COMMON)
    assert ids_of(mixed) == [ids_of(together)[i] for i in order]
    fewer = sample(tiny.model, PROMPTS, KEYS, sampling(num_generations=2), seed=3, ends=COMMON)
    assert ids_of(fewer) == [group[:2] for group in ids_of(together)]


def test_the_seed_and_the_key_decide(tiny):
    drawn = [
        ids_of(sample(tiny.model, PROMPTS[:1], [key], sampling(), seed=seed, ends=COMMON))
        for seed, key in [(3, ("a",)), (3, ("a",)), (4, ("a",)), (3, ("b",))]
    ]
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2] and drawn[0] != drawn[3]
    group = drawn[0][0]
    assert len(set(group)) == 3  # each completion of a group draws its own


def test_completions_stop_at_the_end_token_or_the_limit(tiny):
    for group in sample(tiny.model, PROMPTS, KEYS, sampling(), seed=0, ends=COMMON):
        for c in group:
            assert not any(token in COMMON for token in c.ids[:-1])
            assert len(c.ids) == len(c.logps) == len(c.entropy)
            assert c.ended or len(c.ids) == 9
    everything = sample(tiny.model, PROMPTS, KEYS, sampling(), seed=0, ends=frozenset(range(2048)))
    assert all(len(c.ids) == 1 and c.ended for group in everything for c in group)
    nothing = sample(tiny.model, PROMPTS, KEYS, sampling(max_new_tokens=2), seed=0, ends=frozenset({5000}))
    assert all(len(c.ids) == 2 and not c.ended for group in nothing for c in group)


def test_draw_by_hand():
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).repeat(4, 1)
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.999], dtype=torch.float64)
    assert draw_tokens(logits, 1.0, 1.0, uniform)[0].tolist() == [0, 0, 1, 2]
    # top_p .6: the two likeliest, .5 and .3 of .8, in this order
    uniform = torch.tensor([0.0, 0.62, 0.63, 0.999], dtype=torch.float64)
    assert draw_tokens(logits, 1.0, 0.6, uniform)[0].tolist() == [1, 1, 2, 2]
    assert draw_tokens(logits, 1.0, 0.49, uniform)[0].tolist() == [1] * 4  # the likeliest token alone is enough
    assert draw_tokens(logits, 1.0, 1e-9, uniform)[0].tolist() == [1] * 4  # at least one
    # at temperature .5 the odds are squared: .04 .25 .09 of .38
    uniform = torch.tensor([0.1, 0.11, 0.76, 0.77], dtype=torch.float64)
    assert draw_tokens(logits, 0.5, 1.0, uniform)[0].tolist() == [0, 1, 1, 2]


def test_draw_never_draws_a_token_of_probability_0():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(2, 1)
    assert draw_tokens(logits, 1.0, 1.0, torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64))[0].tolist() == [1, 3]


@pytest.mark.statistical
def test_frequencies_are_the_probabilities():
    p = torch.tensor([0.05, 0.6, 0.35])
    uniform = torch.rand(20_000, generator=draws(0), dtype=torch.float64)
    drawn, _, _ = draw_tokens(p.log().repeat(20_000, 1), 1.0, 1.0, uniform)
    assert torch.allclose(torch.bincount(drawn) / 20_000, p, atol=0.01)


def test_end_tokens_come_from_model_and_tokenizer(tiny):
    assert end_tokens(tiny.model, tiny.tokenizer) == {0}


class Words:
    eos_token_id = None


def test_a_tokenizer_without_an_end_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", None)
    with pytest.raises(UserError, match="no end token"):
        end_tokens(tiny.model, Words())
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", [3, 4])
    assert end_tokens(tiny.model, tiny.tokenizer) == {0, 3, 4}


def test_a_prompt_that_leaves_no_room_is_refused(tiny):
    room = 4096 - 9
    assert sample(tiny.model, [[5] * room], [("a",)], sampling(num_generations=1), seed=0, ends=frozenset(range(2048)))
    with pytest.raises(UserError, match=r"4088 tokens and 9 new ones exceed the model's context of 4096"):
        sample(tiny.model, [[5] * (room + 1)], [("a",)], sampling(), seed=0, ends=COMMON)
    with pytest.raises(UserError, match="a prompt has no tokens"):
        sample(tiny.model, [[]], [("a",)], sampling(), seed=0, ends=COMMON)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 0}, r"grpo\.num_generations=0"),
        ({"max_new_tokens": 0}, r"grpo\.max_completion_length=0"),
        ({"temperature": 0.0}, r"grpo\.temperature=0\.0"),
        ({"temperature": float("inf")}, r"grpo\.temperature=inf"),
        ({"top_p": 0.0}, r"grpo\.top_p=0\.0"),
        ({"top_p": 1.1}, r"grpo\.top_p=1\.1"),
    ],
)
def test_invalid_settings_are_named(settings, message):
    sampling().check()
    with pytest.raises(UserError, match=message):
        sampling(**settings).check()


# The policy: the same numbers from a plain forward pass, with the frozen blocks left out or not


def rows_of(groups, prompts=PROMPTS) -> list[PolicyRow]:
    return [PolicyRow(tuple(prompt), c) for prompt, group in zip(prompts, groups, strict=True) for c in group]


@pytest.mark.parametrize("tapped", [True, False])
def test_policy_logps_equal_sampling_logps(policy_model, tapped):
    model, parameters = policy_model
    policy = Policy(model, parameters, 0.8, ref_model=True)
    assert len(policy.frozen) == 1
    groups = sample(model, PROMPTS, KEYS, sampling(temperature=0.8), seed=3, ends=COMMON,
                    hidden_state_hook=policy.hidden_state_hook if tapped else None)  # fmt: skip
    rows = rows_of(groups)
    assert all((row.completion.states is not None) == tapped for row in rows)
    logps = policy.logps(rows)
    reference = policy.ref_logps(rows)
    for i, row in enumerate(rows):
        c = row.completion
        if tapped:
            assert c.states.shape == (row.size, 64) and row.size == len(row.prompt) + len(c.ids) - 1
        assert torch.allclose(logps[i, : len(c.ids)], c.logps, atol=1e-4)
        assert torch.allclose(reference[i, : len(c.ids)], c.logps, atol=1e-4)


def test_skipping_frozen_blocks_changes_no_result(policy_model):
    """Log-probabilities and gradients stay the same."""
    model, parameters = policy_model
    before = [(set(vars(block)), set(block._forward_hooks)) for block in model.model.layers]
    policy = Policy(model, parameters, 1.0, ref_model=False)
    rows = rows_of(
        sample(model, PROMPTS, KEYS, sampling(), seed=3, ends=COMMON, hidden_state_hook=policy.hidden_state_hook)
    )
    found = []
    for frozen in (policy.frozen, []):
        policy.frozen = frozen
        logps = policy.logps(rows)
        mask = torch.stack([torch.arange(logps.shape[1]) < len(row.completion.ids) for row in rows])
        logps[mask].sum().backward()
        found.append((logps[mask].detach(), {name: p.grad.clone() for name, p in parameters.items()}))
        model.zero_grad()
    assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
    for name in parameters:
        assert torch.allclose(found[0][1][name], found[1][1][name], rtol=1e-3, atol=1e-3), name
    assert [(set(vars(block)), set(block._forward_hooks)) for block in model.model.layers] == before


def test_frozen_blocks_are_not_computed(policy_model):
    model, parameters = policy_model
    policy = Policy(model, parameters, 1.0, ref_model=False)
    rows = rows_of(
        sample(model, PROMPTS, KEYS, sampling(), seed=3, ends=COMMON, hidden_state_hook=policy.hidden_state_hook)
    )
    computed = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *_: computed.append(1))
    policy.logps(rows)
    handle.remove()
    assert computed == []


def test_the_reference_keeps_the_first_weights(policy_model):
    model, parameters = policy_model
    policy = Policy(model, parameters, 1.0, ref_model=True)
    rows = rows_of(
        sample(model, PROMPTS, KEYS, sampling(), seed=3, ends=COMMON, hidden_state_hook=policy.hidden_state_hook)
    )
    before, start = policy.ref_logps(rows), {name: p.detach().clone() for name, p in parameters.items()}
    with torch.no_grad():
        for p in parameters.values():
            p.mul_(1.1)
    assert torch.equal(policy.ref_logps(rows), before)
    assert not torch.allclose(policy.logps(rows), before, atol=1e-2)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(start[name])


def test_frozen_blocks_end_where_training_begins(tiny):
    try:
        tiny.model.requires_grad_(False)
        assert len(frozen_blocks(tiny.model)) == 2  # all: only the norm or the head could be trained
        tiny.model.model.layers[1].requires_grad_(True)
        assert frozen_blocks(tiny.model) == [tiny.model.model.layers[0]]
        tiny.model.model.layers[0].requires_grad_(True)
        assert frozen_blocks(tiny.model) == []
        tiny.model.requires_grad_(False)
        tiny.model.get_input_embeddings().requires_grad_(True)
        assert frozen_blocks(tiny.model) == []
    finally:
        tiny.model.requires_grad_(False)


def test_blocks_that_cannot_be_skipped_are_computed(tiny, monkeypatch, capsys):
    """A later block depends on more than the states: here, on whether the first block was computed."""
    first, second = tiny.model.model.layers
    computed: list[int] = []

    def look(_, __, output):
        return output * torch.linspace(1, 1 + computed.pop(), 64) if computed else output

    handles = [first.mlp.register_forward_hook(lambda *_: computed.append(1)), second.register_forward_hook(look)]
    try:
        second.requires_grad_(True)
        assert frozen_blocks(tiny.model) == []
        assert "cannot be skipped" in capsys.readouterr().err
    finally:
        second.requires_grad_(False)
        for handle in handles:
            handle.remove()


def made(prompt: tuple[int, ...], tokens: int) -> PolicyRow:
    ids = tuple(range(20, 20 + tokens))
    return PolicyRow(prompt, Completion(ids, True, torch.zeros(tokens), torch.zeros(tokens), None))


def test_micro_batches_fill_the_token_limit():
    a, b = (1, 2, 3), (4, 5, 6, 7)
    rows = [made(a, 3), made(b, 1), made(a, 5), made(b, 4), made(a, 2)]  # in one sequence: a 3 + 2 + 4 + 1, b 4 + 0 + 3
    assert micro_batches(rows, 17) == [[0, 2, 4, 1, 3]]
    assert micro_batches(rows, 16) == [[0, 2, 4, 1], [3]]
    assert micro_batches(rows, 10) == [[0, 2, 4], [1, 3]]
    assert micro_batches(rows, 9) == [[0, 2], [4, 1], [3]]
    assert micro_batches(rows, 1) == [[0], [2], [4], [1], [3]]
    assert micro_batches([], 10) == []
    assert micro_batches([made((1,), 1200), made((2,), 1200)], 10**6) == [[0], [1]]  # the mask is quadratic in length
    assert batches_of_prompts([5, 4, 3], sampling(batch_tokens=3 * 14)) == [[0, 1], [2]]
    for limit in range(1, 18):
        batches = micro_batches(rows, limit)
        assert sorted(i for batch in batches for i in batch) == list(range(5))
        for batch in batches:
            assert len(pack_rows([rows[i] for i in batch]).ids) <= limit or len(batch) == 1


def test_a_packed_sequence_holds_each_prompt_once():
    """Tokens of a completion attend to their prompt and to their own completion."""
    rows = [made((1, 2, 3), 3), made((4, 5), 1), made((1, 2, 3), 2)]
    line = pack_rows(rows)
    assert line.ids.tolist() == [1, 2, 3, 20, 21, 20, 4, 5]
    assert line.positions.tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    assert line.logit_positions.tolist() == [2, 3, 4, 7, 2, 5]  # row by row: the position that predicts each token
    assert line.pieces == [(0, 0), (0, 3), (2, 3), (1, 0), (1, 2)]
    sees = tree_mask(line.branch, torch.float32, line.prompt_index) == 0
    expected = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 5], [6], [6, 7]]
    assert [row.nonzero()[:, 0].tolist() for row in sees] == expected


def test_packed_rows_have_the_logps_of_single_rows(policy_model):
    model, parameters = policy_model
    policy = Policy(model, parameters, 1.0, ref_model=False)
    groups = sample(model, PROMPTS, KEYS, sampling(), seed=3, ends=COMMON, hidden_state_hook=policy.hidden_state_hook)
    rows = rows_of(groups)
    rows = rows[1::2] + rows[::2]  # completions of a prompt are not neighbours
    together = policy.logps(rows)
    for i, row in enumerate(rows):
        ids = torch.tensor([[*row.prompt, *row.completion.ids]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1]
        alone = logits.log_softmax(-1).gather(-1, ids[0, len(row.prompt) :, None])[:, 0]
        assert torch.allclose(together[i, : len(alone)], alone, atol=1e-4)
        assert not together[i, len(alone) :].any()


def test_a_row_reads_all_but_the_last_token():
    c = Completion((4, 5, 6), True, torch.zeros(3), torch.zeros(3), None)
    assert PolicyRow((1, 2), c).size == 4


# Faster decoding: the same numbers, and a model that is left as it was


@pytest.mark.parametrize("precision", ["float32", "mixed"])
@torch.no_grad()
def test_fast_linears_give_the_model_its_own_logits(policy_model, precision):
    model, parameters = policy_model
    before = [(vars(m).keys(), [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    ids = torch.tensor(PROMPTS[0])[None]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"):
        expected = model(input_ids=ids).logits
        with fast_linears(model):
            found = model(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert [(vars(m).keys(), [p.requires_grad for p in m.parameters()]) for m in model.modules()] == before
    assert parameters and all(p.requires_grad for p in parameters.values())


@torch.no_grad()
def test_autocast_casts_a_weight_once(policy_model):
    """A weight that changes between two samplings is cast again."""
    model, _ = policy_model
    ids = torch.tensor(PROMPTS[0])[None]
    with torch.autocast("cpu", torch.bfloat16):
        with fast_linears(model), profile(activities=[ProfilerActivity.CPU]) as once:
            first, second = (model(input_ids=ids).logits for _ in range(2))
        with profile(activities=[ProfilerActivity.CPU]) as twice:
            for _ in range(2):
                model(input_ids=ids)
        frozen = [m for m in model.modules() if type(m) is torch.nn.Linear and not m.weight.requires_grad]
        assert casts(twice) - casts(once) == len(frozen) == 8  # autocast keeps its copies of the trainable ones anyway
        assert torch.equal(first, second)
        weight = model.model.layers[0].mlp.down_proj.weight
        weight.mul_(2)
        with fast_linears(model):
            changed = model(input_ids=ids).logits
        assert torch.equal(changed, model(input_ids=ids).logits) and not torch.equal(changed, first)
        weight.mul_(0.5)


def casts(profiled) -> int:
    return sum(event.count for event in profiled.key_averages() if event.key == "aten::_to_copy")


@torch.no_grad()
def test_a_cache_with_room_returns_all_keys_and_values():
    cache, g = roomy_cache(3), draws(0)
    new = [torch.randn(2, 1, t, 4, generator=g) for t in (5, 1, 1, 1)]
    cache.update(new[0], -new[0], 0)
    cache.batch_repeat_interleave(2)
    expected = new[0].repeat_interleave(2, dim=0)
    where = cache.layers[0].whole[0].data_ptr()
    for more in new[1:3]:
        expected = torch.cat([expected, more.repeat_interleave(2, dim=0)], dim=2)
        keys, values = cache.update(expected[:, :, -1:], -expected[:, :, -1:], 0)
        assert torch.equal(keys, expected) and torch.equal(values, -expected)
    assert keys.data_ptr() == where  # nothing was copied
    cache.batch_select_indices(torch.tensor([0, 3]))
    keys, _ = cache.update(new[3], new[3], 0)
    assert torch.equal(keys, torch.cat([expected[[0, 3]], new[3]], dim=2)) and cache.get_seq_length() == 8


@pytest.mark.parametrize("size", [1, 7, 128, 300])
def test_draws_do_not_depend_on_the_blocks(size):
    """The definition sums all probabilities one by one."""
    g = draws(size)
    logits = torch.randn(500, size, generator=g) * 3
    uniform = torch.rand(500, generator=g, dtype=torch.float64)
    tokens, logps, entropy = draw_tokens(logits, 0.7, 1.0, uniform)
    p = (logits / 0.7).softmax(-1)
    reached = p.cumsum(-1, dtype=torch.float64)
    assert torch.equal(tokens, (reached <= uniform[:, None] * reached[:, -1:]).sum(-1))
    assert torch.allclose(logps, p.gather(1, tokens[:, None])[:, 0].log(), atol=1e-5)
    assert torch.allclose(entropy, torch.special.entr(p).sum(-1), atol=1e-5)


@torch.no_grad()
def test_divergences_use_recorded_logps_in_float32(policy_model, monkeypatch):
    """In mixed precision the policy is computed again, so that a policy that has not moved has a divergence of 0."""
    model, parameters = policy_model
    policy = Policy(model, parameters, 1.0, ref_model=True)
    calls = []
    logps = policy.logps
    monkeypatch.setattr(policy, "logps", lambda rows: calls.append(len(rows)) or logps(rows))
    with torch.autocast("cpu", torch.bfloat16):
        rows = rows_of(sample(model, PROMPTS, KEYS, sampling(), seed=3, ends=COMMON))
        assert divergences(policy, rows, "k3", 4096) == [0.0] * 12 and calls == [12]
    for p in parameters.values():
        p.mul_(1.1)
    rows = rows_of(sample(model, PROMPTS, KEYS, sampling(), seed=3, ends=COMMON))
    found = divergences(policy, rows, "k3", 20)
    assert calls == [12]
    expected = kl_divergence(logps(rows), policy.start_logps(rows), "k3")
    sums = [float(each[: len(row.completion.ids)].sum()) for each, row in zip(expected, rows, strict=True)]
    assert found == pytest.approx(sums, abs=1e-3) and sum(found) > 1
    for name, p in parameters.items():
        p.copy_(policy.start_parameters[name])
