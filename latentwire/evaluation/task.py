"""The task that evaluates one configuration and stores its result. Main entry: `run()`."""

from __future__ import annotations

import json
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, TypeGuard

from accelerate import PartialState
from omegaconf import DictConfig

from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.metrics import ANSWER_METRICS, Scoring
from latentwire.evaluation.request import Request, read
from latentwire.evaluation.setup import FIRST_BLOCK, EvaluationSetup, prepare, scrambled, without_passages
from latentwire.evaluation.span_checks import SPAN_FINDINGS
from latentwire.harness.device import accelerator_state, describe_machine
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.memory import is_out_of_memory, out_of_memory
from latentwire.harness.origin import made_on
from latentwire.harness.ownership import owned
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import DamagedResultError, ResultStore, ResultWriteError, config_hash, sweep_up
from latentwire.harness.session import Session, job
from latentwire.harness.tracking import Tracker, TrackerSpec, make_tracker
from latentwire.harness.typed_config import plain_values, typed
from latentwire.records import (
    FORMAT,
    EvaluationResult,
    ExampleRow,
    Measured,
    ResultHead,
    read_example_rows,
    result_of,
)
from latentwire.stats.formatting import format_score


@job
def run(cfg: DictConfig, session: Session | None = None) -> EvaluationResult:
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
    if cfg.repeats != 1 and not session.sweeping:
        raise UserError(f"repeats={cfg.repeats}: repeats a sweep; add -m, or choose one draw with draw=NUMBER")
    state = accelerator_state(cfg.device)
    request = read(cfg, state, FIRST_BLOCK if cfg.num_examples is not None else 0)
    store = ResultStore(Path(str(cfg.out)))
    title = _title(cfg.name, session)
    result = _finished(store, cfg, request, state)
    if has_enough(result, cfg.num_examples):
        log(_line(title, result, request.scoring) + "  (finished before)")
    else:
        with owned(store.folder, cfg.name, state):
            result = _finished(store, cfg, request, state)  # another process may have finished it by now
            if not has_enough(result, cfg.num_examples):
                result = _evaluate(cfg, request, state, session, store, result)
        log(_line(title, result, request.scoring))
    tracker_of(cfg, session).log_result(result)
    if not session.sweeping:
        if result["status"] != "ok":
            raise UserError(f"{cfg.name}: {result['error']}")
        log(f"result: {store.path(cfg.name)}")
    return result


@job
def list_one(cfg: DictConfig, session: Session | None = None) -> None:
    """Print the name of the single configuration; the sweeper prints the names of a sweep."""
    if is_main_process():
        print(cfg.name)


class _Status(TypedDict):
    """What became of a configuration."""

    status: Literal["ok", "failed"]
    error: NotRequired[str]
    traceback: NotRequired[str]
    job_sec: NotRequired[float]


def _evaluate(
    cfg: DictConfig,
    request: Request,
    state: PartialState,
    session: Session,
    store: ResultStore,
    before: EvaluationResult | None,
) -> EvaluationResult:
    """Evaluate a configuration, or the examples that its earlier result `before` lacks, and store the result."""
    if state.is_main_process:
        store.require_writable()
    setup = session.keep("evaluation", setup_key(request, state), partial(_set_up, request, state))
    setup = replace(_prompts_of(request, setup), scoring=request.scoring)
    known = [] if before is None else read_example_rows(store.predictions_path(cfg.name))
    title = _title(cfg.name, session)
    status, measured, rows = _attempt(setup, request, state, title, cfg.num_examples, known, store.path(cfg.name))
    if status["status"] == "ok":
        _add_earlier(before, measured)
    # All the time since the previous result: loading, composing the config, and saving and tracking that result.
    status["job_sec"] = round((before["job_sec"] if before else 0.0) + session.lap(count=True), 3)
    status, measured = broadcast_from_main(state, (status, measured))
    result = _result(cfg, request, state, status, measured)
    if state.is_main_process:
        store.save(cfg.name, result, rows)
    state.wait_for_everyone()
    return result


def _result(
    cfg: DictConfig, request: Request, state: PartialState, status: _Status, measured: Measured
) -> EvaluationResult:
    """Return the result of a configuration, as its file has it."""
    head: ResultHead = {
        "format": FORMAT,
        "name": cfg.name,
        "experiment": cfg.experiment,
        "family": request.transform.name,
        "dials": request.transform.dials,
        "source": request.source.name,
        "source_dials": request.source.dials,
        "group": cfg.group,
        "variant": cfg.variant,
        "control": _control(cfg),
        "config_hash": request.key,
        "model": request.model.name,
        "model_id": request.model.package or request.model.repo or request.model.path or request.model.name,
        "data": request.data.name,
    }
    return {
        **head,
        **status,
        **measured,
        "num_examples": cfg.num_examples,
        "seed": request.settings.seed,
        "draw": request.settings.draw,
        "dtype": str(request.dtype).removeprefix("torch."),
        **made_on(state),
        "config": plain_values(cfg),
    }


def _control(cfg: DictConfig) -> str | None:
    """Return which control a configuration is, or None."""
    return None if cfg.control == "none" else str(cfg.control)


def setup_key(request: Request, state: PartialState) -> str:
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


def _prompts_of(request: Request, setup: EvaluationSetup) -> EvaluationSetup:
    """Return the set-up with the prompts of a control, if the configuration is one that needs its own."""
    if request.scrambled:
        return scrambled(setup)
    return setup if request.passage else without_passages(setup)


def tracker_of(cfg: DictConfig, session: Session) -> Tracker:
    """Return the tracker that a config names; all configurations of a sweep share it."""
    spec, folder, group = typed(TrackerSpec, cfg.tracker, "tracker."), Path(str(cfg.out)), str(cfg.sweep.name)
    key = json.dumps([vars(spec), str(folder), group])
    return session.keep("tracker", key, lambda: make_tracker(spec, folder, group))


def _finished(store: ResultStore, cfg: DictConfig, request: Request, state: PartialState) -> EvaluationResult | None:
    """Return the finished result of this configuration, or None; a damaged file counts as failed and is kept.

    A baseline may be a configuration of one sweep and a control of the next, so the config decides which it is.
    """
    result: EvaluationResult | None = None
    if state.is_main_process and not cfg.force:
        sweep_up(store.folder)
        try:
            found = store.finished(cfg.name, request.key)
            if found is not None:
                result = {**result_of(found, store.path(cfg.name)), "control": _control(cfg)}
        except DamagedResultError as error:
            result = _result(cfg, request, state, {"status": "failed", "error": str(error)}, {})
    found_by_main: EvaluationResult | None = broadcast_from_main(state, result)
    return found_by_main


def has_enough(result: EvaluationResult | None, num_examples: int | None) -> TypeGuard[EvaluationResult]:
    """Return whether a result is there and has at least num_examples examples; a failed one is never extended."""
    if result is None:
        return False
    if num_examples is None or result["status"] != "ok":
        return True
    return result["num_examples"] is not None and result["num_examples"] >= num_examples


def _add_earlier(before: EvaluationResult | None, measured: Measured) -> None:
    """Add times and findings of the result that an evaluation extends, if any, and set the examples per second."""
    timing = measured["timing"]
    if before is not None:
        earlier = before["timing"]
        timing["decoded"] += earlier["decoded"]
        timing["reused"] += earlier["reused"]
        timing["decode_sec"] += earlier["decode_sec"]
        timing["positions"] += earlier["positions"]
        measured["time_sec"] = round(before["time_sec"] + measured["time_sec"], 3)
        # Findings about all answers come from the extended result alone.
        kept = [one for one in before["warnings"] if one["kind"] in SPAN_FINDINGS]
        measured["warnings"] = kept + [one for one in measured["warnings"] if one not in kept]
        if "sketch" in before:
            measured["sketch"] = before["sketch"]
    timing["examples_per_sec"] = round(measured["num_samples"] / measured["time_sec"], 3)


def _attempt(
    setup: EvaluationSetup,
    request: Request,
    state: PartialState,
    title: str,
    num_examples: int | None,
    known: list[ExampleRow],
    path: Path,
) -> tuple[_Status, Measured, list[ExampleRow] | None]:
    """Evaluate a configuration; a failure becomes a status with its error and remedy, without measures and rows.

    `path` is the file of the result; the other arguments are as in `evaluate`.
    """
    try:
        measured, rows = evaluate(setup, request.source, request.transform, state, title, num_examples, known)
    except ResultWriteError:
        raise
    except UserError as error:
        return {"status": "failed", "error": str(error)}, {}, None
    except Exception as error:
        reason, remedy = str(error), f"see the traceback in {path}"
        if is_out_of_memory(error):
            reason, remedy = out_of_memory(error), "lower batch_tokens, or choose a smaller model"
        status: _Status = {
            "status": "failed",
            "error": f"{type(error).__name__}: {reason}; {remedy}",
            "traceback": traceback.format_exc(),
        }
        return status, {}, None
    return {"status": "ok"}, measured, rows


def _title(name: str, session: Session) -> str:
    """Return a name with its position among the jobs of a sweep."""
    return name if session.position is None else f"[{session.position[0]}/{session.position[1]}] {name}"


def _line(title: str, result: EvaluationResult, scoring: Scoring) -> str:
    """Return the line that is logged for a result: the primary metric with its interval, then the others."""
    if result["status"] != "ok":
        return f"{title}  FAILED: {result['error']}"
    primary = result["scores"][scoring.primary]
    low, high = (format_score(end) for end in primary["interval"])
    scores = f"{ANSWER_METRICS[scoring.primary].label} {format_score(primary['mean'])} [{low}, {high}]"
    for metric in scoring.metrics:
        if metric.name != scoring.primary:
            scores += f"  {metric.label} {format_score(result['scores'][metric.name]['mean'])}"
    scores += f"  empty {result['empty_rate']:.0%}  n={result['num_samples']}"
    changed = "  changed nothing" if result["identity"] and result["family"] != "baseline" else ""
    return f"{title}  {scores}{changed}{_diagnosis(result)}"


def _diagnosis(result: EvaluationResult) -> str:
    """Return a line with the diagnosis and steps of the automatic repair; "" for other transforms."""
    found = result["fit"]["diagnosis"] if result["fit"] else {}
    distortions, steps = found.get("found"), found.get("chain")
    if not isinstance(distortions, list) or not isinstance(steps, list):
        return ""
    reason = f" ({found['reason']})" if "reason" in found else ""
    return f"\n    found {', '.join(distortions) or 'nothing'}{reason}; steps: {', '.join(steps) or 'nothing'}"
