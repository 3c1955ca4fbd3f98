"""Reads the finished runs of an experiment and measures them. Main entry: `read_experiment()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import OmegaConf

from kat.collapse.measures import MEASURES, AnswerRules, PromptFacts, text_measures
from kat.collapse.records import EvaluatedPrompt, LedgerRow, RunState, TruthRow
from kat.collapse.runs import (
    AGAIN,
    BASELINE,
    FoundRun,
    find_runs,
    missing_runs,
    node,
    require_same_training,
    typed_rows,
)
from kat.collapse.table import ExperimentRuns
from kat.collapse.values import RunRows, RunValues, measure_run
from kat.data.prompt_files import prompts_sha256
from kat.data.prompts import Prompt, read_prompts
from kat.grpo.learning import TRUTH
from kat.grpo.reward_calls import REFERENCE_COLUMNS
from kat.pipeline.artifacts import locate
from latentwire.harness.errors import UserError
from latentwire.harness.progress import Progress
from latentwire.harness.results import DamagedResultError, read_json


@dataclass(frozen=True)
class ReadExperiment:
    """An experiment as its folder has it: measured runs, and the state of all runs."""

    runs: ExperimentRuns
    states: list[RunState]
    warnings: list[str]


def read_experiment(folder: Path, arm: str, rules: AnswerRules, control_seeds: Sequence[int]) -> ReadExperiment:
    """Return the measured runs of an experiment. Unfinished, failed, damaged and missing runs are listed.

    Args:
        folder: Folder with one folder for each run.
        arm: The arm that the verdict is about.
        rules: What makes completions good and equal.
        control_seeds: Seeds of the baseline's runs that give the margins and are not compared.

    Raises:
        UserError: The folder has no runs, runs differ in their training, or fewer than two seeds have finished runs
            of both the arm and the baseline.
    """
    found = find_runs(folder)
    finished = [run for run in found if run.status == "finished"]
    if finished:
        require_same_training(finished)
    prompts: dict[Path, dict[str, PromptFacts]] = {}
    states: list[RunState] = []
    measured: list[RunValues] = []
    with Progress("measure the runs", max(1, len(found))) as progress:
        for run in found:
            state = run
            if run.status == "finished":
                try:
                    measured.append(_measured(run, prompts, rules))
                except (DamagedResultError, UserError) as error:
                    state = replace(run, status="damaged", reason=str(error).removeprefix(f"{run.folder}: "))
            states.append(state.state())
            progress.advance(1, run.arm)
    runs = _sorted_in(measured, control_seeds)
    _require_pairs(folder, runs, arm, states)
    return ReadExperiment(runs, [*states, *missing_runs(found, control_seeds)], _base_differences(runs))


def _measured(run: FoundRun, prompts: dict[Path, dict[str, PromptFacts]], rules: AnswerRules) -> RunValues:
    """Return the measures of a finished run. Its prompts file is read once for all runs.

    Raises:
        UserError: A file is missing, damaged or does not belong to the run.
    """
    cfg = OmegaConf.create({"prompts_file": run.config.get("prompts_file"), "folder": run.config.get("folder")})
    path = locate(cfg, "prompts_file")
    if path not in prompts:
        prompts[path] = {prompt.id: facts_of(prompt) for prompt in read_prompts(path)}
    _require_same_prompts(run, path)
    exact = _truth_of(run.folder / TRUTH)
    completions = typed_rows(EvaluatedPrompt, run.folder / "completions.jsonl")
    ledger = typed_rows(LedgerRow, run.folder / "ledger.jsonl")
    return measure_run(run.arm, run.seed, RunRows(completions, ledger, exact), prompts[path], rules)


def _truth_of(path: Path) -> dict[tuple[int, str], TruthRow]:
    """Return the exact values of each step and prompt; nothing for a run without grpo.eval_truth."""
    return {(row["step"], row["id"]): row for row in typed_rows(TruthRow, path)} if path.is_file() else {}


def _require_same_prompts(run: FoundRun, path: Path) -> None:
    """Check that the prompts file is the one that the run was trained on."""
    result = read_json(run.folder / "result.json")
    recorded = node(result, "identity").get("prompts_sha256") if isinstance(result, dict) else None
    if recorded != prompts_sha256(path):
        raise UserError(f"prompts_file={path}: is not the file that the run was trained on; restore that file")


def facts_of(prompt: Prompt) -> PromptFacts:
    """Return what the columns of a prompts file give about a prompt: topic, topic_size, valid, reference answers.

    Raises:
        UserError: A column has a value of the wrong type.
    """
    topic, size, valid = (prompt.columns.get(name) for name in ("topic", "topic_size", "valid"))
    references = next((prompt.columns[name] for name in REFERENCE_COLUMNS if prompt.columns.get(name)), None)
    if (topic is not None and not isinstance(topic, int)) or (topic is not None and not isinstance(size, int)):
        raise UserError(f"the prompt {prompt.id} has topic={topic!r}, topic_size={size!r}: must be whole numbers")
    return PromptFacts(
        id=prompt.id,
        text=prompt.text,
        topic=topic if isinstance(topic, int) else None,
        topic_size=size if isinstance(size, int) else 0,
        valid=None if valid is None else frozenset(_texts(prompt.id, "valid", valid)),
        references=None if references is None else tuple(_texts(prompt.id, "the references", references)),
    )


def _texts(prompt_id: str, name: str, value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"the prompt {prompt_id} has {name} that are not texts")
    return texts


def _sorted_in(measured: Sequence[RunValues], control_seeds: Sequence[int]) -> ExperimentRuns:
    by_arm: dict[str, dict[int, RunValues]] = {}
    again: dict[int, RunValues] = {}
    controls: list[RunValues] = []
    for run in measured:
        if run.seed in control_seeds:
            if run.arm == BASELINE:
                controls.append(run)
        elif run.arm == AGAIN:
            again[run.seed] = run
        else:
            by_arm.setdefault(run.arm, {})[run.seed] = run
    return ExperimentRuns(by_arm, again, controls, {**MEASURES, **text_measures()})


def _require_pairs(folder: Path, runs: ExperimentRuns, arm: str, states: Sequence[RunState]) -> None:
    """Check that two seeds or more have both the arm and the baseline."""
    seeds = runs.by_arm.get(arm, {}).keys() & runs.by_arm.get(BASELINE, {}).keys()
    if len(seeds) < 2:
        broken = next((f"{state['folder']}: {state['reason']}" for state in states if state["reason"]), None)
        raise UserError(
            f"folder={folder}: {len(seeds)} seeds have finished runs of both {BASELINE} and {arm} (arms found: "
            f"{', '.join(sorted(runs.by_arm)) or 'none'}), and an interval over seeds needs 2 or more; train more seeds"
            + (f", or repair what is not finished, such as {broken}" if broken else "")
        )


def _base_differences(runs: ExperimentRuns) -> list[str]:
    """Return a warning for each run whose base model does not answer as the baseline's base model of the same seed."""
    found = []
    for arm, by_seed in runs.by_arm.items():
        for seed, run in by_seed.items():
            baseline = runs.by_arm[BASELINE].get(seed)
            if baseline is not None and _before(run) != _before(baseline):
                found.append(f"{arm}, seed {seed}: before training the completions differ from {BASELINE}'s, so both "
                             "do not begin with one base model and the same random numbers")  # fmt: skip
    return found


def _before(run: RunValues) -> Mapping[str, list[tuple[str, int]]]:
    """Return the different answers of each prompt before training with their numbers."""
    return {
        facts.id: sorted((answer["text"], answer["count"]) for answer in shown)
        for facts, shown in zip(run.facts, run.shown[0], strict=True)
    }
