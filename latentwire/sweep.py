"""The evaluate task: one configuration with its result file, and what happens at the end of a sweep."""

from __future__ import annotations

import traceback
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate import PartialState
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import latentwire
from latentwire.analysis import analyze, ranking_table, render, three_digits
from latentwire.data import DataSpec
from latentwire.evaluate import Bench, Choice, Settings, evaluate, identity, prepare
from latentwire.harness import app
from latentwire.harness.device import choose_batch_tokens, choose_dtype, describe_machine, from_first, place
from latentwire.harness.errors import UserError
from latentwire.harness.progress import say, speaks
from latentwire.harness.results import (
    DamagedResultError,
    Result,
    ResultStore,
    ResultWriteError,
    config_hash,
    git_commit,
    read_json,
    read_jsonl,
)
from latentwire.harness.tracking import Tracker, make_tracker
from latentwire.models import ModelSpec

NEEDED = {"name", "experiment", "family", "dials", "source", "group", "config", "num_samples", "identity",
          "f1", "f1_interval", "em", "empty_rate"}  # fmt: skip  # by whatever reads a finished result
IN_SUMMARY_TOO_LONG = (
    "config",
    "versions",
    "traceback",
    "too_long_ids",
)  # these stay in the result's own file


def run(cfg: DictConfig) -> Result:
    """Evaluate one configuration, or take its finished result; return the result.

    Raises:
        UserError: Nothing can be evaluated (model, data, settings, output folder), or, outside a sweep, this
            configuration failed. Within a sweep a failed configuration is a result of its own.
    """
    state = place(cfg.device)
    asked = {field.name: cfg[field.name] for field in fields(Settings)}
    asked["batch_tokens"] = choose_batch_tokens(cfg.batch_tokens, state.device)
    settings = app.typed(Settings, asked)
    model = app.typed(ModelSpec, cfg.model, "model.")
    data = app.typed(DataSpec, cfg.data, "data.")
    source = Choice(cfg.embed_source.name, _plain(cfg.embed_source.dials))
    transform = Choice(cfg.embed_transform.name, _plain(cfg.embed_transform.dials))
    dtype = choose_dtype(settings.dtype, state.device)
    about = identity(model, data, settings, dtype, source, transform)
    key = config_hash({**about, "version": latentwire.__version__})
    store = ResultStore(Path(cfg.out))
    head: Result = {
        "name": cfg.name,
        "experiment": cfg.experiment,
        "family": transform.name,
        "dials": transform.dials,
        "source": source.name,
        "source_dials": source.dials,
        "group": cfg.group,
        "config_hash": key,
        "model": model.name,
        "model_id": model.package or model.repo or model.path or model.name,
        "data": data.name,
    }
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    result = _finished(store, head, bool(cfg.force), state)
    if result is None:
        if state.is_main_process:
            store.require_writable()
        bench = _bench(_Recipe(model, data, settings, state))
        title = _title(cfg.name)
        body, predictions = _attempt(bench, source, transform, settings.seed, state, title)
        result = {
            **head,
            **body,
            "seed": settings.seed,
            "dtype": str(dtype).removeprefix("torch."),
            "device": describe_machine(state.device),
            "processes": state.num_processes,
            "versions": _versions(),
            "git_commit": git_commit(app.ROOT),
            "config": _plain(cfg),
        }
        if state.is_main_process:
            store.save(cfg.name, result, predictions)
        state.wait_for_everyone()
        say(_line(title, result))
    else:
        say(_line(_title(cfg.name), result) + "  (finished before)")
    _tracker(cfg).log_result(result)
    if not sweeping:
        if result["status"] != "ok":
            raise UserError(f"{cfg.name}: {result['error']}")
        say(f"result: {store.path(cfg.name)}")
    return result


def finish(cfg: DictConfig, results: list[Result]) -> None:
    """Write the summary of a sweep, print its analysis and report it.

    Raises:
        UserError: Some configurations failed; names them.
    """
    folder = Path(cfg.out)
    failed = [result for result in results if result["status"] != "ok"]
    if speaks():
        summary = summarize(cfg.sweep.name, results, folder)
        other = ResultStore(folder).save_summary(summary)
        print(render(summary))
        say(f"summary: {folder / 'summary.json'}")
        if other is not None:
            say(f"note: the summary that was there has other configurations as well; it is kept as {other}")
        columns, rows = ranking_table(summary)
        _tracker(cfg).log_summary(summary, columns, rows)
    if failed:
        listed = "\n".join(f"  {result['name']}: {result['error']}" for result in failed)
        raise UserError(
            f"{len(failed)} of {len(results)} configurations failed; the others are finished and kept:\n{listed}"
        )


def summarize(sweep: str, results: list[Result], folder: Path) -> dict[str, Any]:
    """Return the summary of a sweep with its analysis, from results and the predictions in `folder`."""
    successful = [result for result in results if result["status"] == "ok"]
    ranked = sorted(successful, key=lambda result: (-result["f1"], result["name"]))
    shown = ("name", "experiment", "source", "group", "f1", "f1_interval", "em", "empty_rate")
    store = ResultStore(folder)
    scores = {}
    for result in successful:
        path = store.predictions_path(result["name"])
        rows = read_jsonl(path)
        f1 = np.array([row["f1"] for row in rows])
        if len(rows) != result["num_samples"] or abs(f1.mean() - result["f1"]) > 1e-9:
            raise DamagedResultError(
                f"{path} is not what the summary was made from (n = {len(rows)}, not {result['num_samples']}, or "
                f"another mean F1 than {result['f1']:.3f}): run the sweep again; what is finished is not run twice"
            )
        scores[result["name"]] = ([row["id"] for row in rows], f1)
    return {
        "sweep": sweep,
        "total_experiments": len(results),
        "successful": len(successful),
        "failed": len(results) - len(successful),
        "results": [
            {key: value for key, value in result.items() if key not in IN_SUMMARY_TOO_LONG} for result in results
        ],
        "sorted_by_f1": [{key: result[key] for key in shown} for result in ranked],
        "analysis": analyze(successful, scores),
    }


def analyze_again(cfg: DictConfig) -> dict[str, Any]:
    """Print the analysis of a finished sweep from its summary and the predictions beside it.

    Raises:
        UserError: There is no such summary, or it is damaged, or the predictions are not beside it.
    """
    path = Path(cfg.summary)
    if not path.is_file():
        raise UserError(f"summary={path}: no such file; run the sweep first, or give summary=FOLDER/summary.json")
    summary = read_json(path)
    if not isinstance(summary, dict) or not isinstance(summary.get("results"), list):
        raise UserError(f"summary={path}: is no summary of a sweep; give the summary.json of an output folder")
    try:
        again = summarize(summary["sweep"], summary["results"], path.parent)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: missing, but comparisons are made example by example; keep the predictions beside "
            "their summary, or run the sweep again"
        ) from error
    except (KeyError, TypeError) as error:
        raise UserError(f"summary={path}: a result lacks {error}; restore the file, or run the sweep again") from error
    if speaks():
        print(render(again))
    return again


def list_one(cfg: DictConfig) -> None:
    """Print the name of the single configuration (a sweep's are printed by the sweeper)."""
    if speaks():
        print(cfg.name)


class _Recipe:
    """What a bench is made from; equal recipes share one bench."""

    def __init__(self, model: ModelSpec, data: DataSpec, settings: Settings, state: PartialState) -> None:
        self.parts = (model, data, settings, state)
        self.key = config_hash([model.identity(), data.identity(), vars(settings), str(state.device)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Recipe) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=1)
def _bench(recipe: _Recipe) -> Bench:
    model, data, settings, state = recipe.parts
    bench = prepare(model, data, settings, state)
    say(
        f"{model.name} in {str(bench.lm.dtype).removeprefix('torch.')} on {describe_machine(bench.lm.device)}; "
        f"{len(bench.prompts)} examples of {data.name}, {settings.shots} shots ({bench.decoder.prefix.length} tokens)"
    )
    if bench.too_long:
        say(f"warning: {len(bench.too_long)} examples do not fit into the model's context and are left out")
    for reason, count in bench.left_out.items():
        say(f"note: {count} questions of the data are left out as {reason}")
    return bench


@lru_cache(maxsize=1)
def _tracker_of(name: str, folder: str, group: str, project: str, entity: str | None, tags: tuple[str, ...]) -> Tracker:
    if name == "none":
        return make_tracker(name)
    return make_tracker(name, folder=Path(folder), group=group, project=project, entity=entity, tags=list(tags))


def _tracker(cfg: DictConfig) -> Tracker:
    node = cfg.tracker
    return _tracker_of(
        node.name,
        cfg.out,
        cfg.sweep.name,
        node.get("project", ""),
        node.get("entity"),
        tuple(node.get("tags", ())),
    )


def _finished(store: ResultStore, head: Result, force: bool, state: PartialState) -> Result | None:
    """Return the finished result of this configuration; a damaged file is a failed one, and stays as it is."""
    result: Result | None = None
    if state.is_main_process and not force:
        store.sweep_up()
        try:
            result = store.finished(head["name"], head["config_hash"])
            if result is not None and (lacking := NEEDED - result.keys()):
                raise DamagedResultError(
                    f"{store.path(head['name'])} lacks {', '.join(sorted(lacking))}: restore it, or delete it to run "
                    "that configuration again"
                )
        except DamagedResultError as error:
            result = {**head, "status": "failed", "error": str(error), "config": {}}
    return from_first(state, result)


def _attempt(
    bench: Bench, source: Choice, transform: Choice, seed: int, state: PartialState, title: str
) -> tuple[Result, list[dict[str, Any]] | None]:
    """Evaluate; a failure of this one configuration becomes a result with status, error and remedy."""
    try:
        scores, predictions = evaluate(bench, source, transform, seed, state, title)
    except ResultWriteError:
        raise
    except UserError as error:
        return {"status": "failed", "error": str(error)}, None
    except Exception as error:
        remedy = "see the traceback in the result file"
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error):
            remedy = "lower batch_tokens, or choose a smaller model"
        return {
            "status": "failed",
            "error": f"{type(error).__name__}: {error}; {remedy}",
            "traceback": traceback.format_exc(),
        }, None
    return {"status": "ok", **scores}, predictions


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def _title(name: str) -> str:
    return name if app.position is None else f"[{app.position[0]}/{app.position[1]}] {name}"


def _line(title: str, result: Result) -> str:
    if result["status"] != "ok":
        return f"{title}  FAILED: {result['error']}"
    low, high = result["f1_interval"]
    scores = f"F1 {three_digits(result['f1'])} [{three_digits(low)}, {three_digits(high)}]"
    scores += f"  EM {three_digits(result['em'])}  empty {result['empty_rate']:.0%}  n={result['num_samples']}"
    changed = "  changed nothing" if result["identity"] and result["family"] != "baseline" else ""
    return f"{title}  {scores}{changed}{_diagnosis(result)}"


def _diagnosis(result: Result) -> str:
    """Return what the automatic repair found and did, as a line of its own; nothing for other transforms."""
    found = (result.get("fit") or {}).get("diagnosis", {})
    if "chain" not in found:
        return ""
    distortions, steps = (", ".join(found[key]) or "nothing" for key in ("found", "chain"))
    reason = f" ({found['reason']})" if "reason" in found else ""
    return f"\n    found {distortions}{reason}; steps: {steps}"


def _versions() -> dict[str, str]:
    return {
        "latentwire": latentwire.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }
