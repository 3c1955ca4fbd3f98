"""Scores of one answer, each in [0, 1], by name. Main entries: `ANSWER_METRICS`, `register_metric()`, `Scoring`.

Exact match and F1 are as in the official SQuAD v1.1 script.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from latentwire.harness.errors import UserError
from latentwire.harness.registry import Registry
from latentwire.records import MetricScore, ShownMetric
from latentwire.stats.answers import exact_match as exact_match
from latentwire.stats.answers import f1_score as f1_score
from latentwire.stats.answers import normalize_answer as normalize_answer
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.intervals import mean_interval

ALWAYS = ("f1", "em")  # metrics that every result has
MODEL = "model"  # what a metric needs if it needs a forward pass of the model
F = TypeVar("F", bound=Callable[..., float])


@dataclass(frozen=True)
class AnswerMetric:
    """A score of one answer.

    Attributes:
        name: Name in the settings `metrics` and `primary_metric`.
        label: Name for readers.
        higher_is_better: Whether a higher score is a better answer.
        needs: What the function gets apart from the prediction and the references. "model" gives it `answer_logps`.
        binary: Whether each score is 0 or 1.
        define: The function.
    """

    name: str
    label: str
    higher_is_better: bool
    needs: tuple[str, ...]
    binary: bool
    define: Callable[..., float]

    def score(
        self, prediction: str, references: Sequence[str], identifier: str, answer_logps: Sequence[float] | None = None
    ) -> float:
        """Return the score of an answer.

        Args:
            prediction: The answer.
            references: Right answers.
            identifier: Id of the example, for error messages.
            answer_logps: Log-probabilities of the tokens of the first right answer, for a metric that needs the model.

        Raises:
            UserError: The function raises an exception, or its value is not a number in [0, 1].
        """
        needed = {"answer_logps": answer_logps} if MODEL in self.needs else {}
        definition = f"{self.define.__module__}.{self.define.__qualname__}"
        try:
            value = self.define(prediction, references, **needed)
        except Exception as error:  # the function may be the user's, so any error in it is the user's to fix
            raise UserError(
                f"metrics={self.name}: raises {type(error).__name__} for example {identifier} ({error}); "
                f"fix {definition}"
            ) from error
        allowed = "0 or 1" if self.binary else "a number between 0 and 1"
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (number in (0, 1) if self.binary else 0 <= number <= 1):
            raise UserError(
                f"metrics={self.name}: gives {value!r} for example {identifier}, expected {allowed}; fix {definition}"
            )
        return number

    def summarize(self, scores: Sequence[float], passages: Sequence[str] | None = None) -> MetricScore:
        """Return the mean of the scores with its 95% interval.

        Args:
            scores: Score of each example, (N,).
            passages: Passage of each example, the unit of the interval; None: each example has its own.
        """
        clusters = None if passages is None else SampledClusters(passages)
        return {"mean": float(sum(scores)) / len(scores), "interval": mean_interval(scores, clusters)}

    def shown(self) -> ShownMetric:
        """Return how the analysis shows the metric: oriented so that a higher score is better."""
        label = self.label if self.higher_is_better else f"1 - {self.label}"
        return {"name": self.name, "label": label, "higher_is_better": self.higher_is_better}


ANSWER_METRICS: Registry[AnswerMetric] = Registry("metric", "metrics")


def register_metric(
    name: str, *, label: str, higher_is_better: bool = True, needs: Sequence[str] = (), binary: bool = False
) -> Callable[[F], F]:
    """Return a decorator that registers `function(prediction, references) -> float` as an answer metric.

    Args:
        name: Name in the settings `metrics` and `primary_metric`.
        label: Name for readers.
        higher_is_better: Whether a higher score is a better answer.
        needs: ("model",) for a metric that reads probabilities of the model. The function then also gets
            `answer_logps`: the log-probability of each token of the first right answer after the repaired inputs.
        binary: Whether each score is 0 or 1.

    Raises:
        UserError: Another metric has this name, or `needs` has an unknown entry.
    """
    if unknown := sorted(set(needs) - {MODEL}):
        raise UserError(f"metric {name}: needs={unknown[0]!r} is unknown; a metric can need {MODEL!r}, or nothing")

    def register(function: F) -> F:
        ANSWER_METRICS.add(name, AnswerMetric(name, label, higher_is_better, tuple(needs), binary, function))
        return function

    return register


def shown_metric(name: str) -> ShownMetric:
    """Return how the analysis shows the metric that the setting `primary_metric` names.

    Raises:
        UserError: The name is unknown.
    """
    if name not in ANSWER_METRICS:
        raise UserError(f"primary_metric={name}: unknown; use one of {', '.join(ANSWER_METRICS)}")
    return ANSWER_METRICS[name].shown()


@dataclass(frozen=True)
class Scoring:
    """The answer metrics that an evaluation computes.

    Attributes:
        names: Names of the metrics: f1 and em, then further ones in alphabetical order.
        primary: Name of the metric that progress and analysis show.
    """

    names: tuple[str, ...] = ALWAYS
    primary: str = "f1"

    @classmethod
    def of(cls, names: Iterable[str], primary: str) -> Scoring:
        """Return f1 and em with further metrics, among them the primary one.

        Raises:
            UserError: A name is unknown.
        """
        shown_metric(primary)
        further = sorted({*names, primary} - set(ALWAYS))
        return cls((*ALWAYS, *(ANSWER_METRICS[name].name for name in further)), primary)

    @property
    def metrics(self) -> list[AnswerMetric]:
        """The metrics, in the order of their names."""
        return [ANSWER_METRICS[name] for name in self.names]

    @property
    def needs_model(self) -> bool:
        """Whether any metric needs a forward pass of the model."""
        return any(MODEL in metric.needs for metric in self.metrics)


register_metric("f1", label="F1")(f1_score)
register_metric("em", label="EM", binary=True)(exact_match)


@register_metric("likelihood", label="Likelihood", needs=("model",))
def answer_likelihood(prediction: str, references: Sequence[str], answer_logps: Sequence[float]) -> float:
    """Return the geometric mean of the probabilities of the first right answer's tokens, in [0, 1].

    Args:
        prediction: Not used: the model reads the right answer in its place.
        references: Right answers; `answer_logps` belong to the first one.
        answer_logps: Log-probability of each token, at most 0.
    """
    return math.exp(math.fsum(answer_logps) / len(answer_logps))
