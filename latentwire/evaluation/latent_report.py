"""The task latent_report: a trained encoder compared with its controls. Main entry: `report()`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf

import latentwire
from latentwire.data.examples import DataSpec
from latentwire.encoders.checkpoint import about_latents
from latentwire.evaluation import likelihood
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.likelihood import Likelihood, Likelihoods
from latentwire.evaluation.request import read_settings
from latentwire.evaluation.setup import Component, Settings, identity, prepare
from latentwire.harness.device import accelerator_state, choose_dtype
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.memory import within_memory
from latentwire.harness.origin import made_on
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import Result, ResultStore, config_hash, read_jsonl, write_json
from latentwire.harness.session import Session
from latentwire.harness.typed_config import typed
from latentwire.lm.spec import ModelSpec
from latentwire.stats.comparison import Comparison, compare_paired
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import percentile_interval
from latentwire.stats.power import ALPHA

BASELINE = Component("baseline")
MEASURES = tuple(field.name for field in fields(Likelihood))
TITLES = {"text": "whole text", "latent": "latents", "cut": "text cut to as many tokens",
          "averaged": "averages of neighbouring tokens", "empty": "no passage"}  # fmt: skip


def report(cfg: DictConfig, session: Session | None = None) -> dict[str, Any]:
    """Evaluate the latents and each control on the same examples, and write report.json.

    Returns:
        The contents of report.json.

    Raises:
        UserError: The encoder is missing or belongs to another LM, or model, data, settings or folder are invalid.
    """
    for group, default in (("control", "none"), ("embed_source", "latent"), ("embed_transform", "baseline")):
        chosen = cfg[group] if isinstance(cfg[group], str) else cfg[group].name
        if chosen != default:
            raise UserError(
                f"{group}={chosen}: task=latent_report evaluates the encoder without changes; leave {group} out, or "
                "use run.py embed_source=latent"
            )
    state = accelerator_state(cfg.device)
    settings = read_settings(cfg, state)
    model, data = typed(ModelSpec, cfg.model, "model."), typed(DataSpec, cfg.data, "data.")
    about = about_latents(cfg.checkpoint, model.identity())
    dtype = choose_dtype(settings.dtype, state.device)
    store = ResultStore(Path(cfg.out))
    if state.is_main_process:
        store.require_writable()
    evaluations = _Evaluations(model, data, settings, dtype, store, state, cfg.force)
    results: dict[str, Result] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for source in control_configs(about, cfg.checkpoint):
        results[source.name], rows[source.name] = found, _ = evaluations.of(source)
        log(f"{TITLES[source.name]}  F1 {format_score(found['f1'])}  NLL {found['nll']:.2f}")
    comparison = compare_with_controls(about, results, rows, settings.seed)
    comparison |= {
        "checkpoint": str(cfg.checkpoint),
        "sha256": about["sha256"],
        **made_on(state),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }
    if is_main_process():
        write_json(store.folder / "report.json", comparison)
        print(render_report(comparison))
        log(f"report: {store.folder / 'report.json'}")
    return comparison


def control_configs(about: dict[str, Any], checkpoint: str) -> list[Component]:
    """Return the sources to compare: the whole text, the latents, and controls with at most as many positions.

    The controls are the cut text, averages of neighbouring tokens, and no passage. For an encoder with one
    position for each token, only the last is used: the cut text would be the whole text.

    Args:
        about: The encoder's config.json.
        checkpoint: Folder of the encoder.
    """
    dials = about["encoder_dials"]
    chosen = [Component("text"), Component("latent", {"checkpoint": checkpoint})]
    if "latent_len" in dials or dials.get("ratio", 1) > 1:
        equal = {"ratio": float(dials.get("ratio", 1)), "positions": dials.get("latent_len")}
        chosen += [Component("cut", dict(equal)), Component("averaged", dict(equal))]
    return [*chosen, Component("empty")]


@dataclass
class _Evaluations:
    """Evaluates sources by answers and by likelihood; stores each result, and reuses stored ones."""

    model: ModelSpec
    data: DataSpec
    settings: Settings
    dtype: torch.dtype
    store: ResultStore
    state: PartialState
    force: bool

    @cached_property
    def likelihoods(self) -> Likelihoods:
        """Model and examples, loaded when the first result is missing."""
        return Likelihoods(prepare(self.model, self.data, self.settings, self.state), self.state)

    def of(self, source: Component) -> tuple[Result, list[dict[str, Any]]]:
        """Return a source's result and its rows, one for each example."""
        title = TITLES[source.name]
        produced_by = identity(
            self.model, self.data, self.settings, self.dtype, source, BASELINE, passage=True, block_size=0
        ) | {"report": latentwire.__version__}
        answers, answer_rows = self._stored(
            source.name,
            source,
            produced_by,
            lambda: evaluate(self.likelihoods.setup, source, BASELINE, self.state, title),
        )
        likelihoods, likelihood_rows = self._stored(
            f"{source.name}_likelihood",
            source,
            {**produced_by, "likelihood": likelihood.FORMAT},
            lambda: self._mean_likelihoods(source, title),
        )
        rows = [{**one, **other} for one, other in zip(likelihood_rows, answer_rows, strict=True)]
        return {**likelihoods, **answers}, rows

    def _mean_likelihoods(self, source: Component, title: str) -> tuple[Result, list[dict[str, Any]]]:
        """Return the means of the likelihoods with intervals, and a row for each example."""
        found = self.likelihoods.over(source, title)
        scores: Result = {"num_samples": len(found)}
        for measure in MEASURES:
            values = np.array([getattr(own, measure) for own in found])
            interval = percentile_interval(values, self.settings.seed)
            scores |= {measure: float(values.mean()), f"{measure}_interval": interval}
        prompts = self.likelihoods.setup.prompts
        return scores, [{"id": p.example.id, **vars(own)} for p, own in zip(prompts, found, strict=True)]

    def _stored(
        self, name: str, source: Component, produced_by: dict[str, Any], compute: Callable[[], tuple[Result, list[Any]]]
    ) -> tuple[Result, list[dict[str, Any]]]:
        """Return a finished result with its rows, computed and saved if it is missing."""
        key, state = config_hash(produced_by), self.state
        found = self.store.finished(name, key) if state.is_main_process and not self.force else None
        found = broadcast_from_main(state, found)
        if found is None:
            with within_memory(state.device, {"batch_tokens": self.settings.batch_tokens}):
                scores, rows = compute()
            found = {"name": name, "config_hash": key, "status": "ok", "source": source.name,
                     "source_dials": source.dials, **scores}  # fmt: skip
            if state.is_main_process:
                self.store.save(name, found, rows)
        state.wait_for_everyone()
        return found, read_jsonl(self.store.predictions_path(name))


def compare_with_controls(
    about: dict[str, Any], results: dict[str, Result], rows: dict[str, list[dict[str, Any]]], seed: int
) -> dict[str, Any]:
    """Compare the latents with each other source, example by example.

    Args:
        about: The encoder's config.json.
        results: Result of each source, by its name.
        rows: Rows of each source, by its name, in the same order of examples.
        seed: Seed of the bootstrap.

    Returns:
        A dict with these values among others:
        rows: The rows of the table.
        latents: The accounting of the latents.
        share_of_text: F1 of the latents divided by F1 of the text; None if the text has 0.
        beats: Controls with at most as many positions whose F1 interval is below the latents' interval.
        likelier_than: Controls under which the right answers are less likely, at a Holm-corrected 5%.
    """
    others = [name for name in results if name != "latent"]
    by: dict[str, dict[str, Comparison]] = {}  # measure -> source -> comparison of the source with the latents
    for measure in ("f1", "nll"):
        scores = {name: np.array([row[measure] for row in own]) for name, own in rows.items()}
        compared = compare_paired(np.array([scores[name] for name in others]), scores["latent"], seed)
        by[measure] = dict(zip(others, compared, strict=True))
    latents = results["latent"]["latents"]
    table = []
    for name, result in results.items():
        spans = result.get("latents") or {"positions": latents["text_positions"]}
        row = {"source": name, "title": TITLES[name], "positions": spans["positions"], "f1": result["f1"],
               "em": result["em"]}  # fmt: skip
        row |= {f"{measure}_interval": list(result[f"{measure}_interval"]) for measure in ("f1", *MEASURES)}
        row |= {measure: result[measure] for measure in MEASURES}
        if name in others:
            row |= _against(by["f1"][name])
            row["nll_against"] = _against(by["nll"][name])
        table.append(row)
    low = results["latent"]["f1_interval"][0]
    equal = [name for name in ("cut", "averaged", "empty") if name in results]
    return {
        "encoder": about["name"],
        "num_samples": results["latent"]["num_samples"],
        "rows": table,
        "latents": latents,
        "share_of_text": results["latent"]["f1"] / results["text"]["f1"] if results["text"]["f1"] else None,
        "beats": [name for name in equal if results[name]["f1_interval"][1] < low],
        "beats_all": all(results[name]["f1_interval"][1] < low for name in equal),
        "likelier_than": [n for n in equal if by["nll"][n].difference > 0 and by["nll"][n].p_holm < ALPHA],
    }


def _against(compared: Comparison) -> dict[str, Any]:
    """Return latents minus source, from a comparison of the source with the latents."""
    low, high = compared.interval
    return {"latents_minus_this": 0.0 - compared.difference, "interval": [0.0 - high, 0.0 - low],
            "p_holm": compared.p_holm}  # fmt: skip


def render_report(comparison: dict[str, Any]) -> str:
    """Return the report as text.

    Args:
        comparison: Return value of `compare_with_controls`.
    """
    latents = comparison["latents"]
    lines = [
        f"{comparison['encoder']}, {comparison['num_samples']} examples; only the passage is encoded, the question "
        "stays text",
        "",
        f"{'':34}{'positions':>10}   F1    95% interval   latents minus this row",
    ]
    for row in comparison["rows"]:
        low, high = (format_score(end) for end in row["f1_interval"])
        line = f"{row['title']:34}{row['positions']:>10.1f}   {format_score(row['f1'])}  [{low}, {high}]"
        lines.append(line + (f"   {_difference(row)}" if "interval" in row else ""))
    lines += ["", f"{'nats a token of the right answer':34}{'KL to the text':>20}{'NLL':>20}   latents minus this row"]
    for row in comparison["rows"]:
        nll, kl = (
            f"{row[measure]:.2f} [{row[f'{measure}_interval'][0]:.2f}, {row[f'{measure}_interval'][1]:.2f}]"
            for measure in MEASURES
        )
        line = f"{row['title']:34}{'0' if row['source'] == 'text' else kl:>20}{nll:>20}"
        lines.append(line + (f"   {_difference(row['nll_against'])}" if "nll_against" in row else ""))
    share = comparison["share_of_text"]
    lines += [
        "",
        f"Bytes a passage: latents {latents['bytes']:.0f} (z in float16), text {latents['text_bytes']:.0f}, compressed "
        f"{latents['text_zlib_bytes']:.0f}"
        + (": the latents save positions, not bytes" if latents["bytes"] > latents["text_zlib_bytes"] else ""),
        f"Different passages: mean cosine of their latents {latents['mean_pairwise_cosine']:.2f}; "
        f"{latents['distinct_answers']} distinct answers, {latents['distinct_references']} distinct references",
        "Share of the whole text's F1: " + ("undefined, the text has F1 0" if share is None else f"{share:.0%}"),
        "F1 is higher, without overlap of the intervals, than with: " + _named(comparison["beats"]),
        "Right answers are likelier, p < .05, than with: " + _named(comparison["likelier_than"]),
    ]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in latents["warnings"])])


def _difference(against: dict[str, Any]) -> str:
    low, high = against["interval"]
    return f"{against['latents_minus_this']:+.3f} [{low:+.3f}, {high:+.3f}] p={against['p_holm']:.3f}"


def _named(sources: list[str]) -> str:
    return ", ".join(TITLES[name] for name in sources) or "none of the controls"
