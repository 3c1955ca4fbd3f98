"""Preference pairs of a data set in conf/pairs. Main entry: `load_pairs_by_name()`."""

from __future__ import annotations

from omegaconf import OmegaConf

from kat.data.pairs import PairsSpec, PreferencePair, readings
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF
from latentwire.harness.typed_config import typed


def load_pairs_by_name(name: str = "nq_open") -> list[PreferencePair]:
    """Return the usable pairs of the data set that the setting `pairs=NAME` selects.

    Args:
        name: The name of a file in conf/pairs. `nq_open` is read from a pinned wheel.

    Returns:
        The pairs. Unusable rows are dropped.

    Raises:
        UserError: The name is unknown, or the data cannot be read.
    """
    path = CONF / "pairs" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"pairs={name}: unknown; use one of {known}")
    spec = typed(PairsSpec, OmegaConf.load(path), f"pairs.{name}.")
    return [item for reading in readings([spec]) for item in reading if isinstance(item, PreferencePair)]
