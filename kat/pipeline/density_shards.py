"""The task density for embeddings in shards, which processes and jobs share. Main entry: `density_in_shards()`.

All processes that run the same command do the missing units of each stage together. What they find is in the folder
`.parts` of the weights, so a kill loses only the units in work. The first process at the end writes the weights. The
small results stay there: weights of another gamma, or a damaged shard of weights, need no new search.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from kat.density.diagnostics import diagnose_weights
from kat.density.duplicates import describe_groups
from kat.density.estimate import DensitySpec
from kat.density.plots import plot_weights
from kat.density.records import DensityReport, ShardedDensityRecord
from kat.embedding.sharded import ShardedEmbeddings
from kat.pipeline.artifacts import (
    destination,
    locate,
    require_one_division,
    require_own_folder,
)
from kat.pipeline.density_report import print_report, report_of
from kat.records import read_kat_record
from kat.sampling.weight_files import RECORD, WEIGHTS
from kat.shards.density import FoundDensity, ShardedDensity
from kat.shards.stages import Stages
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.origin import made_by
from latentwire.harness.participants import require_idle, taking_part
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import config_hash, open_atomically, sweep_up, write_json, writing
from latentwire.harness.shard_files import FinishedShards, ShardFolder, is_sharded
from latentwire.harness.shared_work import work_through
from latentwire.harness.worker_counts import own_workers
from latentwire.harness.workers import started_workers
from latentwire.records import FORMAT

OWN_FILE = re.compile(r"(\d{5,}\.(json|prompts\.parquet)|density\.(json|png)|weights\.npy|claims|\..*)")
REMEDY = "delete it, and run task=density again"


def density_in_shards(cfg: DictConfig, spec: DensitySpec) -> DensityReport:
    """Compute the sampling weights of embeddings in shards, or finish what other processes or a killed run left.

    Returns:
        The content of density.json.

    Raises:
        UserError: The embeddings are missing or damaged, the estimator needs all of them in memory, or a setting is
            out of range.
        BusyError: Another process makes other weights there, or any with force=true.
    """
    state, started = accelerator_state(cfg.device), time.monotonic()
    work, job = _prepared(cfg, spec)
    if cfg.force and state.is_main_process:
        _remove(work)
    state.wait_for_everyone()
    before = work.found()
    if before is not None:
        log(f"weights: {work.out}  (finished before; force=true makes them again)")
        return before
    shared = cfg.copy()
    shared.force = False
    with (
        taking_part(work.out, work.key),
        started_workers("kat.pipeline.density:density", shared, own_workers(cfg)),
    ):
        _work_on(work, job, started)
    state.wait_for_everyone()
    result = work.found()
    assert result is not None
    if is_main_process():
        seconds = round(time.monotonic() - started, 3)
        print_report(result, seconds, work.out, work.record, work.out / "density.png")
    return result


def start_weights_anew(cfg: DictConfig, spec: DensitySpec) -> None:
    """Remove finished weights and what led to them, so that they are made again. Check all settings before.

    Raises:
        UserError: As for `density_in_shards`.
    """
    _remove(_prepared(cfg, spec)[0])


def _prepared(cfg: DictConfig, spec: DensitySpec) -> tuple[_Work, ShardedDensity]:
    """Return the folder of weights and the computation, after a check of all settings."""
    for name in ("compare_file", "clusters_file"):
        if cfg[name] is not None:
            raise UserError(
                f"{name}={cfg[name]}: needs all prompts in memory; leave it out with a folder of embeddings"
            )
    state, out = accelerator_state(cfg.device), destination(cfg, folder=True)
    require_one_division(cfg, state.num_processes)
    if not is_sharded(out):
        raise UserError(
            f"out={cfg.out}: embeddings in shards give weights in shards; give a name without an ending, such as "
            "weights_file=weights"
        )
    require_own_folder(out, OWN_FILE)
    emb = ShardedEmbeddings.open(locate(cfg, "embeddings_file", folder=True))
    work = _Work(cfg, emb, spec, out)
    stages = Stages(work.parts, work.search_key)
    return work, ShardedDensity(emb, spec, cfg.near_duplicate, cfg.seed, stages, state.device)


def _remove(work: _Work) -> None:
    """Remove the weights and what led to them, unless another process makes some."""
    require_idle(work.out)
    with writing(work.record):
        work.record.unlink(missing_ok=True)
    shutil.rmtree(work.parts, ignore_errors=True)


def _work_on(work: _Work, job: ShardedDensity, started: float) -> None:
    """Do the missing units together with all other processes, and tidy up."""
    try:
        job.run()
        work_through(
            work.out, ["density"], lambda _: work.found() is not None, lambda _: work.write(job, job.collect(), started)
        )
    except (UserError, OSError):
        if work.found() is None:  # otherwise another job was faster, and has removed what this one needs
            raise
    job.tidy()
    for other in work.parts.parent.iterdir():  # of other settings, whose weights these have replaced
        if other != work.parts:
            shutil.rmtree(other, ignore_errors=True)


@dataclass(frozen=True)
class _Work:
    """A folder of weights and everything that they depend on."""

    cfg: DictConfig
    emb: ShardedEmbeddings
    spec: DensitySpec
    out: Path

    @property
    def key(self) -> str:
        """A hash of everything that the weights depend on."""
        return config_hash([self.emb.digest, vars(self.spec), self.cfg.near_duplicate, self.cfg.seed, FORMAT])

    @property
    def search_key(self) -> str:
        """A hash of everything that the stages depend on. The settings of the weights are not among it."""
        search = [getattr(self.spec, name) for name in ("estimator", "k", "index", "min_recall")]
        return config_hash([self.emb.digest, search, self.cfg.near_duplicate, self.cfg.seed, FORMAT])

    @property
    def parts(self) -> Path:
        """The folder of the stages."""
        return self.out / ".parts" / self.search_key

    @property
    def record(self) -> Path:
        """The path of density.json."""
        return self.out / RECORD

    def found(self) -> ShardedDensityRecord | None:
        """Return the content of density.json if the weights are complete and of this work, or None."""
        if not self.record.is_file():
            return None
        record = read_kat_record(ShardedDensityRecord, self.record, REMEDY)
        if record["key"] != self.key:
            return None
        weights = self.out / WEIGHTS
        if not weights.is_file() or file_sha256(weights) != record["weights_sha256"]:
            state = "damaged" if weights.is_file() else "missing"
            self._warn_once(f"warning: {weights} is {state}; the weights are made again")
            return None
        return record if all(list(map(self._is_finished, record["shards"]))) else None

    @cached_property
    def _is_finished(self) -> FinishedShards:
        return FinishedShards(ShardFolder(self.out, self.key))

    @cached_property
    def _warnings(self) -> set[str]:
        return set()

    def _warn_once(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.add(message)
            log(message)

    def write(self, job: ShardedDensity, found: FoundDensity, started: float) -> None:
        """Write the weights, the shards and density.json, which comes last.

        Args:
            job: The computation.
            found: What it found.
            started: The monotonic time at which this process began.
        """
        density, groups, gates = found
        with writing(self.record):
            self.record.unlink(missing_ok=True)
        self._write_shards(found)
        weights = self.out / WEIGHTS
        with open_atomically(weights) as file, writing(weights):
            np.save(file, density.weights.numpy(), allow_pickle=False)
        diagnostics = diagnose_weights(
            density.density, density.weights, job.sources(), gates=gates, weights_error=density.weights_error
        )
        described = describe_groups(groups, self.emb.shown)
        record: ShardedDensityRecord = {
            **report_of(self.spec, density, self.cfg.near_duplicate, described, diagnostics),
            "format": FORMAT,
            "seconds": round(time.monotonic() - started, 3),
            "settings": dict(vars(self.spec)),
            "embeddings_sha256": self.emb.digest,
            "weights_sha256": file_sha256(weights),
            "seed": self.cfg.seed,
            "key": self.key,
            "shards": self.emb.names,
            "sizes": self.emb.record["sizes"],
            **made_by(),
        }
        plot_weights(density.density, density.weights, self.out / "density.png")
        write_json(self.record, record)
        sweep_up(self.out)

    def _write_shards(self, found: FoundDensity) -> None:
        import pyarrow as pa

        files = ShardFolder(self.out, self.key)
        for old in self.out.glob("[0-9]*.json"):
            if old.stem not in self.emb.names:
                for path in self.out.glob(f"{old.stem}.*"):
                    path.unlink()
        for number, name in enumerate(self.emb.names):
            rows = slice(int(self.emb.starts[number]), int(self.emb.starts[number + 1]))
            prompts = self.emb.prompts(name)
            table = pa.table(
                {
                    "id": prompts["id"],
                    "source": prompts["source"],
                    "density": found.density.density[rows].numpy(),
                    "weight": found.density.weights[rows].numpy(),
                    "group": found.groups[rows].numpy(),
                }
            )
            files.save(name, tables={"prompts": table}, facts={"rows": len(table)})
