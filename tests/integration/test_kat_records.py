"""Every record of kat: what the tasks write has exactly the keys and types that its TypedDict states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kat import records
from kat.density import records as density_records
from kat.diversity import records as diversity_records
from kat.diversity import samples
from kat.embedding import shard_writer
from tests.helpers.checkpoints import make_checkpoints
from tests.helpers.files import read_json, read_rows, write_rows
from tests.helpers.records import mismatches

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

KAT, REPORT = Path("outputs/kat"), Path("outputs/diversity/one_vs_two")
TINY, DATA = "model=tiny_random", "path=pairs.jsonl"
TRAINING = [TINY, DATA, "pairs=file", "held_out=0.4", "steps=1", "tuning.blocks=1"]
COMMANDS = [
    ("train", [*TRAINING, "task=reward", "prompts_per_step=2"]),  # makes pairs, prompts, embeddings and weights
    ("run", [TINY, "task=embed", "embedder=file", "path=outputs/kat/embeddings.pt", "out=taken.pt"]),
    ("run", ["task=density", "clusters_file=known.json", "sampler.k=3", "near_duplicate=0.3"]),
    ("run", [TINY, "task=embed", "embeddings_file=embeddings", "shard_rows=25"]),
    ("run", ["task=density", "embeddings_file=embeddings", "weights_file=weights", "sampler.k=3"]),
    ("run", ["task=subsample", "budget=9", "out=drawn.txt", "prompts_out=drawn.jsonl", "held_out=0.4"]),
    ("run", ["task=cluster", "clusters=4"]),
    ("run", ["task=project"]),
    ("run", [TINY, DATA, "task=score", "reward=outputs/reward/uniform_seed0"]),
    ("train", [*TRAINING, "task=grpo", "sampler=uniform", "grpo.prompts_per_step=2", "grpo.num_generations=2",
               "grpo.eval_prompts=4", "grpo.eval_generations=2", "grpo.max_completion_length=4",
               "grpo.reward_funcs=[tests.helpers.rewards:vowels]"]),
    ("run", [TINY, "task=diversity", "a=runs/one", "b=runs/two", "held_out=0.5", "prompts=20", "num_generations=2",
             "max_completion_length=3", "rare_share=0.5", "common_share=0.5"]),
    ("run", ["task=verdict", f"reports=[{REPORT},other]"]),
]  # fmt: skip


def written() -> list[tuple[type, list[Any]]]:
    """Return each kind of record with what the tasks wrote of it."""
    reward, grpo = Path("outputs/reward/uniform_seed0"), Path("outputs/grpo/uniform_seed0")
    answered = [
        {key: value for key, value in row.items() if key != "step"} for row in read_rows(grpo / "completions.jsonl")
    ]
    return [
        (records.PairsRecord, [read_json(KAT / "pairs.json")]),
        (records.PromptsRecord, [read_json(KAT / "prompts.json")]),
        (records.EmbeddingsRecord, [read_json(KAT / "embeddings.json"), read_json(KAT / "taken.json")]),
        (density_records.DensityRecord, [read_json(KAT / "density.json")]),
        (density_records.ShardedDensityRecord, [read_json(KAT / "weights" / "density.json")]),
        (shard_writer.ShardedEmbeddingsRecord, [read_json(KAT / "embeddings" / "embeddings.json")]),
        (records.DrawnRecord, [read_json(KAT / "drawn.json")]),
        (density_records.WeightRow, read_rows(KAT / "weights.jsonl")),
        (density_records.ClustersResult, [read_json(KAT / "clusters.json")]),
        (density_records.MapResult, [read_json(KAT / "embeddings_3d.json")]),
        (records.RewardResult, [read_json(reward / "result.json")]),
        (records.ScoreResult, [read_json(reward / "scores/pairs.json")]),
        (records.PairRewards, read_rows(reward / "scores/pairs.pairs.jsonl")),
        (records.GrpoResult, [read_json(grpo / "result.json")]),
        (records.HeldOutEvaluation, read_rows(grpo / "held_out.jsonl")),
        (records.AnsweredPrompt, answered),
        (samples.SampledRow, read_rows(REPORT / "samples.jsonl")),
        (diversity_records.DiversityResult, [read_json(REPORT / "diversity.json")]),
        (diversity_records.VerdictResult, [read_json("outputs/verdict/one_vs_two/verdict.json")]),
    ]


def write_inputs() -> None:
    """Write pairs, the runs one and two, and a second report, which differs in its weights."""
    rows = [{"prompt": f"how is the weather in town {n} on day {n * n % 31}", "chosen": f"warm and good {n % 7}",
             "rejected": f"cold, bad and very long {n % 5}"} for n in range(60)]  # fmt: skip
    write_rows("pairs.jsonl", rows)
    make_checkpoints(Path("runs"))


def before(command: list[str]) -> None:
    """Write what a command needs and no task makes."""
    if "task=density" in command:
        ids = [row["id"] for row in read_rows(KAT / "weights.jsonl")]
        labels = {name: number % 3 - 1 for number, name in enumerate(ids)}
        (KAT / "known.json").write_text(json.dumps({"labels": labels}))
    if "task=verdict" in command:
        report = read_json(REPORT / "diversity.json")
        for checkpoint in report["checkpoints"]:
            checkpoint["weights"] = f"other {checkpoint['weights']}"
        Path("other").mkdir()
        Path("other/diversity.json").write_text(json.dumps(report))


def test_the_files_of_all_tasks_are_as_their_records_state(entry):
    write_inputs()
    for program, command in COMMANDS:
        before(command)
        status, _, said = entry(program, *command)
        assert status == 0, (command, said)
    met: set[type] = set()
    for kind, contents in written():
        assert contents, kind
        assert [problem for content in contents for problem in mismatches(kind, content, met)] == [], kind
    defined = {
        one for module in (records, density_records, diversity_records) for one in vars(module).values()
        if hasattr(one, "__required_keys__") and one.__module__ == module.__name__
    }  # fmt: skip
    parts = {"TakenFrom", "PolicyEvaluation", "GrpoOutcome", "RewardOutcome", "WeightDiagnostics", "DensityReport",
             "DensityOrigin", "GatedWeights", "DifferenceRow", "ArmPair", "DensityThresholds",
             "RetrievedPrompt"}  # fmt: skip
    assert {kind.__name__ for kind in defined - met} == parts  # fields of other records, and what is only printed
