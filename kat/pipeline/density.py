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
from kat.density.gates import measure_gates
from kat.density.plots import plot_weights
from kat.density.records import DensityRecord, DensityReport, WeightRow
from kat.embedding.store import load_embeddings
from kat.pipeline.artifacts import destination, locate, only_writer, require_one_process, sidecar_path, task
from kat.pipeline.density_report import print_report, report_of
from kat.pipeline.density_shards import density_in_shards, start_weights_anew
from kat.pipeline.origin import prompts_of
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.origin import made_by
from latentwire.harness.results import write_json, write_jsonl
from latentwire.harness.shard_files import is_sharded
from latentwire.harness.typed_config import typed
from latentwire.records import FORMAT


@task
def density(cfg: DictConfig) -> DensityReport:
    """Compute the sampling weights, and write weights.jsonl with density.json and density.png.

    If the path of the embeddings has no ending, they are a folder of shards, and so are the weights.

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
    source = locate(cfg, "embeddings_file", folder=True)
    if is_sharded(source):
        return density_in_shards(cfg, density_spec(cfg))
    require_one_process(cfg, "embeddings_file", source)
    out, spec = destination(cfg), density_spec(cfg)
    if is_sharded(out):
        raise UserError(
            f"out={cfg.out}: embeddings in one file give weights in one file; give a name with an ending, such as "
            f"weights_file={out.name}.jsonl"
        )
    with only_writer(out, cfg) as is_main:
        return _density_of_file(cfg, spec, source, out, writes=is_main)


def _density_of_file(cfg: DictConfig, spec: DensitySpec, source: Path, out: Path, *, writes: bool) -> DensityReport:
    """Return the settings and diagnostics of the weights of a file of embeddings, and write them in one process."""
    ids, emb = load_embeddings(source)
    prompts = prompts_of(ids, locate(cfg, "prompts_file"), source)
    clusters = None if cfg.clusters_file is None else read_clusters(locate(cfg, "clusters_file"), ids)
    started = time.monotonic()
    found = estimate(emb, spec, cfg.seed)
    gates = measure_gates(emb, spec, found, cfg.seed, _second_density(cfg, spec, ids))
    groups = near_duplicate_groups(emb, cfg.near_duplicate, spec, cfg.seed, found.neighbours)
    seconds = time.monotonic() - started
    shown = [(prompt.id, prompt.text) for prompt in prompts]
    report = report_of(
        spec,
        found,
        cfg.near_duplicate,
        describe_groups(groups, lambda rows: [shown[row] for row in rows]),
        diagnose_weights(found.density, found.weights, [prompt.source for prompt in prompts], clusters, gates,
                         found.weights_error),
    )  # fmt: skip
    if writes:
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
        print_report(report, seconds, out, sidecar_path(out, "density.json"), sidecar_path(out, "density.png"))
    return report


@task
def start_density_anew(cfg: DictConfig) -> None:
    """Remove finished weights in shards, so that workers make them again."""
    start_weights_anew(cfg, density_spec(cfg))


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
