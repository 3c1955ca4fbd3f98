"""The tasks world and truth: make a planted world, and measure a policy in it. Main entries: `world()`, `truth()`."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig

from kat.data.prompt_files import prompts_sha256
from kat.world.exact import exact_truth
from kat.world.learning import BATCH_TOKENS, WorldLearning, describe_means
from kat.world.records import TruthReport
from kat.world.settings import WorldSettings
from kat.world.truth import read_questions, truth_of
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.origin import made_on
from latentwire.harness.progress import log
from latentwire.harness.results import FORMAT, JsonObject, write_json, write_jsonl
from latentwire.harness.session import Session, job
from latentwire.harness.training import TrainingJob, accelerator_of, train
from latentwire.lm.model_folder import weight_files
from latentwire.lm.models import load_model
from latentwire.lm.spec import ModelSpec


@job
def world(cfg: DictConfig, session: Session | None = None) -> JsonObject:
    """Make a planted world and train its base model, or continue a run that was interrupted.

    Returns:
        The content of result.json, a `kat.world.records.WorldResult`.

    Raises:
        UserError: A setting is out of range, or training fails (see `latentwire.harness.training.train`).
    """
    accelerator = accelerator_of(cfg)
    settings = WorldSettings.of(cfg)
    return train(
        TrainingJob(
            cfg=cfg,
            spec=settings.run,
            identity={"task": "world", "precision": accelerator.mixed_precision, **settings.identity()},
            sizes={"base.lines_per_step": settings.base.lines_per_step},
            product=("base model", "model"),
            build=lambda run: WorldLearning(run, settings, accelerator),
        )
    )


@job
def truth(cfg: DictConfig, session: Session | None = None) -> JsonObject:
    """Measure a policy in its world, from its probability of every valid answer; write truth.json and truth.jsonl.

    Returns:
        The content of truth.json, a `kat.world.records.TruthReport`.

    Raises:
        UserError: The policy does not load, or the prompts file is not the file of a world.
    """
    if not cfg.prompts_file:
        raise UserError("prompts_file: no file given; write prompts_file=outputs/world/NAME/prompts.jsonl")
    state, source = accelerator_state(cfg.device), Path(str(cfg.prompts_file)).expanduser()
    out, folder = Path(str(cfg.out)).expanduser(), _policy_folder(cfg.policy)
    questions = read_questions(source)
    lm = load_model(
        ModelSpec(name=f"policy={cfg.policy}", origin="path", path=str(folder)), state.device, torch.float32
    )
    rows = exact_truth(lm.model, lm.tokenizer, questions, BATCH_TOKENS)
    found: TruthReport = {
        "format": FORMAT,
        "policy": str(cfg.policy),
        "policy_files": {path.name: file_sha256(path) for path in weight_files(folder, f"policy={cfg.policy}")},
        "prompts_file": str(cfg.prompts_file),
        "prompts_sha256": prompts_sha256(source),
        "truth": truth_of(rows),
        **made_on(state),
    }
    if state.is_main_process:
        write_jsonl(out / "truth.jsonl", rows)
        write_json(out / "truth.json", found)
        for name in ("all", "rare", "common"):
            if (means := found["truth"][name]) is not None:
                print(f"{name} topics: {describe_means(means)}")
        log(f"measures: {out / 'truth.json'}; of each prompt: {out / 'truth.jsonl'}")
    return dict(found)


def _policy_folder(value: object) -> Path:
    """Return the folder of a model; the folder of a run has it in model/.

    Raises:
        UserError: No folder is given, or it has no model.
    """
    folder = Path(str(value or "")).expanduser()
    found = next((each for each in (folder / "model", folder) if (each / "config.json").is_file()), None)
    if value is None or found is None or not list(found.glob("*.safetensors")):
        raise UserError(f"policy={value}: not the folder of a model; give outputs/world/NAME or outputs/grpo/NAME")
    return found
