"""Every file of conf/ composes in a task that uses it, and the typed records of that task accept its values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from kat.collapse.settings import CollapseSpec
from kat.data.pairs import PairsSpec
from kat.density.estimate import DensitySpec
from kat.diversity.plan import DiversitySpec
from kat.grpo.spec import GrpoSpec
from kat.pipeline.embedders import chosen_embedder
from kat.reward.settings import CacheSpec, RewardSpec
from kat.training.state import LoopSpec
from kat.training.tuning import TuningSpec
from latentwire.analysis.controls import AnalysisSettings
from latentwire.data.examples import DataSpec
from latentwire.evaluation.setup import Settings
from latentwire.harness.optimization import OptimizerSpec
from latentwire.harness.paths import CONF
from latentwire.harness.typed_config import typed
from latentwire.latent_training.losses import LossWeights
from latentwire.latent_training.settings import LatentRunSpec, LatentSettings
from latentwire.latent_training.step_plan import TrainingSpec
from latentwire.lm.spec import ModelSpec
from run import TASKS as RUN_TASKS
from train import TASKS as TRAIN_TASKS

NODES = {"data": DataSpec, "grpo": GrpoSpec, "model": ModelSpec, "optimizer": OptimizerSpec,
         "tuning": TuningSpec}  # fmt: skip
ROOTS: dict[str, tuple[Any, ...]] = {
    "evaluate": (Settings, AnalysisSettings),
    "analyze": (AnalysisSettings,),
    "latent_report": (Settings,),
    "latent": (TrainingSpec,),
    "reward": (RewardSpec, CacheSpec),
    "diversity": (DiversitySpec,),
}
RUNS = {"grpo": LoopSpec, "reward": LoopSpec, "latent": LatentRunSpec}
TASK_OF = {"collapse": "mode_collapse", "embedder": "embed", "encoder": "latent", "kat": "cluster", "loss": "latent",
           "pairs": "pairs", "sampler": "subsample"}  # fmt: skip
CHOICES = [
    (path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name not in ("hydra", "task")
]


@pytest.fixture(autouse=True)
def conf() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def entry_of(task: str) -> str:
    return "train" if task in TRAIN_TASKS else "run"


def of_sweep_or_experiment(group: str, choice: str) -> str:
    """Return the task of a preset or an experiment, `evaluate` by default."""
    node: Any = OmegaConf.load(CONF / group / f"{choice}.yaml")
    chosen = [entry["override /task"] for entry in node.get("defaults", []) if "override /task" in entry]
    return str(chosen[0]) if chosen else "evaluate"


def records(cfg: DictConfig) -> list[Any]:
    """Build each typed record of a task's config; `typed` refuses unknown names and wrong types."""
    found = [typed(kind, cfg[name], f"{name}.") for name, kind in NODES.items() if name in cfg]
    if "embedder" in cfg:
        found.append(chosen_embedder(cfg, torch.device("cpu")))
    found += [typed(PairsSpec, node) for node in cfg.get("pairs", {}).values()]
    if "estimator" in cfg.get("sampler", {}):
        found.append(typed(DensitySpec, {field.name: cfg.sampler[field.name] for field in fields(DensitySpec)}))
    if cfg.task == "mode_collapse":
        found.append(typed(CollapseSpec, cfg.collapse, "collapse."))
    if cfg.task == "latent":
        found.append(typed(LossWeights, cfg.weights, "weights."))
    for kind in ROOTS.get(cfg.task, ()):
        values = {field.name: cfg[field.name] for field in fields(kind)}
        if values.get("batch_tokens") == "auto":
            values["batch_tokens"] = 4096  # chosen by the device
        found.append(typed(kind, values))
    if cfg.task in RUNS:
        found.append(RUNS[cfg.task].of(cfg))
    return found


def test_every_config_folder_is_checked():
    folders = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert folders - {"hydra", "task"} == {group for group, _ in CHOICES}
    assert {path.stem for path in (CONF / "task").glob("*.yaml")} == {*RUN_TASKS, *TRAIN_TASKS}


@pytest.mark.slow
@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_a_choice_composes_and_its_records_accept_it(group, choice):
    task = of_sweep_or_experiment(group, choice) if group in ("sweep", "experiment") else TASK_OF.get(group, "evaluate")
    overrides = [f"{group}={choice}"] + ([f"task={task}"] if group in TASK_OF else [])
    overrides += {("data", "file"): ["path=some.json"], ("pairs", "file"): ["path=some.jsonl"]}.get((group, choice), [])
    cfg = compose(entry_of(task), overrides=overrides)
    assert cfg.task == task
    assert OmegaConf.to_container(cfg, resolve=True)
    assert records(cfg)


@pytest.mark.parametrize("task", [*RUN_TASKS, *TRAIN_TASKS])
def test_a_task_composes_and_its_records_accept_it(task):
    cfg = compose(entry_of(task), overrides=[f"task={task}"])
    found = {type(record) for record in records(cfg)}
    assert found >= set(ROOTS.get(task, ()))
    assert task not in RUNS or RUNS[task] in found
    assert OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize("sampler", ["uniform", "density", "reversed", "shuffled"])
@pytest.mark.parametrize("task", ["grpo", "reward"])
def test_training_accepts_each_sampler(task, sampler):
    cfg = compose("train", overrides=[f"task={task}", f"sampler={sampler}"])
    assert cfg.sampler.name == sampler
    assert LoopSpec.of(cfg).steps > 0


def test_an_encoder_trained_with_defaults_keeps_its_identity():
    """Settings that came later are left out at their defaults, so that finished runs are found again."""
    cfg = compose("train", overrides=["task=latent", "model=tiny_random", "device=cpu", "layers=1"])
    identity = LatentSettings.of(cfg).identity()
    assert sorted(identity) == [
        "adapter_hidden", "answer_tokens", "batch_tokens", "data", "distance", "dtype", "encoder", "epochs",
        "evaluate_every", "extra_sha256", "extra_words", "first_phase", "held_out", "judge_by", "max_new_tokens",
        "model", "optimizer", "passages", "passages_per_step", "patience", "questions_per_shot", "samples", "seed",
        "shots", "transform", "weights",
    ]  # fmt: skip
    assert identity["encoder"] == {
        "name": "lm_layers", "dials": {"layers": 1, "ratio": 2, "groups": "words", "pool": "mean"},
        "versions": {"words": 2},
    }  # fmt: skip
    assert sorted(identity["weights"]) == [
        "answer", "continuation", "distillation", "embedding", "manifold", "rms", "text", "vocabulary"
    ]  # fmt: skip
    for later in ("markers=1", "ratios=[2]", "weights.hidden=1", "adapter_scale=free", "copied_rate=0.5"):
        other = compose("train", overrides=["task=latent", "model=tiny_random", "device=cpu", "layers=1", later])
        assert LatentSettings.of(other).identity() != identity
