"""Numbers of the page as text, and what an experiment does not show. Main entries: `interval_text()`, `limits_of()`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kat.collapse.answers import estimate_bias
from kat.collapse.measures import ENTROPY, QUALITY
from kat.collapse.records import SeedDifference, SeedMean
from kat.collapse.runs import BASELINE
from kat.collapse.settings import CollapseSpec
from kat.collapse.table import BASE, SIGNIFICANCE, ExperimentRuns, RowKey
from kat.diversity.report import p_text

DASH = "\u2013"
FEW = 10  # seeds; the page points out smaller numbers


def question_of(arm: str) -> str:
    """Return the question of the page about an arm."""
    name = "density-aware sampling" if arm == "density" else f"the arm {arm}"
    return f"Does {name} reduce mode collapse?"


def number_text(value: float, sign: bool = False) -> str:
    """Return a number to three decimals, without a negative zero."""
    rounded = round(value, 3) + 0.0
    return f"{rounded:+.3f}" if sign else f"{rounded:.3f}"


def interval_text(value: float, interval: Sequence[float] | None, sign: bool = False) -> str:
    """Return a value with its interval in brackets."""
    if interval is None:
        return number_text(value, sign)
    return f"{number_text(value, sign)} [{', '.join(number_text(end, sign) for end in interval)}]"


def mean_text(found: SeedMean | None) -> str:
    """Return a mean with its interval, and a dash for nothing."""
    return DASH if found is None else interval_text(found["mean"], found["interval"])


def p_text_of(p: float | None) -> str:
    """Return a p-value to three decimals, and a dash for nothing."""
    return DASH if p is None else p_text(p)


def p_words(found: SeedDifference) -> str:
    """Return a corrected p-value in words."""
    p = p_text_of(found["p_holm"])
    return f"p {p} after Holm's correction" if p.startswith("<") else f"p = {p} after Holm's correction"


def difference_words(found: SeedDifference) -> str:
    """Return a difference with its interval, a star if it is shown after Holm's correction, and = if it is equivalent.

    A difference that is both is too small to matter.
    """
    low, high = found["interval"]
    shown = found["p_holm"] is not None and found["p_holm"] < SIGNIFICANCE and not low <= 0 <= high
    equal = found["equivalence"] is not None and found["equivalence"]["p_holm"] < SIGNIFICANCE
    marks = " *" * shown + " =" * equal
    return interval_text(found["difference"], found["interval"], sign=True) + marks


def limits_of(runs: ExperimentRuns, key: RowKey, spec: CollapseSpec) -> list[str]:
    """Return what the experiment does not show, as sentences."""
    baseline = runs.by_arm[BASELINE]
    n = len(baseline.keys() & runs.by_arm[spec.arm].keys())
    run = runs.any_run()
    found = [
        f"The answer holds for one model, one kind of prompts and {run.steps[-1]} steps of training. Larger models, "
        "longer training and other rewards are not measured.",
        "The deciding measure, the arm and the margins are fixed in the config. Every other comparison is one of "
        "several, and corrected for that.",
    ]
    if n < FEW:
        found.append(f"{n} seeds are few: only differences far above the variation between seeds can be shown.")
    if not runs.controls:
        found.append("No margin is known, because collapse.control_seeds names no finished runs. So nothing can be "
                     "shown to be equivalent.")  # fmt: skip
    found += _about_prompts(runs) + _about_estimates(runs, key, spec)
    return found


def _about_prompts(runs: ExperimentRuns) -> list[str]:
    prompts = {tuple(one.id for one in run.facts) for run in runs.by_arm[BASELINE].values()}
    found = []
    if len(prompts) == 1:
        found.append("All seeds answer the same held-out prompts, so the intervals do not cover the variation between "
                     "prompts.")  # fmt: skip
    else:
        found.append("Seeds answer different prompts, so the similarity between seeds is not measured.")
    if not runs.any_run().groups.keys() - {"all"}:
        found.append("The prompts have no known topics, so rare and common topics are not compared.")
    return found


def _about_estimates(runs: ExperimentRuns, key: RowKey, spec: CollapseSpec) -> list[str]:
    """Return sentences about estimated entropies, prompts without a value, and what makes completions the same."""
    run, found = runs.any_run(), []
    all_runs = list(runs.by_arm[BASELINE].values())
    if runs.has((ENTROPY, "all")) and not run.exact and run.valid_draws:
        answers = max(2, round(run.valid_answers))
        before, after = (round(float(np.mean([one.valid_draws[place] for one in all_runs]))) for place in (0, -1))
        biases = [estimate_bias(answers, max(2, draws)) for draws in (before, after)]
        found.append(
            f"The entropy is estimated from completions (Chao, Wang and Jost 2013). For {answers} even answers its "
            f"bias is {biases[0]:+.3f} nats with the {before} valid completions of the {BASE}, and {biases[1]:+.3f} "
            f"with the {after} after uniform sampling."
        )
    unknown = sum(one.unknown(key[0], -1) for by_seed in runs.by_arm.values() for one in by_seed.values())
    if unknown:
        found.append(f"{unknown} prompts of all runs have no value of the deciding measure after training, and are "
                     "left out.")  # fmt: skip
    if run.facts[0].valid is None:
        how = "reference answers" if run.facts[0].references is not None else "the recorded reward"
        found.append(f"Valid answers are unknown. Quality comes from {how}, and completions are the same if their word "
                     f"F1 is {spec.same_from:g} or more: paraphrases with other words count as different.")  # fmt: skip
    elif runs.has((QUALITY, "all")):
        found.append("Quality is the validity of the answers. Rewards that the runs recorded are in other units where "
                     "an arm adds to its reward.")  # fmt: skip
    return found
