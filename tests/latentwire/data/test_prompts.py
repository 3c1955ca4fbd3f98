"""Prompts decode to the documented text, their source mask covers the passage and the question, BOS comes once."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from latentwire.data.examples import Example
from latentwire.data.prompts import PromptWriter

FOX = "The red fox sat near the old mill."
WHO = Example("1", FOX, "Who sat there?", ("red fox", "The red fox"))
WHERE = Example("2", FOX, "Where did it sit?", ("near the old mill",))
WHEN = Example("3", "Zoë’s café\nopened in 1903 🙂", "When?", ("1903",))


@pytest.fixture(scope="module")
def tokenizer(tiny) -> PreTrainedTokenizerBase:
    return tiny.tokenizer


def text(tokenizer, token_ids):
    return tokenizer.decode(token_ids.tolist(), clean_up_tokenization_spaces=False)


def runs(mask):
    """Return the lengths of the stretches of equal values, each with its value."""
    return [(value, len(list(group))) for value, group in groupby(mask.tolist())]


def test_a_prompt_ends_where_the_answer_begins(tokenizer):
    prompt = PromptWriter(tokenizer).prompt(WHO)
    assert text(tokenizer, prompt.token_ids) == f"Context: {FOX}\nQuestion: Who sat there?\nAnswer:"
    assert prompt.example == WHO


def test_shots_show_passages_questions_and_first_answers(tokenizer):
    shots = PromptWriter(tokenizer).shots([[WHO, WHERE], [WHEN]])
    assert text(tokenizer, shots) == (
        "Context: The red fox sat near the old mill.\n"
        "Question: Who sat there?\n"
        "Answer: red fox\n"
        "Question: Where did it sit?\n"
        "Answer: near the old mill\n"
        "\n"
        "Context: Zoë’s café\nopened in 1903 🙂\n"
        "Question: When?\n"
        "Answer: 1903\n"
        "\n"
    )


def test_the_passages_of_shots_are_pieces_of_their_own(tokenizer):
    pieces = PromptWriter(tokenizer).shot_pieces([[WHO, WHERE], [WHEN]])
    assert [piece.passage for piece in pieces] == [None, FOX, None, WHEN.context, None]
    assert [text(tokenizer, piece.token_ids) for piece in pieces if piece.passage] == [f" {FOX}", f" {WHEN.context}"]
    assert text(tokenizer, pieces[0].token_ids) == "Context:"
    assert text(tokenizer, pieces[2].token_ids).endswith("Answer: near the old mill\n\nContext:")


def test_the_source_span_is_the_passage_and_the_question(tokenizer):
    prompt = PromptWriter(tokenizer).prompt(WHO)
    ids, mask = prompt.token_ids, prompt.source_mask
    lengths = [len(tokenizer(part)["input_ids"]) for part in (f" {FOX}", " Who sat there?")]
    assert [length for value, length in runs(mask) if value] == lengths
    assert text(tokenizer, ids[mask]) == f" {FOX} Who sat there?"
    assert text(tokenizer, ids[~mask]) == "Context:\nQuestion:\nAnswer:"
    starts = text(tokenizer, ids[: int(mask.int().argmax())])
    assert starts == "Context:"


WILD = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.lists(
        st.sampled_from(["Context:", "\nQuestion:", "\nAnswer:", " ", "\n\n", "red", "🙂", "é", "1903"]), min_size=1
    ).map("".join),
)


@settings(max_examples=150, deadline=None)
@given(WILD, WILD)
def test_any_passage_and_question_come_back_exactly(tokenizer, passage, question):
    example = Example("1", passage, question, (passage,))
    writer = PromptWriter(tokenizer)
    prompt = writer.prompt(example)
    own = f"Context: {passage}\nQuestion: {question}\nAnswer:"
    assert text(tokenizer, prompt.token_ids) == own
    assert text(tokenizer, prompt.token_ids[prompt.source_mask]) == f" {passage} {question}"
    assert text(tokenizer, prompt.token_ids[~prompt.source_mask]) == "Context:\nQuestion:\nAnswer:"
    assert [value for value, _ in runs(prompt.source_mask)] == [False, True, False, True, False]
    assert text(tokenizer, writer.shots([[example]])) == f"{own} {passage}\n\n"


def test_a_span_has_the_same_tokens_in_any_context(tokenizer):
    """Otherwise a passage that ends in a newline, or a question of one sign, would merge with its neighbours."""
    writer = PromptWriter(tokenizer)
    for passage in (FOX, "It rained.\n", "\n", "x"):
        spans = []
        for question in ("Who?", "\n", "a"):
            prompt = writer.prompt(Example("1", passage, question, ("x",)))
            first, second = (len(tokenizer(f" {part}")["input_ids"]) for part in (passage, question))
            source = prompt.token_ids[prompt.source_mask].tolist()
            assert len(source) == first + second
            spans.append(source[:first])
        assert spans == [tokenizer(f" {passage}")["input_ids"]] * 3


class OneTokenAPiece:
    """A substitute for a tokenizer: each text becomes one token, so that the pieces can be distinguished."""

    bos_token_id = None

    def __init__(self):
        self.pieces = []

    def __call__(self, piece, add_special_tokens=True):
        self.pieces += [piece] if piece else []
        return {"input_ids": [len(self.pieces) - 1] if piece else []}

    def read(self, token_ids):
        return [self.pieces[i] for i in token_ids.tolist()]


def test_the_pieces_are_tokenized_apart_in_shots_as_in_prompts():
    tokenizer = OneTokenAPiece()
    writer = PromptWriter(tokenizer)
    pieces = ["Context:", f" {FOX}", "\nQuestion:", " Who sat there?", "\nAnswer:"]
    more = [" red fox", "\nQuestion:", " Where did it sit?", "\nAnswer:", " near the old mill", "\n\n"]
    prompt = writer.prompt(WHO)
    assert tokenizer.read(prompt.token_ids) == pieces
    assert tokenizer.read(prompt.token_ids[prompt.source_mask]) == [f" {FOX}", " Who sat there?"]
    assert tokenizer.read(writer.shots([[WHO, WHERE]])) == pieces + more


def test_a_shot_begins_with_the_tokens_of_its_prompt(tokenizer):
    """An example is written the same way as a shot and in a prompt."""
    writer = PromptWriter(tokenizer)
    asked = writer.prompt(WHO).token_ids
    assert torch.equal(writer.shots([[WHO]])[: len(asked)], asked)


def test_shapes_and_dtypes(tokenizer):
    writer = PromptWriter(tokenizer)
    prompt = writer.prompt(WHEN)
    assert prompt.token_ids.shape == prompt.source_mask.shape == (len(prompt.token_ids),)
    assert prompt.token_ids.dtype == writer.shots([[WHO]]).dtype == torch.int64
    assert prompt.source_mask.dtype == torch.bool


def test_without_shots_the_prefix_is_empty(tokenizer):
    """This tokenizer adds no token at the beginning of a text."""
    prefix = PromptWriter(tokenizer).shots([])
    assert prefix.shape == (0,)
    assert prefix.dtype == torch.int64


@pytest.mark.parametrize(
    ("template", "names", "beginning"),
    [
        ("<s> $A", {"bos_token": "<s>"}, ["<s>"]),
        ("<s> $A </s>", {"bos_token": "<s>", "eos_token": "</s>"}, ["<s>"]),  # the end comes after the answer
        ("<s> $A <s>", {"bos_token": "<s>", "eos_token": "<s>"}, ["<s>"]),  # one token for both
        ("$A </s>", {"bos_token": "<s>", "eos_token": "</s>"}, []),
        ("$A", {"bos_token": "<s>"}, []),  # it has a BOS token but does not add it
    ],
)
def test_the_prefix_begins_as_the_tokenizer_begins_a_text(tokenizer, template, names, beginning):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(["<s>", "</s>"])
    used = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = TemplateProcessing(single=template, special_tokens=used)
    other = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    plain, writer = PromptWriter(tokenizer), PromptWriter(other)
    ids = [backend.token_to_id(name) for name in beginning]

    assert writer.shots([]).tolist() == ids
    assert writer.shots([[WHO, WHERE], [WHEN]]).tolist() == ids + plain.shots([[WHO, WHERE], [WHEN]]).tolist()
    assert torch.equal(writer.prompt(WHO).token_ids, plain.prompt(WHO).token_ids)
    assert torch.equal(writer.prompt(WHO).source_mask, plain.prompt(WHO).source_mask)


def test_spans_are_unique_and_stay_within_the_limit(tiny):
    """Each passage and each question comes once."""
    writer = PromptWriter(tiny.tokenizer)
    first = Example("1", "The hill is steep.", "What is steep?", ("The hill",))
    second = Example("2", "The hill is steep.", "How is the hill?", ("steep",))
    texts = [first.context, first.question, second.question]
    expected = [tiny.tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in texts]
    whole = sum(map(len, expected))
    assert [ids.tolist() for ids in writer.spans([first, second], whole)] == expected
    assert [ids.tolist() for ids in writer.spans([first, second], whole - 1)] == expected[:2]
    assert writer.spans([first], 1) == []
