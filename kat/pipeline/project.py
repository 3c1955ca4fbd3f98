"""The task project: the 3-D map of the prompts. Main entry: `projection()`."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from kat.density.projection import map_page, project
from kat.embedding.store import load_embeddings
from kat.pipeline.artifacts import destination, locate, task
from kat.pipeline.origin import density_of, prompts_of
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import write_json, write_text_atomically


@task
def projection(cfg: DictConfig) -> list[dict[str, Any]]:
    """Write embeddings_3d.json and the page embeddings_3d.html.

    Returns:
        The points of the map.

    Raises:
        UserError: A file is missing, damaged or does not match the others, or there are too few prompts.
    """
    out, source = destination(cfg, ".html"), locate(cfg, "embeddings_file")
    ids, emb = load_embeddings(source)
    prompts = prompts_of(ids, locate(cfg, "prompts_file"), source)
    density, weights = density_of(ids, locate(cfg, "weights_file"), source)
    xyz, shares = project(emb, cfg.method, cfg.seed)
    axes = [f"PC{i} ({share:.0%})" for i, share in enumerate(shares, 1)] or ["UMAP 1", "UMAP 2", "UMAP 3"]
    points = [
        {
            "id": name,
            **{axis: round(value, 5) for axis, value in zip("xyz", coordinates, strict=True)},
            "density": float(density[i]),
            "weight": float(weights[i]),
            "source": prompts[i].source,
            "text": prompts[i].text,
        }
        for i, (name, coordinates) in enumerate(zip(ids, xyz.tolist(), strict=True))
    ]
    if is_main_process():
        html = out.with_suffix(".html")
        write_json(out, {"method": cfg.method, "variance_shares": shares, "points": points})
        write_text_atomically(html, map_page(points, "Prompt map", axes))
        log(f"{len(points)} points by {cfg.method}: {out}")
        log(f"page, opens in any browser without a network: {html}")
    return points
