"""Rewards by the command line: columns from the data to a function, prompts of one's own, plugins and errors."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from kat.data.prompts import prompt_id
from tests.helpers.files import read_rows
from tests.helpers.programs import start

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    "model=tiny_random",
    "device=cpu",
    "sampler=uniform",
    "held_out=0.3",
    "steps=2",
    "checkpoint_every=1",
    "batch_tokens=256",
    "tuning.blocks=1",
    "grpo.beta=0",
    "grpo.prompts_per_step=2",
    "grpo.num_generations=3",
    "grpo.max_completion_length=4",
    "grpo.eval_prompts=3",
    "grpo.eval_generations=2",
    "grpo.eval_every=2",
]
RUN = Path("outputs/grpo/uniform_seed0")
NUMBERS = range(16)


def question(number: int) -> str:
    return f"What is {number} plus one?"


def write(path: str, rows: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def train(trains, tmp_path):
    """Run train.py with the small settings in a folder that has pairs with answers and a prompts file."""
    pairs = [{"prompt": question(n), "chosen": f"{n + 1}", "rejected": "no", "answer": f"{n + 1}"} for n in NUMBERS]
    write("pairs.jsonl", pairs)
    write("my.jsonl", [{"prompt": question(n), "solution": n + 1} for n in NUMBERS])
    return lambda *arguments: trains(*SMALL, *arguments)


def own_answer(prompts, completions, completion_ids, answer, id):
    """Check that every completion came with the columns of its own prompt; score half of them."""
    for prompt, right, name in zip(prompts, answer, id, strict=True):
        assert prompt == question(int(right) - 1) and name == prompt_id([{"role": "user", "content": prompt}])
    assert all(ids and len(ids) <= 4 for ids in completion_ids)
    with Path("seen.txt").open("a") as file:
        file.writelines(f"{name}\n" for name in id)
    return [len(text) / 10 if i % 2 else None for i, text in enumerate(completions)]


async def also(completions):
    return [float(len(text) % 3) for text in completions]


def fails_in_step_two(completions, id):
    seen = Path("seen.txt")
    with seen.open("a") as file:
        file.write(".")
    if len(completions) > 1 and len(seen.read_text()) == 3:  # the first evaluation, step 1, step 2
        raise RuntimeError("no answer from the server")
    if len(completions) == 1 and len(seen.read_text()) == 5:
        raise ValueError("a row that cannot be scored")
    return [float(len(text)) for text in completions]


def needs_more(completions, proof):
    return [0.0 for _ in completions]


HERE = __name__


@pytest.mark.slow
def test_every_completion_comes_with_its_own_columns(train):
    functions = f"grpo.reward_funcs=[{HERE}:own_answer,{HERE}:also]"
    status, _, err = train("pairs=file", "path=pairs.jsonl", functions, "grpo.reward_weights=[1,1]")
    assert status == 0, err
    assert "columns for reward functions: answer" in err
    prompts = {row["id"]: row for row in read_rows("outputs/kat/prompts_all.jsonl")}
    assert {row["text"]: row["answer"] for row in prompts.values()} == {question(n): str(n + 1) for n in NUMBERS}
    seen = Path("seen.txt").read_text().split()
    assert len(seen) == 2 * 2 * 3 + 2 * 3 * 2  # 2 steps of 2 prompts, 2 evaluations of 3 prompts
    assert set(seen) >= {row["id"] for row in read_rows(RUN / "completions.jsonl")}
    # A metric of a reward is a mean over the completions that it scores.
    metrics = read_rows(RUN / "metrics.jsonl")
    assert len(metrics) == 2
    for row in metrics:
        assert row[f"unscored/{HERE}:own_answer"] == 0.5 and f"unscored/{HERE}:also" not in row
        assert row["reward"] == pytest.approx(row[f"rewards/{HERE}:own_answer"] / 2 + row[f"rewards/{HERE}:also"])


def test_rows_of_nq_open_work_with_exact_match(train):
    """Its reference answers are in the column answer; no reward model is trained."""
    rows = [
        {"question": question(n), "answer": [str(n + 1)], "def_correct_predictions": [], "poss_correct_predictions": [],
         "def_incorrect_predictions": ["no"], "answer_and_def_correct_predictions": [str(n + 1)]}
        for n in NUMBERS
    ]  # fmt: skip
    write("nq.jsonl", rows)
    status, _, err = train("pairs=file", "path=nq.jsonl", "grpo.reward_funcs=[exact_match]")
    assert status == 0, err
    assert not Path("outputs/reward").exists()
    result = json.loads((RUN / "result.json").read_text())
    assert result["identity"]["reward_functions"] == {} and result["identity"]["grpo"]["reward_settings"] is None
    assert "rewards/exact_match" in read_rows(RUN / "metrics.jsonl")[0]


@pytest.mark.slow
def test_a_prompts_file_of_ones_own_needs_nothing_else(train, cli):
    """The prompts are in the working folder, and a setting names the column of the references."""
    settings = "grpo.reward_settings={number: {references: solution}, regex: {pattern: '[0-9]+$'}}"
    functions = ["grpo.reward_funcs=[number,regex]", "grpo.reward_weights=[1,0.5]"]
    status, _, err = train("prompts_file=my.jsonl", *functions, settings)
    assert status == 0, err
    assert "my.jsonl: " in err and "task=pairs" not in err and not Path("outputs/kat").exists()
    known = {prompt_id([{"role": "user", "content": question(n)}]) for n in NUMBERS}
    assert {row["id"] for row in read_rows(RUN / "ledger.jsonl")} <= known
    identity = json.loads((RUN / "result.json").read_text())["identity"]
    assert identity["grpo"]["reward_settings"]["number"] == {"references": "solution"}
    status, _, err = cli("task=embed", "prompts_file=my.jsonl", "model=tiny_random", "device=cpu")
    assert status == 0 and "(16 x " in err, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [f"grpo.reward_funcs=[{HERE}:needs_more]"],
            "needs the column proof, and the prompts have only id, text, source",
        ),
        (
            ["grpo.reward_funcs=[exact_match]"],
            "exact_match: needs the column references or answer or answers, and the ",
        ),
        (
            ["grpo.reward_funcs=[regex]"],
            "regex: needs the setting pattern; write 'grpo.reward_settings={regex: {pattern:",
        ),
        (["grpo.reward_funcs=[f1]", "grpo.reward_settings={f1: {column: x}}"], "f1.column=x: f1 has no such setting"),
        (["grpo.reward_funcs=[f1]", "grpo.reward_settings=3"], "grpo.reward_settings=3: expected settings by name"),
    ],
)
def test_what_a_reward_lacks_is_reported_before_training(train, arguments, message):
    status, _, err = train("prompts_file=my.jsonl", *arguments)
    assert status == 1 and message in err, err
    assert "Traceback" not in err and not RUN.exists()


def test_a_broken_row_of_a_prompts_file_is_named(train):
    with Path("my.jsonl").open("a") as file:
        file.write('{"solution": 3}\n')
    status, _, err = train("prompts_file=my.jsonl", f"grpo.reward_funcs=[{HERE}:also]")
    assert status == 1 and "error: prompts_file=my.jsonl, line 17: not a row of a prompts file" in err, err


@pytest.mark.slow
def test_an_exception_in_a_reward_keeps_the_checkpoint(train):
    functions = [f"grpo.reward_funcs=[{HERE}:fails_in_step_two]"]
    status, _, err = train("prompts_file=my.jsonl", *functions)
    assert status == 1 and "Traceback" not in err, err
    assert "raises ValueError (a row that cannot be scored) in test_rewards_cli.py, line " in err
    assert (
        "at step 2 of uniform_seed0, for the prompt " in err and "'What is " in err and " and the completion '" in err
    )
    assert [row["step"] for row in read_rows(RUN / "metrics.jsonl")] == [1]
    status, _, err = train("prompts_file=my.jsonl", *functions)  # the server answers again
    assert status == 0 and "going on after step 1 of 2" in err, err


PLUGIN = """
from kat.data.formats import Draft, assistant, register_format, user
from kat.grpo.rewards import register_reward


@register_format("thumbs", columns=("chosen", "rejected", "thumb"))
def thumbs(row):
    right, wrong = (row["chosen"], row["rejected"])[:: 1 if row["thumb"] == "up" else -1]
    yield Draft(user(row["thumb"] + "? " + row["topic"]), assistant(right), assistant(wrong))


@register_reward("contains", needs=("references",))
def contains(completions, references, topic, *, bonus: float = 0.0):
    assert all(len(name) == 2 for name in topic)
    return [bonus + any(right in text for right in texts) for text, texts in zip(completions, references)]
"""


def find_modules_here() -> None:
    """Let Python find modules in the working folder, as `python train.py` does in its own."""
    sys.path.insert(0, os.getcwd())  # noqa: PTH109


def run_with_plugin(folder: Path, entry: str, *arguments: str) -> str:
    started = start(entry, *arguments, "plugins=[my_plugin]", folder=folder, before=find_modules_here)
    assert started.wait() == [0], started.told()
    return started.told()


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Write a plugin with a format and a reward, and its data."""
    monkeypatch.chdir(tmp_path)
    Path("my_plugin.py").write_text(PLUGIN)
    rows = [{"chosen": f"It is {n}.", "rejected": "No.", "thumb": ("up", "down")[n % 2], "topic": f"{n:02}",
             "answers": [str(n)]} for n in NUMBERS]  # fmt: skip
    write("thumbs.jsonl", rows)
    return tmp_path


@pytest.mark.slow
def test_a_plugins_format_is_detected_and_named(plugin):
    """Its rows would also fit trl_standard_implicit, a format of the project."""
    for arguments in ([], ["pairs.file.format=thumbs", "folder=again"]):
        told = run_with_plugin(plugin, "run", "task=pairs", "pairs=file", "path=thumbs.jsonl", *arguments)
        assert "16 pairs out of 16 rows, read as thumbs" in told
        assert "columns kept for reward functions: topic, answers" in told
    first, second = read_rows("outputs/kat/pairs_all.jsonl")[:2]
    assert [pair["chosen"][0]["content"] for pair in (first, second)] == ["It is 0.", "No."]
    assert first["prompt"][0]["content"] == "up? 00" and first["answers"] == ["0"]
    assert Path("again/pairs_all.jsonl").read_bytes() == Path("outputs/kat/pairs_all.jsonl").read_bytes()
    Path("my_plugin.py").write_text(PLUGIN.replace('== "up"', '== "down"'))
    started = start("train", *SMALL, "pairs=file", "path=thumbs.jsonl", "plugins=[my_plugin]", folder=plugin,
                    before=find_modules_here)  # fmt: skip
    assert started.wait() == [1]
    assert "made from thumbs/train by another version of the format thumbs, but this run needs" in started.told()


@pytest.mark.slow
def test_an_error_in_a_plugins_format_names_the_row(plugin):
    write("thumbs.jsonl", [{"chosen": "a", "rejected": "b", "thumb": "up"}])
    started = start("run", "task=pairs", "pairs=file", "path=thumbs.jsonl", "plugins=[my_plugin]", folder=plugin,
                    before=find_modules_here)  # fmt: skip
    assert started.wait() == [1]
    told = started.told()
    assert (
        "error: thumbs/train, line 1: KeyError in the reader of the format thumbs ('topic'); fix thumbs in my_plugin"
        in told
    )
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_plugins_reward_is_found_by_name(plugin):
    chosen = ["pairs=file", "path=thumbs.jsonl", "grpo.reward_funcs=[contains]"]
    told = run_with_plugin(plugin, "train", *SMALL, *chosen, "grpo.reward_settings={contains: {bonus: 0.25}}")
    assert "policy: " in told
    rows = read_rows(RUN / "metrics.jsonl")
    assert len(rows) == 2 and all(row["rewards/contains"] >= 0.25 for row in rows)
    identity = json.loads((RUN / "result.json").read_text())["identity"]
    assert identity["reward_functions"].keys() == {"contains"}  # the digest of the plugin
    Path("my_plugin.py").write_text(PLUGIN + "\n# another version\n")
    run_with_plugin(plugin, "run", "task=pairs", *chosen[:2])  # the module also reads the pairs
    started = start("train", *SMALL, *chosen, "grpo.reward_settings={contains: {bonus: 0.25}}", "plugins=[my_plugin]",
                    folder=plugin, before=find_modules_here)  # fmt: skip
    assert started.wait() == [1] and "reward_functions" in started.told(), started.told()
