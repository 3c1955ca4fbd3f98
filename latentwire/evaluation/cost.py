"""Cost of configurations before they run, by which workers divide a sweep. Main entry: `costs()`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from omegaconf import DictConfig

from latentwire.evaluation.request import read
from latentwire.evaluation.setup import FIRST_BLOCK
from latentwire.evaluation.task import has_enough, setup_key
from latentwire.harness.device import accelerator_state
from latentwire.harness.results import DamagedResultError, ResultStore
from latentwire.harness.shares import Cost
from latentwire.records import result_of

LOADING = 20.0  # examples that take as long as loading the model and encoding the shots, roughly
SHORTEST = 0.001  # seconds, to which times of results are rounded
EXAMPLE = 0.2  # seconds of an example if no result of the folder tells


def costs(cfgs: Sequence[DictConfig]) -> list[Cost]:
    """Return the cost of each configuration of a sweep.

    A finished configuration costs nothing. The others are estimated by finished ones with the same transform, else by
    all finished ones.

    Args:
        cfgs: Config of each configuration.

    Raises:
        UserError: A setting is out of range.
    """
    state = accelerator_state(cfgs[0].device)
    requests = [read(cfg, state, FIRST_BLOCK if cfg.num_examples is not None else 0) for cfg in cfgs]
    found: list[int | None] = []
    rates: dict[str, list[float]] = {}  # seconds an example, by transform
    for cfg, request in zip(cfgs, requests, strict=True):
        store = ResultStore(Path(str(cfg.out)))
        try:
            result = store.finished(cfg.name, request.key)
        except DamagedResultError:
            result = None
        earlier = None if result is None else result_of(result, store.path(cfg.name))
        if earlier is not None and earlier["status"] == "ok":
            seconds = max(SHORTEST, earlier["time_sec"])  # only a finished configuration costs nothing
            rates.setdefault(request.transform.name, []).append(seconds / max(1, earlier["num_samples"]))
        if cfg.force or earlier is None or earlier["status"] != "ok":
            found.append(0)
        else:
            found.append(None if has_enough(earlier, cfg.num_examples) else earlier["num_samples"])
    usual = median([rate for own in rates.values() for rate in own] or [EXAMPLE])
    every = []
    for cfg, request, done in zip(cfgs, requests, found, strict=True):
        rate = median(rates.get(request.transform.name, [usual]))
        examples = cfg.samples if cfg.num_examples is None else cfg.num_examples
        seconds = 0.0 if done is None else max(0, examples - done) * rate
        every.append(Cost(setup_key(request, state), seconds, LOADING * usual))
    return every
