"""Types of the records of task=latent and of its screening. Main entries: `LatentResult`, `Screening`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from latentwire.records import TrainedRun


class HeldOutScores(TypedDict):
    """Scores of an encoder on the held-out passages."""

    cosine: float  # mean cosine between latents and the token embeddings that they stand for
    mean_pairwise_cosine: float  # of latents of different passages at equal positions
    f1: NotRequired[float]  # of the LM's answers with latents as context, with its 95% interval
    f1_low: NotRequired[float]
    f1_high: NotRequired[float]
    questions: NotRequired[int]


class LatentEvaluation(HeldOutScores):
    """Scores of an encoder after an epoch."""

    epoch: int


class LatentOutcome(TypedDict):
    """What a run of task=latent trained."""

    encoder: str  # its folder
    held_out: LatentEvaluation  # of the best weights; chosen for being the highest, so too high on average
    chosen_from: NotRequired[int]  # number of evaluations among which it is the best; 0.3.0 did not store it
    score: float
    scored_by: str  # "f1" or "cosine"
    history: list[LatentEvaluation]
    stop_epoch: int
    stopped: bool  # whether the run stopped before its last epoch
    steps: NotRequired[int]  # number of steps of the plan, with `minutes`
    counts: dict[str, int]  # passages and questions that were used, and those that were skipped, by reason
    trained_weights: int


class LatentResult(LatentOutcome, TrainedRun):
    """result.json of task=latent."""


class ScreenedRun(TypedDict):
    """A run of a screening: one candidate with one seed, up to the end of a round."""

    name: str
    candidate: str
    seed: int
    stop_epoch: int | None  # None: all epochs
    status: Literal["ok", "failed"]
    error: NotRequired[str]
    score: NotRequired[float]
    scored_by: NotRequired[str]
    encoder: NotRequired[str]


class AgainstBest(TypedDict):
    """A candidate minus the best one, paired by seed."""

    seeds: int  # that both have
    difference: float
    interval: list[float] | None  # 95% over seeds, of this difference alone; None for one seed
    p_value: float | None  # allows for the choice of the best; None for one seed


class CandidateRow(TypedDict):
    """A candidate in the ranking of a round."""

    candidate: str
    scored_by: str
    mean: float  # over seeds
    interval: list[float] | None  # 95% over seeds; None for one seed
    scores: dict[str, float]  # by seed
    encoders: list[str]  # folders
    against_best: AgainstBest | None  # None for the best, and without a common seed


class ScreeningRound(TypedDict):
    """The ranking of a round, and the candidates that go on."""

    stop_epoch: int | None
    ranking: list[CandidateRow]
    cross_fit: float | None  # of candidates chosen on the other seeds; None for one candidate or one seed
    kept: list[str]


class Screening(TypedDict):
    """screen.json."""

    format: int
    sweep: str
    rounds: list[ScreeningRound]
    runs: list[ScreenedRun]
