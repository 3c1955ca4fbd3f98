"""Screening of latent encoders by successive halving: train candidates briefly, rank them, continue the best.

Main entries: `run()` trains one encoder, `direct()` plans the rounds of a sweep and `finish()` ranks the candidates.

With the same seed, candidates that differ only in the transform start from the same weights and see the same passages
in the same order. All rounds share one learning rate schedule. A promoted run therefore has the same steps as a run
without rounds.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import DictConfig

from latentwire.harness.errors import UserError
from latentwire.harness.grids import Job
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import write_json
from latentwire.harness.session import Session
from latentwire.harness.training import NonFiniteError
from latentwire.latent_training.task import latent

ETA = 3  # a round keeps one in ETA candidates, as in Hyperband (Li et al. 2018)
# 97.5% quantiles of Student's t for 1 to 10 degrees of freedom; above that the normal quantile 1.96 is used
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

Run = dict[str, Any]


def run(cfg: DictConfig, session: Session | None = None) -> Run:
    """Train one encoder. In a sweep, a run whose loss or gradient is not finite counts as failed; the sweep continues.

    Returns:
        The result of `latent`; in a sweep also status, name, candidate, seed, until and score.

    Raises:
        UserError: See `latent`.
    """
    if session is None or not session.sweeping:
        return latent(cfg)
    about = {"name": str(cfg.name), "candidate": str(cfg.candidate), "seed": cfg.seed, "until": cfg.stop_epoch}
    try:
        trained = latent(cfg)
    except NonFiniteError as error:
        log(f"{cfg.name}  FAILED: {error}")
        return {"status": "failed", "error": str(error), **about}
    return {"status": "ok", **trained, **about, "score": best_score_up_to(trained, cfg.stop_epoch)}


def direct(
    cfg: DictConfig, jobs: list[Job], compose: Callable[[Sequence[str]], Job], session: Session
) -> Generator[list[Job], list[Run], list[Run]]:
    """Train all candidates, then continue the best third of them, round by round.

    Args:
        cfg: Config of the sweep.
        jobs: One job for each candidate and seed.
        compose: Returns the job with the given overrides.
        session: Session of the sweep.

    Yields:
        The jobs of each round; the generator receives their results.

    Returns:
        The results of all rounds.

    Raises:
        UserError: The epochs of sweep.rounds do not increase.
    """
    rounds = rounds_of(cfg)
    runs = yield jobs
    every = list(runs)
    for stop_epoch in rounds[1:]:
        ranking = rank_candidates(runs)
        if not ranking:
            break  # `finish` reports that all runs failed
        kept = {row["candidate"] for row in ranking[: promoted(len(ranking))]}
        log(f"{len(kept)} of {len(ranking)} candidates go on to epoch {stop_epoch}")
        # force=true applies to the first round only: later rounds continue its runs.
        more = [f"stop_epoch={stop_epoch}", "force=false"]
        jobs = [compose([*job.overrides, *more]) for job in jobs if job.config.candidate in kept]
        runs = yield jobs
        every += runs
    return every


def finish(cfg: DictConfig, results: list[Run], session: Session) -> None:
    """Rank the candidates of each round, print the rankings, and write screen.json.

    Raises:
        UserError: All candidates failed.
    """
    rounds = []
    for stop_epoch in dict.fromkeys(run["until"] for run in results):
        ranking = rank_candidates([run for run in results if run["until"] == stop_epoch])
        if ranking:
            rounds.append({"until": stop_epoch, "ranking": ranking})
    if not rounds:
        listed = "\n".join(f"  {run['name']}: {run['error']}" for run in results)
        raise UserError(f"all {len(results)} runs failed:\n{listed}")
    for earlier, later in itertools.zip_longest(rounds, rounds[1:]):
        earlier["kept"] = [row["candidate"] for row in (later or earlier)["ranking"]]
    folder = Path(cfg.out).parent
    screen = {"sweep": cfg.sweep.name, "rounds": rounds, "runs": [_summary(run) for run in results]}
    if is_main_process():
        write_json(folder / "screen.json", screen)
        print(render_ranking(screen))
        log(f"screening: {folder / 'screen.json'}")


def rounds_of(cfg: DictConfig) -> list[int]:
    """Return the epochs at which the rounds end; an empty list if the sweep has no rounds.

    Raises:
        UserError: The epochs do not increase.
    """
    rounds = [int(epoch) for epoch in cfg.sweep.get("rounds", [])]
    if rounds != sorted(set(rounds)):
        raise UserError(f"sweep.rounds={rounds}: must be epochs, each later than the one before")
    return rounds


def best_score_up_to(trained: Run, stop_epoch: int | None) -> float:
    """Return a run's best score up to an epoch. Later scores do not count: the run may have passed that epoch already.

    Args:
        trained: Result of `latent`.
        stop_epoch: The epoch; None for all epochs.

    Raises:
        UserError: The run went past that epoch without an evaluation there, so it belongs to other rounds.
    """
    entries = [entry for entry in trained["history"] if stop_epoch is None or entry["epoch"] <= stop_epoch]
    if len(entries) < len(trained["history"]) and (not entries or entries[-1]["epoch"] != stop_epoch):
        raise UserError(
            f"stop_epoch={stop_epoch}: {Path(trained['encoder']).parent} was trained further and not evaluated at that "
            "epoch; give the sweep.rounds it was trained with, another out=, or force=true to train it anew"
        )
    return float(max(entry[trained["scored_by"]] for entry in entries))


def promoted(candidates: int) -> int:
    """Return the number of candidates that go on to the next round: a third, rounded up, at least one."""
    return max(1, math.ceil(candidates / ETA))


def rank_candidates(runs: list[Run]) -> list[dict[str, Any]]:
    """Return a row for each candidate, the best mean score first.

    A candidate that failed with any seed is left out, because its mean would be over fewer seeds than other means.

    Args:
        runs: Results of `run`, one for each candidate and seed.

    Returns:
        Rows of candidate, scored_by, mean, interval (95% over seeds; None for one seed), scores by seed and encoders.
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
    """Return Student's 95% interval of a mean over seeds, clipped to [-1, 1]; None for one seed."""
    if len(scores) < 2:
        return None
    quantile = STUDENT[len(scores) - 2] if len(scores) - 2 < len(STUDENT) else 1.96
    half = quantile * stdev(scores) / math.sqrt(len(scores))
    return [max(-1.0, mean(scores) - half), min(1.0, mean(scores) + half)]


def _summary(run: Run) -> Run:
    kept = ("name", "candidate", "seed", "until", "status", "error", "score", "scored_by", "encoder")
    return {key: run[key] for key in kept if key in run}


def render_ranking(screen: dict[str, Any]) -> str:
    """Return a screening as text: each round's ranking, failed runs, the best candidate and the next command."""
    lines = [f"Screening {screen['sweep']}"]
    width = max(len(row["candidate"]) for each in screen["rounds"] for row in each["ranking"])
    for number, each in enumerate(screen["rounds"], 1):
        seeds = len(each["ranking"][0]["scores"])
        score_name = {"f1": "F1", "cosine": "cosine"}[each["ranking"][0]["scored_by"]]
        lines += ["", f"Round {number}" + (f", to epoch {each['until']}" if each["until"] else "")
                  + f": held-out {score_name}, mean over {seeds} seeds, 95% interval over seeds"]  # fmt: skip
        for place, row in enumerate(each["ranking"], 1):
            low, high = row["interval"] or (math.nan, math.nan)
            interval_text = f"[{low:.3f}, {high:.3f}]" if row["interval"] else "one seed: no interval"
            goes = "" if number == len(screen["rounds"]) else ("goes on" if row["candidate"] in each["kept"] else "")
            lines.append(f"{place:>3} {row['candidate']:{width}}  {row['mean']:.3f}  {interval_text}  {goes}".rstrip())
    failed = [run for run in screen["runs"] if run["status"] != "ok"]
    lines += [f"FAILED {run['name']}: {run['error']}" for run in failed]
    last = screen["rounds"][-1]["ranking"]
    best = last[0]
    level = [row["candidate"] for row in last[1:] if _overlap(best, row)]
    also = f"; not distinguishable from it: {', '.join(level)}" if level else ""
    lines += ["", f"Best: {best['candidate']}{also}",
              f"Next: python run.py task=latent_report checkpoint={Path(best['encoders'][0]).parent}"]  # fmt: skip
    return "\n".join(lines)


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Return whether the intervals of a and the lower-ranked b overlap; True if one has no interval."""
    if a["interval"] is None or b["interval"] is None:
        return True
    return bool(a["interval"][0] <= b["interval"][1])
