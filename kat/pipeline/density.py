"""The task density: sampling weights and diagnostics from embeddings. Main entry: `density()`."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig

from kat.data.tables import read_clusters
from kat.density.diagnostics import diagnose_weights
from kat.density.estimate import Density, DensitySpec, estimate
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
    seconds = time.monotonic() - started
    report: DensityReport = {
        "estimator": spec.estimator,
        "k": spec.k,
        "gamma": found.gamma,
        "target_ess": spec.target_ess,
        "cap": spec.cap,
        "index": found.index,
        "min_recall": spec.min_recall,
        "bandwidth": found.bandwidth,
        "recall": found.recall,
        "error": found.error,
        "distinct_embeddings": found.distinct,
        "capped_share": found.capped,
        **diagnose_weights(found.density, found.weights, found.gamma, [prompt.source for prompt in prompts], clusters),
    }
    if is_main_process():
        write_jsonl(out, _weight_rows(ids, found))
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


def _weight_rows(ids: list[str], found: Density) -> list[WeightRow]:
    numbers = zip(ids, found.density.tolist(), found.weights.tolist(), strict=True)
    return [{"id": name, "density": value, "weight": weight} for name, value, weight in numbers]


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
    for warning in report["warnings"]:
        log(f"warning: {warning}")
    log(f"weights: {out}; diagnostics: {sidecar_path(out, 'density.json')}, {sidecar_path(out, 'density.png')}")
