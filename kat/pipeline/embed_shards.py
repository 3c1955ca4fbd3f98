"""The task embed for a folder of shards, which processes and jobs share. Main entry: `embed_in_shards()`.

A shard is complete or missing, so a kill loses only the shard in work. All processes that run the same command do the
missing shards together, see `latentwire.harness.shared_work`. The one that is first at the end writes embeddings.json.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from omegaconf import DictConfig

from kat.data.prompt_files import PromptShard, plan_shards, prompt_digests, require_unique_ids
from kat.embedding.registry import EmbedderSpec
from kat.embedding.shard_writer import ShardedEmbeddingsRecord, ShardSums, all_ids, write_shard
from kat.embedding.sharded import RECORD
from kat.pipeline.artifacts import destination, locate, require_one_division, require_own_folder
from kat.pipeline.embedders import BATCH_TOKENS_ON_CPU, chosen_embedder, require_embeddable
from kat.records import read_kat_record
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.origin import made_on
from latentwire.harness.participants import require_idle, taking_part
from latentwire.harness.progress import Progress, log
from latentwire.harness.results import (
    DamagedResultError,
    JsonObject,
    config_hash,
    read_json,
    sweep_up,
    write_json,
    writing,
)
from latentwire.harness.shard_files import FinishedShards, ShardFolder
from latentwire.harness.shared_work import work_through
from latentwire.harness.worker_counts import own_workers
from latentwire.harness.workers import started_workers
from latentwire.records import FORMAT

OWN_FILE = re.compile(r"(\d{5,}\.(json|emb\.npy|prompts\.parquet)|embeddings\.json|claims|\..*)")  # in a folder of ours
REMEDY = "delete it, and run task=embed again"


@dataclass(frozen=True)
class ShardedWork:
    """The work on a folder of embeddings, known before a model is loaded.

    Attributes:
        files: The folder. Its key is a hash of the embedder, the prompts and the size of the shards.
        prompts_file: The file or folder of the prompts.
        prompts: The sha256 of each file of the prompts.
        embedder: The embedder.
        about: Its identity.
        shard_rows: Largest number of prompts in a shard.
        batch_tokens: Largest number of positions in a batch.
    """

    files: ShardFolder
    prompts_file: Path
    prompts: dict[str, str]
    embedder: EmbedderSpec
    about: JsonObject
    shard_rows: int
    batch_tokens: int

    @property
    def record(self) -> Path:
        """The path of embeddings.json."""
        return self.files.folder / RECORD

    def found(self) -> ShardedEmbeddingsRecord | None:
        """Return the content of embeddings.json if it is of this work, or None."""
        recorded = sharded_record(self.files.folder)
        return recorded if recorded is not None and recorded["key"] == self.files.key else None

    def require_unchanged(self) -> None:
        """Check that the prompts are still those whose digests are known. Unchanged files are not read again.

        Raises:
            UserError: A file has changed.
        """
        if prompt_digests(self.prompts_file) != self.prompts:
            raise UserError(f"prompts_file={self.prompts_file}: has changed since this run began; run it again")


def sharded_record(folder: Path) -> ShardedEmbeddingsRecord | None:
    """Return the embeddings.json of a folder of embeddings; None if its shards are not complete.

    Raises:
        DamagedResultError: The file cannot be read.
    """
    path = folder / RECORD
    return read_kat_record(ShardedEmbeddingsRecord, path, REMEDY) if path.is_file() else None


def sharded_work(cfg: DictConfig, state: PartialState) -> ShardedWork:
    """Return the work of task=embed on a folder, without loading a model.

    Finished embeddings of the same prompts by the same embedder keep the size of their shards.

    Raises:
        UserError: The prompts are missing, or the embedder or a setting is invalid.
    """
    embedder = chosen_embedder(cfg, state.device)
    if embedder.is_stored:
        raise UserError(f"embedder={embedder.name}: has rows for one file; give out=FILE.pt, or an embedder of texts")
    rows = cfg.shard_rows
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise UserError(f"shard_rows={rows}: must be a whole number above 0")
    out, prompts_file = destination(cfg, folder=True), locate(cfg, "prompts_file")
    require_own_folder(out, OWN_FILE)
    about, prompts = embedder.identity(), prompt_digests(prompts_file)
    recorded = sharded_record(out)
    if recorded is not None and (recorded["embedder"], recorded["prompts"]) == (about, prompts):
        rows = recorded["shard_rows"]
    files = ShardFolder(out, config_hash([about, prompts, rows]))
    batch_tokens = choose_batch_tokens(cfg.batch_tokens, state.device, BATCH_TOKENS_ON_CPU)
    return ShardedWork(files, prompts_file, prompts, embedder, about, rows, batch_tokens)


def embed_in_shards(cfg: DictConfig, state: PartialState) -> ShardedEmbeddingsRecord:
    """Embed the prompts into a folder of shards, or finish what other processes or a killed run left.

    Returns:
        The content of embeddings.json.

    Raises:
        UserError: The prompts are missing or have an id twice, a model cannot be loaded, a text cannot be embedded, or
            the folder has other files.
        BusyError: Another process makes other embeddings there, or any with force=true.
    """
    require_one_division(cfg, state.num_processes)
    work = sharded_work(cfg, state)
    is_finished = FinishedShards(work.files)
    before = None
    if state.is_main_process and not cfg.force:
        found = work.found()
        before = found if found is not None and all(list(map(is_finished, found["shards"]))) else None
    before = broadcast_from_main(state, before)
    if before is not None:
        size = f"{before['n']} x {before['dim']}"
        log(f"embeddings: {work.files.folder} ({size})  (finished before; force=true makes them again)")
        return before
    if state.is_main_process:
        _move_others(work)
        if cfg.force:
            _remove_records(work)
    state.wait_for_everyone()
    shared = cfg.copy()
    shared.force = False  # the records of shards are removed once
    with (
        taking_part(work.files.folder, work.files.key),
        started_workers("kat.pipeline.embed:embed", shared, own_workers(cfg)),
    ):
        shards = plan_shards(work.prompts_file, work.shard_rows)
        _embed_missing(work, shards, is_finished)
        result = _merged(work, shards, state)
    require_embeddable(sum(map(len, shards)), result["too_long"], 0, result["max_tokens"])
    size = f"{result['n']} x {result['dim']}"
    log(f"embeddings: {work.files.folder} ({size}) in {len(result['shards'])} shards; {work.record}")
    return result


def _embed_missing(work: ShardedWork, shards: Sequence[PromptShard], is_finished: FinishedShards) -> None:
    """Embed the missing shards together with all other processes."""
    by_name = {shard.name: shard for shard in shards}
    missing = [name for name in by_name if not is_finished(name)]
    if done := len(shards) - len(missing):
        log(f"{done} of {len(shards)} shards are finished from before")
    if not missing:
        return
    embedder = work.embedder.load()
    with _ShardProgress(work.embedder.name, {name: len(by_name[name]) for name in missing}) as progress:

        def seen(name: str) -> bool:
            finished = is_finished(name)
            if finished:
                progress.complete(name)
            return finished

        def make(name: str) -> None:
            prompts = by_name[name].read()
            work.require_unchanged()
            write_shard(
                work.files, name, prompts, embedder, work.batch_tokens, lambda rows: progress.advance(name, rows)
            )

        work_through(work.files.folder, missing, seen, make)


class _ShardProgress:
    """Prompts per second over missing shards. The shards of other processes count when they are found finished.

    Args:
        name: Name of the embedder.
        rows: Number of prompts of each missing shard.
    """

    def __init__(self, name: str, rows: dict[str, int]) -> None:
        self.left = dict(rows)
        self.progress = Progress(f"embed {name}", sum(rows.values()))
        self.started = time.perf_counter()

    def __enter__(self) -> _ShardProgress:
        self.progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.__exit__(None, None, None)

    def advance(self, name: str, rows: int) -> None:
        """Count prompts of a shard, at most as many as it has left."""
        rows = min(rows, self.left[name])
        if rows:
            self.left[name] -= rows
            seconds = max(time.perf_counter() - self.started, 1e-9)
            self.progress.advance(rows, f"{(self.progress.done + rows) / seconds:.0f} prompts/s")

    def complete(self, name: str) -> None:
        """Count all prompts that a shard has left."""
        self.advance(name, self.left[name])


def _merged(work: ShardedWork, shards: Sequence[PromptShard], state: PartialState) -> ShardedEmbeddingsRecord:
    """Return the content of embeddings.json, which one of the processes writes after a check of all shards."""

    def merge(_: str) -> None:
        work.require_unchanged()
        require_unique_ids(shards, lambda name: all_ids(work.files, name))
        write_json(work.record, _record(work, shards, state))
        sweep_up(work.files.folder)

    work_through(work.files.folder, ["embeddings"], lambda _: work.found() is not None, merge)
    result = work.found()
    assert result is not None
    return result


def _record(work: ShardedWork, shards: Sequence[PromptShard], state: PartialState) -> ShardedEmbeddingsRecord:
    sums = ShardSums.of(work.files, [shard.name for shard in shards])
    total = sum(map(len, shards))
    if sums.no_tokens or sums.too_long == total:
        require_embeddable(total, sums.too_long, sums.no_tokens, sums.max_tokens)
    origin = made_on(state)
    return {
        "format": FORMAT,
        "key": work.files.key,
        "embedder": work.about,
        "model": work.embedder.model_name,
        "n": sum(sums.sizes),
        "dim": sums.dim,
        "shards": sums.names,
        "sizes": sums.sizes,
        "too_long": sums.too_long,
        "tokens": sums.tokens,
        "max_tokens": sums.max_tokens,
        "prompts_file": str(work.prompts_file),
        "prompts": work.prompts,
        "shard_rows": work.shard_rows,
        "time_sec": round(sums.time_sec, 3),
        "device": origin["device"],
        "versions": origin["versions"],
        "git_commit": origin["git_commit"],
    }


def start_shards_anew(cfg: DictConfig) -> None:
    """Remove the records of finished shards, so that all are made again. Check all settings before.

    Raises:
        UserError: As for `embed_in_shards`.
    """
    state = accelerator_state(cfg.device)
    require_one_division(cfg, state.num_processes)
    work = sharded_work(cfg, state)
    _move_others(work)
    _remove_records(work)


def _move_others(work: ShardedWork) -> None:
    """Move a folder of other embeddings into the folder `replaced`."""
    folder = work.files.folder
    if _other_key(work) is not None:
        moving = folder.parent / f".{folder.name}.moving"
        work_through(moving, ["folder"], lambda _: _other_key(work) is None, lambda _: _move_away(work))
        shutil.rmtree(moving, ignore_errors=True)


def _remove_records(work: ShardedWork) -> None:
    """Remove the records of all shards, unless another process makes some."""
    require_idle(work.files.folder)
    for record in (work.record, *work.files.folder.glob("[0-9]*.json")):
        with writing(record):
            record.unlink(missing_ok=True)


def _other_key(work: ShardedWork) -> str | None:
    """Return the key of the embeddings in the folder if it has none of this work, or None."""
    records = [work.record] if work.record.is_file() else sorted(work.files.folder.glob("[0-9]*.json"))
    keys = [key for record in records if (key := _key(record)) is not None]
    return keys[0] if keys and work.files.key not in keys else None


def _key(record: Path) -> str | None:
    """Return the key in the record of a shard or of all; None if it is damaged."""
    try:
        content = read_json(record)
    except (DamagedResultError, FileNotFoundError):  # FileNotFoundError: another process has moved the folder
        return None
    return str(content["key"]) if isinstance(content, dict) and "key" in content else None


def _move_away(work: ShardedWork) -> None:
    folder, key = work.files.folder, _other_key(work)
    require_idle(folder)
    replaced = folder.parent / "replaced"
    with writing(replaced):
        replaced.mkdir(exist_ok=True)
        names = [f"{folder.name}.{key}", *(f"{folder.name}.{key}.{number}" for number in range(2, 1000))]
        target = next(replaced / name for name in names if not (replaced / name).exists())
        folder.rename(target)
    log(f"note: {folder} contained other embeddings; they are now in {target}")
