"""Planted faults and what flags them, sound configurations and their warnings, and the time of the checks.

python -m benchmarks.detectors                                # The tiny model; takes minutes.
python -m benchmarks.detectors model=smollm2 parts=[sound,cost]   # The shipped model.

- faults: each fault of tests/faults is planted. It is flagged if a warning or an error appears. The cause is right if
  one of them has the kind and the words that the catalogue names.
- sound: the 35 configurations of sweep=embed35 on six sources, of which none should give a warning. The LM decodes
  nothing here: the checks of answers have simulations of their own, in tests/faults.
- cost: the time of a few configurations and of the set-up, and of the checks in them. Seconds are of the processor, so
  other programs do not count. The share is of the time without the checks.

Main entry: `main()`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import torch
from omegaconf import DictConfig, OmegaConf

from benchmarks.sweep import Configuration, choose_sample, data_spec, the_35
from latentwire.data.examples import load_data
from latentwire.evaluation import detectors, setup
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.inputs import RepairedInputs
from latentwire.evaluation.setup import Component, EvaluationSetup, prepare_with
from latentwire.evaluation.span_checks import SpanChecks
from latentwire.harness.device import describe_machine
from latentwire.harness.paths import CONF
from latentwire.harness.precision import choose_dtype
from latentwire.harness.typed_config import typed
from latentwire.lm.models import load_model
from latentwire.lm.spec import ModelSpec
from tests.faults.catalogue import FAULTS
from tests.faults.planting import Bench, bench, flags

SETTINGS = {
    "parts": ["faults", "sound", "cost"],
    "model": "tiny_random",
    "data": "",  # a SQuAD file; empty: short_qa
    "device": "cpu",
    "dtype": "float32",
    "samples": 8,  # examples of the set-up for faults and sound configurations
    "cost_samples": 100,  # examples of each configuration whose time is measured
    "configurations": 7,  # configurations whose time is measured: one of each family
}


CHECKS: list[tuple[object, str]] = [
    (SpanChecks, "complete"),
    (SpanChecks, "findings"),
    (SpanChecks, "sketch"),
    (detectors, "require_placed"),
    (detectors, "require_marked_text"),
    (setup, "check_decoding"),
]


def six_sources(setup: EvaluationSetup) -> list[Component]:
    """Return the sources of the sound table."""
    rank = min(256, setup.vocabulary.width // 2)
    return [
        Component("text"),
        Component("scaled", {"factor": 117.0}),
        Component("noisy", {"snr_db": 0.0}),
        Component("noisy", {"snr_db": -15.0}),
        Component("shifted", {"offset": 2.0}),
        Component("low_rank", {"rank": rank}),
    ]


def print_faults(on: Bench) -> None:
    """Print what flags each planted fault, and how many are flagged with the right cause."""
    right_ones = flagged_ones = 0
    print(f"\n{'planted fault':44} {'cause':7} flagged by")
    for fault in FAULTS:
        found, right = flags(fault, on)
        flagged_ones += bool(found)
        right_ones += right
        verdict = "right" if right else "wrong" if found else "missed"
        print(f"{fault.name[:44]:44} {verdict:7} {', '.join(dict.fromkeys(one['kind'] for one in found))}", flush=True)
    print(f"{len(FAULTS)} faults: {flagged_ones} flagged, {right_ones} with the right cause")


def print_sound(on: Bench, configurations: list[Configuration]) -> None:
    """Print the number of warnings of sound configurations on each source."""
    total = 0
    print(f"\n{'source':28} configurations  warnings")
    for source in six_sources(on.setup):
        kinds: Counter[str] = Counter()
        for configuration in configurations:
            inputs = RepairedInputs(on.setup, source, configuration.transform)
            checks = SpanChecks(inputs)
            for index, prompt in enumerate(on.setup.prompts):
                checks.observe(index, inputs.embed(prompt)[1])
            found = [*inputs.findings(), *checks.findings()]
            kinds.update(one["kind"] for one in found if one["level"] == "warning")
        total += kinds.total()
        print(f"{source.label:28} {len(configurations):14}  {kinds.total():8}  {dict(kinds) or ''}", flush=True)
    print(f"set-up: {len(on.setup.warnings)} warnings; configurations: {total} warnings")


class Clock:
    """Adds up the seconds of the processor that functions take while they are watched.

    Attributes:
        seconds: Seconds so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def watching(self, function: Callable[..., object]) -> Callable[..., object]:
        """Return the function with its time counted."""

        def watched(*arguments: object) -> object:
            started = time.process_time()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.process_time() - started

        return watched


def share_of_checks(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the processor that some work takes, and how many of them the checks take."""
    clock = Clock()
    with ExitStack() as stack:
        for owner, name in CHECKS:
            stack.enter_context(patch.object(owner, name, clock.watching(getattr(owner, name))))
        started = time.process_time()
        work()
        return time.process_time() - started, clock.seconds


def print_cost(on: Bench, configurations: list[Configuration], cfg: DictConfig) -> None:
    """Print the share of the time that the checks take, for configurations and for a sweep of all 35."""
    on = replace(on, settings=replace(on.settings, samples=cfg.cost_samples, shots=5, max_new_tokens=16))
    prepared: list[EvaluationSetup] = []
    source = Component("noisy", {"snr_db": 0.0})

    def prepare() -> None:
        prepared[:] = [prepare_with(on.lm, on.dataset, on.settings)]

    print(f"\n{'configuration':28} {'all':>8} {'checks':>8}  share")
    total, checks = share_of_checks(prepare)
    print(f"{'set-up':28} {total:6.2f} s {checks:6.2f} s")
    costs = []
    for configuration in choose_sample(configurations, cfg.configurations):
        RepairedInputs(prepared[0], source, configuration.transform)  # builds what is built once, such as codes

        def work(transform: Component = configuration.transform) -> None:
            evaluate(prepared[0], source, transform, on.state, "")

        costs.append(share_of_checks(work))
        whole, part = costs[-1]
        print(f"{configuration.name:28} {whole:6.2f} s {part:6.2f} s  {part / (whole - part):.1%}", flush=True)
    total += len(configurations) * statistics.mean(whole for whole, _ in costs)
    checks += len(configurations) * statistics.mean(part for _, part in costs)
    print(f"a sweep of {len(configurations)}, {len(prepared[0].prompts)} examples: {checks / (total - checks):.1%}")


def main(arguments: list[str]) -> None:
    """Run the parts, and print their tables."""
    cfg = OmegaConf.merge(SETTINGS, OmegaConf.from_dotlist(arguments))
    assert isinstance(cfg, DictConfig)
    device = torch.device(cfg.device)
    spec = typed(ModelSpec, OmegaConf.load(CONF / "model" / f"{cfg.model}.yaml").model)
    lm = load_model(spec, device, choose_dtype(cfg.dtype, device))
    on = bench(lm, load_data(data_spec(cfg)), cfg.samples)
    print(f"{cfg.model} in {cfg.dtype} on {describe_machine(device)}; {len(on.setup.prompts)} examples")
    configurations = the_35()
    if "faults" in cfg.parts:
        print_faults(on)
    if "sound" in cfg.parts:
        print_sound(on, configurations)
    if "cost" in cfg.parts:
        print_cost(on, configurations, cfg)


if __name__ == "__main__":
    main(sys.argv[1:])
