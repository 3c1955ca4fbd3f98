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
from typing import cast

from omegaconf import DictConfig

from latentwire.harness.errors import UserError
from latentwire.harness.grids import Job
from latentwire.harness.optimization import NonFiniteError
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import FORMAT, write_json
from latentwire.harness.session import Session, job
from latentwire.latent_training.records import CandidateRow, LatentResult, ScreenedRun, Screening, ScreeningRound
from latentwire.latent_training.task import latent
from latentwire.stats.intervals import t_quantile

ETA = 3  # a round keeps one in ETA candidates, as in Hyperband (Li et al. 2018)


@job
def run(cfg: DictConfig, session: Session | None = None) -> LatentResult | ScreenedRun:
    """Train one encoder. In a sweep, a run whose loss or gradient is not finite counts as failed; the sweep continues.

    Returns:
        The result of `latent`; in a sweep its place in the screening.

    Raises:
        UserError: See `latent`.
    """
    if session is None or not session.sweeping:
        return cast(LatentResult, latent(cfg))
    name, candidate, seed, stop_epoch = str(cfg.name), str(cfg.candidate), int(cfg.seed), cfg.stop_epoch
    screened: ScreenedRun = {
        "name": name, "candidate": candidate, "seed": seed, "stop_epoch": stop_epoch, "status": "ok"
    }  # fmt: skip
    try:
        trained = cast(LatentResult, latent(cfg))
    except NonFiniteError as error:
        log(f"{cfg.name}  FAILED: {error}")
        return {**screened, "status": "failed", "error": str(error)}
    score = best_score_up_to(trained, stop_epoch)
    return {**screened, "score": score, "scored_by": trained["scored_by"], "encoder": trained["encoder"]}


def direct(
    cfg: DictConfig, jobs: list[Job], compose: Callable[[Sequence[str]], Job], session: Session
) -> Generator[list[Job], list[ScreenedRun], list[ScreenedRun]]:
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


def finish(cfg: DictConfig, results: list[ScreenedRun], session: Session) -> None:
    """Rank the candidates of each round, print the rankings, and write screen.json.

    Raises:
        UserError: All candidates failed.
    """
    rounds: list[ScreeningRound] = []
    for stop_epoch in dict.fromkeys(run["stop_epoch"] for run in results):
        ranking = rank_candidates([run for run in results if run["stop_epoch"] == stop_epoch])
        if ranking:
            rounds.append({"stop_epoch": stop_epoch, "ranking": ranking, "kept": []})
    if not rounds:
        listed = "\n".join(f"  {run['name']}: {run['error']}" for run in results)
        raise UserError(f"all {len(results)} runs failed:\n{listed}")
    for earlier, later in itertools.zip_longest(rounds, rounds[1:]):
        earlier["kept"] = [row["candidate"] for row in (later or earlier)["ranking"]]
    folder = Path(cfg.out).parent
    screen: Screening = {"format": FORMAT, "sweep": str(cfg.sweep.name), "rounds": rounds, "runs": results}
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


def best_score_up_to(trained: LatentResult, stop_epoch: int | None) -> float:
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
    return max(entry["f1"] if trained["scored_by"] == "f1" else entry["cosine"] for entry in entries)


def promoted(candidates: int) -> int:
    """Return the number of candidates that go on to the next round: a third, rounded up, at least one."""
    return max(1, math.ceil(candidates / ETA))


def rank_candidates(runs: Sequence[ScreenedRun]) -> list[CandidateRow]:
    """Return a row for each candidate, the best mean score first.

    A candidate that failed with any seed is left out, because its mean would be over fewer seeds than other means.

    Args:
        runs: Results of `run`, one for each candidate and seed.

    Returns:
        A row for each candidate without a failed run.
    """
    groups: dict[str, list[ScreenedRun]] = defaultdict(list)
    for run in runs:
        groups[run["candidate"]].append(run)
    rows: list[CandidateRow] = []
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
    half = t_quantile(0.95, len(scores) - 1) * stdev(scores) / math.sqrt(len(scores))
    return [max(-1.0, mean(scores) - half), min(1.0, mean(scores) + half)]


def render_ranking(screen: Screening) -> str:
    """Return a screening as text: each round's ranking, failed runs, the best candidate and the next command."""
    lines = [f"Screening {screen['sweep']}"]
    width = max(len(row["candidate"]) for each in screen["rounds"] for row in each["ranking"])
    for number, each in enumerate(screen["rounds"], 1):
        seeds = len(each["ranking"][0]["scores"])
        score_name = {"f1": "F1", "cosine": "cosine"}[each["ranking"][0]["scored_by"]]
        lines += ["", f"Round {number}" + (f", to epoch {each['stop_epoch']}" if each["stop_epoch"] else "")
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


def _overlap(a: CandidateRow, b: CandidateRow) -> bool:
    """Return whether the intervals of a and the lower-ranked b overlap; True if one has no interval."""
    if a["interval"] is None or b["interval"] is None:
        return True
    return a["interval"][0] <= b["interval"][1]
