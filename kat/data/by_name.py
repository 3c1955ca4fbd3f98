"""Preference pairs of conf/pairs, read by their name. Main entry: `load_pairs_by_name()`."""

from __future__ import annotations

from omegaconf import OmegaConf

from kat.data.pairs import PairsSpec, PreferencePair, readings
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF
from latentwire.harness.typed_config import typed


def load_pairs_by_name(name: str = "nq_open") -> list[PreferencePair]:
    """Read the usable pairs of a data set, as the setting `pairs=NAME` chooses it; drop the others.

    Args:
        name: A file of conf/pairs. `nq_open` comes out of a pinned wheel.

    Raises:
        UserError: No such name, or the data cannot be read.
    """
    path = CONF / "pairs" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"pairs={name}: unknown; use one of {known}")
    spec = typed(PairsSpec, OmegaConf.load(path), f"pairs.{name}.")
    return [found for reading in readings([spec]) for found in reading if isinstance(found, PreferencePair)]
