"""Input models of a run: their identity, their weight files and their tokenizers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from kat.grpo.given import content_of, differing_tokenizers, require_reward_columns, sources_of
from kat.grpo.reward_calls import calls_of
from latentwire.harness.errors import UserError
from latentwire.lm.model_folder import weight_files


def test_tokenizers_differ_in_what_is_named(tiny):
    one = tiny.tokenizer
    assert differing_tokenizers(one, copy.deepcopy(one)) == []
    template, pad, eos, more = (copy.deepcopy(one) for _ in range(4))
    template.chat_template = "{{ messages }}"
    assert differing_tokenizers(template, one) == ["chat template"]
    pad.pad_token = "a"
    assert differing_tokenizers(pad, one) == ["pad_token (a and None)"]
    eos.eos_token = "b"
    assert differing_tokenizers(one, eos) == ["eos_token (<|end|> and b)"]
    more.add_tokens(["<|new|>"])
    n = len(one.get_vocab())
    assert differing_tokenizers(more, one) == [f"vocabulary ({n + 1} and {n} tokens)"]


def model_folder(path: Path, weights: str = "model.safetensors") -> Path:
    path.mkdir()
    (path / weights).write_bytes(b"numbers")
    (path / "config.json").write_text("{}")
    return path


def test_a_model_is_identified_by_weights_and_settings(tmp_path):
    folder = model_folder(tmp_path / "m")
    first = content_of(folder)
    assert first == content_of(model_folder(tmp_path / "copy"))
    (folder / "config.json").write_text('{"a": 1}')
    second = content_of(folder)
    assert second["model.safetensors"] == first["model.safetensors"] and second["settings"] != first["settings"]
    (folder / "model.safetensors").write_bytes(b"others")
    assert content_of(folder)["model.safetensors"] != first["model.safetensors"]
    (folder / "model-00002.safetensors").write_bytes(b"more")
    assert sorted(content_of(folder)) == ["model-00002.safetensors", "model.safetensors", "settings"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused(tmp_path, name):
    folder = model_folder(tmp_path / "m", name)
    with pytest.raises(
        UserError, match=rf"reward=x: .*{name}, a pickle, which is not loaded.*convert it to safetensors"
    ):
        weight_files(folder, "reward=x")
    (folder / "model.safetensors").write_bytes(b"1")
    assert [path.name for path in weight_files(folder, "reward=x")] == ["model.safetensors"]


def test_reward_functions_are_identified_by_their_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    body = "from kat_reward_tools import N\n\ndef f(prompts, completions):\n    return [N]\n"
    (tmp_path / "kat_rewards_a.py").write_text(body)
    (tmp_path / "kat_rewards_b.py").write_text(body.replace("return [N]", "return [N + 1]"))
    (tmp_path / "kat_reward_tools.py").write_text("N = 1\n")
    own = ["exact_match", "kat.grpo.rewards:f1"]  # covered by the version of the project
    calls = calls_of(["model", "kat_rewards_a:f", "kat_rewards_b:f", *own], None)
    before = sources_of(calls)
    assert list(before) == ["kat_rewards_a:f", "kat_rewards_b:f"]
    assert before["kat_rewards_a:f"] != before["kat_rewards_b:f"]
    (tmp_path / "kat_reward_tools.py").write_text("N = 2\n")
    after = sources_of(calls)
    assert all(after[name] != before[name] for name in before)  # a helper module was edited
    partition = calls_of(["novelty"], {"novelty": {"partition": "kat_rewards_a:f"}})
    assert sources_of(partition) == {"novelty.partition": after["kat_rewards_a:f"]}
    with pytest.raises(UserError, match=r"grpo.reward_funcs: math:pow: math: has no source .*put pow into a .py file"):
        sources_of(calls_of(["math:pow"], None))


def test_a_prompts_file_must_have_the_columns_of_the_rewards(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_text('{"prompt": "Why?", "solution": "So."}\n')
    named = calls_of(["exact_match"], {"exact_match": {"references": "solution"}})
    require_reward_columns(named, path, has_model=False)
    with pytest.raises(UserError, match=r"exact_match: needs the column references or answer or answers, .* solution;"):
        require_reward_columns(calls_of(["exact_match"], None), path, has_model=False)


def test_prompts_that_no_reward_scores_are_refused(tmp_path):
    path = tmp_path / "my.jsonl"
    path.write_text('{"prompt": "Why?", "answer": "So."}\n{"prompt": "How?", "id": "q2"}\n')
    calls = calls_of(["exact_match", "f1"], None)
    with pytest.raises(UserError, match=r"none of them scores 1 of 2 prompts in .*, q2 for instance, .* add a reward"):
        require_reward_columns(calls, path, has_model=False)
    require_reward_columns(calls, path, has_model=True)
    require_reward_columns(calls_of(["exact_match", "length"], {"length": {"target": 3}}), path, has_model=False)
