"""The task latent_report: a trained encoder compared with its controls. Main entry: `report()`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

import numpy as np
from accelerate import PartialState
from omegaconf import DictConfig

from latentwire.encoders.checkpoint import EncoderRecord, about_latents
from latentwire.encoders.pipeline import require_ratio
from latentwire.evaluation import likelihood
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.latent_comparison import (
    TITLES,
    LatentComparison,
    SourceScores,
    compare_with_controls,
    render_report,
)
from latentwire.evaluation.likelihood import Likelihoods
from latentwire.evaluation.metrics import Scoring
from latentwire.evaluation.request import Request, read, read_scoring
from latentwire.evaluation.setup import Component, prepare
from latentwire.harness.config_files import repeated_choices
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.memory import within_memory
from latentwire.harness.origin import made_on
from latentwire.harness.ownership import owned
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import DamagedResultError, JsonObject, ResultStore, config_hash, read_jsonl, write_json
from latentwire.harness.session import Session, job
from latentwire.harness.typed_config import plain_values
from latentwire.records import FORMAT, RESTORE, MadeOn, Measured, checked, read_example_rows
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import Scores

R = TypeVar("R")
STYLE_ENCODER = "cut_text"  # the encoder of the control `style`
Rows = Sequence[Mapping[str, object]]


class LatentReport(LatentComparison, MadeOn):
    """report.json."""

    format: int
    checkpoint: str
    sha256: str  # of the encoder's weights
    notes: list[str]  # what limits the comparison
    config: JsonObject


class _StoredHead(TypedDict):
    """What a stored result of the report is."""

    format: int
    name: str
    config_hash: str
    status: Literal["ok"]
    source: str
    source_dials: JsonObject


class _StoredAnswers(_StoredHead, Measured):
    """Scores of the answers with one source."""


class _MeanLikelihood(TypedDict):
    """Likelihood of the first right answers, nats a token: means over the examples."""

    num_samples: int
    nll: float  # negative log-likelihood
    kl: float  # KL(LM given the text || LM given the source)


class _StoredLikelihood(_StoredHead, _MeanLikelihood):
    """Likelihood of the right answers with one source."""


@job
def report(cfg: DictConfig, session: Session | None = None) -> LatentReport:
    """Evaluate the latents and each control on the same examples, and write report.json.

    Returns:
        The contents of report.json.

    Raises:
        UserError: The encoder is missing or belongs to another LM, or model, data, settings or folder are invalid.
    """
    _require_defaults(cfg)
    state = accelerator_state(cfg.device)
    request = read(cfg, state, 0)
    about = about_latents(cfg.checkpoint, request.model.identity())
    notes = [*_notes_on_shots(cfg, about), *_notes_on_style(cfg, about, request.model.identity())]
    store = ResultStore(Path(str(cfg.out)))
    if state.is_main_process:
        store.require_writable()
    controls = control_configs(_dials(cfg, about), cfg.checkpoint, cfg.style, request.source.dials["ratio"])
    with owned(store.folder, "report.json", state):
        sources = _evaluated(_Evaluations(request, store, state, cfg.force), controls)
    comparison = compare_with_controls(about.get("name", about["encoder"]), sources, request.settings.seed)
    written: LatentReport = {
        "format": FORMAT,
        **comparison,
        "checkpoint": str(cfg.checkpoint),
        "sha256": about["sha256"],
        "notes": notes,
        **made_on(state),
        "config": plain_values(cfg),
    }
    if is_main_process():
        write_json(store.folder / "report.json", written)
        print("\n".join([render_report(comparison), *(f"note: {note}" for note in notes)]))
        log(f"report: {store.folder / 'report.json'}")
    return written


def _evaluated(evaluations: _Evaluations, controls: Mapping[str, Component]) -> dict[str, SourceScores]:
    """Return the scores of the source of each row."""
    sources: dict[str, SourceScores] = {}
    for name, source in controls.items():
        sources[name] = found = evaluations.of(name, source)
        f1, nll = found.answers["f1"], float(found.nll.mean())
        log(f"{TITLES[name]}  F1 {format_score(f1)}  NLL {nll:.2f}")
    return sources


def _require_defaults(cfg: DictConfig) -> None:
    """Raise UserError if the config chooses something that the report does not use."""
    for group, default in (("control", "none"), ("embed_source", "latent"), ("embed_transform", "baseline")):
        chosen = cfg[group] if isinstance(cfg[group], str) else cfg[group].name
        if chosen != default:
            raise UserError(
                f"{group}={chosen}: task=latent_report evaluates the encoder without changes; leave {group} out, or "
                "use run.py embed_source=latent"
            )
    if read_scoring(cfg.metrics, cfg.primary_metric) != Scoring():
        raise UserError(
            f"metrics={cfg.metrics} primary_metric={cfg.primary_metric}: task=latent_report compares by F1 and "
            "by the likelihood; leave both settings out, or use run.py embed_source=latent"
        )


def _dials(cfg: DictConfig, about: EncoderRecord) -> JsonObject:
    """Return the encoder's dials, with the ratio at which the report reads it."""
    ratio = cfg.embed_source.dials.ratio
    return about["encoder_dials"] if ratio is None else {**about["encoder_dials"], "ratio": require_ratio(ratio)}


def _notes_on_shots(cfg: DictConfig, about: EncoderRecord) -> list[str]:
    """Return which sources have shots with latents; the others have them as text, as a model without training does."""
    trained = {
        "latents": about,
        **({f"style={cfg.style}": about_latents(cfg.style, None, "style")} if cfg.style else {}),
    }
    compressed = [name for name, own in trained.items() if own.get("compressed_shots", False)]
    if not compressed:
        return []
    return [f"the shots' passages are latents for {' and '.join(compressed)}, and text for all others"]


def _notes_on_style(cfg: DictConfig, about: EncoderRecord, lm: JsonObject) -> list[str]:
    """Return what limits the comparison with the cut text in the answers' style.

    Args:
        cfg: Config of the report.
        about: The encoder's record.
        lm: Identity of the LM.

    Raises:
        UserError: `style` is not a control for the same LM.
    """
    ratio = _dials(cfg, about).get("ratio", 1)
    if not cfg.style:
        if isinstance(ratio, int) and ratio > 1:
            command = f"train.py task=latent encoder={STYLE_ENCODER} ratio={ratio} loss=answers{repeated_choices(cfg)}"
            return [
                f"no row of the cut text with a learned style: train it on the encoder's data with python {command}, "
                "then add style=FOLDER"
            ]
        return []
    style = about_latents(cfg.style, lm, "style")
    if style["encoder"] != STYLE_ENCODER:
        raise UserError(
            f"style={cfg.style}: is encoder={style['encoder']}; give the folder of a train.py task=latent "
            f"encoder={STYLE_ENCODER}"
        )
    if "ratio" not in about["encoder_dials"] or ratio == 1:
        raise UserError(
            f"style={cfg.style}: has ceil(T / ratio) positions, and encoder={about['encoder']} has others; leave style "
            "out"
        )
    if style["transform"] != "baseline":
        raise UserError(
            f"style={cfg.style}: was trained with embed_transform={style['transform']}, which changes the tokens; "
            f"train encoder={STYLE_ENCODER} without a transform"
        )
    own = style["encoder_dials"]["ratio"]
    notes = [f"style={cfg.style} was trained with ratio={own} and is read with ratio={ratio}"] if own != ratio else []
    missing = len(set(about["trained_on"]) - set(style["trained_on"]))
    if missing:
        trained_on = len(about["trained_on"])
        notes.append(f"style={cfg.style} was not trained on {missing} of the encoder's {trained_on} passages")
    return notes


def control_configs(
    encoder_dials: Mapping[str, object], checkpoint: str, style: str, read_ratio: object = None
) -> dict[str, Component]:
    """Return the sources to compare: the whole text, the latents, and controls with at most as many positions.

    The controls are the cut text, the cut text with a learned style, chosen words, averages of neighbouring tokens, and
    no passage. For an encoder with one position for each token, only the last is used: the cut text would be the whole
    text.

    Args:
        encoder_dials: Dials of the encoder, with the ratio at which it is read.
        checkpoint: Folder of the encoder.
        style: Folder of the trained control `cut_text`, read with the same ratio; "" leaves it out.
        read_ratio: That ratio, if it is not the one of the encoder's training.

    Returns:
        Sources by the name of their rows.

    Raises:
        UserError: The encoder is a plugin's and has a dial `ratio` that is not a number.
    """
    ratio = encoder_dials.get("ratio", 1)
    if not isinstance(ratio, int | float):
        raise UserError(
            f"ratio={ratio}: not a number of tokens for each latent, so the controls cannot get equal positions; give "
            "this dial of the encoder another name"
        )
    read: JsonObject = {"checkpoint": checkpoint, "factor": 1.0, "ratio": read_ratio}
    sources = {"text": Component("text"), "latent": Component("latent", read)}
    if "latent_len" in encoder_dials or ratio > 1:
        equal: JsonObject = {"ratio": float(ratio), "positions": encoder_dials.get("latent_len")}
        sources["cut"] = Component("cut", dict(equal))
        if style:
            sources["style"] = Component("latent", {**read, "checkpoint": style, "ratio": ratio})
        sources["chosen"] = Component("chosen", {**equal, "checkpoint": checkpoint})
        sources["averaged"] = Component("averaged", dict(equal))
    return {**sources, "empty": Component("empty")}


def _read_likelihoods(path: Path, name: str) -> Scores:
    """Return the `nll` or the `kl` of each example in the predictions of a likelihood, (N,)."""
    found = [row.get(name) for row in read_jsonl(path)]
    numbers = [float(value) for value in found if isinstance(value, int | float)]
    if len(numbers) < len(found):
        raise DamagedResultError(f"{path} lacks {name}: {RESTORE}")
    return np.array(numbers)


@dataclass
class _Evaluations:
    """Evaluates sources by answers and by likelihood; stores each result, and reuses stored ones."""

    request: Request
    store: ResultStore
    state: PartialState
    force: bool

    @cached_property
    def likelihoods(self) -> Likelihoods:
        """Model and examples, loaded when the first result is missing."""
        request = self.request
        return Likelihoods(prepare(request.model, request.data, request.settings, self.state), self.state)

    def of(self, row: str, source: Component) -> SourceScores:
        """Return the scores of the source of a row."""
        title = TITLES[row]
        request = replace(self.request, source=source)
        produced_by = {"answers": request.key, "format": FORMAT}
        answers = self._stored(
            _StoredAnswers,
            row,
            source,
            produced_by,
            lambda: evaluate(self.likelihoods.setup, source, request.transform, self.state, title),
        )
        name = f"{row}_likelihood"
        self._stored(
            _StoredLikelihood,
            name,
            source,
            {**produced_by, "likelihood": likelihood.FORMAT},
            lambda: self._mean_likelihoods(source, title),
        )
        rows = read_example_rows(self.store.predictions_path(row))
        nll, kl = (_read_likelihoods(self.store.predictions_path(name), each) for each in ("nll", "kl"))
        passages = [each.get("passage", each["id"]) for each in rows]
        references = [each["references"][0] for each in rows]
        return SourceScores(answers, np.array([each["f1"] for each in rows]), nll, kl, passages, references)

    def _mean_likelihoods(self, source: Component, title: str) -> tuple[_MeanLikelihood, Rows]:
        """Return the means of the likelihoods, and a row for each example."""
        found = self.likelihoods.over(source, title)
        scores: _MeanLikelihood = {
            "num_samples": len(found),
            "nll": float(np.mean([own.nll for own in found])),
            "kl": float(np.mean([own.kl for own in found])),
        }
        prompts = self.likelihoods.setup.prompts
        return scores, [{"id": p.example.id, **vars(own)} for p, own in zip(prompts, found, strict=True)]

    def _stored(
        self,
        kind: type[R],
        name: str,
        source: Component,
        produced_by: JsonObject,
        compute: Callable[[], tuple[Mapping[str, object], Rows]],
    ) -> R:
        """Return a finished result, computed and saved with its rows if it is missing."""
        key, state = config_hash(produced_by), self.state
        found: JsonObject | None = None
        if state.is_main_process and not self.force:
            found = self.store.finished(name, key)
        found = broadcast_from_main(state, found)
        if found is None:
            with within_memory(state.device, {"batch_tokens": self.request.settings.batch_tokens}):
                scores, rows = compute()
            head: _StoredHead = {
                "format": FORMAT,
                "name": name,
                "config_hash": key,
                "status": "ok",
                "source": source.name,
                "source_dials": source.dials,
            }
            found = {**head, **scores}
            if state.is_main_process:
                self.store.save(name, found, rows)
        state.wait_for_everyone()
        return checked(kind, found, self.store.path(name), RESTORE)
