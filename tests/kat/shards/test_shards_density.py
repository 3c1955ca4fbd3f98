"""The density of shards is the density in memory, whoever does its units and in which order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from kat.density.duplicates import near_duplicate_groups
from kat.density.estimate import DensitySpec, estimate
from kat.density.gates import measure_gates
from kat.density.lists import lists_needed
from kat.density.nearest import nearest
from kat.density.sketch import KernelSketch
from kat.density.whitening import whiten
from kat.shards import stages as stages_module
from kat.shards.density import FoundDensity, ShardedDensity
from kat.shards.stages import Stages
from kat.shards.whitened import WhitenedPlaces, half_rows
from latentwire.harness.errors import UserError
from latentwire.harness.shard_files import ShardFolder
from tests.helpers.embeddings import rounded, write_embedding_folder
from tests.helpers.lifelike import lifelike
from tests.helpers.random import draws, numbers

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def prompts(n: int = 260, width: int = 24) -> tuple[torch.Tensor, list[int]]:
    """Return rows (N, D) and the sizes of six shards.

    One shard has one row, and two have only copies of rows of earlier shards. The last one ends with near copies of
    rows of other shards.
    """
    x = lifelike(0, n=n, width=width)
    near = normalize(x[[3, 3, 3, n // 2]] + 0.01 * torch.randn(4, width, generator=draws(1)), dim=1)
    third, copies = n // 3, torch.cat([x[:5], x[5:6], x[5:6]])
    parts = [x[:third], x[third : third + 1], x[:12], x[third + 1 : -9], copies, torch.cat([x[-9:], near])]
    return rounded(torch.cat(parts)), list(map(len, parts))


def job(folder: Path, x: torch.Tensor, sizes: list[int], near_duplicate: float = 0.7, **settings) -> ShardedDensity:
    if (folder / "emb").exists():
        raise AssertionError("one job a folder")
    emb = write_embedding_folder(folder / "emb", x, sizes)
    return ShardedDensity(emb, DensitySpec(**settings), near_duplicate, 0, Stages(folder / "parts", "key"), CPU)


def found(folder: Path, x: torch.Tensor, sizes: list[int], near_duplicate: float = 0.7, **settings) -> FoundDensity:
    work = job(folder, x, sizes, near_duplicate, **settings)
    work.run()
    return work.collect()


def small_units(monkeypatch) -> None:
    """Make several lists, several files of gathered lists and several sketches of few rows."""
    monkeypatch.setattr("kat.shards.neighbours.GROUP_BYTES", 4000)
    monkeypatch.setattr("kat.shards.neighbours.EXACT_ROWS", 40)
    monkeypatch.setattr("kat.shards.neighbours.PROBES", 400)
    monkeypatch.setattr("kat.shards.kernel_sums.PARTS", 2)


@pytest.fixture
def small_sketch(monkeypatch) -> None:
    """Use a sketch with few and short hashes, which is fast and wrong."""
    monkeypatch.setattr(KernelSketch, "empty", partial(KernelSketch.empty, tables=32, bits=10))


@pytest.fixture
def no_gates(monkeypatch) -> None:
    """Leave out the gates that estimate again, which take most of the time."""
    monkeypatch.setattr("kat.density.gates.FEWEST", 10**6)


METHODS = [
    ("whitened_knn", 0.7, {}),
    ("whitened_knn", 0.7, {"k": 3, "gamma": 2.0, "target_ess": None}),
    ("whitened_knn", 0.7, {"index": "ivf", "min_recall": 1.0}),
    ("knn", 1, {}),
    ("whitened_sketch", 1, {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "near_duplicate", "settings"), METHODS)
def test_shards_have_the_density_in_memory(tmp_path, monkeypatch, estimator, near_duplicate, settings):
    """The whitened rows of shards are rounded to float16, so their distances differ in the fourth digit."""
    small_units(monkeypatch)
    x, sizes = prompts(170 if estimator == "whitened_sketch" else 260)
    spec = DensitySpec(estimator=estimator, **settings)
    shards, memory = found(tmp_path, x, sizes, near_duplicate, **vars(spec)), estimate(x, spec)
    torch.testing.assert_close(shards.density.density, memory.density, rtol=0.01, atol=0)
    assert float((shards.density.density / memory.density - 1).abs().mean()) < 3e-4
    assert float((shards.density.weights - memory.weights).abs().sum() / 2) < 0.005
    for name in ("gamma", "bandwidth", "recall", "capped", "local_share", "weights_error"):
        assert getattr(shards.density, name) == pytest.approx(getattr(memory, name), rel=0.01, abs=1e-3), name
    assert (shards.density.error is None) == (memory.error is None) == (estimator != "whitened_sketch")
    assert shards.density.error == memory.error or shards.density.error == pytest.approx(memory.error, rel=0.1)
    assert (shards.density.index, shards.density.distinct) == (memory.index, memory.distinct)
    groups = near_duplicate_groups(x, near_duplicate, spec, 0, memory.neighbours)
    assert torch.equal(shards.groups, groups)
    assert len(set(groups[[3, *range(len(x) - 4, len(x) - 1)]].tolist())) == (1 if near_duplicate < 1 else 4)
    gates = measure_gates(x, spec, memory, 0)
    assert {name for name, value in gates.items() if value is None} == {
        name for name, value in shards.gates.items() if value is None
    }
    measured = {name: value for name, value in gates.items() if value is not None}
    assert {name: shards.gates[name] for name in measured} == pytest.approx(measured, rel=0.03, abs=2e-3)
    assert len(measured) == (2 if estimator == "whitened_sketch" else 5)


def test_rows_of_the_search_are_those_of_the_whitening(tmp_path):
    """They are float16 numbers of unit length, which survive being stored."""
    x, sizes = prompts()
    work = job(tmp_path, x, sizes)
    white = WhitenedPlaces(work.emb, True, 0, work.stages)
    white.run()
    places = x[np.array(white.places.first_row)]
    expected = whiten(places)
    rows, numbers_of = (
        torch.cat(parts)
        for parts in zip(*[block for name in work.emb.names for block in white.blocks(name)], strict=True)
    )
    assert numbers_of.tolist() == list(range(len(places)))  # each place once, in the shard of its first row
    torch.testing.assert_close(rows @ rows.T, expected @ expected.T, atol=2e-3, rtol=0)
    assert torch.equal(white.take(np.arange(len(places))), rows)
    assert torch.equal(half_rows(rows.half()), rows)


@pytest.mark.usefixtures("no_gates")
@pytest.mark.statistical
@pytest.mark.parametrize("recall", [0.6, 0.9])
def test_lists_reach_the_recall(tmp_path, monkeypatch, recall):
    """The neighbours that are found decide the recall on a sample of all places."""
    small_units(monkeypatch)
    x, sizes = prompts()
    lists = found(tmp_path, x, sizes, index="ivf", min_recall=recall).density
    assert lists.index == "ivf" and recall <= lists.recall < 1
    assert 0 < lists.weights_error < 1
    exact = found(tmp_path / "exact", x, sizes, index="exact").density
    assert (exact.index, exact.recall, exact.weights_error) == ("exact", 1, 0)
    assert (
        lists.density <= exact.density * (1 + 1e-6)
    ).all()  # neighbours that are missed are replaced by farther ones
    assert (lists.density < exact.density * (1 - 1e-6)).any()
    assert lists.recall < found(tmp_path / "more", x, sizes, index="ivf", min_recall=0.97).density.recall


@pytest.mark.usefixtures("no_gates")
def test_auto_searches_all_lists_of_few_places(tmp_path, monkeypatch):
    x, sizes = prompts()
    assert found(tmp_path / "few", x, sizes).density.index == "exact"
    monkeypatch.setattr("kat.shards.neighbours.EXACT_UP_TO", 100)
    assert found(tmp_path / "many", x, sizes).density.index == "ivf"


@pytest.mark.usefixtures("no_gates")
def test_places_in_small_lists_get_all_their_neighbours(tmp_path, monkeypatch):
    """One list has fewer places than k; with a recall of 0, one list is searched."""
    small_units(monkeypatch)
    x, sizes = prompts()
    density = found(tmp_path, x, sizes, index="ivf", min_recall=0.0, k=25).density.density
    exact = found(tmp_path / "exact", x, sizes, index="exact", k=25).density.density
    assert density.isfinite().all() and (density > 0).all()
    assert (density / exact - 1).abs().median() < 0.2


def test_the_needed_lists_are_found_through_all_shards(tmp_path, monkeypatch):
    """The true neighbours of the queries are in several shards."""
    small_units(monkeypatch)
    x, sizes = prompts()
    work = job(tmp_path, x, sizes, index="ivf", min_recall=0.8)
    work.run()
    white = WhitenedPlaces(work.emb, True, 0, work.stages)
    rows = white.take(np.arange(len(white.places)))
    centres = torch.from_numpy(np.array(work.stages.files("lists").array("all", "centres")))
    true = nearest(rows, 10, index="exact", min_recall=1.0, seed=0).ids[white.queries]
    own = (rows @ centres.T).argmax(1)
    count = lists_needed(rows[white.queries], centres, own[true], 0.8)
    assert work.stages.files("needed").facts("all") == {"lists": count} and count > 1
    assert torch.equal(torch.from_numpy(np.array(work.stages.files("needed").array("all", "true"))), true)


@pytest.mark.usefixtures("no_gates")
def test_groups_have_ten_links_for_any_k(tmp_path):
    """Two crowds of five are near each other; the two nearest of each prompt are in its own crowd."""
    x = lifelike(0, n=200, width=48, topics=200)
    aside = 0.05 * torch.randn(1, 48, generator=draws(1))
    near = [
        x[:1] + 0.003 * torch.randn(5, 48, generator=draws(2)),
        x[:1] + aside + 0.003 * torch.randn(5, 48, generator=draws(3)),
    ]
    x = rounded(normalize(torch.cat([x[1:], *near]), dim=1))
    groups = found(tmp_path, x, [150, 59], k=2).groups
    assert torch.equal(groups, near_duplicate_groups(x, 0.7, DensitySpec(k=2)))
    assert len(groups[-10:].unique()) == 1
    assert len(near_duplicate_groups(x, 0.98, DensitySpec())[-10:].unique()) == 2


def test_rows_that_differ_in_one_bit_are_groups_of_their_own(tmp_path):
    """At near_duplicate=1 only equal rows are a group, although the cosine of others is rounded to 1."""
    x = rounded(lifelike(0, n=30, width=24))
    bits = x.half().view(torch.int16).clone()
    bits[:, 0] ^= 1
    x = torch.cat([x, bits.view(torch.float16).float()])
    for estimator in ("knn", "whitened_knn"):
        assert found(tmp_path / estimator, x, [30, 30], 1, estimator=estimator).groups.tolist() == list(range(60))


def in_order(order: Callable[[list[str]], list[str]]):
    """Return a function like work_through that does the units in an order."""

    def work_through(folder, names, is_finished, work) -> int:
        for name in order(list(names)):
            assert not is_finished(name)
            work(name)
            assert is_finished(name)
        return len(names)

    return work_through


def mixed(names: list[str]) -> list[str]:
    return numbers().permutation(names).tolist()


@pytest.mark.usefixtures("small_sketch")
@pytest.mark.parametrize(
    ("estimator", "near_duplicate", "settings"), [("whitened_knn", 0.7, {"index": "ivf"}), ("whitened_sketch", 1, {})]
)
def test_the_order_of_the_units_changes_no_byte(tmp_path, monkeypatch, estimator, near_duplicate, settings):
    small_units(monkeypatch)
    monkeypatch.setattr(Stages, "remove", lambda self, stage: None)
    x, sizes = prompts(170)
    made = []
    for number, order in enumerate([sorted, lambda names: sorted(names, reverse=True), mixed]):
        monkeypatch.setattr(stages_module, "work_through", in_order(order))
        job(tmp_path / str(number), x, sizes, near_duplicate, estimator=estimator, **settings).run()
        parts = tmp_path / str(number) / "parts"
        made.append({str(path.relative_to(parts)): path.read_bytes() for path in parts.rglob("*") if path.is_file()})
    assert made[0] == made[1] == made[2]
    units = [name for name in made[0] if name.endswith(".json")]
    expected = {"counted": 2, "sums": 6} if estimator == "whitened_sketch" else {"white": 6, "lists": 1, "needed": 1}
    for stage, count in expected.items():
        assert sum(name.startswith(f"{stage}/") for name in units) == count
    assert estimator == "whitened_sketch" or sum(name.startswith("gathered") for name in units) > 2


def test_finished_units_are_kept_and_damaged_ones_made_again(tmp_path, monkeypatch, capfd):
    small_units(monkeypatch)
    x, sizes = prompts(170)
    work = job(tmp_path, x, sizes)
    work.run()
    first, parts = work.collect(), tmp_path / "parts"
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in parts.rglob("*") if path.is_file()}
    assert not (parts / "white").exists()
    damaged = [parts / "found" / "00001.mean.npy", parts / "gathered" / "00002.rows.npy"]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    capfd.readouterr()
    again = ShardedDensity(work.emb, work.spec, 0.7, 0, Stages(parts, "key"), CPU)
    again.run()
    err = capfd.readouterr().err
    for path in damaged:
        assert err.count(f"warning: {path} is damaged; shard {path.name[:5]} counts as missing") == 1
    after = {path: (path.stat().st_ino, path.read_bytes()) for path in parts.rglob("*") if path.is_file()}
    changed = {path.relative_to(parts).as_posix()[:-4] for path in before if before[path][0] != after[path][0]}
    assert {name.split(".")[0] for name in changed} == {"found/00001", "gathered/00002"}
    assert {path: content for path, (_, content) in after.items()} == {
        path: content for path, (_, content) in before.items()
    }
    second = again.collect()
    assert torch.equal(first.density.weights, second.density.weights) and torch.equal(first.groups, second.groups)


@pytest.mark.usefixtures("small_sketch")
def test_finished_stages_are_not_done_again(tmp_path, monkeypatch):
    x, sizes = prompts(100)
    for estimator in ("knn", "whitened_sketch"):
        work = job(tmp_path / estimator, x, sizes, 1, estimator=estimator)
        work.run()
        weights = work.collect().density.weights
        for large_ones_are_left in (True, False):
            again = ShardedDensity(work.emb, work.spec, 1, 0, Stages(work.stages.folder, "key"), CPU)
            with monkeypatch.context() as patch:
                patch.setattr(ShardFolder, "save", lambda self, name, *content: pytest.fail(f"{self.folder}: {name}"))
                again.run()
            assert torch.equal(again.collect().density.weights, weights)
            if large_ones_are_left:
                again.tidy()
                assert not {path.name for path in work.stages.folder.iterdir()} & {"white", "gathered", "counted"}


# The direction.


def rare_and_crowded(wide: int = 96) -> tuple[torch.Tensor, int, slice, list[int]]:
    """Return topics with a lonely prompt and a crowd: rows, the number of the lonely one, the crowd, sizes of shards.

    The crowd is twenty near copies of the prompt farthest from the mean, in three shards.
    """
    x = lifelike(1, n=400, width=wide)
    place = int((x @ x.mean(0)).argmin())
    crowd = normalize(x[place] + 0.002 * torch.randn(20, wide, generator=draws(2)), dim=1)
    lonely = normalize(-x.mean(0) + 2 * torch.randn(1, wide, generator=draws(3)) / wide**0.5, dim=1)
    return rounded(torch.cat([x, lonely, crowd])), len(x), slice(len(x) + 1, None), [300, 105, 8, 8]


def crowd_ratio(weights: torch.Tensor, crowd: slice) -> float:
    """Return the mass of the crowd over its uniform share."""
    return float(weights[crowd].mean()) * len(weights)


@pytest.mark.usefixtures("no_gates")
@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("estimator", ["whitened_knn", "knn", "whitened_sketch"])
def test_the_lonely_prompt_weighs_most_and_the_crowd_little(tmp_path, estimator):
    """A sketch sees the crowd, but the sums of all prompts without one are about 1, so it orders these at random."""
    x, lonely, crowd, sizes = rare_and_crowded()
    density = found(tmp_path, x, sizes, 1, estimator=estimator).density
    assert crowd_ratio(density.weights, crowd) < 0.2
    if estimator != "whitened_sketch":
        assert density.density[lonely] <= density.density.quantile(0.05)
        assert density.weights[lonely] == density.weights.max()


@pytest.mark.statistical
def test_a_global_estimator_feeds_that_crowd():
    """With the global estimator, or with weights of the wrong sign, the test above fails."""
    x, lonely, crowd, _ = rare_and_crowded()
    assert crowd_ratio(estimate(x, DensitySpec(estimator="kde_global")).weights, crowd) > 1
    right = estimate(x, DensitySpec()).weights
    wrong = (1 / right) / (1 / right).sum()
    assert crowd_ratio(wrong, crowd) > 1 and wrong[lonely] == wrong.min()


# What is refused.


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"estimator": "kde_global"},
            r"estimator=kde_global: needs all embeddings in memory; use whitened_knn, knn or",
        ),
        ({"estimator": "knn"}, r"near_duplicate=0\.7 estimator=knn: .*add near_duplicate=1"),
        ({"estimator": "whitened_sketch"}, r"near_duplicate=0\.7 estimator=whitened_sketch"),
        ({"near_duplicate": 1.5}, r"near_duplicate=1\.5: must be a cosine"),
        ({"cap": 0.0}, r"cap=0\.0: must be a quantile"),
    ],
)
def test_settings_that_shards_do_not_have_are_refused(tmp_path, settings, reason):
    x, sizes = prompts(30)
    with pytest.raises(UserError, match=reason):
        job(tmp_path, x, sizes, **settings)


@pytest.mark.parametrize("settings", [{"estimator": "knn"}, {"estimator": "whitened_sketch"}, {}])
def test_too_few_places_are_refused(tmp_path, settings):
    x, sizes = prompts(30)
    with pytest.raises(UserError, match=r"k=34 needs at least 35 different prompts, got 34"):
        job(tmp_path, x, sizes, 1, k=34, **settings).run()
    with pytest.raises(UserError, match=r"index=hnsw: unknown"):
        job(tmp_path / "other", x, sizes, index="hnsw").run()


def test_sources_are_numbered_through_all_shards(tmp_path):
    x, sizes = prompts(30)
    sources = job(tmp_path, x, sizes).sources()
    assert sources.names == ["a", "b"]
    assert sources.number.tolist() == [i % 2 for i in range(len(x))]
