"""Time of a GRPO step and of its sampling, next to TRL's trainer on the same work. Main entry: `main()`.

python -m benchmarks.grpo lengths=8,48 dtypes=float32,bfloat16 rounds=3 trl=true

A step has 4 prompts of nq_open with 16 completions each, and trains the last two blocks of SmolLM2. Each round does one
step of every kind in turn, so background load affects all of them equally. A step always starts from the same weights
and random numbers. Its reward is the number of words, so almost all of the time is the policy's. The first round is not
counted. The table has the medians.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import PartialState
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from transformers import PrinterCallback, TrainerCallback

from kat.data.pairs import PairsSpec, PreferencePair, readings
from kat.data.prompts import unique_prompts
from kat.grpo.actor import Actor
from kat.grpo.data import encode_prompts
from kat.grpo.groups import ArmPrompts
from kat.grpo.policy import Policy
from kat.grpo.reward_sum import Rewards
from kat.grpo.rollout import end_tokens
from kat.grpo.spec import GrpoSpec
from kat.grpo.step import GRPOStep
from kat.sampling.arms import ArmInputs, build_arm
from kat.training.tuning import TuningSpec, make_trainable
from latentwire.harness.device import describe_machine
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.optimization import OptimizerSpec, Updater, make_accelerator
from latentwire.harness.paths import CONF
from latentwire.harness.typed_config import typed
from latentwire.lm.models import LanguageModel, load_model
from latentwire.lm.spec import ModelSpec

SETTINGS = {"lengths": "8,48", "dtypes": "float32,bfloat16", "rounds": 3, "trl": True, "model": "smollm2",
            "device": "cpu"}  # fmt: skip
SHARED = ["beta", "temperature", "top_p", "epsilon", "loss_type", "max_completion_length", "num_generations"]
Times = tuple[float, float | None]  # seconds of a step and of its sampling


def words(completions: list[str], **_: object) -> list[float | None]:
    """Return the number of words of each completion."""
    return [float(len(completion.split())) for completion in completions]


def config_of(model: str, length: int) -> DictConfig:
    """Return the config of train.py for completions of `length` tokens."""
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("train", [f"model={model}", f"grpo.max_completion_length={length}", "sampler=uniform",
                                 "grpo.reward_funcs=[benchmarks.grpo:words]"])  # fmt: skip


def loaded(cfg: DictConfig, device: torch.device) -> LanguageModel:
    """Return the model of a config in float32."""
    return load_model(typed(ModelSpec, cfg.model), device, torch.float32)


class OurStep:
    """A step of task=grpo.

    Args:
        cfg: A config of train.py.
        lm: The model, which the steps train.
    """

    def __init__(self, cfg: DictConfig, lm: LanguageModel) -> None:
        self.cfg, self.lm, self.spec = cfg, lm, typed(GrpoSpec, cfg.grpo)
        pairs = [pair for reading in readings([typed(PairsSpec, cfg.pairs.nq_open)]) for pair in reading]
        prompts, _ = unique_prompts([pair for pair in pairs if isinstance(pair, PreferencePair)])
        length = self.spec.max_completion_length
        self.prompts = encode_prompts(prompts, lm.tokenizer, lm.context_length, length, 0.15).train
        self.model, self.parameters = make_trainable(lm.model, typed(TuningSpec, cfg.tuning), 0)
        self.start = {name: p.detach().clone() for name, p in self.parameters.items()}

    def __call__(self, dtype: str) -> Times:
        """Do one step from the first weights, and return its seconds."""
        accelerator, spec, seed = make_accelerator(str(self.lm.device), dtype), self.spec, 0
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(self.start[name])
        tokens, tokenizer = choose_batch_tokens("auto", self.lm.device), self.lm.tokenizer
        policy = Policy(self.model.eval(), self.parameters, spec.temperature, ref_model=spec.beta > 0)
        updater = Updater(self.parameters, typed(OptimizerSpec, self.cfg.optimizer), 1, accelerator)
        rewards = Rewards(spec.reward_funcs, spec.reward_weights, None, tokenizer.eos_token_id, tokens)
        actor = Actor(policy, tokenizer, end_tokens(self.lm.model, tokenizer), rewards, tokens, seed, accelerator,
                      PartialState())  # fmt: skip
        ids = [prompt.id for prompt in self.prompts]
        arm = build_arm("uniform", {}, ArmInputs(ids, seed, {}, [], spec.prompts_per_step, "prompts_per_step", {}, {}))
        outcome = GRPOStep(actor, spec, updater).step(1, ArmPrompts(arm, self.prompts), "step 1")
        return outcome.timings["seconds"], outcome.timings["seconds_sampling"]


class _Clock(TrainerCallback):
    """Measures the steps of a trainer."""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.started


class TrlStep:
    """A step of TRL's GRPOTrainer with the same prompts, settings and trained weights.

    Args:
        ours: The same work here.
    """

    def __init__(self, ours: OurStep) -> None:
        self.ours, self.lm = ours, loaded(ours.cfg, ours.lm.device)
        self.model, _ = make_trainable(self.lm.model, typed(TuningSpec, ours.cfg.tuning), 0)
        self.lm.tokenizer.padding_side = "left"
        self.lm.tokenizer.pad_token = self.lm.tokenizer.pad_token or self.lm.tokenizer.eos_token

    def __call__(self, dtype: str) -> Times:
        """Do one step, and return its seconds; TRL does not report its sampling."""
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        spec, clock = self.ours.spec, _Clock()
        rows = [self.lm.tokenizer.decode(list(p.ids)) for p in self.ours.prompts[: spec.prompts_per_step]]
        with tempfile.TemporaryDirectory() as folder:
            args = GRPOConfig(output_dir=folder, report_to="none", use_cpu=self.lm.device.type == "cpu", max_steps=1,
                              bf16=dtype == "bfloat16", gradient_checkpointing=False, save_strategy="no",
                              per_device_train_batch_size=spec.prompts_per_step * spec.num_generations,
                              disable_tqdm=True, **{name: getattr(spec, name) for name in SHARED})  # fmt: skip
            data = Dataset.from_dict({"prompt": rows})
            trainer = GRPOTrainer(self.model, words, args, train_dataset=data,
                                  processing_class=self.lm.tokenizer, callbacks=[clock])  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return clock.seconds, None


def main(arguments: list[str]) -> None:
    """Run all rounds, and print a table of medians."""
    cfg = OmegaConf.merge(SETTINGS, OmegaConf.from_dotlist(arguments))
    device, table = torch.device(cfg.device), []
    print(f"{describe_machine(device)}, {torch.get_num_threads()} threads", flush=True)
    for length in map(int, str(cfg.lengths).split(",")):
        settings = config_of(cfg.model, length)
        ours = OurStep(settings, loaded(settings, device))
        steps: dict[str, Callable[[str], Times]] = {"ours": ours}
        if cfg.trl and find_spec("trl"):
            steps["TRL"] = TrlStep(ours)
        found: dict[tuple[str, str], list[Times]] = {}
        for number in range(cfg.rounds + 1):
            for dtype in str(cfg.dtypes).split(","):
                for name, step in steps.items():
                    gc.collect()
                    times = step(dtype)
                    print(f"round {number}: {length} tokens, {dtype}, {name}: {_shown(times)}", flush=True)
                    if number:
                        found.setdefault((dtype, name), []).append(times)
        for (dtype, name), each in found.items():
            sampling = [part for _, part in each if part is not None]
            median: Times = statistics.median(step for step, _ in each), statistics.median(sampling or [0]) or None
            table.append(f"| {length} | {dtype} | {name} | {_shown(median)} |")
    print("\n| tokens | dtype | trainer | step, sampling (s) |\n|---|---|---|---|", *table, sep="\n")


def _shown(times: Times) -> str:
    return f"{times[0]:.2f}" + ("" if times[1] is None else f", {times[1]:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
