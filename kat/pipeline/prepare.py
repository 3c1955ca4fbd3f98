"""The tasks pairs and prompts, from data sets to unique prompts. Main entries: `pairs()` and `prompts()`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from kat.data.formats import FORMATS
from kat.data.pairs import Dropped, PairsSpec, PreferencePair, Reading, read_pairs, readings, rows_of
from kat.data.prompts import Prompt, unique_prompts
from kat.pipeline.artifacts import destination, locate, only_writer, sidecar_path, task
from kat.records import PairSetRecord, PairsRecord, PromptsRecord
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.origin import made_by
from latentwire.harness.progress import log
from latentwire.harness.results import json_line, open_atomically, write_json, write_jsonl, writing
from latentwire.harness.typed_config import typed
from latentwire.records import FORMAT


@task
def pairs(cfg: DictConfig) -> dict[str, PairSetRecord] | None:
    """Read the preference data sets in cfg.pairs, and write the pairs and the dropped rows with their reasons.

    Returns:
        The counts for each data set and split; None in all processes but the main one.

    Raises:
        UserError: A data set cannot be read, or no data set gives a pair.
    """
    specs = _specs(cfg)
    given = [
        Path(path).expanduser() for spec in specs if spec.origin == "file" for path in spec.splits.values() if path
    ]
    out = destination(cfg, reads=given)
    with only_writer(out, cfg) as is_mine:
        return _write_pairs(out, specs) if is_mine else None


def _write_pairs(out: Path, specs: Sequence[PairsSpec]) -> dict[str, PairSetRecord]:
    """Write the pairs, the dropped rows and pairs.json, and return the counts."""
    side, record = sidecar_path(out, "pairs_dropped.jsonl"), sidecar_path(out, "pairs.json")
    counts: dict[str, PairSetRecord] = {}
    without_pairs: list[str] = []
    with open_atomically(out) as kept, open_atomically(side) as dropped:
        for reading in readings(specs):
            name = f"{reading.spec.name}/{reading.split}"
            number, reasons = 0, Counter[str]()
            for item in reading:
                if isinstance(item, PreferencePair):
                    number += 1
                    with writing(out):
                        kept.write(json_line(item.row()).encode())
                else:
                    reasons[item.reason] += 1
                    with writing(side):
                        dropped.write(_ascii_line(item))
            counts[name] = _record_of(reading, number, reasons)
            _log_counts(name, counts[name])
            if number == 0:
                without_pairs.append(
                    f"{name}: none of its {reading.rows} rows gives a pair "
                    f"({', '.join(f'{n} {reason}' for reason, n in reasons.most_common()) or 'it is empty'}); check "
                    "the file, or name its format with pairs.file.format=NAME"
                )
        if len(without_pairs) == len(counts):
            raise UserError("\n".join(without_pairs) or "pairs: no data set is named; write pairs=NAME")
    content: PairsRecord = {"format": FORMAT, "sets": counts, **made_by()}
    write_json(record, content)
    for message in without_pairs:
        log(f"warning: {message}")
    log(f"pairs: {out} ({sum(c['pairs'] for c in counts.values())})")
    log(f"dropped: {side} ({sum(sum(c['dropped'].values()) for c in counts.values())})")
    return counts


def requested_sets(cfg: DictConfig) -> dict[str, dict[str, str]]:
    """Return what identifies the rows that task=pairs would read, for each data set and split.

    The commit of a data set on the hub is left out.

    Raises:
        UserError: A setting has the wrong type.
    """
    return {f"{spec.name}/{split}": rows_of(spec, split) for spec in _specs(cfg) for split in spec.splits}


def _specs(cfg: DictConfig) -> list[PairsSpec]:
    specs = [typed(PairsSpec, node, f"pairs.{name}.") for name, node in cfg.pairs.items()]
    return [_named_after_file(spec) if spec.origin == "file" else spec for spec in specs]


def _named_after_file(spec: PairsSpec) -> PairsSpec:
    path = next(iter(spec.splits.values()), "")
    return replace(spec, name=Path(path).name.split(".")[0] or spec.name)


def _record_of(reading: Reading, number: int, reasons: Counter[str]) -> PairSetRecord:
    source = FORMATS.source_digest(reading.format) if reading.format in FORMATS else None
    return {
        "format": reading.format,
        "rows": reading.rows,
        "pairs": number,
        "dropped": dict(reasons),
        "columns": list(reading.columns),
        "columns_left_out": dict(reading.left_out),
        "origin": {**reading.origin, **({"format_source": source} if source is not None else {})},
    }


def _log_counts(name: str, counts: PairSetRecord) -> None:
    log(f"{name}: {counts['pairs']} pairs out of {counts['rows']} rows, read as {counts['format']}")
    for reason, n in Counter(counts["dropped"]).most_common():
        log(f"  dropped {n}: {reason}")
    if counts["columns"]:
        log(f"  columns kept for reward functions: {', '.join(counts['columns'])}")
    for column, n in counts["columns_left_out"].items():
        log(f"  column {column} left out in {n} rows: JSON has no values of its type")


def _ascii_line(item: Dropped) -> bytes:
    """Return a dropped row as one line of JSON, with escapes for characters that are not valid Unicode."""
    return (json.dumps(item.row(), default=str) + "\n").encode("ascii")


@task
def prompts(cfg: DictConfig) -> int | None:
    """Write the unique prompts of the pairs, and the prompt of each pair.

    Returns:
        The number of unique prompts; None in all processes but the main one.

    Raises:
        UserError: The pairs file is missing or damaged, or has no pair of the split.
    """
    out, source = destination(cfg), locate(cfg, "pairs_file")
    with only_writer(out, cfg) as is_mine:
        return _write_prompts(out, source, cfg) if is_mine else None


def _write_prompts(out: Path, source: Path, cfg: DictConfig) -> int:
    """Write the unique prompts, the prompt of each pair and prompts.json, and return the number of prompts."""
    unique, pair_to_prompt = unique_prompts(read_pairs(source), cfg.split)
    if not unique:
        raise UserError(f"split={cfg.split}: no pair of {source} has this split; choose another, or split=null")
    write_jsonl(out, (prompt.row() for prompt in unique))
    side = sidecar_path(out, "pair_to_prompt.jsonl")
    write_jsonl(side, ({"pair_id": pair, "prompt_id": prompt} for pair, prompt in pair_to_prompt))
    conflicts = Counter(name for prompt in unique for name in sorted(prompt.conflicts))
    record: PromptsRecord = {
        "format": FORMAT,
        "pairs_sha256": file_sha256(source),
        "prompts_sha256": file_sha256(out),
        "split": cfg.split,
        "prompts": len(unique),
        "columns": list(unique[0].columns),
        "column_conflicts": dict(sorted(conflicts.items())),
        **made_by(),
    }
    write_json(sidecar_path(out, "prompts.json"), record)
    log(f"prompts: {out} ({len(unique)} unique of {len(pair_to_prompt)} pairs); {side}")
    _log_prompts(unique, record)
    return len(unique)


def _log_prompts(unique: Sequence[Prompt], record: PromptsRecord) -> None:
    for name, n in sorted(Counter(prompt.source for prompt in unique).items()):
        log(f"  {n} from {name}")
    if record["columns"]:
        log(f"  columns for reward functions: {', '.join(record['columns'])}")
    for name, n in record["column_conflicts"].items():
        log(f"  column {name}: the rows of {n} prompts differ; the first value is kept")
    shared = sum(len(prompt.splits) > 1 for prompt in unique)
    if shared and record["split"]:
        log(f"warning: {shared} of these prompts occur in another split too; see their `splits`")
