"""The k nearest neighbours of every place, in stages on disk. Main entry: `ShardedNeighbours`.

1. lists: the centres of lists, from a sample of the whitened places.
2. white: the places of each shard, whitened and sorted by list; with the true neighbours of a few queries in the shard.
3. needed: the number of lists that the recall needs, from the true neighbours of the queries.
4. gathered: the places of some lists from all shards, in one file.
5. found: the neighbours of these places.

Each stage has units that processes share. A file is made from finished files only, so the order of the units is free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from kat.density.duplicates import LINKS
from kat.density.estimators import DensitySpec, MeasuredPlaces, density_at
from kat.density.lists import fit_lists, list_count, lists_needed, nearest_lists, search_lists
from kat.density.nearest import EXACT_UP_TO, check_neighbours
from kat.shards.stages import Stages
from kat.shards.whitened import ONE, WhitenedPlaces, half_rows
from latentwire.harness.shard_files import Array

ROWS_OF_LIST = 32  # sampled rows for each list
EXACT_ROWS = 16_384  # rows of a list if all lists are searched
GROUP_BYTES = 64 * 2**20  # of a gathered file
PROBES = 2**23  # lists that the rows searched at a time search in all


@dataclass(frozen=True)
class ShardedNeighbours:
    """The search of one density.

    Attributes:
        white: The places, in the space of the distances.
        spec: The settings of the density: k, index and min_recall.
        near_duplicate: The cosine of near-duplicates; 1 for equal rows only.
        device: The device of the products.
    """

    white: WhitenedPlaces
    spec: DensitySpec
    near_duplicate: float
    device: torch.device

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
        self.stages.run("lists", [ONE], self._fit)
        groups, names = list(self._groups), self.white.emb.names

        def are_gathered() -> bool:
            return self.stages.are_finished("needed", [ONE]) and self.stages.are_finished("gathered", groups)

        def are_found() -> bool:
            return self.stages.are_finished("needed", [ONE]) and self.stages.are_finished("found", groups)

        if are_found():
            return
        if not are_gathered():
            self.stages.run("white", names, self._whiten, are_gathered)
            self.stages.run("needed", [ONE], self._count_needed)
            self.stages.run("gathered", groups, self._gather, are_found)
        self.stages.remove("white")
        self.stages.run("found", groups, self._search)

    def tidy(self) -> None:
        """Remove what `collect` does not need. The rest is small, and gives other weights within seconds."""
        for stage in ("white", "gathered"):
            self.stages.remove(stage)

    def _fit(self, unit: str) -> None:
        """Fit the lists to a sample of the places."""
        m = len(self.white.places)
        count = max(1, m // EXACT_ROWS) if self._is_exact else list_count(m)
        sample = self.white.take(self.white.sample(ROWS_OF_LIST * count))
        self.stages.files("lists").save(unit, {"centres": fit_lists(sample, count, self.white.seed).numpy()})

    @property
    def _is_exact(self) -> bool:
        return self.spec.index == "exact" or (self.spec.index == "auto" and len(self.white.places) <= EXACT_UP_TO)

    @cached_property
    def centres(self) -> Tensor:
        """The centres of the lists, (C, A) float32."""
        return torch.from_numpy(np.array(self.stages.files("lists").array(ONE, "centres")))

    @cached_property
    def _queries(self) -> tuple[Tensor, Tensor]:
        """Return the rows of the queries (Q, A) float32, and their places (Q,) int64."""
        return self.white.take(self.white.queries), torch.from_numpy(self.white.queries)

    def _whiten(self, name: str) -> None:
        """Save the places of a shard sorted by list, and the places of the shard that are nearest to each query."""
        rows, place = (torch.cat(parts) for parts in zip(*self.white.blocks(name), strict=True))
        lists = nearest_lists(rows, self.centres, 1)[:, 0]
        order = lists.argsort(stable=True)
        rows, place, lists = rows[order], place[order], lists[order]
        queries, own = self._queries
        every = torch.zeros(len(queries), 1, dtype=torch.int64)
        products, near = search_lists(queries, own, every, lambda _: (rows, place), self.spec.k)
        where = torch.zeros(len(self.white.places), dtype=torch.int32)
        where[place] = lists.to(torch.int32)
        self.stages.files("white").save(name, {
            "rows": rows.half().numpy(), "place": place.numpy(), "list": lists.to(torch.int32).numpy(),
            "products": products.numpy(), "near": near.numpy(), "near_list": where[near.clamp(min=0)].numpy(),
        })  # fmt: skip

    def _count_needed(self, unit: str) -> None:
        """Count the lists that the recall needs, and keep the true neighbours of the queries."""
        files = self.stages.files("white")
        products, near, lists = (
            torch.cat([torch.from_numpy(np.array(files.array(name, part))) for name in self.white.emb.names], dim=1)
            for part in ("products", "near", "near_list")
        )
        best, chosen = products.topk(self.spec.k)  # (Q, K)
        of_neighbours = lists.gather(1, chosen).long()
        count = lists_needed(self._queries[0], self.centres, of_neighbours, self.spec.min_recall)
        count = len(self.centres) if self._is_exact else count
        arrays = {"true": near.gather(1, chosen).numpy(), "products": best.numpy()}
        self.stages.files("needed").save(unit, arrays, facts={"lists": count})

    @cached_property
    def _groups(self) -> dict[str, range]:
        """The lists of each gathered file, by its name."""
        row = 2 * self.centres.shape[1]
        count = min(len(self.centres), -(-len(self.white.places) * row // GROUP_BYTES))
        bounds = np.linspace(0, len(self.centres), count + 1).astype(int).tolist()
        return {f"{i:05d}": range(bounds[i], bounds[i + 1]) for i in range(count)}

    def _gather(self, name: str) -> None:
        """Save the places of some lists, from all shards, sorted by list."""
        files, lists = self.stages.files("white"), self._groups[name]
        rows, place, number = [], [], []
        for shard in self.white.emb.names:
            own = files.array(shard, "list")
            part = slice(*np.searchsorted(own, [lists.start, lists.stop]))
            rows.append(files.array(shard, "rows")[part])
            place.append(files.array(shard, "place")[part])
            number.append(own[part])
        of_list = np.concatenate(number)
        order = np.argsort(of_list, kind="stable")
        bounds = np.searchsorted(of_list[order], np.arange(lists.start, lists.stop + 1))
        self.stages.files("gathered").save(name, {
            "rows": np.concatenate(rows)[order], "place": np.concatenate(place)[order], "bounds": bounds,
        })  # fmt: skip

    @cached_property
    def _gathered(self) -> dict[str, tuple[Array, Array, Array]]:
        files = self.stages.files("gathered")
        return {name: (files.array(name, "rows"), files.array(name, "place"), np.array(files.array(name, "bounds")))
                for name in self._groups}  # fmt: skip

    def _members(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the places of a list: unit rows (M, A) float32, and their numbers (M,) int64."""
        name = self._group_of[number]
        rows, place, bounds = self._gathered[name]
        first = number - self._groups[name].start
        part = slice(bounds[first], bounds[first + 1])
        return half_rows(torch.from_numpy(np.array(rows[part]))), torch.from_numpy(np.array(place[part]))

    @cached_property
    def _group_of(self) -> dict[int, str]:
        return {number: name for name, lists in self._groups.items() for number in lists}

    @cached_property
    def _lists(self) -> int:
        facts = self.stages.files("needed").facts(ONE)
        return int(str(facts["lists"]))

    def _search(self, name: str) -> None:
        """Search the neighbours of the places in a gathered file."""
        rows, place, _ = self._gathered[name]
        queries, own = half_rows(torch.from_numpy(np.array(rows))), torch.from_numpy(np.array(place))
        cached = lru_cache(maxsize=64)(self._members)
        links = min(LINKS, len(self.white.places) - 1) if self.near_duplicate < 1 else 0
        count = max(self.spec.k, links)
        parts = []
        for some, numbers in zip(*(each.split(max(1, PROBES // self._lists)) for each in (queries, own)), strict=True):
            probes = nearest_lists(some, self.centres, self._lists)
            parts.append(search_lists(some, numbers, probes, cached, count, self.device))
        products, near = (torch.cat(found) for found in zip(*parts, strict=True))
        if len(few := (near < 0).any(1).nonzero()[:, 0]):  # places that searched only small lists
            probes = torch.arange(len(self.centres)).expand(len(few), -1)
            products[few], near[few] = search_lists(queries[few], own[few], probes, cached, count, self.device)
        distances = _distances(products[:, : self.spec.k])
        is_query = torch.isin(own, self._queries[1])
        first, second = (products[:, :links] >= self.near_duplicate).nonzero().T
        pairs = torch.stack([own[first], near[first, second]], dim=1).sort(dim=1).values.unique(dim=0)
        self.stages.files("found").save(name, {
            "place": own.numpy(), "mean": distances.mean(1).numpy(), "farthest": distances[:, -1].numpy(),
            "edges": pairs.numpy(),
            "query": own[is_query].numpy(), "query_near": near[is_query, : self.spec.k].numpy(),
        })  # fmt: skip

    def collect(self) -> tuple[MeasuredPlaces, Array]:
        """Return the densities of the places after `run`, and pairs of near-duplicates among them, (E, 2) int64."""
        files, copies = self.stages.files("found"), torch.from_numpy(np.array(self.white.places.copies))
        mean, farthest = torch.empty(len(copies)), torch.empty(len(copies))
        edges, query, near = [], [], []
        for name in self._groups:
            place = np.array(files.array(name, "place"))
            mean[place] = torch.from_numpy(np.array(files.array(name, "mean")))
            farthest[place] = torch.from_numpy(np.array(files.array(name, "farthest")))
            edges.append(files.array(name, "edges"))
            query.append(files.array(name, "query"))
            near.append(files.array(name, "query_near"))
        queries, needed = self._queries[1], self.stages.files("needed")
        row_of = {place: row for row, place in enumerate(np.concatenate(query).tolist())}
        found = np.concatenate(near)[[row_of[place] for place in queries.tolist()]]  # (Q, K)
        true = needed.array(ONE, "true")
        recall = 1.0 if self._is_exact else float((found[:, :, None] == true[:, None, :]).any(1).mean())
        exact = _distances(torch.from_numpy(np.array(needed.array(ONE, "products"))))  # (Q, K)
        checked = None if self._is_exact else (queries, density_at(exact, copies[queries]))
        density = density_at(mean[:, None], copies)
        measured = MeasuredPlaces(density, torch.ones_like(density), float(farthest.median()),
                                  "exact" if self._is_exact else "ivf", recall, checked=checked,
                                  lists=None if self._is_exact else (len(self.centres), self._lists))  # fmt: skip
        return measured, np.concatenate(edges)


def _distances(products: Tensor) -> Tensor:
    """Return the distances of unit rows from their products. Below 5e-4 they are rounding errors of float32."""
    return (2 - 2 * products).clamp(min=0).sqrt()
