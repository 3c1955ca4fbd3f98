"""The task grpo: train a policy by GRPO on prompts drawn by a sampler. Main entry: `grpo()`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor

from kat.data.prompts import read_prompts
from kat.grpo.data import GrpoData, draw_weights, encode_prompts, evaluation_prompts
from kat.grpo.given import content_of, load_judge, policy_spec, reward_folder, sources_of
from kat.grpo.plots import plot_training
from kat.grpo.policy import Policy
from kat.grpo.rewards import MODEL, Rewards
from kat.grpo.rollout import end_tokens
from kat.grpo.step import COUNTED, GrpoSpec, GRPOStep
from kat.grpo.validation import Answered, answer, evaluate_policy, mean_rewards
from kat.pipeline.artifacts import locate
from kat.pipeline.ensure import ensure
from kat.reward.scoring import max_sequence_length
from kat.sampling.sampler import DensityAwareSampler
from kat.training.lineage import require_unseen, require_unseen_start
from kat.training.state import LoopSpec, learner_of, measured_weights, save_ledger, warn_never_drawn
from kat.training.tuning import TuningSpec, make_trainable, whole_model
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.memory import choose_batch_tokens, within_memory
from latentwire.harness.progress import Progress, log
from latentwire.harness.results import read_jsonl, write_json
from latentwire.harness.run import Run
from latentwire.harness.session import Session
from latentwire.harness.optimization import OptimizerSpec, make_accelerator, make_optimizer, make_scheduler
from latentwire.harness.typed_config import typed
from latentwire.lm.model_folder import save_model
from latentwire.lm.models import load_model
from latentwire.lm.spec import ModelSpec

SHOWN = 16  # number of held-out prompts in the tracker's table of completions


def grpo(cfg: DictConfig, session: Session | None = None) -> dict[str, Any]:
    """Train a policy by GRPO, or continue a run that was interrupted; missing inputs are made first.

    Returns:
        The content of result.json.

    Raises:
        UserError: A setting is out of range, or data and models cannot be loaded or do not fit each other. The folder
            holds a run of another configuration, a number is not finite, or the disk is full.
    """
    loop = LoopSpec.of(cfg)
    spec = typed(GrpoSpec, cfg.grpo, "grpo.")
    tuning = typed(TuningSpec, cfg.tuning, "tuning.")
    optimizer = typed(OptimizerSpec, cfg.optimizer, "optimizer.")
    accelerator = make_accelerator(cfg.device, cfg.dtype)
    state = accelerator_state(cfg.device)
    batch_tokens = choose_batch_tokens(cfg.batch_tokens, state.device)
    if spec.prompts_per_step % state.num_processes:
        raise UserError(
            f"grpo.prompts_per_step={spec.prompts_per_step}: {state.num_processes} processes cannot share them evenly; "
            f"use a multiple of {state.num_processes}"
        )
    functions = sources_of(spec.reward_funcs)
    policy = policy_spec(cfg)
    uniform = cfg.sampler.name == "uniform"
    ensure(cfg, ["pairs", "prompts"] if uniform else ["pairs", "prompts", "embed", "density"])
    judge_folder = reward_folder(cfg) if MODEL in spec.reward_funcs else None
    identity = {
        "task": "grpo",
        "policy": policy.identity() if cfg.policy is None else content_of(Path(policy.path)),
        "reward": None if judge_folder is None else content_of(judge_folder),
        "reward_functions": functions,
        "prompts_sha256": file_sha256(locate(cfg, "prompts_file")),
        "weights_sha256": None if uniform else file_sha256(locate(cfg, "weights_file")),
        "sampler": cfg.sampler.name,
        **loop.identity(),
        "precision": accelerator.mixed_precision,
        "batch_tokens": batch_tokens,
        "grpo": dict(vars(spec)),
        "tuning": dict(vars(tuning)),
        "optimizer": dict(vars(optimizer)),
    }
    run = Run(cfg, loop, identity, state)
    if (finished := run.finished()) is not None:
        log(f"policy: {run.folder / 'model'}  (finished before; force=true trains it anew)")
        return finished
    with within_memory(state.device, {"batch_tokens": batch_tokens, "grpo.prompts_per_step": spec.prompts_per_step}):
        return _Training(run, loop, spec, tuning, optimizer, accelerator, batch_tokens, policy, judge_folder).train()


class _Training:
    """One run of task=grpo: its data and models, and its steps."""

    def __init__(
        self,
        run: Run,
        loop: LoopSpec,
        spec: GrpoSpec,
        tuning: TuningSpec,
        optimizer: OptimizerSpec,
        accelerator: Accelerator,
        batch_tokens: int,
        policy: ModelSpec,
        judge_folder: Path | None,
    ) -> None:
        self.run, self.spec, self.accelerator, self.batch_tokens = run, spec, accelerator, batch_tokens
        self.cfg, self.loop, self.state = run.cfg, loop, run.state
        with self.state.local_main_process_first():
            lm = load_model(policy, self.state.device, torch.float32)
        self.tokenizer, self.ends = lm.tokenizer, end_tokens(lm.model, lm.tokenizer)
        self.rewards = self._rewards(judge_folder)
        self.data = self._data(lm.context_length)
        self.held_out = evaluation_prompts(self.data, spec.eval_prompts)
        held_out_ids = {prompt.id for prompt in self.data.held_out}
        for setting, folder in (("policy", policy.path), ("reward", judge_folder)):
            if folder and self.cfg[setting] is not None:
                require_unseen(f"{setting}={self.cfg[setting]}", Path(folder), held_out_ids)
        if self.cfg.policy is None:
            require_unseen_start(policy, held_out_ids)
        self.sampling_weights, self.never_drawn = self._sampling_weights()
        self.sampler = DensityAwareSampler(self.sampling_weights, seed=self.loop.seed)
        self.draws = self._draws()
        model, parameters = make_trainable(lm.model, tuning, self.loop.seed)
        self.policy = Policy(model.eval(), parameters, spec.temperature, ref_model=spec.beta > 0)
        adamw = make_optimizer(parameters, optimizer)
        scheduler = make_scheduler(adamw, optimizer, self.loop.steps * spec.num_iterations)
        self.learner = learner_of(parameters, adamw, scheduler, self.sampler)
        self.grpo_step = GRPOStep(
            policy=self.policy,
            tokenizer=self.tokenizer,
            ends=self.ends,
            rewards=self.rewards,
            spec=spec,
            optimizer=adamw,
            scheduler=scheduler,
            max_norm=optimizer.max_grad_norm,
            accelerator=accelerator,
            state=self.state,
            batch_tokens=batch_tokens,
            seed=self.loop.seed,
        )
        self.before: list[float] = []  # mean reward of each held-out prompt before training
        self.totals = dict.fromkeys(COUNTED, 0)
        self.last: dict[str, Any] = {}  # metrics of the last step
        self.evaluations: list[dict[str, Any]] = []  # results on the held-out prompts

    def _data(self, context: int) -> GrpoData:
        source, new_tokens = locate(self.cfg, "prompts_file"), self.spec.max_completion_length
        judged = max_sequence_length(self.rewards.model) if self.rewards.model is not None else None
        context, whose = min((context, "policy"), (judged or context, "reward model"))
        data = encode_prompts(
            read_prompts(source), self.tokenizer, context, new_tokens, self.loop.held_out, whose=whose
        )
        log(f"{source}: {len(data.train)} prompts to train on, {len(data.held_out)} held out")
        if data.too_long:
            log(
                f"warning: {len(data.too_long)} prompts leave no room for {new_tokens} new tokens in the {whose}'s "
                f"context of {context}; they are skipped, not truncated, and listed as too_long in result.json"
            )
        return data

    def _sampling_weights(self) -> tuple[Tensor, int]:
        sampling_weights, never_drawn = draw_weights(
            self.data, self.cfg.sampler.name, *measured_weights(self.cfg), self.spec.prompts_per_step, self.loop.seed
        )
        warn_never_drawn(never_drawn)
        return sampling_weights, never_drawn

    def _rewards(self, folder: Path | None) -> Rewards:
        model = None if folder is None else load_judge(folder, self.tokenizer, self.state.device)
        end = self.tokenizer.eos_token_id
        return Rewards(self.spec.reward_funcs, self.spec.reward_weights, model, end, self.batch_tokens)

    def _draws(self) -> Iterator[int]:
        while True:
            yield from self.sampler

    def train(self) -> dict[str, Any]:
        """Do the remaining steps with evaluations in between, and save the policy."""
        started = time.perf_counter()
        done, saved = self.run.begin(self.learner, self.loop.steps, "held_out.jsonl", "completions.jsonl")
        if saved:
            self.before, self.totals = saved["before"], saved["totals"]
            self.last, self.evaluations = saved["last"], saved["looks"]
        tracker, last = self.run.tracker, self.loop.steps
        tracker.histogram(0, "sampling_weights", (self.sampling_weights * len(self.sampling_weights)).tolist())
        if done == 0:
            self._evaluate(0)
        with Progress(f"grpo {self.cfg.name}", last - done) as progress:
            for step in range(done + 1, last + 1):
                drawn = [self.data.train[next(self.draws)] for _ in range(self.spec.prompts_per_step)]
                outcome = self.grpo_step.step(step, drawn, f"step {step} of {self.cfg.name}")
                self.last = outcome.metrics
                for name in COUNTED:
                    self.totals[name] += outcome.counts[name]
                self.run.log(step, outcome.metrics, outcome.timings)
                tracker.histogram(step, "rewards", outcome.rewards)
                if step % self.spec.eval_every == 0 or step == last:
                    self._evaluate(step)
                if self.state.is_main_process and self.run.is_due(step):
                    save_ledger(self.run.folder, self.sampler, [prompt.id for prompt in self.data.train])
                self.run.save(
                    step, self.learner, before=self.before, totals=self.totals, last=self.last, looks=self.evaluations
                )
                progress.advance(1, _progress_text(outcome.metrics, outcome.timings))
        result = self._result(time.perf_counter() - started)
        if self.state.is_main_process:
            folder = self.run.folder
            save_model(whole_model(self.policy.model), self.tokenizer, folder / "model")
            steps = read_jsonl(folder / "metrics.jsonl")
            plot_training(steps, self.evaluations, f"GRPO, {self.cfg.name}", folder / "curves.png")
            write_json(folder / "result.json", result)
            _print_summary(result)
            log(f"policy: {folder / 'model'}; {folder / 'result.json'}")
        return self.run.end(result, {f"held_out/{key}": value for key, value in (result["held_out"] or {}).items()})

    def _evaluate(self, step: int) -> None:
        """Evaluate the policy on the held-out prompts; log the scores and write the completions."""
        if not self.held_out:
            return
        with self.accelerator.autocast():
            answered = answer(
                self.policy,
                self.tokenizer,
                self.held_out,
                self.rewards,
                self.spec.sampling(self.spec.eval_generations, self.batch_tokens),
                self.spec.kl,
                seed=self.loop.seed,
                ends=self.ends,
                state=self.state,
                doing=f"the held-out prompts after step {step} of {self.cfg.name}",
            )
        if step == 0:
            self.before = mean_rewards(answered)
        found = evaluate_policy(answered, self.before, self.loop.seed)
        self.evaluations.append({"step": step, **found})
        self.run.append("held_out.jsonl", [{"step": step, **found}])
        self.run.append("completions.jsonl", [{"step": step, **row} for row in answered])
        tracker = self.run.tracker
        tracker.log(step, {f"held_out/{k}": v for k, v in found.items() if isinstance(v, float)})
        tracker.table(step, "completions", ["step", "prompt", "completion", "reward"], _table_rows(step, answered))
        low, high = found["reward_interval"]
        log(f"held-out prompts after step {step}: reward {found['reward']:.3f} [{low:.3f}, {high:.3f}]{_kl(found)}, "
            f"length {found['length']:.1f} ({found['prompts']} prompts)")  # fmt: skip

    def _result(self, seconds: float) -> dict[str, Any]:
        return {
            "steps": self.loop.steps,
            "held_out": self.evaluations[-1] if self.evaluations else None,
            "held_out_before": self.evaluations[0] if self.evaluations else None,
            "held_out_curve": self.evaluations,
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
            **self.run.about(),
        }


def _kl(numbers: dict[str, Any]) -> str:
    return f"  KL {numbers['kl']:.4f}" if "kl" in numbers else ""


def _progress_text(metrics: dict[str, Any], timings: dict[str, float]) -> str:
    return (
        f"reward {metrics['reward']:.3f}{_kl(metrics)}  length {metrics['length']:.1f}  "
        f"entropy {metrics['entropy']:.2f}  {timings['tokens_per_second']:.0f} tokens/s"
    )


def _table_rows(step: int, answered: Answered) -> list[list[Any]]:
    pairs = [(row["prompt"], row["completions"][0]) for row in answered[:SHOWN]]
    return [[step, prompt, completion["text"], completion["reward"]] for prompt, completion in pairs]


def _print_summary(result: dict[str, Any]) -> None:
    counts, now, before = result["counts"], result["held_out"], result["held_out_before"]
    if now is not None:
        low, high = now["gain_interval"]
        print(f"held-out reward {before['reward']:.3f} -> {now['reward']:.3f}  gain {now['gain']:+.3f} "
              f"[{low:.3f}, {high:.3f}]{_kl(now)}  ({now['prompts']} prompts, 95% interval)")  # fmt: skip
    print(f"{counts['degenerate_groups']} of {counts['groups']} groups had equal rewards; {counts['truncated']} of "
          f"{counts['completions']} completions were cut off, {counts['empty']} empty")  # fmt: skip
    if skipped := counts["steps_without_update"]:
        print(f"{skipped} of {result['steps']} steps had nothing to learn from and did not change the policy")
