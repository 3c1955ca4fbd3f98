"""Made-up runs of GRPO with known collapse: files and measures. Main entries: `write_experiment()`, `experiment_of()`.

A prompt has valid answers. A policy of strength c gives answer a with a probability proportional to exp(c z_a). z_a is
fixed for each prompt and seed: c = 0 is an even base model, and a larger c is more collapsed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kat.collapse.measures import ENTROPY, KL, MEASURES, QUALITY, PromptFacts, prompt_groups
from kat.collapse.records import ShownAnswer
from kat.collapse.runs import AGAIN
from kat.collapse.table import ExperimentRuns
from kat.collapse.values import RunValues
from kat.data.prompt_files import prompts_sha256
from tests.helpers.files import write_rows

STRENGTHS = {"uniform": 3.0, "density": 2.0, "shuffled": 3.0, "entropy": 1.0, "novelty": 0.8}  # after training


@dataclass
class Experiment:
    """What is written: sizes, and the strength of each arm after training."""

    folder: Path
    arms: dict[str, float] = field(default_factory=lambda: dict(STRENGTHS))
    seeds: Sequence[int] = (0, 1, 2)
    control_seeds: Sequence[int] = ()
    steps: Sequence[int] = (0, 10, 20)
    prompts: int = 16  # evaluated ones; as many are trained on
    topics: int = 4
    generations: int = 10
    noise: float = 0.1  # sd of the strength between runs
    validity: tuple[float, float] = (0.5, 0.9)  # of the base model, and after training
    valid_column: bool = True


def prompt_rows(one: Experiment) -> list[dict]:
    """Return the rows of the prompts file: evaluated prompts, then training prompts. Topic 0 is the largest."""
    rows = []
    for number in range(2 * one.prompts):
        topic = min(one.topics - 1, int(one.topics * ((number % one.prompts) / one.prompts) ** 2))
        rows.append({"id": f"p{number:03d}", "prompt": f"name a thing {number}", "topic": topic, "form": 0,
                     "valid": [f"word{topic} end{k}" for k in range(8)]})  # fmt: skip
    sizes = [sum(row["topic"] == topic for row in rows) for topic in range(one.topics)]
    for row in rows:
        row["topic_size"] = sizes[row["topic"]]
        if not one.valid_column:
            del row["valid"], row["topic"], row["topic_size"]
    return rows


def config_of(arm: str, seed: int, prompts_file: Path) -> dict:
    """Return the config of a run, from whose fields alone its arm follows."""
    own = {"entropy": {"entropy_coef": 0.01}, "novelty": {"reward_funcs": ["valid", "kat.grpo.rewards:novelty"]}}
    grpo = {"beta": 0.04, "entropy_coef": 0.0, "reward_funcs": ["valid"], **own.get(arm, {})}
    return {
        "task": "grpo",
        "seed": seed,
        "steps": 20,
        "held_out": 0.5,
        "prompts_file": str(prompts_file),
        "folder": "outputs/kat",
        "sampler": {"name": "uniform" if arm in (*own, AGAIN) else arm},
        "grpo": grpo,
        **({"arm": arm} if arm == AGAIN else {}),
    }


def write_run(one: Experiment, folder: Path, arm: str, seed: int) -> None:
    """Write the folder of a finished run."""
    folder.mkdir(parents=True)
    path = one.folder / "prompts.jsonl"
    rows = prompt_rows(one)
    if not path.exists():
        write_rows(path, rows)
    config = config_of(arm, seed, path)
    (folder / "config.json").write_text(json.dumps(config))
    result = {"format": 2, "identity": {"prompts_sha256": prompts_sha256(path)}, "steps": 20, "config": config}
    (folder / "result.json").write_text(json.dumps(result))
    run = np.random.default_rng([seed, *arm.encode()])
    strength = one.arms[arm] + one.noise * run.standard_normal()
    evaluated = rows[: one.prompts]
    completions = [
        {"step": step, "id": row["id"], "prompt": row["prompt"],
         "completions": _completions(one, row, strength * step / one.steps[-1], step, seed,
                                     np.random.default_rng([seed, step, number, *(arm.encode() if step else b"")]))}
        for step in one.steps for number, row in enumerate(evaluated)
    ]  # fmt: skip
    write_rows(folder / "completions.jsonl", completions)
    weights = [1 / row.get("topic_size", 1) if arm == "density" else 1.0 for row in rows[one.prompts :]]
    ledger = [{"id": row["id"], "intended": 10 * weight, "drawn": int(100 * weight)}
              for row, weight in zip(rows[one.prompts :], weights, strict=True)]  # fmt: skip
    write_rows(folder / "ledger.jsonl", ledger)


def _completions(
    one: Experiment, row: dict, strength: float, step: int, seed: int, generator: np.random.Generator
) -> list[dict]:
    answers = [f"word{row.get('topic', 0)} end{k}" for k in range(8)]
    z = np.random.default_rng([seed, int(row["id"][1:])]).standard_normal(len(answers))
    shares = np.exp(strength * z) / np.exp(strength * z).sum()
    share = step / one.steps[-1]
    validity = one.validity[0] + (one.validity[1] - one.validity[0]) * share
    found = []
    for _ in range(one.generations):
        fine = generator.random() < validity
        text = answers[generator.choice(len(answers), p=shares)] if fine else f"other {generator.integers(5)}"
        found.append({"text": text, "tokens": 3, "ended": True, "reward": float(fine), "kl": strength * share})
    return found


def write_experiment(one: Experiment) -> None:
    """Write all runs of an experiment. The names of the folders tell nothing about the runs."""
    one.folder.mkdir(parents=True, exist_ok=True)
    jobs = [(arm, seed) for seed in one.seeds for arm in one.arms] + [("uniform", seed) for seed in one.control_seeds]
    for number, (arm, seed) in enumerate(jobs):
        write_run(one, one.folder / f"run_{number:03d}", arm, seed)


def values_of(arm: str, seed: int, after: float | Sequence[float], **more: Sequence[float]) -> RunValues:
    """Return a measured run with three prompts, three evaluations, and a base model of entropy 2.

    Args:
        arm: The arm.
        seed: The seed.
        after: Entropy of each prompt after training, or of all of them. It falls linearly.
        more: Other curves by measure, three values each, the same for all prompts; KL and quality have defaults.
    """
    ends = np.broadcast_to(np.asarray(after, dtype=float), (3,))
    shares = np.array([0.0, 0.5, 1.0])[:, None]
    curves = {QUALITY: (0.5, 0.7, 0.9), KL: (0.0, 1.0, 2.0), **more}
    facts = tuple(PromptFacts(f"p{n}", f"prompt {n}", n, 10 - n, frozenset({"a", "b"}), None) for n in range(3))
    answers: list[list[ShownAnswer]] = [[{"text": "a", "count": 2, "good": True}] for _ in facts]
    return RunValues(
        arm=arm,
        seed=seed,
        steps=(0, 5, 10),
        facts=facts,
        groups=prompt_groups(facts),
        by_prompt={
            ENTROPY: 2 + shares * (ends - 2),
            **{name: np.outer(curve, np.ones(3)) for name, curve in curves.items()},
        },
        by_group={},
        shown=(answers, answers),
        exposure={0: 0.5, 1: 0.3, 2: 0.2},
        exact=True,
        valid_answers=2.0,
        valid_draws=(),
    )


def experiment_of(after: dict[str, Sequence[float]], controls: Sequence[float] = ()) -> ExperimentRuns:
    """Return an experiment with the entropy after training by arm and seed, and of the control runs.

    Args:
        after: Entropy after training of each arm, one value for each seed from 0.
        controls: Entropy after training of the runs that give the margins.
    """
    by_arm = {arm: {seed: values_of(arm, seed, value) for seed, value in enumerate(values)}
              for arm, values in after.items()}  # fmt: skip
    runs = [values_of("uniform", 100 + number, value) for number, value in enumerate(controls)]
    return ExperimentRuns(by_arm, {}, runs, dict(MEASURES))
