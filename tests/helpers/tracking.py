"""Read what an offline run of W&B logged, from its file."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import wandb
from wandb.proto.wandb_internal_pb2 import Record


def records(file: Path) -> list[Record]:
    """Return the messages of a .wandb file.

    The file is a LevelDB log: blocks of 32 KiB, and records of checksum, length, type and content.
    """
    data, at, message, found = file.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole message, or its last part
            found.append(Record.FromString(message))
            message = b""
    return found


def values(updates: Any) -> dict[str, Any]:
    """Return the entries of a config or a summary by name."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates}


def logged(folder: Path) -> dict[str, SimpleNamespace]:
    """Return what the runs below a folder logged, by the names of the runs."""
    wandb.teardown()  # waits until all is written
    runs = {}
    for file in folder.glob("wandb/offline-run-*/run-*.wandb"):
        found, run = records(file), None
        summary: dict[str, Any] = {}
        charts: dict[str, Any] = {}
        for record in found:
            if record.HasField("run"):
                run = record.run
            if record.HasField("summary"):
                summary |= values(record.summary.update)
            for key, value in values(record.config.update).items() if record.HasField("config") else []:
                if key.startswith("_wandb/visualize/"):
                    charts[key.removeprefix("_wandb/visualize/")] = value
        assert run is not None
        runs[run.display_name] = SimpleNamespace(
            run=run, config=values(run.config.update), summary=summary, files=file.parent / "files", charts=charts
        )
    return runs
