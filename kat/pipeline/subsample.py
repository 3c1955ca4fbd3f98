"""The task subsample: prompts drawn by weight without replacement. Main entry: `subsample()`."""

from __future__ import annotations

from omegaconf import DictConfig

from kat.data.prompts import read_prompts
from kat.data.tables import read_groups, read_weights, same_ids
from kat.pipeline.artifacts import destination, locate, sampler_settings, task
from kat.pipeline.origin import check_origin
from kat.sampling.arms import ARMS, ArmInputs, FixedWeights, build_arm
from kat.sampling.base import GROUPS
from kat.sampling.draws import draw
from latentwire.harness.errors import UserError
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.random import generator_for
from latentwire.harness.results import write_text_atomically


@task
def subsample(cfg: DictConfig) -> list[str]:
    """Draw `budget` prompts by weight without replacement, and write one id a line in the order of the draws.

    Returns:
        The ids of the drawn prompts.

    Raises:
        UserError: The arm has no fixed weights, the budget exceeds the prompts that can be drawn, or the weights are
            invalid or of other prompts.
    """
    _require_fixed_weights(cfg.sampler.name)
    source, out, prompts = locate(cfg, "weights_file"), destination(cfg), locate(cfg, "prompts_file")
    ids, _, measured = read_weights(source)
    check_origin(source)
    same_ids(ids, {prompt.id for prompt in read_prompts(prompts)}, str(source), str(prompts), "run task=density again")
    groups = read_groups(source) if GROUPS in ARMS[cfg.sampler.name].needs else {}
    inputs = ArmInputs(ids, cfg.seed, dict(zip(ids, measured.tolist(), strict=True)), groups=groups)
    weights = build_arm(cfg.sampler.name, sampler_settings(cfg), inputs).sampling_weights
    budget, drawable = cfg.budget, int((weights > 0).sum())
    if not isinstance(budget, int) or isinstance(budget, bool) or not 1 <= budget <= drawable:
        raise UserError(
            f"budget={budget}: {drawable} prompts of {source} can be drawn without replacement; choose a whole "
            f"number from 1 to {drawable}"
        )
    if broken := next((name for name in ids if "\n" in name or "\r" in name), None):
        raise UserError(f"id {broken!r}: has a line break, so a list of ids cannot hold it; rename it")
    rows = draw(weights, budget, replacement=False, generator=generator_for(cfg.seed, "subsample", cfg.sampler.name))
    chosen = [ids[row] for row in rows.tolist()]
    if is_main_process():
        write_text_atomically(out, "".join(f"{name}\n" for name in chosen))
        log(f"{budget} of {len(ids)} prompts by sampler={cfg.sampler.name}: {out}")
        if budget > drawable / 2:
            log(f"note: {budget / drawable:.0%} of all prompts are drawn, so weights have little effect")
    return chosen


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
