"""The task embed: unique prompts -> embeddings.pt, in pieces that outlive a killed run, by one process or several."""

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

BATCH_TOKENS_ON_CPU = 8192  # measured best for embedding


@dataclass
class Plan:
    """What task=embed needs to know before it loads anything."""

    out: Path
    prompts: list[Prompt]
    spec: EmbedderSpec
    model: ModelSpec
    dtype: torch.dtype
    batch_tokens: int
    about: dict[str, Any]  # what identifies the embedder
    key: str  # and the prompts


@task
def embed(cfg: DictConfig) -> dict[str, Any]:
    """Embed the unique prompts, or go on where a killed run stopped; write the rows and what made them.

    Returns:
        What embeddings.json holds.

    Raises:
        UserError: No prompts, a model that cannot be had, texts that cannot be embedded.
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
    """Return what task=embed would do with a config, without loading a model.

    Raises:
        UserError: No prompts, an unknown embedder, or one that cannot be identified.
    """
    spec = typed(EmbedderSpec, cfg.embedder, "embedder.")
    spec.check()
    model = typed(ModelSpec, cfg.model, "model.")
    dtype = choose_dtype(cfg.dtype, state.device)
    wanted = read_prompts(locate(cfg, "prompts_file"))
    batch_tokens = choose_batch_tokens(cfg.batch_tokens, state.device, BATCH_TOKENS_ON_CPU)
    about = _file_identity(spec) if spec.name == "file" else spec.identity(model, dtype)
    key = config_hash([about, [[prompt.id, prompt.text] for prompt in wanted]])
    return Plan(destination(cfg, ".json"), wanted, spec, model, dtype, batch_tokens, about, key)


def _finished(work: Plan, record: Path) -> dict[str, Any] | None:
    """Return the record of embeddings of this key that are there and whole."""
    if not record.is_file() or not work.out.is_file():
        return None
    found = read_json(record)
    if not isinstance(found, dict) or found.get("key") != work.key:
        return None
    ids, emb = load_embeddings(work.out)
    if [len(ids), emb.shape[1]] != [found.get("n"), found.get("dim")]:
        raise UserError(f"{work.out}: is not what {record} says; make it again with force=true")
    return found


def _set_aside(out: Path, record: Path, key: str) -> None:
    """Move embeddings that something else made out of the way: nothing finished is lost."""
    other = str(record_of(out).get("key", "foreign"))
    if other == key or not (out.exists() or record.exists()):
        return
    folder = out.parent / "replaced"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for path in (out, record):
            if path.exists():
                path.replace(folder / f"{path.stem}.{other}{path.suffix}")
    log(f"note: other embeddings were in {out}; they are in {folder} now")


def _shards_folder(work: Plan) -> Path:
    return work.out.parent / f".{work.out.name}.parts" / config_hash([work.key, work.batch_tokens])


def _remove_shards(work: Plan) -> None:
    folder = _shards_folder(work)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


DIGITS = 8  # of a text's digest


def _digests(prompts: list[Prompt], ids: list[str]) -> str:
    """Return the digests of the texts of these ids, one after the other: what tells that a text has changed."""
    texts = {prompt.id: prompt.text for prompt in prompts}
    return "".join(hashlib.sha256(texts[name].encode()).hexdigest()[:DIGITS] for name in ids)


Rows = tuple[list[str], Tensor | None, list[str], dict[str, Any]]  # ids, (N, D), ids too long, what else to record


def _embedded(cfg: DictConfig, work: Plan, state: PartialState) -> Rows:
    """Embed with a model; all processes share the pieces, the first puts them together."""
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
    mine = missing[state.process_index :: state.num_processes]
    with Progress(f"embed {work.spec.name}", shards.texts_of(mine)) as progress:
        started = time.perf_counter()

        def advance(rows: int) -> None:
            seconds = max(time.perf_counter() - started, 1e-9)
            progress.advance(rows, f"{(progress.done + rows) / seconds:.0f} prompts/s")

        in_every_process(state, lambda: shards.work(mine, embedder, texts, advance))
    ids = [work.prompts[i].id for i in fitting]
    notes = {"tokens": sum(lengths[i] for i in fitting), "max_tokens": embedder.max_tokens}
    return ids, shards.assemble() if state.is_main_process else None, too_long, notes


def _file_identity(spec: EmbedderSpec) -> dict[str, Any]:
    """Return what made an earlier file, as far as it is recorded beside it."""
    if not spec.path:
        raise UserError("embedder=file: no path given; add path=FILE, an earlier embeddings.pt")
    path = Path(spec.path).expanduser()
    load_embeddings(path)
    found = record_of(path).get("embedder")
    if isinstance(found, dict):
        return dict(found)
    return {"embedder": "file", "sha256": file_sha256(path)}


def _from_file(work: Plan) -> Rows:
    """Take the rows of the prompts at hand from an earlier file, whose record says which were too long."""
    path = Path(work.spec.path).expanduser()
    earlier = record_of(path)
    ids, emb = load_embeddings(path)
    row_of = {name: row for row, name in enumerate(ids)}
    before = set(earlier.get("too_long") or ()) - row_of.keys()
    too_long = [prompt.id for prompt in work.prompts if prompt.id in before]
    wanted = [prompt.id for prompt in work.prompts if prompt.id not in before]
    if not wanted:
        raise UserError(f"path={path}: all {len(too_long)} prompts were too long for its embedder; take another")
    rows = [row_of[name] for name in same_ids(wanted, row_of, "the prompts", f"path={path}", "embed these prompts with "
                                              "embedder=hidden, or give the file that was made from them")]  # fmt: skip
    _check_texts(work.prompts, wanted, rows, len(ids), earlier.get("texts"), path)
    if too_long:
        log(f"warning: {len(too_long)} of {len(work.prompts)} prompts were too long for the embedder; left out")
    if unused := len(ids) - len(wanted):
        log(f"note: {unused} rows of {path} belong to no prompt of the prompts file and are left out")
    return wanted, emb[rows], too_long, {"model": earlier.get("model"), "from": work.spec.path}


def _check_texts(prompts: list[Prompt], ids: list[str], rows: list[int], n: int, before: Any, path: Path) -> None:
    """Refuse rows of texts that have changed under the same id, as far as the record of the earlier file tells."""
    if not isinstance(before, str) or len(before) != n * DIGITS:
        log(f"note: nothing beside {path} tells whether the texts of the prompts are still the same")
        return
    now = _digests(prompts, ids)
    changed = [
        name
        for i, (name, row) in enumerate(zip(ids, rows, strict=True))
        if now[i * DIGITS :][:DIGITS] != before[row * DIGITS :][:DIGITS]
    ]
    if changed:
        raise UserError(
            f"path={path}: was made from other texts for {len(changed)} of {len(ids)} prompts, {changed[0]} for "
            "instance; embed these prompts again with embedder=hidden"
        )
