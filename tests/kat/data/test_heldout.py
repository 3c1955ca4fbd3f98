"""Held-out prompts: chosen by id alone, the same for every seed; and models that were trained on them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from kat.data.heldout import held_out
from kat.training.lineage import require_unseen, require_unseen_start
from latentwire.harness.errors import UserError
from latentwire.lm.spec import ModelSpec

IDS = [f"{number:016x}" for number in range(4000)]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.7])
def test_about_the_share_is_held_out(share):
    chosen = sum(held_out(name, share) for name in IDS)
    assert abs(chosen - share * len(IDS)) < 4 * (len(IDS) * share * (1 - share)) ** 0.5


def test_a_larger_share_contains_the_smaller_one():
    small = {name for name in IDS if held_out(name, 0.1)}
    large = {name for name in IDS if held_out(name, 0.3)}
    assert small < large


def test_the_rule_is_the_id_under_a_fixed_salt():
    digest = hashlib.blake2b(b"abc", digest_size=8, salt=b"held-out prompts").hexdigest()
    place = int(digest, 16) / 2**64
    assert held_out("abc", place + 1e-9) and not held_out("abc", place - 1e-9)
    # Fixed values: if they change, earlier runs were trained on prompts that are held out now.
    assert [name for name in ("a", "b", "c", "d", "e", "f", "g", "h") if held_out(name, 0.5)] == ["b", "d", "f"]


def test_share_0_holds_out_no_prompt():
    assert not any(held_out(name, 0) for name in IDS)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UserError, match="held_out="):
        held_out("abc", share)


def run_folder(path: Path, drawn: dict[str, float], **config) -> Path:
    """Write the folder of a run's model, with its ledger and config."""
    (path / "model").mkdir(parents=True)
    (path / "ledger.jsonl").write_text("".join(json.dumps({"id": i, "drawn": n}) + "\n" for i, n in drawn.items()))
    (path / "config.json").write_text(json.dumps(config))
    return path / "model"


def test_a_model_trained_on_held_out_prompts_is_refused(tmp_path, capfd):
    folder = tmp_path / "model"
    folder.mkdir()
    require_unseen("reward=x", folder, {"a", "b"})
    assert "the prompts that it was trained on are unknown" in capfd.readouterr().err
    folder = run_folder(tmp_path / "run", {"a": 0, "b": 0, "c": 4})
    require_unseen("reward=x", folder, {"a", "b"})  # never drawn, so never seen
    assert capfd.readouterr().err == ""
    with pytest.raises(
        UserError, match="reward=x: was trained on 1 of the 2 prompts that are held out here, c"
    ) as error:
        require_unseen("reward=x", folder, {"a", "c"})
    assert "started from" not in str(error.value)
    half = run_folder(tmp_path / "half", {"a": 0.5})
    with pytest.raises(UserError, match=r"ledger.jsonl, line 1: has no drawn, or one of another type"):
        require_unseen("reward=x", half, {"a"})
    shutil.copy(tmp_path / "run" / "ledger.jsonl", tmp_path / "model")
    with pytest.raises(UserError, match="was trained on 1 of"):
        require_unseen("reward=x", tmp_path / "model" / ".." / "run", {"c"})


def test_prompts_of_ancestor_runs_count_as_seen(tmp_path, capfd):
    first = run_folder(tmp_path / "first", {"a": 2})
    run_folder(tmp_path / "second", {"b": 1}, model={"origin": "path", "path": str(first)})
    third = run_folder(tmp_path / "third", {"c": 1}, policy=str(tmp_path / "second"), model={"origin": "wheel"})
    require_unseen("policy=x", third, {"d"})
    assert capfd.readouterr().err == ""
    for kept, run in (("a", "first"), ("b", "second")):
        with pytest.raises(UserError, match=f"{kept} for instance in .*{run}, which it started from"):
            require_unseen("policy=x", third, {kept, "d"})
    elsewhere = run_folder(tmp_path / "fourth", {"c": 1}, model={"origin": "wheel", "path": str(first)})
    require_unseen("policy=x", elsewhere, {"a"})  # the path of a model of another origin is not read
    shutil.rmtree(tmp_path / "first")
    require_unseen("policy=x", third, {"d"})
    assert f"started from {first}, which does not exist" in capfd.readouterr().err
    run_folder(tmp_path / "first", {"a": 2}, policy=str(tmp_path / "third"))
    require_unseen("policy=x", third, {"d"})  # ancestors in a circle, as after copying folders


def test_the_starting_model_is_checked_too(tmp_path, capfd):
    folder = run_folder(tmp_path / "run", {"a": 1})
    for model in (ModelSpec("m", "path", path=str(folder)), ModelSpec("m", "path", path=str(tmp_path / "run"))):
        with pytest.raises(UserError, match=r"model.path=.*: was trained on 1 of the 1 prompts"):
            require_unseen_start(model, {"a"})
        require_unseen_start(model, {"b"})
    plain = tmp_path / "plain"
    plain.mkdir()
    for model in (ModelSpec("m", "path", path=str(plain)), ModelSpec("m", "wheel"), ModelSpec("m", "path", path="a/b")):
        require_unseen_start(model, {"a"})
    assert capfd.readouterr().err == ""
