"""What task=grpo trains: its prompts, policy and rewards, its steps and evaluations. Main entry: `GrpoLearning`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from kat.data.prompts import read_prompts
from kat.grpo.actor import Actor
from kat.grpo.data import GrpoData, encode_prompts, evaluation_prompts
from kat.grpo.given import load_judge
from kat.grpo.groups import ArmPrompts
from kat.grpo.plots import plot_training
from kat.grpo.policy import Policy
from kat.grpo.reward_sum import Rewards
from kat.grpo.rollout import end_tokens
from kat.grpo.settings import GrpoSettings
from kat.grpo.step import COUNTED, GRPOStep
from kat.grpo.validation import HeldOutPrompts, evaluate_policy, mean_rewards
from kat.pipeline.artifacts import locate
from kat.records import AnsweredPrompt, GrpoCounts, GrpoOutcome, HeldOutEvaluation, PolicyEvaluation
from kat.reward.scoring import max_sequence_length
from kat.training.lineage import require_unseen, require_unseen_start
from kat.training.state import TrainableParameters, arm_of, learner_of, save_ledger
from kat.training.tuning import make_trainable, whole_model
from kat.world.exact import exact_truth
from kat.world.truth import Question, read_questions
from latentwire.harness.checkpoint import State
from latentwire.harness.optimization import Updater
from latentwire.harness.progress import log
from latentwire.harness.results import read_jsonl
from latentwire.harness.run import Metrics, Run
from latentwire.harness.training import Learning, StepReport
from latentwire.lm.model_folder import save_model
from latentwire.lm.models import LanguageModel, load_model

TRUTH = "held_out_truth.jsonl"  # exact measures of the evaluated prompts, with grpo.eval_truth
SHOWN = 16  # number of held-out prompts in the tracker's table of completions


class GrpoLearning(Learning[GrpoOutcome]):
    """One run of task=grpo.

    Args:
        run: Folder of the run.
        settings: All settings.
        accelerator: Device, processes and precision.
        judge_folder: Folder of the reward model; None without one.

    Raises:
        UserError: The prompts, the policy or the reward model cannot be used.
    """

    files = ("held_out.jsonl", "completions.jsonl", TRUTH)

    def __init__(self, run: Run, settings: GrpoSettings, accelerator: Accelerator, judge_folder: Path | None) -> None:
        super().__init__(run)
        self.settings, self.spec = settings, settings.spec
        self.steps, self.seed = settings.loop.steps, settings.loop.seed
        with self.state.local_main_process_first():
            lm = load_model(settings.policy, self.state.device, torch.float32)
        rewards = self._rewards(lm, judge_folder)
        self.data = self._data(lm, rewards)
        prompts = evaluation_prompts(self.data, self.spec.eval_prompts)
        self._require_unseen(judge_folder)
        self.arm = arm_of(run.cfg, [prompt.id for prompt in self.data.train], self.spec.prompts_per_step,
                          "grpo.prompts_per_step")  # fmt: skip
        model, parameters = make_trainable(lm.model, settings.tuning, self.seed)
        policy = Policy(model.eval(), parameters, self.spec.temperature, ref_model=self.spec.beta > 0,
                        moves=self.spec.sync_ref_model)  # fmt: skip
        self.updater = Updater(parameters, settings.optimizer, self.steps * self.spec.num_iterations, accelerator)
        self.learner = learner_of(parameters, self.updater.optimizer, self.updater.scheduler, self.arm)
        if self.spec.sync_ref_model and policy.ref_parameters is not None:
            self.learner["ref_model"] = TrainableParameters(policy.ref_parameters)
        self.actor = Actor(policy, lm.tokenizer, end_tokens(lm.model, lm.tokenizer), rewards, settings.batch_tokens,
                           self.seed, accelerator, self.state, self.spec.sampling_stream)  # fmt: skip
        self.grpo_step = GRPOStep(self.actor, self.spec, self.updater)
        self.prompts = ArmPrompts(self.arm, self.data.train)
        sampling = self.spec.sampling(self.spec.eval_generations, settings.batch_tokens)
        self.held_out = HeldOutPrompts(self.actor, prompts, sampling, self.spec.kl)
        self.questions = self._questions([prompt.id for prompt in prompts])
        self.before: list[float] = []  # mean reward of each held-out prompt before training
        self.totals = dict.fromkeys(COUNTED, 0)
        self.last: dict[str, float] = {}  # metrics of the last step
        self.evaluations: list[HeldOutEvaluation] = []

    def _rewards(self, lm: LanguageModel, folder: Path | None) -> Rewards:
        model = None if folder is None else load_judge(folder, lm.tokenizer, self.state.device)
        end, spec = lm.tokenizer.eos_token_id, self.spec
        ends = end_tokens(lm.model, lm.tokenizer)
        return Rewards(spec.reward_funcs, spec.reward_weights, model, end, self.settings.batch_tokens,
                       spec.reward_settings, ends)  # fmt: skip

    def _data(self, lm: LanguageModel, rewards: Rewards) -> GrpoData:
        source, new_tokens = locate(self.run.cfg, "prompts_file"), self.spec.max_completion_length
        judged = max_sequence_length(rewards.model) if rewards.model is not None else None
        context, whose = min((lm.context_length, "policy"), (judged or lm.context_length, "reward model"))
        share = self.settings.loop.held_out
        data = encode_prompts(read_prompts(source), lm.tokenizer, context, new_tokens, share, whose,
                              self.spec.prompt_template)  # fmt: skip
        log(f"{source}: {len(data.train)} prompts to train on, {len(data.held_out)} held out")
        if data.too_long:
            log(
                f"warning: {len(data.too_long)} prompts leave no room for {new_tokens} new tokens in the {whose}'s "
                f"context of {context}; they are skipped, not truncated, and listed as too_long in result.json"
            )
        return data

    def _questions(self, held_out_ids: Sequence[str]) -> list[Question]:
        """Return the evaluated prompts with what is known about them in a planted world; none without eval_truth."""
        if not self.spec.eval_truth:
            return []
        known = {question.id: question for question in read_questions(locate(self.run.cfg, "prompts_file"))}
        return [known[each] for each in held_out_ids]

    def _require_unseen(self, judge_folder: Path | None) -> None:
        """Check that neither the policy nor the reward model was trained on the held-out prompts."""
        cfg, policy = self.run.cfg, self.settings.policy
        held_out_ids = {prompt.id for prompt in self.data.held_out}
        for setting, folder in (("policy", policy.path), ("reward", judge_folder)):
            if folder and cfg[setting] is not None:
                require_unseen(f"{setting}={cfg[setting]}", Path(folder), held_out_ids)
        if not self.settings.is_continued:
            require_unseen_start(policy, held_out_ids)

    def saved_values(self) -> State:
        """Return the sums and evaluations so far."""
        return {"before": self.before, "totals": self.totals, "last": self.last, "evaluations": self.evaluations}

    def restore_values(self, saved: State) -> None:
        """Take over the sums and evaluations of a checkpoint."""
        self.before, self.totals = saved["before"], {**self.totals, **saved["totals"]}
        self.last, self.evaluations = saved["last"], saved["evaluations"]

    def begin(self, done: int) -> None:
        """Evaluate the policy before its first step."""
        weights = self.arm.sampling_weights
        self.run.tracker.histogram(0, "sampling_weights", (weights * len(weights)).tolist())
        if done == 0:
            self._evaluate(0)

    def step(self, number: int) -> StepReport:
        """Draw prompts, and do one step of GRPO."""
        outcome = self.grpo_step.step(number, self.prompts, f"step {number} of {self.run.cfg.name}")
        self.last = {**outcome.metrics, **self.arm.metrics()}
        for name in COUNTED:
            self.totals[name] += outcome.counts[name]
        self.run.tracker.histogram(number, "rewards", [reward for group in outcome.rewards for reward in group])
        return StepReport(self.last, outcome.timings, _status(outcome.metrics, outcome.timings))

    def validate(self, number: int) -> Metrics | None:
        """Evaluate the policy every `eval_every` steps; the scores go to held_out.jsonl."""
        if number % self.spec.eval_every == 0 or number == self.steps:
            self._evaluate(number)
        return None

    def _evaluate(self, step: int) -> None:
        """Evaluate the policy on the held-out prompts; log the scores and write the completions."""
        if not self.held_out.prompts:
            return
        answered = self.held_out.answer(f"the held-out prompts after step {step} of {self.run.cfg.name}")
        if step == 0:
            self.before = mean_rewards(answered)
        found = evaluate_policy(answered, self.before, self.seed)
        self.evaluations.append({"step": step, **found})
        self.run.append("held_out.jsonl", [{"step": step, **found}])
        self.run.append("completions.jsonl", [{"step": step, **row} for row in answered])
        self._measure_truth(step)
        tracker = self.run.tracker
        tracker.log(step, {f"held_out/{k}": v for k, v in found.items() if isinstance(v, float)})
        tracker.table(step, "completions", ["step", "prompt", "completion", "reward"], _table_rows(step, answered))
        low, high = found["reward_interval"]
        log(f"held-out prompts after step {step}: reward {found['reward']:.3f} [{low:.3f}, {high:.3f}]{_kl(found)}, "
            f"length {found['length']:.1f} ({found['prompts']} prompts)")  # fmt: skip

    def _measure_truth(self, step: int) -> None:
        """Write the exact measures of the evaluated prompts, with eval_truth."""
        if self.questions and self.state.is_main_process:
            policy, budget = self.actor.policy, self.settings.batch_tokens
            rows = exact_truth(policy.model, self.actor.tokenizer, self.questions, budget)
            self.run.append(TRUTH, [{"step": step, **row} for row in rows])

    def before_checkpoint(self) -> None:
        """Write the ledger of the draws."""
        if self.state.is_main_process:
            save_ledger(self.run.folder, self.arm, [prompt.id for prompt in self.data.train])

    def finish(self) -> GrpoOutcome:
        """Save the policy and its curves."""
        folder, policy = self.run.folder, self.actor.policy
        if self.state.is_main_process:
            save_model(whole_model(policy.model), self.actor.tokenizer, folder / "model")
            rows = read_jsonl(folder / "metrics.jsonl")
            steps = [{name: v for name, v in row.items() if isinstance(v, int | float)} for row in rows]
            plot_training(steps, self.evaluations, f"GRPO, {self.run.cfg.name}", folder / "curves.png")
        return {
            "steps": self.steps,
            "held_out": self.evaluations[-1] if self.evaluations else None,
            "held_out_before": self.evaluations[0] if self.evaluations else None,
            "held_out_curve": self.evaluations,
            "last_step": self.last,
            "counts": self._counts(),
            "too_long": self.data.too_long,
            "trained_weights": sum(p.numel() for p in policy.parameters.values()),
            "frozen_blocks_shared": len(policy.frozen),
        }

    def _counts(self) -> GrpoCounts:
        totals = self.totals
        return {
            "completions": totals["completions"],
            "truncated": totals["truncated"],
            "empty": totals["empty"],
            "groups": totals["groups"],
            "degenerate_groups": totals["degenerate_groups"],
            "dropped_groups": totals["dropped_groups"],
            "steps_without_update": totals["steps_without_update"],
            "train_prompts": len(self.data.train),
            "never_drawn": self.arm.never_drawn,
            "held_out_prompts": len(self.data.held_out),
            "too_long": len(self.data.too_long),
        }

    def report(self, result: GrpoOutcome) -> Mapping[str, float]:
        """Print what was learnt; return the scores on the held-out prompts."""
        counts, now, before = result["counts"], result["held_out"], result["held_out_before"]
        if now is not None and before is not None:
            low, high = now["gain_interval"]
            print(f"held-out reward {before['reward']:.3f} -> {now['reward']:.3f}  gain {now['gain']:+.3f} "
                  f"[{low:.3f}, {high:.3f}]{_kl(now)}  ({now['prompts']} prompts, 95% interval)")  # fmt: skip
        print(f"{counts['degenerate_groups']} of {counts['groups']} groups had equal rewards; {counts['truncated']} of "
              f"{counts['completions']} completions were cut off, {counts['empty']} empty")  # fmt: skip
        if self.spec.dynamic_sampling:
            print(f"{counts['dropped_groups']} more groups had equal rewards and were drawn again")
        if skipped := counts["steps_without_update"]:
            print(f"{skipped} of {result['steps']} steps had nothing to learn from and did not change the policy")
        log(f"policy: {self.run.folder / 'model'}; {self.run.folder / 'result.json'}")
        return {f"held_out/{key}": value for key, value in (now or {}).items() if isinstance(value, int | float)}


def _kl(numbers: Mapping[str, object] | PolicyEvaluation) -> str:
    return f"  KL {numbers['kl']:.4f}" if "kl" in numbers else ""


def _status(metrics: Mapping[str, float], timings: Mapping[str, float]) -> str:
    return (
        f"reward {metrics['reward']:.3f}{_kl(metrics)}  length {metrics['length']:.1f}  "
        f"entropy {metrics['entropy']:.2f}  {timings['tokens_per_second']:.0f} tokens/s"
    )


def _table_rows(step: int, answered: Sequence[AnsweredPrompt]) -> list[list[object]]:
    pairs = [(row["prompt"], row["completions"][0]) for row in answered[:SHOWN]]
    return [[step, prompt, completion["text"], completion["reward"]] for prompt, completion in pairs]
