"""One configuration as a task: its result file, made or found there, and what is said of it."""

from __future__ import annotations

import traceback
from functools import lru_cache
from pathlib import Path
from typing import Any

from accelerate import PartialState
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from latentwire.data.examples import DataSpec
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.request import plain, read
from latentwire.evaluation.setup import FIRST, Component, EvaluationSetup, Settings, prepare, without_passages
from latentwire.harness import program
from latentwire.harness.device import accelerator_state, describe_machine
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.memory import is_out_of_memory, out_of_memory
from latentwire.harness.origin import made_on
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import (
    DamagedResultError,
    Result,
    ResultStore,
    ResultWriteError,
    config_hash,
    read_jsonl,
)
from latentwire.harness.tracking import Tracker, make_tracker
from latentwire.lm.spec import ModelSpec
from latentwire.stats.formatting import format_score

NEEDED = {"name", "experiment", "family", "dials", "source", "group", "config", "num_samples", "identity",
          "f1", "f1_interval", "em", "empty_rate"}  # fmt: skip  # by whatever reads a finished result


def run(cfg: DictConfig) -> Result:
    """Evaluate one configuration, or take its finished result; return the result.

    Raises:
        UserError: Nothing can be evaluated (model, data, settings, output folder), or, outside a sweep, this
            configuration failed. Within a sweep a failed configuration is a result of its own.
    """
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    if cfg.budget_minutes is not None and not sweeping:
        raise UserError(f"budget_minutes={cfg.budget_minutes}: belongs to a sweep; add -m, or leave it out")
    state = accelerator_state(cfg.device)
    request = read(cfg, state, FIRST if cfg.num_examples is not None else 0)
    model, data, settings, source, transform = (
        request.model, request.data, request.settings, request.source, request.transform,
    )  # fmt: skip
    store = ResultStore(Path(cfg.out))
    head: Result = {
        "name": cfg.name,
        "experiment": cfg.experiment,
        "family": transform.name,
        "dials": transform.dials,
        "source": source.name,
        "source_dials": source.dials,
        "group": cfg.group,
        "variant": cfg.variant,
        "control": None if cfg.control == "none" else cfg.control,
        "config_hash": request.key,
        "model": model.name,
        "model_id": model.package or model.repo or model.path or model.name,
        "data": data.name,
    }
    before = _finished(store, head, bool(cfg.force), state)
    result = before if before is not None and _is_enough(before, cfg.num_examples) else None
    if result is None:
        if state.is_main_process:
            store.require_writable()
        bench = _bench(_Recipe(model, data, settings, state, request.first))
        if not request.passage:
            bench = without_passages(bench)
        title = _title(cfg.name)
        known = read_jsonl(store.predictions_path(cfg.name)) if before is not None else []
        body, predictions = _attempt(bench, source, transform, state, title, cfg.num_examples, known)
        body = broadcast_from_main(state, _continued(before, body, program.current.lap(count=True)))
        result = {
            **head,
            **body,
            "asked": cfg.num_examples,
            "seed": settings.seed,
            "dtype": str(request.dtype).removeprefix("torch."),
            **made_on(state),
            "config": plain(cfg),
        }
        if state.is_main_process:
            store.save(cfg.name, result, predictions)
        state.wait_for_everyone()
        log(_line(title, result))
    else:
        log(_line(_title(cfg.name), result) + "  (finished before)")
    tracker_of(cfg).log_result(result)
    if not sweeping:
        if result["status"] != "ok":
            raise UserError(f"{cfg.name}: {result['error']}")
        log(f"result: {store.path(cfg.name)}")
    return result


def list_one(cfg: DictConfig) -> None:
    """Print the name of the single configuration (a sweep's are printed by the sweeper)."""
    if is_main_process():
        print(cfg.name)


class _Recipe:
    """What a bench is made from; equal recipes share one bench."""

    def __init__(self, model: ModelSpec, data: DataSpec, settings: Settings, state: PartialState, first: int) -> None:
        self.parts = (model, data, settings, state, first)
        self.key = config_hash([model.identity(), data.identity(), vars(settings), str(state.device), first])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Recipe) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=1)
def _bench(recipe: _Recipe) -> EvaluationSetup:
    model, data, settings, state, first = recipe.parts
    bench = prepare(model, data, settings, state, first)
    log(
        f"{model.name} in {str(bench.lm.dtype).removeprefix('torch.')} on {describe_machine(bench.lm.device)}; "
        f"{len(bench.prompts)} examples of {data.name}, {settings.shots} shots ({bench.decoder.prefix.length} tokens)"
    )
    if bench.too_long:
        log(f"warning: {len(bench.too_long)} examples do not fit into the model's context and are left out")
    for reason, count in bench.left_out.items():
        log(f"note: {count} questions of the data are left out as {reason}")
    return bench


@lru_cache(maxsize=1)
def _tracker(name: str, folder: str, group: str, project: str, entity: str | None, tags: tuple[str, ...]) -> Tracker:
    if name == "none":
        return make_tracker(name)
    return make_tracker(name, folder=Path(folder), group=group, project=project, entity=entity, tags=list(tags))


def tracker_of(cfg: DictConfig) -> Tracker:
    """Return the tracker that a config asks for, the same one for all of a sweep."""
    node = cfg.tracker
    return _tracker(
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
    return broadcast_from_main(state, result)


def _is_enough(result: Result, asked: int | None) -> bool:
    """Tell whether a result needs no more examples; one that stands for a damaged file is left as it is."""
    return asked is None or result["status"] != "ok" or int(result["asked"]) >= asked


def _continued(before: Result | None, body: Result, job_sec: float) -> Result:
    """Add the time and the findings of a result to those of its extension.

    A job's seconds are all since the result before it: loading, composing its config, saving and tracking that one.
    """
    earlier = before or {"time_sec": 0.0, "job_sec": 0.0, "timing": {}, "warnings": []}
    body = {**body, "job_sec": round(earlier["job_sec"] + job_sec, 3)}
    if body["status"] != "ok":
        return body
    seconds = round(earlier["time_sec"] + body["time_sec"], 3)
    added = {key: value for key, value in earlier["timing"].items() if not key.startswith("shots_")}
    timing = {key: value + added.get(key, 0) for key, value in body["timing"].items()}
    # what is said of all answers is said of those there are now
    kept = [one for one in earlier["warnings"] if one["kind"] in ("same_output", "dtype_changed")]
    return {
        **body,
        "warnings": kept + [one for one in body["warnings"] if one not in kept],
        "time_sec": seconds,
        "timing": {"examples_per_sec": round(body["num_samples"] / seconds, 3), **timing},
    }


def _attempt(
    bench: EvaluationSetup,
    source: Component,
    transform: Component,
    state: PartialState,
    title: str,
    asked: int | None,
    known: list[dict[str, Any]],
) -> tuple[Result, list[dict[str, Any]] | None]:
    """Evaluate; a failure of this one configuration becomes a result with status, error and remedy."""
    try:
        scores, predictions = evaluate(bench, source, transform, state, title, asked, known)
    except ResultWriteError:
        raise
    except UserError as error:
        return {"status": "failed", "error": str(error)}, None
    except Exception as error:
        reason, remedy = str(error), "see the traceback in the result file"
        if is_out_of_memory(error):
            reason, remedy = out_of_memory(error), "lower batch_tokens, or choose a smaller model"
        return {
            "status": "failed",
            "error": f"{type(error).__name__}: {reason}; {remedy}",
            "traceback": traceback.format_exc(),
        }, None
    return {"status": "ok", **scores}, predictions


def _title(name: str) -> str:
    return (
        name
        if program.current.position is None
        else f"[{program.current.position[0]}/{program.current.position[1]}] {name}"
    )


def _line(title: str, result: Result) -> str:
    if result["status"] != "ok":
        return f"{title}  FAILED: {result['error']}"
    low, high = result["f1_interval"]
    scores = f"F1 {format_score(result['f1'])} [{format_score(low)}, {format_score(high)}]"
    scores += f"  EM {format_score(result['em'])}  empty {result['empty_rate']:.0%}  n={result['num_samples']}"
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
