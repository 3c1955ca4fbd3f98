"""Speed of the sweep against a simple loop and against transformers' batched generate. Main entry: `main()`.

python -m benchmarks.sweep                                  # The shipped set short_qa; takes a few minutes.
python -m benchmarks.sweep data=FILE samples=8              # A SQuAD file.
python -m benchmarks.sweep out=outputs/benchmark.json       # Writes the report as JSON too.

Three implementations answer the same examples with the same model and prompts, in turn in one process:

- obvious: one example at a time in float32 with model.generate(inputs_embeds=...). Each call computes the whole prompt
  again, and the vocabulary's statistics and neighbours.
- generate: transformers' generate on left-padded batches of 8. Each call computes the whole prompts again.
- ours: the code of run.py -m sweep=embed35, in dtype=auto and in float32.

All three run a sample of the configurations (`compared`, with every family), so background load affects them equally.
The time of each for all 35 is extrapolated from the sample by family. Ours also runs the rest, for a measured total.
Utilisation is a share of the peak of matrix products, which is measured between the rounds.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from latentwire.data.examples import DataSpec, choose_examples, load_data
from latentwire.data.prompts import FewShotPrompt, PromptWriter
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.setup import Component, EvaluationSetup, Settings, prepare
from latentwire.harness.device import accelerator_state, describe_machine
from latentwire.harness.grids import expand, factors
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.paths import CONF
from latentwire.harness.precision import choose_dtype
from latentwire.harness.random import generator_for
from latentwire.harness.results import write_json
from latentwire.harness.typed_config import typed
from latentwire.lm.decoding import Decoder
from latentwire.lm.spec import ModelSpec
from latentwire.lm.vocabulary import Vocabulary
from latentwire.records import Measured
from latentwire.sources.registry import build_source
from latentwire.transforms.registry import build_transform

SETTINGS = {
    "samples": 12,  # examples of each configuration
    "compared": 8,  # configurations that all three implementations run
    "sizes": [4, 8, 12],  # samples at which growth is measured; growth with configurations: 4, 8, 12 of one family
    "model": "smollm2",
    "data": "",  # a SQuAD file; empty: short_qa
    "device": "auto",
    "out": "",
}


@dataclass(frozen=True)
class Configuration:
    """A configuration of sweep=embed35."""

    name: str
    transform: Component


def the_35() -> list[Configuration]:
    """Return the 35 configurations of sweep=embed35 in order."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        preset = factors(compose("run", overrides=["sweep=embed35"]).sweep)
        configs = [compose("run", overrides=job) for job in expand(preset, [])]
    return [Configuration(cfg.name, Component(cfg.embed_transform.name, _plain(cfg.embed_transform.dials)))
            for cfg in configs]  # fmt: skip


def data_spec(cfg: DictConfig) -> DataSpec:
    """Return the data set of the benchmark: the SQuAD file `data`, or short_qa."""
    return DataSpec("file", "file", path=cfg.data) if cfg.data else DataSpec("short_qa", "short_qa")


def _plain(node: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def embed(
    setup: EvaluationSetup, vocabulary: Vocabulary, component: Component, prompt: FewShotPrompt, shots: Tensor
) -> Tensor:
    """Return the embeddings of the shots and the prompt, with the source span transformed, (P + T, D)."""
    source = build_source("text", {}, vocabulary, generator_for(0, "text"))
    transform = build_transform(component.name, component.dials, vocabulary)
    embeds = setup.lm.embed(prompt.token_ids).clone()
    span = source(embeds[prompt.source_mask], generator_for(0, "text", prompt.example.id))
    embeds[prompt.source_mask] = transform(span, generator_for(0, component.name, prompt.example.id)).detach()
    return torch.cat([setup.lm.embed(shots), embeds])


def answer(setup: EvaluationSetup, new_ids: Tensor) -> str:
    """Return the answer in generated ids, (T,): the first line of their text."""
    return str(setup.lm.tokenizer.decode(new_ids, skip_special_tokens=True)).split("\n")[0].strip()


@torch.no_grad()
def obvious(
    setup: EvaluationSetup, component: Component, prompts: list[FewShotPrompt], shots: Tensor, codes: Vocabulary
) -> list[str]:
    """Return the answers of the obvious loop. Only the k-means of a codebook is shared between examples."""
    model: Any = setup.lm.model
    answers = []
    for prompt in prompts:
        vocabulary = codes if component.name == "soft_codebook" else Vocabulary(setup.lm.token_embeddings())
        embeds = embed(setup, vocabulary, component, prompt, shots)[None]
        ids = model.generate(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]),
                                      max_new_tokens=setup.decoder.max_new_tokens, do_sample=False)  # fmt: skip
        answers.append(answer(setup, ids[0]))
    return answers


@torch.no_grad()
def batched(
    setup: EvaluationSetup, component: Component, prompts: list[FewShotPrompt], shots: Tensor, size: int = 8
) -> list[str]:
    """Return the answers of transformers' generate on left-padded batches of `size` prompts."""
    model: Any = setup.lm.model
    answers = []
    for start in range(0, len(prompts), size):
        rows = [embed(setup, setup.vocabulary, component, prompt, shots) for prompt in prompts[start : start + size]]
        longest = max(len(row) for row in rows)
        embeds = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
        ids = model.generate(inputs_embeds=embeds, attention_mask=mask.to(embeds.device),
                                      max_new_tokens=setup.decoder.max_new_tokens, do_sample=False)  # fmt: skip
        answers += [answer(setup, row) for row in ids]
    return answers


def matrix_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Return the FLOP/s of the fastest of a few matrix products with shapes similar to the model's."""
    best = 0.0
    for m, k, n in ((2048, 576, 1536), (2048, 2048, 2048)):
        a, b = torch.randn(m, k, dtype=dtype, device=device), torch.randn(k, n, dtype=dtype, device=device)
        for _ in range(4):
            started = time.perf_counter()
            a @ b
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = max(best, 2 * m * k * n / (time.perf_counter() - started))
    return best


def prefill_flops(setup: EvaluationSetup) -> float:
    """Return the number of floating-point operations of the prefill of all prompts, with the prefix cached.

    Layers take 2 per weight and token; the output head takes 2 per weight and prompt. Attention takes 4 per query, key
    and dimension, over the whole prefix and causally inside the prompt.
    """
    config = setup.lm.model.config.get_text_config()
    model: Any = setup.lm.model
    embedding = model.get_input_embeddings().weight.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    layers = total - embedding * (1 if tied else 2)
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    flops = 0.0
    for prompt in setup.prompts:
        length, prefix = len(prompt.token_ids), setup.decoder.prefix.length
        flops += 2 * layers * length + 2 * embedding
        flops += 4 * width * config.num_hidden_layers * length * (prefix + (length + 1) / 2)
    return flops


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the wall-clock seconds of a call and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


class Ours:
    """The implementation of this project: one evaluation setup with `samples` examples."""

    def __init__(self, cfg: DictConfig, samples: int, dtype: str) -> None:
        self.state = accelerator_state(cfg.device)
        device = self.state.device
        model = typed(ModelSpec, OmegaConf.load(CONF / "model" / f"{cfg.model}.yaml").model)
        resolved = choose_dtype(dtype, device)
        name = str(resolved).removeprefix("torch.")
        settings = Settings(samples, 0, 5, 3, 12, choose_batch_tokens("auto", device), name)
        self.setup = prepare(model, data_spec(cfg), settings, self.state)

    def evaluate(self, component: Component) -> tuple[Measured, list[str]]:
        """Return the scores of a transform and its predictions in the order of the prompts."""
        scores, rows = evaluate(self.setup, Component("text"), component, self.state, "")
        return scores, [row["prediction"] for row in rows]

    def prefill(self) -> float:
        """Return the seconds of the prefill of all prompts, measured as decoding one token per prompt."""
        decoder = Decoder(self.setup.lm, self.setup.decoder.prefix, 1)
        batches = [
            [self.setup.lm.embed(self.setup.prompts[i].token_ids) for i in batch] for batch in self.setup.batches
        ]
        return timed(lambda: [decoder.decode(batch) for batch in batches])[0]


def growth(cfg: DictConfig) -> dict[str, Any]:
    """Return time and memory for three numbers of samples and three numbers of configurations."""
    rows: dict[str, Any] = {"samples": [], "configurations": []}
    scales = [Component("rms_matching", {"target_scale": 1 + i / 100}) for i in range(4 * len(cfg.sizes) + 1)]
    for samples in cfg.sizes:
        ours = Ours(cfg, samples, "float32")
        seconds, _ = timed(lambda ours=ours: ours.evaluate(scales[0]))  # type: ignore[misc]
        rows["samples"].append({"samples": samples, "seconds": round(seconds, 2), "memory_gib": memory()})
    for count in (4 * (i + 1) for i in range(len(cfg.sizes))):
        ours = Ours(cfg, cfg.sizes[0], "float32")
        ours.evaluate(scales[-1])
        seconds, _ = timed(lambda ours=ours, count=count: [ours.evaluate(c) for c in scales[:count]])  # type: ignore[misc]
        rows["configurations"].append({"configurations": count, "seconds": round(seconds, 2), "memory_gib": memory()})
    return rows


def memory() -> float:
    """Return the current resident memory of this process in GiB."""
    return round(float(psutil.Process().memory_info().rss) / 2**30, 2)


def peak_memory() -> float:
    """Return the peak resident memory of this process in GiB."""
    import resource

    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit / 2**30, 2)


def extrapolate(seconds: dict[str, float], configurations: list[Configuration], family: dict[str, str]) -> float:
    """Return the seconds of all configurations: each takes the mean of its family, or of the sample without it.

    Args:
        seconds: Measured seconds of each configuration of the sample, by name.
        configurations: All configurations.
        family: Family of each configuration, by name.
    """
    by_family: dict[str, list[float]] = defaultdict(list)
    for name, value in seconds.items():
        by_family[family[name]].append(value)
    overall = statistics.mean(seconds.values())
    return sum(statistics.mean(by_family.get(c.transform.name, [overall])) for c in configurations)


def choose_sample(configurations: list[Configuration], count: int) -> list[Configuration]:
    """Return `count` configurations: one of each family, then evenly spaced ones."""
    firsts = {c.transform.name: c for c in reversed(configurations)}
    chosen = [c for c in configurations if firsts[c.transform.name] is c][:count]
    rest = [c for c in configurations if c not in chosen]
    missing = count - len(chosen)
    return chosen + [rest[i * len(rest) // missing] for i in range(missing)] if missing > 0 else chosen


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its report."""
    cfg = OmegaConf.merge(SETTINGS, OmegaConf.from_dotlist(arguments))
    assert isinstance(cfg, DictConfig)
    configurations = the_35()
    family = {c.name: c.transform.name for c in configurations}
    device = accelerator_state(cfg.device).device
    auto = str(choose_dtype("auto", device)).removeprefix("torch.")
    dtypes = list(dict.fromkeys([auto, "float32"]))
    load, ours = timed(lambda: {dtype: Ours(cfg, cfg.samples, dtype) for dtype in dtypes})
    plain = ours["float32"].setup
    for dials in (c.transform.dials for c in configurations if c.transform.name == "soft_codebook"):
        for each in ours.values():  # k-means is the same for all three, so it is not timed
            each.setup.vocabulary.codes(dials["codebook_size"])
    print(
        f"{cfg.model} on {describe_machine(device)}; dtype=auto is {auto}; {len(plain.prompts)} examples of "
        f"{cfg.data or 'short_qa'}, {plain.decoder.prefix.length} tokens of shots; loading took {load:.0f} s"
    )

    seconds: dict[str, dict[str, float]] = defaultdict(dict)  # implementation -> configuration -> seconds
    scores: dict[str, dict[str, Any]] = defaultdict(dict)
    predictions: dict[str, dict[str, list[str]]] = defaultdict(dict)
    peaks: dict[str, list[float]] = defaultdict(list)
    utilisation: dict[str, list[float]] = defaultdict(list)
    shots = shot_ids(cfg, plain)
    compared = choose_sample(configurations, cfg.compared)
    peak_of_ours = 0.0
    for configuration in [*compared, *(c for c in configurations if c not in compared)]:
        name, component = configuration.name, configuration.transform
        for dtype in dtypes:
            seconds[dtype][name], (scores[dtype][name], predictions[dtype][name]) = timed(
                lambda dtype=dtype, component=component: ours[dtype].evaluate(component)  # type: ignore[misc]
            )
        if configuration not in compared:
            continue
        peak_of_ours = peak_of_ours or peak_memory()
        seconds["generate"][name], predictions["generate"][name] = timed(
            lambda component=component: batched(plain, component, plain.prompts, shots)  # type: ignore[misc]
        )
        seconds["obvious"][name], predictions["obvious"][name] = timed(
            lambda component=component: obvious(plain, component, plain.prompts, shots, plain.vocabulary)  # type: ignore[misc]
        )
        for dtype in dtypes:
            peaks[dtype].append(matrix_peak(getattr(torch, dtype), device))
            took = ours[dtype].prefill()
            peaks[dtype].append(matrix_peak(getattr(torch, dtype), device))
            utilisation[dtype].append(prefill_flops(plain) / took / statistics.mean(peaks[dtype][-2:]))
        print(f"  {name:22} obvious {seconds['obvious'][name]:6.1f} s   generate {seconds['generate'][name]:6.1f} s   "
              + "   ".join(f"ours {dtype} {seconds[dtype][name]:5.1f} s" for dtype in dtypes), flush=True)  # fmt: skip

    examples = len(plain.prompts) * len(configurations)
    measured = {dtype: round(sum(seconds[dtype].values()), 1) for dtype in dtypes}
    total = {path: extrapolate({c.name: seconds[path][c.name] for c in compared}, configurations, family)
             for path in ("obvious", "generate", *dtypes)}  # fmt: skip
    report: dict[str, Any] = {
        "machine": describe_machine(device), "model": cfg.model, "data": cfg.data or "short_qa", "auto": auto,
        "examples": len(plain.prompts), "configurations": len(configurations), "compared": [c.name for c in compared],
        "seconds": {path: round(value, 1) for path, value in total.items()},
        "measured_seconds_of_all": measured,
        "examples_per_second": {path: round(examples / value, 3) for path, value in total.items()},
        "obvious_over_ours": {dtype: round(total["obvious"] / total[dtype], 2) for dtype in dtypes},
        "generate_over_ours": {dtype: round(total["generate"] / total[dtype], 2) for dtype in dtypes},
        "agreement_with_obvious": {
            path: agreement([predictions["obvious"][c.name] for c in compared],
                            [predictions[path][c.name] for c in compared]) for path in ("generate", *dtypes)
        },
        "auto_within_float32_interval": within(scores[auto], scores["float32"]),
        "auto_agreement_with_float32": agreement(list(predictions[auto].values()),
                                                 [predictions["float32"][name] for name in predictions[auto]]),
        "matrix_peak_gflops": {dtype: round(statistics.median(values) / 1e9, 1) for dtype, values in peaks.items()},
        "prefill_utilisation": {
            dtype: {"median": round(statistics.median(values), 3), "least": round(min(values), 3),
                    "most": round(max(values), 3)} for dtype, values in utilisation.items()
        },
        "peak_memory_gib": {"ours": peak_of_ours, "all": peak_memory()},
        "growth": growth(cfg),
    }  # fmt: skip
    print(render(report))
    if cfg.out:
        write_json(Path(cfg.out), report | {"seconds_by_configuration": seconds})


def shot_ids(cfg: DictConfig, setup: EvaluationSetup) -> Tensor:
    """Return the token ids of the shots, (P,)."""
    shots, _ = choose_examples(load_data(data_spec(cfg)), len(setup.prompts), 5, 3, 0)
    return PromptWriter(setup.lm.tokenizer).shots(shots)


def agreement(one: list[list[str]], other: list[list[str]]) -> float:
    """Return the share of equal predictions over all configurations and examples."""
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a, b, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def within(auto: Mapping[str, Measured], exact: Mapping[str, Measured]) -> float:
    """Return the share of configurations whose F1 in dtype=auto is inside the interval of their F1 in float32."""
    inside = [exact[name]["f1_interval"][0] <= auto[name]["f1"] <= exact[name]["f1_interval"][1] for name in auto]
    return sum(inside) / len(inside)


def render(report: dict[str, Any]) -> str:
    """Return the report as text."""
    ours = report["auto"]
    lines = [
        "",
        f"{report['configurations']} configurations x {report['examples']} examples, extrapolated from "
        f"{len(report['compared'])} configurations run in turn; ours measured for all: "
        + ", ".join(f"{dtype} {value:.0f} s" for dtype, value in report["measured_seconds_of_all"].items()),
        *(f"  {path:10} {value:8.1f} s  {report['examples_per_second'][path]:7.2f} examples/s"
          for path, value in report["seconds"].items()),
        f"obvious loop / ours: {report['obvious_over_ours'][ours]:.1f} with dtype=auto ({ours}), "
        f"{report['obvious_over_ours']['float32']:.1f} in float32",
        f"generate / ours: {report['generate_over_ours'][ours]:.1f} with dtype=auto, "
        f"{report['generate_over_ours']['float32']:.1f} in float32",
        "predictions equal to the obvious loop's: "
        + ", ".join(f"{path} {value:.1%}" for path, value in report["agreement_with_obvious"].items()),
        f"dtype=auto against float32: {report['auto_agreement_with_float32']:.1%} equal predictions, F1 within the "
        f"interval in {report['auto_within_float32_interval']:.0%} of the configurations",
    ]  # fmt: skip
    for dtype, use in report["prefill_utilisation"].items():
        lines.append(f"prefill in {dtype}: {use['median']:.0%} of a peak of {report['matrix_peak_gflops'][dtype]:.0f} "
                     f"GFLOP/s (from {use['least']:.0%} to {use['most']:.0%})")  # fmt: skip
    memory = report["peak_memory_gib"]
    lines.append(f"peak memory: ours {memory['ours']:.2f} GiB, with the other two {memory['all']:.2f} GiB")
    for quantity, rows in report["growth"].items():
        lines.append(f"growth with {quantity}: " + ", ".join(
            f"{row[quantity]}: {row['seconds']:.1f} s, {row['memory_gib']:.2f} GiB" for row in rows))  # fmt: skip
        slope = math.log(rows[-1]["seconds"] / rows[0]["seconds"]) / math.log(rows[-1][quantity] / rows[0][quantity])
        lines.append(f"  exponent {slope:.2f} (1: linear)")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
