"""Screening of latent encoders by successive halving: train candidates briefly, rank them, continue the best.

Main entries: `run()` trains one encoder, `direct()` plans the rounds of a sweep and `finish()` ranks the candidates.

With the same seed, candidates that differ only in the transform start from the same weights and see the same passages
in the same order. All rounds share one learning rate schedule. A promoted run therefore has the same steps as a run
without rounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig

from latentwire.harness.config_files import repeated_choices
from latentwire.harness.errors import UserError
from latentwire.harness.grids import Job
from latentwire.harness.optimization import NonFiniteError
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import FORMAT, write_json
from latentwire.harness.session import Session, job
from latentwire.latent_training.candidates import cross_fit_mean, not_distinguishable, promoted, rank_candidates
from latentwire.latent_training.records import CandidateRow, LatentResult, ScreenedRun, Screening, ScreeningRound
from latentwire.latent_training.task import latent
from latentwire.stats.formatting import format_p


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
    """Train all candidates, then continue the best third of them, round by round. Equal ones at the cut go on, too.

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
        kept = promoted(ranking)
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
            score = cross_fit_mean(ranking)
            rounds.append({"stop_epoch": stop_epoch, "ranking": ranking, "cross_fit": score, "kept": []})
    if not rounds:
        listed = "\n".join(f"  {run['name']}: {run['error']}" for run in results)
        raise UserError(f"all {len(results)} runs failed:\n{listed}")
    for earlier, later in itertools.zip_longest(rounds, rounds[1:]):
        earlier["kept"] = [row["candidate"] for row in (later or earlier)["ranking"]]
    folder = Path(cfg.out).parent
    screen: Screening = {"format": FORMAT, "sweep": str(cfg.sweep.name), "rounds": rounds, "runs": results}
    if is_main_process():
        write_json(folder / "screen.json", screen)
        print(render_ranking(screen, repeated_choices(cfg)))
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


def render_ranking(screen: Screening, choices: str = "") -> str:
    """Return a screening as text: each round's ranking, failed runs, the best candidate and the next command.

    Args:
        screen: The screening.
        choices: Overrides of the next command that choose its model and plugins, each after a space.
    """
    lines = [f"Screening {screen['sweep']}"]
    for number, each in enumerate(screen["rounds"], 1):
        lines += ["", *_round_lines(each, number, last=number == len(screen["rounds"]))]
    failed = [run for run in screen["runs"] if run["status"] != "ok"]
    lines += [f"FAILED {run['name']}: {run['error']}" for run in failed]
    last = screen["rounds"][-1]["ranking"]
    level = not_distinguishable(last)
    also = f"; not distinguishable from it: {', '.join(level)}" if level else ""
    lines += ["", f"Best: {last[0]['candidate']}{also}"]
    if len(screen["rounds"]) > 1:
        lines.append("Earlier rounds chose by the same seeds: scores of later rounds are too high on average.")
    checkpoint = Path(last[0]["encoders"][0]).parent
    return "\n".join([*lines, f"Next: python run.py task=latent_report checkpoint={checkpoint}{choices}"])


def _round_lines(judged: ScreeningRound, number: int, last: bool) -> list[str]:
    """Return the ranking of a round as lines of text: mean, difference to the best, and the cross-fit score."""
    ranking, best = judged["ranking"], judged["ranking"][0]
    width = max(len(row["candidate"]) for row in ranking)
    score_name = {"f1": "F1", "cosine": "cosine"}[best["scored_by"]]
    until = f", to epoch {judged['stop_epoch']}" if judged["stop_epoch"] else ""
    lines = [f"Round {number}{until}: held-out {score_name}, mean over {len(best['scores'])} seeds, 95% interval over "
             "seeds; difference to the best by seed, p corrected for its choice"]  # fmt: skip
    for place, row in enumerate(ranking, 1):
        own = f"[{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]" if row["interval"] else "one seed: no interval"
        goes = "goes on" if not last and row["candidate"] in judged["kept"] else ""
        texts = (f"{place:>3} {row['candidate']:{width}}  {row['mean']:.3f}  {own}", _difference_text(row), goes)
        lines.append("  ".join(text for text in texts if text))
    if len(ranking) > 1:
        cross_fit = judged["cross_fit"]
        without = "unknown without a second seed" if cross_fit is None else f"{cross_fit:.3f}"
        lines.append(f"Chosen on the other seeds, scored on the left-out one: {without}. "
                     f"The highest of {len(ranking)} means, {best['mean']:.3f}, is too high on average.")  # fmt: skip
    return lines


def _difference_text(row: CandidateRow) -> str:
    """Return a candidate minus the best one as text; empty for the best and without a common seed."""
    found = row["against_best"]
    if found is None:
        return ""
    if found["interval"] is None or found["p_value"] is None:
        return f"{found['difference']:+.3f}"
    low, high = found["interval"]
    return f"{found['difference']:+.3f} [{low:+.3f}, {high:+.3f}] {format_p(found['p_value'])}"
