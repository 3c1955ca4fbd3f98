"""Densities, weights and groups of prompts in shards. Main entry: `ShardedDensity`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kat.density.diagnostics import Sources
from kat.density.duplicates import groups_of, require_threshold
from kat.density.estimate import Density, check_spec, density_of_places
from kat.density.estimators import DensitySpec
from kat.density.gates import ROWS, gates_of_sample
from kat.density.ranks import rank_correlation
from kat.density.records import GateNumbers
from kat.embedding.sharded import ShardedEmbeddings
from kat.shards.kernel_sums import ShardedSums
from kat.shards.neighbours import ShardedNeighbours
from kat.shards.stages import Stages
from kat.shards.whitened import WhitenedPlaces
from latentwire.harness.errors import UserError

KNN, SKETCH = {"whitened_knn": True, "knn": False}, "whitened_sketch"  # of KNN: whether it is whitened
CENTRE_ROWS = 100_000  # prompts at random for the correlation with the centre


class FoundDensity(NamedTuple):
    """Densities and weights of N prompts, their groups of near-duplicates (N,) int64, and the gates."""

    density: Density
    groups: Tensor
    gates: GateNumbers


@dataclass(frozen=True)
class ShardedDensity:
    """The density of prompts whose embeddings are in shards. Processes share its stages.

    Attributes:
        emb: The embeddings.
        spec: The settings of the density.
        near_duplicate: The cosine of near-duplicates after whitening; 1 for equal rows only.
        seed: The seed of all samples.
        stages: Where the stages are.
        device: The device of the search.

    Raises:
        UserError: The estimator needs all rows in memory, or a setting is out of range.
    """

    emb: ShardedEmbeddings
    spec: DensitySpec
    near_duplicate: float
    seed: int
    stages: Stages
    device: torch.device

    def __post_init__(self) -> None:
        check_spec(self.spec)
        if self.spec.estimator not in (*KNN, SKETCH):
            raise UserError(
                f"estimator={self.spec.estimator}: needs all embeddings in memory; use {', '.join(KNN)} or {SKETCH} "
                "for shards"
            )
        require_threshold(self.near_duplicate)
        if self.near_duplicate < 1 and self.spec.estimator != "whitened_knn":
            raise UserError(
                f"near_duplicate={self.near_duplicate} estimator={self.spec.estimator}: in shards, near-duplicates "
                "come from the neighbours of whitened_knn; add near_duplicate=1 to group equal embeddings only"
            )

    @cached_property
    def _white(self) -> WhitenedPlaces:
        return WhitenedPlaces(self.emb, KNN.get(self.spec.estimator, True), self.seed, self.stages)

    @cached_property
    def _method(self) -> ShardedNeighbours | ShardedSums:
        if self.spec.estimator == SKETCH:
            return ShardedSums(self._white, self.spec)
        return ShardedNeighbours(self._white, self.spec, self.near_duplicate, self.device)

    def run(self) -> None:
        """Do all stages together with other processes.

        Raises:
            UserError: There are too few different rows, or they vary in too few directions.
        """
        self._method.run()

    def tidy(self) -> None:
        """Remove the large results of the stages, which `collect` does not need."""
        self._method.tidy()

    def collect(self) -> FoundDensity:
        """Return what the stages found, after `run`.

        Raises:
            UserError: The target of the effective sample size cannot be reached.
        """
        measured, edges = self._method.collect()
        places = self._white.places
        place_of = torch.from_numpy(np.array(places.place_of))
        found = density_of_places(measured, place_of, self.spec)
        groups = groups_of(torch.from_numpy(edges), len(places))[place_of]
        sample = self._white.sample(ROWS)
        rows = self.emb.take(places.first_row[sample])
        gates = gates_of_sample(
            torch.nn.functional.normalize(rows, dim=1), measured.density[sample], self.spec, found,
            self._centre_correlation(found.density), self.seed,
        )  # fmt: skip
        return FoundDensity(found, groups, gates)

    def _centre_correlation(self, density: Tensor) -> float:
        """Return the rank correlation of the density with the cosine to the mean, for prompts at random."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(self.emb), generator=generator)[:CENTRE_ROWS].sort().values
        rows = self.emb.take(chosen.numpy())
        return rank_correlation(density[chosen], rows @ rows.mean(0))

    def sources(self) -> Sources:
        """Return the data set of each prompt."""
        import pyarrow.compute as pc

        columns = [self.emb.prompts(name)["source"] for name in self.emb.names]
        names = sorted({name for column in columns for name in pc.unique(column).to_pylist()})
        number_of = {name: number for number, name in enumerate(names)}
        parts = []
        for column in columns:
            encoded = column.combine_chunks().dictionary_encode()
            numbers = np.array([number_of[name] for name in encoded.dictionary.to_pylist()], dtype=np.int64)
            parts.append(numbers[encoded.indices.to_numpy()])
        return Sources(names, torch.from_numpy(np.concatenate(parts)))
