"""The tasks pairs, prompts, embed and retrieve: settings in, files out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from omegaconf import DictConfig

import latentwire
from kat.embed import embed_texts, load_embeddings, save_embeddings
from kat.embedders import EmbedderSpec, load_embedder
from kat.pairs import Dropped, PairsSpec, PreferencePair, Reading, read_pairs, readings
from kat.prompts import Prompt, normalise, read_prompts, render, unique_prompts
from kat.shards import Shards
from latentwire.harness import app
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import choose_dtype, describe_machine, from_first, gather_from_all, place
from latentwire.harness.errors import UserError
from latentwire.harness.progress import Progress, say, speaks
from latentwire.harness.results import (
    config_hash,
    git_commit,
    json_line,
    open_atomically,
    read_json,
    write_json,
    write_jsonl,
    writing,
)
from latentwire.models import ModelSpec


def locate(cfg: DictConfig, name: str) -> Path:
    """Return the path of a file of kat: a name without a folder lies in cfg.folder, anything else where it says.

    Raises:
        UserError: No name given, or a folder where a file is wanted.
    """
    value = str(cfg[name] or "")
    if not value:
        raise UserError(f"{name}: no file given; write {name}=FILE")
    path = Path(value).expanduser()
    if len(path.parts) == 1 and not value.startswith("."):
        path = Path(cfg.folder).expanduser() / path
    if path.is_dir():
        raise UserError(f"{name}={value}: is a folder; write {name}=FILE")
    return path


def pairs(cfg: DictConfig) -> dict[str, Any] | None:
    """Read the preference data sets of cfg.pairs; write the pairs, and what was dropped, with its reason.

    Returns:
        Counts for each data set and split; None in processes other than the first.

    Raises:
        UserError: A data set cannot be read, or gives no pair at all.
    """
    if not place(cfg.device).is_main_process:
        return None
    out = locate(cfg, "out")
    side = out.with_name(out.stem.removesuffix("_all") + "_dropped.jsonl")
    specs = [app.typed(PairsSpec, node, f"pairs.{name}.") for name, node in cfg.pairs.items()]
    specs = [_named_after_file(spec) if spec.origin == "file" else spec for spec in specs]
    counts: dict[str, Any] = {}
    with ExitStack() as stack:
        kept = stack.enter_context(open_atomically(out))
        dropped = stack.enter_context(open_atomically(side))
        for reading in readings(specs):
            name = f"{reading.spec.name}/{reading.split}"
            number, reasons = 0, Counter[str]()
            for item in reading:
                if isinstance(item, PreferencePair):
                    number += 1
                    with writing(out):
                        kept.write(json_line(item.row()).encode())
                else:
                    reasons[item.reason] += 1
                    with writing(side):
                        dropped.write(_ascii_line(item))
            counts[name] = {"format": reading.format, "rows": reading.rows, "pairs": number, "dropped": dict(reasons)}
            _say_counts(name, reading, number, reasons)
            if number == 0:
                raise UserError(
                    f"{name}: none of its {reading.rows} rows gives a pair "
                    f"({', '.join(f'{n} {reason}' for reason, n in reasons.most_common()) or 'it is empty'}); check "
                    "the file, or name its format with pairs.file.format=NAME"
                )
    say(f"pairs: {out} ({sum(c['pairs'] for c in counts.values())})")
    say(f"dropped: {side} ({sum(sum(c['dropped'].values()) for c in counts.values())})")
    return counts


def _named_after_file(spec: PairsSpec) -> PairsSpec:
    path = next(iter(spec.splits.values()), "")
    return replace(spec, name=Path(path).name.split(".")[0] or spec.name)


def _say_counts(name: str, reading: Reading, number: int, reasons: Counter[str]) -> None:
    say(f"{name}: {number} pairs out of {reading.rows} rows, read as {reading.format}")
    for reason, n in reasons.most_common():
        say(f"  dropped {n}: {reason}")


def _ascii_line(item: Dropped) -> bytes:
    """Write whatever the row holds, also what is no Unicode text."""
    import json

    row = {"source": item.source, "split": item.split, "place": item.place, "reason": item.reason, "row": item.row}
    return (json.dumps(row, default=str) + "\n").encode("ascii")


def prompts(cfg: DictConfig) -> int | None:
    """Write the unique prompts of the pairs, and which pair has which.

    Returns:
        How many there are; None in processes other than the first.

    Raises:
        UserError: No pairs file, a damaged one, or no pair of the split.
    """
    if not place(cfg.device).is_main_process:
        return None
    out, source = locate(cfg, "out"), locate(cfg, "pairs_file")
    unique, pair_to_prompt = unique_prompts(read_pairs(source), cfg.split)
    if not unique:
        raise UserError(f"split={cfg.split}: no pair of {source} is of this split; choose another, or split=null")
    write_jsonl(out, (prompt.row() for prompt in unique))
    side = out.with_name("pair_to_prompt.jsonl")
    write_jsonl(side, ({"pair_id": pair, "prompt_id": prompt} for pair, prompt in pair_to_prompt))
    say(f"prompts: {out} ({len(unique)} unique of {len(pair_to_prompt)} pairs); {side}")
    for name, n in sorted(Counter(prompt.source for prompt in unique).items()):
        say(f"  {n} of {name}")
    shared = sum(len(prompt.splits) > 1 for prompt in unique)
    if shared and cfg.split:
        say(f"warning: {shared} of these prompts occur in another split too; their `splits` say in which")
    return len(unique)


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
        "n": len(ids),
        "dim": emb.shape[1] if emb is not None else 0,
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
    import shutil

    folder = work.out.parent / f".{work.out.name}.parts" / config_hash([work.key, batch_tokens])
    if remove:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    return folder


def _embedded(cfg: DictConfig, work: _Work, state: PartialState) -> Any:
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


def _from_file(work: _Work) -> Any:
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


def retrieve(cfg: DictConfig) -> list[dict[str, Any]] | None:
    """Print the prompts nearest to a query, by cosine.

    Returns:
        id, score and text of each, nearest first; None in processes other than the first.

    Raises:
        UserError: No query, files that do not belong together, or embeddings that another embedder made.
    """
    state = place(cfg.device)
    if not state.is_main_process:
        return None
    query = render(normalise([{"role": "user", "content": str(cfg.query)}]))
    if not query:
        raise UserError("query: is empty; write query='What is NLP?'")
    path = locate(cfg, "embeddings_file")
    ids, emb = load_embeddings(path)
    top_k = cfg.top_k
    if not isinstance(top_k, int) or not 1 <= top_k <= len(ids):
        raise UserError(f"top_k={top_k}: must be a whole number between 1 and the {len(ids)} embedded prompts")
    texts = {prompt.id: prompt for prompt in read_prompts(locate(cfg, "prompts_file"))}
    if strangers := [name for name in ids if name not in texts]:
        raise UserError(
            f"{path}: {len(strangers)} of its {len(ids)} ids are not in {locate(cfg, 'prompts_file')}, among them "
            f"{strangers[0]}; run task=embed for these prompts, or give their file with prompts_file=FILE"
        )
    spec = app.typed(EmbedderSpec, cfg.embedder, "embedder.")
    spec.check()
    if spec.name == "file":
        raise UserError("embedder=file: a file embeds no query; name the embedder that made it, such as embedder=hidden")
    model = app.typed(ModelSpec, cfg.model, "model.")
    dtype = choose_dtype(cfg.dtype, state.device)
    _check_same(path, spec.identity(model, dtype))
    vector = embed_texts(load_embedder(spec, model, state.device, dtype), [query])[0]
    best = torch.topk(emb @ vector, top_k)
    found = [
        {"id": ids[row], "score": score, "text": texts[ids[row]].text, "source": texts[ids[row]].source}
        for score, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    if speaks():
        for line in _listed(found):
            print(line)
    return found


def _listed(found: list[dict[str, Any]]) -> Iterator[str]:
    for rank, row in enumerate(found, 1):
        text = " ".join(row["text"].split())
        yield f"{rank:>3}  {row['score']:.4f}  {row['id']}  {text if len(text) <= 160 else text[:157] + '...'}"


def _check_same(path: Path, about: dict[str, Any]) -> None:
    """Refuse to compare a query with rows of another embedder."""
    record = path.with_suffix(".json")
    found = read_json(record) if record.is_file() else None
    made_by = found.get("embedder") if isinstance(found, dict) else None
    if not isinstance(made_by, dict):
        raise UserError(
            f"{path}: {record.name} beside it does not say what made it, so a query cannot be embedded alike; make the "
            "embeddings again with task=embed"
        )
    other = [name for name in {**made_by, **about} if made_by.get(name) != about.get(name)]
    if other:
        listed = ", ".join(f"{name} {made_by.get(name)} and not {about.get(name)}" for name in other)
        raise UserError(
            f"{path} was made with {listed}; give retrieve the same settings "
            f"(embedder={made_by.get('embedder')}, and model, dtype or path as they were), or run task=embed again"
        )
