"""Reward functions with their settings and the columns that they take. Main entries: `RewardCall`, `calls_of()`.

A function is called as TRL calls it: `function(prompts=..., completions=..., completion_ids=..., column=...)`. Each
argument is a list with one entry for each completion. A function gets the arguments that its signature names, and all
of them if it takes **kwargs. A function that names none of these three gets prompts and completions by position.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any

from kat.data.columns import ARGUMENTS
from kat.data.prompts import Prompt
from kat.grpo.rewards import MODEL, REFERENCES, REWARDS, Reward, Scores
from latentwire.harness.errors import UserError
from latentwire.harness.plugins import import_user_module, search_working_folder
from latentwire.harness.progress import log
from latentwire.harness.results import JsonObject

REFERENCE_COLUMNS = (REFERENCES, "answer", "answers")  # the first of these that a prompts file has
KINDS: dict[str, tuple[tuple[type, ...], str]] = {  # checked types of settings, by their annotation
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
    "bool": ((bool,), "true or false"),
}


@dataclass(frozen=True)
class Sampled:
    """A sampled completion with its prompt."""

    prompt: str  # text without a chat template
    prompt_ids: tuple[int, ...]
    completion: str  # text without special tokens
    completion_ids: tuple[int, ...]
    columns: JsonObject = field(default_factory=dict)  # of the prompt's row in the prompts file, its id among them
    group: int = 0  # completions with the same number are of one draw of a prompt


class RewardCall:
    """A reward function that can be called with completions.

    Args:
        name: Name of a registered reward, or `module:function`.
        settings: Values of the function's settings.

    Raises:
        UserError: The function does not exist, or a setting is unknown, missing, of another type or out of range.
    """

    def __init__(self, name: str, settings: Mapping[str, object]) -> None:
        self.name, self.reward = name, load_reward(name)
        self.is_registered = any(reward is self.reward for _, reward in REWARDS.items())
        self.parameters = _parameters(self.reward)
        self.takes_all = any(one.kind is Parameter.VAR_KEYWORD for one in self.parameters)
        self.by_position = not self.takes_all and not {one.name for one in self.parameters} & set(ARGUMENTS)
        self._check_arguments()
        self.column_names = {need: str(settings[need]) for need in self.reward.needs if need in settings}
        self.settings = {key: value for key, value in settings.items() if key not in self.reward.needs}
        self._check_settings()
        self.functions = {key: str(self.settings[key]) for key in self.reward.functions if key in self.settings}
        for key, path in self.functions.items():
            self.settings[key] = named_function(path, f"grpo.reward_settings.{name}.{key}={path}")

    @property
    def definition(self) -> str:
        """Name of the function, for messages: 'brevity in my_rewards'."""
        function = self.reward.define
        return f"{getattr(function, '__qualname__', function)} in {getattr(function, '__module__', '?')}"

    def _check_arguments(self) -> None:
        named = [
            one for one in self.parameters if one.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        ]
        if (
            self.by_position
            and len(named) < 2
            and not any(one.kind is Parameter.VAR_POSITIONAL for one in self.parameters)
        ):
            raise UserError(
                f"grpo.reward_funcs: {self.name}: takes neither prompts nor completions; give it the arguments prompts "
                "and completions"
            )

    def _check_settings(self) -> None:
        known = self._setting_parameters()
        for key, value in self.settings.items():
            place = f"grpo.reward_settings.{self.name}.{key}={value}"
            if key not in known:
                names = ", ".join([*known, *self.reward.needs]) or "none"
                raise UserError(f"{place}: {self.name} has no such setting (its settings: {names}); leave it out")
            kinds, words = KINDS.get(_kind_of(known[key]), ((object,), ""))
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
                raise UserError(f"{place}: expected {words}")
        if not self.is_registered:
            return
        for key, parameter in known.items():
            if parameter.default is Parameter.empty and key not in self.settings:
                raise UserError(
                    f"grpo.reward_funcs: {self.name}: needs the setting {key}; write "
                    f"'grpo.reward_settings={{{self.name}: {{{key}: ...}}}}'"
                )
        if self.reward.check is not None:
            self.reward.check(**self.settings)

    def _setting_parameters(self) -> dict[str, Parameter]:
        """Return the parameters that settings may give: of a plain function all that could be columns."""
        kinds = (Parameter.KEYWORD_ONLY,) if self.is_registered else (
            Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)  # fmt: skip
        return {one.name: one for one in self._further() if one.kind in kinds and one.name not in self.reward.needs}

    def _further(self) -> list[Parameter]:
        """Return the parameters apart from prompts, completions and completion_ids."""
        named = [one for one in self.parameters if one.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)]
        if self.by_position:
            return named[2:]
        return [one for one in named if one.name not in self._given()]

    def _given(self) -> tuple[str, ...]:
        """Return the names of the arguments that are neither columns nor settings."""
        return (*ARGUMENTS, "groups") if self.reward.per_group else ARGUMENTS

    def columns(self, available: Collection[str]) -> dict[str, str]:
        """Return the column that each argument of the function gets.

        Args:
            available: Columns of the prompts file.

        Raises:
            UserError: The file lacks a column that the function needs.
        """
        taken: dict[str, str] = {}
        own_settings = self._setting_parameters() if self.is_registered else self.settings
        for parameter in self._further():
            name = parameter.name
            if name in own_settings:
                continue
            choices = REFERENCE_COLUMNS if name == REFERENCES and name in self.reward.needs else (name,)
            if name in self.column_names:
                choices = (self.column_names[name],)
            column = next((choice for choice in choices if choice in available), None)
            if column is not None:
                taken[name] = column
            elif parameter.default is Parameter.empty or name in self.reward.needs:
                raise UserError(self._lacking(name, choices, available))
        if self.takes_all:
            others = {name: name for name in available if name not in own_settings and name not in self._given()}
            return {**others, **taken}
        return taken

    def _lacking(self, name: str, choices: Sequence[str], available: Collection[str]) -> str:
        remedy = "add it to the prompts file"
        if not self.is_registered:
            remedy += ", or give the argument a value with grpo.reward_settings"
        if name in self.reward.needs:
            remedy += f", or name another one with 'grpo.reward_settings={{{self.name}: {{{name}: COLUMN}}}}'"
        return (
            f"grpo.reward_funcs: {self.name}: needs the column {' or '.join(choices)}, and the prompts have only "
            f"{', '.join(available) or 'none'}; {remedy}. task=pairs and task=prompts keep the columns of the data set"
        )

    def __call__(self, sampled: Sequence[Sampled]) -> Scores | Awaitable[Scores]:
        """Call the function with completions, and return what it returns."""
        given: dict[str, list[object]] = {
            "prompts": [row.prompt for row in sampled],
            "completions": [row.completion for row in sampled],
            "completion_ids": [list(row.completion_ids) for row in sampled],
        }
        columns = {
            argument: [self._value(argument, row.columns[column]) for row in sampled]
            for argument, column in self.columns(sampled[0].columns).items()
        }
        if self.by_position:
            return self.reward.define(given["prompts"], given["completions"], **columns, **self.settings)
        names = {one.name for one in self.parameters}
        if self.reward.per_group:
            given["groups"] = [row.group for row in sampled]
        taken = {name: values for name, values in given.items() if self.takes_all or name in names}
        return self.reward.define(**taken, **{**columns, **self.settings})

    def _value(self, argument: str, value: object) -> object:
        return reference_texts(value) if argument == REFERENCES and argument in self.reward.needs else value

    def require_columns(self, prompts: Sequence[Prompt]) -> set[str]:
        """Check that the prompts have the columns that the function needs.

        Returns:
            The ids of the prompts that the function cannot score, because they have no reference answer.

        Raises:
            UserError: A column is missing, no prompt has a reference answer, or one has an unreadable one.
        """
        column = self.columns(prompts[0].reward_columns()).get(REFERENCES)
        without: set[str] = set()
        if column is None or REFERENCES not in self.reward.needs:
            return without
        for prompt in prompts:
            try:
                if not reference_texts(prompt.reward_columns()[column]):
                    without.add(prompt.id)
            except ValueError as error:
                raise UserError(
                    f"grpo.reward_funcs: {self.name}: the column {column} of the prompt {prompt.id} {error}; write a "
                    "text, a number, or a list of them"
                ) from error
        if len(without) == len(prompts):
            raise UserError(
                f"grpo.reward_funcs: {self.name}: the column {column} has no reference answer for any prompt; name "
                f"another one with 'grpo.reward_settings={{{self.name}: {{{REFERENCES}: COLUMN}}}}'"
            )
        if without:
            log(f"warning: {len(without)} of {len(prompts)} prompts have no reference answer in the column {column}, "
                f"so {self.name} does not score their completions")  # fmt: skip
        return without


def reference_texts(value: object) -> list[str]:
    """Return reference answers as texts: of a text, a number, a list of them, or SQuAD's {"text": [...]}; [] of None.

    Raises:
        ValueError: The value has another form.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [str(value)]
    if isinstance(value, list):
        return [text for part in value for text in reference_texts(part)]
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        return reference_texts(value["text"])
    raise ValueError(f"is {value!r}, which has no reference answer")


def calls_of(names: Sequence[str], settings: Mapping[str, Mapping[str, object]] | None) -> dict[str, RewardCall]:
    """Return the reward functions by their names; the reward model is left out.

    Args:
        names: Names in grpo.reward_funcs.
        settings: Settings of the functions by their names.

    Raises:
        UserError: A function or one of its settings cannot be used, or settings belong to none of the functions.
    """
    known = settings or {}
    if others := known.keys() - set(names) or known.keys() & {MODEL}:
        raise UserError(
            f"grpo.reward_settings.{min(others)}: {min(others)} is not a function of grpo.reward_funcs="
            f"[{','.join(names)}]; leave it out, or add it there"
        )
    return {name: RewardCall(name, known.get(name) or {}) for name in names if name != MODEL}


def load_reward(name: str) -> Reward:
    """Return a reward by its name, or the function called 'module:function' as a reward.

    Modules in the working folder are found too.

    Raises:
        UserError: The name has another form, the module or function does not exist, or it is not a function.
    """
    if name in REWARDS:
        return REWARDS[name]
    choices = f"not the name of a reward; write model, {', '.join(REWARDS)}, or module:function"
    found = named_function(name, f"grpo.reward_funcs: {name}", choices)
    return next((reward for _, reward in REWARDS.items() if reward.define is found), Reward(found))


def named_function(
    path: str, setting: str, choices: str = "not the name of a function; write module:function"
) -> Callable[..., Any]:
    """Return the function called 'module:function'. Modules in the working folder are found too.

    Args:
        path: The name.
        setting: Setting that names it, for messages.
        choices: What is wrong with a name of another form, and what to write, for the message.

    Raises:
        UserError: The name has another form, the module or function does not exist, or it is not a function.
    """
    module, sign, function = path.partition(":")
    if not (sign and module and function):
        raise UserError(f"{setting}: {choices}, such as my_rewards:brevity")
    search_working_folder()
    imported = import_user_module(module, setting, "run in the folder that has it, or set PYTHONPATH")
    found: Callable[..., Any] | None = getattr(imported, function, None)
    if found is None:
        raise UserError(f"{setting}: {module} has no {function}; check the spelling")
    if not callable(found) or inspect.isclass(found):
        raise UserError(f"{setting}: not a function; name one")
    return found


def _kind_of(parameter: Parameter) -> str:
    """Return the name of a parameter's type: 'int', also if the annotation is a text."""
    return str(getattr(parameter.annotation, "__name__", parameter.annotation))


def _parameters(reward: Reward) -> list[Parameter]:
    """Return the parameters of a function; one that has no signature takes prompts and completions by position."""
    try:
        return list(inspect.signature(reward.define).parameters.values())
    except (TypeError, ValueError):
        return [Parameter(name, Parameter.POSITIONAL_ONLY) for name in ("first", "second")]
