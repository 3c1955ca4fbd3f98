"""A training run on prompts that task=subsample draws from folders of weights and prompts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kat.data.heldout import held_out
from tests.helpers.files import read_json, read_rows, write_rows
from tests.helpers.weights import write_weight_folder

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
IDS = [f"p{row:02d}" for row in range(60)]
GATES = {"local_share": 1.0, "centre_correlation": 0.0, "crowd_ratio": 0.0, "crowd_ratio_mean": 0.0, "stability": 1.0,
         "agreement": None, "weights_apart": None}  # fmt: skip
SMALL = ["model=tiny_random", "device=cpu", "held_out=0.3", "steps=4", "batch_tokens=256", "tuning.blocks=1",
         "grpo.prompts_per_step=5", "grpo.num_generations=2", "grpo.max_completion_length=4", "grpo.eval_prompts=4",
         "grpo.eval_every=4", "grpo.eval_generations=2",
         "grpo.reward_funcs=[tests.helpers.rewards:vowels]"]  # fmt: skip


@pytest.fixture
def shards(tmp_path, monkeypatch) -> None:
    """Write weights and prompts in shards into a new working folder."""
    monkeypatch.chdir(tmp_path)
    weights = [1.0 + row for row in range(60)]
    write_weight_folder(Path("outputs/kat/weights"), weights, [IDS[:20], IDS[20:]], gates=GATES)
    rows = [{"id": name, "prompt": f"Name a word that begins like {name}"} for name in IDS]
    Path("prompts").mkdir()
    for number in range(2):
        write_rows(Path("prompts") / f"{number}.jsonl", rows[number::2])


def test_the_error_names_the_command_that_makes_the_run_possible(shards, trains, cli):
    """Two arms drawn from one folder are evaluated with the same held-out prompts."""
    evaluated = []
    for arm in ("density", "reversed"):
        status, _, said = trains(*SMALL, f"sampler={arm}", "weights_file=weights", "prompts_file=prompts")
        assert status == 1 and "weights_file=weights: is a folder of weights" in said, said
        found = re.search(r"python run\.py (task=subsample .*); then train with (.*) in place of", said)
        assert found, said
        status, _, said = cli(*shlex.split(found[1]), "out=./ids.txt")
        assert status == 0, said
        assert len(Path("ids.txt").read_text().split()) == 4 * 5
        status, _, said = trains(*SMALL, *shlex.split(found[2]))
        assert status == 0, said
        run = Path(f"outputs/grpo/{arm}_drawn_seed0")
        drawn = {row["id"] for row in read_rows(run / "ledger.jsonl")}
        assert drawn == {name for name in Path("ids.txt").read_text().split() if not held_out(name, 0.3)}
        evaluated.append({row["id"] for row in read_rows(run / "completions.jsonl")})
    assert evaluated[0] == evaluated[1] == set(sorted(name for name in IDS if held_out(name, 0.3))[:4])


def test_a_sampler_without_density_trains_on_a_folder_of_prompts(shards, trains):
    status, _, said = trains(*SMALL, "sampler=uniform", "weights_file=weights", "prompts_file=prompts")
    assert status == 0, said
    counts = read_json("outputs/grpo/uniform_seed0/result.json")["counts"]
    assert counts["train_prompts"] + counts["held_out_prompts"] == 60
    write_rows("prompts/2.jsonl", [{"prompt": "one more"}])
    status, _, said = trains(*SMALL, "sampler=uniform", "prompts_file=prompts")
    assert status == 1 and "another configuration" in said, said
