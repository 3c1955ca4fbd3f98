"""The language of a world: what its seed decides, what is valid, and what its sizes leave alone."""

from __future__ import annotations

import pytest
import torch

from kat.data.chat import encode_completion, encode_prompt
from kat.world.corpus import END, OPENS, CorpusLine, draw_lines, encode_lines, world_tokenizer
from kat.world.language import FORMS, SHAPES, Topic, World, WorldSpec, made_up_words, make_world, topic_sizes
from latentwire.harness.errors import UserError
from tests.helpers.random import shifted

SPEC = WorldSpec(topics=20, prompts=1500, exponent=1.0, attributes=4)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(SPEC, 0)


def test_sizes_follow_a_power_law():
    """Shares 12/25, 6/25, 4/25 and 3/25 of 100, and of 101 the one left over goes to the largest remainder."""
    assert topic_sizes(WorldSpec(4, 100, 1.0, 4)) == [48, 24, 16, 12]
    assert topic_sizes(WorldSpec(4, 101, 1.0, 4)) == [49, 24, 16, 12]  # 48.48, 24.24, 16.16, 12.12
    assert topic_sizes(WorldSpec(4, 100, 0.0, 4)) == [25] * 4
    assert topic_sizes(WorldSpec(3, 140, 2.0, 4)) == [103, 26, 11]  # 36/49, 9/49 and 4/49: 102.86, 25.71, 11.43


def test_most_topics_are_rare():
    sizes = topic_sizes(SPEC)
    assert sum(sizes) == 1500 and sizes == sorted(sizes, reverse=True) and len(sizes) == 20
    assert sum(size < 1500 / 20 for size in sizes) == 15
    assert sizes[0] > 15 * sizes[-1]


def test_prompts_are_different_and_count_as_their_topics_say(world):
    prompts = world.prompts()
    assert len(prompts) == len({row["prompt"] for row in prompts}) == len({row["id"] for row in prompts}) == 1500
    for number, size in enumerate(topic_sizes(SPEC)):
        mine = [row for row in prompts if row["topic"] == number]
        assert len(mine) == size and {row["topic_size"] for row in mine} == {size}


def test_a_prompt_has_the_words_of_its_topic_and_attribute(world):
    for row in world.prompts()[::7]:
        topic, words = world.topics[row["topic"]], row["prompt"].split()
        assert sum(word in topic.nouns for word in words) == 1
        assert len({word for word in words if word in topic.details}) == 2
        assert [a for a, names in enumerate(world.adjectives) if set(names) & set(words)] == [row["attribute"]]
        rest = [
            word for word in words if word not in (*topic.nouns, *topic.details, *world.adjectives[row["attribute"]])
        ]
        assert rest == [word for word in FORMS[row["form"]].split() if "{" not in word]


def test_valid_answers_depend_on_topic_and_attribute(world):
    sets = {(row["topic"], row["attribute"]): row["valid"] for row in world.prompts()}
    assert len(sets) == 20 * 4
    assert len({frozenset(valid) for valid in sets.values()}) > 70  # so that a model has to read both
    for (topic, attribute), valid in sets.items():
        known = world.topics[topic]
        assert len(set(valid)) == len(valid) and 8 <= len(valid) <= 32
        assert set(valid) == {f"{x} {y}" for x in known.first for y in known.second[attribute]}
        assert set(known.second[attribute]) < set(known.pool)


def test_numbers_of_valid_answers_do_not_depend_on_sizes():
    """Over 70 worlds every rank of topic gets each shape about equally often."""
    found = torch.zeros(20)
    for seed in range(70):
        found += torch.tensor([len(topic.valid(0)) for topic in make_world(SPEC, seed).topics], dtype=torch.float32)
    expected = sum(first * second for first, second in SHAPES) / len(SHAPES)
    assert (found / 70 - expected).abs().max() < 4 * 7.6 / 70**0.5  # a shape has a standard deviation of 7.6


def test_forms_do_not_show_the_size_of_a_topic():
    """The forms of rare and of common topics have the same distribution: chi-square with 11 degrees of freedom."""
    counts = torch.zeros(2, len(FORMS))
    for seed in range(5):
        for row in make_world(SPEC, shifted(seed)).prompts():
            counts[int(row["topic"] >= 10), row["form"]] += 1
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    assert float(((counts - expected) ** 2 / expected).sum()) < 39.6  # .99996 quantile
    assert bool((counts > 0).all())


def test_the_seed_decides_everything(world):
    assert make_world(SPEC, 0).prompts() == world.prompts()
    other = make_world(SPEC, 1)
    assert not {row["prompt"] for row in other.prompts()} & {row["prompt"] for row in world.prompts()}
    assert len(set(world.words())) == len(world.words())


def test_words_are_different_and_made_of_syllables():
    words = made_up_words(500, torch.Generator().manual_seed(shifted(0)))
    assert len(set(words)) == 500
    assert {len(word) for word in words} == {6} and set("".join(w[1::2] for w in words)) == set("aeiou")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topics": 1}, r"^world.topics=1 world.attributes=4: must be at least 2 and 1$"),
        ({"attributes": 0}, r"^world.topics=20 world.attributes=0: must be at least 2 and 1$"),
        ({"exponent": -1.0}, r"^world.exponent=-1.0: must be from 0"),
        ({"prompts": 60}, r"^world.prompts=60: gives topics of 1 to \d+ prompts, and a topic has 2 to 24192; change"),
        ({"attributes": 1, "prompts": 30000}, r"^world.prompts=30000: gives topics of 417 to 8339 prompts"),
    ],
)
def test_impossible_sizes_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        WorldSpec(**({**vars(SPEC), **changes}))


# The corpus and the tokenizer.


def test_lines_are_valid_as_often_as_wished(world):
    lines = draw_lines(world, 4000, 0.7, torch.Generator().manual_seed(shifted(0)))
    valid = {frozenset(row["prompt"].split()): set(row["valid"]) for row in world.prompts()}
    share = sum(line.is_valid for line in lines) / len(lines)
    assert abs(share - 0.7) < 4 * (0.7 * 0.3 / 4000) ** 0.5
    by_words = {noun: topic for topic in world.topics for noun in topic.nouns}
    attribute_of = {word: number for number, names in enumerate(world.adjectives) for word in names}
    for line in lines:
        words = line.prompt.split()
        topic = next(by_words[word] for word in words if word in by_words)
        attribute = next(attribute_of[word] for word in words if word in attribute_of)
        assert (line.answer in topic.valid(attribute)) == line.is_valid
    assert valid  # the prompts file and the corpus have the same language


def test_an_invalid_line_is_never_valid_by_chance():
    """Topic 0 accepts most answers of topic 1, and only "x z" and "w z" are wrong for it."""
    spec, details = WorldSpec(2, 40, 0.0, 1), tuple(f"d{number}" for number in range(8))
    one = Topic(("n1", "n2", "n3"), details, ("x", "w"), ("y", "v", "z"), (("y", "v"),))
    other = Topic(("m1", "m2", "m3"), details, ("x", "w"), ("y", "v", "z", "q"), (("y", "v", "z"),))
    made = World(spec, 0, (one, other), (("a1", "a2", "a3"),), ("x", "w"), ("y", "v", "z", "q"))
    lines = draw_lines(made, 400, 0.0001, torch.Generator().manual_seed(shifted(0)))
    found = {line.answer for line in lines if not line.is_valid and {"n1", "n2", "n3"} & set(line.prompt.split())}
    assert found == {"x z", "w z"}


def test_lines_are_even_over_topics_and_answers(world):
    """Of 8000 lines each of 20 topics has 400, with a standard deviation of 19.5."""
    lines = draw_lines(world, 8000, 1.0, torch.Generator().manual_seed(shifted(1)))
    by_noun = {noun: number for number, topic in enumerate(world.topics) for noun in topic.nouns}
    topics = torch.tensor([next(by_noun[w] for w in line.prompt.split() if w in by_noun) for line in lines])
    counts = topics.bincount(minlength=20)
    assert int((counts - 400).abs().max()) < 4.5 * 19.5
    firsts = [line.answer.split()[0] for line, topic in zip(lines, topics.tolist(), strict=True) if topic == 0]
    shares = torch.tensor([firsts.count(word) / len(firsts) for word in world.topics[0].first])
    even = 1 / len(shares)
    assert float((shares - even).abs().max()) < 4.5 * (even * (1 - even) / len(firsts)) ** 0.5


def test_tokens_of_answers_weigh_more_than_prompts(world):
    """Targets: five of a prompt of six tokens with its mark, then answer, answer, end, then padding."""
    tokenizer = world_tokenizer(world, 64)
    noun, words = world.topics[0].nouns[0], world.topics[0].valid(0)[0]
    lines = [CorpusLine(f"name a {noun} a a", words, True), CorpusLine(f"a {noun}", words, True)]
    ids, weights = encode_lines(tokenizer, lines, 0.25)
    assert ids.shape == (2, 9) and tokenizer.decode(ids[0, 6:]) == f"{words} {END}"
    assert weights.tolist() == [[0.25] * 5 + [1.0] * 3, [0.25] * 2 + [1.0] * 3 + [0.0] * 3]


def test_the_tokenizer_has_one_token_for_each_word(world):
    tokenizer = world_tokenizer(world, 64)
    row = world.prompts()[3]
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": row["prompt"]}])
    answer = encode_completion(tokenizer, row["valid"][0])
    assert len(prompt) == len(row["prompt"].split()) + 1 and len(answer) == 3
    assert tokenizer.unk_token_id not in prompt + answer
    assert tokenizer(f"{row['prompt']} {OPENS} {row['valid'][0]} {END}")["input_ids"] == prompt + answer
    assert tokenizer.decode(answer, skip_special_tokens=True) == row["valid"][0]
    assert len(tokenizer) == len(world.words()) + 4
