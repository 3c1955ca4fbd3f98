"""The names that `import latentwire` and `import kat` hand out: they exist, are typed, documented and tried."""

from __future__ import annotations

import ast
import doctest
import inspect
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

import kat
import latentwire
from latentwire.harness.paths import CONF
from latentwire.notebook import EvaluationOptions

PACKAGES = {"latentwire": latentwire, "kat": kat}
NAMES = [(package, name) for package, module in PACKAGES.items() for name in module.__all__ if name != "__version__"]


def typed_names(module: ModuleType) -> dict[str, str]:
    """Return what type checkers see: public name -> 'module:attribute'."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        str(alias.asname): f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_public_names(package):
    assert typed_names(PACKAGES[package]) == PACKAGES[package].PUBLIC
    assert 8 <= len(PACKAGES[package].PUBLIC) <= 14
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = PACKAGES[package].nothing


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_every_public_name_has_an_example_that_runs(package, name):
    thing = getattr(PACKAGES[package], name)
    documented = inspect.getdoc(thing)
    assert documented and ">>>" in documented
    module = inspect.getmodule(thing)
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, module=module)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    found: list[str] = []
    runner.run(test, out=found.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(found)
    assert test.examples


def test_a_notebook_evaluates_like_the_command_line():
    defaults = OmegaConf.load(CONF / "run.yaml")
    own = vars(EvaluationOptions())
    shared = [name for name in own if name not in ("samples", "metrics")]
    assert {name: own[name] for name in shared} == {name: defaults[name] for name in shared}
