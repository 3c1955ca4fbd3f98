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

from kat.clusters import closest_to_centroid, cluster
from kat.density import Density, DensitySpec, estimate
from kat.diagnostics import diagnose
from kat.embed import load_embeddings
from kat.files import locate
from kat.plots import plot_weights
from kat.projection import page, project
from kat.prompts import Prompt, read_prompts
from kat.sampler import arm_weights, draw
from kat.tables import read_clusters, read_weights, same_ids
from latentwire.harness import app
from latentwire.harness.device import generator_for
from latentwire.harness.errors import UserError
from latentwire.harness.progress import say, speaks
from latentwire.harness.results import write_json, write_jsonl, write_text_atomically

SHOWN = 5  # prompts nearest to a centroid


def density(cfg: DictConfig) -> dict[str, Any]:
    """Write the weights of embeddings, and density.json and density.png beside them; return the diagnostics.

    Raises:
        UserError: Files that are missing, damaged or do not fit each other, or too few prompts.
    """
    if cfg.sampler.name == "uniform":
        raise UserError("sampler=uniform: has no density to compute; use sampler=density")
    spec = app.typed(DensitySpec, {f.name: cfg.sampler[f.name] for f in fields(DensitySpec)}, "sampler.")
    ids, emb = load_embeddings(locate(cfg, "embeddings_file"))
    prompts = _prompts_of(ids, locate(cfg, "prompts_file"))
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
        "distinct_embeddings": found.distinct,
        "capped_share": found.capped,
        **diagnose(found.density, found.weights, found.gamma, [prompt.source for prompt in prompts], clusters),
    }
    if speaks():
        out = locate(cfg, "out")
        write_jsonl(out, _weight_rows(ids, found))
        write_json(out.with_name("density.json"), {**report, "seconds": seconds})
        plot_weights(found.density, found.weights, out.with_name("density.png"))
        _say_density(report, seconds, out)
    return report


def subsample(cfg: DictConfig) -> list[str]:
    """Draw `budget` prompts without replacement by the sampler's weights; write their ids, a line each, as drawn.

    Raises:
        UserError: A budget above the number of prompts that can be drawn, or no usable weights.
    """
    source, out = locate(cfg, "weights_file"), locate(cfg, "out")
    ids, _, weights = read_weights(source)
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


def clusters(cfg: DictConfig) -> dict[str, Any]:
    """Group the prompts by k-means and write clusters.json; return what it holds.

    Raises:
        UserError: Files that are missing, damaged or do not fit each other, or more clusters than prompts.
    """
    ids, emb = load_embeddings(locate(cfg, "embeddings_file"))
    prompts = _prompts_of(ids, locate(cfg, "prompts_file"))
    measured, out = locate(cfg, "weights_file"), locate(cfg, "out")
    known = _density_of(ids, measured) if measured.is_file() else None
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


def projection(cfg: DictConfig) -> list[dict[str, Any]]:
    """Write embeddings_3d.json and the page beside it, embeddings_3d.html; return the points.

    Raises:
        UserError: Files that are missing, damaged or do not fit each other, or too few prompts.
    """
    ids, emb = load_embeddings(locate(cfg, "embeddings_file"))
    prompts = _prompts_of(ids, locate(cfg, "prompts_file"))
    crowding, weights = _density_of(ids, locate(cfg, "weights_file"))
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
        out = locate(cfg, "out")
        html = out.with_suffix(".html")
        if html == out:
            raise UserError(f"out={out}: names the JSON file, and the page lies beside it as .html; use another ending")
        write_json(out, {"method": cfg.method, "variance_shares": shares, "points": points})
        write_text_atomically(html, page(points, "Prompt map", axes))
        say(f"{len(points)} points by {cfg.method}: {out}")
        say(f"open it in any browser, no network needed: {html}")
    return points


def _prompts_of(ids: list[str], path: Path) -> list[Prompt]:
    """Return the prompts in the order of the ids; those without an embedding are counted, and left out."""
    prompts = {prompt.id: prompt for prompt in read_prompts(path)}
    found = [prompts[name] for name in same_ids(ids, prompts, "the embeddings", str(path))]
    if without := len(prompts) - len(ids):
        say(f"note: {without} of {len(prompts)} prompts have no embedding (too long for the embedder) and no weight")
    return found


def _density_of(ids: Sequence[str], path: Path) -> tuple[Tensor, Tensor]:
    """Return densities and weights in the order of the ids."""
    names, crowding, weights = read_weights(path)
    row = {name: i for i, name in enumerate(names)}
    if set(ids) != set(names):
        raise UserError(
            f"the embeddings and {path} do not fit: {len(set(ids) ^ set(names))} ids are in one of them only; run "
            "task=density again"
        )
    order = torch.tensor([row[name] for name in ids])
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
    say(f"weights: {out}; diagnostics: {out.with_name('density.json')}, {out.with_name('density.png')}")


def _short(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
