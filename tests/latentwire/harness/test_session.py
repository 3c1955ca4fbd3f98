"""What the jobs of a command share: an object for each purpose, built anew when what decides it changes."""

from __future__ import annotations

import pickle

from latentwire.harness.session import Session


def test_a_kept_object_follows_its_key():
    session, built = Session(), []

    def build(name):
        built.append(name)
        return name

    assert [session.keep("model", key, lambda key=key: build(key)) for key in ("a", "a", "b", "a")] == list("aaba")
    assert built == ["a", "b", "a"]  # only the newest object of a purpose is kept
    assert session.keep("tracker", "a", lambda: build("tracker")) == "tracker"
    assert session.keep("model", "a", lambda: build("again")) == "a"


def test_a_session_in_another_process_builds_its_own_objects():
    session = Session("train", sweeping=True)
    session.keep("model", "a", lambda: "here")
    other = pickle.loads(pickle.dumps(session))
    assert (other.entry, other.sweeping, other.remote, session.remote) == ("train", True, True, False)
    assert other.keep("model", "a", lambda: "there") == "there"
