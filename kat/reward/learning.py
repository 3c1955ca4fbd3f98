"""What task=reward trains: its pairs, its model, its steps and its evaluation. Main entry: `RewardLearning`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from torch import Tensor
from transformers import PreTrainedModel

from kat.data.pairs import read_pairs
from kat.data.tables import read_weights
from kat.pipeline.artifacts import locate
from kat.records import RewardOutcome
from kat.reward.data import RewardData, RewardPair, describe_counts, encode_all, split_pairs
from kat.reward.frozen import SplitScorer
from kat.reward.held_out import score_pairs
from kat.reward.model import bradley_terry_loss, reward_model_of
from kat.reward.report import ScoredPair, deciles, evaluate_by_part, longer_wins, render_reward_report
from kat.reward.scoring import max_sequence_length, tree_scores
from kat.reward.settings import RewardSettings
from kat.reward.trees import Tree, batches_of, merged
from kat.sampling.arms import Observation
from kat.training.lineage import require_unseen_start
from kat.training.state import arm_of, learner_of, save_ledger
from kat.training.tuning import make_trainable, whole_model
from latentwire.harness.errors import UserError
from latentwire.harness.gather import gather_from_all
from latentwire.harness.optimization import Updater, require_finite_loss
from latentwire.harness.progress import log
from latentwire.harness.random import generator_for
from latentwire.harness.run import Run
from latentwire.harness.training import Learning, StepReport
from latentwire.lm.model_folder import save_model
from latentwire.lm.models import load_model

Scorer = Callable[[Sequence[Tree]], Tensor]  # trees -> scores of their completions, (S,)


@dataclass(frozen=True)
class _DrawnPair:
    """A pair of a step, with its share of the loss and the row of its prompt among the training prompts."""

    tree: Tree
    share: float
    row: int


class RewardLearning(Learning[RewardOutcome]):
    """One run of task=reward.

    Args:
        run: Folder of the run.
        settings: All settings.
        accelerator: Device, processes and precision.

    Raises:
        UserError: The pairs or the model cannot be used.
    """

    def __init__(self, run: Run, settings: RewardSettings, accelerator: Accelerator) -> None:
        super().__init__(run)
        self.settings, self.spec, self.accelerator = settings, settings.spec, accelerator
        self.steps, self.seed = settings.loop.steps, settings.loop.seed
        with self.state.local_main_process_first():
            lm = load_model(settings.model, self.state.device, torch.float32)
        self.tokenizer = lm.tokenizer
        self.data = self._data(min(self.spec.max_length, max_sequence_length(lm.model) or self.spec.max_length))
        require_unseen_start(settings.model, {pair.prompt_id for pair in self.data.held_out})
        self.arm = arm_of(run.cfg, list(self.data.train), self.spec.prompts_per_step)
        model = reward_model_of(lm, generator_for(self.seed, "reward head"))
        self.trained, parameters = make_trainable(model, settings.tuning, self.seed, ["score"])
        self.updater = Updater(parameters, settings.optimizer, self.steps, accelerator)
        self.learner = learner_of(parameters, self.updater.optimizer, self.updater.scheduler, self.arm)
        self.scorer: Scorer | None = self._scorer(model)
        self.pairs_drawn = 0  # draws of prompts so far, the key of the choice among their pairs

    def _data(self, max_length: int) -> RewardData:
        source, spec = locate(self.run.cfg, "pairs_file"), self.spec
        selected = (pair for pair in read_pairs(source) if spec.split in (None, pair.split))
        pairs, counts = encode_all(self.tokenizer, selected, max_length)
        log(f"{source}: {describe_counts(counts, max_length)}")
        if not pairs:
            raise UserError(
                f"split={spec.split}: no pair of {source} is in this split and fits into max_length={max_length} "
                "tokens; choose another split, split=null, or a larger max_length"
            )
        data = split_pairs(pairs, self.settings.loop.held_out)
        data.counts.update(counts)
        if spec.prompts_per_step > len(data.train):
            raise UserError(f"prompts_per_step={spec.prompts_per_step}: there are {len(data.train)} prompts to "
                            "train on; use fewer a step, or more data")  # fmt: skip
        return data

    def _scorer(self, model: PreTrainedModel) -> Scorer:
        tuning, states_gib = self.settings.tuning, self.settings.cache.states_gib
        if tuning.method != "last_blocks":
            return lambda trees: tree_scores(model, trees)
        trees = (pair.tree for pair in self.data.train_pairs)
        with self.accelerator.autocast():
            return SplitScorer(model, tuning.blocks, trees, int(states_gib * 2**30), self.spec.batch_tokens).scores

    def units(self, first: int, last: int) -> int:
        """Return the number of drawn prompts."""
        return (last - first + 1) * self.spec.prompts_per_step

    def begin(self, done: int) -> None:
        """Take up the choice among a prompt's pairs where the last command left it."""
        self.pairs_drawn = done * self.spec.prompts_per_step

    def step(self, number: int) -> StepReport:
        """Do one optimizer step.

        The loss is the mean over the prompts of all processes of the mean loss of a prompt's pairs.
        """
        started, doing = time.perf_counter(), f"step {number} of {self.run.cfg.name}"
        drawn = self._draw()
        self.updater.zero_grad()
        loss, accuracy, margin, tokens = self._accumulate(drawn, doing)
        update = self.updater.update(doing)
        seconds = time.perf_counter() - started
        metrics = {"loss": loss, "accuracy": accuracy, "margin": margin, "grad_norm": update.grad_norm,
                   "learning_rate": update.learning_rate, **self.arm.metrics()}  # fmt: skip
        rate = tokens / seconds
        status = f"loss {loss:.3f}  accuracy {accuracy:.2f}  {rate:.0f} tokens/s"
        timings = {"seconds": seconds, "tokens_per_second": rate}
        return StepReport(metrics, timings, status, self.spec.prompts_per_step)

    def _draw(self) -> list[_DrawnPair]:
        """Return this process's pairs of a step: the arm draws prompts, a generator some pairs of each."""
        prompts = list(self.data.train.values())
        rows = self.arm.next(self.spec.prompts_per_step)
        drawn: list[tuple[int, list[RewardPair]]] = []
        for number, row in enumerate(rows, self.pairs_drawn):
            pairs = prompts[row]
            order = torch.randperm(len(pairs), generator=generator_for(self.seed, "pairs of draw", number))
            drawn.append((row, [pairs[i] for i in order[: self.spec.pairs_per_prompt].tolist()]))
        self.pairs_drawn += len(rows)
        own = drawn[self.state.process_index :: self.state.num_processes]
        return [_DrawnPair(pair.tree, 1 / (len(pairs) * len(drawn)), row) for row, pairs in own for pair in pairs]

    def _accumulate(self, drawn: Sequence[_DrawnPair], doing: str) -> list[float]:
        """Add the gradients of a step in batches of bounded size, and tell the arm which prompts are learnt.

        Returns:
            Loss, accuracy, margin and number of tokens, over all processes.
        """
        assert self.scorer is not None
        trees = merged([pair.tree for pair in drawn])
        sums = torch.zeros(4, dtype=torch.float64)
        right: dict[int, list[float]] = {}  # row of a prompt -> 1 for each pair in the right order, else 0 or .5
        for batch in batches_of(trees, self.spec.batch_tokens):
            part = [trees[i] for i in batch]
            score_index = {key: index for index, key in enumerate((t.prompt, c) for t in part for c in t.completions)}
            pairs = [pair for pair in drawn if (pair.tree.prompt, pair.tree.completions[0]) in score_index]
            columns = [[score_index[pair.tree.prompt, c] for c in pair.tree.completions] for pair in pairs]  # (P, 2)
            with self.accelerator.autocast():
                scores = self.scorer(part)  # (S,)
            chosen, rejected = scores[torch.tensor(columns, device=scores.device)].unbind(1)  # (P,), (P,)
            share = torch.tensor([pair.share for pair in pairs], device=scores.device)
            losses = bradley_terry_loss(chosen, rejected) * share
            require_finite_loss("the loss", losses, doing)
            torch.autograd.backward(losses.sum())
            margins = (chosen - rejected).detach()
            points = (margins.sign() + 1) / 2
            each = torch.stack([losses.detach(), points * share, margins * share]).double().sum(dim=1)
            sums += torch.cat([each.cpu(), torch.tensor([sum(t.size for t in part)])])
            for pair, point in zip(pairs, points.tolist(), strict=True):
                right.setdefault(pair.row, []).append(point)
        found = gather_from_all(self.state, sorted(right.items()))
        self.arm.observe([Observation(row, (sum(points) / len(points),)) for row, points in found])
        if self.state.num_processes > 1:
            sums = reduce(sums.float().to(self.state.device), reduction="sum").double().cpu()
        return [float(value) for value in sums]

    def before_checkpoint(self) -> None:
        """Write the ledger of the draws."""
        if self.state.is_main_process:
            save_ledger(self.run.folder, self.arm, list(self.data.train))

    def finish(self) -> RewardOutcome:
        """Save the model, and score the held-out pairs."""
        self.scorer = None  # frees the cached states
        model = whole_model(self.trained).eval()
        if self.state.is_main_process:
            save_model(model, self.tokenizer, self.run.folder / "model")
        with self.accelerator.autocast():
            margins, rewards = score_pairs(model, self.data.held_out, self.spec.batch_tokens, self.state)
        known = self._deciles()
        scored_pairs = [
            ScoredPair(pair.prompt_id, pair.source, margin, *pair.lengths, known.get(pair.prompt_id))
            for pair, margin in zip(self.data.held_out, margins, strict=True)
        ]
        longer = longer_wins([pair.lengths for pair in self.data.train_pairs])
        counts = self.data.counts
        return {
            "held_out": evaluate_by_part(scored_pairs, longer, self.seed),
            "rewards": {"mean": float(rewards.mean()), "std": float(rewards.std(correction=0))},
            "counts": {
                "pairs": counts["pairs"],
                "too_long": counts["too_long"],
                "trimmed": counts["trimmed"],
                "tokens_trimmed": counts["tokens_trimmed"],
                "train_prompts": len(self.data.train),
                "train_pairs": len(self.data.train_pairs),
                "held_out_prompts": len({pair.prompt_id for pair in self.data.held_out}),
                "held_out_pairs": len(self.data.held_out),
            },
            "trained_weights": sum(parameter.numel() for parameter in self.updater.parameters.values()),
        }

    def report(self, result: RewardOutcome) -> Mapping[str, float]:
        """Print the report on the held-out pairs; return their accuracy."""
        print(render_reward_report(result["held_out"], "held-out pairs"))
        log(f"reward model: {self.run.folder / 'model'}; {self.run.folder / 'result.json'}")
        return {"held_out_accuracy": result["held_out"]["accuracy"]}

    def _deciles(self) -> dict[str, int]:
        """Return the decile of density by prompt id; prompts that are too long for the embedder have none."""
        ids, density, _ = read_weights(locate(self.run.cfg, "weights_file"))
        return dict(zip(ids, deciles(density.tolist()), strict=True))
