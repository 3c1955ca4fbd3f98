"""The prompts of the writer, against plain generation and plain probabilities of the same model."""

from __future__ import annotations

import math

import pytest
import torch

from latentwire.data.examples import Example
from latentwire.questions.settings import QuestionSettings
from latentwire.questions.writer import QuestionWriter, SentenceExample, ShownTexts

SETTINGS = QuestionSettings(
    seed=0, samples=None, part_words=8, passages_per_part=2, beginnings=["Who", "How many"], examples_per_beginning=2,
    max_question_tokens=5, questions_per_passage=3, min_overlap=0.75, min_f1=0.8, min_confidence=0.7,
    max_f1_without=0.5, shots=1, questions_per_shot=1, max_new_tokens=4, batch_tokens=512, dtype="float32",
)  # fmt: skip
SHOT = Example("s", "Bob fed two herons.", "Who fed the herons?", ("Bob",))
SHOWN = ShownTexts([SentenceExample("Carl saw a boat.", "Who saw a boat?", "Carl")], [[SHOT]])
SENTENCES = ("Ada came at noon.", "The old causeway near Pellbeck was lost.")


@pytest.fixture(scope="module")
def writer(tiny):
    return QuestionWriter(tiny, SHOWN, SETTINGS)


def ids_of(tiny, *pieces):
    ids = tiny.tokenizer("")["input_ids"][:1] if tiny.tokenizer.bos_token_id in tiny.tokenizer("")["input_ids"] else []
    for piece in pieces:
        ids += tiny.tokenizer(piece, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids)


def plain(tiny, pieces, tokens):
    """Return the model's own greedy continuation of a prompt, up to the end of the line."""
    ids = ids_of(tiny, *pieces)
    out = tiny.model.generate(ids[None], max_new_tokens=tokens, do_sample=False, pad_token_id=0)[0, len(ids) :]
    return tiny.tokenizer.decode(out, skip_special_tokens=True).split("\n")[0].strip()


WRITING = ("Sentence:", " Carl saw a boat.", "\nQuestion:", " Who saw a boat?", "\nAnswer:", " Carl", "\n\n")
ASKING = ("Context:", " Bob fed two herons.", "\nQuestion:", " Who fed the herons?", "\nAnswer:", " Bob", "\n\n")


def test_questions_continue_the_examples_and_first_words(tiny, writer):
    pairs = [(sentence, first) for sentence in SENTENCES for first in ("Who", "How many")]
    expected = [
        plain(tiny, (*WRITING, "Sentence:", f" {sentence}", "\nQuestion:", f" {first}"), 5) for sentence, first in pairs
    ]
    assert [output.text for output in writer.write(pairs)] == expected
    assert len(set(expected)) > 1


def test_answers_continue_sentence_or_passage(tiny, writer):
    question, passage = "Who was lost?", f"{SENTENCES[0]} {SENTENCES[1]}"
    example = Example("1", passage, question, ("Ada",))
    end = ("\nQuestion:", f" {question}", "\nAnswer:")
    written = writer.answer_sentences([(sentence, question) for sentence in SENTENCES])
    assert [output.text for output in written] == [
        plain(tiny, (*WRITING, "Sentence:", f" {sentence}", *end), 4) for sentence in SENTENCES
    ]
    assert writer.answer([example], passage=True)[0].text == plain(tiny, (*ASKING, "Context:", f" {passage}", *end), 4)
    assert writer.answer([example], passage=False)[0].text == plain(tiny, (*ASKING, "Context:", *end), 4)


def test_confidence_is_the_mean_probability_of_answer_and_end(tiny, writer):
    examples = [Example(answer, SENTENCES[0], "Who came?", (answer,)) for answer in ("Ada", "noon")]
    found = writer.confidence(examples)
    for example, confidence in zip(examples, found, strict=True):
        before = ids_of(tiny, *ASKING, "Context:", f" {SENTENCES[0]}", "\nQuestion:", " Who came?", "\nAnswer:")
        answer = [*ids_of(tiny, f" {example.answers[0]}").tolist(), ids_of(tiny, "\n").tolist()[0]][:4]
        ids = torch.cat([before, torch.tensor(answer)])
        logps = tiny.model(ids[None]).logits[0].log_softmax(-1)
        own = [float(logps[len(before) - 1 + place, token]) for place, token in enumerate(answer)]
        assert confidence == pytest.approx(math.exp(sum(own) / len(own)), rel=1e-3)
    assert found[0] != found[1]


def test_a_passage_fits_up_to_the_last_position(tiny, writer):
    """Shots, passage, first words, question and answer may take all positions of the model, and not one more."""
    longest = max(len(ids_of(tiny, *ASKING)), len(ids_of(tiny, *WRITING)))
    frame = len(ids_of(tiny, "Context:", "\nQuestion:", " ", "\nAnswer:"))
    first = max(len(ids_of(tiny, f" {each}")) for each in SETTINGS.beginnings)
    room = tiny.context_length - longest - frame - first - 5 - 4
    word = " noon"
    per_word = len(ids_of(tiny, word * 2)) - len(ids_of(tiny, word))
    words = room // per_word
    assert writer.fits((word * words).strip())
    assert not writer.fits((word * (words + 1)).strip())
