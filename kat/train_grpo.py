"""The task grpo: prompts drawn by a sampler, G completions of each, rewards, and steps on the clipped objective."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import latentwire
from kat.files import locate, record_of
from kat.grpo_data import GrpoData, draw_weights, encode_prompts, evaluation_prompts
from kat.grpo_eval import Answered, answer, judge, mean_rewards
from kat.grpo_step import COUNTED, GrpoSpec, Stepper
from kat.plots import plot_training
from kat.policy import Policy
from kat.prepared import config_of, ensure
from kat.prompts import read_prompts
from kat.reward_model import load_reward_model
from kat.rewards import MODEL, Rewards, load_function
from kat.rollout import end_tokens
from kat.sampler import DensityAwareSampler
from kat.tables import read_weights
from kat.train_reward import reward as train_reward
from kat.tuning import TuningSpec, make_trainable, whole_model
from latentwire.harness import app
from latentwire.harness.assets import file_sha256
from latentwire.harness.checkpoint import Checkpoints, OtherConfigurationError, finished_run, start_anew
from latentwire.harness.device import choose_batch_tokens, describe_machine, from_first, place
from latentwire.harness.errors import UserError
from latentwire.harness.progress import Progress, say
from latentwire.harness.results import git_commit, json_line, read_jsonl, write_json, write_jsonl, writing
from latentwire.harness.tracking import TrainingRun, start_run
from latentwire.harness.training import (
    Journal,
    OptimizerSpec,
    make_accelerator,
    make_optimizer,
    make_scheduler,
    truncate_jsonl,
)
from latentwire.models import ModelSpec, load_model, save_model

SHOWN = 16  # held-out prompts whose completions are shown in the tracker's table


def grpo(cfg: DictConfig) -> dict[str, Any]:
    """Train a policy by GRPO, or go on where a killed run stopped; builds first what is missing.

    Returns:
        What result.json holds.

    Raises:
        UserError: Settings out of their range, data or models that cannot be had or do not fit each other, a run of
            another configuration in the folder, a number that is not finite, a full disk.
    """
    spec = app.typed(GrpoSpec, cfg.grpo, "grpo.")
    tuning = app.typed(TuningSpec, cfg.tuning, "tuning.")
    optimizer = app.typed(OptimizerSpec, cfg.optimizer, "optimizer.")
    for name in ("steps", "checkpoint_every"):
        if not isinstance(cfg[name], int) or isinstance(cfg[name], bool) or cfg[name] < 1:
            raise UserError(f"{name}={cfg[name]}: expected a whole number above 0")
    accelerator = make_accelerator(cfg.device, cfg.dtype)
    state = place(cfg.device)
    batch_tokens = choose_batch_tokens(cfg.batch_tokens, state.device)
    spec.objective().check()
    spec.sampling(spec.num_generations, batch_tokens).check()
    if spec.prompts_per_step % state.num_processes:
        raise UserError(
            f"grpo.prompts_per_step={spec.prompts_per_step}: {state.num_processes} processes cannot share them evenly; "
            f"use a multiple of {state.num_processes}"
        )
    for name in spec.reward_funcs:
        if name != MODEL:
            load_function(name)
    policy = policy_spec(cfg)
    uniform = cfg.sampler.name == "uniform"
    ensure(cfg, ["pairs", "prompts"] if uniform else ["pairs", "prompts", "embed", "density"])
    judge_folder = reward_folder(cfg) if MODEL in spec.reward_funcs else None
    identity = {
        "task": "grpo",
        "policy": policy.identity(),
        "reward": None if judge_folder is None else weights_of(judge_folder),
        "prompts_sha256": file_sha256(locate(cfg, "prompts_file")),
        "weights_sha256": None if uniform else file_sha256(locate(cfg, "weights_file")),
        "sampler": cfg.sampler.name,
        "seed": cfg.seed,
        "steps": cfg.steps,
        "held_out": cfg.held_out,
        "precision": accelerator.mixed_precision,
        "batch_tokens": batch_tokens,
        "grpo": vars(spec),
        "tuning": vars(tuning),
        "optimizer": vars(optimizer),
    }
    folder = Path(cfg.out).expanduser()
    if cfg.force and state.is_main_process:
        start_anew(folder)
    state.wait_for_everyone()
    finished = from_first(state, finished_run(folder, identity) if state.is_main_process else None)
    if finished is not None:
        say(f"policy: {folder / 'model'}  (finished before; force=true trains it anew)")
        return dict(finished)
    return _Training(cfg, spec, tuning, optimizer, accelerator, batch_tokens, policy, judge_folder, identity).run()


def policy_spec(cfg: DictConfig) -> ModelSpec:
    """Return which model training starts from: the folder `policy`, or else `model`.

    Raises:
        UserError: A folder without a model.
    """
    if cfg.policy is None:
        return app.typed(ModelSpec, cfg.model, "model.")
    given = Path(cfg.policy).expanduser()
    folder = given / "model" if (given / "model").is_dir() else given
    if not (folder / "config.json").is_file():
        state = "holds no model" if given.is_dir() else "no such folder"
        raise UserError(f"policy={cfg.policy}: {state}; give the folder of a finished run, or one of save_pretrained")
    return ModelSpec(name=f"policy={cfg.policy}", origin="path", path=str(folder))


def reward_folder(cfg: DictConfig) -> Path:
    """Return the folder of the reward model: the one given, or that of task=reward, which is run if need be.

    Raises:
        UserError: No such folder; or what task=reward raises.
    """
    if cfg.reward is None:
        changes = {"sampler": {"name": cfg.reward_sampler}, "tracker": cfg.tracker, "held_out": cfg.held_out}
        wanted = config_of(cfg, "train", "reward", **changes)
        if not (Path(wanted.out) / "result.json").is_file():
            say(f"{wanted.out}: no reward model there yet, so task=reward comes first")
        try:
            train_reward(wanted)
        except OtherConfigurationError as error:
            raise UserError(
                f"{error}\nThis is the reward model that the policy would be trained with: train it anew with train.py "
                "task=reward force=true and the same settings, or name another with reward=FOLDER"
            ) from error
        return Path(wanted.out) / "model"
    given = Path(cfg.reward).expanduser()
    if not given.is_dir():
        raise UserError(f"reward={cfg.reward}: no such folder; give the folder of a finished run of task=reward")
    return given / "model" if (given / "model").is_dir() else given


def weights_of(folder: Path) -> dict[str, str]:
    """Return the digests of a model's weights by file."""
    return {path.name: file_sha256(path) for path in sorted(folder.glob("*.safetensors"))}


class _Training:
    """One run of task=grpo: what it has loaded, and its steps."""

    def __init__(
        self,
        cfg: DictConfig,
        spec: GrpoSpec,
        tuning: TuningSpec,
        optimizer: OptimizerSpec,
        accelerator: Accelerator,
        batch_tokens: int,
        policy: ModelSpec,
        judge_folder: Path | None,
        identity: dict[str, Any],
    ) -> None:
        self.cfg, self.spec, self.accelerator, self.identity = cfg, spec, accelerator, identity
        self.folder, self.batch_tokens = Path(cfg.out).expanduser(), batch_tokens
        self.state = place(cfg.device)
        with self.state.local_main_process_first():
            lm = load_model(policy, self.state.device, torch.float32)
        self.tokenizer, self.ends = lm.tokenizer, end_tokens(lm.model, lm.tokenizer)
        self.data = self._data(lm.context_length)
        self.held_out = evaluation_prompts(self.data, spec.eval_prompts)
        self.rewards = self._rewards(judge_folder)
        self.weights, self.never_drawn = self._weights()
        self.sampler = DensityAwareSampler(self.weights, seed=cfg.seed)
        self.draws = self._draws()
        model, parameters = make_trainable(lm.model, tuning, cfg.seed)
        self.policy = Policy(model.eval(), parameters, spec.temperature, reference=spec.beta > 0)
        self.optimizer = make_optimizer(parameters, optimizer)
        self.scheduler = make_scheduler(self.optimizer, optimizer, cfg.steps * spec.num_iterations)
        self.stepper = Stepper(
            policy=self.policy,
            tokenizer=self.tokenizer,
            ends=self.ends,
            rewards=self.rewards,
            spec=spec,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            max_norm=optimizer.max_grad_norm,
            accelerator=accelerator,
            state=self.state,
            batch_tokens=batch_tokens,
            seed=cfg.seed,
        )
        self.before: list[float] = []  # mean reward of each held-out prompt before training
        self.totals = dict.fromkeys(COUNTED, 0)
        self.last: dict[str, Any] = {}  # metrics of the last step
        self.looks: list[dict[str, Any]] = []  # at the held-out prompts

    def _data(self, context: int) -> GrpoData:
        source = locate(self.cfg, "prompts_file")
        data = encode_prompts(
            read_prompts(source), self.tokenizer, context, self.spec.max_completion_length, self.cfg.held_out
        )
        say(f"{source}: {len(data.train)} prompts to train on, {len(data.held_out)} held out")
        if data.too_long:
            say(
                f"warning: {len(data.too_long)} prompts leave no room for {self.spec.max_completion_length} new tokens "
                f"in the context of {context}; they are left out, not cut, and listed as too_long in result.json"
            )
        return data

    def _weights(self) -> tuple[Tensor, int]:
        arm = self.cfg.sampler.name
        measured: dict[str, float] = {}
        unread: list[str] = []
        if arm != "uniform":
            ids, _, weights = read_weights(locate(self.cfg, "weights_file"))
            measured = dict(zip(ids, weights.tolist(), strict=True))
            unread = record_of(locate(self.cfg, "embeddings_file")).get("too_long") or []
        weights, without = draw_weights(self.data, arm, measured, unread, self.spec.prompts_per_step, self.cfg.seed)
        if without:
            say(f"warning: {without} training prompts were too long for the embedder; they are never drawn")
        return weights, without

    def _rewards(self, folder: Path | None) -> Rewards:
        model = None
        if folder is not None:
            model, tokenizer = load_reward_model(folder, self.state.device, torch.float32)
            if tokenizer.get_vocab() != self.tokenizer.get_vocab():
                raise UserError(
                    f"the reward model in {folder} has another tokenizer than the policy ({len(tokenizer.get_vocab())} "
                    f"and {len(self.tokenizer.get_vocab())} tokens): it would read other words than were written; give "
                    "a reward model of the same family"
                )
        end = self.tokenizer.eos_token_id
        return Rewards(self.spec.reward_funcs, self.spec.reward_weights, model, end, self.batch_tokens)

    def _draws(self) -> Iterator[int]:
        while True:
            yield from self.sampler

    def run(self) -> dict[str, Any]:
        """Do the steps that are left, evaluate, save the policy."""
        config: Any = OmegaConf.to_container(self.cfg, resolve=True)
        started = time.perf_counter()
        checkpoints = Checkpoints(self.folder / "checkpoints", self.identity, self.cfg.keep)
        checkpoints.latest()  # those of another configuration are refused before anything is written
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            write_json(self.folder / "config.json", config)
        tracker = start_run(config["tracker"], self.folder, "grpo", str(self.cfg.name), config)
        tracker.histogram(0, "sampling_weights", (self.weights * len(self.weights)).tolist())
        journal = Journal(self.folder, tracker)
        done = self._resume(checkpoints, journal)
        if done == 0:
            self._look(0, tracker)
        with Progress(f"grpo {self.cfg.name}", self.cfg.steps - done) as progress:
            for step in range(done + 1, self.cfg.steps + 1):
                drawn = [self.data.train[next(self.draws)] for _ in range(self.spec.prompts_per_step)]
                found = self.stepper.step(step, drawn, f"step {step} of {self.cfg.name}")
                self.last = found.metrics
                for name in COUNTED:
                    self.totals[name] += found.counts[name]
                if self.state.is_main_process:
                    journal.log(step, found.metrics, found.timings)
                tracker.histogram(step, "rewards", found.rewards)
                if step % self.spec.eval_every == 0 or step == self.cfg.steps:
                    self._look(step, tracker)
                if step % self.cfg.checkpoint_every == 0 or step == self.cfg.steps:
                    self._save(step, checkpoints)
                progress.advance(1, _line(found.metrics, found.timings))
        result = self._result(config, time.perf_counter() - started)
        if self.state.is_main_process:
            save_model(whole_model(self.policy.model), self.tokenizer, self.folder / "model")
            steps = read_jsonl(self.folder / "metrics.jsonl")
            plot_training(steps, self.looks, f"GRPO, {self.cfg.name}", self.folder / "curves.png")
            write_json(self.folder / "result.json", result)
            _tell(result)
            say(f"policy: {self.folder / 'model'}; {self.folder / 'result.json'}")
        tracker.close({f"held_out/{key}": value for key, value in (result["held_out"] or {}).items()})
        self.state.wait_for_everyone()
        return dict(from_first(self.state, result))

    def _resume(self, checkpoints: Checkpoints, journal: Journal) -> int:
        """Load the newest checkpoint, if there is one; return how many steps are done."""
        found = checkpoints.latest()
        self.state.wait_for_everyone()
        step, saved = found or (0, {})
        if saved:
            with torch.no_grad():
                for name, parameter in self.policy.parameters.items():
                    parameter.copy_(saved["parameters"][name])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scheduler.load_state_dict(saved["scheduler"])
            self.sampler.load_state_dict(saved["sampler"])
            self.before, self.totals = saved["before"], saved["totals"]
            self.last, self.looks = saved["last"], saved["looks"]
            say(f"going on after step {step} of {self.cfg.steps}")
        if self.state.is_main_process:
            journal.rewind(step)
            for name in ("held_out.jsonl", "completions.jsonl"):
                truncate_jsonl(self.folder / name, step if saved else -1)
        return step

    def _save(self, step: int, checkpoints: Checkpoints) -> None:
        if self.state.is_main_process:
            meant, drawn = (numbers.tolist() for numbers in self.sampler.ledger())
            prompts = zip(self.data.train, meant, drawn, strict=True)
            ledger = ({"id": prompt.id, "intended": m, "drawn": d} for prompt, m, d in prompts)
            write_jsonl(self.folder / "ledger.jsonl", ledger)
            snapshot = {
                "parameters": {name: p.detach().cpu() for name, p in self.policy.parameters.items()},
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "sampler": self.sampler.state_dict(),
                "before": self.before,
                "totals": self.totals,
                "last": self.last,
                "looks": self.looks,
            }
            checkpoints.save(step, snapshot)
        self.state.wait_for_everyone()

    def _look(self, step: int, tracker: TrainingRun) -> None:
        """Evaluate the policy on the held-out prompts and write down what it answered."""
        if not self.held_out:
            return
        with self.accelerator.autocast():
            answered = answer(
                self.policy.model,
                self.tokenizer,
                self.held_out,
                self.rewards,
                self.spec.sampling(self.spec.eval_generations, self.batch_tokens),
                seed=self.cfg.seed,
                ends=self.ends,
                state=self.state,
                doing=f"the held-out prompts after step {step} of {self.cfg.name}",
            )
        if step == 0:
            self.before = mean_rewards(answered)
        found = judge(answered, self.before, self.cfg.seed)
        self.looks.append({"step": step, **found})
        if self.state.is_main_process:
            self._append("held_out.jsonl", [{"step": step, **found}])
            self._append("completions.jsonl", [{"step": step, **row} for row in answered])
        tracker.log(step, {f"held_out/{k}": v for k, v in found.items() if isinstance(v, float)})
        tracker.table(step, "completions", ["step", "prompt", "completion", "reward"], _shown(step, answered))
        low, high = found["reward_interval"]
        say(f"held-out prompts after step {step}: reward {found['reward']:.3f} [{low:.3f}, {high:.3f}], "
            f"length {found['length']:.1f} ({found['prompts']} prompts)")  # fmt: skip

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        path = self.folder / name
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.writelines(json_line(row) for row in rows)

    def _result(self, config: dict[str, Any], seconds: float) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "name": str(self.cfg.name),
            "steps": self.cfg.steps,
            "held_out": self.looks[-1] if self.looks else None,
            "held_out_before": self.looks[0] if self.looks else None,
            "held_out_curve": self.looks,
            "last_step": self.last,
            "counts": {
                **self.totals,
                "train_prompts": len(self.data.train),
                "never_drawn": self.never_drawn,
                "held_out_prompts": len(self.data.held_out),
                "too_long": len(self.data.too_long),
            },
            "too_long": self.data.too_long,
            "trained_weights": sum(p.numel() for p in self.policy.parameters.values()),
            "frozen_blocks_shared": len(self.policy.frozen),
            "time_sec": round(seconds, 3),
            "device": describe_machine(self.state.device),
            "processes": self.state.num_processes,
            "versions": {"latentwire": latentwire.__version__, "torch": torch.__version__,
                         "transformers": transformers.__version__},
            "git_commit": git_commit(app.ROOT),
            "config": config,
        }  # fmt: skip


def _line(metrics: dict[str, Any], timings: dict[str, float]) -> str:
    kl = f"  KL {metrics['kl']:.4f}" if "kl" in metrics else ""
    return (
        f"reward {metrics['reward']:.3f}{kl}  length {metrics['length']:.1f}  entropy {metrics['entropy']:.2f}  "
        f"{timings['tokens_per_second']:.0f} tokens/s"
    )


def _shown(step: int, answered: Answered) -> list[list[Any]]:
    first = [(row["prompt"], row["completions"][0]) for row in answered[:SHOWN]]
    return [[step, prompt, completion["text"], completion["reward"]] for prompt, completion in first]


def _tell(result: dict[str, Any]) -> None:
    counts, now, before = result["counts"], result["held_out"], result["held_out_before"]
    if now is not None:
        low, high = now["gain_interval"]
        print(f"held-out reward {before['reward']:.3f} -> {now['reward']:.3f}  gain {now['gain']:+.3f} "
              f"[{low:.3f}, {high:.3f}]  ({now['prompts']} prompts, 95% interval)")  # fmt: skip
    print(f"{counts['degenerate_groups']} of {counts['groups']} groups had equal rewards; {counts['truncated']} of "
          f"{counts['completions']} completions were cut off, {counts['empty']} empty")  # fmt: skip
