"""Types of what the tasks density, cluster and project write. Main entry: `DensityRecord`."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from latentwire.harness.results import JsonObject, MadeBy


class SourceMass(TypedDict):
    """Prompts of a data set."""

    prompts: int
    share: float  # of all prompts
    mass: float  # sum of the sampling weights


class ClusterMass(TypedDict):
    """Mass of known clusters, for uniform weights and for the given ones."""

    clusters: int
    total_variation_uniform: float
    total_variation: float
    rare_uniform: float
    rare: float
    rare_wanted: float
    noise_uniform: float
    noise: float


class GateNumbers(TypedDict):
    """Whether a density is local, stable and not fooled by crowds; see `kat.density.gates`. None: not measured."""

    local_share: float  # mean share of a prompt's density that comes from itself and its k nearest neighbours
    centre_correlation: float  # rank correlation of the density with the cosine to the mean embedding
    crowd_ratio: float | None  # mass of planted near copies over their uniform share, the worst of several places
    crowd_ratio_mean: float | None
    stability: float | None  # rank correlation of densities among two halves of the prompts
    agreement: float | None  # rank correlation with the densities of a second file of embeddings
    weights_apart: float | None  # total variation from the weights of the second file


class DuplicateGroup(TypedDict):
    """A group of near-duplicates; ids and texts of its first prompts."""

    size: int
    ids: list[str]
    texts: list[str]


class DuplicateGroups(TypedDict):
    """Groups of near-duplicates among the prompts."""

    groups: int  # a prompt without near-duplicates is a group
    groups_of_several: int
    prompts_in_them: int
    largest: list[DuplicateGroup]


class WeightDiagnostics(TypedDict):
    """Numbers that describe sampling weights."""

    prompts: int
    ess: float  # effective sample size
    ess_share: float  # of the prompts
    p99_p1: float | None  # 99th percentile of the weights over the first; None if the first is 0
    largest_times_uniform: float
    mass_by_source: dict[str, SourceMass]
    mass_by_decile: list[float]  # most crowded tenth first
    clusters: NotRequired[ClusterMass]
    gates: NotRequired[GateNumbers]  # with the embeddings
    warnings: list[str]


class DensityReport(WeightDiagnostics):
    """Settings and diagnostics of sampling weights."""

    estimator: str
    k: int
    gamma: float
    target_ess: float | None
    cap: float
    crowd_cap: float
    index: str
    min_recall: float
    bandwidth: float
    recall: float
    error: float | None
    weights_error: float | None  # total variation from the weights of an exact search, on a sample; None: not measured
    lists: int | None  # number of lists of the search; None without lists
    lists_searched: int | None  # for each different prompt
    distinct_embeddings: int
    near_duplicate: float
    near_duplicates: DuplicateGroups
    capped_share: float


class DensityOrigin(MadeBy):
    """From which embeddings and settings weights were made."""

    format: int
    settings: JsonObject  # as the user gave them
    seed: int
    embeddings_sha256: str
    weights_sha256: str


class DensityRecord(DensityReport, DensityOrigin):
    """density.json of task=density."""

    seconds: float


class ShardedDensityRecord(DensityRecord):
    """density.json in a folder of weights."""

    key: str
    shards: list[str]
    sizes: list[int]  # rows of each shard


class GatedWeights(DensityOrigin):
    """The part of density.json that decides whether weights may train."""

    gates: GateNumbers


class WeightRow(TypedDict):
    """A line of weights.jsonl."""

    id: str
    density: float
    weight: float
    group: int  # of near-duplicates


class NearestPrompt(TypedDict):
    """A prompt near the centroid of its cluster."""

    id: str
    text: str


class ClusterRecord(TypedDict):
    """A cluster of prompts."""

    cluster: int
    size: int
    mean_density: float | None  # None without weights.jsonl
    mass: float | None
    sources: dict[str, int]
    nearest: list[NearestPrompt]


class ClustersResult(TypedDict):
    """clusters.json of task=cluster."""

    format: int
    clusters: list[ClusterRecord]
    labels: dict[str, int]  # cluster of each prompt id
    seed: int


class MapPoint(TypedDict):
    """A prompt on the 3-D map."""

    id: str
    x: float
    y: float
    z: float
    density: float
    weight: float
    source: str
    text: str


class MapResult(TypedDict):
    """embeddings_3d.json of task=project."""

    format: int
    method: str
    variance_shares: list[float]
    points: list[MapPoint]
