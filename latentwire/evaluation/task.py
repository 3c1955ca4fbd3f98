"""The task that evaluates one configuration and stores its result. Main entry: `run()`."""

from __future__ import annotations

import json
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from omegaconf import DictConfig

from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.request import Request, plain, read
from latentwire.evaluation.setup import FIRST_BLOCK, Component, EvaluationSetup, prepare, without_passages
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
from latentwire.harness.session import Session
from latentwire.harness.tracking import Tracker, make_tracker
from latentwire.stats.formatting import format_score

NEEDED = {"name", "experiment", "family", "dials", "source", "group", "config", "num_samples", "identity",
          "f1", "f1_interval", "em", "empty_rate"}  # fmt: skip  # fields that a finished result must have


def run(cfg: DictConfig, session: Session | None = None) -> Result:
    """Return the result of one configuration: the finished one, or a new one.

    Within a sweep, a failed configuration is also a result, with its error.

    Args:
        cfg: Config of the configuration.
        session: Session of the sweep; None evaluates this configuration on its own.

    Raises:
        UserError: Model, data, settings or output folder are invalid. Outside a sweep also: the configuration failed.
    """
    session = session or Session()
    if cfg.budget_minutes is not None and not session.sweeping:
        raise UserError(f"budget_minutes={cfg.budget_minutes}: limits a sweep; add -m, or leave it out")
    state = accelerator_state(cfg.device)
    request = read(cfg, state, FIRST_BLOCK if cfg.num_examples is not None else 0)
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
    result = before if before is not None and _has_enough_examples(before, cfg.num_examples) else None
    if result is None:
        if state.is_main_process:
            store.require_writable()
        setup = session.keep("evaluation", _setup_key(request, state), partial(_set_up, request, state))
        if not request.passage:
            setup = without_passages(setup)
        title = _title(cfg.name, session)
        known = read_jsonl(store.predictions_path(cfg.name)) if before is not None else []
        body, predictions = _attempt(setup, source, transform, state, title, cfg.num_examples, known)
        body = broadcast_from_main(state, _add_earlier(before, body, session.lap(count=True)))
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
        log(_line(_title(cfg.name, session), result) + "  (finished before)")
    tracker_of(cfg, session).log_result(result)
    if not session.sweeping:
        if result["status"] != "ok":
            raise UserError(f"{cfg.name}: {result['error']}")
        log(f"result: {store.path(cfg.name)}")
    return result


def list_one(cfg: DictConfig, session: Session | None = None) -> None:
    """Print the name of the single configuration; the sweeper prints the names of a sweep."""
    if is_main_process():
        print(cfg.name)


def _setup_key(request: Request, state: PartialState) -> str:
    """Return everything that decides a set-up, so that equal configurations of a sweep share one."""
    settings = vars(request.settings)
    return config_hash(
        [request.model.identity(), request.data.identity(), settings, str(state.device), request.block_size]
    )


def _set_up(request: Request, state: PartialState) -> EvaluationSetup:
    model, data, settings = request.model, request.data, request.settings
    setup = prepare(model, data, settings, state, request.block_size)
    log(
        f"{model.name} in {str(setup.lm.dtype).removeprefix('torch.')} on {describe_machine(setup.lm.device)}; "
        f"{len(setup.prompts)} examples of {data.name}, {settings.shots} shots ({setup.decoder.prefix.length} tokens)"
    )
    if setup.too_long:
        log(f"warning: {len(setup.too_long)} examples do not fit into the model's context and are left out")
    for reason, count in setup.left_out.items():
        log(f"note: {count} questions of the data are left out: {reason}")
    return setup


def tracker_of(cfg: DictConfig, session: Session) -> Tracker:
    """Return the tracker that a config names; all configurations of a sweep share it."""
    settings = {key: value for key, value in plain(cfg.tracker).items() if key != "name"}
    if cfg.tracker.name != "none":
        settings |= {"folder": Path(cfg.out), "group": str(cfg.sweep.name)}
    key = json.dumps([cfg.tracker.name, settings], default=str)
    return session.keep("tracker", key, lambda: make_tracker(cfg.tracker.name, **settings))


def _finished(store: ResultStore, head: Result, force: bool, state: PartialState) -> Result | None:
    """Return the finished result of this configuration, or None; a damaged file counts as failed and is kept."""
    result: Result | None = None
    if state.is_main_process and not force:
        store.sweep_up()
        try:
            result = store.finished(head["name"], head["config_hash"])
            if result is not None and (lacking := NEEDED - result.keys()):
                raise DamagedResultError(
                    f"{store.path(head['name'])} lacks {', '.join(sorted(lacking))}: restore the file, or delete it to "
                    "run the configuration again"
                )
        except DamagedResultError as error:
            result = {**head, "status": "failed", "error": str(error), "config": {}}
    return broadcast_from_main(state, result)


def _has_enough_examples(result: Result, num_examples: int | None) -> bool:
    """Return whether a result has at least num_examples examples; a failed result is never extended."""
    return num_examples is None or result["status"] != "ok" or int(result["asked"]) >= num_examples


def _add_earlier(before: Result | None, body: Result, job_sec: float) -> Result:
    """Return an extended result with the times and findings of the result that it extends.

    job_sec is all the time since the previous result: loading, composing the config, and saving and tracking that
    result.
    """
    earlier = before or {"time_sec": 0.0, "job_sec": 0.0, "timing": {}, "warnings": []}
    body = {**body, "job_sec": round(earlier["job_sec"] + job_sec, 3)}
    if body["status"] != "ok":
        return body
    seconds = round(earlier["time_sec"] + body["time_sec"], 3)
    added = {key: value for key, value in earlier["timing"].items() if not key.startswith("shots_")}
    timing = {key: value + added.get(key, 0) for key, value in body["timing"].items()}
    # Findings about all answers come from the extended result alone.
    kept = [one for one in earlier["warnings"] if one["kind"] in ("same_output", "dtype_changed")]
    return {
        **body,
        "warnings": kept + [one for one in body["warnings"] if one not in kept],
        "time_sec": seconds,
        "timing": {"examples_per_sec": round(body["num_samples"] / seconds, 3), **timing},
    }


def _attempt(
    setup: EvaluationSetup,
    source: Component,
    transform: Component,
    state: PartialState,
    title: str,
    num_examples: int | None,
    known: list[dict[str, Any]],
) -> tuple[Result, list[dict[str, Any]] | None]:
    """Return the evaluation of a configuration; a failure becomes a result with its error and remedy."""
    try:
        scores, predictions = evaluate(setup, source, transform, state, title, num_examples, known)
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


def _title(name: str, session: Session) -> str:
    """Return a name with its position among the jobs of a sweep."""
    return name if session.position is None else f"[{session.position[0]}/{session.position[1]}] {name}"


def _line(title: str, result: Result) -> str:
    """Return the line that is logged for a result."""
    if result["status"] != "ok":
        return f"{title}  FAILED: {result['error']}"
    low, high = result["f1_interval"]
    scores = f"F1 {format_score(result['f1'])} [{format_score(low)}, {format_score(high)}]"
    scores += f"  EM {format_score(result['em'])}  empty {result['empty_rate']:.0%}  n={result['num_samples']}"
    changed = "  changed nothing" if result["identity"] and result["family"] != "baseline" else ""
    return f"{title}  {scores}{changed}{_diagnosis(result)}"


def _diagnosis(result: Result) -> str:
    """Return a line with the diagnosis and steps of the automatic repair; "" for other transforms."""
    found = (result.get("fit") or {}).get("diagnosis", {})
    if "chain" not in found:
        return ""
    distortions, steps = (", ".join(found[key]) or "nothing" for key in ("found", "chain"))
    reason = f" ({found['reason']})" if "reason" in found else ""
    return f"\n    found {distortions}{reason}; steps: {steps}"
