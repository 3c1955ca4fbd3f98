"""The task latent in a sweep: candidates trained briefly, ranked over seeds, the best trained on by successive halving.

Every candidate starts from the same weights and sees the same passages in the same order, seed by seed; what differs is
the transform alone. A round trains to an epoch of one and the same schedule, so a promoted run goes on from where it
stopped, and is step for step the run it would have been.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from latentwire.harness.errors import UserError
from latentwire.harness.grids import Job
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import write_json
from latentwire.harness.training import NonFiniteError
from latentwire.latent_training.task import latent

ETA = 3  # a round keeps one in so many, as in Hyperband (Li et al. 2018)
# 97.5% quantiles of Student's t by degrees of freedom; beyond, that of the normal distribution is near enough
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

Run = dict[str, Any]


def run(cfg: DictConfig) -> Run:
    """Train one encoder. In a sweep a run whose numbers explode is a failed candidate, and the others go on.

    Raises:
        UserError: As `train_latent.latent`.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return latent(cfg)
    about = {"name": str(cfg.name), "candidate": str(cfg.candidate), "seed": cfg.seed, "until": cfg.stop_epoch}
    try:
        trained = latent(cfg)
    except NonFiniteError as error:
        log(f"{cfg.name}  FAILED: {error}")
        return {"status": "failed", "error": str(error), **about}
    return {"status": "ok", **trained, **about, "score": score_until(trained, cfg.stop_epoch)}


def direct(
    cfg: DictConfig, jobs: list[Job], compose: Callable[[Sequence[str]], Job]
) -> Generator[list[Job], list[Run], list[Run]]:
    """Train all candidates, then the best third of them on, round by round; return the runs of all rounds.

    Raises:
        UserError: The rounds are no rising epochs, or all candidates failed.
    """
    rounds = rounds_of(cfg)
    runs = yield jobs
    every = list(runs)
    for until in rounds[1:]:
        ranking = rank(runs)
        if not ranking:
            break  # finish says so
        kept = {row["candidate"] for row in ranking[: promoted(len(ranking))]}
        log(f"{len(kept)} of {len(ranking)} candidates go on to epoch {until}")
        # What force=true asks for was done in the first round; from here on a run goes on.
        more = [f"stop_epoch={until}", "force=false"]
        jobs = [compose([*job.overrides, *more]) for job in jobs if job.config.candidate in kept]
        runs = yield jobs
        every += runs
    return every


def finish(cfg: DictConfig, results: list[Run]) -> None:
    """Rank the candidates of each round, print that, and write screen.json.

    Raises:
        UserError: All candidates failed.
    """
    judged = []
    for until in dict.fromkeys(run["until"] for run in results):
        runs = [run for run in results if run["until"] == until]
        ranking = rank(runs)
        if ranking:
            judged.append({"until": until, "ranking": ranking})
    if not judged:
        listed = "\n".join(f"  {run['name']}: {run['error']}" for run in results)
        raise UserError(f"all {len(results)} runs failed:\n{listed}")
    for earlier, later in itertools.zip_longest(judged, judged[1:]):
        earlier["kept"] = [row["candidate"] for row in (later or earlier)["ranking"]]
    folder = Path(cfg.out).parent
    screen = {"sweep": cfg.sweep.name, "rounds": judged, "runs": [_short(run) for run in results]}
    if is_main_process():
        write_json(folder / "screen.json", screen)
        print(render_ranking(screen))
        log(f"screening: {folder / 'screen.json'}")


def rounds_of(cfg: DictConfig) -> list[int]:
    """Return the epochs at which a round ends; none without a preset that has rounds.

    Raises:
        UserError: They do not rise.
    """
    rounds = [int(epoch) for epoch in cfg.sweep.get("rounds", [])]
    if rounds != sorted(set(rounds)):
        raise UserError(f"sweep.rounds={rounds}: are epochs, each later than the one before")
    return rounds


def score_until(trained: Run, until: int | None) -> float:
    """Return a run's best score up to an epoch, whatever it reached after it: a later round may be done already.

    Args:
        trained: Result of `latent`.
        until: The epoch; None for all of them.

    Raises:
        UserError: The run went past that epoch without being judged there: it is of other rounds.
    """
    judged = [entry for entry in trained["history"] if until is None or entry["epoch"] <= until]
    if len(judged) < len(trained["history"]) and (not judged or judged[-1]["epoch"] != until):
        raise UserError(
            f"stop_epoch={until}: {Path(trained['encoder']).parent} was trained further and not judged at that epoch; give "
            "the sweep.rounds it was trained with, another out=, or force=true to train it anew"
        )
    return float(max(entry[trained["scored_by"]] for entry in judged))


def promoted(candidates: int) -> int:
    """Return how many of so many candidates go on to the next round: a third, at least one."""
    return max(1, math.ceil(candidates / ETA))


def rank(runs: list[Run]) -> list[dict[str, Any]]:
    """Return a row for each candidate, the best mean score first.

    A candidate that failed with any seed is out: the mean of the others would be of another set of seeds.

    Args:
        runs: Results of `latent`, one for each candidate and seed.

    Returns:
        candidate, mean, interval (95%, over seeds; None with a single one), scores by seed, encoders.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run["candidate"]].append(run)
    rows = []
    for candidate, members in groups.items():
        if any(run["status"] != "ok" for run in members):
            continue
        scores = [float(run["score"]) for run in members]
        rows.append(
            {
                "candidate": candidate,
                "scored_by": members[0]["scored_by"],
                "mean": mean(scores),
                "interval": interval(scores),
                "scores": {str(run["seed"]): float(run["score"]) for run in members},
                "encoders": [run["encoder"] for run in members],
            }
        )
    return sorted(rows, key=lambda row: (-row["mean"], row["candidate"]))


def interval(scores: list[float]) -> list[float] | None:
    """Return Student's 95% interval of a mean over seeds, within [-1, 1] as the scores; None for a single one."""
    if len(scores) < 2:
        return None
    quantile = STUDENT[len(scores) - 2] if len(scores) - 2 < len(STUDENT) else 1.96
    half = quantile * stdev(scores) / math.sqrt(len(scores))
    return [max(-1.0, mean(scores) - half), min(1.0, mean(scores) + half)]


def _short(run: Run) -> Run:
    kept = ("name", "candidate", "seed", "until", "status", "error", "score", "scored_by", "encoder")
    return {key: run[key] for key in kept if key in run}


def render_ranking(screen: dict[str, Any]) -> str:
    """Return a screening as text: each round's ranking, then what it says."""
    lines = [f"Screening {screen['sweep']}"]
    width = max(len(row["candidate"]) for judged in screen["rounds"] for row in judged["ranking"])
    for number, judged in enumerate(screen["rounds"], 1):
        seeds = len(judged["ranking"][0]["scores"])
        what = {"f1": "F1", "cosine": "cosine"}[judged["ranking"][0]["scored_by"]]
        lines += ["", f"Round {number}" + (f", to epoch {judged['until']}" if judged["until"] else "")
                  + f": held-out {what}, mean over {seeds} seeds, 95% interval over seeds"]  # fmt: skip
        for place, row in enumerate(judged["ranking"], 1):
            low, high = row["interval"] or (math.nan, math.nan)
            spread = f"[{low:.3f}, {high:.3f}]" if row["interval"] else "one seed: no interval"
            goes = "" if number == len(screen["rounds"]) else ("goes on" if row["candidate"] in judged["kept"] else "")
            lines.append(f"{place:>3} {row['candidate']:{width}}  {row['mean']:.3f}  {spread}  {goes}".rstrip())
    failed = [run for run in screen["runs"] if run["status"] != "ok"]
    lines += [f"FAILED {run['name']}: {run['error']}" for run in failed]
    last = screen["rounds"][-1]["ranking"]
    best = last[0]
    level = [row["candidate"] for row in last[1:] if _overlap(best, row)]
    lines += ["", f"Best: {best['candidate']}" + (f"; not told apart from it: {', '.join(level)}" if level else ""),
              f"Next: python run.py task=latent_report checkpoint={Path(best['encoders'][0]).parent}"]  # fmt: skip
    return "\n".join(lines)


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Tell whether intervals overlap; without any, nothing is told apart."""
    if a["interval"] is None or b["interval"] is None:
        return True
    return bool(a["interval"][0] <= b["interval"][1])
