"""Rewards: weighted sums, what functions receive, refused names and values, and exceptions that name the row."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from dataclasses import replace

import pytest
import torch

from kat.data.prompts import Prompt
from kat.grpo import reward_sum as module
from kat.grpo import rewards as shipped
from kat.grpo.reward_calls import RewardCall, Sampled, calls_of, load_reward, reference_texts
from kat.grpo.reward_sum import Rewards
from kat.grpo.rewards import REWARDS, novelty, register_reward
from latentwire.harness.errors import UserError
from latentwire.harness.optimization import NonFiniteError
from tests.helpers.plugins import forgotten_afterwards

SAMPLED = [
    Sampled("q", (1, 2), "ab", (3,), {"id": "p1", "answer": ["ab", "x"], "level": 1}),
    Sampled("r", (4,), "abcd", (5, 6), {"id": "p2", "answer": ["y"], "level": None}),
]


def length(prompts, completions):
    return [float(len(text)) for text in completions]


def prompt_is_q(prompts, completions):
    return [float(prompt == "q") for prompt in prompts]


def by_position(questions, texts):
    return [float(len(text) + 10 * (question == "q")) for question, text in zip(questions, texts, strict=True)]


def by_length(texts):
    return [len(text) for text in texts]


def silent(completions):
    return [None for _ in completions]


def nothing(prompts, completions):
    return []


def words(prompts, completions):
    return ["many" for _ in prompts]


def nan(prompts, completions):
    return [1.0, math.nan]


def no_list(completions):
    return 1.0


NOT_CALLABLE = 3


class Judge:
    pass


def of_nothing(texts):
    return [0.0 for _ in texts]


HERE = __name__


def rewards(*names, weights=None, **settings):
    return Rewards([f"{HERE}:{name}" for name in names], weights or [1.0] * len(names), None, 9, 100, settings or None)


def test_rewards_are_summed_by_weight_and_kept_by_name():
    total, by_name = rewards("length", "prompt_is_q", weights=[0.5, -2.0])(SAMPLED, "a test")
    assert total.tolist() == [1.0 - 2.0, 2.0]
    assert {name: values.tolist() for name, values in by_name.items()} == {
        f"{HERE}:length": [2.0, 4.0],
        f"{HERE}:prompt_is_q": [1.0, 0.0],
    }


def test_the_reward_model_is_given_tokens(monkeypatch):
    def score(model, sequences, batch_tokens):
        assert (model, batch_tokens) == ("the model", 77)
        return torch.tensor([float(sum(prompt) + 10 * sum(completion)) for prompt, completion in sequences])

    monkeypatch.setattr(module, "score", score)
    ended = [SAMPLED[0], Sampled("r", (4,), "abcd", (5, 6, 9))]  # the first was cut off: an end is added
    total, by_name = Rewards(["model", f"{HERE}:prompt_is_q"], [1.0, 100.0], "the model", 9, 77)(ended, "a test")
    assert total.tolist() == [223.0, 204.0]
    assert by_name["model"].tolist() == [123.0, 204.0]


@pytest.mark.parametrize(("ids", "scored"), [((5, 6), (5, 6, 9)), ((5, 8), (5, 9)), ((9,), (9,)), ((8,), (9,))])
def test_the_reward_model_sees_its_own_end(monkeypatch, ids, scored):
    """Tokens 8 and 9 end a completion of the policy. The reward model was trained on texts that end with 9."""
    given = []
    monkeypatch.setattr(module, "score", lambda _, sequences, __: given.extend(sequences) or torch.zeros(1))
    rewards = Rewards(["model"], [1.0], "the model", 9, 77, ends=frozenset({8, 9}))
    rewards([Sampled("r", (4,), "x", ids)], "a test")
    assert given == [((4,), scored)]


REPEATED = [replace(SAMPLED[0], completion=text, group=group) for text, group in
            (("x", 0), ("x", 0), ("yy", 0), ("x", 1), ("zzz", 1), ("x", 1))]  # fmt: skip


def test_novelty_takes_no_column_for_its_groups():
    rows = [replace(row, columns={"groups": 7, "partition": 8}) for row in REPEATED[:3]]
    own = Rewards([f"{HERE}:length", "novelty"], [1.0, 1.0], None, 9, 100)
    assert own(rows, "a test")[1]["novelty"].tolist() == [0.5, 0.5, 1.0]


def test_novelty_can_count_similar_completions_as_equal():
    """Two of three words are shared, so the word F1 of the first two is 2/3."""
    texts = ["the old river Rhine", "river Rhine here", "Elbe", "river Elbe now"]
    assert novelty(["q"] * 4, texts) == [1.0] * 4
    assert novelty(["q"] * 4, texts, same_from=0.6) == pytest.approx([2 / 3, 2 / 3, 1.0, 1.0])
    assert novelty(["q"] * 4, texts, same_from=0.7) == [1.0] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"same_from": 1.5}, r"novelty.same_from=1.5: must be above 0 and at most 1"),
        ({"same_from": 0.5, "partition": f"{HERE}:prompt_is_q"}, "has same_from and partition, .* give one"),
    ],
)
def test_novelty_divides_a_group_in_one_way(settings, message):
    with pytest.raises(UserError, match=message):
        Rewards([f"{HERE}:length", "novelty"], [1.0, 1.0], None, 9, 100, {"novelty": settings})


@pytest.mark.parametrize(("weight", "power"), [(1.0, 1), (2.0, 2), (0.0, 0)])
def test_novelty_multiplies_the_sum_of_the_others(weight, power):
    """Its weight is the power. Groups are apart, though all completions have the same prompt."""
    own = Rewards([f"{HERE}:length", "novelty", f"{HERE}:prompt_is_q"], [2.0, weight, 1.0], None, 9, 100)
    total, by_name = own(REPEATED, "a test")
    new = [0.5, 0.5, 1.0, 0.5, 1.0, 0.5]
    assert by_name["novelty"].tolist() == new
    sums = [2 * len(row.completion) + 1 for row in REPEATED]
    assert total.tolist() == pytest.approx([x * y**power for x, y in zip(sums, new, strict=True)])


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["novelty"], [1.0], r"reward_funcs=\[novelty\]: novelty multiplies the sum .* none is given; add one"),
        ([f"{HERE}:length", "novelty"], [1.0, -1.0], r"weight of novelty is the power .* at least 0"),
    ],
)
def test_a_factor_needs_a_sum_and_a_power(names, weights, message):
    with pytest.raises(UserError, match=message):
        Rewards(names, weights, None, 9, 100)


def test_a_product_with_a_negative_reward_is_refused():
    """Times a novelty below 1, a negative reward would rise when completions repeat."""
    punished = Rewards([f"{HERE}:length", "novelty"], [-1.0, 1.0], None, 9, 100)
    message = (
        r"novelty multiplies the other rewards, and the sum of the other rewards is -1 at step 3, for .* leave novelty"
    )
    with pytest.raises(UserError, match=message):
        punished(REPEATED, "step 3")


def test_a_reward_that_multiplies_may_abstain(tmp_path):
    with forgotten_afterwards(tmp_path):
        register_reward("half_or_none", multiplies=True)(lambda completions: [0.5, None])
        register_reward("below", multiplies=True)(lambda completions: [1.0, -0.5])
        total, _ = Rewards([f"{HERE}:length", "half_or_none"], [1.0, 1.0], None, 9, 100)(SAMPLED, "a test")
        assert total.tolist() == [1.0, 4.0]
        with pytest.raises(UserError, match=r"below multiplies the other rewards, and it is -0\.5 at a test"):
            Rewards([f"{HERE}:length", "below"], [1.0, 1.0], None, 9, 100)(SAMPLED, "a test")
    nobody = Rewards([f"{HERE}:silent", "novelty"], [1.0, 1.0], None, 9, 100)
    with pytest.raises(UserError, match=r"no reward scores a completion of a test: .*:silent return None"):
        nobody(SAMPLED, "a test")


def test_a_setting_may_name_a_function():
    settings = {"novelty": {"partition": f"{HERE}:by_length"}}
    own = Rewards([f"{HERE}:length", "novelty"], [1.0, 1.0], None, 9, 100, settings)
    assert own(REPEATED[:3], "a test")[1]["novelty"].tolist() == [0.5, 0.5, 1.0]
    wrong = {7: "=7: not the name of a function; write module:function", f"{HERE}:absent": "has no absent",
             f"{HERE}:NOT_CALLABLE": "not a function"}  # fmt: skip
    for given, message in wrong.items():
        with pytest.raises(UserError, match=rf"grpo\.reward_settings\.novelty\.partition.*{message}"):
            RewardCall("novelty", {"partition": given})


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ([], [], "no reward given"),
        (["model"], [1.0, 2.0], r"reward_weights=\[1\.0, 2\.0\]: 2 weights for 1 rewards"),
        (["model", "model"], [1.0, 1.0], "model is named twice"),
        (["brevity"], [1.0], "brevity: not the name of a reward; write model, exact_match, f1, number, regex"),
        ([":f"], [1.0], "not the name of a reward"),
        (["nowhere.at_all:f"], [1.0], "nowhere.at_all:f: no module is named nowhere.at_all; run in"),
        ([f"{HERE}:absent"], [1.0], "has no absent"),
        ([f"{HERE}:NOT_CALLABLE"], [1.0], "not a function"),
        ([f"{HERE}:Judge"], [1.0], "not a function"),
        ([f"{HERE}:of_nothing"], [1.0], "takes neither prompts nor completions"),
    ],
)
def test_invalid_reward_names_are_refused(names, weights, message):
    with pytest.raises(UserError, match=message):
        Rewards(names, weights, None, 9, 100)


def test_a_function_is_found_by_its_name():
    assert load_reward("math:sqrt").define is math.sqrt
    assert load_reward("kat.grpo.rewards:number") is REWARDS["number"] is load_reward("number")
    assert load_reward("kat.grpo.rewards:exact_match") is REWARDS["exact_match"]
    assert REWARDS["format"].define is shipped.format


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "raises SyntaxError when it is imported"),
        ("import absent_module\n", "needs a module that is not there"),
        ("SCALE = {}.nothing\n", "raises AttributeError when it is imported"),
    ],
)
def test_an_error_in_the_users_module_is_named(tmp_path, monkeypatch, text, message):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_rewards.py").write_text(text)
    with pytest.raises(UserError, match=f"grpo.reward_funcs: broken_rewards:f: {message}"):
        load_reward("broken_rewards:f")


def test_a_function_in_the_working_folder_is_found(tmp_path, monkeypatch):
    """Without plugins=, and in any folder: the installed command does not start in it."""
    (tmp_path / "lone_rewards.py").write_text("def brevity(prompts, completions):\n    return [0.0] * len(prompts)\n")
    monkeypatch.chdir(tmp_path)
    with forgotten_afterwards(tmp_path):
        assert load_reward("lone_rewards:brevity").define(["p"], ["c"]) == [0.0]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing", UserError, "returned 0 numbers for 2 completions"),
        ("words", UserError, "must return a list of numbers, got an error"),
        ("no_list", UserError, "must return a list of numbers, got an error"),
        ("nan", NonFiniteError, "the reward .*nan is nan at a test, for the prompt p2 'r' and the completion 'abcd'"),
    ],
)
def test_invalid_return_values_are_refused(name, error, message):
    with pytest.raises(error, match=message):
        rewards(name)(SAMPLED, "a test")


# What a function receives

SEEN: list[tuple] = []


def only_completions(completions):
    SEEN.append((completions,))
    return [0.0] * len(completions)


def of_columns(completions, answer, level=7, absent="default", **rest):
    SEEN.append((completions, answer, level, absent, rest))
    return [0.0] * len(completions)


def of_ids(completion_ids, *, id):
    SEEN.append((completion_ids, id))
    return [0.0] * len(completion_ids)


def positions_and_columns(texts, answers, level):
    SEEN.append((texts, answers, level))
    return [0.0] * len(texts)


def of_missing(completions, solution):
    return [0.0] * len(completions)


@pytest.fixture
def seen():
    SEEN.clear()
    return SEEN


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("only_completions", (["ab", "abcd"],)),
        ("of_ids", ([[3], [5, 6]], ["p1", "p2"])),
        ("positions_and_columns", (["q", "r"], ["ab", "abcd"], [1, None])),
        (
            "of_columns",
            (["ab", "abcd"], [["ab", "x"], ["y"]], [1, None], "default",
             {"prompts": ["q", "r"], "completion_ids": [[3], [5, 6]], "id": ["p1", "p2"]}),
        ),
    ],
)  # fmt: skip
def test_a_function_gets_what_its_signature_takes(seen, name, expected):
    assert rewards(name)(SAMPLED, "a test")[0].tolist() == [0.0, 0.0]
    assert seen == [expected]


def test_arguments_of_other_names_are_prompts_and_completions():
    assert rewards("by_position")(SAMPLED, "a test")[0].tolist() == [12.0, 4.0]


def test_a_missing_column_names_those_that_exist():
    call = RewardCall(f"{HERE}:of_missing", {})
    with pytest.raises(
        UserError, match=r"needs the column solution, and the prompts have only id, text, source, .*, a, b;"
    ):
        call.require_columns([Prompt("1", [], "x", columns={"a": 1, "b": 2})])
    call.require_columns([Prompt("1", [], "x", columns={"solution": 1})])


def test_a_setting_gives_an_argument_that_is_no_column(seen):
    Rewards([f"{HERE}:of_columns"], [1.0], None, 9, 1, {f"{HERE}:of_columns": {"absent": 3, "level": 5}})(SAMPLED, "")
    assert seen[0][2:4] == (5, 3)  # the setting wins over the column


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regex": {}}, r"regex: needs the setting pattern; write 'grpo.reward_settings={regex: {pattern: \.\.\.}}'"),
        ({"regex": {"pattern": "("}}, "pattern='\\(': not a regular expression"),
        ({"regex": {"pattern": 3}}, "grpo.reward_settings.regex.pattern=3: expected a text"),
        (
            {"regex": {"pattern": "a", "flags": 1}},
            r"regex.flags=1: regex has no such setting \(its settings: pattern\)",
        ),
        ({"regex": {"pattern": "a"}, "number": {"tolerance": -1}}, "number.tolerance=-1: must be 0"),
        ({"regex": {"pattern": "a"}, "number": {"tolerance": True}}, "number.tolerance=True: expected a number"),
        ({"regex": {"pattern": "a"}, "length": {"target": 0}}, "reward_settings.length.target=0: must be at least 1"),
        ({"regex": {"pattern": "a"}, "length": {"target": 2.5}}, "length.target=2.5: expected a whole number"),
        (
            {"regex": {"pattern": "a"}, "length": {"target": 2, "unit": "lines"}},
            "unit=lines: unknown; use words or tok",
        ),
        ({"regex": {"pattern": "a"}, "f1": {}}, "grpo.reward_settings.f1: f1 is not a function of grpo.reward_funcs="),
        ({"regex": {"pattern": "a"}, "model": {}}, "grpo.reward_settings.model: model is not a function"),
    ],
)
def test_settings_are_checked_against_the_signature(settings, message):
    names = ["model", "regex", *(name for name in ("number", "length") if name in settings)]
    with pytest.raises(UserError, match=message):
        calls_of(names, {"length": {"target": 2}, **settings} if "length" in names else settings)


# Reference answers


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []),
        ("", []),
        (" a ", [" a "]),
        (["a", "b"], ["a", "b"]),
        ([], []),
        (42, ["42"]),
        (0.5, ["0.5"]),
        ([1, "x", None], ["1", "x"]),
        ({"text": ["a"], "answer_start": [3]}, ["a"]),
    ],
)
def test_reference_answers_come_in_any_form(value, expected):
    assert reference_texts(value) == expected


@pytest.mark.parametrize("value", [True, {"a": 1}, [{"text": "a"}]])
def test_other_values_are_no_reference_answers(value):
    with pytest.raises(ValueError, match="has no reference answer"):
        reference_texts(value)


def matches(columns, settings=None):
    """Return whether the completion 'ab' is an exact match with the columns."""
    both = Rewards(["exact_match", f"{HERE}:length"], [1.0, 0.0], None, 9, 1, {"exact_match": settings or {}})
    return both([Sampled("q", (1,), "ab", (1,), columns)], "")[1]["exact_match"].item()


def test_references_are_found_in_the_first_of_three_columns():
    assert matches({"references": ["ab"], "answer": "no", "answers": "no"}) == 1.0
    assert matches({"references": ["no"], "answer": "ab", "answers": "ab"}) == 0.0
    assert matches({"answer": "ab", "answers": "no"}) == 1.0
    assert matches({"answers": ["no", "AB!"]}) == 1.0
    assert matches({"answer": "no", "gold": "ab"}, {"references": "gold"}) == 1.0
    assert math.isnan(matches({"answer": None, "answers": "ab"}))  # the column decides for all rows
    with pytest.raises(
        UserError, match="needs the column references or answer or answers, and the prompts have only gold"
    ):
        matches({"gold": "ab"})
    with pytest.raises(UserError, match="needs the column silver, and the prompts have only gold"):
        matches({"gold": "ab"}, {"references": "silver"})


def prompts_with(*answers):
    return [Prompt(f"p{i}", [], "x", columns={"answer": answer}) for i, answer in enumerate(answers)]


def test_references_are_checked_before_training(capfd):
    call = RewardCall("exact_match", {})
    assert call.require_columns(prompts_with("a", ["b"])) == set()
    assert "warning" not in capfd.readouterr().err
    assert call.require_columns(prompts_with("a", None, [])) == {"p1", "p2"}
    assert "2 of 3 prompts have no reference answer in the column answer, so exact_match" in capfd.readouterr().err
    with pytest.raises(UserError, match="the column answer has no reference answer for any prompt; name another one"):
        call.require_columns(prompts_with(None, []))
    with pytest.raises(
        UserError, match=r"the column answer of the prompt p1 is {'a': 1}, which has no reference answer"
    ):
        call.require_columns(prompts_with("a", {"a": 1}))


# None


def first_only(completions):
    return [2.0, *[None] * (len(completions) - 1)]


def second_only(completions):
    return [None, 3.0]


def test_none_leaves_a_completion_to_the_other_rewards():
    total, by_name = rewards("first_only", "length", weights=[10.0, 1.0])(SAMPLED, "a test")
    assert total.tolist() == [22.0, 4.0]
    assert by_name[f"{HERE}:first_only"].isnan().tolist() == [False, True]
    assert rewards("first_only", "second_only")(SAMPLED, "a test")[0].tolist() == [2.0, 3.0]


def test_a_completion_without_any_reward_is_refused():
    with pytest.raises(
        UserError, match=r"no reward scores a completion of step 3: .*first_only return None for .*p2 'r'"
    ):
        rewards("first_only")(SAMPLED, "step 3")


# Async functions

ORDER: list[str] = []


async def waits(completions, **_):
    ORDER.append("async began")
    await asyncio.sleep(0.05)
    ORDER.append("async ended")
    return [float(len(text)) for text in completions]


async def also_waits(prompts, completions):
    await asyncio.sleep(0.05)
    return [1.0 for _ in prompts]


def slow(prompts, completions):
    deadline = time.monotonic() + 5
    while "async ended" not in ORDER and time.monotonic() < deadline:
        time.sleep(0.001)
    ORDER.append("sync ended")
    return [0.5 for _ in prompts]


LOOPS: set[int] = set()


async def notes_its_loop(completions):
    LOOPS.add(id(asyncio.get_running_loop()))
    return [0.0 for _ in completions]


async def async_fails(completions, level):
    await asyncio.sleep(0)
    return [1.0 / one for one in level]


def test_async_functions_run_together_with_others():
    ORDER.clear()
    both = rewards("waits", "slow", "also_waits", "length", weights=[1.0, 1.0, 100.0, 1000.0])
    assert both(SAMPLED, "a test")[0].tolist() == [2.5 + 100 + 2000, 4.5 + 100 + 4000]
    assert ORDER == ["async began", "async ended", "sync ended"]


def test_async_functions_keep_their_event_loop():
    """Clients keep connections open between steps, which belong to a loop. A loop may run in the caller's thread."""
    one = rewards("notes_its_loop")

    async def from_a_notebook():
        return one(SAMPLED, "a test")[0].tolist()

    assert one(SAMPLED, "a test")[0].tolist() == asyncio.run(from_a_notebook()) == [0.0, 0.0]
    assert len(LOOPS) == 1
    assert "async rewards" in {thread.name for thread in threading.enumerate()}


# Exceptions


def fails_at_none(completions, level):
    return [1.0 + one for one in level]


def fails_for_two(completions):
    if len(completions) == 2:
        raise RuntimeError("two are too many")
    return [0.0 for _ in completions]


def out_of_memory(completions):
    raise torch.OutOfMemoryError("CUDA out of memory")


def has_a_message(completions):
    raise UserError("key: missing; set it")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fails_at_none",
            r"the reward .*:fails_at_none raises TypeError \(unsupported operand .*\) in test_rewards.py, line \d+ "
            r"at step 4, for the prompt p2 'r' and the completion 'abcd'; fix .*fails_at_none in .*, or the data that "
            r"it gets\. "
            "The run has stopped and its last checkpoint is kept",
        ),
        ("async_fails", r"raises TypeError .* at step 4, for the prompt p2 'r' and the completion 'abcd'"),
        (
            "fails_for_two",
            r"RuntimeError \(two are too many\).*for all 2 completions together, but for none of them alone",
        ),
        ("has_a_message", "^key: missing; set it$"),
    ],
)
def test_an_exception_names_the_row_that_fails(name, message):
    with pytest.raises(UserError, match=message):
        rewards(name)(SAMPLED, "step 4")


def test_an_exception_names_the_first_of_several_rows():
    last = replace(SAMPLED[1], completion="the last")
    with pytest.raises(UserError, match="for the prompt p2 'r' and the completion 'abcd'"):
        rewards("fails_at_none")([*SAMPLED, last], "step 4")


def test_long_texts_are_shortened_in_messages():
    long = Sampled("q" * 500, (1,), "c" * 500, (1,), {"level": None})
    with pytest.raises(UserError) as caught:
        rewards("fails_at_none")([long], "step 4")
    assert "'" + "q" * 200 + "...'" in str(caught.value) and len(str(caught.value)) < 900


def test_memory_that_runs_out_is_no_fault_of_the_function():
    with pytest.raises(torch.OutOfMemoryError):
        rewards("out_of_memory")(SAMPLED, "step 4")


# The registry


def test_names_and_needs_are_checked_at_registration():
    with pytest.raises(UserError, match="reward model: this name is reserved"):
        register_reward("model")
    with pytest.raises(UserError, match="reward other: needs references, which is not an argument of its function"):
        register_reward("other", needs=("references",))(length)
    with pytest.raises(UserError, match="both register this name; rename one"):
        register_reward("number")(length)
    assert "other" not in REWARDS
