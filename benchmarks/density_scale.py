"""Time and memory of task=density on embeddings in shards. Main entry: `scale()`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import normalize

from kat.embedding.store import load_embeddings
from latentwire.harness.results import read_json, write_json
from latentwire.harness.shard_files import ShardFolder
from latentwire.records import FORMAT

ROOT = Path(__file__).parent.parent
SHARD_ROWS = 100_000
STEP = 0.5  # of the difference of two other rows that is added to a row


def lifelike_rows(real: Tensor, count: int, seed: int) -> Tensor:
    """Return rows like the rows of a file: one row plus up to half of the difference of two others, (count, D)."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (real[torch.randint(len(real), (count,), generator=generator)] for _ in range(3))
    return normalize(a + STEP * torch.rand(count, 1, generator=generator) * (b - c), dim=1)


def planted_rows(width: int, clusters: int, count: int, seed: int) -> Tensor:
    """Return rows of planted clusters with power-law sizes: (count, D). The clusters do not depend on the seed."""
    fixed, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, width, generator=fixed) / width**0.5
    directions = torch.randn(clusters, 8, width, generator=fixed) / width**0.5
    offset = normalize(torch.randn(width, generator=fixed), dim=0)
    shares = torch.arange(1, clusters + 1, dtype=torch.float64) ** -1.2
    label = torch.multinomial(shares, count, replacement=True, generator=generator)
    x = torch.empty(count, width)
    for number in range(clusters):
        rows = (label == number).nonzero()[:, 0]
        x[rows] = centres[number] + 0.35 * torch.randn(len(rows), 8, generator=generator) @ directions[number] / 8**0.5
    noise = torch.rand(count, generator=generator) < 0.01
    x[noise] = 1.2 * torch.randn(int(noise.sum()), width, generator=generator) / width**0.5
    return normalize(x + 3 * offset, dim=1)


def write_embeddings(cfg: DictConfig, n: int, folder: Path) -> None:
    """Write N embeddings in shards, like the file real=FILE or in planted clusters."""
    files = ShardFolder(folder, "scale")
    names: list[str] = []
    sizes: list[int] = []
    real = load_embeddings(Path(cfg.real))[1] if cfg.real else None
    for start in range(0, n, SHARD_ROWS):
        count, name = min(SHARD_ROWS, n - start), f"{len(names):05d}"
        rows = (
            planted_rows(cfg.width, cfg.clusters, count, start) if real is None else lifelike_rows(real, count, start)
        )
        ids = [f"{row:016x}" for row in range(start, start + count)]
        table = pa.table({"id": ids, "source": ["planted"] * count, "digest": ["0" * 8] * count, "excerpt": ids})
        files.save(name, {"emb": rows.half().numpy()}, {"prompts": table})
        names.append(name)
        sizes.append(count)
    record = {"format": FORMAT, "key": "scale", "embedder": {}, "n": n, "dim": rows.shape[1], "shards": names}
    write_json(folder / "embeddings.json", {**record, "sizes": sizes})


def scale(cfg: DictConfig) -> None:
    """Print the time, the peak memory and the accuracy of task=density for each number of embeddings."""
    print("| N | seconds | peak memory, GiB | lists searched: recall | total variation of the weights | disk, GiB |")
    print("|---|---|---|---|---|---|")
    for size in str(cfg.sizes).split(","):
        n = int(float(size))
        folder = Path(cfg.folder) / f"{n}"
        if not (folder / "embeddings" / "embeddings.json").is_file():
            write_embeddings(cfg, n, folder / "embeddings")
        shutil.rmtree(folder / "weights", ignore_errors=True)
        seconds, memory, disk = measured_run(cfg, folder)
        record = read_json(folder / "weights" / "density.json")
        assert isinstance(record, dict)
        print(
            f"| {n} x {cfg.width} | {seconds:.0f} | {memory / 2**30:.1f} | {record['recall']:.3f} | "
            f"{record['weights_error']:.3f} | {disk / 2**30:.1f} |",
            flush=True,
        )


def measured_run(cfg: DictConfig, folder: Path) -> tuple[float, int, int]:
    """Run task=density on a folder of embeddings.

    Returns:
        The seconds, the largest sum of the resident memory of its processes, and the largest size of its files.
    """
    command = [sys.executable, str(ROOT / "run.py"), "task=density", f"folder={folder}", "embeddings_file=embeddings",
               "weights_file=weights", f"workers={cfg.workers}", *str(cfg.settings).split()]  # fmt: skip
    started, most, disk = time.perf_counter(), 0, 0
    environment = {**os.environ, "OMP_NUM_THREADS": str(cfg.threads)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    ended = threading.Event()

    def watch() -> None:
        nonlocal most, disk
        while not ended.wait(0.5):
            try:
                main = psutil.Process(process.pid)
                most = max(most, sum(each.memory_full_info().uss for each in (main, *main.children(recursive=True))))
            except psutil.Error:
                continue
            disk = max(disk, sum(path.stat().st_size for path in folder.rglob("*.npy") if path.is_file()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    ended.set()
    watcher.join()
    if status:
        raise SystemExit(f"task=density ended with status {status}")
    return time.perf_counter() - started, most, disk
