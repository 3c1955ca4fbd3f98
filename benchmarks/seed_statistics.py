"""Simulations of the statistics over seeds: coverage, errors and power of several methods. Main entry: `main()`.

    python -m benchmarks.seed_statistics

prints three tables in Markdown. The differences of an experiment are an effect with a spread of 1 and a noise within
seeds; the tests hold the chosen method to the same numbers with fewer experiments.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import stdtr, stdtrit

from kat.collapse.gate import false_positives, paired_tables, swapped_tables
from kat.diversity.kernel import Array
from latentwire.stats.seeds import detectable_over_seeds, equivalence_over_seeds, mean_over_seeds, two_sided_p

EXPERIMENTS, RESAMPLES, PROMPTS = 20_000, 1000, 30
SEEDS = (5, 10, 20)
Effect = Callable[[np.random.Generator, tuple[int, ...]], Array]
EFFECTS: dict[str, Effect] = {
    "normal": lambda generator, shape: generator.standard_normal(shape),
    "skewness 1": lambda generator, shape: (generator.gamma(4, size=shape) - 4) / 2,
    "skewness 1.4": lambda generator, shape: (generator.gamma(2, size=shape) - 2) / 2**0.5,
    "skewness 2": lambda generator, shape: generator.exponential(size=shape) - 1,
    "heavy tails (t, 5)": lambda generator, shape: generator.standard_t(5, size=shape) / (5 / 3) ** 0.5,
}
NOISES = {"small noise": 0.1, "large noise": 3.0}


def covered(lows: Array, highs: Array) -> float:
    """Return the share of intervals that contain the true mean, 0."""
    return float(((lows <= 0) & (highs >= 0)).mean())


def student(values: Array) -> tuple[Array, Array]:
    """Return the ends of Student's intervals, (N,) each."""
    n = values.shape[1]
    means, half = values.mean(axis=1), stdtrit(n - 1, 0.975) * values.std(axis=1, ddof=1) / np.sqrt(n)
    return means - half, means + half


def ours(values: Array) -> tuple[Array, Array]:
    """Return the ends of the project's intervals, (N,) each."""
    ends = np.array([found.interval for found in mean_over_seeds(values)])
    return ends[:, 0], ends[:, 1]


def nested_bootstrap(prompts: Array, generator: np.random.Generator) -> tuple[Array, Array]:
    """Return percentile intervals that resample seeds, and the prompts within each drawn seed.

    Args:
        prompts: Differences of each prompt, (N, seeds, prompts).
        generator: Random numbers.
    """
    ends = []
    for experiment in prompts:
        seeds, count = experiment.shape
        rows = generator.integers(seeds, size=(RESAMPLES, seeds))
        columns = generator.integers(count, size=(RESAMPLES, seeds, count))
        means = experiment[rows[..., None], columns].mean(axis=(1, 2))
        ends.append(np.quantile(means, [0.025, 0.975]))
    found = np.array(ends)
    return found[:, 0], found[:, 1]


def coverage_rows(generator: np.random.Generator) -> list[list[str]]:
    """Return the coverage of 95% intervals by seeds, effect and noise."""
    rows = []
    for seeds in SEEDS:
        for effect, draw in EFFECTS.items():
            for noise, size in NOISES.items():
                effects = draw(generator, (EXPERIMENTS, seeds))
                values = effects + size * generator.standard_normal((EXPERIMENTS, seeds))
                few = values[:300, :, None] + size * PROMPTS**0.5 * generator.standard_normal((300, seeds, PROMPTS))
                shares = [covered(*ours(values)), covered(*student(values)), covered(*nested_bootstrap(few, generator))]
                rows.append([str(seeds), effect, noise, *(f"{share:.3f}" for share in shares)])
    return rows


def error_rows(generator: np.random.Generator) -> list[list[str]]:
    """Return the errors of the tests at 5%, .2% and at the margin, and the power at what is predicted to have 80%."""
    rows = []
    for seeds in SEEDS:
        for effect, draw in EFFECTS.items():
            values = draw(generator, (EXPERIMENTS, seeds))
            p = two_sided_p(values)
            t = values.mean(axis=1) / values.std(axis=1, ddof=1) * np.sqrt(seeds)
            plain = 2 * stdtr(seeds - 1, -np.abs(t))
            equal = equivalence_over_seeds(values + 2, [2.0] * EXPERIMENTS)
            sds = draw(generator, (300, seeds)).std(axis=1, ddof=1)
            power = [np.mean(two_sided_p(values[:2000] + detectable_over_seeds(sd, seeds, 0.05)) < 0.05) for sd in sds]
            rows.append([str(seeds), effect, f"{np.mean(p < 0.05):.3f}", f"{np.mean(plain < 0.05):.3f}",
                         f"{np.mean(p < 0.002):.4f}", f"{np.mean(plain < 0.002):.4f}",
                         f"{np.mean([one.p_value < 0.05 for one in equal]):.3f}", f"{np.mean(power):.2f}"])  # fmt: skip
    return rows


def uniform_rows(generator: np.random.Generator) -> list[list[str]]:
    """Return how often uniform differs from uniform: tables of 30 measures, over 40 data sets."""
    rows = []
    for runs in (10, 20):
        for correlation in (0.0, 0.64):
            shares: dict[str, list[float]] = {"two seeds": [], "same seed": []}
            for _ in range(40):
                common = generator.standard_normal((2, 1, runs))
                own = generator.standard_normal((2, 30, runs))
                one, other = correlation**0.5 * common + (1 - correlation) ** 0.5 * own
                shares["two seeds"].append(false_positives(paired_tables(one, generator), same_seed=False)["share"])
                shares["same seed"].append(
                    false_positives(swapped_tables(one - other, generator), same_seed=True)["share"]
                )
            for pairs, found in shares.items():
                rows.append([str(runs), pairs, f"{correlation:g}", f"{np.mean(found):.3f}", f"{max(found):.3f}"])
    return rows


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n{title}\n")
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """Print all tables."""
    generator = np.random.default_rng(0)
    show("Coverage of 95% intervals", ["seeds", "effect", "within seeds", "ours", "Student", "nested bootstrap"],
         coverage_rows(generator))  # fmt: skip
    columns = ["seeds", "effect", "p < .05", "Student", "p < .002", "Student", "equivalent at the margin"]
    show("Errors and power", [*columns, "power (predicted .80)"], error_rows(generator))
    show("Uniform against uniform", ["runs", "pairs", "correlation of measures", "mean share", "largest"],
         uniform_rows(generator))  # fmt: skip


if __name__ == "__main__":
    main()
