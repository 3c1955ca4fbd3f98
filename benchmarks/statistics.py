"""Simulations of the statistics over examples: coverage, errors and selection. Main entry: `main()`.

    python -m benchmarks.statistics
    python -m benchmarks.statistics experiments=200        # a quick look

prints tables in Markdown. Simulated F1 has 28% zeros, 10% between and 62% ones. Each table names what it should show.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from latentwire.stats.clusters import SampledClusters, Scores
from latentwire.stats.comparison import corrected, holm, paired_differences, partial_conjunction
from latentwire.stats.intervals import mean_interval
from latentwire.stats.selection import cross_fit, level_with_best

COUNTS = (8, 16, 30, 50, 100, 200, 400)
RATES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0)
MEANS = (0.01, 0.02, 0.05, 0.1, 0.3, 0.62, 0.9, 0.98)
BETWEEN = np.array([0.25, 0.4, 0.5, 0.67, 0.8])
F1_MEAN = 0.62 + 0.1 * float(BETWEEN.mean())
Generator = np.random.Generator


def simulated_f1(generator: Generator, shape: tuple[int, ...]) -> Scores:
    """Return scores with 28% zeros, 10% between and 62% ones."""
    u = generator.random(shape)
    found: Scores = np.where(u < 0.28, 0.0, np.where(u < 0.38, generator.choice(BETWEEN, shape), 1.0))
    return found


# name -> (change of an answer, its mean)
CHANGES: dict[str, tuple[Callable[[Generator, tuple[int, ...]], Scores], float]] = {
    "all for the worse": (lambda generator, shape: np.full(shape, -1.0), -1.0),
    "both ways": (lambda generator, shape: generator.choice([-1.0, 1.0], shape), 0.0),
    "small and large": (lambda generator, shape: generator.uniform(-1, 0.5, shape), -0.25),
    "mostly +.1, some -1": (lambda generator, shape: np.where(generator.random(shape) < 0.8, 0.1, -1.0), -0.12),
}
# name -> scores of a given mean
SCORES: dict[str, Callable[[Generator, tuple[int, ...], float], Scores]] = {
    "binary": lambda generator, shape, mean: (generator.random(shape) < mean).astype(float),
    "continuous": lambda generator, shape, mean: generator.beta(8 * mean, 8 * (1 - mean), shape),
    "a third where not 0": lambda generator, shape, mean: np.where(
        generator.random(shape) < mean, generator.choice([0.2, 0.3, 0.5], shape), 0.0
    ),
}


def table(title: str, columns: list[str], rows: Iterator[list[str]] | list[list[str]]) -> None:
    """Print a table in Markdown, row by row."""
    print(f"\n{title}\n")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def percent(share: float) -> str:
    """Return a share as a percentage with one digit."""
    return f"{100 * share:.1f}%"


def covered(intervals: list[tuple[float, float]], truth: float) -> float:
    """Return the share of intervals that contain the truth."""
    ends = np.array(intervals)
    return float(((ends[:, 0] <= truth + 1e-9) & (truth - 1e-9 <= ends[:, 1])).mean())


def paired_coverage(experiments: int, generator: Generator) -> Iterator[list[str]]:
    """Yield the coverage of the interval of a paired difference by kind of change, number of examples and rate."""
    for kind, (draw, mean) in CHANGES.items():
        for count in COUNTS:
            cells = []
            for rate in RATES:
                shape = (experiments, count)
                differences = np.where(generator.random(shape) < rate, draw(generator, shape), 0.0)
                found = [
                    one.interval
                    for block in np.array_split(differences, max(1, experiments // 250))
                    for one in paired_differences(block, np.zeros(count), 0, None, 1.0, 1)
                ]
                cells.append(percent(covered(found, rate * mean)))
            yield [kind, str(count), *cells]


def mean_coverage(experiments: int, generator: Generator) -> Iterator[list[str]]:
    """Yield the coverage of the interval of a mean by kind of score, number of examples and mean."""
    for kind, draw in SCORES.items():
        for count in COUNTS:
            cells = []
            for mean in MEANS:
                truth = mean / 3 if kind == "a third where not 0" else mean
                found = [mean_interval(one) for one in draw(generator, (experiments, count), mean)]
                cells.append(percent(covered(found, truth)))
            yield [kind, str(count), *cells]


def error_rates(experiments: int, generator: Generator) -> Iterator[list[str]]:
    """Yield how often an equal system is called different: alone, and any of 27 after Holm's correction."""
    for count in (16, 30, 100, 200, 400):
        cells = []
        for rate in (0.05, 0.3, 1.0):
            alone, any_of = [], []
            for _ in range(max(20, experiments // 10)):
                base = simulated_f1(generator, (1, count))
                again = simulated_f1(generator, (27, count))
                systems = np.where(generator.random((27, count)) < rate, again, base)
                found = paired_differences(systems, base[0], 0, None, 1.0, 1)
                alone += [one.p_value < 0.05 for one in found]
                any_of.append(min(one.p_holm for one in corrected(found)) < 0.05)
            cells += [percent(float(np.mean(alone))), percent(float(np.mean(any_of)))]
        yield [str(count), *cells]


def clustered(experiments: int, generator: Generator) -> Iterator[list[str]]:
    """Yield how often an equal system is called different if the questions of a passage change together."""
    for correlation in (0.0, 0.14, 0.23, 0.5):
        labels = np.repeat(np.arange(50), 4)
        together = generator.standard_normal((experiments, 50))[:, labels]
        own = generator.standard_normal((experiments, 200))
        values = np.sqrt(correlation) * together + np.sqrt(1 - correlation) * own
        differences = np.where(np.abs(values) > 1.0, np.sign(values), 0.0)
        cells = [f"{correlation:g}"]
        for clusters in (None, SampledClusters(labels.tolist())):
            found = paired_differences(differences, np.zeros(200), 0, clusters, 1.0, 1)
            cells += [percent(float(np.mean([one.p_value < 0.05 for one in found])))]
        yield cells


def family(generator: Generator, systems: int, count: int, gains: Scores | None = None) -> Scores:
    """Return scores of systems that share 70% of their answers; `gains` raises the true means, (S,)."""
    base, own = simulated_f1(generator, (1, count)), simulated_f1(generator, (systems, count))
    scores = np.where(generator.random((systems, count)) < 0.3, own, base)
    if gains is not None:
        scores = np.where(generator.random(scores.shape) < gains[:, None], 1.0, scores)
    return scores


def best_of_many(experiments: int, generator: Generator) -> Iterator[list[str]]:
    """Yield by how much the score of the best of 20 is too high, with and without cross-fitting."""
    runs = max(20, experiments // 5)
    for what, gains in (("20 equal", np.zeros(20)), ("one better by about .1", np.eye(20)[0] * 0.32)):
        for count in (100, 200, 400):
            clusters, of_four = SampledClusters.single(count), SampledClusters((np.arange(count) // 4).tolist())
            raw, fitted, found, separated, together = [], [], [], [], []
            for _ in range(runs):
                systems = family(generator, 20, count, gains)
                truth = F1_MEAN + (1 - F1_MEAN) * gains  # (S,)
                best = int(systems.mean(axis=1).argmax())
                raw.append(systems[best].mean() - truth[best])
                chosen = cross_fit(systems, clusters, 0)
                assert chosen is not None, "single examples are enough clusters"
                fitted.append(chosen.mean - truth[best])
                found.append((chosen.interval[0] - truth[best], chosen.interval[1] - truth[best]))
                top = gains == gains.max()
                separated.append(not level_with_best(systems, clusters, 0)[top].all())
                together.append(not level_with_best(systems, of_four, 0)[top].all())
            cells = [f"{np.mean(raw):+.3f}", f"{np.mean(fitted):+.3f} ({np.std(fitted) / runs**0.5:.3f})"]
            shares = [covered(found, 0.0), float(np.mean(separated)), float(np.mean(together))]
            yield [what, str(count), *cells, *map(percent, shares)]


def budgets(experiments: int, generator: Generator) -> Iterator[list[str]]:
    """Yield by how much a budgeted sweep's best score is too high: on all examples, and on the last, undecided ones."""
    for most in (64, 128, 256):
        every, fresh = [], []
        for _ in range(experiments):
            systems = family(generator, 24, most)
            count = 16
            while 2 * count <= most:
                kept = np.argsort(-systems[:, :count].mean(axis=1), kind="stable")[: (len(systems) + 1) // 2]
                systems, decided, count = systems[kept], count, 2 * count
            every.append(systems.mean(axis=1).max() - F1_MEAN)
            chosen = cross_fit(systems[:, decided:], SampledClusters.single(most - decided), 0)
            assert chosen is not None, "single examples are enough clusters"
            fresh.append(chosen.mean - F1_MEAN)
        yield [str(most), f"{np.mean(every):+.3f}", f"{np.mean(fresh):+.3f} ({np.std(fresh) / experiments**0.5:.3f})"]


def atlases(experiments: int, generator: Generator) -> Iterator[list[str]]:
    """Yield how often 30 sources without a useful repair show one, and what "at least K sources" finds."""
    for helped in (0, 3, 10):
        by_source, by_sweep, at_least, too_many = [], [], [], []
        for _ in range(experiments):
            sources = []
            for source in range(30):
                gains = np.zeros(13)
                gains[0] = 0.5 if source < helped else 0.0
                base = simulated_f1(generator, (1, 100))
                again = simulated_f1(generator, (13, 100))
                systems = np.where(generator.random((13, 100)) < 0.3, again, base)
                systems = np.where(generator.random((13, 100)) < gains[:, None], 1.0, systems)
                sources.append(paired_differences(systems, base[0], source, None, 1.0, 13))
            null = sources[helped:]
            wins = [[one.p_holm < 0.05 and one.difference > 0 for one in corrected(own)] for own in null]
            by_source.append(any(any(one) for one in wins))
            pooled = corrected([one for own in sources for one in own])[13 * helped :]
            by_sweep.append(any(one.p_holm < 0.05 and one.difference > 0 for one in pooled))
            smallest = []
            for own in sources:
                p_values = holm(np.array([one.p_value for one in own]))
                smallest.append(min((p for p, one in zip(p_values, own, strict=True) if one.difference > 0), default=1))
            found = partial_conjunction(np.array(smallest), 0.05)
            at_least.append(found)
            too_many.append(found > helped)
        shares = [percent(float(np.mean(one))) for one in (by_source, by_sweep, too_many)]
        yield [str(helped), *shares, f"{np.mean(at_least):.1f}"]


def main(arguments: list[str]) -> None:
    """Print all tables.

    Args:
        arguments: Optionally "experiments=N", the number of simulated experiments in a cell of the first tables.
    """
    settings = dict(argument.split("=", 1) for argument in arguments)
    experiments, generator = int(settings.get("experiments", 2000)), np.random.default_rng(0)
    started = time.perf_counter()
    rates = [percent(rate) for rate in RATES]
    table("Coverage of the paired 95% interval, by share of changed answers (at least 93%; with few changes any "
          "interval that keeps this covers more)", ["changes", "n", *rates],
          paired_coverage(experiments, generator))  # fmt: skip
    means = [f"{mean:g}" for mean in MEANS]
    table("Coverage of the 95% interval of a mean, by mean (at least 93%)", ["scores", "n", *means],
          mean_coverage(experiments, generator))  # fmt: skip
    shares = [f"{share}, {which}" for share in ("5%", "30%", "100%") for which in ("alone", "any of 27")]
    table("Equal systems called different, by share of answers drawn anew (at most 5%)", ["n", *shares],
          error_rates(experiments, generator))  # fmt: skip
    table("Equal systems called different, 4 questions a passage (5%)", ["correlation", "questions", "passages"],
          clustered(experiments, generator))  # fmt: skip
    columns = [
        "systems",
        "n",
        "best, as it is",
        "best, cross-fit (standard error)",
        "coverage",
        "best not level",
        "in passages of 4",
    ]
    table("Error of the best score (0), coverage (95%), the best called not level (at most 5%)", columns,
          best_of_many(experiments, generator))  # fmt: skip
    table("Error of the best score of a budgeted sweep of 24 equal transforms (0)",
          ["examples", "on all", "on fresh ones, cross-fit (standard error)"],
          budgets(experiments // 10, generator))  # fmt: skip
    columns = ["sources with one", "false by source", "false by sweep", "K too high", "mean of at least K"]
    table("30 sources, 13 transforms: a false repair somewhere (at most 5%)", columns,
          atlases(max(20, experiments // 20), generator))  # fmt: skip
    print(f"\n{experiments} experiments a cell, {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main(sys.argv[1:])
