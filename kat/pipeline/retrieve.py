"""The task retrieve: the prompts nearest to a query. Main entry: `retrieve()`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from kat.data.prompts import normalise, read_prompts, render_conversation
from kat.data.tables import same_ids
from kat.embedding.pooling import embed_texts
from kat.embedding.registry import EMBEDDERS
from kat.embedding.sharded import ShardedEmbeddings
from kat.embedding.store import load_embeddings, record_of
from kat.pipeline.artifacts import locate, task
from kat.pipeline.embed_shards import sharded_record
from kat.pipeline.embedders import chosen_embedder
from kat.records import RetrievedPrompt
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.progress import is_main_process
from latentwire.harness.results import JsonObject
from latentwire.harness.shard_files import is_sharded


@task
def retrieve(cfg: DictConfig) -> list[RetrievedPrompt] | None:
    """Print the prompts nearest to a query, by cosine.

    Returns:
        The id, score, text and source of each prompt, nearest first; None in all processes but the main one.

    Raises:
        UserError: The query is empty, the files do not belong together, or another embedder made the embeddings.
    """
    state = accelerator_state(cfg.device)
    if not state.is_main_process:
        return None
    query = render_conversation(normalise([{"role": "user", "content": str(cfg.query)}]))
    if not query:
        raise UserError("query: is empty; write query='What is NLP?'")
    path = locate(cfg, "embeddings_file", folder=True)
    find = _in_shards if is_sharded(path) else _in_file
    found = find(cfg, path, partial(_query_vector, cfg, state.device, query))
    if is_main_process():
        for line in _listed(found):
            print(line)
    return found


def _query_vector(
    cfg: DictConfig, device: torch.device, query: str, path: Path, recorded: JsonObject, model: str | None
) -> Tensor:
    """Return the embedding of the query, (D,), by the embedder that made the embeddings."""
    embedder = chosen_embedder(cfg, device)
    embedder.require_texts("a query")
    _check_embedder(path, recorded, model, embedder.identity())
    return embed_texts(embedder.load(), [query])[0]


def _top_k(cfg: DictConfig, n: int) -> int:
    if not isinstance(cfg.top_k, int) or not 1 <= cfg.top_k <= n:
        raise UserError(f"top_k={cfg.top_k}: must be a whole number between 1 and the {n} embedded prompts")
    return cfg.top_k


def _in_file(cfg: DictConfig, path: Path, vector_of: Callable[..., Tensor]) -> list[RetrievedPrompt]:
    ids, emb = load_embeddings(path)
    top_k = _top_k(cfg, len(ids))
    texts = {prompt.id: prompt for prompt in read_prompts(locate(cfg, "prompts_file"))}
    remedy = "run task=embed for these prompts, or give their file with prompts_file=FILE"
    same_ids(ids, texts, str(path), str(locate(cfg, "prompts_file")), remedy)
    record = record_of(path)
    if record is None:
        raise UserError(
            f"{path}: {path.stem}.json does not name the embedder, so the query cannot be embedded in the same way; "
            "make the embeddings again with task=embed"
        )
    best = torch.topk(emb @ vector_of(path, record["embedder"], record["model"]), top_k)
    return [
        {"id": ids[row], "score": score, "text": texts[ids[row]].text, "source": texts[ids[row]].source}
        for score, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _in_shards(cfg: DictConfig, path: Path, vector_of: Callable[..., Tensor]) -> list[RetrievedPrompt]:
    """Return the nearest prompts in a folder of embeddings, with the beginnings of their texts."""
    emb = ShardedEmbeddings.open(path)
    top_k, record = _top_k(cfg, len(emb)), sharded_record(path)
    assert record is not None
    vector = vector_of(path, record["embedder"], record["model"])
    scores = torch.cat([block @ vector for name in emb.names for block in emb.blocks(name)])
    best = scores.topk(top_k)
    rows = best.indices.tolist()
    return [
        {"id": name, "score": score, "text": text, "source": source}
        for score, (name, text, source) in zip(best.values.tolist(), emb.shown(rows), strict=True)
    ]


def _listed(found: list[RetrievedPrompt]) -> Iterator[str]:
    for rank, row in enumerate(found, 1):
        text = " ".join(row["text"].split())
        yield f"{rank:>3}  {row['score']:.4f}  {row['id']}  {text if len(text) <= 160 else text[:157] + '...'}"


def _check_embedder(path: Path, recorded: JsonObject, model: str | None, identity: JsonObject) -> None:
    """Raise UserError if another embedder made the embeddings."""
    differing = [name for name in {**recorded, **identity} if recorded.get(name) != identity.get(name)]
    if differing:
        settings = {**recorded, "model": model}
        given = [f"{name}={settings[name]}" for name in ("embedder", "model", "dtype") if settings.get(name)]
        given += [f"embedder.{name}={value}" for name, value in _own_settings(recorded).items()]
        if "source" in recorded and recorded["embedder"] not in EMBEDDERS:
            given.append("plugins=[MODULE] with the module that registers it")
        raise UserError(
            f"{path} was made with {_listed_differences(differing, recorded, identity)}, so the query would be "
            f"embedded differently; give task=retrieve the settings of task=embed ({', '.join(given)}, path or full "
            "if they were set), or run task=embed again"
        )


def _own_settings(identity: JsonObject) -> dict[str, object]:
    """Return the settings of a user's embedder in its identity."""
    settings = identity.get("settings", {})
    assert isinstance(settings, dict)
    return settings


def _listed_differences(differing: list[str], recorded: JsonObject, identity: JsonObject) -> str:
    """Return what embeddings were made with that is different here, in words."""
    same_embedder = "embedder" not in differing
    words = []
    for name in differing:
        if name == "source" and same_embedder:
            words.append("an earlier version of the embedder's module")
        elif name == "settings":
            here = _own_settings(identity)
            words += [f"embedder.{key}={value}" for key, value in _own_settings(recorded).items()
                      if here.get(key) != value]  # fmt: skip
        elif name != "source" and (same_embedder or name in recorded):
            words.append(f"another {name}" if isinstance(recorded.get(name), dict) else f"{name}={recorded.get(name)}")
    return ", ".join(words)
