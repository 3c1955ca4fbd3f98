"""The task embed: embeddings.pt from the unique prompts, in one or several processes. Main entry: `embed()`.

The work is done in pieces that stay on disk, so a killed run resumes.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from omegaconf import DictConfig
from torch import Tensor

from kat.data.prompts import Prompt, read_prompts
from kat.data.tables import same_ids
from kat.embedding.registry import EmbedderSpec, load_embedder
from kat.embedding.shards import Shards
from kat.embedding.store import load_embeddings, save_embeddings
from kat.pipeline.artifacts import destination, locate, record_of, task
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import accelerator_state, choose_dtype
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main, in_every_process
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.origin import made_on
from latentwire.harness.progress import Progress, log
from latentwire.harness.results import config_hash, read_json, write_json, writing
from latentwire.harness.typed_config import typed
from latentwire.lm.spec import ModelSpec

BATCH_TOKENS_ON_CPU = 8192  # the fastest in our measurements of embedding


@dataclass
class Plan:
    """The work of task=embed, known before a model is loaded."""

    out: Path
    prompts: list[Prompt]
    spec: EmbedderSpec
    model: ModelSpec
    dtype: torch.dtype
    batch_tokens: int
    about: dict[str, Any]  # identity of the embedder
    key: str  # hash of the embedder and the prompts


@task
def embed(cfg: DictConfig) -> dict[str, Any]:
    """Embed the unique prompts, or resume a killed run, and write embeddings.pt and embeddings.json.

    Returns:
        The content of embeddings.json.

    Raises:
        UserError: The prompts are missing, a model cannot be loaded, or a text cannot be embedded.
    """
    state = accelerator_state(cfg.device)
    work = plan(cfg, state)
    record = work.out.with_suffix(".json")
    before = broadcast_from_main(state, None if cfg.force or not state.is_main_process else _finished(work, record))
    if before is not None:
        log(f"embeddings: {work.out} ({before['n']} x {before['dim']})  (finished before; force=true makes them again)")
        return dict(before)
    started = time.perf_counter()
    ids, emb, too_long, notes = _from_file(work) if work.spec.name == "file" else _embedded(cfg, work, state)
    result = {
        "key": work.key,
        "embedder": work.about,
        "model": work.model.name if work.spec.name in ("hidden", "logits") else None,
        "n": len(ids),
        "dim": 0 if emb is None else emb.shape[1],
        "too_long": too_long,
        **notes,
        "prompts_file": str(locate(cfg, "prompts_file")),
        "time_sec": round(time.perf_counter() - started, 3),
        **made_on(state),
        "texts": _digests(work.prompts, ids),
    }
    if state.is_main_process:
        assert emb is not None
        _set_aside(work.out, record, work.key)
        save_embeddings(work.out, ids, emb)
        write_json(record, result)
        _remove_shards(work)
        log(f"embeddings: {work.out} ({len(ids)} x {emb.shape[1]}); {record}")
    state.wait_for_everyone()
    return dict(broadcast_from_main(state, result))


def plan(cfg: DictConfig, state: PartialState) -> Plan:
    """Return the work of task=embed for a config, without loading a model.

    Raises:
        UserError: The prompts are missing, or the embedder is unknown or cannot be identified.
    """
    spec = typed(EmbedderSpec, cfg.embedder, "embedder.")
    spec.check()
    model = typed(ModelSpec, cfg.model, "model.")
    dtype = choose_dtype(cfg.dtype, state.device)
    prompts = read_prompts(locate(cfg, "prompts_file"))
    batch_tokens = choose_batch_tokens(cfg.batch_tokens, state.device, BATCH_TOKENS_ON_CPU)
    about = _file_identity(spec) if spec.name == "file" else spec.identity(model, dtype)
    key = config_hash([about, [[prompt.id, prompt.text] for prompt in prompts]])
    return Plan(destination(cfg, ".json"), prompts, spec, model, dtype, batch_tokens, about, key)


def _finished(work: Plan, record: Path) -> dict[str, Any] | None:
    """Return the record of complete embeddings with this key, or None."""
    if not record.is_file() or not work.out.is_file():
        return None
    found = read_json(record)
    if not isinstance(found, dict) or found.get("key") != work.key:
        return None
    ids, emb = load_embeddings(work.out)
    if [len(ids), emb.shape[1]] != [found.get("n"), found.get("dim")]:
        raise UserError(f"{work.out}: does not match {record}; make it again with force=true")
    return found


def _set_aside(out: Path, record: Path, key: str) -> None:
    """Move embeddings with another key into the folder `replaced`, so that they are not lost."""
    other = str(record_of(out).get("key", "foreign"))
    if other == key or not (out.exists() or record.exists()):
        return
    folder = out.parent / "replaced"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for path in (out, record):
            if path.exists():
                path.replace(folder / f"{path.stem}.{other}{path.suffix}")
    log(f"note: {out} contained other embeddings; they are now in {folder}")


def _shards_folder(work: Plan) -> Path:
    return work.out.parent / f".{work.out.name}.parts" / config_hash([work.key, work.batch_tokens])


def _remove_shards(work: Plan) -> None:
    folder = _shards_folder(work)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


DIGITS = 8  # hexadecimal digits in the digest of a text


def _digests(prompts: list[Prompt], ids: list[str]) -> str:
    """Return the joined digests of the texts of these ids; they reveal a changed text."""
    texts = {prompt.id: prompt.text for prompt in prompts}
    return "".join(hashlib.sha256(texts[name].encode()).hexdigest()[:DIGITS] for name in ids)


Rows = tuple[list[str], Tensor | None, list[str], dict[str, Any]]  # ids, (N, D), ids too long, further record entries


def _embedded(cfg: DictConfig, work: Plan, state: PartialState) -> Rows:
    """Embed with a model. All processes share the pieces, and the main process assembles them."""
    with state.local_main_process_first():
        embedder = load_embedder(work.spec, work.model, state.device, work.dtype)
    lengths = embedder.lengths([prompt.text for prompt in work.prompts])
    fitting = [i for i, length in enumerate(lengths) if 0 < length <= embedder.max_tokens]
    too_long = [prompt.id for prompt, length in zip(work.prompts, lengths, strict=True) if length > embedder.max_tokens]
    if too_long:
        log(
            f"warning: {len(too_long)} of {len(work.prompts)} prompts have more than the {embedder.max_tokens} tokens "
            "that the embedder reads; they are left out, not cut, and listed as too_long"
        )
    if empty := len(work.prompts) - len(fitting) - len(too_long):
        raise UserError(f"{empty} prompts have no tokens for this tokenizer; remove them from the prompts file")
    if not fitting:
        raise UserError(f"none of the {len(work.prompts)} prompts fits into the embedder's {embedder.max_tokens} "
                        "tokens; choose a model with a longer context")  # fmt: skip
    texts = [work.prompts[i].text for i in fitting]
    shards = Shards(_shards_folder(work), [lengths[i] for i in fitting], work.batch_tokens)
    missing = broadcast_from_main(state, shards.missing() if state.is_main_process else None)
    if done := len(shards.pieces) - len(missing):
        log(f"{done} of {len(shards.pieces)} pieces are finished from before")
    own_pieces = missing[state.process_index :: state.num_processes]
    with Progress(f"embed {work.spec.name}", shards.texts_of(own_pieces)) as progress:
        started = time.perf_counter()

        def advance(rows: int) -> None:
            seconds = max(time.perf_counter() - started, 1e-9)
            progress.advance(rows, f"{(progress.done + rows) / seconds:.0f} prompts/s")

        in_every_process(state, lambda: shards.work(own_pieces, embedder, texts, advance))
    ids = [work.prompts[i].id for i in fitting]
    notes = {"tokens": sum(lengths[i] for i in fitting), "max_tokens": embedder.max_tokens}
    return ids, shards.assemble() if state.is_main_process else None, too_long, notes


def _file_identity(spec: EmbedderSpec) -> dict[str, Any]:
    """Return the identity of the embedder of an earlier file, or the file's hash if its record is missing."""
    if not spec.path:
        raise UserError("embedder=file: no path given; add path=FILE, an earlier embeddings.pt")
    path = Path(spec.path).expanduser()
    load_embeddings(path)
    found = record_of(path).get("embedder")
    if isinstance(found, dict):
        return dict(found)
    return {"embedder": "file", "sha256": file_sha256(path)}


def _from_file(work: Plan) -> Rows:
    """Take the rows of the prompts from an earlier file. Its record lists the prompts that were too long."""
    path = Path(work.spec.path).expanduser()
    earlier = record_of(path)
    ids, emb = load_embeddings(path)
    row_of = {name: row for row, name in enumerate(ids)}
    without_row = set(earlier.get("too_long") or ()) - row_of.keys()
    too_long = [prompt.id for prompt in work.prompts if prompt.id in without_row]
    kept = [prompt.id for prompt in work.prompts if prompt.id not in without_row]
    if not kept:
        raise UserError(f"path={path}: all {len(too_long)} prompts were too long for its embedder; use another file")
    remedy = "embed these prompts with embedder=hidden, or give the file that was made from them"
    rows = [row_of[name] for name in same_ids(kept, row_of, "the prompts", f"path={path}", remedy)]
    _check_texts(work.prompts, kept, rows, len(ids), earlier.get("texts"), path)
    if too_long:
        log(f"warning: {len(too_long)} of {len(work.prompts)} prompts were too long for the embedder; left out")
    if unused := len(ids) - len(kept):
        log(f"note: {unused} rows of {path} have no prompt in the prompts file and are left out")
    return kept, emb[rows], too_long, {"model": earlier.get("model"), "from": work.spec.path}


def _check_texts(prompts: list[Prompt], ids: list[str], rows: list[int], n: int, recorded: Any, path: Path) -> None:
    """Raise UserError if a text has changed under its id, according to the digests recorded with the earlier file."""
    if not isinstance(recorded, str) or len(recorded) != n * DIGITS:
        log(f"note: {path} has no record of its texts, so it is unknown whether texts have changed")
        return
    current = _digests(prompts, ids)
    changed = [
        name
        for i, (name, row) in enumerate(zip(ids, rows, strict=True))
        if current[i * DIGITS :][:DIGITS] != recorded[row * DIGITS :][:DIGITS]
    ]
    if changed:
        raise UserError(
            f"path={path}: was made from other texts for {len(changed)} of {len(ids)} prompts, {changed[0]} for "
            "instance; embed these prompts again with embedder=hidden"
        )
