"""Quality of densities, and speed of neighbours and kernel sums. Main entries: `quality()`, `scale()`, `search()`.

python -m benchmarks.density quality                    Estimators on planted clusters, and on real=FILE,FILE.
python -m benchmarks.density changes                    Write changed=FILE: slight changes of the prompts=FILE.
python -m benchmarks.density search sizes=5000,20000    Exact k-NN and KDE against scikit-learn.
python -m benchmarks.density lists sizes=50000          Inverted lists against exact search.
python -m benchmarks.density faiss real=FILE            Inverted lists against the indexes of faiss.
python -m benchmarks.density scale sizes=1e5,1e6        Time, memory and accuracy of task=density on shards.

The last four: embeddings are 200 planted clusters with power-law sizes and 1% noise in a narrow cone, or the file
real=FILE. Each of `repeats` rounds runs all methods in turn. The best time of each method counts, because other
programs disturb it least.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import torch
from omegaconf import DictConfig, OmegaConf
from sklearn.neighbors import KernelDensity, NearestNeighbors
from torch import Tensor

from benchmarks.density_quality import quality
from benchmarks.density_scale import planted_rows, scale
from benchmarks.paraphrases import write_paraphrases
from kat.density.estimate import distinct_rows, weigh
from kat.density.estimators import density_at
from kat.density.kernel import kernel_sums, kernel_sums_in_lists
from kat.density.lists import list_count
from kat.density.nearest import nearest
from kat.density.whitening import whiten
from kat.embedding.store import load_embeddings
from latentwire.harness.errors import UserError

SETTINGS: dict[str, Any] = {
    "sizes": "5000,20000",
    "width": 576,
    "k": 10,
    "repeats": 2,
    "threads": 2,
    "clusters": 200,
    "real": "",
    "seeds": 3,
    "only": "",
    "prompts": "outputs/kat/prompts_all.jsonl",
    "changed": "",
    "folder": "outputs/scale",
    "workers": 1,
    "settings": "",
}


def planted(n: int, width: int, clusters: int) -> Tensor:
    """Return planted clusters with power-law sizes, in mixed order.

    The cluster sizes are drawn at random, so any number of clusters fits into any number of rows. The planted clusters
    of the tests differ: they have at least a dozen rows each, and labels.

    Args:
        n: Number of rows N.
        width: Number of dimensions D.
        clusters: Number of clusters.

    Returns:
        Rows of unit length, (N, D).
    """
    return planted_rows(width, clusters, n, seed=0)


def best_times(methods: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the best wall-clock seconds of each method over `repeats` rounds. Each round runs all in turn."""
    best: dict[str, float] = {}
    for _ in range(repeats):
        for name, method in methods.items():
            started = time.perf_counter()
            method()
            best[name] = min(best.get(name, float("inf")), time.perf_counter() - started)
    return best


def matrix_product(x: Tensor) -> None:
    """Multiply x, (N, D), by its transpose in blocks. No exact search is faster than this product."""
    block = torch.empty(2048, len(x))
    for rows in x.split(2048):
        torch.mm(rows, x.T, out=block[: len(rows)])


def sklearn_neighbours(x: Tensor, k: int, threads: int) -> None:
    """Find the k nearest neighbours of each row with scikit-learn's exact search."""
    NearestNeighbors(n_neighbors=k + 1, algorithm="brute", n_jobs=threads).fit(x.numpy()).kneighbors(x.numpy())


def sklearn_density(x: Tensor, bandwidth: float) -> None:
    """Estimate the kernel density at each row with scikit-learn."""
    KernelDensity(bandwidth=bandwidth, rtol=1e-4).fit(x.numpy()).score_samples(x.numpy())


def search(cfg: DictConfig) -> None:
    """Print the times of exact k-NN and kernel sums, and of scikit-learn on the same embeddings."""
    for x in _embeddings(cfg):
        bandwidth = float(nearest(x[:2000], cfg.k, index="exact", min_recall=1.0, seed=0).distances[:, -1].median())
        methods: dict[str, Callable[[], Any]] = {
            "matrix product": partial(matrix_product, x),
            "exact k-NN": partial(nearest, x, cfg.k, index="exact", min_recall=1.0, seed=0),
            "scikit-learn k-NN": partial(sklearn_neighbours, x, cfg.k, cfg.threads),
            "kernel sums": partial(kernel_sums, x, torch.ones(len(x)), bandwidth),
        }
        if len(x) <= 5000:  # with more rows, scikit-learn's trees take minutes
            methods["scikit-learn KDE"] = partial(sklearn_density, x, bandwidth)
        times = best_times(methods, cfg.repeats)
        peak = times["matrix product"]
        print(f"N {len(x)} x {x.shape[1]}, {2 * len(x) ** 2 * x.shape[1] / peak / 1e9:.0f} GFLOP/s at the peak")
        for name, seconds in times.items():
            print(f"  {name:<18} {seconds:8.2f} s  {peak / seconds:5.0%} of the peak")


def faiss_neighbours(x: Tensor, k: int, factory: str, probes: int) -> Tensor:
    """Return the k nearest other rows of each row by an index of faiss, (N, K) int64."""
    width = -(-x.shape[1] // 32) * 32  # product quantisation divides the columns
    rows = torch.nn.functional.pad(x, (0, width - x.shape[1])).numpy()
    index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    faiss.extract_index_ivf(index).nprobe = probes
    if factory.endswith("RFlat"):
        faiss.downcast_index(index).k_factor = 10  # type: ignore[attr-defined]  # candidates for each neighbour that are compared exactly
    found = torch.from_numpy(index.search(rows, k + 1)[1])
    own = found == torch.arange(len(x))[:, None]
    own[~own.any(1), -1] = True
    return found[~own].view(len(x), k)


def faiss_indexes(cfg: DictConfig) -> None:
    """Print time, recall and change of the sampling weights of this project's lists and of faiss, on whitened rows."""
    for x in _embeddings(cfg):
        y, probes = whiten(distinct_rows(x)[0]), 64
        exact = nearest(y, cfg.k, index="exact", min_recall=1.0, seed=0)
        true = _weights(exact.distances)
        methods: dict[str, Callable[[], Tensor]] = {
            "ours": lambda y=y: nearest(y, cfg.k, index="ivf", min_recall=0.95, seed=0).ids  # type: ignore[misc]
        }
        for kind in ("PQ48x4fs,RFlat", "PQ96x4fs,RFlat", "Flat"):
            name = f"IVF{list_count(len(y))},{kind}"
            methods[name] = partial(faiss_neighbours, y, cfg.k, name, probes)
        for name, method in methods.items():
            started = time.perf_counter()
            ids = method()
            seconds = time.perf_counter() - started
            blocks = zip(ids.split(512), y.split(512), strict=True)
            distances = torch.cat([(y[near] - rows[:, None]).square().sum(-1).sqrt() for near, rows in blocks])
            recall = (ids[:, :, None] == exact.ids[:, None, :]).any(1).float().mean()
            change = float((_weights(distances) - true).abs().sum() / 2)
            print(f"N {len(y)}: {name:<24} {seconds:7.1f} s  recall {float(recall):.3f}  "
                  f"total variation of the weights {change:.3f}", flush=True)  # fmt: skip


def _weights(distances: Tensor) -> Tensor:
    return weigh(density_at(distances, torch.ones(len(distances))), None, 0.4, 0.95, 0.1)[1]


def lists(cfg: DictConfig) -> None:
    """Print times, recall, errors and changes of the sampling weights of inverted lists against exact search."""
    for x in _embeddings(cfg):
        found: dict[str, Any] = {}

        def run(index: str, x: Tensor = x, found: dict[str, Any] = found) -> None:
            found[index] = nearest(x, cfg.k, index=index, min_recall=0.95, seed=0)

        times = best_times({"exact": lambda: run("exact"), "ivf": lambda: run("ivf")}, cfg.repeats)
        sampling_weights = {name: _weights(f.distances) for name, f in found.items()}
        change = float((sampling_weights["exact"] - sampling_weights["ivf"]).abs().sum() / 2)
        recall = (found["ivf"].ids[:, :, None] == found["exact"].ids[:, None, :]).any(1).float().mean()
        print(
            f"N {len(x)} x {x.shape[1]}: exact {times['exact']:.1f} s, lists {times['ivf']:.1f} s "
            f"({times['exact'] / times['ivf']:.1f}x), recall at {cfg.k} {float(recall):.4f} (measured on a sample "
            f"{found['ivf'].recall:.4f}), knn sampling weights differ by {change:.4f} total variation"
        )
        bandwidth, ones = float(found["exact"].distances[:, -1].median()), torch.ones(len(x)).double()
        sums: dict[str, Tensor] = {}

        def add(index: str, x: Tensor = x, sums: dict[str, Tensor] = sums, h: float = bandwidth,
                ones: Tensor = ones, found: dict[str, Any] = found) -> None:  # fmt: skip
            exact = index == "exact"
            sums[index] = (
                kernel_sums(x, ones, h) if exact else kernel_sums_in_lists(x, ones, h, found["ivf"].lists, 0)[0]
            )

        times = best_times({"exact": partial(add, "exact"), "ivf": partial(add, "ivf")}, cfg.repeats)
        exact, approximate = (weigh(sums[name], None, 0.4, 0.95)[1] for name in ("exact", "ivf"))
        print(
            f"  kernel sums: exact {times['exact']:.1f} s, lists {times['ivf']:.1f} s "
            f"({times['exact'] / times['ivf']:.1f}x), mean relative error "
            f"{float((sums['ivf'] / sums['exact'] - 1).abs().mean()):.4f}, kde sampling weights differ by "
            f"{float((exact - approximate).abs().sum() / 2):.4f} total variation"
        )


def changes(cfg: DictConfig) -> None:
    """Write slight changes of 100 prompts of the file prompts=FILE into changed=FILE, to embed them for `quality`."""
    write_paraphrases(Path(cfg.prompts), Path(cfg.changed))


def _embeddings(cfg: DictConfig) -> list[Tensor]:
    if cfg.real:
        return [load_embeddings(Path(cfg.real))[1]]
    return [planted(int(size), cfg.width, cfg.clusters) for size in str(cfg.sizes).split(",")]


if __name__ == "__main__":
    jobs = {
        "quality": quality,
        "changes": changes,
        "search": search,
        "lists": lists,
        "faiss": faiss_indexes,
        "scale": scale,
    }
    if len(sys.argv) < 2 or sys.argv[1] not in jobs:
        raise SystemExit(__doc__)
    settings = OmegaConf.merge(SETTINGS, OmegaConf.from_dotlist(sys.argv[2:]))
    if unknown := set(settings) - set(SETTINGS):
        raise UserError(f"{', '.join(map(str, unknown))}: no such setting; use {', '.join(SETTINGS)}")
    torch.set_num_threads(settings.threads)
    faiss.omp_set_num_threads(settings.threads)
    assert isinstance(settings, DictConfig)
    jobs[sys.argv[1]](settings)
