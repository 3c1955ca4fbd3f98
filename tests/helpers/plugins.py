"""Plugins in a test's folder, of which nothing remains after the test. Main entry: `forgotten_afterwards()`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from latentwire.encoders import registry as encoders  # noqa: F401 (registers what is there without plugins)
from latentwire.harness import registry
from latentwire.sources import registry as sources  # noqa: F401
from latentwire.transforms import registry as transforms  # noqa: F401


@contextmanager
def forgotten_afterwards(folder: Path) -> Iterator[None]:
    """Undo in the end what modules in a folder register."""
    modules = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        before = {each.setting: set(each) for each in registry.ALL}
        for each in registry.ALL:
            patch.setattr(each, "things", dict(each.items()))
        yield
        for each in registry.ALL:
            configs = ConfigStore.instance().repo.get(each.setting, {})
            for name in set(each) - before.get(each.setting, set(each)):
                configs.pop(f"{name}.yaml", None)
    for name in sys.modules.keys() - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def forget(name: str) -> None:
    """Forget a module and the classes that it registered, so that the next command is as in a new process."""
    sys.modules.pop(name, None)
    for each in registry.ALL:
        for key, thing in each.items():
            if getattr(getattr(thing, "define", thing), "__module__", None) == name:
                del each.things[key]
