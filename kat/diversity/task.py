"""The task diversity: two or more checkpoints compared on held-out prompts. Main entry: `diversity()`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from accelerate import PartialState
from omegaconf import DictConfig

from kat.diversity.comparison import Samples, across, compare_arms, each, within
from kat.diversity.files import read_diversity
from kat.diversity.forms import Forms, forms_of
from kat.diversity.metrics import Ratio, completion_metrics, metric_records
from kat.diversity.plan import ComparisonPlan, checkpoint_spec, plan_comparison
from kat.diversity.plots import plot_differences
from kat.diversity.records import ArmComparison, CheckpointRecord, DiversityResult, MetricRecord
from kat.diversity.report import report_markdown, report_summary
from kat.diversity.samples import SampledRow, SampleFile, sample_into
from kat.embedding.registry import EmbedderSpec
from kat.grpo.rollout import end_tokens
from kat.pipeline.artifacts import output_folder, task
from kat.pipeline.embedders import chosen_embedder
from kat.training.model_folder import TrainedModel, beyond_training, comparison_warnings
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.origin import made_on
from latentwire.harness.ownership import owned
from latentwire.harness.progress import Progress, log
from latentwire.harness.results import config_hash, read_json, write_json, write_text_atomically
from latentwire.lm.models import load_model
from latentwire.records import FORMAT


@task
def diversity(cfg: DictConfig) -> DiversityResult | None:
    """Compare the checkpoints, and write samples.jsonl, diversity.json, diversity.md and the plots into a folder.

    Returns:
        The content of diversity.json; None in all processes but the main one.

    Raises:
        UserError: A checkpoint or file is missing, tokenizers differ, or there are too few prompts or completions.
            Or a metric of a plugin does not return finite numbers.
    """
    state = accelerator_state(cfg.device)
    if not state.is_main_process:
        return None
    embedder = chosen_embedder(cfg, state.device)
    embedder.require_texts("completions")
    work = plan_comparison(cfg, state)
    out = output_folder(cfg, Path("outputs", "diversity", "_vs_".join(model.label for model in work.models)))
    with owned(out, "diversity.json", None):
        return _compare(cfg, work, embedder, out, state)


def _compare(
    cfg: DictConfig, work: ComparisonPlan, embedder: EmbedderSpec, out: Path, state: PartialState
) -> DiversityResult:
    """Return the finished comparison, or compare and write all files."""
    report, metrics = out / "diversity.json", metric_records()
    key = _key(work, embedder, metrics)
    before = _finished(report, key) if report.is_file() and not cfg.force else None
    if before is not None:
        log(f"diversity: {out}  (finished before; force=true compares again)")
        _print(before)
        return before
    warnings = [*comparison_warnings(work.models), *beyond_training(work.models, work.spec.max_completion_length)]
    for warning in warnings:
        log(f"warning: {warning}")
    started = time.perf_counter()
    rows = _sampled(work, state, out / "samples.jsonl")
    forms = forms_of(rows, work.tokenizer, embedder.load(), choose_batch_tokens(cfg.batch_tokens, state.device))
    comparisons = _compared(work, forms)
    result: DiversityResult = {
        "format": FORMAT,
        "key": key,
        "checkpoints": [_described(model, forms, i) for i, model in enumerate(work.models)],
        "settings": asdict(work.spec),
        "seed": work.seed,
        "prompts": work.about,
        "embedder": " of ".join([embedder.name, embedder.model_name] if embedder.model_name else [embedder.name]),
        "warnings": warnings,
        "reading": report_summary(comparisons, metrics, warnings, work.spec.num_generations),
        "metrics": metrics,
        "comparisons": comparisons,
        "dtype": str(work.dtype).removeprefix("torch."),
        "seconds": round(time.perf_counter() - started, 3),
        **made_on(state),
    }
    _write(result, out)
    _print(result)
    return result


def _key(work: ComparisonPlan, embedder: EmbedderSpec, metrics: dict[str, MetricRecord]) -> str:
    """Return a hash of everything that the comparison depends on. Metrics of plugins are in it, with their source."""
    labels = [model.label for model in work.models]
    parts = [[work.job(model).key for model in work.models], labels, embedder.identity(), work.groups]
    plugins = {name: metric["source"] for name, metric in metrics.items() if metric["source"] is not None}
    return config_hash([*parts, plugins] if plugins else parts)


def _finished(report: Path, key: str) -> DiversityResult | None:
    """Return the content of diversity.json if it has this key, else None."""
    content = read_json(report)
    return read_diversity(report) if isinstance(content, dict) and content.get("key") == key else None


def _write(result: DiversityResult, out: Path) -> None:
    """Write the plots, the page and diversity.json. The last one exists only if all other files do."""
    others = [checkpoint["label"] for checkpoint in result["checkpoints"][1:]]
    for other in others:
        pair = [each for each in result["comparisons"] if each["second"] == other]
        name = "diversity.png" if len(others) == 1 else f"diversity_{other}.png"
        plot_differences(pair, result["metrics"], out / name)
    write_text_atomically(out / "diversity.md", report_markdown(result))
    write_json(out / "diversity.json", result)
    log(f"diversity: {out / 'diversity.md'}, with diversity.json, samples.jsonl and plots in the same folder")


def _print(result: DiversityResult) -> None:
    for paragraph in result["reading"]:
        print(paragraph)


def _sampled(work: ComparisonPlan, state: PartialState, path: Path) -> list[list[list[SampledRow]]]:
    """Return the completions by model, prompt and number, after sampling the completions that the file lacks."""
    file, count = SampleFile(path), work.spec.num_generations
    for model in work.models:
        job = work.job(model)
        todo, total = job.missing(file), len(job.pieces())
        if len(todo) < total:
            log(f"{model.label}: {total - len(todo)} of {total} pieces are finished from before")
        if not todo:
            continue
        lm = load_model(checkpoint_spec(model), state.device, work.dtype)
        longest = max(map(len, work.encoded))
        if longest + work.sampling.max_new_tokens > lm.context_length:
            raise UserError(
                f"a prompt of {longest} tokens and {work.sampling.max_new_tokens} new tokens are more than the context "
                f"of {model.label}, {lm.context_length}; lower max_completion_length or remove the prompt"
            )
        with Progress(f"sample {model.label}", sum(map(len, todo)) * count) as progress:
            sample_into(file, job, lm.model, work.tokenizer, end_tokens(lm.model, work.tokenizer), progress.advance)
        del lm
    return [work.job(model).rows(file) for model in work.models]


def _compared(work: ComparisonPlan, forms: Forms) -> list[ArmComparison]:
    """Compare every model with the first one, in every group of prompts, with lengths matched and as sampled."""
    vocabulary = len(work.tokenizer)
    comparisons: list[ArmComparison] = []
    within_prompts = {form: [within(samples, vocabulary) for samples in models] for form, models in forms.items()}
    for group, members in work.groups.items():
        for form in ("matched", "raw"):
            values = [
                {
                    **{key: value[members] for key, value in within_prompts[form][i].items()},
                    **across(samples, members, vocabulary),
                    **each(samples, members, form == "matched"),
                }
                for i, samples in enumerate(forms[form])
            ]
            for model, second in zip(work.models[1:], values[1:], strict=True):
                comparisons.append(
                    {
                        "first": work.models[0].label,
                        "second": model.label,
                        "group": group,
                        "form": form,
                        "prompts": len(members),
                        "rows": compare_arms(values[0], second, work.seed),
                    }
                )
    return comparisons


def _described(model: TrainedModel, forms: Forms, number: int) -> CheckpointRecord:
    """Return the name and files of a model, and counts of its completions."""
    raw, matched = forms["raw"][number], forms["matched"][number]
    lengths = [[[len(ids) for ids in prompt] for prompt in samples.ids] for samples in (raw, matched)]
    before, after = np.array(lengths[0]), np.array(lengths[1])
    return {
        "label": model.label,
        "path": str(model.path),
        "weights": model.weights,
        "completions": before.size,
        "empty": int(raw.empty.sum()),
        "ended": int(np.sum(raw.ended)),
        "tokens": int(before.sum()),
        "cut": int((after < before).sum()),
        "tokens_cut": int((before - after).sum()),
        "totals": _totals(raw),
    }


def _totals(samples: Samples) -> dict[str, float]:
    """Return the total count of each metric of completions that counts."""
    prompts = [samples.prompt(row) for row in range(len(samples.ids))]
    found: dict[str, float] = {}
    for name, metric in completion_metrics().items():
        if metric.counts:
            values = [metric.value(prompt) for prompt in prompts]
            found[name] = sum(value.count for value in values if isinstance(value, Ratio))
    return found
