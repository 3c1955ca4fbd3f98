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
from kat.shards.whitened import ONE, WhitenedPlaces
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
        names = self.white.emb.names

        def are_summed() -> bool:
            return self.stages.are_finished("checked", [ONE]) and self.stages.are_finished("sums", names)

        if are_summed():
            return
        self.stages.run("counted", list(self._parts), self._count, are_summed)
        self.stages.run("checked", [ONE], self._merge_checks)
        self.stages.run("sums", names, self._sum)

    def tidy(self) -> None:
        """Remove what `collect` does not need. The rest is small, and gives other weights within seconds."""
        self.stages.remove("counted")

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
        self.stages.files("counted").save(part, {"counts": sketch.counts.numpy(), **_arrays(check)})

    def _merge_checks(self, unit: str) -> None:
        check, files = self._check(), self.stages.files("counted")
        for part in self._parts:
            check.merge(*(torch.from_numpy(np.array(files.array(part, name))) for name in _arrays(check)))
        self.stages.files("checked").save(unit, _arrays(check))

    @cached_property
    def _sketch(self) -> KernelSketch:
        files = self.stages.files("counted")
        merged = KernelSketch.empty(self._check().rows.shape[1], self.white.seed)
        for part in self._parts:
            merged.merge(KernelSketch(merged.directions, torch.from_numpy(np.array(files.array(part, "counts")))))
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
        check, checked = self._check(), self.stages.files("checked")
        check.merge(*(torch.from_numpy(np.array(checked.array(ONE, name))) for name in _arrays(check)))
        return sketched(density, check, self._copies(check.own)), np.empty((0, 2), np.int64)


def _arrays(check: KernelCheck) -> dict[str, Array]:
    """Return what a check has found, in the order of `KernelCheck.merge`."""
    return {"sums": check.sums.numpy(), "near": check.near.numpy(), "products": check.products.numpy()}
