"""The prompts whose completions the page shows. Main entry: `choose_prompts()`."""

from __future__ import annotations

from collections.abc import Sequence

from kat.collapse.records import ShownAnswer, ShownPrompt
from kat.collapse.runs import BASELINE
from kat.collapse.table import BASE, ExperimentRuns

SHOWN = 20  # prompts
LONGEST = 300  # characters of a completion; longer ones are cut and marked
MOST = 8  # different completions of an arm; the rest is counted


def choose_prompts(runs: ExperimentRuns) -> list[ShownPrompt]:
    """Return prompts with the completions of each arm, from the seed with the most arms.

    The prompts are evenly spaced in the order of their ids, so no result decides which are shown. With topics, half of
    them are from rare topics.
    """
    seed = max(runs.by_arm[BASELINE], key=lambda one: (sum(one in by_seed for by_seed in runs.by_arm.values()), -one))
    baseline = runs.by_arm[BASELINE][seed]
    groups: list[str] = [name for name in ("rare", "common") if name in baseline.groups] or ["all"]
    rows = [(group, row) for group in groups
            for row in evenly(sorted(baseline.groups[group], key=lambda row: baseline.facts[row].id),
                              SHOWN // len(groups))]  # fmt: skip
    after = {arm: by_seed[seed] for arm, by_seed in runs.by_arm.items() if seed in by_seed}
    place = {arm: {facts.id: row for row, facts in enumerate(run.facts)} for arm, run in after.items()}
    found: list[ShownPrompt] = []
    for group, row in rows:
        facts = baseline.facts[row]
        answers = {BASE: baseline.shown[0][row]}
        answers |= {arm: after[arm].shown[1][place[arm][facts.id]] for arm in runs.arms
                    if arm in after and facts.id in place[arm]}  # fmt: skip
        found.append({"id": facts.id, "prompt": short(facts.text), "group": group, "seed": seed,
                      "answers": {arm: shortened(shown) for arm, shown in answers.items()}})  # fmt: skip
    return found


def evenly(rows: Sequence[int], count: int) -> list[int]:
    """Return at most `count` rows, evenly spaced."""
    if len(rows) <= count:
        return list(rows)
    return [rows[number * len(rows) // count] for number in range(count)]


def short(words: str) -> str:
    """Return a text, cut and marked if it is too long."""
    return words if len(words) <= LONGEST else words[:LONGEST] + " \u2026"


def shortened(shown: Sequence[ShownAnswer]) -> list[ShownAnswer]:
    """Return the most frequent answers, and an entry that counts the others."""
    found: list[ShownAnswer] = [{**one, "text": short(one["text"])} for one in shown[:MOST]]
    if rest := shown[MOST:]:
        total = sum(one["count"] for one in rest)
        found.append({"text": f"({len(rest)} other texts)", "count": total, "good": True})
    return found
