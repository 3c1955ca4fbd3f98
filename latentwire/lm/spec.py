"""Settings that select a model, and the identity of its weights. Main entry: `ModelSpec`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latentwire.harness.assets import file_sha256, hub_commit
from latentwire.harness.results import JsonObject
from latentwire.lm.tiny import TINY

ORIGINS = ("wheel", "hub", "path", "tiny_random")


@dataclass
class ModelSpec:
    """Which model to load; the `model` node of the config.

    `origin` decides which other fields are used: wheel (package, sha256, member), hub (repo, revision), path (path:
    a local folder, a GGUF file or the name of a hub repository) or tiny_random (none).
    """

    name: str
    origin: str
    package: str = ""
    sha256: str = ""
    member: str = ""
    repo: str = ""
    revision: str = "main"
    path: str = ""

    def identity(self) -> JsonObject:
        """Return plain values that identify the model's weights, without loading them."""
        if self.origin == "wheel":
            return {"package": self.package, "sha256": self.sha256, "member": self.member}
        if self.origin == "tiny_random":
            return {"tiny_random": TINY}
        local = Path(self.path).expanduser()
        if self.origin == "path" and local.is_file():
            return {"gguf": file_sha256(local)}
        if self.origin == "path" and local.is_dir():
            stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(local.iterdir()) if p.is_file()]
            return {"folder": [list(stat) for stat in stats]}
        repo = self.repo or self.path
        return {"repo": repo, "commit": hub_commit(repo, self.revision)}
