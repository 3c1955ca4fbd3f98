"""The task project: the 3-D map of the prompts. Main entry: `projection()`."""

from __future__ import annotations

from omegaconf import DictConfig

from kat.density.projection import map_page, project
from kat.density.records import MapPoint, MapResult
from kat.embedding.store import load_embeddings
from kat.pipeline.artifacts import destination, locate, task
from kat.pipeline.origin import prompts_of, recorded_density
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import write_json, write_text_atomically
from latentwire.records import FORMAT


@task
def projection(cfg: DictConfig) -> list[MapPoint]:
    """Write embeddings_3d.json and the page embeddings_3d.html.

    Returns:
        The points of the map.

    Raises:
        UserError: A file is missing, damaged or does not match the others, or there are too few prompts.
    """
    out, source = destination(cfg, ".html"), locate(cfg, "embeddings_file")
    ids, emb = load_embeddings(source)
    prompts = prompts_of(ids, locate(cfg, "prompts_file"), source)
    density, weights = recorded_density(ids, locate(cfg, "weights_file"), source)
    xyz, shares = project(emb, cfg.method, cfg.seed)
    axes = [f"PC{i} ({share:.0%})" for i, share in enumerate(shares, 1)] or ["UMAP 1", "UMAP 2", "UMAP 3"]
    points: list[MapPoint] = [
        {
            "id": name,
            "x": round(x, 5),
            "y": round(y, 5),
            "z": round(z, 5),
            "density": float(density[i]),
            "weight": float(weights[i]),
            "source": prompts[i].source,
            "text": prompts[i].text,
        }
        for i, (name, (x, y, z)) in enumerate(zip(ids, xyz.tolist(), strict=True))
    ]
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
