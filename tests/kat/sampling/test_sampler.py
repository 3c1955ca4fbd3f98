"""The sampler's draws: by weight, in groups, disjoint over ranks, and resumed at the next draw."""

from __future__ import annotations

import inspect
import io
import random
import warnings
from dataclasses import asdict, fields
from types import SimpleNamespace
from typing import get_type_hints

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import BatchSampler, DataLoader

from kat.density.estimate import DensitySpec, estimate
from kat.embedding.pooling import HiddenEmbedder, embed_hidden
from kat.sampling.draws import DrawWeights, draw, expected_draws
from kat.sampling.plan import DrawPlan, DrawSettings
from kat.sampling.sampler import DensityAwareSampler, ModelSettings
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF
from tests.helpers.lifelike import lifelike
from tests.helpers.random import draws, shifted

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]


def make(rank: int = 0, replicas: int = 1, **settings) -> DensityAwareSampler:
    return DensityAwareSampler(WEIGHTS, **{"seed": 3, "rank": rank, "num_replicas": replicas, **settings})


def flat(lists) -> list[int]:
    return [row for rows in lists for row in rows]


def epochs(sampler: DensityAwareSampler, count: int) -> list[list[int]]:
    return [list(sampler) for _ in range(count)]


SHAPES = {
    "plain": {"num_samples": 100},
    "no replacement": {"num_samples": 8, "replacement": False},
    "groups": {"num_samples": 50, "num_generations": 4},
    "as GRPO": {"num_samples": 50, "num_generations": 2, "prompts_per_batch": 3, "batch_repeats": 4},
}


@pytest.mark.parametrize("name", SHAPES)
def test_an_epoch_has_its_length_and_depends_on_the_seed(name):
    first = epochs(make(**SHAPES[name]), 3)
    assert [len(epoch) for epoch in first] == [len(make(**SHAPES[name]))] * 3
    assert first == epochs(make(**SHAPES[name]), 3)
    assert first[0] != first[1] != first[2]
    assert first != epochs(make(**SHAPES[name], seed=4), 3)
    assert 0 not in flat(first)  # weight 0 is never drawn


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"num_samples": 12},
            [[7, 8, 9, 7, 2, 9, 5, 6, 5, 5, 4, 8], [7, 5, 4, 7, 9, 8, 8, 9, 5, 7, 8, 8]],
        ),
        ({"num_samples": 6, "replacement": False}, [[4, 8, 9, 7, 6, 3], [8, 9, 2, 6, 7, 1]]),
    ],
)
def test_a_seed_draws_as_in_earlier_versions(settings, expected):
    """The draws of version 0.3.0: the generator's key and the order of its numbers are part of a run's identity."""
    assert epochs(make(**settings), 2) == expected


def test_set_epoch_chooses_the_draws():
    first, second, third = epochs(make(num_samples=30), 3)
    sampler = make(num_samples=30)
    for epoch, expected in ((2, third), (0, first), (0, first), (1, second)):
        sampler.set_epoch(epoch)
        assert list(sampler) == expected


def test_an_abandoned_iteration_is_started_again():
    sampler = make(num_samples=30)
    whole = list(make(num_samples=30))
    iterator = iter(sampler)
    assert [next(iterator) for _ in range(7)] == whole[:7]
    assert list(sampler) == whole
    assert int(sampler.ledger()[1].sum()) == 37  # all rows that were handed out


# Frequencies.


def chi_square(drawn: torch.Tensor, expected: torch.Tensor) -> float:
    possible = expected > 0
    assert (drawn[~possible] == 0).all()
    return float(((drawn - expected)[possible] ** 2 / expected[possible]).sum())


@pytest.mark.statistical
def test_draws_with_replacement_follow_the_weights():
    sampler = make(num_samples=20_000)
    list(sampler)
    meant, drawn = sampler.ledger()
    assert meant.tolist() == pytest.approx([20_000 * w / 45 for w in WEIGHTS])
    assert chi_square(drawn, meant) < 26.1  # 8 degrees of freedom, p = .001


@pytest.mark.statistical
def test_draws_without_replacement_follow_the_weights():
    """The draws of an epoch are distinct."""
    sampler = make(num_samples=4, replacement=False)
    drawn = epochs(sampler, 4000)
    assert all(len(set(epoch)) == 4 for epoch in drawn)
    first = torch.bincount(torch.tensor([epoch[0] for epoch in drawn]), minlength=10)
    assert chi_square(first, torch.tensor(WEIGHTS) / 45 * 4000) < 26.1  # the first draw is by weight exactly
    second = [epoch[1] for epoch in drawn if epoch[0] == 9]  # and the second by weight among the others
    expected = torch.tensor([*WEIGHTS[:9], 0]) / 36 * len(second)
    assert chi_square(torch.bincount(torch.tensor(second), minlength=10), expected) < 24.4


@pytest.mark.statistical
def test_the_ledger_without_replacement_expects_what_happens():
    weights = torch.rand(300, generator=draws(0)) ** 2 + 0.01
    sampler = DensityAwareSampler(weights, num_samples=100, replacement=False)
    epochs(sampler, 400)
    meant, drawn = sampler.ledger()
    assert float(meant.sum()) == pytest.approx(int(drawn.sum()))
    assert meant.max() <= 400
    assert float((drawn - meant).abs().max()) < 4 * 400**0.5 / 2
    assert float(((drawn - meant) ** 2).mean()) < 100  # at most p (1 - p) n


@pytest.mark.slow
@pytest.mark.parametrize("replacement", [True, False])
def test_draw_takes_more_rows_than_multinomial_can(replacement):
    n = 2**24 + 10
    weights = torch.zeros(n, dtype=torch.float64)
    weights[-3:] = 1 / 3
    rows = draw(weights, 3, replacement=replacement, generator=draws(0))
    assert rows.min() >= n - 3
    assert replacement or sorted(rows.tolist()) == [n - 3, n - 2, n - 1]


def test_draws_at_the_ends_of_the_weights_have_a_weight(monkeypatch):
    """A random number of 0, and one that is rounded to 1, draw the first and the last row of positive weight."""
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0.0, 1.0], dtype=torch.float64))
    weights = torch.tensor([0.0, 0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    assert draw(weights, 2, replacement=True, generator=draws(0)).tolist() == [1, 3]


def test_checks_in_blocks_see_all_rows(monkeypatch):
    monkeypatch.setattr("kat.sampling.draws.BLOCK", 4)
    weights = DrawWeights(torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 0, 0, 0], dtype=torch.float64))
    assert (weights.last, weights.positive, weights.are_equal()) == (4, 5, True)
    assert not DrawWeights(torch.tensor([1.0, 1, 1, 1, 2, 0])).are_equal()
    with pytest.raises(UserError, match=r"weight -2\.0 of row 5"):
        DensityAwareSampler([1.0] * 5 + [-2.0])


def test_expected_draws_of_everything_are_one_each():
    assert expected_draws(torch.tensor([0.2, 0.0, 0.8]), 2, False).tolist() == [1, 0, 1]


# Groups and ranks.


def test_groups_and_blocks_are_repeated():
    """Each prompt comes num_generations times in a row, and each block batch_repeats times."""
    plain = list(make(num_samples=6))
    assert list(make(num_samples=6, num_generations=3)) == [row for row in plain for _ in range(3)]
    shaped = list(make(num_samples=7, num_generations=2, prompts_per_batch=3, batch_repeats=2))
    blocks = [[row for row in plain7 for _ in range(2)] * 2 for plain7 in (order(7)[:3], order(7)[3:6])]
    assert shaped == flat(blocks)


def order(count: int) -> list[int]:
    return list(make(num_samples=count))


def test_groups_equal_trls_repeat_sampler():
    from trl.trainer.utils import RepeatSampler

    shape = {"batch_size": 3, "mini_repeat_count": 2, "repeat_count": 4}
    theirs = list(RepeatSampler(range(10), shuffle=False, **shape))
    ours = DensityAwareSampler([1.0] * 10, num_generations=2, prompts_per_batch=3, batch_repeats=4)
    assert len(ours) == len(RepeatSampler(range(10), **shape)) == len(theirs)
    draws = list(DensityAwareSampler([1.0] * 10))
    assert [draws[place] for place in theirs] == list(ours)


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_ranks_split_one_order_without_overlap(name, replicas):
    settings = {**SHAPES[name], "batch_repeats": 1}
    single = list(make(**{**settings, "num_generations": 1, "prompts_per_batch": 1}))
    samplers = [make(rank, replicas, **settings) for rank in range(replicas)]
    parts = [list(sampler) for sampler in samplers]
    assert {len(part) for part in parts} == {len(samplers[0])}
    group = settings.get("num_generations", 1)
    for part in parts:
        assert all(len(set(part[i : i + group])) == 1 for i in range(0, len(part), group))
    together = [row for step in zip(*(part[::group] for part in parts), strict=True) for row in step]
    unit = replicas * settings.get("prompts_per_batch", 1)
    assert together == single[: len(single) // unit * unit]  # the remainder is left out
    assert len({tuple(sampler.ledger()[1].tolist()) for sampler in samplers}) == 1


# Resuming.


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.slow
def test_a_thousand_resumed_runs_draw_as_without_a_stop():
    """They run on 1, 2 and 4 ranks and stop at random draws."""
    choose = random.Random(shifted(0))
    whole: dict[tuple, tuple[list[int], list]] = {}
    mismatched = 0
    for _ in range(1000):
        replicas = choose.choice([1, 2, 4])
        rank, name = choose.randrange(replicas), choose.choice(list(SHAPES))
        key = (replicas, rank, name)
        if key not in whole:
            sampler = make(rank, replicas, **SHAPES[name])
            whole[key] = flat(epochs(sampler, 3)), sampler.ledger()
        expected, ledger = whole[key]
        stop = choose.randrange(len(expected))
        sampler = make(rank, replicas, **SHAPES[name])
        drawn = []
        while len(drawn) < stop:
            for row in sampler:
                drawn.append(row)
                if len(drawn) == stop:
                    break
        resumed = make(rank, replicas, **SHAPES[name])
        resumed.load_state_dict(through_a_file(sampler.state_dict()))
        resumed.set_epoch(resumed.epoch)  # a trainer may set the epoch again
        while len(drawn) < len(expected):
            drawn += list(resumed)
        mismatched += drawn != expected
        meant, counted = resumed.ledger()
        assert torch.equal(counted, ledger[1])
        torch.testing.assert_close(meant, ledger[0])
    assert mismatched == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_state_and_ledger_count_only_consumed_rows(workers):
    """A loader with workers prefetches rows, so the loop passes the number that it has used."""
    expected = list(make(num_samples=64))
    sampler = make(num_samples=64)
    used = []
    for batch in DataLoader(range(10), batch_size=4, sampler=sampler, num_workers=workers):
        used += batch.tolist()
        if len(used) == 20:
            break
    if workers:
        assert sampler.state_dict()["position"] > 20  # prefetched rows do not count as used
    resumed = make(num_samples=64)
    resumed.load_state_dict(sampler.state_dict(consumed=20))
    assert used + [int(row) for row in DataLoader(range(10), batch_size=None, sampler=resumed)] == expected
    assert int(resumed.ledger()[1].sum()) == 64
    assert sampler.ledger(consumed=20)[1].tolist() == torch.bincount(torch.tensor(used), minlength=10).tolist()
    assert float(sampler.ledger(consumed=20)[0].sum()) == pytest.approx(20)
    with pytest.raises(UserError, match="consumed=65"):
        sampler.ledger(consumed=65)


def test_a_prefetched_epoch_can_be_resumed_within_it():
    sampler = make(num_samples=12)
    expected = flat(epochs(make(num_samples=12), 2))
    everything = list(sampler)
    resumed = make(num_samples=12)
    resumed.load_state_dict(sampler.state_dict(consumed=5))
    assert everything[:5] + list(resumed) + list(resumed) == expected


def dense(sampler: DensityAwareSampler) -> dict:
    """Return the state as version 1 wrote it within an epoch: draws of all rows in the epochs before this one."""
    past = make(**{name: getattr(sampler.plan, name) for name in ("num_samples", "replacement")})
    past.load_state_dict({**sampler.state_dict(), "position": 0})
    meant, drawn = past.ledger()
    state = {name: value for name, value in sampler.state_dict().items() if name not in ("rows", "counts", "epochs")}
    return {**state, "version": 1, "meant": meant, "drawn": drawn}


@pytest.mark.parametrize("name", ["plain", "no replacement"])
def test_a_state_of_version_1_is_converted(name):
    settings = SHAPES[name]
    expected = make(**settings)
    whole = epochs(expected, 4)
    sampler = make(**settings)
    begun = [next(iterator) for iterator in [iter(sampler)] for _ in range(3)]
    assert begun == whole[0][:3]
    assert epochs(sampler, 2) == whole[:2]
    sampler.set_epoch(2)
    resumed = make(**settings)
    resumed.load_state_dict(through_a_file(dense(sampler)))
    assert epochs(resumed, 2) == whole[2:]
    meant, drawn = expected.ledger()
    assert (resumed.ledger()[1] - drawn).tolist() == torch.bincount(torch.tensor(begun), minlength=10).tolist()
    assert float(resumed.ledger()[0].sum()) == pytest.approx(float(meant.sum()) + 3)


def test_a_written_state_of_version_1_is_converted():
    """Version 0.3.0 wrote it: an epoch was stopped after 5 draws, one ended, and the next is at its fourth draw."""
    state = {
        "version": 1,
        "identity": make(num_samples=12).state_dict()["identity"] | {"weights": "e1c70f0556aeb0d7"},
        "epoch": 1,
        "position": 4,
        "meant": torch.tensor(WEIGHTS, dtype=torch.float64) / 45 * 17,
        "drawn": torch.tensor([0, 0, 2, 0, 1, 3, 1, 4, 3, 3]),
    }
    sampler = make(num_samples=12)
    sampler.load_state_dict(state)
    assert sampler.ledger()[1].tolist() == [0, 0, 2, 0, 2, 4, 1, 6, 3, 3]  # and 7, 5, 4, 7
    assert list(sampler) == [9, 8, 8, 9, 5, 7, 8, 8]
    torch.testing.assert_close(sampler.ledger()[0], state["meant"] / 17 * 29)


def test_a_state_of_version_1_with_unknown_epochs_is_refused():
    """Two epochs without replacement were stopped: their intended draws depend on where."""
    sampler = make(num_samples=8, replacement=False)
    for length in (3, 6):
        iterator = iter(sampler)
        assert len([next(iterator) for _ in range(length)]) == length
    list(sampler)
    list(sampler)
    with pytest.raises(UserError, match="state is of version 1, and several of its epochs without replacement"):
        make(num_samples=8, replacement=False).load_state_dict(dense(sampler))


def test_the_ledger_grows_with_the_rows_drawn():
    weights = torch.ones(100_000)
    sampler = DensityAwareSampler(weights, num_samples=50, seed=1)
    expected = torch.bincount(torch.tensor(flat(epochs(sampler, 3))), minlength=len(weights))
    rows, counts = sampler.drawn()
    assert rows.tolist() == expected.nonzero().flatten().tolist() and counts.tolist() == expected[rows].tolist()
    assert torch.equal(sampler.ledger()[1], expected)
    state = sampler.state_dict()
    assert sum(part.numel() for part in state.values() if isinstance(part, torch.Tensor)) <= 200
    assert sampler.drawn(consumed=7)[1].sum() == 107


def test_it_serves_batch_samplers():
    assert flat(BatchSampler(make(num_samples=10), 4, drop_last=False)) == list(make(num_samples=10))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 9}, "seed=3 and this one has seed=9"),
        ({"num_samples": 99}, "num_samples"),
        ({"replicas": 2}, "replicas"),
    ],
)
def test_a_state_of_another_sampler_is_refused(change, reason):
    with pytest.raises(UserError, match=reason):
        make(**{"num_samples": 100, **change}).load_state_dict(make(num_samples=100).state_dict())


def test_a_state_with_other_weights_or_none_at_all_is_refused():
    with pytest.raises(UserError, match="weights="):
        DensityAwareSampler(WEIGHTS[::-1], seed=3).load_state_dict(make().state_dict())
    for strange in ({}, {"version": 0}, []):
        with pytest.raises(UserError, match="not a sampler state of version 1 or 2"):
            make().load_state_dict(strange)
    with pytest.raises(UserError, match="consumed=11"):
        make().state_dict(consumed=11)


def test_all_ranks_share_a_state():
    first, second = make(0, 2, num_samples=20), make(1, 2, num_samples=20)
    expected = list(second)
    iterator = iter(first)
    assert len([next(iterator) for _ in range(4)]) == 4
    resumed = make(1, 2, num_samples=20)
    resumed.load_state_dict(first.state_dict())
    assert list(resumed) == expected[4:]


def test_regrouping_after_a_draw_is_refused():
    groups = {"num_generations": 2, "prompts_per_batch": 2, "batch_repeats": 1}
    assert make(num_samples=10).regrouped(**groups).plan.draws == 10
    sampler = make(num_samples=10)
    iterator = iter(sampler)
    assert [next(iterator) for _ in range(3)] == list(make(num_samples=10))[:3]
    loaded = make(num_samples=10)
    loaded.load_state_dict(sampler.state_dict())
    for used in (sampler, loaded):
        with pytest.raises(UserError, match="at index 3 of epoch 0, which new groups would lose"):
            used.regrouped(**groups)
    ended = make(num_samples=10)
    list(ended)
    ended.set_epoch(0)
    with pytest.raises(UserError, match="at index 0 of epoch 0, which new groups would lose"):
        ended.regrouped(**groups)


def test_regrouping_keeps_all_but_the_groups():
    given = make(1, 2, num_samples=8, replacement=False, seed=7)
    new = given.regrouped(2, 2, 3)
    for name in ("num_samples", "replacement", "seed", "rank", "num_replicas"):
        assert getattr(new.plan, name) == getattr(given.plan, name), name


# Weights, arms and pairs.


@pytest.mark.parametrize(
    ("weights", "reason"),
    [([], "shape"), ([[1.0]], "shape"), ([1.0, -1.0], r"-1\.0 of row 1"), ([1.0, float("nan")], "nan of row 1"),
     ([1.0, float("inf")], "inf of row 1"), ([0.0, 0.0], "all weights are 0")],
)  # fmt: skip
def test_invalid_weights_are_refused(weights, reason):
    with pytest.raises(UserError, match=reason):
        DensityAwareSampler(weights)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_generations": 0}, "num_generations=0"),
        ({"rank": 2, "num_replicas": 2}, "rank=2"),
        ({"num_samples": 3, "num_replicas": 4}, "at least 4"),
        ({"num_samples": 10, "replacement": False}, "only 9 prompts"),
        ({"num_samples": 9, "replacement": False}, "only change the order"),
    ],
)
def test_invalid_settings_are_refused(settings, reason):
    with pytest.raises(UserError, match=reason):
        DensityAwareSampler(WEIGHTS, **settings)


def test_uniform_weights_without_replacement_are_a_permutation():
    assert sorted(DensityAwareSampler([1.0] * 10, replacement=False)) == list(range(10))
    assert sorted(DensityAwareSampler([0.0, 1.0, 1.0], num_samples=2, replacement=False)) == [1, 2]


def test_from_model_has_the_defaults_of_the_config():
    node = OmegaConf.load(CONF / "task" / "density.yaml").sampler
    assert asdict(DensitySpec()) == dict(node)
    assert inspect.signature(DensityAwareSampler.from_model).parameters["k"].default == node.k


def test_the_keyword_arguments_are_the_settings_of_the_plan():
    assert set(get_type_hints(DrawSettings)) == {field.name for field in fields(DrawPlan)}
    own = {"batch_tokens"}
    assert set(get_type_hints(ModelSettings)) == own | set(get_type_hints(DrawSettings)) | {
        field.name for field in fields(DensitySpec) if field.name != "k"
    }


# Weights computed from a model.

PROMPTS = [f"What is the capital of country number {i}?" for i in range(20)] + ["def f(x): return x", "Sing to me."]


def test_from_model_embeds_weighs_and_samples(tiny):
    tiny.model.train()
    sampler = DensityAwareSampler.from_model(PROMPTS, tiny.model, tiny.tokenizer, k=5, seed=1, num_generations=2)
    assert tiny.model.training
    assert sampler.plan.seed == 1
    tiny.model.eval()
    spec = DensitySpec(k=5)
    expected = estimate(embed_hidden(tiny.model, tiny.tokenizer, PROMPTS), spec).weights
    torch.testing.assert_close(sampler.weights, expected)
    assert sampler.weights.argsort()[-2:].sort().values.tolist() == [20, 21]
    assert len(list(sampler)) == 44


def test_from_model_accepts_messages_and_checks_prompts(tiny):
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    ours = DensityAwareSampler.from_model(messages, tiny.model, tiny.tokenizer, k=5)
    torch.testing.assert_close(
        ours.weights, DensityAwareSampler.from_model(PROMPTS, tiny.model, tiny.tokenizer, k=5).weights
    )
    with pytest.raises(UserError, match="prompt 1 is int"):
        DensityAwareSampler.from_model(["a", 3], tiny.model, tiny.tokenizer)
    with pytest.raises(UserError, match="needs at least 11 different prompts"):
        DensityAwareSampler.from_model(PROMPTS[:5], tiny.model, tiny.tokenizer)
    for blank in (" \n", [{"role": "system", "content": ""}, {"role": "user", "content": " "}]):
        with pytest.raises(UserError, match="prompt 1 is blank"):
            DensityAwareSampler.from_model(["a", blank], tiny.model, tiny.tokenizer)


def test_equal_prompts_get_equal_embeddings_in_any_batch(tiny):
    copies = [PROMPTS[0]] * 7 + PROMPTS + [PROMPTS[20]] * 5
    sampler = DensityAwareSampler.from_model(copies, tiny.model, tiny.tokenizer, k=5, batch_tokens=40)
    assert sampler.density.distinct == len(PROMPTS)
    assert len(set(sampler.density.density[[*range(8), 0]].tolist())) == 1
    emb = embed_hidden(tiny.model, tiny.tokenizer, copies, batch_tokens=40)
    assert all(torch.equal(emb[0], emb[i]) for i in range(8))
    assert torch.equal(emb[-1], emb[7 + 20])


def test_from_model_keeps_its_density_and_warns(tiny):
    """It warns about weights that are almost uniform and about weights that explode."""

    def sampler(**settings):
        return DensityAwareSampler.from_model(PROMPTS, tiny.model, tiny.tokenizer, k=5, **settings)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        usual = sampler()
    torch.testing.assert_close(usual.density.weights, usual.weights)
    assert usual.density.gamma > 0 and usual.density.distinct == 22
    assert usual.regrouped(2, 2, 1).density is usual.density
    assert make().density is None
    with pytest.warns(UserWarning, match="^the weights do nothing: ESS/N is 1.000"):
        sampler(gamma=0.0, target_ess=None)
    with pytest.warns(UserWarning) as found:
        sampler(gamma=100.0, target_ess=None, cap=1.0)
    assert [str(warning.message).split(":")[0].split(" is ")[0] for warning in found] == [
        "the weights explode",
    ]


@pytest.mark.statistical
@pytest.mark.parametrize(("estimator", "feeds"), [("whitened_knn", False), ("kde_global", True)])
def test_from_model_warns_about_weights_that_feed_crowds(tiny, monkeypatch, estimator, feeds):
    monkeypatch.setattr("kat.sampling.from_model.embed_hidden", lambda *_: lifelike())
    with pytest.warns(UserWarning) as found:
        DensityAwareSampler.from_model(["text"] * 800, tiny.model, tiny.tokenizer, estimator=estimator)
    assert any(str(warning.message).startswith("a crowd of 20 near copies") for warning in found) == feeds


def test_the_tokenizer_gives_the_maximum_length(tiny):
    """It does so when the model's config has none."""
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
    embedder = HiddenEmbedder(SimpleNamespace(config=config), SimpleNamespace(model_max_length=77))
    assert embedder.max_tokens == 77
