"""The task cluster: k-means of the prompts. Main entry: `clusters()`."""

from __future__ import annotations

from collections import Counter

from omegaconf import DictConfig

from kat.density.clusters import closest_to_centroid, cluster
from kat.density.records import ClusterRecord, ClustersResult
from kat.embedding.store import load_embeddings
from kat.pipeline.artifacts import destination, locate, task
from kat.pipeline.origin import prompts_of, recorded_density
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import write_json
from latentwire.records import FORMAT

SHOWN = 5  # prompts nearest to each centroid in clusters.json


@task
def clusters(cfg: DictConfig) -> ClustersResult:
    """Group the prompts by k-means, and write clusters.json.

    Returns:
        The content of clusters.json.

    Raises:
        UserError: A file is missing, damaged or does not match the others, or there are more clusters than prompts.
    """
    weights_file, out, source = locate(cfg, "weights_file"), destination(cfg), locate(cfg, "embeddings_file")
    ids, emb = load_embeddings(source)
    prompts = prompts_of(ids, locate(cfg, "prompts_file"), source)
    known = recorded_density(ids, weights_file, source) if weights_file.is_file() else None
    found = cluster(emb, cfg.clusters, cfg.seed)
    described: list[ClusterRecord] = []
    for number, rows in enumerate(closest_to_centroid(emb, found, SHOWN)):
        members = (found.labels == number).nonzero()[:, 0]
        described.append(
            {
                "cluster": number,
                "size": len(members),
                "mean_density": None if known is None else float(known[0][members].mean()),
                "mass": None if known is None else float(known[1][members].sum()),
                "sources": dict(Counter(prompts[row].source for row in members.tolist())),
                "nearest": [{"id": ids[row], "text": prompts[row].text} for row in rows],
            }
        )
    result: ClustersResult = {
        "format": FORMAT,
        "clusters": described,
        "labels": dict(zip(ids, found.labels.tolist(), strict=True)),
        "seed": cfg.seed,
    }
    if is_main_process():
        write_json(out, result)
        for entry in described:
            numbers = "" if known is None else f"  density {entry['mean_density']:.3g}  mass {entry['mass']:.3f}"
            example = _shortened(entry["nearest"][0]["text"])
            print(f"{entry['cluster']:>4}  {entry['size']:>6} prompts{numbers}  {example}")
        if known is None:
            log(f"note: {weights_file} does not exist, so the clusters have no mean density; task=density makes it")
        log(f"{len(described)} clusters: {out}")
    return result


def _shortened(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
