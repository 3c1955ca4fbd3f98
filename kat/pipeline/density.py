"""The task density: sampling weights and diagnostics from embeddings. Main entry: `density()`."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from kat.data.tables import read_clusters, same_ids
from kat.density.diagnostics import diagnose_weights
from kat.density.duplicates import describe_groups, near_duplicate_groups
from kat.density.estimate import Density, DensitySpec, estimate
from kat.density.gates import FEWEST, measure_gates
from kat.density.plots import plot_weights
from kat.density.records import DensityRecord, DensityReport, WeightRow
from kat.embedding.store import load_embeddings
from kat.pipeline.artifacts import destination, locate, sidecar_path, task
from kat.pipeline.origin import prompts_of
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.origin import made_by
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import write_json, write_jsonl
from latentwire.harness.typed_config import typed
from latentwire.records import FORMAT


@task
def density(cfg: DictConfig) -> DensityReport:
    """Compute the sampling weights, and write weights.jsonl with density.json and density.png.

    Returns:
        The settings and diagnostics in density.json.

    Raises:
        UserError: A file is missing, damaged or does not match the others, or there are too few prompts.
    """
    if cfg.sampler.name != "density":
        raise UserError(
            f"sampler={cfg.sampler.name}: task=density computes the weights from which all samplers derive theirs; "
            "leave sampler out here, and set it for task=subsample"
        )
    out, source = destination(cfg), locate(cfg, "embeddings_file")
    spec = density_spec(cfg)
    ids, emb = load_embeddings(source)
    prompts = prompts_of(ids, locate(cfg, "prompts_file"), source)
    clusters = None if cfg.clusters_file is None else read_clusters(locate(cfg, "clusters_file"), ids)
    started = time.monotonic()
    found = estimate(emb, spec, cfg.seed)
    gates = measure_gates(emb, spec, found, cfg.seed, _second_density(cfg, spec, ids))
    groups = near_duplicate_groups(emb, cfg.near_duplicate, spec, cfg.seed)
    seconds = time.monotonic() - started
    report: DensityReport = {
        "estimator": spec.estimator,
        "k": spec.k,
        "gamma": found.gamma,
        "target_ess": spec.target_ess,
        "cap": spec.cap,
        "crowd_cap": spec.crowd_cap,
        "index": found.index,
        "min_recall": spec.min_recall,
        "bandwidth": found.bandwidth,
        "recall": found.recall,
        "error": found.error,
        "distinct_embeddings": found.distinct,
        "capped_share": found.capped,
        "near_duplicate": cfg.near_duplicate,
        "near_duplicates": describe_groups(groups, ids, [prompt.text for prompt in prompts]),
        **diagnose_weights(found.density, found.weights, [prompt.source for prompt in prompts], clusters, gates),
    }
    if is_main_process():
        write_jsonl(out, _weight_rows(ids, found, groups))
        record: DensityRecord = {
            **report,
            "format": FORMAT,
            "seconds": seconds,
            "settings": dict(vars(spec)),
            "embeddings_sha256": file_sha256(source),
            "weights_sha256": file_sha256(out),
            "seed": cfg.seed,
            **made_by(),
        }
        write_json(sidecar_path(out, "density.json"), record)
        plot_weights(found.density, found.weights, sidecar_path(out, "density.png"))
        _print_summary(report, seconds, out)
    return report


def density_spec(cfg: DictConfig) -> DensitySpec:
    """Return the density settings under `sampler` in the config of task=density.

    Raises:
        UserError: A setting has the wrong type.
    """
    return typed(DensitySpec, {f.name: cfg.sampler[f.name] for f in fields(DensitySpec)}, "sampler.")


def _second_density(cfg: DictConfig, spec: DensitySpec, ids: list[str]) -> Density | None:
    """Return the density from compare_file, the embeddings of the same prompts by another embedder; None without it."""
    if cfg.compare_file is None:
        return None
    path = locate(cfg, "compare_file")
    names, emb = load_embeddings(path)
    row = {name: i for i, name in enumerate(names)}
    order = [row[name] for name in same_ids(ids, row, "the embeddings", str(path), "embed the same prompts for both")]
    return estimate(emb[order], spec, cfg.seed)


def _weight_rows(ids: list[str], found: Density, groups: Tensor) -> list[WeightRow]:
    numbers = zip(ids, found.density.tolist(), found.weights.tolist(), groups.tolist(), strict=True)
    return [{"id": name, "density": value, "weight": weight, "group": group} for name, value, weight, group in numbers]


def _print_summary(report: DensityReport, seconds: float, out: Path) -> None:
    n = report["prompts"]
    print(
        f"{n} prompts, estimator {report['estimator']}, k {report['k']}, bandwidth {report['bandwidth']:.3f}, "
        f"gamma {report['gamma']:.3f}, {report['index']} search (recall {report['recall']:.3f}), {seconds:.1f} s"
    )
    ratio = "infinite" if report["p99_p1"] is None else f"{report['p99_p1']:.1f}"
    print(f"ESS {report['ess']:.0f} ({report['ess_share']:.2f} of N)  p99/p1 {ratio}  "
          f"largest weight {report['largest_times_uniform']:.1f} x uniform")  # fmt: skip
    print("mass of each tenth, most crowded first  " + " ".join(f"{mass:.3f}" for mass in report["mass_by_decile"]))
    for name, entry in report["mass_by_source"].items():
        print(f"source {name}: {entry['share']:.3f} of the prompts, {entry['mass']:.3f} of the mass")
    if "clusters" in report:
        c = report["clusters"]
        print(
            f"{c['clusters']} known clusters: total variation from equal shares {c['total_variation_uniform']:.3f} -> "
            f"{c['total_variation']:.3f}, mass of the smaller half {c['rare_uniform']:.3f} -> {c['rare']:.3f} (equal "
            f"shares: {c['rare_wanted']:.2f}), noise {c['noise_uniform']:.3f} -> {c['noise']:.3f}"
        )
    _print_gates(report)
    for warning in report["warnings"]:
        log(f"warning: {warning}")
    log(f"weights: {out}; diagnostics: {sidecar_path(out, 'density.json')}, {sidecar_path(out, 'density.png')}")


def _print_gates(report: DensityReport) -> None:
    gates, near = report["gates"], report["near_duplicates"]
    shown = {
        "local share": gates["local_share"],
        "rank correlation with the centre": gates["centre_correlation"],
        "planted crowd over uniform": gates["crowd_ratio"],
        "stability over halves": gates["stability"],
        "agreement of the embedders": gates["agreement"],
        "total variation of their weights": gates["weights_apart"],
    }
    print("gates: " + ", ".join(f"{name} {value:.2f}" for name, value in shown.items() if value is not None))
    if gates["crowd_ratio"] is None:
        log(f"note: fewer than {FEWEST} different prompts, so no crowd is planted and no halves are compared")
    print(
        f"near-duplicates: {near['prompts_in_them']} prompts in {near['groups_of_several']} groups, {near['groups']} "
        "groups in all"
    )
    for group in near["largest"]:
        print(f"  {group['size']} x  " + "  |  ".join(text.replace("\n", " ")[:60] for text in group["texts"]))
