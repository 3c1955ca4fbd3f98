"""The likelihood of right answers given a source, compared with logits computed by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from accelerate import PartialState
from torch.nn.functional import cross_entropy, kl_div

from latentwire.data.examples import DataSpec, choose_examples, load_data
from latentwire.data.prompts import PromptWriter
from latentwire.evaluation.latent_comparison import SourceScores, compare_with_controls, render_report
from latentwire.evaluation.latent_report import control_configs
from latentwire.evaluation.likelihood import Likelihoods
from latentwire.evaluation.setup import Component, EvaluationSetup, Settings, prepare
from latentwire.harness.errors import UserError
from latentwire.records import LatentAccount, Measured
from latentwire.sources.base import Source
from tests.helpers.models import model_spec
from tests.helpers.random import numbers

STATE = PartialState(cpu=True)
TEXT = Component("text")
HALF = {"ratio": 2.0, "positions": None}

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]


@pytest.fixture(scope="module")
def bench() -> EvaluationSetup:
    """Return a set-up whose order separates two questions about the same passage."""
    settings = Settings(
        samples=30, seed=0, shots=1, questions_per_shot=2, max_new_tokens=3, batch_tokens=2000, dtype="float32"
    )
    bench = prepare(model_spec("tiny_random"), DataSpec("short_qa", "short_qa"), settings, STATE)
    by_context = sorted(bench.prompts, key=lambda prompt: prompt.example.context)
    contexts = [prompt.example.context for prompt in by_context]
    twice = next(place for place in range(len(contexts) - 1) if contexts[place] == contexts[place + 1])
    first, between, second = by_context[twice], by_context[twice - 1], by_context[twice + 1]
    return replace(bench, prompts=[first, between, second, by_context[twice - 2]])


def logits_by_hand(bench: EvaluationSetup, index: int, kept: slice, answer: list[int]) -> torch.Tensor:
    """Return logits over the answer, without a cache, after shots, part of the passage and the question: (N, V)."""
    prompt, lm = bench.prompts[index], bench.lm
    passage = prompt.token_ids[prompt.passage_mask][kept]
    start = int(prompt.passage_mask.nonzero()[0])
    end = start + int(prompt.passage_mask.sum())
    own = torch.cat([prompt.token_ids[:start], passage, prompt.token_ids[end:], torch.tensor(answer)])
    ids = torch.cat([shots_of(bench), own])
    return lm.model(input_ids=ids[None]).logits[0, -len(answer) - 1 : -1].float()


def shots_of(bench: EvaluationSetup) -> torch.Tensor:
    s = bench.settings
    shots, _ = choose_examples(
        load_data(DataSpec("short_qa", "short_qa")), s.samples, s.shots, s.questions_per_shot, s.seed
    )
    return PromptWriter(bench.lm.tokenizer).shots(shots)


@torch.no_grad()
@pytest.mark.parametrize("name", ["text", "cut", "empty"])
def test_nll_and_kl_equal_the_models_own(bench, name):
    found = Likelihoods(bench, STATE).over(Component(name, HALF if name == "cut" else {}), "")
    assert len(found) == len(bench.prompts)
    writer = PromptWriter(bench.lm.tokenizer)
    for index, own in enumerate(found):
        prompt = bench.prompts[index]
        answer = writer.ids(f" {prompt.example.answers[0]}")[:3]
        tokens = int(prompt.passage_mask.sum())
        kept = {"text": slice(tokens), "cut": slice((tokens + 1) // 2), "empty": slice(0)}[name]
        over, text = (logits_by_hand(bench, index, part, answer) for part in (kept, slice(tokens)))
        assert own.nll == pytest.approx(float(cross_entropy(over, torch.tensor(answer))), abs=1e-4)
        expected = kl_div(over.log_softmax(-1), text.log_softmax(-1), log_target=True, reduction="batchmean")
        assert own.kl == pytest.approx(float(expected), abs=1e-4)
    assert (name == "text") == (max(own.kl for own in found) < 1e-6)


def test_sources_do_not_affect_one_another(bench):
    """After resuming, the states of the text are computed when a source needs them."""
    together = Likelihoods(bench, STATE)
    assert max(own.kl for own in together.over(TEXT, "")) == 0
    averaged = Component("averaged", HALF)
    assert together.over(averaged, "") == Likelihoods(bench, STATE).over(averaged, "")


def test_two_processes_share_the_passages(bench, monkeypatch):
    alone = Likelihoods(bench, STATE).over(Component("cut", HALF), "")
    ranks = [
        Likelihoods(bench, SimpleNamespace(process_index=rank, num_processes=2))  # type: ignore[arg-type]
        for rank in range(2)
    ]
    assert [rank.groups for rank in ranks] == [[[0, 2], [3]], [[1]]]  # a passage's questions stay together
    found: list[Any] = []
    ranks[1].over_share(Component("cut", HALF), "", found)

    def joined(state: object, items: list[Any]) -> list[Any]:
        return [*found, *items] if isinstance(items[0], tuple) else items

    monkeypatch.setattr("latentwire.evaluation.likelihood.gather_from_all", joined)
    monkeypatch.setattr("latentwire.harness.gather.gather_from_all", joined)
    assert ranks[0].over(Component("cut", HALF), "") == alone
    failed = UserError("the other one failed")
    monkeypatch.setattr("latentwire.harness.gather.gather_from_all", lambda state, items: [*items, failed])
    with pytest.raises(UserError, match="the other one failed"):
        ranks[0].over(Component("cut", HALF), "")


def test_batch_tokens_bounds_each_batch(bench):
    one = bench.prompts[0]
    passage, asked = int(one.passage_mask.sum()), len(Likelihoods(bench, STATE).branches[0].token_ids)
    other = len(Likelihoods(bench, STATE).branches[2].token_ids)

    def groups(batch_tokens: int) -> list[list[int]]:
        limited = replace(bench, settings=replace(bench.settings, batch_tokens=batch_tokens))
        return Likelihoods(limited, STATE).groups

    assert groups(passage + asked + other)[0] == [0, 2]
    assert groups(passage + asked + other - 1) == [[0], [1], [2], [3]]
    assert groups(1) == [[0], [1], [2], [3]]
    apart = replace(bench, settings=replace(bench.settings, batch_tokens=1))
    cut = Component("cut", HALF)
    one_by_one, together = (Likelihoods(each, STATE).over(cut, "") for each in (apart, bench))
    for own, other in zip(one_by_one, together, strict=True):
        assert (own.nll, own.kl) == pytest.approx((other.nll, other.kl), abs=1e-4)


class RecordingSource(Source):
    """A source that records the passage it receives."""

    passage_only = True
    received: ClassVar[list[tuple[str, torch.dtype]]] = []

    def replace(self, x: torch.Tensor, generator: torch.Generator, passage: str) -> torch.Tensor:
        self.received.append((passage, x.dtype))
        return x


def test_a_source_receives_the_passage_in_float32(bench, monkeypatch):
    """The LM computes in bfloat16."""
    monkeypatch.setattr(
        EvaluationSetup, "build_source", lambda self, source: RecordingSource(self.vocabulary, torch.Generator())
    )
    settings = replace(bench.settings, dtype="bfloat16")
    rounded = prepare(model_spec("tiny_random"), DataSpec("short_qa", "short_qa"), settings, STATE)
    found = Likelihoods(replace(rounded, prompts=bench.prompts), STATE).over(Component("text"), "")
    contexts = [bench.prompts[i].example.context for i in (0, 1, 3)]
    assert RecordingSource.received == [(context, torch.float32) for context in contexts]
    assert max(own.kl for own in found) < 1e-6


def test_a_source_with_nan_values_is_named(bench, monkeypatch):
    monkeypatch.setattr("latentwire.sources.controls.Cut.distort", lambda self, x, generator: x[:4] * float("nan"))
    with pytest.raises(UserError, match=r"the source cut .* gave NaN or infinite values for example"):
        Likelihoods(bench, STATE).over(Component("cut", HALF), "")


SPANS: LatentAccount = {"positions": 5.0, "text_positions": 10.0, "bytes": 9, "text_bytes": 50, "text_zlib_bytes": 40,
         "mean_pairwise_cosine": 0.1, "distinct_answers": 2, "distinct_references": 2, "warnings": []}  # fmt: skip


ANSWERS = ["noon", "in 1912", "Old Anna", "the 4 boats"]


def scores(f1: float | np.ndarray, nll: np.ndarray, passages: list[str] | None = None) -> SourceScores:
    """Return the scores of a source; a single F1 holds for every example."""
    own = np.broadcast_to(f1, len(nll)).copy()
    answers: Measured = {"f1": float(own.mean()), "em": 0.5, "num_samples": len(nll), "latents": SPANS}
    names = [str(number) for number in range(len(nll))] if passages is None else passages
    references = (ANSWERS * len(nll))[: len(nll)]
    return SourceScores(answers, own, nll, np.full(len(nll), 0.25), names, references)


@pytest.mark.statistical
def test_the_report_names_controls_with_less_likely_answers():
    rng = numbers(0)
    noise = rng.normal(0, 0.3, 40)
    apart = rng.normal(0, 0.5, 40)
    apart -= apart.mean()
    nll = {"text": noise + 0.5, "latent": noise + 1.5, "cut": noise + 1.52 + apart, "averaged": noise + 1.4,
           "empty": noise + 2.0 + apart}  # fmt: skip
    judged = compare_with_controls("some", {name: scores(0.5, own) for name, own in nll.items()}, 0)
    assert judged["likelier_than"] == ["empty"]  # the cut is within noise; with the averages, answers are likelier
    assert judged["beats"] == []
    against = {row["source"]: row["nll_against"] for row in judged["rows"]}
    assert against["latent"] is None and against["empty"] is not None
    difference = float((nll["latent"] - nll["empty"]).mean())
    assert against["empty"]["latents_minus_this"] == pytest.approx(difference)
    low, high = against["empty"]["interval"]
    assert low < difference < high < 0
    text = render_report(judged)
    lines = {line[:34].strip(): line for line in text.split("nats a token")[1].splitlines()}
    own = judged["rows"][1]
    ends = own["nll_interval"]
    assert ends[0] < own["nll"] == nll["latent"].mean() < ends[1]
    assert lines["latents"].endswith(f"0.25 [0.25, 0.25]   {own['nll']:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]")
    assert lines["whole text"].startswith(f"{'whole text':34}{'0':>20}")
    assert f"{difference:+.3f} [{low:+.3f}, {high:+.3f}] p<0.001" in lines["no passage"]
    assert "Right answers are likelier, p < .05, than with: no passage" in text
    assert "F1 is higher, p < .05, than with: none of the controls" in text


def test_the_report_compares_f1():
    """Paired by example: averages are lower although the intervals overlap, the cut is lower on few examples."""
    cut = np.array([0.4] * 27 + [0.2] * 9)  # mean .35
    f1 = {"text": 0.8, "latent": 0.4, "cut": cut, "averaged": 0.3, "empty": 0.0}
    sources = {name: scores(own, np.ones(36)) for name, own in f1.items()}
    judged = compare_with_controls("s", sources, 0)
    assert judged["beats"] == ["averaged", "empty"]
    assert "F1 is higher, p < .05, than with: averages of neighbouring tokens, no passage" in render_report(judged)
    better = {**sources, "averaged": sources["text"]}
    assert compare_with_controls("s", better, 0)["beats"] == ["empty"]
    assert not judged["beats_all"]
    assert judged["share_of_text"] == pytest.approx(0.5)
    against = judged["rows"][2]["f1_against"]
    assert against is not None and against["latents_minus_this"] == pytest.approx(0.05)


def clustered(size: int) -> dict[str, SourceScores]:
    """Return latents that are better on 24 of 30 examples, which are in passages of `size` questions each."""
    gains = np.array([0.2] * 24 + [-0.2] * 6)
    passage = np.arange(30) // size
    names = [str(number) for number in passage]
    f1, nll = 0.3 + 0.4 * (passage % 2), 3.0 + 1.0 * (passage % 2)
    sources = {"text": scores(0.9, nll - 1, names), "latent": scores(f1, nll, names)}
    return sources | {"empty": scores(f1 - gains, nll + gains, names)}


def test_questions_about_one_passage_are_one_unit():
    """Thirty questions about five passages show less than thirty questions about as many passages."""
    single, together = (compare_with_controls("s", clustered(size), 0) for size in (1, 6))
    assert (single["beats"], single["likelier_than"]) == (["empty"], ["empty"])
    assert (together["beats"], together["likelier_than"]) == ([], [])
    of_latents = [report["rows"][1] for report in (single, together)]
    for name in ("f1_interval", "nll_interval"):
        widths = [row[name][1] - row[name][0] for row in of_latents]  # type: ignore[literal-required]
        assert widths[1] > 1.5 * widths[0]


def test_controls_have_as_many_positions_as_the_latents():
    assert list(control_configs({"d_z": 8}, "x", "")) == ["text", "latent", "empty"]
    assert list(control_configs({"layers": 1, "ratio": 1}, "x", "")) == ["text", "latent", "empty"]
    byte = control_configs({"latent_len": 3, "byte_width": 8, "byte_layers": 1}, "x", "")
    assert list(byte) == ["text", "latent", "cut", "chosen", "averaged", "empty"]
    equal = {"ratio": 1.0, "positions": 3}
    assert [byte[name] for name in ("cut", "averaged")] == [Component(name, equal) for name in ("cut", "averaged")]
    assert [byte[name] for name in ("text", "empty")] == [Component("text"), Component("empty")]
    assert byte["chosen"] == Component("chosen", {**equal, "checkpoint": "x"})
    layers = control_configs({"layers": 1, "ratio": 4}, "x", "y")
    assert list(layers) == ["text", "latent", "cut", "style", "chosen", "averaged", "empty"]
    assert layers["latent"] == Component("latent", {"checkpoint": "x", "factor": 1.0, "ratio": None})
    assert layers["style"] == Component("latent", {"checkpoint": "y", "factor": 1.0, "ratio": 4})
    read = control_configs({"layers": 1, "ratio": 8}, "x", "y", 8)
    assert read["latent"].dials["ratio"] == read["style"].dials["ratio"] == 8
    assert layers["chosen"] == Component("chosen", {"ratio": 4.0, "positions": None, "checkpoint": "x"})
    with pytest.raises(UserError, match=r"^ratio=many: not a number of tokens for each latent"):
        control_configs({"ratio": "many"}, "x", "")
