"""Registries: names, labels, dials, and digests of the modules that define a thing."""

from __future__ import annotations

from typing import ClassVar

import pytest
from omegaconf import OmegaConf

from latentwire.harness import registry as module
from latentwire.harness import typed_config  # noqa: F401 (registers the resolvers)
from latentwire.harness.errors import UserError
from latentwire.harness.registry import ClassRegistry, Registry, check_dials, dials_of, node_with_dials
from tests.helpers.plugins import forgotten_afterwards


class Clip:
    label: ClassVar[str]

    def __init__(self, vocabulary: object, *, limit: float, k: int = 3, how: str = "soft", most: int | None = None):
        self.limit = limit


REST = ("limit", "how", "most")  # dials that the label "clip{k}" leaves out


class Other:
    label: ClassVar[str]

    def __init__(self, *, limit: float = 1.0):
        self.limit = limit


@pytest.fixture
def classes(monkeypatch):
    monkeypatch.setattr(module, "ALL", [])
    return ClassRegistry("clip", "clipping")


def test_an_unknown_name_lists_the_known_ones(monkeypatch):
    monkeypatch.setattr(module, "ALL", [])
    numbers: Registry[int] = Registry("number", "numbers")
    numbers.add("two", 2)
    numbers.add("one", 1)
    assert (list(numbers), len(numbers), numbers["two"], "one" in numbers) == (["two", "one"], 2, 2, True)
    with pytest.raises(UserError, match=r"^numbers=three: unknown; use one of two, one$"):
        numbers["three"]


def test_two_things_of_one_name_are_refused(classes):
    classes.add_class("clip", Clip, "clip{k}", REST)
    classes.add_class("clip", Clip, "clip{k}", REST)  # the same again, as when a module is imported again
    with pytest.raises(UserError, match=r"clip: .*test_registry.Clip and .*test_registry.Other both register"):
        classes.add_class("clip", Other, "other{limit}")
    with pytest.raises(UserError, match="'my clip': not a name; use letters, digits and _"):
        classes.add_class("my clip", Other, "other{limit}")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("clip{lim}", r"label='clip\{lim\}' has \{lim\}, but its dials are limit; correct the label"),
        ("clip/{limit}", "is not a name; use letters, digits"),
        ("clip+{limit}", "is not a name"),
        ("", "is not a name"),
        ("other", r"label='other' lacks the dial limit, .*write label='other_limit\{limit\}', or unlabelled="),
        ("clip{limit}", r"the labels 'clip\{k\}' of clip and 'clip\{limit\}' of other give the same names"),
    ],
)
def test_labels_must_name_configurations(classes, label, message):
    classes.add_class("clip", Clip, "clip{k}", REST)
    with pytest.raises(UserError, match=message):
        classes.add_class("other", Other, label)
    assert list(classes) == ["clip"]


def test_a_class_has_one_name(classes):
    classes.add_class("clip", Clip, "clip{k}", REST)
    with pytest.raises(UserError, match="Clip is registered as clip already; register a subclass"):
        classes.add_class("crop", Clip, "crop{k}", REST)
    assert Clip.label == "clip{k}"


def test_dials_have_the_types_of_their_annotations():
    dials = dials_of(Clip)
    assert {name: dial.kind for name, dial in dials.items()} == {"limit": float, "k": int, "how": str, "most": object}
    assert [dial.config_value() for dial in dials.values()] == ["${float:${limit}}", "${int:${k}}", "${how}", "${most}"]
    assert dials["limit"].read("1e-05") == 1e-5
    assert dials["k"].read("7") == 7
    assert dials["how"].read("7") == "7"
    assert (dials["most"].read("7"), dials["most"].read("None"), dials["most"].read("all")) == (7, None, "all")
    with pytest.raises(ValueError):
        dials["k"].read("2.5")


def test_stray_and_missing_dials_are_refused():
    check_dials("clip", {"limit": 1.0, "k": 2}, Clip)
    with pytest.raises(UserError, match=r"^eps=1: clip has no such dial \(its dials: how, k, limit, most\); leave it"):
        check_dials("clip", {"limit": 1.0, "eps": 1}, Clip)
    with pytest.raises(UserError, match=r"^clip needs limit .*; give it a value"):
        check_dials("clip", {"k": 1}, Clip)


def test_the_config_of_a_class_reads_its_dials_from_the_root():
    config = OmegaConf.create(node_with_dials("clipping", "other", Other, "clip{limit}", suffix="@${.label}"))
    assert config.limit == 1.0
    config.limit = 3
    assert config.clipping == {"name": "other", "label": "clip3.0", "suffix": "@clip3.0", "dials": {"limit": 3.0}}
    with pytest.raises(UserError, match=r"its dial limit has no default; write limit=VALUE in the signature of Clip"):
        node_with_dials("clipping", "clip", Clip, "clip{limit}")


def test_a_plugin_is_identified_by_its_source(classes, tmp_path, monkeypatch):
    """Our own things have no digest, because the version of this project covers them."""
    path = tmp_path / "clips.py"
    monkeypatch.syspath_prepend(tmp_path)
    with forgotten_afterwards(tmp_path):
        path.write_text("class Mine:\n    pass\n")
        import clips  # type: ignore[import-not-found]

        classes.add_class("mine", clips.Mine, "mine")
        before = classes.plugin_sources(["mine"])
        assert list(before) == ["clipping=mine"]
        path.write_text("class Mine:\n    limit = 3\n")
        assert classes.plugin_sources(["mine"]) != before
    assert Registry("error", "errors").plugin_sources([]) == {}
    errors: Registry[type] = Registry("error", "errors")
    errors.add("user", UserError)
    assert errors.plugin_sources(["user"]) == {}
    assert errors.source_digest("user") is None


def test_a_class_without_source_is_refused(classes):
    made = type("Made", (), {"__module__": "nowhere"})
    classes.add_class("made", made, "made")
    with pytest.raises(UserError, match=r"nowhere: has no source that can be read .*put Made into a .py file"):
        classes.source_digest("made")


def test_a_class_without_dials_names_the_missing_star(classes):
    class Plain:
        label: ClassVar[str]

        def __init__(self, vocabulary: object, limit: float = 1.0):
            self.limit = limit

    with pytest.raises(UserError, match=r"its dials are none \(write \* before limit in its __init__\)"):
        classes.add_class("plain", Plain, "plain{limit}")


def test_the_modules_that_a_plugin_imports_count(tmp_path, monkeypatch):
    """Imports are followed through packages, relative imports and imports inside functions."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "parts").mkdir()
    files = {
        "ours.py": "import json, torch\nimport helper\nclass Mine:\n    def go(self):\n        import late\n",
        "helper.py": "from parts.first import one\nimport ours\n",
        "late.py": "",
        "parts/__init__.py": "",
        "parts/first.py": "from . import second\none = 1\n",
        "parts/second.py": "from .third import x\n",
        "parts/third.py": "x = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "unrelated.py").write_text("")
    with forgotten_afterwards(tmp_path):
        import ours  # type: ignore[import-not-found]

        before = module.source_digest(ours.Mine)
        for name in files:
            (tmp_path / name).write_text(files[name] + "# edited\n")
            assert module.source_digest(ours.Mine) != before, name
            (tmp_path / name).write_text(files[name])
            assert module.source_digest(ours.Mine) == before, name
        (tmp_path / "unrelated.py").write_text("x = 1\n")
        assert module.source_digest(ours.Mine) == before


def test_installed_modules_do_not_count(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages"
    installed.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(installed)
    (installed / "library.py").write_text("x = 1\n")
    (tmp_path / "ours.py").write_text("import library\nclass Mine:\n    pass\n")
    with forgotten_afterwards(tmp_path):
        import ours

        before = module.source_digest(ours.Mine)
        (installed / "library.py").write_text("x = 2\n")
        assert module.source_digest(ours.Mine) == before


def test_an_unknown_name_asks_for_plugins_without_one(classes):
    own = Registry("error", "errors")
    own.add("user", UserError)
    with pytest.raises(UserError, match=r"use one of user, or add plugins=\[MODULE\] that registers it$"):
        own["mine"]
    own.add("clip", Clip)
    with pytest.raises(UserError, match=r"use one of user, clip$"):
        own["mine"]
