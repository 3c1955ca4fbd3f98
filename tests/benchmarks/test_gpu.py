"""The table of `make gpu`: figures of logs, parts that fail, and parts that take too long."""

from __future__ import annotations

import pytest

from benchmarks.gpu import Part, Row, counted, embedding, made_up_prompts, main, render, run_part, table_of


def test_figures_are_read_from_logs():
    assert counted("....\n== 412 passed, 3 failed in 90.1s ==\n") == "412 passed, 3 failed in 90.1s"
    assert counted("nothing") == "no test ran"
    log = "round 1: 48 tokens\n\n| tokens | trainer | s |\n|---|---|---|\n| 48 | ours | 1.5 |\n| 48 | TRL | 4.5 |\n"
    assert table_of(log) == "48, ours, 1.5; 48, TRL, 4.5"
    assert embedding("embed hidden  200/200  0 s left  1032 prompts/s\ndone") == "200/200  0 s left  1032 prompts/s"


def test_made_up_prompts_differ():
    prompts = made_up_prompts(2000)
    assert len({row["prompt"] for row in prompts}) == len({row["prompt_id"] for row in prompts}) == 2000
    assert all(6 < len(str(row["prompt"]).split()) <= 15 for row in prompts)


def test_a_part_that_fails_or_hangs_is_a_row(tmp_path):
    fails = Part(["-c", "import sys; print('first'); sys.exit('the reason')"], 60, counted)
    row = run_part("grpo", fails, tmp_path, "cpu")
    assert "failed: the reason" in row.result
    hangs = Part(["-c", "import time; time.sleep(60)"], 1, counted)
    assert "not finished within 1 s" in run_part("atlas", hangs, tmp_path, "cpu").result
    red = Part(["-c", "import sys; print('2 passed, 1 failed in 3s'); sys.exit(1)"], 60, counted)
    assert run_part("tests", red, tmp_path, "cpu").result == "2 passed, 1 failed in 3s"


def test_the_table_names_the_device_and_adds_up():
    table = render([Row("tests", 61.2, "a | b"), Row("embed", 10.0, "c")], "Some GPU")
    assert table.startswith("Some GPU, torch")
    assert "| tests | 61 | a / b |" in table
    assert "| all | 71 | |" in table


@pytest.mark.parametrize("wrong", ["parts=sweep", "device=nonsense"])
def test_a_mistake_is_one_line(wrong, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["device=cpu", wrong, f"out={tmp_path}"])
    assert str(stop.value.code).startswith("error: ")
