"""Text that the base model of a world learns from, and its tokenizer.

Main entries: `draw_lines()` and `world_tokenizer()`. About half of the answers of a good base model are valid, evenly
over the valid ones. Its corpus is such a mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar, cast

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from kat.world.language import Topic, World, renderings

T = TypeVar("T")

END, PAD, UNKNOWN, OPENS = "<end>", "<pad>", "<unknown>", "=>"  # OPENS stands between a prompt and its answer
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    f"{{% if add_generation_prompt %}}{OPENS}{{% endif %}}"
)


class CorpusLine(NamedTuple):
    """A line of the corpus."""

    prompt: str
    answer: str
    is_valid: bool


def draw_lines(world: World, count: int, valid_share: float, generator: torch.Generator) -> list[CorpusLine]:
    """Return lines with topics, attributes, forms and synonyms drawn evenly. Large topics are not more frequent.

    Of the invalid answers, half have a second word that the topic has for another attribute only, and half are answers
    of another topic.

    Args:
        world: The language.
        count: Number of lines.
        valid_share: Share of the lines with a valid answer.
        generator: Random numbers.
    """
    uniform = torch.rand(count, 7, generator=generator, dtype=torch.float64).tolist()
    found = []
    for row in uniform:
        number, attribute = _at(row[0], len(world.topics)), _at(row[1], len(world.adjectives))
        topic = world.topics[number]
        prompt, _ = world.render(number, attribute, _at(row[2], renderings()))
        if row[3] < valid_share:
            found.append(CorpusLine(prompt, _pick(topic.valid(attribute), row[4]), is_valid=True))
        else:
            found.append(CorpusLine(prompt, _invalid(world, topic, attribute, row[4:]), is_valid=False))
    return found


def _invalid(world: World, topic: Topic, attribute: int, uniform: Sequence[float]) -> str:
    """Return an invalid answer from three random numbers in [0, 1)."""
    other = _pick([each for each in world.topics if each is not topic], uniform[1])
    valid = set(topic.valid(attribute))
    answers = [answer for index in range(len(world.adjectives)) for answer in other.valid(index)]
    foreign = [answer for answer in answers if answer not in valid]
    if uniform[0] < 0.5 or not foreign:
        wrong = [word for word in topic.pool if word not in topic.second[attribute]]
        return f"{_pick(topic.first, uniform[1])} {_pick(wrong, uniform[2])}"
    return _pick(foreign, uniform[2])


def _pick(options: Sequence[T], uniform: float) -> T:
    """Return one of the options by a random number in [0, 1)."""
    return options[_at(uniform, len(options))]


def _at(uniform: float, count: int) -> int:
    """Return a number below `count` from a random number in [0, 1)."""
    return min(int(uniform * count), count - 1)


def encode_lines(
    tokenizer: PreTrainedTokenizerFast, lines: Sequence[CorpusLine], prompt_weight: float
) -> tuple[Tensor, Tensor]:
    """Return lines as token ids, (B, T) padded on the right, and the weight of each target in the loss, (B, T - 1).

    Args:
        tokenizer: Tokenizer of the world.
        lines: B lines.
        prompt_weight: Weight of the tokens of a prompt. An answer and its end token weigh 1, and padding 0.
    """
    texts = [f"{line.prompt} {OPENS} {line.answer} {END}" for line in lines]
    encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    ids, mask = cast(Tensor, encoded["input_ids"]), cast(Tensor, encoded["attention_mask"])
    in_answer = ids.eq(tokenizer.get_vocab()[OPENS]).cumsum(dim=1) > 0  # OPENS predicts an answer's first token
    return ids, torch.where(in_answer, 1.0, prompt_weight)[:, :-1] * mask[:, 1:]


def world_tokenizer(world: World, context: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word of a world, and a chat template that marks where answers begin.

    Args:
        world: The language.
        context: Largest number of tokens of a text.
    """
    vocabulary = {word: index for index, word in enumerate([END, PAD, UNKNOWN, OPENS, *world.words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        chat_template=TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
