"""The different rows of all shards, whitened. Main entry: `WhitenedPlaces`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kat.density.nearest import RECALL_QUERIES
from kat.density.whitening import ShrunkWhitening, fit_whitening
from kat.embedding.sharded import ShardedEmbeddings
from kat.shards.places import Places, find_places
from kat.shards.stages import Stages

SAMPLE = 131_072  # rows that decide the whitening
BLOCK = 65_536  # rows whitened at a time
ONE = "all"  # the name of the unit of a stage with one


@dataclass(frozen=True)
class WhitenedPlaces:
    """The places of embeddings in shards, see `kat.shards.places`, in the space in which distances are measured.

    Attributes:
        emb: The embeddings.
        is_whitened: Whether that space is the whitened one, or the one of the embeddings.
        seed: The seed of the samples.
        stages: Where the stages are: places and whitening.
    """

    emb: ShardedEmbeddings
    is_whitened: bool
    seed: int
    stages: Stages

    def run(self) -> None:
        """Find the places, and fit the whitening to a sample of them."""
        self.stages.run(
            "places", [ONE], lambda unit: self.stages.files("places").save(unit, vars(find_places(self.emb)))
        )
        self.stages.run("whitening", [ONE], self._fit)

    @cached_property
    def places(self) -> Places:
        """The places of the rows, mapped into memory."""
        files = self.stages.files("places")
        return Places(*(files.array(ONE, part) for part in ("place_of", "first_row", "copies")))

    def _fit(self, unit: str) -> None:
        if self.is_whitened:
            fitted = fit_whitening(self.emb.take(self.places.first_row[self.sample(SAMPLE)]), self.seed)
            arrays = {"mean": fitted.mean.numpy(), "axes": fitted.axes.numpy(), "centre": np.array(fitted.centre)}
        else:
            arrays = {}
        self.stages.files("whitening").save(unit, arrays)

    def sample(self, count: int) -> np.ndarray:
        """Return places at random, all if there are fewer: (count,) int64. Smaller samples are parts of larger ones."""
        return self._order[:count].numpy()

    @cached_property
    def _order(self) -> Tensor:
        return torch.randperm(len(self.places), generator=torch.Generator().manual_seed(self.seed))

    @cached_property
    def _whitening(self) -> ShrunkWhitening | None:
        if not self.is_whitened:
            return None
        files = self.stages.files("whitening")
        mean, axes, centre = (torch.from_numpy(np.array(files.array(ONE, part))) for part in ("mean", "axes", "centre"))
        return ShrunkWhitening(mean, axes, float(centre))

    def moved(self, rows: Tensor) -> Tensor:
        """Return rows in the space of the distances, as unit rows: (B, D) -> (B, A) float32.

        They are rounded to float16, the type in which they are on disk, so that a row is everywhere the same.
        """
        return half_rows(rows if self._whitening is None else self._whitening(rows))

    def take(self, places: np.ndarray) -> Tensor:
        """Return the rows of places: (len(places), A) float32, unit rows."""
        found: Tensor | None = None
        for start in range(0, len(places), BLOCK):
            some = places[start : start + BLOCK]
            rows = self.moved(self.emb.take(self.places.first_row[some]))
            found = torch.empty(len(places), rows.shape[1]) if found is None else found
            found[start : start + len(some)] = rows
        assert found is not None
        return found

    @cached_property
    def queries(self) -> np.ndarray:
        """Places at random for which everything is computed exactly, to measure errors: (Q,) int64."""
        return self._order[-RECALL_QUERIES:].numpy()  # the first places decide the whitening and the lists

    def blocks(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the places whose first row is in a shard: unit rows (B, A) float32, and places (B,) int64."""
        start = int(self.emb.starts[self.emb.names.index(name)])
        for block in self.emb.blocks(name):
            numbers = np.arange(start, start := start + len(block))
            place = self.places.place_of[numbers]
            is_first = self.places.first_row[place] == numbers
            yield self.moved(block[torch.from_numpy(is_first)]), torch.from_numpy(place[is_first])


def half_rows(rows: Tensor) -> Tensor:
    """Return rows rounded to float16, as float32 rows of unit length."""
    return normalize(rows.half().float(), dim=1)
