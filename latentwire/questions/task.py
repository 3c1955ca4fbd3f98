"""The task questions: a file of questions about any text, written by the frozen model. Main entry: `questions()`.

The passages are divided into parts, and each part is written completely or not at all. So a killed run goes on, and
several processes share the parts. The first process at the end joins them to questions.jsonl.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from omegaconf import DictConfig

from latentwire.data import prompts as prompt_format
from latentwire.data.examples import Dataset, DataSpec, load_data
from latentwire.harness.assets import file_sha256
from latentwire.harness.checkpoint import finished_run, require_same, start_anew
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.memory import within_memory
from latentwire.harness.origin import made_on
from latentwire.harness.participants import require_idle, taking_part
from latentwire.harness.precision import DTYPES
from latentwire.harness.progress import Progress, log
from latentwire.harness.results import (
    FORMAT,
    DamagedResultError,
    JsonObject,
    config_hash,
    read_json,
    write_json,
    write_jsonl,
)
from latentwire.harness.session import Session, job
from latentwire.harness.shared_work import work_through
from latentwire.harness.typed_config import plain_values, typed
from latentwire.harness.worker_counts import own_workers
from latentwire.harness.workers import started_workers
from latentwire.lm.models import load_model
from latentwire.lm.spec import ModelSpec
from latentwire.questions import writer as question_format
from latentwire.questions.passages import QuestionPassages, read_question_passages
from latentwire.questions.records import PartRecord, QuestionRow, QuestionsResult
from latentwire.questions.selection import REASONS, choose_questions
from latentwire.questions.settings import QuestionSettings
from latentwire.questions.writer import QuestionWriter, ShownTexts, draw_shown
from latentwire.records import read_record

WORK = "latentwire.questions.task:questions"
REMEDY = "delete it, and run the same command again"


@dataclass(frozen=True)
class QuestionWork:
    """The work of task=questions, known before the model is loaded.

    Attributes:
        folder: Output folder.
        settings: Settings of the task.
        model: The frozen model.
        shown: What the model is shown.
        text: The passages.
        identity: Settings and inputs that decide the questions.
    """

    folder: Path
    settings: QuestionSettings
    model: ModelSpec
    shown: ShownTexts
    text: QuestionPassages
    identity: JsonObject

    @property
    def file(self) -> Path:
        """The path of questions.jsonl."""
        return self.folder / "questions.jsonl"

    def part_path(self, name: str) -> Path:
        """Return the path of a part."""
        return self.folder / "parts" / f"{name}.json"

    def parts(self) -> dict[str, list[str]]:
        """Return the passages of each part, by its name."""
        size, passages = self.settings.passages_per_part, self.text.passages
        return {f"{start // size:06d}": passages[start : start + size] for start in range(0, len(passages), size)}


@job
def questions(cfg: DictConfig, session: Session | None = None) -> JsonObject:
    """Write questions about the passages of a file, and keep those that the model answers only from the passage.

    Returns:
        The content of result.json, a `QuestionsResult`.

    Raises:
        UserError: The file, the data, the model or a setting is invalid, or the folder has a run of another
            configuration.
        BusyError: Another process writes other questions there, or any with force=true.
    """
    state, work = _prepared(cfg)
    before = None
    if state.is_main_process:
        if cfg.force:
            _start_anew_once(work)
        before = finished_run(work.folder, work.identity)
        if before is not None and (not work.file.is_file() or file_sha256(work.file) != before["questions_sha256"]):
            raise DamagedResultError(f"{work.file}: is missing or was changed after the run; restore it, or start "
                                     "anew with force=true (the old files move to replaced/)")  # fmt: skip
    before = broadcast_from_main(state, before)
    if before is not None:
        log(f"questions: {work.file} ({before['kept']})  (finished before; force=true writes them again)")
        return before
    if state.is_main_process:
        _begin(work)
    state.wait_for_everyone()
    shared = cfg.copy()
    shared.force = False  # the folder is begun anew once
    key = config_hash(work.identity)
    with taking_part(work.folder, key), started_workers(WORK, shared, own_workers(cfg)):
        _write_missing(work, state)
        work_through(
            work.folder,
            ["questions"],
            lambda _: (work.folder / "result.json").is_file(),
            lambda _: _join(cfg, work, state),
        )
    result = read_record(QuestionsResult, work.folder / "result.json", REMEDY)
    if state.is_main_process:
        _print(result)
        log(f"questions: {work.file}")
    return dict(result)


@job
def start_questions_anew(cfg: DictConfig, session: Session | None = None) -> None:
    """Move finished questions to replaced/, so that workers write them again. Check all settings before.

    Raises:
        UserError: As for `questions`.
    """
    _start_anew_once(_prepared(cfg)[1])


def _prepared(cfg: DictConfig) -> tuple[PartialState, QuestionWork]:
    """Return the processes and the work, after a check of all settings."""
    _require_unused_defaults(cfg)
    state = accelerator_state(cfg.device)
    if own_workers(cfg) > 1 and state.num_processes > 1:
        raise UserError(f"workers={cfg.workers}: torchrun has started {state.num_processes} processes, which share "
                        "the passages already; leave out workers")  # fmt: skip
    return state, _plan(cfg, state)


def _require_unused_defaults(cfg: DictConfig) -> None:
    """Raise UserError if the config chooses something that the task does not use."""
    chosen = {"embed_source": cfg.embed_source.name, "embed_transform": cfg.embed_transform.name,
              "control": cfg.control, "tracker": cfg.tracker.name}  # fmt: skip
    defaults = {"embed_source": "text", "embed_transform": "baseline", "control": "none", "tracker": "none"}
    for name, value in chosen.items():
        if value != defaults[name]:
            raise UserError(f"{name}={value}: task=questions reads plain text and writes a file; leave {name} out")


def _plan(cfg: DictConfig, state: PartialState) -> QuestionWork:
    settings = QuestionSettings.of(cfg, state)
    path = str(cfg.path or "")
    if not path:
        raise UserError("path: no file given; write path=FILE, a .txt or a file in the format of data=file")
    model, data = typed(ModelSpec, cfg.model, "model."), typed(DataSpec, cfg.data, "data.")
    dataset: Dataset = load_data(data)
    shown = draw_shown(dataset, settings)
    text = read_question_passages(path, settings, shown.texts())
    identity: JsonObject = {
        "task": "questions",
        "text": file_sha256(Path(path).expanduser()),
        "data": data.identity(),
        "model": model.identity(),
        "settings": settings.identity(),
        "prompt_format": prompt_format.FORMAT,
        "question_format": question_format.FORMAT,
    }
    return QuestionWork(Path(str(cfg.out)).expanduser(), settings, model, shown, text, identity)


def _start_anew_once(work: QuestionWork) -> None:
    """Move the files of the folder to replaced/, unless an earlier, killed force=true has begun this same run."""
    marker = work.folder / "anew.json"
    if marker.is_file() and not (work.folder / "result.json").is_file() and read_json(marker) == work.identity:
        log(f"note: {work.folder} was begun anew by force=true and is not finished; continuing it")
        return
    require_idle(work.folder)
    start_anew(work.folder)
    write_json(marker, work.identity)


def _begin(work: QuestionWork) -> None:
    """Record what the parts of the folder are made of, or check that they are of this run."""
    record = work.folder / "parts.json"
    if record.is_file():
        content = read_json(record)
        require_same(content.get("identity") if isinstance(content, dict) else None, work.identity, str(record))
    else:
        write_json(record, {"format": FORMAT, "identity": work.identity})


def _write_missing(work: QuestionWork, state: PartialState) -> None:
    """Write the missing parts together with all other processes."""
    parts = work.parts()
    missing = [name for name in parts if not work.part_path(name).is_file()]
    if done := len(parts) - len(missing):
        log(f"{done} of {len(parts)} parts are finished from before")
    if not missing:
        return
    lm = load_model(work.model, state.device, DTYPES[work.settings.dtype])
    writer = QuestionWriter(lm, work.shown, work.settings)
    _require_room(work, writer)
    kept = 0
    with Progress("questions", sum(len(parts[name]) for name in missing)) as progress:

        def write(name: str) -> None:
            nonlocal kept
            with within_memory(state.device, {"batch_tokens": work.settings.batch_tokens}):
                part = _part(work, writer, parts[name])
            write_json(work.part_path(name), part)
            kept += len(part["rows"])
            progress.advance(len(parts[name]), f"kept {kept}")

        work_through(work.folder, missing, lambda name: work.part_path(name).is_file(), write)


def _require_room(work: QuestionWork, writer: QuestionWriter) -> None:
    """Check that each passage fits into the model's context with the shots, a question and an answer."""
    too_long = [passage for passage in work.text.passages if not writer.fits(passage)]
    if too_long:
        longest = max(len(passage.split()) for passage in too_long)
        raise UserError(
            f"part_words={work.settings.part_words}: with shots, question and answer {len(too_long)} of "
            f"{len(work.text.passages)} passages do not fit into the model's {writer.lm.context_length} positions (the "
            f"longest has {longest} words); lower part_words, shots or examples_per_beginning, or split long sentences"
        )


def _part(work: QuestionWork, writer: QuestionWriter, passages: Sequence[str]) -> PartRecord:
    """Return the questions about the passages of a part."""
    started = time.perf_counter()
    found = choose_questions(passages, writer, work.settings.rules())
    rows: list[QuestionRow] = [
        {
            "id": example.id,
            "context": example.context,
            "question": example.question,
            "answers": list(example.answers),
            "confidence": round(confidence, 4),
        }
        for example, confidence in found.kept
    ]
    return {
        "format": FORMAT,
        "passages": len(passages),
        "written": found.written,
        "dropped": dict(found.dropped),
        "seconds": round(time.perf_counter() - started, 3),
        "rows": rows,
    }


def _join(cfg: DictConfig, work: QuestionWork, state: PartialState) -> None:
    """Join the parts to questions.jsonl, and write result.json."""
    parts = [read_record(PartRecord, work.part_path(name), REMEDY) for name in work.parts()]
    rows = [row for part in parts for row in part["rows"]]
    dropped = sum((Counter(part["dropped"]) for part in parts), Counter[str]())
    written, seconds = sum(part["written"] for part in parts), sum(part["seconds"] for part in parts)
    if not rows:
        raise UserError(
            f"path={cfg.path}: none of {written} written questions is kept ({_reasons(dropped)}); give a larger model, "
            "or lower min_confidence, min_f1 or min_overlap with another out=FOLDER"
        )
    write_jsonl(work.file, rows)
    result: QuestionsResult = {
        "format": FORMAT,
        "identity": work.identity,
        "passages": len(work.text.passages),
        "skipped": dict(work.text.skipped),
        "written": written,
        "kept": len(rows),
        "kept_share": len(rows) / written,
        "dropped": {reason: dropped[reason] for reason in REASONS if dropped[reason]},
        "passages_with_questions": len({row["context"] for row in rows}),
        "questions_sha256": file_sha256(work.file),
        "seconds": round(seconds, 3),
        "seconds_per_passage": round(seconds / len(work.text.passages), 3),
        "dtype": work.settings.dtype,
        **made_on(state),
        "config": plain_values(cfg),
    }
    write_json(work.folder / "result.json", result)


def _print(result: QuestionsResult) -> None:
    for reason, count in result["skipped"].items():
        print(f"skipped {count} passages: {reason}")
    for reason, count in result["dropped"].items():
        print(f"dropped {count} questions: {reason}")
    print(
        f"kept {result['kept']} of {result['written']} questions ({result['kept_share']:.1%}), about "
        f"{result['passages_with_questions']} of {result['passages']} passages"
    )


def _reasons(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.most_common(3))
