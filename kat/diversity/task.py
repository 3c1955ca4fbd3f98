"""The task diversity: two or more checkpoints compared on held-out prompts. Main entry: `diversity()`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from kat.data.chat import encode_prompt
from kat.data.heldout import held_out
from kat.data.prompts import Prompt, read_prompts
from kat.data.tables import read_weights
from kat.diversity.bleu import Tokens
from kat.diversity.comparison import (
    MIN_GROUP,
    Samples,
    across,
    common_lengths,
    compare_arms,
    cut,
    each,
    groups_by_density,
    within,
)
from kat.diversity.metrics import em_dashes, not_just_but
from kat.diversity.plots import plot_differences
from kat.diversity.report import report_markdown, report_summary
from kat.diversity.samples import Row, SampleFile, missing, pieces, sample_into
from kat.embedding.pooling import Embedder, embed_texts
from kat.embedding.registry import EmbedderSpec, load_embedder
from kat.grpo.rollout import Sampling, end_tokens
from kat.pipeline.artifacts import locate, output_folder, task
from kat.training.lineage import require_unseen
from kat.training.model_folder import TrainedModel, beyond_training, comparison_warnings, find_models
from latentwire.harness.device import accelerator_state, choose_dtype
from latentwire.harness.errors import UserError
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.origin import made_on
from latentwire.harness.progress import Progress, log
from latentwire.harness.random import generator_for
from latentwire.harness.results import config_hash, read_json, write_json, write_text_atomically
from latentwire.harness.typed_config import typed
from latentwire.lm.models import load_model, load_tokenizer
from latentwire.lm.spec import ModelSpec

BATCH_TOKENS_ON_CPU = 4096


@dataclass
class DiversitySpec:
    """The settings of the samples and of the groups of rare and common prompts."""

    prompts: int
    num_generations: int
    max_completion_length: int
    temperature: float
    top_p: float
    rare_share: float
    common_share: float

    def check(self) -> None:
        """Check the numbers of completions and prompts.

        Raises:
            UserError: A number is too small for a comparison.
        """
        if self.num_generations < 2:
            raise UserError(f"num_generations={self.num_generations}: the diversity of a prompt's completions needs at "
                            "least 2 of them; the default is 8")  # fmt: skip
        if self.prompts < MIN_GROUP:
            raise UserError(f"prompts={self.prompts}: must be at least {MIN_GROUP}; useful intervals need dozens")


@dataclass
class _Work:
    """The work of the task, known before any model is loaded."""

    spec: DiversitySpec
    sampling: Sampling
    models: list[TrainedModel]
    tokenizer: PreTrainedTokenizerBase
    prompts: list[Prompt]  # M prompts
    encoded: list[list[int]]  # their token ids
    about: dict[str, Any]  # numbers and thresholds of the prompts
    groups: dict[str, list[int]]
    seed: int
    dtype: torch.dtype

    def key(self, model: TrainedModel) -> str:
        """Return a hash of everything that the completions of a model depend on."""
        settings = {**asdict(self.sampling), "seed": self.seed, "dtype": str(self.dtype)}
        return config_hash([model.identity, settings, [prompt.id for prompt in self.prompts], self.encoded])


@task
def diversity(cfg: DictConfig) -> dict[str, Any] | None:
    """Compare the checkpoints, and write samples.jsonl, diversity.json, diversity.md and the plots into a folder.

    Returns:
        The content of diversity.json; None in all processes but the main one.

    Raises:
        UserError: A checkpoint or file is missing, tokenizers differ, or there are too few prompts or completions.
    """
    state = accelerator_state(cfg.device)
    if not state.is_main_process:
        return None
    embedding = typed(EmbedderSpec, cfg.embedder, "embedder.")
    embedding.check()
    if embedding.name == "file":
        raise UserError("embedder=file: a file cannot embed completions; use embedder=hidden or embedder=sentence")
    work = _work(cfg, state)
    base = typed(ModelSpec, cfg.model, "model.")
    about = embedding.identity(base, work.dtype)
    out = output_folder(cfg, Path("outputs", "diversity", "_vs_".join(model.label for model in work.models)))
    report = out / "diversity.json"
    key = config_hash(
        [[work.key(model) for model in work.models], [model.label for model in work.models], about, work.groups]
    )
    before = read_json(report) if report.is_file() and not cfg.force else None
    if isinstance(before, dict) and before.get("key") == key:
        log(f"diversity: {out}  (finished before; force=true compares again)")
        _print(before)
        return before
    warnings = [*comparison_warnings(work.models), *beyond_training(work.models, work.spec.max_completion_length)]
    for warning in warnings:
        log(f"warning: {warning}")
    started = time.perf_counter()
    rows = _sampled(work, state, out / "samples.jsonl")
    embedder = load_embedder(embedding, base, state.device, work.dtype)
    batch_tokens = choose_batch_tokens(cfg.batch_tokens, state.device)
    forms = _forms(work, rows, embedder, batch_tokens)
    comparisons = _compared(work, forms)
    result = {
        "key": key,
        "checkpoints": [_described(model, forms, i) for i, model in enumerate(work.models)],
        "settings": asdict(work.spec),
        "seed": work.seed,
        "prompts": {**work.about, **{name: len(group) for name, group in work.groups.items() if name != "all"}},
        "embedder": " of ".join([embedding.name, base.name] if "model" in about else [embedding.name]),
        "warnings": warnings,
        "reading": report_summary(comparisons, warnings, work.spec.num_generations),
        "comparisons": comparisons,
        "dtype": str(work.dtype).removeprefix("torch."),
        "seconds": round(time.perf_counter() - started, 3),
        **made_on(state),
    }
    others = [model.label for model in work.models[1:]]
    for other in others:
        pair = [each for each in comparisons if each["second"] == other]
        plot_differences(pair, out / ("diversity.png" if len(others) == 1 else f"diversity_{other}.png"))
    write_text_atomically(out / "diversity.md", report_markdown(result))
    write_json(report, result)  # written last, so it exists only if all other files do
    log(f"diversity: {out / 'diversity.md'}, with diversity.json, samples.jsonl and plots in the same folder")
    _print(result)
    return result


def _print(result: dict[str, Any]) -> None:
    for paragraph in result["reading"]:
        print(paragraph)


def _work(cfg: DictConfig, state: PartialState) -> _Work:
    spec = typed(DiversitySpec, {f.name: cfg[f.name] for f in fields(DiversitySpec)})
    spec.check()
    sampling = Sampling(
        num_generations=spec.num_generations,
        max_new_tokens=spec.max_completion_length,
        temperature=spec.temperature,
        top_p=spec.top_p,
        batch_tokens=choose_batch_tokens(cfg.batch_tokens, state.device, BATCH_TOKENS_ON_CPU),
    )
    sampling.check(prefix="")
    paths = {"a": cfg.a, "b": cfg.b, **{f"others[{i}]": path for i, path in enumerate(cfg.others)}}
    models = find_models({setting: str(path or "") for setting, path in paths.items()})
    prompts, about = _prompts(cfg, models, spec.prompts)
    ids = [prompt.id for prompt in prompts]
    for setting, model in zip(paths, models, strict=True):
        require_unseen(f"{setting}={paths[setting]}", model.folder, ids)
    groups = {"all": list(range(len(ids)))}
    if cfg.weights_file:
        known, density, _ = read_weights(locate(cfg, "weights_file"))
        by_density, thresholds = groups_by_density(ids, known, density, spec.rare_share, spec.common_share)
        about |= thresholds
        for name, group in by_density.items():
            if len(group) < MIN_GROUP:
                log(f"note: {len(group)} of the {len(ids)} prompts are {name}, too few to compare; raise prompts or "
                    f"{name}_share")  # fmt: skip
            else:
                groups[name] = group
    tokenizer = _common_tokenizer(models)
    encoded = [encode_prompt(tokenizer, prompt.prompt) for prompt in prompts]
    return _Work(spec, sampling, models, tokenizer, prompts, encoded, about, groups, cfg.seed,
                 choose_dtype(cfg.dtype, state.device))  # fmt: skip


def _prompts(cfg: DictConfig, models: Sequence[TrainedModel], count: int) -> tuple[list[Prompt], dict[str, Any]]:
    """Return the prompts to sample, drawn by the seed from the prompts that no run trained on, and their numbers."""
    shares = {model.label: model.held_out for model in models if model.held_out is not None}
    share = cfg.held_out if cfg.held_out is not None else min(shares.values(), default=None)
    if share is None:
        raise UserError("held_out: none of the checkpoints records which prompts its training held out; write "
                        "held_out=SHARE, such as held_out=0.1")  # fmt: skip
    if not isinstance(share, int | float) or isinstance(share, bool):
        raise UserError(f"held_out={share}: must be a share of the prompts, from 0 to below 1")
    if smaller := next((label for label, run_share in shares.items() if run_share < share), None):
        raise UserError(
            f"held_out={share}: {smaller} was trained with held_out={shares[smaller]}, so it saw some of these "
            "prompts; omit held_out to use the smallest share of the runs"
        )
    path = locate(cfg, "prompts_file")
    all_prompts = read_prompts(path)
    kept = sorted((prompt for prompt in all_prompts if held_out(prompt.id, share)), key=lambda prompt: prompt.id)
    if len(kept) < count:
        raise UserError(f"prompts={count}: held_out={share} leaves {len(kept)} of the {len(all_prompts)} prompts of "
                        f"{path}; set a smaller number")  # fmt: skip
    order = torch.randperm(len(kept), generator=generator_for(cfg.seed, "diversity", "prompts")).tolist()
    chosen = [kept[row] for row in sorted(order[:count])]
    return chosen, {"all": len(all_prompts), "share": share, "held_out": len(kept), "sampled": count}


def _common_tokenizer(models: Sequence[TrainedModel]) -> PreTrainedTokenizerBase:
    """Return the common tokenizer of the models.

    Raises:
        UserError: Tokenizers or chat templates differ, so prompts and numbers of tokens would differ too.
    """
    tokenizers = [load_tokenizer(_spec(model)) for model in models]
    first = tokenizers[0]
    for model, tokenizer in zip(models[1:], tokenizers[1:], strict=True):
        same = tokenizer.get_vocab() == first.get_vocab() and tokenizer.eos_token_id == first.eos_token_id
        if not same or tokenizer.chat_template != first.chat_template:
            difference = "chat templates" if same else "tokenizers"
            raise UserError(f"{models[0].label} and {model.label} have different {difference}, so their completions "
                            "cannot be compared token by token; give checkpoints of one base model")  # fmt: skip
    return first


def _spec(model: TrainedModel) -> ModelSpec:
    return ModelSpec(name=model.label, origin="path", path=str(model.folder))


def _sampled(work: _Work, state: PartialState, path: Path) -> list[list[list[Row]]]:
    """Return the completions by model, prompt and number, after sampling the completions that the file lacks."""
    file, count = SampleFile(path), work.spec.num_generations
    ids = [prompt.id for prompt in work.prompts]
    for model in work.models:
        key = work.key(model)
        todo = missing(file, key, ids, work.encoded, count)
        all_pieces = pieces(work.encoded)
        if len(todo) < len(all_pieces):
            log(f"{model.label}: {len(all_pieces) - len(todo)} of {len(all_pieces)} pieces are finished from before")
        if not todo:
            continue
        lm = load_model(_spec(model), state.device, work.dtype)
        longest = max(map(len, work.encoded))
        if longest + work.sampling.max_new_tokens > lm.context_length:
            raise UserError(
                f"a prompt of {longest} tokens and {work.sampling.max_new_tokens} new tokens are more than the context "
                f"of {model.label}, {lm.context_length}; lower max_completion_length or remove the prompt"
            )
        with Progress(f"sample {model.label}", sum(len(all_pieces[number]) for number in todo) * count) as progress:
            sample_into(
                file, key, model.label, lm.model, work.tokenizer, ids, work.encoded, work.sampling, seed=work.seed,
                ends=end_tokens(lm.model, work.tokenizer), advance=progress.advance,
            )  # fmt: skip
        del lm
    found = []
    for model in work.models:
        rows = file.read(work.key(model))
        found.append([[rows[name, g] for g in range(count)] for name in ids])
    return found


def _forms(
    work: _Work, rows: Sequence[Sequence[Sequence[Row]]], embedder: Embedder, batch_tokens: int
) -> dict[str, list[Samples]]:
    """Return the embedded completions of every model, as sampled (raw) and with lengths matched."""
    ids: list[list[list[Tokens]]] = [[[tuple(row["ids"]) for row in prompt] for prompt in model] for model in rows]
    lengths = common_lengths(ids)
    texts: dict[str, list[list[list[str]]]] = {
        "raw": [[[row["text"] for row in prompt] for prompt in model] for model in rows],
        "matched": [
            [
                [row["text"] if len(row["ids"]) == n else _text(work.tokenizer, row["ids"][:n])
                 for row, n in zip(prompt, prompt_lengths, strict=True)]
                for prompt, prompt_lengths in zip(model, lengths, strict=True)
            ]
            for model in rows
        ],
    }  # fmt: skip
    distinct = dict.fromkeys(text for form in texts.values() for model in form for prompt in model for text in prompt)
    row_of = {text: number for number, text in enumerate(text for text in distinct if text.strip())}
    emb = embed_texts(embedder, list(row_of), batch_tokens).numpy() if row_of else np.zeros((1, 1), dtype=np.float32)
    forms: dict[str, list[Samples]] = {}
    for form, models in texts.items():
        forms[form] = []
        for own, model, strings in zip(ids, rows, models, strict=True):
            index = np.array([[row_of.get(text, -1) for text in prompt] for prompt in strings])  # (M, K)
            kept = [[len(row["entropy"]) if form == "raw" else n for row, n in zip(prompt, prompt_lengths, strict=True)]
                    for prompt, prompt_lengths in zip(model, lengths, strict=True)]  # fmt: skip
            forms[form].append(
                Samples(
                    ids=own if form == "raw" else cut(own, lengths),
                    strings=strings,
                    emb=emb[index].astype(np.float64),
                    empty=index < 0,
                    entropy=[[row["entropy"][:n] for row, n in zip(prompt, numbers, strict=True)]
                             for prompt, numbers in zip(model, kept, strict=True)],
                    ended=[[row["ended"] for row in prompt] for prompt in model],
                )
            )  # fmt: skip
    return forms


def _text(tokenizer: PreTrainedTokenizerBase, ids: Tokens) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _compared(work: _Work, forms: dict[str, list[Samples]]) -> list[dict[str, Any]]:
    """Compare every model with the first one, in every group of prompts, with lengths matched and as sampled."""
    vocabulary = len(work.tokenizer)
    comparisons = []
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
                about = {"first": work.models[0].label, "second": model.label, "group": group, "form": form}
                rows = compare_arms(values[0], second, work.seed)
                comparisons.append({**about, "prompts": len(members), "rows": rows})
    return comparisons


def _described(model: TrainedModel, forms: dict[str, list[Samples]], number: int) -> dict[str, Any]:
    """Return the name and files of a model, and counts of its completions."""
    raw, matched = forms["raw"][number], forms["matched"][number]
    lengths = [[[len(ids) for ids in prompt] for prompt in samples.ids] for samples in (raw, matched)]
    before, after = np.array(lengths[0]), np.array(lengths[1])
    texts = [text for prompt in raw.strings for text in prompt]
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
        "em_dashes": sum(map(em_dashes, texts)),
        "not_just_but": sum(map(not_just_but, texts)),
    }
