"""Embeddings of an earlier file, embedder=file, and digests that reveal changed texts. Main entry: `EarlierFile`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from kat.data.prompts import Prompt
from kat.data.tables import same_ids
from kat.embedding.base import EmbeddedPrompts, EmbedderInputs, register_stored
from kat.embedding.store import load_embeddings, record_of
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import JsonObject

DIGITS = 8  # hexadecimal digits in the digest of a text


def text_digest(text: str) -> str:
    """Return the digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def text_digests(prompts: Sequence[Prompt], ids: Sequence[str]) -> str:
    """Return the joined digests of the texts of these ids; they reveal a changed text."""
    texts = {prompt.id: prompt.text for prompt in prompts}
    return "".join(text_digest(texts[name]) for name in ids)


@register_stored("file")
class EarlierFile:
    """The rows of an earlier embeddings.pt. Its record lists the prompts that were too long.

    Args:
        inputs: Unused; the rows depend on the file alone.
        path: The file.

    Raises:
        UserError: No path is given, or the file is missing or damaged.
    """

    def __init__(self, inputs: EmbedderInputs, *, path: str) -> None:
        if not path:
            raise UserError("embedder=file: no path given; add path=FILE, an earlier embeddings.pt")
        self.given, self.path = path, Path(path).expanduser()
        self.ids, self.emb = load_embeddings(self.path)
        self.record = record_of(self.path)

    def identity(self) -> JsonObject:
        """Return the identity of the embedder that made the file, or the file's hash if its record is missing."""
        if self.record is None:
            return {"embedder": "file", "sha256": file_sha256(self.path)}
        return dict(self.record["embedder"])

    def rows(self, prompts: Sequence[Prompt]) -> EmbeddedPrompts:
        """Return the rows of prompts.

        Raises:
            UserError: A prompt has no row and was not too long, all prompts were too long, or a text has changed.
        """
        row_of = {name: row for row, name in enumerate(self.ids)}
        without_row = set(self.record["too_long"] if self.record else ()) - row_of.keys()
        too_long = [prompt.id for prompt in prompts if prompt.id in without_row]
        kept = [prompt.id for prompt in prompts if prompt.id not in without_row]
        if not kept:
            raise UserError(
                f"path={self.path}: all {len(too_long)} prompts were too long for its embedder; use another file"
            )
        remedy = "embed these prompts with embedder=hidden, or give the file that was made from them"
        rows = [row_of[name] for name in same_ids(kept, row_of, "the prompts", f"path={self.path}", remedy)]
        self._check_texts(prompts, kept, rows)
        if too_long:
            log(f"warning: {len(too_long)} of {len(prompts)} prompts were too long for the embedder; left out")
        if unused := len(self.ids) - len(kept):
            log(f"note: {unused} rows of {self.path} have no prompt in the prompts file and are left out")
        model = self.record["model"] if self.record else None
        return EmbeddedPrompts(kept, self.emb[rows], too_long, model, taken_from=self.given)

    def _check_texts(self, prompts: Sequence[Prompt], ids: Sequence[str], rows: Sequence[int]) -> None:
        """Raise UserError if a text has changed under its id, according to the recorded digests."""
        recorded = self.record["texts"] if self.record else ""
        if len(recorded) != len(self.ids) * DIGITS:
            log(f"note: {self.path} has no record of its texts, so it is unknown whether texts have changed")
            return
        current = text_digests(prompts, ids)
        changed = [
            name
            for i, (name, row) in enumerate(zip(ids, rows, strict=True))
            if current[i * DIGITS :][:DIGITS] != recorded[row * DIGITS :][:DIGITS]
        ]
        if changed:
            raise UserError(
                f"path={self.path}: was made from other texts for {len(changed)} of {len(ids)} prompts, {changed[0]} "
                "for instance; embed these prompts again with embedder=hidden"
            )
