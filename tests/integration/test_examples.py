"""The examples run, print what their opening comments promise, and import only public names."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from latentwire.harness.paths import CONF

ROOT = CONF.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOK = ROOT / "examples" / "atlas_and_map.ipynb"


def example(number: str) -> ModuleType:
    """Import the example with this number; a module's name cannot begin with a digit in an import statement."""
    (path,) = (ROOT / "examples").glob(f"{number}_*.py")
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_example(number: str, folder: Path, *arguments: str) -> str:
    """Run an example as a person does, in a folder; return what it prints."""
    (path,) = (ROOT / "examples").glob(f"{number}_*.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(path), *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_are_numbered_and_listed():
    assert [path.name[:3] for path in EXAMPLES] == [f"0{i + 1}_" for i in range(len(EXAMPLES))]
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for path in [*EXAMPLES, NOTEBOOK]:
        assert f"[{path.name}]({path.name})" in listed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_opens_with_command_time_and_output(path):
    about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert f"\npython examples/{path.name}" in about
    assert "\nMeasured: " in about and "Output" in about


def test_the_packages_import_nothing_heavy():
    code = "import latentwire, kat, sys; print(sorted({'torch', 'hydra', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_models_and_pairs_have_names():
    from kat import load_pairs_by_name
    from latentwire import UserError, load_model_by_name

    assert load_model_by_name("tiny_random").model.config.num_hidden_layers == 2
    with pytest.raises(UserError, match=r"^model=gpt: unknown; use one of .*smollm2"):
        load_model_by_name("gpt")
    with pytest.raises(UserError, match=r"^pairs=mine: unknown; use one of .*nq_open"):
        load_pairs_by_name("mine")


def test_01_answers_from_any_model_of_transformers(tiny):
    answers = example("01").repair(tiny.model, tiny.tokenizer, "What is it?")
    assert list(answers) == ["real tokens", "noise", "rms_matching", "anchor_offset"]


@pytest.mark.slow
@pytest.mark.real_model
def test_01_the_anchor_brings_the_answer_back(smollm2):
    module = example("01")
    answers = module.repair(smollm2.model, smollm2.tokenizer, module.PROMPT)
    assert "Paris" in answers["real tokens"] and "Paris" in answers["anchor_offset"]
    assert "Paris" not in answers["noise"]


@pytest.mark.slow
@pytest.mark.real_model
def test_02_ranks_its_own_transform(tmp_path):
    """A low threshold snaps noisy embeddings to their tokens; a threshold above all cosines changes nothing."""
    out = run_example("02", tmp_path, "samples=8", "only=baseline|snap*")
    assert "Sweep own_transform: 3 configurations, 3 successful, 0 failed" in out
    assert "snap least" in out
    summary = json.loads((tmp_path / "outputs/own_transform/summary.json").read_text(encoding="utf-8"))
    f1 = {result["experiment"]: result["f1"] for result in summary["results"]}
    assert f1["snap0.5"] > f1["baseline"] + 0.1
    assert f1["snap0.9"] == f1["baseline"]


@pytest.mark.slow
@pytest.mark.real_model
def test_03_rare_prompts_weigh_more(tmp_path, capsys):
    module = example("03")
    out = tmp_path / "weights.jsonl"
    module.main([str(module.PROMPTS), str(out)])
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    prompts = module.PROMPTS.read_text(encoding="utf-8").splitlines()
    assert [row["prompt"] for row in rows] == prompts
    weights = [row["weight"] for row in rows]
    assert sum(weights) == pytest.approx(1)
    assert min(weights[-8:]) > 2 * max(weights[:24])  # the eight that differ, the 24 capitals
    printed = capsys.readouterr().out
    rarest, crowded = printed.split("rarest\n")[1].split("most crowded\n")
    assert all(line.split("  ")[-1] in prompts[-8:] for line in rarest.split("\n")[:5])
    assert not any(prompt in crowded for prompt in prompts[-8:])


@pytest.mark.slow
def test_04_trains_and_shows_the_weights(tmp_path):
    pytest.importorskip("trl", reason="trl is not installed")
    out = run_example("04", tmp_path)
    assert "2 steps done\n" in out
    assert "weight of the 4 others: " in out


def read_notebook() -> Any:
    return pytest.importorskip("nbformat").read(NOTEBOOK, as_version=4)


def test_the_notebook_is_committed_with_small_outputs():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert [word for word in ("site-packages", "/home/", "/tmp", "/work", "Warning", "Error") if word in text] == []
    cells = [cell for cell in read_notebook().cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == 2


@pytest.mark.slow
@pytest.mark.real_model
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read_notebook()
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, startup_timeout=300, timeout=500, resources=resources).execute()
    table = "".join(output.get("text", "") for output in notebook.cells[5].outputs)
    assert table == read_notebook().cells[5].outputs[0]["text"]
    assert "image/png" in notebook.cells[8].outputs[-1]["data"]
