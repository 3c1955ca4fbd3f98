"""The message of a process whose fellow process has ended."""

from __future__ import annotations

import pytest

from latentwire.harness.processes import lost_process

RESET = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:20684: Connection reset by peer")


@pytest.mark.parametrize("text", ["Connection closed by peer", "Broken pipe", "NCCL error: ncclRemoteError"])
def test_a_lost_connection_has_a_message(text, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "run the same command again" in lost_process(RuntimeError(text))


def test_one_process_has_no_fellow(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert lost_process(RESET) is None


def test_another_error_is_a_bug(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert lost_process(RuntimeError("shapes differ")) is None
    assert lost_process(ValueError("Connection reset by peer")) is None
    assert lost_process(RESET) is not None
