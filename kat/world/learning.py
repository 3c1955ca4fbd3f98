"""What task=world trains: a base model on the corpus of its language. Main entry: `WorldLearning`."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kat.world.corpus import draw_lines, encode_lines, world_tokenizer
from kat.world.exact import ANSWER_TOKENS, draw_answers, exact_truth
from kat.world.language import make_world
from kat.world.records import TruthMeans, WorldOutcome
from kat.world.settings import BaseSpec, WorldSettings
from kat.world.truth import read_questions, truth_of
from latentwire.harness.optimization import Updater, require_finite_loss
from latentwire.harness.progress import log
from latentwire.harness.random import generator_for
from latentwire.harness.results import write_json, write_jsonl
from latentwire.harness.run import Run
from latentwire.harness.training import Learning, StepReport
from latentwire.lm.model_folder import save_model

CONTEXT = 64  # positions of the base model
BATCH_TOKENS = 16384  # positions scored at a time
ASKED = 256  # prompts whose answers are sampled to see whether they end
ANSWERS = 4  # sampled answers of each


class WorldLearning(Learning[WorldOutcome]):
    """One run of task=world.

    Args:
        run: Folder of the run.
        settings: All settings.
        accelerator: Device, processes and precision.
    """

    def __init__(self, run: Run, settings: WorldSettings, accelerator: Accelerator) -> None:
        super().__init__(run)
        self.settings, self.base, self.accelerator = settings, settings.base, accelerator
        self.steps, self.seed = settings.run.steps, settings.run.seed
        self.world = make_world(settings.world, self.seed)
        self.tokenizer = world_tokenizer(self.world, CONTEXT)
        self.model = first_model(self.base, self.tokenizer, self.seed).to(self.state.device)
        self.updater = Updater(dict(self.model.named_parameters()), settings.optimizer, self.steps, accelerator)
        self.learner = {
            "model": self.model, "optimizer": self.updater.optimizer, "scheduler": self.updater.scheduler
        }  # fmt: skip

    def step(self, number: int) -> StepReport:
        """Do one optimizer step on lines that depend only on the seed and the step."""
        started, doing = time.perf_counter(), f"step {number} of {self.run.cfg.name}"
        ids, token_weights = self._lines(number)
        total = token_weights.sum()
        own = slice(self.state.process_index, None, self.state.num_processes)
        ids, token_weights = ids[own].to(self.state.device), token_weights[own].to(self.state.device)
        self.updater.zero_grad()
        with self.accelerator.autocast():
            logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits  # (B, T - 1, V)
        losses = functional.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (losses * token_weights).sum() / total
        require_finite_loss("the loss", loss, doing)
        torch.autograd.backward(loss)
        update = self.updater.update(doing)
        seconds = time.perf_counter() - started
        mean = loss.detach()
        if self.state.num_processes > 1:
            mean = reduce(mean, reduction="sum")
        metrics = {"loss": float(mean), "grad_norm": update.grad_norm, "learning_rate": update.learning_rate}
        return StepReport(metrics, {"seconds": seconds}, f"loss {metrics['loss']:.3f}")

    def _lines(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the lines of a step as `encode_lines` does."""
        generator = generator_for(self.seed, "world", "lines", number)
        lines = draw_lines(self.world, self.base.lines_per_step, self.base.valid_share, generator)
        return encode_lines(self.tokenizer, lines, self.base.prompt_weight)

    def finish(self) -> WorldOutcome:
        """Write the prompts, their topics as clusters, and the model; measure the model."""
        folder, rows = self.run.folder, self.world.prompts()
        if self.state.is_main_process:
            write_jsonl(folder / "prompts.jsonl", rows)
            write_json(folder / "clusters.json", {"labels": {row["id"]: row["topic"] for row in rows}})
            save_model(self.model.eval(), self.tokenizer, folder / "model")
        self.state.wait_for_everyone()
        model, questions = self.model.eval(), read_questions(folder / "prompts.jsonl")
        truths = exact_truth(model, self.tokenizer, questions, BATCH_TOKENS)
        order = torch.randperm(len(questions), generator=generator_for(self.seed, "world", "sampled prompts"))
        some = [questions[index] for index in order[:ASKED].tolist()]
        drawn = draw_answers(model, self.tokenizer, some, ANSWERS, generator_for(self.seed, "world", "answers"))
        answers = [ids for each in drawn.values() for ids in each]
        sizes = [len(row["valid"]) for row in rows]
        return {
            "steps": self.steps,
            "topics": len(self.world.topics),
            "prompts": len(rows),
            "valid_answers": [min(sizes), max(sizes)],
            "vocabulary": len(self.tokenizer),
            "weights": sum(parameter.numel() for parameter in self.model.parameters()),
            "truth": truth_of(truths),
            "ended": sum(ids[-1] == self.tokenizer.eos_token_id for ids in answers) / len(answers),
            "length": sum(map(len, answers)) / len(answers),
        }

    def report(self, result: WorldOutcome) -> Mapping[str, float]:
        """Print what the base model can do; return its numbers."""
        folder, means = self.run.folder, result["truth"]["all"]
        few, many = result["valid_answers"]
        print(f"{result['prompts']} prompts of {result['topics']} topics, each with {few} to {many} valid answers; "
              f"base model of {result['weights']:,} weights")  # fmt: skip
        for name, part in (("all", means), ("rare", result["truth"]["rare"]), ("common", result["truth"]["common"])):
            if part is not None:
                print(f"{name} topics: {describe_means(part)}")
        print(f"{result['ended']:.1%} of sampled answers end within {ANSWER_TOKENS} tokens; mean length "
              f"{result['length']:.1f}")  # fmt: skip
        log(f"prompts: {folder / 'prompts.jsonl'}; topics: {folder / 'clusters.json'}; base model: {folder / 'model'}")
        return {"validity": means["validity"], "distinct": means["distinct"], "ended": result["ended"]}


def describe_means(means: TruthMeans) -> str:
    """Return measures of truth as a text for people."""
    entropy, share = means["entropy"], means["entropy_share"]
    known = "unknown" if entropy is None or share is None else f"{entropy:.2f} nats ({share:.0%} of even)"
    return (
        f"valid {means['validity']:.3f}, entropy among valid answers {known}, {means['distinct']:.1f} different valid "
        f"answers in 16, {means['topics_covered']} of {means['topics']} topics covered"
    )


def first_model(spec: BaseSpec, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return the base model before training; its weights depend on the seed alone.

    Args:
        spec: Its sizes.
        tokenizer: Its tokenizer.
        seed: Seed of its weights.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        max_position_embeddings=CONTEXT,
        initializer_range=spec.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, "world", "weights").initial_seed())
        return LlamaForCausalLM(config)
