"""The embedded model: decoding, prompts, answers to short_qa from the passage, and the automatic repair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from latentwire.data.examples import Dataset, DataSpec, Example, choose_examples, load_data
from latentwire.data.prompts import PromptWriter
from latentwire.evaluation import setup as benches
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.metrics import f1_score
from latentwire.evaluation.setup import Component, EvaluationSetup, Settings, prepare
from latentwire.harness.device import accelerator_state
from latentwire.lm.batching import plan_batches
from latentwire.lm.decoding import Decoder, encode_prefix
from latentwire.lm.models import LanguageModel
from tests.helpers.models import model_spec

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

COUNT = 24


@pytest.fixture(scope="module")
def drawn() -> tuple[list[list[Example]], list[Example]]:
    """Return shots and questions of the train split; the validation split is for sweeps."""
    data = load_data(DataSpec("short_qa", "short_qa"))
    return choose_examples(Dataset(data.train, data.train), samples=COUNT, shots=5, questions_per_shot=3, seed=0)


def answer(lm: LanguageModel, shots: list[list[Example]], examples: list[Example]) -> list[str]:
    writer = PromptWriter(lm.tokenizer)
    decoder = Decoder(lm, encode_prefix(lm, writer.shots(shots)), 12)
    prompts = [writer.prompt(example) for example in examples]
    answers = [""] * len(prompts)
    for batch in plan_batches(
        [len(p.token_ids) for p in prompts], [p.example.context for p in prompts], decoder.added, 4096
    ):
        outputs, _ = decoder.decode([lm.embed(prompts[i].token_ids) for i in batch])
        for index, output in zip(batch, outputs, strict=True):
            answers[index] = output.text
    return answers


def test_decoding_token_embeddings_equals_generate(smollm2, drawn):
    shots, examples = drawn
    writer = PromptWriter(smollm2.tokenizer)
    prefix = writer.shots(shots)
    decoder = Decoder(smollm2, encode_prefix(smollm2, prefix), 12)
    assert decoder.shares
    prompts = [writer.prompt(example).token_ids for example in examples[:4]]
    outputs, _ = decoder.decode([smollm2.embed(prompt) for prompt in prompts])
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.cat([prefix, prompt])[None]
        mask = torch.ones_like(ids)
        whole = smollm2.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        assert list(output.token_ids) == whole[0, ids.shape[1] :].tolist()[: len(output.token_ids)]
        assert "\n" in smollm2.tokenizer.decode(output.token_ids) or output.cut_off


def test_pieces_tokenized_apart_are_the_tokens_of_the_whole_text(smollm2, drawn):
    writer = PromptWriter(smollm2.tokenizer)
    for example in drawn[1]:
        text = f"Context: {example.context}\nQuestion: {example.question}\nAnswer:"
        assert writer.prompt(example).token_ids.tolist() == smollm2.tokenizer(text)["input_ids"]


def test_short_qa_is_answered_by_reading_and_only_by_reading(smollm2, drawn):
    shots, examples = drawn
    hidden = [replace(example, context="The passage is not shown.") for example in examples]

    def mean_f1(asked: list[Example]) -> float:
        answers = answer(smollm2, shots, asked)
        return float(np.mean([f1_score(a, e.answers) for a, e in zip(answers, examples, strict=True)]))

    assert mean_f1(examples) >= 0.5
    assert mean_f1(hidden) <= 0.1


@pytest.fixture(scope="module")
def bench(smollm2) -> EvaluationSetup:
    """Return a set-up with eight questions of the train split and its other passages to fit on."""
    spec = DataSpec("short_qa", "short_qa")
    train = load_data(spec).train
    asked = Settings(samples=8, seed=0, shots=3, questions_per_shot=3, max_new_tokens=12, batch_tokens=4096,
                     dtype="float32")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benches, "load_data", lambda spec: Dataset(train, train))
        patch.setattr(benches, "load_model", lambda *arguments: smollm2)
        return prepare(model_spec("smollm2"), spec, asked, accelerator_state("cpu"))


def test_the_automatic_repair_restores_f1(bench):
    """It recovers 90% of the clean F1 from scaled and low-rank embeddings and leaves clean text unchanged."""

    def scores(source: str, transform: str, **dials: float) -> dict[str, Any]:
        return evaluate(bench, Component(source, dials), Component(transform), accelerator_state("cpu"), transform)[0]

    clean = scores("text", "baseline")
    assert clean["f1"] >= 0.4
    assert scores("scaled", "baseline", factor=117.0)["f1"] <= clean["f1"] / 2  # there is something to repair
    left_alone = scores("text", "auto")
    assert left_alone["identity"] and left_alone["f1"] == clean["f1"]
    for source, dials, named in (("scaled", {"factor": 117.0}, "scale"), ("low_rank", {"rank": 64}, "low_rank")):
        repaired = scores(source, "auto", **dials)
        assert named in repaired["fit"]["diagnosis"]["found"]
        assert repaired["f1"] >= 0.9 * clean["f1"], source
