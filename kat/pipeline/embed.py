"""The task embed: embeddings.pt from the unique prompts, in one or several processes. Main entry: `embed()`.

The work is done in pieces that stay on disk, so a killed run resumes. `kat.pipeline.embed_shards` makes a folder.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from omegaconf import DictConfig

from kat.data.prompts import Prompt, read_prompts
from kat.embedding.base import EmbeddedPrompts
from kat.embedding.registry import EmbedderSpec
from kat.embedding.shard_writer import ShardedEmbeddingsRecord
from kat.embedding.shards import Shards
from kat.embedding.store import load_embeddings, record_of, save_embeddings
from kat.embedding.stored import text_digests
from kat.pipeline.artifacts import destination, locate, require_one_process, task
from kat.pipeline.embed_shards import embed_in_shards, start_shards_anew
from kat.pipeline.embedders import BATCH_TOKENS_ON_CPU, chosen_embedder, require_embeddable
from kat.records import EmbeddingsRecord
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main, in_every_process
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.origin import made_on
from latentwire.harness.ownership import owned
from latentwire.harness.progress import Progress, log
from latentwire.harness.results import JsonObject, MadeOn, config_hash, read_json, write_json, writing
from latentwire.harness.shard_files import is_sharded
from latentwire.records import FORMAT


@dataclass
class Plan:
    """The work of task=embed, known before a model is loaded."""

    out: Path
    prompts: list[Prompt]
    embedder: EmbedderSpec
    batch_tokens: int
    about: JsonObject  # identity of the embedder
    key: str  # hash of the embedder and the prompts


@task
def embed(cfg: DictConfig) -> EmbeddingsRecord | ShardedEmbeddingsRecord:
    """Embed the unique prompts, or resume a killed run, and write embeddings.pt and embeddings.json.

    If the path `out` has no ending, it is a folder of shards.

    Returns:
        The content of embeddings.json.

    Raises:
        UserError: The prompts are missing, a model cannot be loaded, or a text cannot be embedded.
    """
    state, out = accelerator_state(cfg.device), locate(cfg, "out", folder=True)
    if is_sharded(out):
        return embed_in_shards(cfg, state)
    require_one_process(cfg, "out", out)
    return _embed_into_file(cfg, state)


@task
def start_embed_anew(cfg: DictConfig) -> None:
    """Remove finished embeddings in shards, so that workers make them again."""
    start_shards_anew(cfg)


def _embed_into_file(cfg: DictConfig, state: PartialState) -> EmbeddingsRecord:
    work = plan(cfg, state)
    before = None if cfg.force else _found(work, state)
    if before is None:
        with owned(work.out.parent, work.out.name, state):
            before = None if cfg.force else _found(work, state)  # another process may have made them by now
            if before is None:
                return _make(cfg, work, state)
    log(f"embeddings: {work.out} ({before['n']} x {before['dim']})  (finished before; force=true makes them again)")
    return before


def _found(work: Plan, state: PartialState) -> EmbeddingsRecord | None:
    """Return the record of complete embeddings in every process, or None."""
    found = _finished(work, work.out.with_suffix(".json")) if state.is_main_process else None
    return broadcast_from_main(state, found)


def _make(cfg: DictConfig, work: Plan, state: PartialState) -> EmbeddingsRecord:
    """Embed the prompts, and write embeddings.pt and embeddings.json."""
    record = work.out.with_suffix(".json")
    started = time.perf_counter()
    found = work.embedder.stored().rows(work.prompts) if work.embedder.is_stored else _embedded(cfg, work, state)
    seconds = round(time.perf_counter() - started, 3)
    result = _record(work, found, str(locate(cfg, "prompts_file")), seconds, made_on(state))
    if state.is_main_process:
        assert found.emb is not None
        _set_aside(work.out, record, work.key)
        save_embeddings(work.out, found.ids, found.emb)
        write_json(record, result)
        _remove_shards(work)
        log(f"embeddings: {work.out} ({len(found.ids)} x {found.emb.shape[1]}); {record}")
    state.wait_for_everyone()
    shared: EmbeddingsRecord = broadcast_from_main(state, result)
    return shared


def plan(cfg: DictConfig, state: PartialState) -> Plan:
    """Return the work of task=embed for a config, without loading a model.

    Raises:
        UserError: The prompts are missing, or the embedder is unknown or cannot be identified.
    """
    embedder = chosen_embedder(cfg, state.device)
    prompts = read_prompts(locate(cfg, "prompts_file"))
    batch_tokens = choose_batch_tokens(cfg.batch_tokens, state.device, BATCH_TOKENS_ON_CPU)
    about = embedder.identity()
    key = config_hash([about, [[prompt.id, prompt.text] for prompt in prompts]])
    return Plan(destination(cfg, ".json"), prompts, embedder, batch_tokens, about, key)


def _record(work: Plan, found: EmbeddedPrompts, prompts_file: str, seconds: float, origin: MadeOn) -> EmbeddingsRecord:
    """Return the content of embeddings.json."""
    result: EmbeddingsRecord = {
        "format": FORMAT,
        "key": work.key,
        "embedder": work.about,
        "model": found.model,
        "n": len(found.ids),
        "dim": 0 if found.emb is None else found.emb.shape[1],
        "too_long": found.too_long,
        "prompts_file": prompts_file,
        "time_sec": seconds,
        "device": origin["device"],
        "processes": origin["processes"],
        "versions": origin["versions"],
        "git_commit": origin["git_commit"],
        "texts": text_digests(work.prompts, found.ids),
    }
    if found.tokens is not None and found.max_tokens is not None:
        result["tokens"], result["max_tokens"] = found.tokens, found.max_tokens
    if found.taken_from is not None:
        result["from"] = found.taken_from
    return result


def _finished(work: Plan, record: Path) -> EmbeddingsRecord | None:
    """Return the record of complete embeddings with this key, or None."""
    if not work.out.is_file() or _recorded_key(record) != work.key:
        return None
    found = record_of(work.out)
    assert found is not None
    ids, emb = load_embeddings(work.out)
    if [len(ids), emb.shape[1]] != [found["n"], found["dim"]]:
        raise UserError(f"{work.out}: does not match {record}; make it again with force=true")
    return found


def _recorded_key(record: Path) -> str | None:
    """Return the key in a record, also of a file of another kind; None without a key."""
    content = read_json(record) if record.is_file() else None
    return str(content["key"]) if isinstance(content, dict) and "key" in content else None


def _set_aside(out: Path, record: Path, key: str) -> None:
    """Move embeddings with another key into the folder `replaced`, so that they are not lost."""
    other = _recorded_key(record) or "foreign"
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


def _embedded(cfg: DictConfig, work: Plan, state: PartialState) -> EmbeddedPrompts:
    """Embed with a model. All processes share the pieces, and the main process assembles them."""
    with state.local_main_process_first():
        embedder = work.embedder.load()
    lengths = embedder.lengths([prompt.text for prompt in work.prompts])
    fitting = [i for i, length in enumerate(lengths) if 0 < length <= embedder.max_tokens]
    too_long = [prompt.id for prompt, length in zip(work.prompts, lengths, strict=True) if length > embedder.max_tokens]
    empty = len(work.prompts) - len(fitting) - len(too_long)
    require_embeddable(len(work.prompts), len(too_long), empty, embedder.max_tokens)
    texts = [work.prompts[i].text for i in fitting]
    shards = Shards(_shards_folder(work), [lengths[i] for i in fitting], work.batch_tokens)
    missing = broadcast_from_main(state, shards.missing() if state.is_main_process else [])
    if done := len(shards.pieces) - len(missing):
        log(f"{done} of {len(shards.pieces)} pieces are finished from before")
    own_pieces = missing[state.process_index :: state.num_processes]
    with Progress(f"embed {work.embedder.name}", shards.texts_of(own_pieces)) as progress:
        started = time.perf_counter()

        def advance(rows: int) -> None:
            seconds = max(time.perf_counter() - started, 1e-9)
            progress.advance(rows, f"{(progress.done + rows) / seconds:.0f} prompts/s")

        in_every_process(state, lambda: shards.work(own_pieces, embedder, texts, advance))
    ids = [work.prompts[i].id for i in fitting]
    emb = shards.assemble() if state.is_main_process else None
    tokens = sum(lengths[i] for i in fitting)
    return EmbeddedPrompts(ids, emb, too_long, work.embedder.model_name, tokens, embedder.max_tokens)
