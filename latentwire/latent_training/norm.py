"""The task latent_norm: encoders of several lengths, each evaluated with its latents rescaled.

Main entries: `run()` trains one encoder, `direct()` checks the settings first, and `finish()` measures and compares.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from latentwire.analysis.latent_norm import (
    MEASURES,
    KindScores,
    LayerRow,
    NearnessRow,
    NormAnalysis,
    judge_norm,
    layer_rows,
    nearness_rows,
    norm_curve,
)
from latentwire.data.examples import DataSpec
from latentwire.encoders.checkpoint import about_latents
from latentwire.evaluation.norm_measurements import AnswerScores, NormMeasurements, PassageResiduals
from latentwire.evaluation.request import Request
from latentwire.evaluation.setup import Component, Settings
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.grids import Job
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.origin import made_on
from latentwire.harness.ownership import owned
from latentwire.harness.precision import choose_dtype
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import FORMAT, JsonObject, ResultStore, write_json
from latentwire.harness.session import Session, job
from latentwire.harness.typed_config import plain_values, typed
from latentwire.latent_training import screening
from latentwire.latent_training.records import LatentResult, ScreenedRun
from latentwire.lm.spec import ModelSpec
from latentwire.records import MadeOn
from latentwire.reports.latent_norm import render_norm, write_norm_report
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import Scores, mean_interval
from latentwire.transforms.registry import TRANSFORMS

TOKENS = "tokens"  # the kind of the real tokens


@dataclass
class NormSettings:
    """How sweep=latent_norm evaluates the trained encoders."""

    factors: list[float]
    samples: int
    seed: int

    def check(self) -> None:
        """Raise UserError if the factors are not positive, ascending numbers with 1 among them."""
        ascending = all(a < b for a, b in zip(self.factors, self.factors[1:], strict=False))
        if not ascending or 1.0 not in self.factors or not 1e-10 <= min(self.factors) <= max(self.factors) <= 1e10:
            raise UserError(
                f"norm.factors={self.factors}: must be ascending numbers between 1e-10 and 1e10, with 1 among them"
            )


class NormResult(NormAnalysis, MadeOn):
    """latent_norm.json."""

    format: int
    sweep: str
    runs: list[ScreenedRun]
    config: JsonObject


@job
def run(cfg: DictConfig, session: Session | None = None) -> LatentResult | ScreenedRun:
    """Train one encoder of the sweep; see `latentwire.latent_training.screening.run`.

    Raises:
        UserError: The command is not a sweep, or as in `latent`.
    """
    if session is not None and not session.sweeping:
        raise UserError("task=latent_norm: compares many encoders; begin with python train.py -m sweep=latent_norm")
    return screening.run(cfg, session)


def direct(
    cfg: DictConfig, jobs: list[Job], compose: Callable[[Sequence[str]], Job], session: Session
) -> Generator[list[Job], list[ScreenedRun], list[ScreenedRun]]:
    """Train all encoders, after a check of the settings of their evaluation.

    Args:
        cfg: Config of the sweep.
        jobs: One job for each kind and seed.
        compose: Returns the job with the given overrides; not used.
        session: Session of the sweep.

    Yields:
        All jobs; the generator receives their results.

    Returns:
        The results.

    Raises:
        UserError: A setting of the evaluation is invalid.
    """
    settings_of(cfg)
    return (yield jobs)


def finish(cfg: DictConfig, results: list[ScreenedRun], session: Session) -> None:
    """Evaluate the encoders and the tokens at each factor, and write latent_norm.json and the report.

    Raises:
        UserError: Runs failed. The others are compared first; kinds with a failed run are left out.
    """
    failed = [each for each in results if each["status"] != "ok"]
    kinds = kinds_of(results)
    if kinds:
        folder = Path(str(cfg.out)).expanduser().parent
        with owned(folder, "latent_norm.json", accelerator_state(cfg.device)):  # measurements of another are reused
            _compare(cfg, kinds, results, folder)
    if failed:
        listed = "\n".join(f"  {each['name']}: {each['error']}" for each in failed)
        raise UserError(f"{len(failed)} of {len(results)} runs failed:\n{listed}")


def _compare(cfg: DictConfig, kinds: Mapping[str, list[ScreenedRun]], results: list[ScreenedRun], folder: Path) -> None:
    """Measure tokens and kinds of latents, and write what the measurements show."""
    settings = settings_of(cfg)
    state = accelerator_state(cfg.device)
    store = ResultStore(folder / "measurements")
    if state.is_main_process:
        store.require_writable()
    measurements = NormMeasurements(request_of(cfg, settings), store, state, bool(cfg.force))
    found: NormResult = {
        "format": FORMAT, "sweep": str(cfg.sweep.name), "runs": results,
        **NormComparison(measurements, settings).of(kinds), **made_on(state),
        "config": plain_values(OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])),
    }  # fmt: skip
    if is_main_process():
        write_json(folder / "latent_norm.json", found)
        page = write_norm_report(folder, found)
        print(render_norm(found))
        log(f"report: {page}")


def settings_of(cfg: DictConfig) -> NormSettings:
    """Return the settings of the evaluation.

    Raises:
        UserError: One is invalid.
    """
    settings = typed(NormSettings, cfg.norm, "norm.")
    settings.check()
    return settings


def request_of(cfg: DictConfig, settings: NormSettings) -> Request:
    """Return the evaluation as run.py would do it with the same settings, without a transform."""
    state = accelerator_state(cfg.device)
    return Request(
        model=typed(ModelSpec, cfg.model, "model."),
        data=typed(DataSpec, cfg.data, "data."),
        settings=Settings(
            settings.samples, settings.seed, cfg.shots, cfg.questions_per_shot, cfg.max_new_tokens,
            choose_batch_tokens(cfg.batch_tokens, state.device), cfg.dtype,
        ),
        dtype=choose_dtype(cfg.dtype, state.device),
        source=Component("text"),
        transform=Component("baseline"),
    )  # fmt: skip


def kinds_of(results: Sequence[ScreenedRun]) -> dict[str, list[ScreenedRun]]:
    """Return the runs of each kind, by seed, for the seeds that all kinds have; kinds with a failed run are left out.

    A kind is named by its transform, or `free` for a free scale without a transform. If two kinds have the same name,
    all are named by their candidates.

    Raises:
        UserError: The kinds have no common seed.
    """
    groups: dict[str, list[ScreenedRun]] = defaultdict(list)
    for each in results:
        groups[each["candidate"]].append(each)
    groups = {name: runs for name, runs in groups.items() if all(one["status"] == "ok" for one in runs)}
    if not groups:
        return {}
    seeds = sorted(set.intersection(*({one["seed"] for one in runs} for runs in groups.values())))
    if not seeds:
        raise UserError(f"only: the kinds {', '.join(groups)} have no common seed; choose runs with the same seeds")
    titles = {name: _title(runs[0]["encoder"]) for name, runs in groups.items()}
    if len(set(titles.values())) < len(titles):
        titles = {name: name for name in groups}
    return {
        titles[name]: [next(one for one in runs if one["seed"] == seed) for seed in seeds]
        for name, runs in groups.items()
    }


def _title(encoder: str) -> str:
    """Return the name of a kind of latents."""
    about = about_latents(encoder)
    label = TRANSFORMS[about["transform"]].label.format(**about["transform_dials"])
    if about.get("adapter_scale", "norm") == "norm":
        return label
    return "free" if about["transform"] == "baseline" else f"free, {label}"


@dataclass(frozen=True)
class NormComparison:
    """Measures tokens and kinds of latents at each factor, and compares them."""

    measurements: NormMeasurements
    settings: NormSettings

    def of(self, kinds: Mapping[str, list[ScreenedRun]]) -> NormAnalysis:
        """Return what the sweep shows.

        Args:
            kinds: Runs of each kind of latents, with the same seeds.
        """
        factors, seed = self.settings.factors, self.settings.seed
        one = factors.index(1.0)
        empty = self._answers("empty", Component("empty"))
        scaled = [(f"{TOKENS}_x{factor:g}", Component("scaled_passage", {"factor": factor})) for factor in factors]
        tokens = np.array([[self._answers(*each).f1 for each in scaled]])  # (1, F, N)
        layers: list[LayerRow] = []
        for factor, each in zip(factors, scaled, strict=True):
            layers += _layers(TOKENS, factor, [self.measurements.residuals(*each)])
        unit = next(row["rms"] for row in layers if row["factor"] == 1 and row["layer"] == 0)
        compared, near = [KindScores(TOKENS, tokens, 1.0)], list[NearnessRow]()
        for kind, runs in kinds.items():
            answers = [[self._latent_answers(each, factor) for factor in factors] for each in runs]
            f1 = np.array([[own.f1 for own in by_factor] for by_factor in answers])  # (S, F, N)
            plain = [(self._name(each, 1.0), self._latent(each, 1.0)) for each in runs]
            rows = _layers(kind, 1.0, [self.measurements.residuals(*own) for own in plain])
            layers += rows
            compared.append(KindScores(kind, f1, rows[0]["rms"] / unit))
            near += self._nearness(kind, plain, [by_factor[one] for by_factor in answers])
        passages = empty.passages
        clusters = SampledClusters(passages)
        return {
            "factors": factors, "questions": len(passages), "passages": clusters.count,
            "empty": {"factor": 1.0, "f1": float(empty.f1.mean()), "interval": mean_interval(empty.f1, clusters)},
            "curves": [norm_curve(each, factors, passages, seed) for each in compared],
            "verdict": judge_norm(compared[1:], one, empty.f1, passages, seed), "layers": layers, "nearness": near,
        }  # fmt: skip

    def _answers(self, name: str, source: Component) -> AnswerScores:
        found = self.measurements.answers(name, source)
        log(f"{name}  F1 {format_score(float(found.f1.mean()))}")
        return found

    def _latent_answers(self, trained: ScreenedRun, factor: float) -> AnswerScores:
        return self._answers(self._name(trained, factor), self._latent(trained, factor))

    def _name(self, trained: ScreenedRun, factor: float) -> str:
        return f"{trained['name']}_x{factor:g}"

    def _latent(self, trained: ScreenedRun, factor: float) -> Component:
        return Component("latent", {"checkpoint": trained["encoder"], "factor": factor})

    def _nearness(
        self, kind: str, plain: Sequence[tuple[str, Component]], answers: Sequence[AnswerScores]
    ) -> list[NearnessRow]:
        """Return how near the latents of a kind are to tokens, for questions that they answer right and others."""
        values: dict[str, list[float]] = {name: [] for name in MEASURES}
        chance: list[float] = []
        for (name, source), own in zip(plain, answers, strict=True):
            found = {row["passage"]: row for row in self.measurements.nearness(name, source)}
            for passage in own.passages:
                row = found[passage]
                for measure in MEASURES:
                    values[measure].append(row[measure])
                chance.append(row["random_cosine"])
        right = np.concatenate([own.f1 for own in answers])
        passages = [passage for own in answers for passage in own.passages]
        arrays: dict[str, Scores] = {name: np.array(found) for name, found in values.items()}
        return nearness_rows(kind, right, passages, arrays, float(np.mean(chance)))


def _layers(kind: str, factor: float, by_seed: Sequence[Sequence[PassageResiduals]]) -> list[LayerRow]:
    """Return the rows of a kind's residual stream: means over seeds for each passage, then over passages."""
    rms, turn, from_input = (
        np.array([[row[name] for row in rows] for rows in by_seed]).mean(axis=0)
        for name in ("rms", "turn", "from_input")
    )
    return layer_rows(kind, factor, rms, turn, from_input)
