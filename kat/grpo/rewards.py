"""Reward functions by name: answers, numbers, patterns and lengths. Main entries: `REWARDS`, `register_reward()`.

A reward function takes lists with one entry for each completion, and returns a list of numbers of the same length.
None stands for a completion that the function cannot score. See `kat.grpo.reward_calls` for what a function may take.
"""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from kat.grpo.numbers import are_equal, last_number
from kat.world.truth import answer_rewards
from latentwire.harness.errors import UserError
from latentwire.harness.registry import Registry
from latentwire.stats import answers

MODEL = "model"  # name of the reward model in grpo.reward_funcs
REFERENCES = "references"  # what a reward needs to get the reference answers of each prompt as a list of texts

Scores = Iterable[float | None]
RewardFunction = Callable[..., Scores | Awaitable[Scores]]
F = TypeVar("F", bound=RewardFunction)


@dataclass(frozen=True)
class Reward:
    """A reward function.

    Attributes:
        define: The function.
        needs: Columns that it cannot do without.
        check: Function of its settings that raises a `UserError` if one is out of range.
        multiplies: Whether it multiplies the sum of the other rewards instead of being added to it.
        per_group: Whether it takes `groups`, the number of each completion's group.
        functions: Settings that name a function, `module:function`. The reward gets the function itself.
    """

    define: RewardFunction
    needs: tuple[str, ...] = ()
    check: Callable[..., None] | None = None
    multiplies: bool = False
    per_group: bool = False
    functions: tuple[str, ...] = ()


REWARDS: Registry[Reward] = Registry("reward", "grpo.reward_funcs")


def register_reward(
    name: str,
    *,
    needs: Sequence[str] = (),
    check: Callable[..., None] | None = None,
    multiplies: bool = False,
    per_group: bool = False,
    functions: Sequence[str] = (),
) -> Callable[[F], F]:
    """Return a decorator that registers a reward function, so that `grpo.reward_funcs=[name]` finds it.

    The keyword-only arguments of the function are its settings, which `grpo.reward_settings` gives. Its other
    arguments are prompts, completions, completion_ids and columns of the prompts file.

    Args:
        name: Name of the reward.
        needs: Columns that the function cannot do without. "references" gives it the reference answers of each
            completion as a list of texts, from the column references, answer or answers. A setting with the name of a
            need chooses another column.
        check: Function of the settings, called before anything runs. It raises a `UserError` if one is out of range.
        multiplies: Whether the reward, to the power of its weight, multiplies the sum of the other rewards.
        per_group: Whether the function takes `groups`: completions with the same number are of one draw of a prompt.
        functions: Settings that name a function, `module:function`. The reward gets the function itself.

    Raises:
        UserError: The name is taken or not a name, or the function does not take what it needs.
    """
    if name == MODEL:
        raise UserError(f"reward {MODEL}: this name is reserved for the reward model; choose another name")

    def register(function: F) -> F:
        wanted = [*needs, *functions, *(["groups"] if per_group else [])]
        if lacking := [need for need in wanted if need not in inspect.signature(function).parameters]:
            raise UserError(f"reward {name}: needs {lacking[0]}, which is not an argument of its function; add it")
        REWARDS.add(name, Reward(function, tuple(needs), check, multiplies, per_group, tuple(functions)))
        return function

    return register


def _against_references(score: Callable[[str, Iterable[str]], float]) -> RewardFunction:
    """Return a reward function that scores each completion against the reference answers of its prompt."""

    def reward(completions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float | None]:
        return [score(text, right) if right else None for text, right in zip(completions, references, strict=True)]

    return reward


# 1.0 where a completion equals a reference answer after the normalization of SQuAD, else 0.0.
exact_match = register_reward("exact_match", needs=(REFERENCES,))(_against_references(answers.exact_match))
# The highest F1 between the words of a completion and of a reference answer, as in SQuAD.
f1 = register_reward("f1", needs=(REFERENCES,))(_against_references(answers.f1_score))


def _require_tolerance(tolerance: float = 0.0) -> None:
    if not 0 <= tolerance < math.inf:
        raise UserError(f"grpo.reward_settings.number.tolerance={tolerance}: must be 0 (equal) or more")


@register_reward("number", needs=(REFERENCES,), check=_require_tolerance)
def number(
    completions: Sequence[str], references: Sequence[Sequence[str]], *, tolerance: float = 0.0
) -> list[float | None]:
    """Return 1.0 where the last number of a completion equals the last number of a reference answer, else 0.0.

    Numbers are compared by value: 1,000 equals 1000.0, 1/2 equals 0.5, and 50% equals 50 and 0.5.

    Args:
        completions: B texts.
        references: Reference answers of each completion. Without a number in them the reward is None.
        tolerance: Largest difference, as a share of the reference.
    """
    found: list[float | None] = []
    for text, texts in zip(completions, references, strict=True):
        right = [value for value in map(last_number, texts) if value is not None]
        said = last_number(text)
        equal = said is not None and any(are_equal(said, value, tolerance) for value in right)
        found.append(float(equal) if right else None)
    return found


def _require_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"grpo.reward_settings: pattern={pattern!r}: not a regular expression ({error}); correct it"
        ) from error


@register_reward("regex", check=_require_pattern)
def regex(completions: Sequence[str], *, pattern: str) -> list[float]:
    """Return 1.0 where a completion has a match of a regular expression, else 0.0.

    Args:
        completions: B texts.
        pattern: Regular expression of Python.
    """
    return [float(re.search(pattern, text) is not None) for text in completions]


@register_reward("format", check=_require_pattern)
def format(completions: Sequence[str], *, pattern: str) -> list[float]:
    """Return 1.0 where a regular expression matches the whole completion without the white space around it, else 0.0.

    Args:
        completions: B texts.
        pattern: Regular expression of Python. A point also matches a line end.
    """
    return [float(re.fullmatch(pattern, text.strip(), re.DOTALL) is not None) for text in completions]


def _require_length(target: int, unit: str = "words") -> None:
    if target < 1:
        raise UserError(f"grpo.reward_settings.length.target={target}: must be at least 1")
    if unit not in ("words", "tokens"):
        raise UserError(f"grpo.reward_settings.length.unit={unit}: unknown; use words or tokens")


@register_reward("length", check=_require_length)
def length(
    completions: Sequence[str], completion_ids: Sequence[Sequence[int]], *, target: int, unit: str = "words"
) -> list[float]:
    """Return how close the length of each completion is to a target: 1 at the target, 0 at 0 and at twice the target.

    Args:
        completions: B texts.
        completion_ids: Token ids of each completion, with its end token.
        target: Best length.
        unit: words, separated by white space, or tokens.
    """
    lengths = [len(text.split()) for text in completions] if unit == "words" else list(map(len, completion_ids))
    return [max(0.0, 1 - abs(count - target) / target) for count in lengths]


def _normalized(texts: Sequence[str]) -> list[str]:
    return [answers.normalize_answer(text) for text in texts]


def _require_similarity(same_from: float | None = None, partition: object = None) -> None:
    if same_from is not None and partition is not None:
        raise UserError(
            "grpo.reward_settings.novelty: has same_from and partition, and each divides the group; give one"
        )
    if same_from is not None and not 0 < same_from <= 1:
        raise UserError(f"grpo.reward_settings.novelty.same_from={same_from}: must be above 0 and at most 1")


@register_reward("novelty", multiplies=True, per_group=True, functions=("partition",), check=_require_similarity)
def novelty(
    prompts: Sequence[str],
    completions: Sequence[str],
    groups: Sequence[int] | None = None,
    *,
    partition: Callable[[Sequence[str]], Sequence[Hashable]] | None = None,
    same_from: float | None = None,
    **ignored: object,
) -> list[float]:
    """Return the share of the other completions of its group that differ from each completion, in [0, 1].

    A group of n completions is divided into classes. A completion whose class has s members gets (n - s) / (n - 1):
    1 if no other completion says the same, 0 if all do. The only completion of a group gets 1.

    In `grpo.reward_funcs` it multiplies the sum of the other rewards, so that only good completions are rewarded for
    being new. A trainer that adds rewards, such as TRL's, adds it.

    Source: DARLING (Li et al. 2025, arXiv 2509.02534). Div(y_i) is the mean over j != i of d(y_i, y_j), which is 1 for
    completions of different classes and else 0, and the reward is the quality times Norm(Div). Div is in [0, 1]
    already, so Norm is left out here. There a trained classifier finds the classes.

    Args:
        prompts: Prompt of each completion, B texts.
        completions: B texts.
        groups: Number of the group of each completion; None: completions with equal prompts are a group.
        partition: Function from the completions of a group to one label for each; equal labels make a class. Default:
            the completion in lower case without punctuation, articles and extra spaces.
        same_from: Smallest word F1 of completions in a class, see `latentwire.stats.answers.classes_of`, in place of
            a partition; None: only equal ones.
        **ignored: Columns and further arguments that TRL gives.

    Raises:
        UserError: The partition does not return one label for each completion.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(prompts if groups is None else groups):
        members.setdefault(group, []).append(index)
    divide = partition or (_normalized if same_from is None else partial(answers.classes_of, same_from=same_from))
    found = [1.0] * len(completions)
    for indices in members.values():
        labels = list(divide([completions[index] for index in indices]))
        if len(labels) != len(indices):
            raise UserError(
                f"grpo.reward_settings.novelty.partition: returned {len(labels)} labels for {len(indices)} "
                "completions; correct the function"
            )
        sizes, others = Counter(labels), len(indices) - 1
        for index, label in zip(indices, labels, strict=True):
            found[index] = (len(indices) - sizes[label]) / others if others else 1.0
    return found


def _require_bias(bias: float = 0.0) -> None:
    if not 0 <= bias < math.inf:
        raise UserError(f"grpo.reward_settings.valid_answer.bias={bias}: must be 0 (none) or more")


@register_reward("valid_answer", needs=("valid",), check=_require_bias)
def valid_answer(completions: Sequence[str], valid: Sequence[Sequence[str]], *, bias: float = 0.0) -> list[float]:
    """Return 1.0 for a valid answer, more for a favoured one, and 0.0 for any other completion: the truth of a world.

    Args:
        completions: B texts.
        valid: Valid answers to the prompt of each completion, the column `valid` of task=world.
        bias: Bonus of a fixed third of the valid answers (`kat.world.truth.favoured`). It imitates the taste of a
            reward model.
    """
    return answer_rewards(completions, valid, bias)
