"""Result files: written whole, found by their configuration, and never lost."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentwire.harness import results
from latentwire.harness.errors import UserError
from latentwire.harness.results import (
    DamagedResultError,
    ResultStore,
    ResultWriteError,
    config_hash,
    numbered_rows,
    read_json,
    read_jsonl,
    sweep_up,
    write_json,
    write_jsonl,
    write_text_atomically,
)
from tests.helpers.paths import ROOT

NAME = "anchor_eps0.05"  # most names contain a dot
PREDICTIONS = [{"id": "q1", "prediction": "Kuala Lumpur", "f1": 1.0}]


def result(key: str = "aaaa", status: str = "ok", **more: object) -> dict[str, object]:
    return {"config_hash": key, "status": status, "f1": 0.5, **more}


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# Writing


def test_json_is_read_as_it_was_written(tmp_path):
    content = {"f1": 1 / 3, "list": [0.1, 0.9], "text": 'Łódź 東京 \n\t"', "none": None, "nested": {"b": 1, "a": 2}}
    write_json(tmp_path / "deep" / "down" / "a.json", content)
    assert read_json(tmp_path / "deep" / "down" / "a.json") == content
    assert "東京" in (tmp_path / "deep" / "down" / "a.json").read_text(encoding="utf-8")


def test_jsonl_is_one_object_a_line(tmp_path):
    rows = [{"id": "1", "text": "a\nb"}, {"id": "2", "text": "Łódź"}]
    write_jsonl(tmp_path / "a.jsonl", iter(rows))
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_bytes().split(b"\n")[:-1]] == rows
    assert read_jsonl(tmp_path / "a.jsonl") == rows


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_and_the_old_file_stays(tmp_path, number):
    path = tmp_path / "a.json"
    write_json(path, {"f1": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"f1": number})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(path, [{"f1": 0.5}, {"f1": number}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        config_hash({"eps": number})
    assert read_json(path) == {"f1": 0.5}
    assert names_in(tmp_path) == {"a.json"}


WRITER = """
import os, signal, sys
from pathlib import Path
from latentwire.harness.results import write_json
path, syncs = Path(sys.argv[1]), int(sys.argv[2])
sync = os.fsync
def counted(handle):
    global syncs
    sync(handle)
    syncs -= 1
    if syncs == 0:
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = counted
for number in range(10**9):
    write_json(path, [number] * 50_000)
"""


def is_whole(path: Path) -> bool:
    numbers = json.loads(path.read_text())
    return len(numbers) == 50_000 and len(set(numbers)) == 1


@pytest.mark.slow
def test_a_file_is_whole_while_it_is_written_and_after_a_kill(tmp_path):
    path = tmp_path / "a.json"
    for wait in (0.0, 0.003, 0.01, 0.03):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), "-1"], cwd=ROOT)
        try:
            while not path.exists():
                assert writer.poll() is None
                time.sleep(0.001)
            assert all(is_whole(path) for _ in range(20))
            time.sleep(wait)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        assert is_whole(path)


def test_a_kill_before_the_rename_keeps_the_old_file(tmp_path):
    """The unfinished new file is removed by sweep_up."""
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    subprocess.run([sys.executable, "-c", WRITER, str(path), "1"], cwd=ROOT, check=False, timeout=30)
    assert read_json(path) == {"old": True}
    assert len(names_in(tmp_path)) == 2
    sweep_up(tmp_path)
    assert names_in(tmp_path) == {"a.json"}


def test_the_content_is_on_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    seen = []
    sync = os.fsync

    def watch(handle: int) -> None:
        sync(handle)
        seen.append((os.fstat(handle).st_size, (tmp_path / "a.json").exists()))

    monkeypatch.setattr(os, "fsync", watch)
    write_text_atomically(tmp_path / "a.json", "12345")
    assert seen == [(5, False)]


def test_a_full_disk_leaves_no_new_file_and_gives_a_remedy(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_json(tmp_path / "a.json", {"old": True})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultWriteError, match=r"No space left on device.*free some space.*out=FOLDER") as caught:
        write_json(tmp_path / "a.json", {"old": False})
    assert str(tmp_path / "a.json") in str(caught.value)
    assert isinstance(caught.value, UserError)
    assert names_in(tmp_path) == {"a.json"}
    assert read_json(tmp_path / "a.json") == {"old": True}


def test_a_disk_that_is_full_at_the_end_names_the_file(tmp_path):
    """Closing the file writes the rest again, so it fails as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ResultWriteError, match=r"a\.json"):
            write_text_atomically(tmp_path / "a.json", "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names_in(tmp_path) == set()


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "a.json", {})
    assert names_in(tmp_path) == set()


def test_a_folder_that_cannot_be_made_gives_a_remedy(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultWriteError, match=r"file/out/a.json cannot be written.*out=FOLDER"):
        write_json(tmp_path / "file" / "out" / "a.json", {})


def test_only_temporary_files_are_swept_up(tmp_path):
    for name in ("a.json", ".a.json.x1.tmp", ".hidden", "b.tmp", "replaced/.c.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sweep_up(tmp_path)
    assert names_in(tmp_path) == {"a.json", ".hidden", "b.tmp", "replaced/.c.tmp"}
    sweep_up(tmp_path / "not there")


@pytest.mark.parametrize("content", [b"", b'{"f1": 0.', b"\xff\xfe"])
def test_a_damaged_file_is_named_with_a_remedy(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DamagedResultError, match=r"a.json is not readable as JSON.*delete it to run"):
        read_json(tmp_path / "a.json")


def test_a_damaged_line_is_counted_from_one(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n{"id"\n')
    with pytest.raises(DamagedResultError, match=r"a.jsonl, line 2, is not readable as JSON.*delete it"):
        read_jsonl(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("line", "reason"), [(b'{"id": "\xff"}', "is not UTF-8 text"), (b"[1]", "is not a JSON object")]
)
def test_lines_that_are_not_json_objects_are_refused(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"id": "1"}\n \n' + line)
    with pytest.raises(DamagedResultError, match=f"line 3, {reason}.*: ask again"):
        list(numbered_rows(tmp_path / "a.jsonl", "ask again"))
    with pytest.raises(DamagedResultError, match=f"line 3, {reason}.*delete it"):
        read_jsonl(tmp_path / "a.jsonl")


def test_a_failure_to_write_reaches_other_processes_whole(tmp_path):
    error = ResultWriteError(tmp_path, "disk full", "folder=FOLDER")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# Hash

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=5), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_hash_does_not_depend_on_the_order_of_keys(identity, random):
    keys = list(identity)
    random.shuffle(keys)
    assert config_hash({key: identity[key] for key in keys}) == config_hash(identity)


@given(PLAIN, PLAIN)
@settings(max_examples=50, deadline=None)
def test_the_hash_differs_where_the_json_differs(one, other):
    assert (config_hash(one) == config_hash(other)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


def test_the_hash_sees_every_value_and_the_order_of_a_list():
    plain = {"model": {"sha256": "ab"}, "settings": {"seed": 0, "samples": 100}, "dials": [3, 0.2]}
    others = [
        {**plain, "model": {"sha256": "ac"}},
        {**plain, "settings": {"seed": 1, "samples": 100}},
        {**plain, "settings": {"seed": 0, "samples": 100, "shots": 5}},
        {**plain, "settings": {"seed": "0", "samples": 100}},
        {**plain, "dials": [0.2, 3]},
        {**plain, "dials": [3, 0.20000000000000001 + 1e-16]},
    ]
    assert len({config_hash(identity) for identity in [plain, *others]}) == 7


def test_the_hash_is_the_same_in_every_run_and_on_every_machine():
    # printf '{"a":1,"b":"\\u00e9"}' | sha256sum
    assert config_hash({"b": "é", "a": 1}) == "6071e7aa781e8adc"


# The store


@pytest.fixture
def store(tmp_path) -> ResultStore:
    return ResultStore(tmp_path / "out")


def test_a_saved_result_is_found_by_name_and_hash(store):
    assert store.finished(NAME, "aaaa") is None
    store.save(NAME, result("aaaa"), PREDICTIONS)
    assert names_in(store.folder) == {f"{NAME}.json", f"{NAME}.predictions.jsonl"}
    assert store.finished(NAME, "aaaa") == result("aaaa")
    assert read_jsonl(store.predictions_path(NAME)) == PREDICTIONS
    assert store.finished(NAME, "bbbb") is None
    assert store.finished("baseline", "aaaa") is None


def test_a_failed_result_is_not_finished(store):
    store.save(NAME, result(status="failed", error="k=20: too large"), None)
    assert store.finished(NAME, "aaaa") is None


def test_a_later_failure_keeps_the_finished_result(store):
    """The failure belongs to the same configuration."""
    store.save(NAME, result(), PREDICTIONS)
    store.save(NAME, result(status="failed", error="out of memory"), None)
    assert json.loads(store.path(NAME).read_text())["status"] == "failed"
    assert store.finished(NAME, "aaaa") == result()
    assert read_jsonl(store.predictions_path(NAME)) == PREDICTIONS


def summary_of(*names: str) -> dict[str, object]:
    return {"sweep": "s", "results": [{"name": name, "config_hash": "aaaa"} for name in names]}


def test_a_smaller_summary_moves_the_larger_one_aside(store):
    assert store.save_summary(summary_of("one", "two")) is None
    assert store.save_summary(summary_of("one", "two", "three")) is None  # contains the earlier summary
    moved = store.save_summary(summary_of("two"))
    assert moved is not None
    assert json.loads(moved.read_text()) == summary_of("one", "two", "three")
    assert json.loads((store.folder / "summary.json").read_text()) == summary_of("two")


def test_a_summary_of_other_settings_moves_the_old_aside(store):
    store.save_summary(summary_of("one"))
    moved = store.save_summary({"results": [{"name": "one", "config_hash": "bbbb"}]})
    assert moved is not None
    assert json.loads(moved.read_text()) == summary_of("one")


@pytest.mark.parametrize("content", ["{broken", "[1]", '{"results": 3}'])
def test_an_invalid_summary_is_moved_aside(store, content):
    store.folder.mkdir(parents=True, exist_ok=True)
    (store.folder / "summary.json").write_text(content)
    moved = store.save_summary(summary_of("one"))
    assert moved is not None
    assert moved.read_text() == content


def test_an_unwritable_folder_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        ResultStore(tmp_path / "file").require_writable()
    ResultStore(tmp_path / "new").require_writable()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_result_without_its_predictions_is_not_finished(store):
    store.save(NAME, result(), PREDICTIONS)
    store.predictions_path(NAME).unlink()
    assert store.finished(NAME, "aaaa") is None


def test_the_result_is_written_after_its_predictions(store, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "write_jsonl", stop)
    with pytest.raises(KeyboardInterrupt):
        store.save(NAME, result(), PREDICTIONS)
    assert not store.path(NAME).exists()


@pytest.mark.parametrize("content", ["", '{"config_hash": "aaaa", "sta', "{}", "[]", "null", '{"f1": 0.5}', '"aaaa"'])
def test_an_invalid_result_file_is_named_and_unchanged(store, content):
    store.folder.mkdir()
    store.path(NAME).write_text(content)
    with pytest.raises(DamagedResultError, match=f"{NAME}.json .*delete it to run that configuration again"):
        store.finished(NAME, "aaaa")
    assert store.path(NAME).read_text() == content


def test_overwriting_moves_a_damaged_file_aside(store):
    store.folder.mkdir()
    store.path(NAME).write_text("{")
    store.save(NAME, result(), PREDICTIONS)
    assert store.finished(NAME, "aaaa") == result()
    assert (store.folder / "replaced" / f"{NAME}.damaged.json").read_text() == "{"


def test_running_the_same_configuration_again_overwrites_it(store):
    store.save(NAME, result(f1=0.1), PREDICTIONS)
    store.save(NAME, result(f1=0.2), [])
    assert store.finished(NAME, "aaaa") == result(f1=0.2)
    assert read_jsonl(store.predictions_path(NAME)) == []
    assert names_in(store.folder) == {f"{NAME}.json", f"{NAME}.predictions.jsonl"}


def test_results_of_other_configurations_are_restored(store):
    """They move to the folder replaced and back when their configuration is needed again."""
    rows = {key: [{"id": key}] for key in ("aaaa", "bbbb", "cccc")}
    for key in rows:
        store.save(NAME, result(key), rows[key])
    assert names_in(store.folder) == {
        f"{NAME}.json",
        f"{NAME}.predictions.jsonl",
        *(f"replaced/{NAME}.{key}{end}" for key in ("aaaa", "bbbb") for end in (".json", ".predictions.jsonl")),
    }
    for key in ("aaaa", "cccc", "bbbb", "bbbb"):
        assert store.finished(NAME, key) == result(key)
        assert read_json(store.path(NAME)) == result(key)
        assert read_jsonl(store.predictions_path(NAME)) == rows[key]
        assert len(names_in(store.folder)) == 6


def test_a_failure_keeps_results_of_other_configurations(store):
    store.save(NAME, result("aaaa"), PREDICTIONS)
    store.save(NAME, result("bbbb", status="failed"), None)
    assert not store.predictions_path(NAME).exists()
    assert store.finished(NAME, "bbbb") is None
    assert store.finished(NAME, "aaaa") == result("aaaa")
    assert read_jsonl(store.predictions_path(NAME)) == PREDICTIONS


def test_results_that_cannot_be_moved_are_not_overwritten(store):
    store.save(NAME, result("aaaa"), PREDICTIONS)
    (store.folder / "replaced").write_text("in the way")
    with pytest.raises(ResultWriteError, match=r"out=FOLDER"):
        store.save(NAME, result("bbbb"), [])
    assert store.finished(NAME, "aaaa") == result("aaaa")
    assert read_jsonl(store.predictions_path(NAME)) == PREDICTIONS


# Other files


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\x85b"])
def test_jsonl_keeps_line_separators_within_a_text(tmp_path, text):
    write_jsonl(tmp_path / "a.jsonl", [{"prediction": text}])
    assert read_jsonl(tmp_path / "a.jsonl") == [{"prediction": text}]


@pytest.mark.parametrize("content", ["[]", "null", '"aaaa"'])
def test_a_foreign_file_of_that_name_is_moved_aside(tmp_path, content):
    store = ResultStore(tmp_path)
    store.path("a").write_text(content)
    store.save("a", {"config_hash": "aaaa", "status": "ok"}, [])
    assert store.finished("a", "aaaa")
    assert (tmp_path / "replaced" / "a.foreign.json").read_text() == content


def test_result_without_status(tmp_path):
    store = ResultStore(tmp_path)
    store.path("a").write_text('{"config_hash": "aaaa"}')
    with pytest.raises(DamagedResultError, match="no config_hash or status"):
        store.finished("a", "aaaa")


def test_result_files_follow_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


def test_an_incomplete_longer_result_keeps_the_shorter(store, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    store.save(NAME, result(num_samples=1), PREDICTIONS)
    monkeypatch.setattr(results, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        store.save(NAME, result(num_samples=2), PREDICTIONS * 2)
    assert store.finished(NAME, "aaaa") == result(num_samples=1)
