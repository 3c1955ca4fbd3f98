"""The task embed: unique prompts -> embeddings.pt, in pieces that outlive a killed run, by one process or several."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from omegaconf import DictConfig
from torch import Tensor

import latentwire
from kat.embed import load_embeddings, save_embeddings
from kat.embedders import EmbedderSpec, load_embedder
from kat.files import locate
from kat.prompts import Prompt, read_prompts
from kat.shards import Shards
from latentwire.harness import app
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import choose_dtype, describe_machine, from_first, gather_from_all, place
from latentwire.harness.errors import UserError
from latentwire.harness.progress import Progress, say
from latentwire.harness.results import config_hash, git_commit, read_json, write_json, writing
from latentwire.models import ModelSpec


@dataclass
class _Work:
    """What task=embed needs to know before it loads anything."""

    out: Path
    prompts: list[Prompt]
    spec: EmbedderSpec
    model: ModelSpec
    dtype: torch.dtype
    about: dict[str, Any]  # what identifies the embedder
    key: str  # and the prompts


def embed(cfg: DictConfig) -> dict[str, Any]:
    """Embed the unique prompts, or go on where a killed run stopped; write the rows and what made them.

    Returns:
        What embeddings.json holds.

    Raises:
        UserError: No prompts, a model that cannot be had, texts that cannot be embedded.
    """
    state = place(cfg.device)
    work = _work(cfg, state)
    record = work.out.with_suffix(".json")
    before = from_first(state, None if cfg.force or not state.is_main_process else _finished(work, record))
    if before is not None:
        say(f"embeddings: {work.out} ({before['n']} x {before['dim']})  (finished before; force=true makes them again)")
        return dict(before)
    started = time.perf_counter()
    ids, emb, too_long, notes = _from_file(work) if work.spec.name == "file" else _embedded(cfg, work, state)
    result = {
        "key": work.key,
        "embedder": work.about,
        "model": work.model.name,
        "n": len(ids),
        "dim": 0 if emb is None else emb.shape[1],
        "too_long": too_long,
        **notes,
        "prompts_file": str(locate(cfg, "prompts_file")),
        "device": describe_machine(state.device),
        "processes": state.num_processes,
        "time_sec": round(time.perf_counter() - started, 3),
        "versions": {"latentwire": latentwire.__version__, "torch": torch.__version__,
                     "transformers": transformers.__version__},
        "git_commit": git_commit(app.ROOT),
    }  # fmt: skip
    if state.is_main_process:
        assert emb is not None
        _set_aside(work.out, record, work.key)
        save_embeddings(work.out, ids, emb)
        write_json(record, result)
        _shards_folder(work, cfg.batch_tokens, remove=True)
        say(f"embeddings: {work.out} ({len(ids)} x {emb.shape[1]}); {record}")
    state.wait_for_everyone()
    return dict(from_first(state, result))


def _work(cfg: DictConfig, state: PartialState) -> _Work:
    spec = app.typed(EmbedderSpec, cfg.embedder, "embedder.")
    spec.check()
    model = app.typed(ModelSpec, cfg.model, "model.")
    dtype = choose_dtype(cfg.dtype, state.device)
    wanted = read_prompts(locate(cfg, "prompts_file"))
    about = _file_identity(spec) if spec.name == "file" else spec.identity(model, dtype)
    key = config_hash([about, [[prompt.id, prompt.text] for prompt in wanted]])
    return _Work(locate(cfg, "out"), wanted, spec, model, dtype, about, key)


def _finished(work: _Work, record: Path) -> dict[str, Any] | None:
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
    if not out.exists():
        return
    found = read_json(record) if record.is_file() else {}
    other = str(found.get("key", "foreign")) if isinstance(found, dict) else "foreign"
    if other == key:
        return
    folder = out.parent / "replaced"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for path in (out, record):
            if path.exists():
                path.replace(folder / f"{path.stem}.{other}{path.suffix}")
    say(f"note: other embeddings were in {out}; they are in {folder} now")


def _shards_folder(work: _Work, batch_tokens: int, remove: bool = False) -> Path:
    folder = work.out.parent / f".{work.out.name}.parts" / config_hash([work.key, batch_tokens])
    if remove:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    return folder


Rows = tuple[list[str], Tensor | None, list[str], dict[str, Any]]  # ids, (N, D), ids too long, what else to record


def _embedded(cfg: DictConfig, work: _Work, state: PartialState) -> Rows:
    """Embed with a model; all processes share the pieces, the first puts them together."""
    with state.local_main_process_first():
        embedder = load_embedder(work.spec, work.model, state.device, work.dtype)
    lengths = embedder.lengths([prompt.text for prompt in work.prompts])
    fitting = [i for i, length in enumerate(lengths) if 0 < length <= embedder.max_tokens]
    too_long = [prompt.id for prompt, length in zip(work.prompts, lengths, strict=True) if length > embedder.max_tokens]
    if too_long:
        say(
            f"warning: {len(too_long)} of {len(work.prompts)} prompts have more than the {embedder.max_tokens} tokens "
            "that the embedder reads; they are left out, not cut, and listed as too_long"
        )
    if empty := len(work.prompts) - len(fitting) - len(too_long):
        raise UserError(f"{empty} prompts have no tokens for this tokenizer; remove them from the prompts file")
    if not fitting:
        raise UserError(f"none of the {len(work.prompts)} prompts fits into the embedder's {embedder.max_tokens} "
                        "tokens; choose a model with a longer context")  # fmt: skip
    texts = [work.prompts[i].text for i in fitting]
    shards = Shards(_shards_folder(work, cfg.batch_tokens), [lengths[i] for i in fitting], cfg.batch_tokens)
    missing = from_first(state, shards.missing() if state.is_main_process else None)
    if done := len(shards.pieces) - len(missing):
        say(f"{done} of {len(shards.pieces)} pieces are finished from before")
    mine = missing[state.process_index :: state.num_processes]
    error: Exception | None = None
    with Progress(f"embed {work.spec.name}", shards.texts_of(mine)) as progress:
        started = time.perf_counter()

        def advance(rows: int) -> None:
            seconds = max(time.perf_counter() - started, 1e-9)
            progress.advance(rows, f"{(progress.done + rows) / seconds:.0f} prompts/s")

        try:
            shards.work(mine, embedder, texts, advance)
        except Exception as caught:  # told to the other processes, which would wait for this one for ever
            if state.num_processes == 1:
                raise
            error = caught
    failures = [failure for failure in gather_from_all(state, [error]) if failure is not None]
    if failures:
        raise error or failures[0]
    ids = [work.prompts[i].id for i in fitting]
    notes = {"tokens": sum(lengths[i] for i in fitting), "max_tokens": embedder.max_tokens}
    return ids, shards.assemble() if state.is_main_process else None, too_long, notes


def _file_identity(spec: EmbedderSpec) -> dict[str, Any]:
    """Return what made an earlier file, as far as it is recorded beside it."""
    if not spec.path:
        raise UserError("embedder=file: no path given; add path=FILE, an earlier embeddings.pt")
    path = Path(spec.path).expanduser()
    load_embeddings(path)
    record = path.with_suffix(".json")
    found = read_json(record) if record.is_file() else {}
    if isinstance(found, dict) and isinstance(found.get("embedder"), dict):
        return dict(found["embedder"])
    return {"embedder": "file", "sha256": file_sha256(path)}


def _from_file(work: _Work) -> Rows:
    """Take the rows of the prompts at hand from an earlier file."""
    ids, emb = load_embeddings(Path(work.spec.path).expanduser())
    row_of = {name: row for row, name in enumerate(ids)}
    missing = [prompt.id for prompt in work.prompts if prompt.id not in row_of]
    if missing:
        raise UserError(
            f"path={work.spec.path}: has no rows for {len(missing)} of {len(work.prompts)} prompts, among them "
            f"{missing[0]}; give the embeddings of these prompts, or make them with embedder=hidden"
        )
    if unused := len(ids) - len(work.prompts):
        say(f"note: {unused} rows of {work.spec.path} belong to no prompt of the prompts file and are left out")
    wanted = [prompt.id for prompt in work.prompts]
    return wanted, emb[[row_of[name] for name in wanted]], [], {"from": work.spec.path}
