"""Whether an encoder can read the passages of a run. Main entries: `leave_out_short_parts()`, `require_readable()`."""

from __future__ import annotations

from collections.abc import Sequence

from latentwire.data.fingerprints import fingerprint
from latentwire.encoders.pipeline import at_ratio
from latentwire.harness.errors import UserError
from latentwire.latent_training.objective import LatentObjective, halves
from latentwire.latent_training.passages import LatentData, Passage


def leave_out_short_parts(data: LatentData, objective: LatentObjective, ratios: Sequence[int] | None) -> None:
    """Skip parts of split passages that are too short for the ratio, since users cannot fix them.

    Args:
        data: The passages. Parts to skip are removed and counted.
        objective: The training objective, with the encoder.
        ratios: Ratios that steps draw besides the encoder's own; None: no others.

    Raises:
        UserError: The encoder cannot have one of the ratios.
    """
    least, wholes = _shortest(objective, ratios), data.wholes
    marks = [fingerprint(passage.text) for passage in data.train]
    kept = [
        passage
        for passage, mark in zip(data.train, marks, strict=True)
        if wholes.get(mark, mark) == mark or _tokens_read(objective, passage) >= least
    ]
    if kept and len(kept) < len(marks):
        data.counts[f"parts of split passages, too short for ratio={least}"] += len(marks) - len(kept)
        data.train = kept


def require_readable(data: LatentData, objective: LatentObjective, ratios: Sequence[int] | None) -> None:
    """Check, before any work, that every passage has at least one latent and fits into the LM's context.

    Args:
        data: The passages.
        objective: The training objective, with the encoder.
        ratios: Ratios that steps draw besides the encoder's own; None: no others.

    Raises:
        UserError: A passage is too short or too long.
    """
    encoder = objective.latents.encoder
    extremes = [max(ratios), min(ratios)] if ratios else []
    for passage in [*data.train, *data.held_out]:
        for ratio in {None, *extremes}:
            with at_ratio(encoder, ratio):
                encoder.positions(_tokens_read(objective, passage))
                objective.require_room(passage)


def _tokens_read(objective: LatentObjective, passage: Passage) -> int:
    """Return the number of tokens to encode of a passage: its first half if `continuation` is trained."""
    text = halves(passage.text)[0] if objective.loss_weights.continuation else passage.text
    return len(objective.writer.ids(f" {text}"))


def _shortest(objective: LatentObjective, ratios: Sequence[int] | None) -> int:
    """Return the fewest tokens of a passage that can be encoded at every ratio of the run."""
    encoder = objective.latents.encoder
    if ratios and not encoder.any_ratio:
        raise UserError(
            f"ratios={ratios}: encoder={objective.latents.spec.encoder} has no ratio that can change; use ratios=null"
        )
    found = [encoder.shortest]
    for ratio in ratios or []:
        with at_ratio(encoder, ratio):
            found.append(encoder.shortest)
            encoder.positions(encoder.shortest)  # refuses a ratio that the encoder cannot have
    return max(found)
