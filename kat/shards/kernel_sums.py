"""Kernel sums at every place by a sketch, in stages on disk. Main entry: `ShardedSums`.

1. counted: sketches of some shards each, and the exact sums of a few queries among their places.
2. sums: the sums at the places of each shard, from the merged sketch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kat.density.estimators import DensitySpec, MeasuredPlaces, sketched
from kat.density.nearest import check_neighbours
from kat.density.sketch import KernelCheck, KernelSketch
from kat.shards.stages import Stages
from kat.shards.whitened import WhitenedPlaces
from latentwire.harness.shard_files import Array

PARTS = 16  # most sketches on disk, 64 MiB each


@dataclass(frozen=True)
class ShardedSums:
    """The kernel sums of one density.

    Attributes:
        white: The whitened places.
        spec: The settings of the density: k.
    """

    white: WhitenedPlaces
    spec: DensitySpec

    @property
    def stages(self) -> Stages:
        """Where the stages are."""
        return self.white.stages

    def run(self) -> None:
        """Do all stages together with other processes.

        Raises:
            UserError: There are too few different rows, or they vary in too few directions.
        """
        self.white.run()
        check_neighbours(len(self.white.places), self.spec.k)
        self.stages.run("counted", list(self._parts), self._count)
        self.stages.run("sums", self.white.emb.names, self._sum)

    @cached_property
    def _parts(self) -> dict[str, list[str]]:
        """The shards of each sketch, by its name."""
        names = self.white.emb.names
        count = min(PARTS, len(names))
        return {f"{number:05d}": names[number::count] for number in range(count)}

    def _copies(self, places: Tensor) -> Tensor:
        return torch.from_numpy(self.white.places.copies[places.numpy()])

    def _check(self) -> KernelCheck:
        queries = self.white.queries
        return KernelCheck(self.white.take(queries), torch.from_numpy(queries), self.spec.k)

    def _count(self, part: str) -> None:
        check = self._check()
        sketch = KernelSketch.empty(check.rows.shape[1], self.white.seed)
        for name in self._parts[part]:
            for rows, places in self.white.blocks(name):
                copies = self._copies(places)
                sketch.add(rows, copies)
                check.add(rows, places, copies)
        self.stages.files("counted").save(part, {
            "counts": sketch.counts.numpy(), "query_sums": check.sums.numpy(), "query_near": check.near.numpy(),
            "query_products": check.products.numpy(),
        })  # fmt: skip

    def _part(self, part: str, array: str) -> Tensor:
        return torch.from_numpy(np.array(self.stages.files("counted").array(part, array)))

    @cached_property
    def _sketch(self) -> KernelSketch:
        dim = self._check().rows.shape[1]
        merged = KernelSketch.empty(dim, self.white.seed)
        for part in self._parts:
            merged.counts.add_(self._part(part, "counts"))
        return merged

    def _sum(self, name: str) -> None:
        blocks = [(self._sketch.sums(rows), places) for rows, places in self.white.blocks(name)]
        sums, places = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        self.stages.files("sums").save(name, {"sums": sums.numpy(), "place": places.numpy()})

    def collect(self) -> tuple[MeasuredPlaces, Array]:
        """Return the densities of the places after `run`, and no pairs of near-duplicates, (0, 2) int64."""
        density, files = torch.empty(len(self.white.places), dtype=torch.float64), self.stages.files("sums")
        for name in self.white.emb.names:
            density[np.array(files.array(name, "place"))] = torch.from_numpy(np.array(files.array(name, "sums")))
        check = self._check()
        for part in self._parts:
            check.merge(*(self._part(part, f"query_{array}") for array in ("sums", "near", "products")))
        return sketched(density, check, self._copies(check.own)), np.empty((0, 2), np.int64)
