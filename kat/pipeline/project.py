"""The task project: the 3-D map of the prompts. Main entry: `projection()`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor

from kat.density.projection import map_page, project
from kat.density.records import MapPoint, MapResult
from kat.embedding.sharded import ShardedEmbeddings
from kat.embedding.store import load_embeddings
from kat.pipeline.artifacts import destination, locate, task
from kat.pipeline.origin import prompts_of, recorded_density, require_same_shards
from kat.sampling.weight_files import WeightFolder
from latentwire.harness.errors import UserError
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.random import generator_for
from latentwire.harness.results import write_json, write_text_atomically
from latentwire.harness.shard_files import is_sharded
from latentwire.records import FORMAT


@dataclass(frozen=True)
class _Mapped:
    """The prompts of a map: ids, texts and sources of n prompts, embeddings (n, D), densities and weights (n,)."""

    ids: list[str]
    texts: list[str]
    sources: list[str]
    emb: Tensor
    density: Tensor
    weights: Tensor


@task
def projection(cfg: DictConfig) -> list[MapPoint]:
    """Write embeddings_3d.json and the page embeddings_3d.html.

    For embeddings in a folder of shards, the map has `points` prompts chosen at random, with the beginnings of their
    texts.

    Returns:
        The points of the map.

    Raises:
        UserError: A file is missing, damaged or does not match the others, or there are too few prompts.
    """
    out = destination(cfg, ".html")
    mapped = _from_shards(cfg) if is_sharded(locate(cfg, "embeddings_file", folder=True)) else _from_file(cfg)
    xyz, shares = project(mapped.emb, cfg.method, cfg.seed)
    axes = [f"PC{i} ({share:.0%})" for i, share in enumerate(shares, 1)] or ["UMAP 1", "UMAP 2", "UMAP 3"]
    points = list(_points(mapped, xyz))
    if is_main_process():
        html = out.with_suffix(".html")
        result: MapResult = {
            "format": FORMAT,
            "method": cfg.method,
            "variance_shares": shares,
            "points": points,
        }
        write_json(out, result)
        write_text_atomically(html, map_page(points, "Prompt map", axes))
        log(f"{len(points)} points by {cfg.method}: {out}")
        log(f"page, opens in any browser without a network: {html}")
    return points


def _points(mapped: _Mapped, xyz: Tensor) -> Iterator[MapPoint]:
    for i, (x, y, z) in enumerate(xyz.tolist()):
        yield {
            "id": mapped.ids[i],
            "x": round(x, 5),
            "y": round(y, 5),
            "z": round(z, 5),
            "density": float(mapped.density[i]),
            "weight": float(mapped.weights[i]),
            "source": mapped.sources[i],
            "text": mapped.texts[i],
        }


def _from_file(cfg: DictConfig) -> _Mapped:
    source = locate(cfg, "embeddings_file")
    ids, emb = load_embeddings(source)
    prompts = prompts_of(ids, locate(cfg, "prompts_file"), source)
    density, weights = recorded_density(ids, locate(cfg, "weights_file"), source)
    texts, sources = [prompt.text for prompt in prompts], [prompt.source for prompt in prompts]
    return _Mapped(ids, texts, sources, emb, density, weights)


def _from_shards(cfg: DictConfig) -> _Mapped:
    """Return prompts chosen at random from embeddings in shards."""
    if not isinstance(cfg.points, int) or isinstance(cfg.points, bool) or cfg.points < 1:
        raise UserError(f"points={cfg.points}: must be a whole number above 0")
    emb = ShardedEmbeddings.open(locate(cfg, "embeddings_file", folder=True))
    weighed = WeightFolder.open(locate(cfg, "weights_file", folder=True))
    require_same_shards(weighed, emb)
    order = torch.randperm(len(emb), generator=generator_for(cfg.seed, "map"))
    rows = order[: cfg.points].sort().values.numpy()
    if len(rows) < len(emb):
        log(f"note: the map has {len(rows)} of {len(emb)} prompts, chosen at random; points=N changes their number")
    columns: dict[str, list[float]] = {"density": [], "weight": []}
    for number, name in enumerate(weighed.names):
        first, end = weighed.starts[number : number + 2]
        own = rows[(rows >= first) & (rows < end)] - first
        table = weighed.table(name).select(list(columns)).take(own) if len(own) else None
        for column, values in columns.items():
            values.extend([] if table is None else table[column].to_pylist())
    shown = emb.shown(rows.tolist())
    density, weights = (torch.tensor(values, dtype=torch.float64) for values in columns.values())
    ids, texts, sources = ([prompt[part] for prompt in shown] for part in range(3))
    return _Mapped(ids, texts, sources, emb.take(rows), density, weights)
