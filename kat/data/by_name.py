"""Preference pairs of a data set in conf/pairs. Main entry: `load_pairs_by_name()`."""

from __future__ import annotations

from omegaconf import OmegaConf

from kat.data.pairs import PairsSpec, PreferencePair, readings
from latentwire.harness.paths import config_file
from latentwire.harness.progress import log
from latentwire.harness.typed_config import typed


def load_pairs_by_name(name: str = "nq_open") -> list[PreferencePair]:
    """Return the usable pairs of the data set that the setting `pairs=NAME` selects.

    Args:
        name: The name of a file in conf/pairs. `nq_open` is read from a pinned wheel.

    Returns:
        The pairs. Unusable rows are dropped, and their number is logged.

    Raises:
        UserError: The name is unknown, or the data cannot be read.

    >>> load_pairs_by_name("nothing")
    Traceback (most recent call last):
    latentwire.harness.errors.UserError: pairs=nothing: unknown; use one of ...
    """
    path = config_file("pairs", name)
    spec = typed(PairsSpec, OmegaConf.load(path), f"pairs.{name}.")
    rows = [item for reading in readings([spec]) for item in reading]
    pairs = [item for item in rows if isinstance(item, PreferencePair)]
    if len(pairs) < len(rows):
        log(f"pairs={name}: dropped {len(rows) - len(pairs)} of {len(rows)} rows; task=pairs lists the reasons")
    return pairs
