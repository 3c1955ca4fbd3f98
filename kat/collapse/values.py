"""The measures of one run: by evaluation, prompt and group of prompts. Main entries: `RunValues`, `measure_run()`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kat.collapse.measures import (
    DISTINCT_VALID,
    ENTROPY,
    QUALITY,
    AnswerRules,
    PromptAnswers,
    PromptFacts,
    covered_topics,
    prompt_groups,
    text_values,
)
from kat.collapse.records import EvaluatedPrompt, LedgerRow, ShownAnswer, TruthRow
from kat.diversity.kernel import Array
from latentwire.harness.errors import UserError


@dataclass(frozen=True)
class RunValues:
    """The measures of a run.

    Attributes:
        arm: Its arm.
        seed: Its seed.
        steps: Numbers of the steps after which it was evaluated, T of them; the first is the base model.
        facts: The M evaluated prompts.
        groups: Indices of the prompts of each group.
        by_prompt: Measures of the prompts, (T, M) for each; NaN for evaluations that a measure leaves out.
        by_group: Measures of whole groups by measure and group, (T,) for each.
        shown: The answers of each prompt before and after training.
        exposure: Share of all draws by topic; empty without topics.
        exact: Whether the entropy is exact and not an estimate.
        valid_answers: Mean number of valid answers of a prompt; 0 if they are unknown.
        valid_draws: Mean number of valid completions of a prompt after each evaluation; empty if they are unknown.
    """

    arm: str
    seed: int
    steps: tuple[int, ...]
    facts: tuple[PromptFacts, ...]
    groups: dict[str, list[int]]
    by_prompt: dict[str, Array]
    by_group: dict[tuple[str, str], Array]
    shown: tuple[list[list[ShownAnswer]], list[list[ShownAnswer]]]
    exposure: dict[int, float]
    exact: bool
    valid_answers: float
    valid_draws: tuple[float, ...]

    def has(self, measure: str, group: str) -> bool:
        """Return whether a measure of a group is known."""
        return group in self.groups and (measure in self.by_prompt or (measure, group) in self.by_group)

    def curve(self, measure: str, group: str) -> Array:
        """Return a measure of a group after each evaluation, (T,)."""
        if measure in self.by_prompt:
            return mean_of_known(self.by_prompt[measure][:, self.groups[group]])
        return self.by_group[measure, group]

    def unknown(self, measure: str, evaluation: int) -> int:
        """Return the number of prompts without a value after an evaluation (-1: the last one)."""
        return int(np.isnan(self.by_prompt[measure][evaluation]).sum()) if measure in self.by_prompt else 0

    def by_topic(self, measure: str, evaluation: int) -> dict[int, float]:
        """Return the mean of a measure of prompts for each topic, after an evaluation (-1: the last one)."""
        values = self.by_prompt[measure][evaluation]
        members: dict[int, list[int]] = {}
        for row, one in enumerate(self.facts):
            if one.topic is not None:
                members.setdefault(one.topic, []).append(row)
        return {topic: float(mean_of_known(values[rows])) for topic, rows in members.items()}


def mean_of_known(values: Array) -> Array:
    """Return the mean over the last axis without NaN, (..., M) -> (...); NaN where nothing is known."""
    known = ~np.isnan(values)
    sums, counts = np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1)
    found: Array = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return found


@dataclass(frozen=True)
class RunRows:
    """The rows of a run's files."""

    completions: Iterable[EvaluatedPrompt]
    ledger: Iterable[LedgerRow]
    truth: Mapping[tuple[int, str], TruthRow] = field(default_factory=dict)  # by step and prompt id


def measure_run(arm: str, seed: int, rows: RunRows, facts: Mapping[str, PromptFacts], rules: AnswerRules) -> RunValues:
    """Return the measures of a run.

    Args:
        arm: Its arm.
        seed: Its seed.
        rows: The rows of its files.
        facts: What is known about each prompt of the prompts file, by id.
        rules: What makes completions good and equal.

    Raises:
        UserError: The evaluations have different prompts or numbers of completions, or a prompt is not in the prompts
            file or in the truth.
    """
    by_step: dict[int, list[PromptAnswers]] = {}
    for row in rows.completions:
        if row["id"] not in facts:
            raise UserError(f"has completions of the prompt {row['id']}, which the prompts file lacks")
        by_step.setdefault(row["step"], []).append(PromptAnswers(row["completions"], facts[row["id"]], rules))
    _require_complete(by_step)
    steps = tuple(by_step)
    evaluated = tuple(prompt.facts for prompt in by_step[steps[0]])
    groups = prompt_groups(evaluated)
    by_prompt, by_group = _over_steps(by_step, groups)
    if rows.truth:
        _take_truth(by_prompt, steps, evaluated, rows.truth)
    for place in (0, -1):
        within, across = text_values([prompt.texts for prompt in by_step[steps[place]]])
        for name, values in within.items():
            by_prompt.setdefault(name, np.full((len(steps), len(evaluated)), np.nan))[place] = values
        for name, value in across.items():
            by_group.setdefault((name, "all"), np.full(len(steps), np.nan))[place] = value
    knows_valid = all(one.valid is not None for one in evaluated)
    return RunValues(
        arm=arm,
        seed=seed,
        steps=steps,
        facts=evaluated,
        groups=groups,
        by_prompt=by_prompt,
        by_group=by_group,
        shown=(_shown(by_step[steps[0]]), _shown(by_step[steps[-1]])),
        exposure=_exposure(rows.ledger, facts),
        exact=bool(rows.truth),
        valid_answers=float(np.mean([len(one.valid or ()) for one in evaluated])),
        valid_draws=tuple(_mean_valid(step) for step in by_step.values()) if knows_valid else (),
    )


def _mean_valid(prompts: Sequence[PromptAnswers]) -> float:
    return float(np.mean([len(prompt.valid) for prompt in prompts]))


def _require_complete(by_step: Mapping[int, Sequence[PromptAnswers]]) -> None:
    """Check that there are two evaluations or more, with the same prompts and numbers of completions."""
    if len(by_step) < 2:
        raise UserError(f"has {len(by_step)} evaluations of held-out prompts, and a comparison needs 2 or more")
    if list(by_step) != sorted(by_step):
        raise UserError("has evaluations that are not in the order of their steps")
    (first, known), *others = by_step.items()
    expected = [(prompt.facts.id, len(prompt.completions)) for prompt in known]
    if min(count for _, count in expected) < 2:
        raise UserError("has prompts with a single completion; evaluate with grpo.eval_generations of 2 or more")
    if len(known) < 2:
        raise UserError(f"has {len(known)} evaluated prompts; evaluate with grpo.eval_prompts of 2 or more")
    for step, prompts in others:
        if [(prompt.facts.id, len(prompt.completions)) for prompt in prompts] != expected:
            raise UserError(f"has other prompts or numbers of completions after step {step} than after step {first}")


def _over_steps(
    by_step: Mapping[int, Sequence[PromptAnswers]], groups: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Array], dict[tuple[str, str], Array]]:
    """Return the measures of prompts, (T, M) each, and of groups, (T,) each."""
    prompts = [[prompt.measured() for prompt in step] for step in by_step.values()]
    common = [name for name in prompts[0][0] if all(name in one for step in prompts for one in step)]
    by_prompt = {name: np.array([[one[name] for one in step] for step in prompts], dtype=np.float64) for name in common}
    by_group: dict[tuple[str, str], Array] = {}
    first = next(iter(by_step.values()))
    if all(prompt.facts.topic is not None and prompt.facts.valid is not None for prompt in first):
        for group, members in groups.items():
            covered = [covered_topics([step[i] for i in members]) for step in by_step.values()]
            by_group |= {(name, group): np.array([one[name] for one in covered]) for name in covered[0]}
    return by_prompt, by_group


def _take_truth(
    by_prompt: dict[str, Array],
    steps: Sequence[int],
    facts: Sequence[PromptFacts],
    truth: Mapping[tuple[int, str], TruthRow],
) -> None:
    """Replace the estimates of validity, entropy and distinct valid answers by their exact values."""
    for place, step in enumerate(steps):
        for row, one in enumerate(facts):
            exact = truth.get((step, one.id))
            if exact is None:
                raise UserError(f"has a held_out_truth.jsonl without the prompt {one.id} after step {step}")
            by_prompt[ENTROPY][place, row] = math.nan if exact["entropy"] is None else exact["entropy"]
            by_prompt[QUALITY][place, row] = exact["validity"]
            by_prompt[DISTINCT_VALID][place, row] = exact["distinct"]


def _shown(prompts: Sequence[PromptAnswers]) -> list[list[ShownAnswer]]:
    """Return the different texts of each prompt with their numbers, the most frequent first."""
    found: list[list[ShownAnswer]] = []
    for prompt in prompts:
        good = dict(zip(prompt.texts, prompt.good, strict=True))
        counts = Counter(prompt.texts).most_common()
        found.append([{"text": text, "count": count, "good": good[text]} for text, count in counts])
    return found


def _exposure(ledger: Iterable[LedgerRow], facts: Mapping[str, PromptFacts]) -> dict[int, float]:
    """Return the share of each topic in all draws of prompts with topics."""
    draws: dict[int, int] = {}
    for row in ledger:
        one = facts.get(row["id"])
        if one is None:
            raise UserError(f"has draws of the prompt {row['id']}, which the prompts file lacks")
        if one.topic is not None:
            draws[one.topic] = draws.get(one.topic, 0) + row["drawn"]
    total = sum(draws.values())
    return {topic: count / total for topic, count in sorted(draws.items())} if total else {}


def equal_completions(one: RunValues, other: RunValues) -> float:
    """Return the probability that a completion of one run equals a completion of another one, mean over the prompts.

    Both runs have the same prompts, in any order.
    """
    second = {facts.id: shown for facts, shown in zip(other.facts, other.shown[1], strict=True)}
    found = []
    for facts, shown in zip(one.facts, one.shown[1], strict=True):
        own, others = _shares(shown), _shares(second[facts.id])
        found.append(sum(share * others.get(text, 0.0) for text, share in own.items()))
    return float(np.mean(found))


def _shares(shown: Sequence[ShownAnswer]) -> dict[str, float]:
    total = sum(answer["count"] for answer in shown)
    return {answer["text"]: answer["count"] / total for answer in shown}
