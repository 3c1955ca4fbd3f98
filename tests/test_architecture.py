"""The rules of the source: imports between rooms, docstrings of files, and calls that no line may make."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT, TESTS

ENTRIES = sorted(ROOT.glob("*.py"))
PACKAGES = [ROOT / name for name in ("hydra_plugins", "kat", "latentwire", "benchmarks", "examples")]
CODE = ENTRIES + [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
# Rooms, lowest first. A module imports from its own room and from lower floors, never from another room of its floor.
LATENTWIRE = (
    ("harness",),
    ("stats", "upgrades"),
    ("records",),
    ("data", "analysis"),
    ("lm", "reports"),
    ("transforms", "questions"),
    ("encoders",),
    ("sources",),
    ("evaluation",),
    ("sweeps", "latent_training"),
    ("notebook",),
)
KAT = (
    ("records",),
    ("data",),
    ("embedding", "density", "world"),
    ("shards",),
    ("sampling",),
    ("pipeline",),
    ("training",),
    ("reward",),
    ("grpo",),
    ("diversity",),
    ("collapse",),
    ("notebook",),
)
FILES = ("records", "upgrades", "notebook")  # rooms that are one file of the package
OPEN_TO_KAT = ("harness", "stats", "records", "lm")  # rooms of latentwire that kat uses
FLOORS = [*((f"latentwire.{room}" for room in rooms) for rooms in LATENTWIRE), ("latentwire",)]
FLOORS += [*((f"kat.{room}" for room in rooms) for rooms in KAT), ("kat",), ("hydra_plugins",)]
FLOOR_OF = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
# Whole rooms, or single modules, that take tensors and plain values and reach no framework.
PURE_ROOMS = [
    f"latentwire.{room}" for room in ("analysis", "data", "encoders", "reports", "sources", "stats", "transforms")
]
PURE_ROOMS += ["kat.density", "kat.embedding", "kat.sampling", "kat.shards"]
PURE_MODULES = [
    "kat.collapse.answers",
    "kat.collapse.exposure",
    "kat.collapse.frontier",
    "kat.collapse.gate",
    "kat.collapse.measures",
    "kat.collapse.table",
    "kat.collapse.values",
    "kat.diversity.bleu",
    "kat.diversity.comparison",
    "kat.diversity.kernel",
    "kat.diversity.metrics",
    "kat.diversity.phrases",
    "kat.diversity.repetition",
    "kat.diversity.verdict",
    "kat.grpo.objective",
    "kat.grpo.policy",
    "kat.grpo.rollout",
    "kat.reward.model",
    "kat.reward.scoring",
    "kat.reward.trees",
    "latentwire.evaluation.detectors",
    "latentwire.evaluation.metrics",
    "latentwire.latent_training.candidates",
    "latentwire.latent_training.losses",
    "latentwire.latent_training.objective",
    "latentwire.lm.attention",
    "latentwire.lm.decoding",
    "latentwire.lm.reader",
    "latentwire.questions.selection",
    "latentwire.sweeps.successive_halving",
]
JOB = re.compile(r"([a-z]\w*(\.\w+)+):\w+")


def module_name(path: Path) -> str:
    """'latentwire.harness' for latentwire/harness/__init__.py, 'run' for run.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in CODE}


def imports(module: str) -> Iterator[str]:
    """Yield the full names of a module's imports, also inside functions, and of jobs named 'module:function'."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: imports are written in full"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)
        elif isinstance(node, ast.Constant) and (found := JOB.fullmatch(str(node.value))):
            yield found[1]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def floor(name: str) -> int | None:
    """Return how high a module stands: its room's floor, the top for entries and scripts, None for other projects."""
    room = ".".join(name.split(".")[:2])
    if room in FLOOR_OF or name.split(".")[0] in FLOOR_OF:
        return FLOOR_OF.get(room, FLOOR_OF.get(name.split(".")[0]))
    if name not in MODULES:
        return None
    return len(FLOORS) + (name.split(".")[0] in ("benchmarks", "examples"))


def room_of(name: str) -> str:
    """Return the room of a module: 'latentwire.lm' for latentwire.lm.models. All benchmarks are one room."""
    return "benchmarks" if name.startswith("benchmarks.") else ".".join(name.split(".")[:2])


def reached_from(module: str) -> set[str]:
    """Return what a module imports, directly or through other modules of this project."""
    found: set[str] = set()
    todo = [module]
    while todo:
        for name in imports(todo.pop()):
            if name not in found:
                found.add(name)
                todo += [name] if name in MODULES else []
    return found


def test_the_walk_sees_the_house():
    assert {"run", "latentwire.sweeps.task", "hydra_plugins.grid_union_sweeper"} <= set(MODULES)
    assert "latentwire.sweeps.task" in set(imports("run"))
    assert "latentwire.harness.typed_config" in set(imports("latentwire.sweeps.task"))
    assert "torch" in reached_from("run")
    heights = [
        floor(name) for name in ("latentwire.harness.app", "latentwire.lm.models", "kat.density.estimate", "run")
    ]
    assert None not in heights and heights == sorted(heights)  # type: ignore[type-var]
    assert floor("torch") is None


@pytest.mark.parametrize("package", ["latentwire", "kat"])
def test_every_file_has_a_room(package):
    rooms = {room for rooms in (LATENTWIRE if package == "latentwire" else KAT) for room in rooms}
    found = {path.relative_to(ROOT / package).parts for path in (ROOT / package).rglob("*.py")}
    assert {parts[0] for parts in found} == {f"{room}.py" if room in FILES else room for room in rooms} | {
        "__init__.py"
    }


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    own = floor(module)
    assert own is not None
    for name in imports(module):
        height = floor(name)
        if height is not None and room_of(name) != room_of(module) and name != "latentwire":
            assert height < own, f"{module} imports {name}"


def test_kat_uses_only_the_open_rooms_of_latentwire():
    open_rooms = {f"latentwire.{room}" for room in OPEN_TO_KAT}
    used = {
        name for module in MODULES if within(module, "kat") for name in imports(module) if within(name, "latentwire")
    }
    assert {room_of(name) for name in used} <= open_rooms


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) in PURE_ROOMS] + PURE_MODULES)
def test_pure_modules_reach_no_framework(module):
    """The frameworks are Hydra, OmegaConf, W&B and Accelerate."""
    assert module in MODULES
    found = {name.split(".")[0] for name in reached_from(module)}
    assert found.isdisjoint({"hydra", "omegaconf", "wandb", "accelerate"})


def test_two_public_things_never_share_a_name():
    """Jobs are named by their module in run.py and train.py, so `run`, `finish`, `direct` and `costs` may repeat."""
    found: dict[str, list[str]] = {}
    for module, tree in MODULES.items():
        if module.split(".")[0] in ("latentwire", "kat"):
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    found.setdefault(node.name, []).append(module)
    assert {name for name, modules in found.items() if len(modules) > 1} <= {"run", "finish", "direct", "costs"}


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


TESTS_CODE = sorted(TESTS.rglob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", [*CODE, *TESTS_CODE], ids=lambda p: p.stem)
def test_every_file_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path.relative_to(ROOT)


def private_names(trees: Iterable[ast.AST]) -> set[str]:
    """Return the private names that these modules define: functions, classes, module values and attributes."""
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return {name for name in found if re.fullmatch(r"_[A-Za-z]\w*", name)}


def reached_inside(tree: ast.AST, private: set[str]) -> Iterator[str]:
    """Yield the private names of the house that a test file uses: imported, as attributes, or in a text."""
    own = private_names([tree])
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
            names = [node.attr]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if node.value.startswith("_") else re.findall(r"\.(_\w+)", node.value)
        yield from (name for name in names if name in private - own)


PRIVATE = private_names(MODULES.values())


@pytest.mark.parametrize("path", TESTS_CODE, ids=lambda p: p.stem)
def test_tests_import_no_tests_and_use_no_private_names(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in imported if re.search(r"(^|\.)(test_\w+|conftest)$", name)]
    assert sorted(set(reached_inside(tree, PRIVATE))) == []


@pytest.mark.parametrize(
    "line",
    [
        "from latentwire.sweep import _hidden",
        "sweep._hidden(1)",
        "monkeypatch.setattr('latentwire.sweeps.task._hidden', 1)",
        "monkeypatch.setattr(sweep, '_hidden', 1)",
        "SCRIPT = 'import sweep; sweep._hidden = 1'",
    ],
)
def test_the_search_for_private_names_finds_them(line):
    assert list(reached_inside(ast.parse(line), {"_hidden"})) == ["_hidden"]


@pytest.mark.parametrize("line", ["self._hidden = 1", "def _hidden(): pass\nx._hidden()", "x._other", "hidden()"])
def test_the_search_for_private_names_finds_no_others(line):
    assert not list(reached_inside(ast.parse(line), {"_hidden"}))


UNSAFE_MODULES = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Yield what could run code that came with data: unpickling, eval, exec, a shell, remote code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        else:
            names = []
        yield from (name for name in names if name.split(".")[0] in UNSAFE_MODULES)
        if isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            yield "trust_remote_code"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("eval", "exec", "os.system", "os.popen", "builtins.eval", "builtins.exec"):
            yield f"{called}()"
        if "trust_remote_code" in options:
            yield "trust_remote_code"
        if options.get("shell", "False") != "False":
            yield "shell=True"
        if options.get("allow_pickle", "False") != "False":
            yield "allow_pickle=True"
        if called == "torch.load" and options.get("weights_only") != "True":
            yield "torch.load without weights_only=True"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_runs_code_that_comes_with_data(module):
    assert list(unsafe(MODULES[module])) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import numpy, dill.source",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "eval('1')",
        "exec(text)",
        "os.system('ls')",
        "subprocess.run(command, shell=True)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
    ],
)
def test_the_search_for_unsafe_lines_finds_them(line):
    assert list(unsafe(ast.parse(line)))


@pytest.mark.parametrize("line", ["model.eval()", "torch.load(p, weights_only=True)", "run(c, shell=False)"])
def test_the_search_for_unsafe_lines_finds_no_others(line):
    assert not list(unsafe(ast.parse(line)))


def test_the_config_allows_no_remote_code():
    files = sorted((ROOT / "conf").rglob("*.yaml"))
    assert files
    assert not [path for path in files if "trust_remote_code" in path.read_text(encoding="utf-8")]


def tree_paths(readme: str) -> list[str]:
    """Return the paths of the file tree: the code block that has latentwire/ at the beginning of a line."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    tree = next((block for block in blocks if re.search(r"^(?:[├└]── )?latentwire/", block, flags=re.MULTILINE)), "")
    paths: list[str] = []
    above: list[tuple[int, str]] = []  # folders that the line stands in, with their indentation
    for line in tree.splitlines():
        found = re.match(r"([\s│├└─]*)([\w.\-/]+(?:, [\w\-]+\.\w+)*)", line)
        if not found:
            continue
        depth = len(found[1])
        above = [(indent, folder) for indent, folder in above if indent < depth]
        for name in found[2].split(", "):
            paths.append("".join(folder for _, folder in above) + name)
        if paths[-1].endswith("/"):
            above.append((depth, found[2]))
    return paths


INDENTED = """Some text.
```
make sweep
```
```
run.py      entry
latentwire/
  a.py, b.py   two of a kind
  harness/   what all stand on
    app.py
conf/
  run.yaml
```
"""
DRAWN = """```text
├── run.py
├── latentwire/
│   ├── a.py  # one
│   ├── b.py
│   └── harness/
│       └── app.py
└── conf/
    └── run.yaml
```
"""


@pytest.mark.parametrize("readme", [INDENTED, DRAWN])
def test_a_file_tree_is_read_with_its_folders(readme):
    inside = ["a.py", "b.py", "harness/", "harness/app.py"]
    expected = ["run.py", "latentwire/", *(f"latentwire/{name}" for name in inside), "conf/", "conf/run.yaml"]
    assert tree_paths(readme) == expected


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="README.md does not exist yet")
def test_every_path_of_the_readmes_file_tree_exists():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    paths = [path for path in tree_paths((ROOT / "README.md").read_text(encoding="utf-8")) if path not in ignored]
    assert len(paths) >= 10, "the README has no file tree, or it is not in a block with a line latentwire/"
    assert [path for path in paths if not (ROOT / path).exists()] == []


def names_of_a_registry(module: str) -> set[str]:
    """Return the registries that a module defines, and its functions and classes that look a name up in one."""
    body = MODULES[module].body
    registries = {
        node.target.id
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        and ast.unparse(node.annotation).startswith("Registry[")
    }  # fmt: skip
    users = {
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("register_")
        and any(isinstance(part, ast.Name) and part.id in registries for part in ast.walk(node))
    }  # fmt: skip
    return registries | users


def test_registries_are_imported_where_they_are_filled():
    """base.py defines a registry and the modules next to it fill it, so other rooms import it from one of those."""
    bases = {name: names_of_a_registry(name) for name in MODULES if name.endswith(".base")}
    assert {"EMBEDDERS", "EmbedderSpec"} <= bases["kat.embedding.base"] and "ARMS" in bases["kat.sampling.base"]
    early = [
        f"{module}: {alias.name} from {node.module}"
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and room_of(str(node.module)) != room_of(module)
        for alias in node.names
        if alias.name in bases.get(str(node.module), ())
    ]
    assert not early
