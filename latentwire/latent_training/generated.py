"""The task passages: write generated passages with questions to a file. Main entry: `passages()`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import DictConfig

from latentwire.data.examples import Example
from latentwire.data.generator import GeneratedSpec
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import JsonObject, write_json
from latentwire.harness.session import Session, job
from latentwire.harness.typed_config import typed

SHOWN = 3  # passages that are printed


@dataclass
class _Settings:
    """Settings of the task."""

    generated: int
    templates: str
    seed: int
    out: str

    def __post_init__(self) -> None:
        if self.generated < 1:
            raise UserError(f"generated={self.generated}: must be at least 1 passage")


@job
def passages(cfg: DictConfig, session: Session | None = None) -> JsonObject:
    """Write generated passages to passages.json, in SQuAD's format, and print the first of them.

    Returns:
        The content of the file.

    Raises:
        UserError: A setting is out of range, the templates cannot be used, or the file cannot be written.
    """
    settings = typed(_Settings, {field.name: cfg[field.name] for field in fields(_Settings)})
    spec = GeneratedSpec(settings.generated, settings.templates)
    groups = spec.examples(settings.seed)
    content: JsonObject = {
        "version": "1.1",
        "generator": {**spec.identity(), "seed": settings.seed},
        "data": [_article(number, group) for number, group in enumerate(groups)],
    }
    if accelerator_state(cfg.device).is_main_process:
        path = Path(settings.out).expanduser() / "passages.json"
        write_json(path, content)
        for group in groups[:SHOWN]:
            print(f"{group[0].context}\n" + "\n".join(f"  {each.question} {each.answers[0]}" for each in group))
        log(f"{len(groups)} passages with {sum(map(len, groups))} questions: {path}")
        log(f"next: python run.py data=file path={path}, or train.py task=latent extra={path}")
    return content


def _article(number: int, group: list[Example]) -> JsonObject:
    """Return a passage as an article of SQuAD's format, with the places of its answers."""
    text = group[0].context
    questions = [
        {
            "id": each.id,
            "question": each.question,
            "answers": [{"text": answer, "answer_start": text.index(answer)} for answer in each.answers],
        }
        for each in group
    ]
    return {"title": f"Generated passage {number}", "paragraphs": [{"context": text, "qas": questions}]}
