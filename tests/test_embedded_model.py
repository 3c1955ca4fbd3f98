"""The embedded model itself: its decoding, its prompts, and that short_qa is answered by reading alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from latentwire.data import Dataset, DataSpec, Example, choose_examples, load_data
from latentwire.generation import Decoder, encode_prefix, plan_batches
from latentwire.metrics import f1_score
from latentwire.models import LanguageModel
from latentwire.prompts import PromptWriter

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

COUNT = 24


@pytest.fixture(scope="module")
def drawn() -> tuple[list[list[Example]], list[Example]]:
    """Shots and questions of the train split: the validation split is for sweeps."""
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


def test_embeddings_of_real_tokens_give_what_generate_gives(smollm2, drawn):
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
