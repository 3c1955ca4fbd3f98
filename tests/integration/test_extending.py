"""The recipes of docs/extending.md: each is short, and its module and commands work as they are written."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers.checkpoints import make_checkpoints, write_prompts_and_weights
from tests.helpers.paths import ROOT
from tests.helpers.plugins import forgotten_afterwards

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
MOST = 15  # lines of a recipe, without empty lines and the name of its file
KINDS = {"transform", "source", "encoder", "sampler arm", "reward", "answer metric", "diversity metric", "embedder",
         "data set"}  # fmt: skip


@dataclass
class Recipe:
    """A section of the page: the files that it writes, and its commands."""

    files: dict[str, str] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)


def recipes() -> dict[str, Recipe]:
    """Return the recipe of each section by its heading, without the article."""
    found = {}
    for part in PAGE.split("\n## ")[1:]:
        recipe = Recipe()
        for language, name, text in FENCE.findall(part):
            if language == "bash":
                recipe.commands += [shlex.split(line) for line in text.splitlines()]
            elif language == "python":
                recipe.files[text.splitlines()[0].removeprefix("# ")] = text
            else:
                recipe.files[name] = text
        if recipe.commands:
            found[re.sub(r"^An? ", "", part.splitlines()[0])] = recipe
    return found


RECIPES = recipes()


def test_the_page_has_a_recipe_for_each_kind():
    assert set(RECIPES) == KINDS
    assert all(recipe.commands for recipe in RECIPES.values())


@pytest.mark.parametrize(
    ("name", "text"), [item for recipe in RECIPES.values() for item in recipe.files.items() if item[0].endswith(".py")]
)
def test_a_recipe_is_short_and_named_after_its_module(name, text):
    assert re.fullmatch(r"\w+\.py", name)
    assert len([line for line in text.splitlines()[1:] if line.strip()]) <= MOST


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_runs_as_it_is_written(entry, tmp_path, kind, one_thread):
    recipe = RECIPES[kind]
    for name, text in recipe.files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    if kind == "diversity metric":
        models = make_checkpoints(tmp_path / "models")
        for name, arm in zip(sorted(path.name for path in models.iterdir())[:2], ("uniform", "density"), strict=True):
            shutil.copytree(models / name, tmp_path / "outputs/grpo" / f"{arm}_seed0")
        write_prompts_and_weights(tmp_path / "outputs" / "kat")
    before = written(tmp_path)
    with forgotten_afterwards(tmp_path):
        for python, script, *arguments in recipe.commands:
            assert python == "python"
            status, _, said = entry(script.removesuffix(".py"), *arguments)
            assert status == 0, said
            assert "warning: W&B" not in said and "FAILED" not in said
            after = written(tmp_path)
            assert after > before  # each command made something
            before = after


def written(folder: Path) -> int:
    """Return the number of files below a folder."""
    return sum(path.is_file() for path in folder.rglob("*"))
