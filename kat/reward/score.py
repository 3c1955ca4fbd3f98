"""The task score: evaluate a reward model on a file of pairs, such as RewardBench. Main entry: `score_file()`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from omegaconf import DictConfig
from transformers import PreTrainedModel

from kat.data.files import file_rows
from kat.data.pairs import PairsSpec, PreferencePair, read_pairs, readings
from kat.pipeline.artifacts import task
from kat.records import PairRewards, RewardReport, ScoreResult, read_kat_record
from kat.reward.data import RewardPair, describe_counts, encode_all
from kat.reward.model import load_reward_model
from kat.reward.report import ScoredPair, evaluate_by_part, render_reward_report
from kat.reward.scoring import max_sequence_length, score
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.precision import choose_dtype
from latentwire.harness.progress import Progress, log
from latentwire.harness.results import DamagedResultError, JsonObject, write_json, write_jsonl
from latentwire.harness.typed_config import typed
from latentwire.records import FORMAT

AT_A_TIME = 64  # pairs between two updates of the progress bar


@task
def score_file(cfg: DictConfig) -> ScoreResult | None:
    """Score every pair of cfg.path; write the accuracy by subset and, in a second file, the rewards of each pair.

    Returns:
        The report; None in all processes except the main one.

    Raises:
        UserError: The reward model or the file is missing, or the file has no pair.
    """
    state = accelerator_state(cfg.device)
    if not state.is_main_process:
        return None
    if not cfg.reward:
        raise UserError("reward: no reward model given; write reward=FOLDER, the folder of a run of task=reward")
    if not cfg.path:
        raise UserError("path: no file given; write path=FILE (prompt, chosen, rejected and, optionally, subset)")
    batch_tokens = choose_batch_tokens(cfg.batch_tokens, state.device)
    model, tokenizer = load_reward_model(cfg.reward, state.device, choose_dtype(cfg.dtype, state.device))
    trained_length, longer = _training_settings(Path(cfg.reward).expanduser())
    path = Path(cfg.path).expanduser()
    read, dropped = _read(typed(PairsSpec, cfg.pairs.file, "pairs.file."), path)
    for reason, number in dropped.most_common():
        log(f"  dropped {number}: {reason}")
    max_length = min(filter(None, (trained_length, max_sequence_length(model))), default=sys.maxsize)
    pairs, counts = encode_all(tokenizer, read, max_length)
    log(f"{path}: {describe_counts(counts, max_length)}")
    if not pairs:
        raise UserError(f"path={path}: has no pair that can be scored; check the file, or name its format with "
                        "pairs.file.format=NAME")  # fmt: skip
    rewards = _rewards(model, pairs, batch_tokens)
    scored_pairs = [
        ScoredPair(pair.prompt_id, pair.source, chosen - rejected, *pair.lengths)
        for pair, (chosen, rejected) in zip(pairs, rewards, strict=True)
    ]
    report: ScoreResult = {
        "format": FORMAT,
        "reward": str(cfg.reward),
        "path": str(path),
        "sha256": file_sha256(path),
        "counts": {
            "pairs": counts["pairs"],
            "too_long": counts["too_long"],
            "trimmed": counts["trimmed"],
            "tokens_trimmed": counts["tokens_trimmed"],
            "dropped": dict(dropped),
        },
        **evaluate_by_part(scored_pairs, longer, cfg.seed),
    }
    out = Path(cfg.out or Path(cfg.reward) / "scores" / f"{path.name.split('.')[0]}.json").expanduser()
    rows: Iterator[PairRewards] = (
        {"prompt_id": pair.prompt_id, "source": pair.source, "chosen": chosen, "rejected": rejected}
        for pair, (chosen, rejected) in zip(pairs, rewards, strict=True)
    )
    write_jsonl(out.with_suffix(".pairs.jsonl"), rows)
    write_json(out, report)
    print(render_reward_report(report, path.name))
    log(f"scores: {out}; {out.with_suffix('.pairs.jsonl')}")
    return report


def _rewards(model: PreTrainedModel, pairs: Sequence[RewardPair], batch_tokens: int) -> list[list[float]]:
    """Return the rewards of the chosen and of the rejected completion of each pair."""
    rewards: list[list[float]] = []
    with Progress("score", len(pairs)) as progress:
        for start in range(0, len(pairs), AT_A_TIME):
            trees = [pair.tree for pair in pairs[start : start + AT_A_TIME]]
            values = score(model, [(t.prompt, c) for t in trees for c in t.completions], batch_tokens)
            rewards += values.view(-1, 2).tolist()
            progress.advance(len(trees), "")
    return rewards


class _Trained(TypedDict):
    """What a score needs of a result of task=reward, also of an earlier format."""

    identity: JsonObject
    held_out: RewardReport


def _training_settings(folder: Path) -> tuple[int | None, bool | None]:
    """Return max_length and the length rule of a run of task=reward; None and None for any other folder."""
    path = folder / "result.json"
    if not path.is_file():
        log(f"note: {folder} has no result of task=reward, so the report has no length-only baseline")
        return None, None
    remedy = "train the reward model again, or move this file away"
    result = read_kat_record(_Trained, path, remedy)
    max_length, rule = result["identity"].get("max_length"), result["held_out"].get("length_only")
    if not isinstance(max_length, int):
        raise DamagedResultError(f"{path} lacks identity.max_length: {remedy}")
    return max_length, None if rule is None else rule["rule"] == "longer"


def _read(spec: PairsSpec, path: Path) -> tuple[list[PreferencePair], Counter[str]]:
    """Return the pairs of a file in any format of task=pairs, and the number of dropped rows by reason."""
    row = next(iter(file_rows(path)))[1]
    if isinstance(row, dict) and {"id", "source", "split", "prompt", "chosen", "rejected"} <= row.keys():
        return list(read_pairs(path)), Counter()  # pairs_all.jsonl of task=pairs, whose pairs name their source
    spec.name = path.name.split(".")[0]
    pairs: list[PreferencePair] = []
    dropped: Counter[str] = Counter()
    for reading in readings([spec]):
        for item in reading:
            if isinstance(item, PreferencePair):
                pairs.append(item)
            else:
                dropped[item.reason] += 1
    return pairs, dropped
