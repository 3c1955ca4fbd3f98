"""The tasks that measure prompt space: density, subsample, cluster, project. Files in, files out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from kat.data.prompts import Prompt, read_prompts
from kat.data.tables import read_clusters, read_weights, same_ids
from kat.density.clusters import closest_to_centroid, cluster
from kat.density.diagnostics import diagnose
from kat.density.estimate import Density, DensitySpec, estimate
from kat.density.plots import plot_weights
from kat.density.projection import page, project
from kat.embedding.store import load_embeddings
from kat.pipeline.artifacts import beside, destination, locate, record_of, task
from kat.sampling.arms import arm_weights, draw
from latentwire.harness import app
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.origin import made_by
from latentwire.harness.progress import say, speaks
from latentwire.harness.random import generator_for
from latentwire.harness.results import read_json, write_json, write_jsonl, write_text_atomically

SHOWN = 5  # prompts nearest to a centroid


@task
def density(cfg: DictConfig) -> dict[str, Any]:
    """Write the weights of embeddings, and density.json and density.png beside them; return the diagnostics.

    Raises:
        UserError: Files that are missing, damaged or do not fit each other, or too few prompts.
    """
    if cfg.sampler.name != "density":
        raise UserError(
            f"sampler={cfg.sampler.name}: task=density computes the weights that the other arms are made of; leave it "
            f"out here, and give it to task=subsample"
        )
    out, source = destination(cfg), locate(cfg, "embeddings_file")
    spec = density_spec(cfg)
    ids, emb = load_embeddings(source)
    prompts = _prompts_of(ids, locate(cfg, "prompts_file"), source)
    clusters = None if cfg.clusters_file is None else read_clusters(locate(cfg, "clusters_file"), ids)
    started = time.monotonic()
    found = estimate(emb, spec, cfg.seed)
    seconds = time.monotonic() - started
    report = {
        **vars(spec),
        "gamma": found.gamma,
        "bandwidth": found.bandwidth,
        "index": found.index,
        "recall": found.recall,
        "error": found.error,
        "distinct_embeddings": found.distinct,
        "capped_share": found.capped,
        **diagnose(found.density, found.weights, found.gamma, [prompt.source for prompt in prompts], clusters),
    }
    if speaks():
        write_jsonl(out, _weight_rows(ids, found))
        origin = {
            "settings": dict(vars(spec)),
            "embeddings_sha256": file_sha256(source),
            "weights_sha256": file_sha256(out),
            "seed": cfg.seed,
            **made_by(),
        }
        write_json(beside(out, "density.json"), {**report, "seconds": seconds, **origin})
        plot_weights(found.density, found.weights, beside(out, "density.png"))
        _say_density(report, seconds, out)
    return report


def density_spec(cfg: DictConfig) -> DensitySpec:
    """Return the settings under `sampler` of task=density.

    Raises:
        UserError: One of another type.
    """
    return app.typed(DensitySpec, {f.name: cfg.sampler[f.name] for f in fields(DensitySpec)}, "sampler.")


@task
def subsample(cfg: DictConfig) -> list[str]:
    """Draw `budget` prompts without replacement by the sampler's weights; write their ids, a line each, as drawn.

    Raises:
        UserError: A budget above the number of prompts that can be drawn, no usable weights, or those of other prompts.
    """
    source, out, prompts = locate(cfg, "weights_file"), destination(cfg), locate(cfg, "prompts_file")
    ids, _, weights = read_weights(source)
    check_origin(source)
    same_ids(ids, {prompt.id for prompt in read_prompts(prompts)}, str(source), str(prompts), "run task=density again")
    weights = arm_weights(cfg.sampler.name, weights, cfg.seed)
    budget, drawable = cfg.budget, int((weights > 0).sum())
    if not isinstance(budget, int) or isinstance(budget, bool) or not 1 <= budget <= drawable:
        raise UserError(
            f"budget={budget}: {drawable} prompts of {source} can be drawn without replacement; choose a whole "
            f"number from 1 to {drawable}"
        )
    if broken := next((name for name in ids if "\n" in name or "\r" in name), None):
        raise UserError(f"id {broken!r}: has a line break, so a list of ids cannot hold it; rename it")
    rows = draw(weights, budget, replacement=False, generator=generator_for(cfg.seed, "subsample", cfg.sampler.name))
    chosen = [ids[row] for row in rows.tolist()]
    if speaks():
        write_text_atomically(out, "".join(f"{name}\n" for name in chosen))
        say(f"{budget} of {len(ids)} prompts by sampler={cfg.sampler.name}: {out}")
        if budget > drawable / 2:
            say(f"note: {budget / drawable:.0%} of all prompts are taken, so weights can change little")
    return chosen


@task
def clusters(cfg: DictConfig) -> dict[str, Any]:
    """Group the prompts by k-means and write clusters.json; return what it holds.

    Raises:
        UserError: Files that are missing, damaged or do not fit each other, or more clusters than prompts.
    """
    measured, out, source = locate(cfg, "weights_file"), destination(cfg), locate(cfg, "embeddings_file")
    ids, emb = load_embeddings(source)
    prompts = _prompts_of(ids, locate(cfg, "prompts_file"), source)
    known = _density_of(ids, measured, source) if measured.is_file() else None
    found = cluster(emb, cfg.clusters, cfg.seed)
    described: list[dict[str, Any]] = []
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
    result = {"clusters": described, "labels": dict(zip(ids, found.labels.tolist(), strict=True)), "seed": cfg.seed}
    if speaks():
        write_json(out, result)
        for entry in described:
            crowd = "" if known is None else f"  density {entry['mean_density']:.3g}  mass {entry['mass']:.3f}"
            print(f"{entry['cluster']:>4}  {entry['size']:>6} prompts{crowd}  {_short(entry['nearest'][0]['text'])}")
        if known is None:
            say(f"note: {measured} is not there, so the clusters have no mean density; task=density makes it")
        say(f"{len(described)} clusters: {out}")
    return result


@task
def projection(cfg: DictConfig) -> list[dict[str, Any]]:
    """Write embeddings_3d.json and the page beside it, embeddings_3d.html; return the points.

    Raises:
        UserError: Files that are missing, damaged or do not fit each other, or too few prompts.
    """
    out, source = destination(cfg, ".html"), locate(cfg, "embeddings_file")
    ids, emb = load_embeddings(source)
    prompts = _prompts_of(ids, locate(cfg, "prompts_file"), source)
    crowding, weights = _density_of(ids, locate(cfg, "weights_file"), source)
    xyz, shares = project(emb, cfg.method, cfg.seed)
    axes = [f"PC{i} ({share:.0%})" for i, share in enumerate(shares, 1)] or ["UMAP 1", "UMAP 2", "UMAP 3"]
    points = [
        {
            "id": name,
            **{axis: round(value, 5) for axis, value in zip("xyz", place, strict=True)},
            "density": float(crowding[i]),
            "weight": float(weights[i]),
            "source": prompts[i].source,
            "text": prompts[i].text,
        }
        for i, (name, place) in enumerate(zip(ids, xyz.tolist(), strict=True))
    ]
    if speaks():
        html = out.with_suffix(".html")
        write_json(out, {"method": cfg.method, "variance_shares": shares, "points": points})
        write_text_atomically(html, page(points, "Prompt map", axes))
        say(f"{len(points)} points by {cfg.method}: {out}")
        say(f"open it in any browser, no network needed: {html}")
    return points


def check_origin(weights: Path, embeddings: Path | None = None) -> None:
    """Refuse weights that are not those of their density.json, or were made from other embeddings than these.

    Raises:
        UserError: Says which file is not the one that the weights' record speaks of.
    """
    record = beside(weights, "density.json")
    if not record.is_file():
        say(f"note: {record} is not there, so it cannot be told what {weights} was made from")
        return
    found = read_json(record)
    for name, path in {"weights_sha256": weights, "embeddings_sha256": embeddings}.items():
        if path is not None and (not isinstance(found, dict) or found.get(name) != file_sha256(path)):
            raise UserError(f"{path}: is not the file that {record} speaks of; run task=density again")


def _prompts_of(ids: list[str], path: Path, embeddings: Path) -> list[Prompt]:
    """Return the prompts in the order of the ids; those too long to have an embedding are counted, and left out."""
    prompts = {prompt.id: prompt for prompt in read_prompts(path)}
    found = [prompts[name] for name in same_ids(ids, prompts, "the embeddings", str(path))]
    without = prompts.keys() - set(ids)
    too_long = without & set(record_of(embeddings).get("too_long") or ())
    same_ids(
        sorted(without), too_long, f"{path} (prompts without an embedding)", str(embeddings), "run task=embed again"
    )
    if too_long:
        say(f"note: {len(too_long)} of {len(prompts)} prompts are too long for the embedder: no embedding, no weight")
    return found


def _density_of(ids: Sequence[str], path: Path, embeddings: Path) -> tuple[Tensor, Tensor]:
    """Return densities and weights of these embeddings, in the order of their ids."""
    names, crowding, weights = read_weights(path)
    check_origin(path, embeddings)
    row = {name: i for i, name in enumerate(names)}
    order = torch.tensor(
        [row[name] for name in same_ids(ids, row, str(embeddings), str(path), "run task=density again")]
    )
    same_ids(names, set(ids), str(path), str(embeddings), "run task=density again")
    return crowding[order], weights[order]


def _weight_rows(ids: list[str], found: Density) -> list[dict[str, Any]]:
    numbers = zip(ids, found.density.tolist(), found.weights.tolist(), strict=True)
    return [{"id": name, "density": crowding, "weight": weight} for name, crowding, weight in numbers]


def _say_density(report: dict[str, Any], seconds: float, out: Path) -> None:
    n = report["prompts"]
    print(
        f"{n} prompts, estimator {report['estimator']}, k {report['k']}, bandwidth {report['bandwidth']:.3f}, "
        f"gamma {report['gamma']:.3f}, {report['index']} search (recall {report['recall']:.3f}), {seconds:.1f} s"
    )
    spread = "infinite" if report["p99_p1"] is None else f"{report['p99_p1']:.1f}"
    print(f"ESS {report['ess']:.0f} ({report['ess_share']:.2f} of N)  p99/p1 {spread}  "
          f"largest weight {report['largest_times_uniform']:.1f} x uniform")  # fmt: skip
    print("mass by tenth, most crowded first  " + " ".join(f"{mass:.3f}" for mass in report["mass_by_decile"]))
    for name, entry in report["mass_by_source"].items():
        print(f"source {name}: {entry['share']:.3f} of the prompts, {entry['mass']:.3f} of the mass")
    if "clusters" in report:
        c = report["clusters"]
        print(
            f"{c['clusters']} known clusters: total variation to an even share {c['total_variation_uniform']:.3f} -> "
            f"{c['total_variation']:.3f}, smaller half {c['rare_uniform']:.3f} -> {c['rare']:.3f} of "
            f"{c['rare_wanted']:.2f}, noise {c['noise_uniform']:.3f} -> {c['noise']:.3f}"
        )
    for warning in report["warnings"]:
        say(f"warning: {warning}")
    say(f"weights: {out}; diagnostics: {beside(out, 'density.json')}, {beside(out, 'density.png')}")


def _short(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
