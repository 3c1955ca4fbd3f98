"""The task retrieve: the prompts nearest to a query."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from kat.data.prompts import normalise, read_prompts, render_conversation
from kat.data.tables import same_ids
from kat.embedding.pooling import embed_texts
from kat.embedding.registry import EmbedderSpec, load_embedder
from kat.embedding.store import load_embeddings
from kat.pipeline.artifacts import locate, record_of, task
from latentwire.harness.device import accelerator_state, choose_dtype
from latentwire.harness.errors import UserError
from latentwire.harness.progress import is_main_process
from latentwire.harness.typed_config import typed
from latentwire.lm.spec import ModelSpec


@task
def retrieve(cfg: DictConfig) -> list[dict[str, Any]] | None:
    """Print the prompts nearest to a query, by cosine.

    Returns:
        id, score and text of each, nearest first; None in processes other than the first.

    Raises:
        UserError: No query, files that do not belong together, or embeddings that another embedder made.
    """
    state = accelerator_state(cfg.device)
    if not state.is_main_process:
        return None
    query = render_conversation(normalise([{"role": "user", "content": str(cfg.query)}]))
    if not query:
        raise UserError("query: is empty; write query='What is NLP?'")
    path = locate(cfg, "embeddings_file")
    ids, emb = load_embeddings(path)
    top_k = cfg.top_k
    if not isinstance(top_k, int) or not 1 <= top_k <= len(ids):
        raise UserError(f"top_k={top_k}: must be a whole number between 1 and the {len(ids)} embedded prompts")
    texts = {prompt.id: prompt for prompt in read_prompts(locate(cfg, "prompts_file"))}
    remedy = "run task=embed for these prompts, or give their file with prompts_file=FILE"
    same_ids(ids, texts, str(path), str(locate(cfg, "prompts_file")), remedy)
    spec = typed(EmbedderSpec, cfg.embedder, "embedder.")
    spec.check()
    if spec.name == "file":
        raise UserError("embedder=file: a file embeds no query; name what made it, such as embedder=hidden")
    model = typed(ModelSpec, cfg.model, "model.")
    dtype = choose_dtype(cfg.dtype, state.device)
    _check_same(path, spec.identity(model, dtype))
    vector = embed_texts(load_embedder(spec, model, state.device, dtype), [query])[0]
    best = torch.topk(emb @ vector, top_k)
    found = [
        {"id": ids[row], "score": score, "text": texts[ids[row]].text, "source": texts[ids[row]].source}
        for score, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    if is_main_process():
        for line in _listed(found):
            print(line)
    return found


def _listed(found: list[dict[str, Any]]) -> Iterator[str]:
    for rank, row in enumerate(found, 1):
        text = " ".join(row["text"].split())
        yield f"{rank:>3}  {row['score']:.4f}  {row['id']}  {text if len(text) <= 160 else text[:157] + '...'}"


def _check_same(path: Path, about: dict[str, Any]) -> None:
    """Refuse to compare a query with rows of another embedder."""
    found = record_of(path)
    made_by = found.get("embedder")
    if not isinstance(made_by, dict):
        raise UserError(
            f"{path}: {path.stem}.json beside it does not say what made it, so a query cannot be embedded alike; "
            "make the embeddings again with task=embed"
        )
    other = [name for name in {**made_by, **about} if made_by.get(name) != about.get(name)]
    if other:
        listed = ", ".join(
            f"another {name}" if isinstance(made_by.get(name), dict) else f"{name}={made_by.get(name)}"
            for name in other
        )
        settings = {**made_by, "model": found.get("model")}
        given = [f"{name}={settings[name]}" for name in ("embedder", "model", "dtype") if settings.get(name)]
        raise UserError(
            f"{path} was made with {listed}, so the query would not be embedded alike; give task=retrieve the settings "
            f"of task=embed ({', '.join(given)}, path or full if they were set), or run task=embed again"
        )
