"""The task latent_report: a trained encoder beside its controls at equal positions, in one table."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf

import latentwire
from latentwire.analysis import three_digits
from latentwire.bench import Bench, Choice, Settings, identity, prepare
from latentwire.data import DataSpec
from latentwire.evaluate import evaluate
from latentwire.harness import app
from latentwire.harness.device import (
    choose_batch_tokens,
    choose_dtype,
    describe_machine,
    from_first,
    place,
    within_memory,
)
from latentwire.harness.errors import UserError
from latentwire.harness.progress import say, speaks
from latentwire.harness.results import Result, ResultStore, config_hash, git_commit, read_jsonl, write_json
from latentwire.latents import about_latents
from latentwire.likelihood import Likelihoods
from latentwire.metrics import compare_paired, percentile_interval
from latentwire.models import ModelSpec

BASELINE = Choice("baseline")
MEASURES = ("nll", "kl")  # of `Likelihood`
TITLES = {"text": "whole text", "latent": "latents", "cut": "text cut to as many tokens",
          "averaged": "averages of neighbouring tokens", "empty": "no passage"}  # fmt: skip


def report(cfg: DictConfig) -> dict[str, Any]:
    """Ask the examples over the latents and over each control, and write report.json.

    Returns:
        What report.json holds.

    Raises:
        UserError: No such encoder, one for another LM, or whatever is wrong with model, data, settings or folder.
    """
    for group, only in (("control", "none"), ("embed_source", "latent"), ("embed_transform", "baseline")):
        chosen = cfg[group] if isinstance(cfg[group], str) else cfg[group].name
        if chosen != only:
            raise UserError(
                f"{group}={chosen}: task=latent_report asks an encoder as it was trained; leave it out, or evaluate it "
                "with run.py embed_source=latent"
            )
    state = place(cfg.device)
    asked = {field.name: cfg[field.name] for field in fields(Settings)}
    asked["batch_tokens"] = choose_batch_tokens(cfg.batch_tokens, state.device)
    settings = app.typed(Settings, asked)
    model, data = app.typed(ModelSpec, cfg.model, "model."), app.typed(DataSpec, cfg.data, "data.")
    about = about_latents(cfg.checkpoint, model.identity())
    dtype = choose_dtype(settings.dtype, state.device)
    store = ResultStore(Path(cfg.out))
    if state.is_main_process:
        store.require_writable()
    bench: Bench | None = None
    likelihoods: Likelihoods | None = None
    results: dict[str, Result] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for source in controls_of(about, cfg.checkpoint):
        produced_by = identity(model, data, settings, dtype, source, BASELINE, passage=True, first=0)
        key = config_hash({**produced_by, "report": latentwire.__version__, "likelihood": True})
        found = None
        if state.is_main_process and not cfg.force:
            found = store.finished(source.name, key)
        found = from_first(state, found)
        if found is None:
            with within_memory(state.device, {"batch_tokens": settings.batch_tokens}):
                bench = bench or prepare(model, data, settings, state)
                likelihoods = likelihoods or Likelihoods(bench, state)
                found = _ask(bench, likelihoods, source, key, store, state)
        state.wait_for_everyone()
        results[source.name], rows[source.name] = found, read_jsonl(store.predictions_path(source.name))
        say(f"{TITLES[source.name]}  F1 {three_digits(found['f1'])}  NLL {found['nll']:.2f}")
    judged = judge(about, results, rows, settings.seed)
    judged |= {
        "checkpoint": str(cfg.checkpoint),
        "sha256": about["sha256"],
        "device": describe_machine(state.device),
        "git_commit": git_commit(app.ROOT),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }
    if speaks():
        write_json(store.folder / "report.json", judged)
        print(render(judged))
        say(f"report: {store.folder / 'report.json'}")
    return judged


def controls_of(about: dict[str, Any], checkpoint: str) -> list[Choice]:
    """Return the sources to compare: the latents, the whole text, and those of no more positions than the latents.

    An encoder that makes a position of each token is held against the whole text and no passage alone: a cut to as many
    tokens would be the whole text.
    """
    dials = about["encoder_dials"]
    chosen = [Choice("text"), Choice("latent", {"checkpoint": checkpoint})]
    if "latent_len" in dials or dials.get("ratio", 1) > 1:
        equal = {"ratio": float(dials.get("ratio", 1)), "positions": dials.get("latent_len")}
        chosen += [Choice("cut", dict(equal)), Choice("averaged", dict(equal))]
    return [*chosen, Choice("empty")]


def _ask(
    bench: Bench, likelihoods: Likelihoods, source: Choice, key: str, store: ResultStore, state: PartialState
) -> Result:
    scores, predictions = evaluate(bench, source, BASELINE, state, TITLES[source.name])
    likely = likelihoods.over(source, TITLES[source.name])
    result = {"name": source.name, "config_hash": key, "status": "ok", "source": source.name,
              "source_dials": source.dials, **scores}  # fmt: skip
    for measure in MEASURES:
        values = np.array([getattr(own, measure) for own in likely])
        result |= {measure: float(values.mean()),
                   f"{measure}_interval": percentile_interval(values, bench.settings.seed)}  # fmt: skip
    predictions = [row | vars(own) for row, own in zip(predictions, likely, strict=True)]
    if state.is_main_process:
        store.save(source.name, result, predictions)
    return result


def judge(
    about: dict[str, Any], results: dict[str, Result], rows: dict[str, list[dict[str, Any]]], seed: int
) -> dict[str, Any]:
    """Compare the latents with each other source, example by example.

    Args:
        about: The encoder's config.json.
        results: Of each source, by its name.
        rows: The predictions of each.
        seed: Of the bootstrap.

    Returns:
        rows of the table, the latents' accounting, share_of_text (the latents' F1 as a share of the text's; None where
        that is 0), and beats: the controls at equal positions whose intervals of F1 lie wholly below the latents', and
        likelier_than: those whose intervals of the answer's NLL lie wholly above.
    """
    f1 = {name: np.array([row["f1"] for row in own]) for name, own in rows.items()}
    others = [name for name in results if name != "latent"]
    comparisons = compare_paired(np.array([f1[name] for name in others]), f1["latent"], seed)
    compared = dict(zip(others, comparisons, strict=True))
    latents = results["latent"]["latents"]
    table = []
    for name, result in results.items():
        spans = result.get("latents") or {"positions": latents["text_positions"]}
        row = {"source": name, "title": TITLES[name], "positions": spans["positions"], "f1": result["f1"],
               "f1_interval": list(result["f1_interval"]), "em": result["em"]}  # fmt: skip
        row |= {key: result[key] for measure in MEASURES for key in (measure, f"{measure}_interval")}
        if name in compared:
            low, high = compared[name].interval
            row |= {"latents_minus_this": 0.0 - compared[name].difference, "interval": [0.0 - high, 0.0 - low],
                    "p_holm": compared[name].p_holm}  # fmt: skip
        table.append(row)
    low, high = results["latent"]["f1_interval"][0], results["latent"]["nll_interval"][1]
    equal = [name for name in ("cut", "averaged", "empty") if name in results]
    return {
        "encoder": about["name"],
        "num_samples": results["latent"]["num_samples"],
        "rows": table,
        "latents": latents,
        "share_of_text": results["latent"]["f1"] / results["text"]["f1"] if results["text"]["f1"] else None,
        "beats": [name for name in equal if results[name]["f1_interval"][1] < low],
        "beats_all": all(results[name]["f1_interval"][1] < low for name in equal),
        "likelier_than": [name for name in equal if results[name]["nll_interval"][0] > high],
    }


def render(judged: dict[str, Any]) -> str:
    """Return the report as text."""
    latents = judged["latents"]
    lines = [
        f"{judged['encoder']}, {judged['num_samples']} examples; the passage alone is encoded, the question stays "
        "tokens",
        "",
        f"{'':34}{'positions':>10}   F1    95% interval   the latents against it",
    ]
    for row in judged["rows"]:
        low, high = (three_digits(end) for end in row["f1_interval"])
        line = f"{row['title']:34}{row['positions']:>10.1f}   {three_digits(row['f1'])}  [{low}, {high}]"
        if "interval" in row:
            least, most = row["interval"]
            line += f"   {row['latents_minus_this']:+.3f} [{least:+.3f}, {most:+.3f}] p={row['p_holm']:.3f}"
        lines.append(line)
    lines += ["", f"{'':34}{'NLL of the right answer':>24}   KL from the LM over the text, nats a token"]
    for row in judged["rows"]:
        nll, kl = (
            f"{row[measure]:.2f} [{row[f'{measure}_interval'][0]:.2f}, {row[f'{measure}_interval'][1]:.2f}]"
            for measure in MEASURES
        )
        lines.append(f"{row['title']:34}{nll:>24}   {'0' if row['source'] == 'text' else kl}")
    share = judged["share_of_text"]
    lines += [
        "",
        f"Bytes a passage: latents {latents['bytes']:.0f} (z in float16), text {latents['text_bytes']:.0f}, compressed "
        f"{latents['text_zlib_bytes']:.0f}"
        + (": positions are saved, not bytes" if latents["bytes"] > latents["text_zlib_bytes"] else ""),
        f"Different passages: mean cosine of their latents {latents['likeness']:.2f}; {latents['distinct_answers']} "
        f"distinct answers, {latents['distinct_references']} distinct references",
        "Share of the whole text's F1: " + ("none, that is 0" if share is None else f"{share:.0%}"),
        "F1 above, intervals apart: " + _named(judged["beats"]),
        "NLL below, intervals apart: " + _named(judged["likelier_than"]),
    ]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in latents["warnings"])])


def _named(sources: list[str]) -> str:
    return ", ".join(TITLES[name] for name in sources) or "none of the controls"
