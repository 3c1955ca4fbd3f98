"""The task subsample: prompts drawn by weight without replacement. Main entry: `subsample()`."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from kat.data.heldout import held_out, require_share
from kat.data.prompts import prompt_paths, prompts_in, read_prompts, repeated_id, topics_of
from kat.data.tables import read_groups, read_weights, same_ids
from kat.pipeline.artifacts import destination, locate, sampler_settings, task
from kat.pipeline.origin import check_crowd_gate, check_origin
from kat.records import DrawnRecord
from kat.sampling.arms import ARMS, ArmInputs, FixedWeights, RowInputs, build_arm
from kat.sampling.base import DENSITY, GROUPS
from kat.sampling.draws import draw
from kat.sampling.weight_files import WeightFolder
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.origin import made_by
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.random import generator_for
from latentwire.harness.results import JsonObject, write_json, write_jsonl, write_text_atomically
from latentwire.harness.shard_files import is_sharded
from latentwire.harness.typed_config import typed
from latentwire.records import FORMAT

REMEDY = "run task=density again"


@dataclass(frozen=True)
class PromptsOut:
    """Settings of the file with the drawn prompts, for a training run.

    Attributes:
        held_out: Share of the prompts that the run will hold out.
        eval_prompts: Number of held-out prompts in the file besides the drawn ones.
        force_weights: Whether weights that fail the crowd gate are accepted.

    Raises:
        UserError: A number is out of range.
    """

    held_out: float
    eval_prompts: int
    force_weights: bool

    def __post_init__(self) -> None:
        require_share(self.held_out)
        if self.eval_prompts < 0:
            raise UserError(f"eval_prompts={self.eval_prompts}: must be at least 0")


@dataclass(frozen=True)
class WeightedPrompts:
    """The prompts that can be drawn: what their arm is built from, their ids, and the digest of their weights."""

    inputs: ArmInputs | RowInputs
    ids: Callable[[], Iterable[str]]  # ids of all rows in their order
    ids_of: Callable[[Tensor], list[str]]  # ids of some rows
    sha256: str


@task
def subsample(cfg: DictConfig) -> list[str]:
    """Draw `budget` prompts by weight without replacement, and write one id a line in the order of the draws.

    With `prompts_out` the drawn prompts are written too, with `eval_prompts` held-out prompts for a training run.

    Returns:
        The ids of the drawn prompts.

    Raises:
        UserError: The arm has no fixed weights, the budget exceeds the prompts that can be drawn, or the weights are
            invalid or of other prompts.
    """
    _require_fixed_weights(cfg.sampler.name)
    source, out = locate(cfg, "weights_file", folder=True), destination(cfg)
    prompts_out = None if cfg.prompts_out is None else _prompts_out(cfg, source, out)
    found = _in_shards(cfg, source) if is_sharded(source) else _in_a_file(cfg, source)
    weights = build_arm(cfg.sampler.name, sampler_settings(cfg), found.inputs).sampling_weights
    budget, drawable = cfg.budget, int((weights > 0).sum())
    if not isinstance(budget, int) or isinstance(budget, bool) or not 1 <= budget <= drawable:
        raise UserError(
            f"budget={budget}: {drawable} prompts of {source} can be drawn without replacement; choose a whole "
            f"number from 1 to {drawable}"
        )
    rows = draw(weights, budget, replacement=False, generator=generator_for(cfg.seed, "subsample", cfg.sampler.name))
    chosen = found.ids_of(rows)
    _require_one_line(chosen)
    if is_main_process():
        if prompts_out is not None:
            _write_prompts(cfg, prompts_out, chosen, found)
        write_text_atomically(out, "".join(f"{name}\n" for name in chosen))
        log(f"{budget} of {len(weights)} prompts by sampler={cfg.sampler.name}: {out}")
        if budget > drawable / 2:
            log(f"note: {budget / drawable:.0%} of all prompts are drawn, so weights have little effect")
    return chosen


def _in_a_file(cfg: DictConfig, source: Path) -> WeightedPrompts:
    """Return the prompts of a weights.jsonl, after a check that the prompts file has them."""
    ids, _, measured = read_weights(source)
    check_origin(source)
    path = locate(cfg, "prompts_file")
    prompts = read_prompts(path)
    same_ids(ids, {prompt.id for prompt in prompts}, str(source), str(path), REMEDY)
    groups = read_groups(source) if GROUPS in ARMS[cfg.sampler.name].needs else {}
    topics = topics_of(prompts)
    inputs = ArmInputs(ids, cfg.seed, dict(zip(ids, measured.tolist(), strict=True)), groups=groups, topics=topics)
    _require_one_line(ids)
    return WeightedPrompts(inputs, lambda: ids, lambda rows: [ids[row] for row in rows.tolist()], file_sha256(source))


def _in_shards(cfg: DictConfig, source: Path) -> WeightedPrompts:
    """Return the prompts of a folder of weights. Their ids stay on the disk."""
    folder = WeightFolder.open(source)
    groups = folder.groups() if GROUPS in ARMS[cfg.sampler.name].needs else None
    inputs = RowInputs(folder.weights, cfg.seed, groups)
    return WeightedPrompts(inputs, folder.ids, folder.ids_of, folder.record["weights_sha256"])


def _prompts_out(cfg: DictConfig, source: Path, out: Path) -> Path:
    """Return the path of the file with the drawn prompts.

    Args:
        cfg: The config.
        source: The weights.
        out: The file with the ids.

    Raises:
        UserError: The path is the path of another file or has another ending, a setting is out of range, or the weights
            fail the crowd gate: these prompts are for training.
    """
    path, spec = destination(cfg, ".json", reads=[out], setting="prompts_out"), _spec(cfg)
    if path.suffix != ".jsonl":
        raise UserError(f"prompts_out={cfg.prompts_out}: is written as JSONL; use a name that ends in .jsonl")
    if DENSITY in ARMS[cfg.sampler.name].needs:
        check_crowd_gate(source, spec.force_weights)
    return path


def _spec(cfg: DictConfig) -> PromptsOut:
    return typed(PromptsOut, {field.name: cfg[field.name] for field in fields(PromptsOut)})


def _write_prompts(cfg: DictConfig, out: Path, chosen: Sequence[str], found: WeightedPrompts) -> None:
    """Write the drawn prompts, and the prompts with which a run of task=grpo on them is evaluated.

    These are the first held-out ones in the order of their ids, so they are the same for every sampler.

    Raises:
        UserError: An id has no prompt, or two prompts have the same id.
    """
    spec = _spec(cfg)
    evaluated = heapq.nsmallest(spec.eval_prompts, (name for name in found.ids() if held_out(name, spec.held_out)))
    wanted = {*chosen, *evaluated}
    write_jsonl(out, _rows_of(wanted, locate(cfg, "prompts_file"), locate(cfg, "weights_file", folder=True)))
    record: DrawnRecord = {
        "format": FORMAT,
        "sampler": cfg.sampler.name,
        "sampler_settings": sampler_settings(cfg),
        "seed": cfg.seed,
        "budget": cfg.budget,
        "prompts": len(wanted),
        "held_out": spec.held_out,
        "eval_prompts": spec.eval_prompts,
        "force_weights": spec.force_weights,
        "weights_sha256": found.sha256,
        "prompts_sha256": file_sha256(out),
        **made_by(),
    }
    write_json(out.with_suffix(".json"), record)
    log(f"{len(wanted)} prompts, {len(evaluated)} of them for the evaluation: {out}")


def _rows_of(wanted: set[str], source: Path, weights: Path) -> Iterator[JsonObject]:
    """Yield the rows of the wanted prompts in the order of `source`, which is read once and not kept in memory.

    Raises:
        UserError: An id has no prompt, or two prompts have the same id.
    """
    places: dict[str, tuple[Path, str]] = {}
    for path in prompt_paths(source):
        for place, prompt in prompts_in(path):
            if prompt.id not in wanted:
                continue
            if prompt.id in places:
                raise repeated_id(prompt.id, path, place, *places[prompt.id])
            places[prompt.id] = path, place
            yield prompt.row()
    same_ids(sorted(wanted), places, str(weights), str(source), REMEDY)


def _require_one_line(ids: Sequence[str]) -> None:
    """Check that a list of one id a line can hold these ids."""
    if broken := next((name for name in ids if "\n" in name or "\r" in name), None):
        raise UserError(f"id {broken!r}: has a line break, so a list of ids cannot hold it; rename it")


def _require_fixed_weights(name: str) -> None:
    """Check that the weights of an arm are known without a training run.

    Raises:
        UserError: The arm is unknown, or its weights follow the rewards of a training run.
    """
    if not issubclass(ARMS[name], FixedWeights):
        fixed = [other for other, arm in ARMS.items() if issubclass(arm, FixedWeights)]
        raise UserError(
            f"sampler={name}: its weights follow the rewards of a training run, and task=subsample has none; use one "
            f"of {', '.join(fixed)}"
        )
