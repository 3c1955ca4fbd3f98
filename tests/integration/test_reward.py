"""The tasks reward and score from the command line: their files, resuming, and refused settings."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from kat.data.heldout import held_out
from kat.data.pairs import read_pairs
from kat.data.prompts import prompt_id
from kat.reward.data import RewardPair, describe_counts, encode_all, split_pairs
from kat.reward.model import load_reward_model
from kat.reward.scoring import score
from kat.reward.settings import RewardSpec
from kat.reward.trees import Tree
from kat.training.state import LoopSpec
from latentwire.harness.errors import UserError
from latentwire.harness.results import read_jsonl
from latentwire.harness.run import Run
from tests.helpers.files import read_json
from tests.helpers.models import model_spec
from tests.helpers.programs import start

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["task=reward", "model=tiny_random", "device=cpu", "pairs=file", "path=mine.jsonl", "steps=6",
         "prompts_per_step=4", "pairs_per_prompt=2", "checkpoint_every=2", "held_out=0.25"]  # fmt: skip
OUT = Path("outputs/reward/uniform_seed0")


@pytest.fixture
def program(entry, tmp_path):
    """Run a command line of train.py or run.py in tmp_path, which has pairs in mine.jsonl."""
    write_pairs(tmp_path / "mine.jsonl")
    return lambda *arguments, of="train": entry(of, *arguments)


def write_pairs(path: Path, prompts: int = 40, extra: list[dict] | None = None) -> None:
    """Write questions with a warm chosen answer and cold rejected ones, 1 to 3 pairs each."""
    rows = [
        {"prompt": f"how is the weather in town {n} on the river", "chosen": f"warm and good {n % 7}",
         "rejected": f"cold, bad and very long {n % 5} {i}", "subset": "ab"[n % 2]}
        for n in range(prompts) for i in range(1 + n % 3)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *(extra or [])]))


def rewards_by(folder: Path, pairs) -> list[tuple[float, float]]:
    model, tokenizer = load_reward_model(folder, torch.device("cpu"), torch.float32)
    encoded, _ = encode_all(tokenizer, pairs, 512)
    sequences = [(pair.tree.prompt, c) for pair in encoded for c in pair.tree.completions]
    return [tuple(row) for row in score(model, sequences).view(-1, 2).tolist()]


@pytest.mark.slow
@pytest.mark.float_path
@pytest.mark.statistical
def test_a_run_learns_writes_its_files_and_is_not_repeated(program):
    arguments = [*SMALL, "steps=40", "optimizer.learning_rate=0.003", "checkpoint_every=20"]
    status, printed, said = program(*arguments)
    assert status == 0, said
    assert "task=pairs comes first" in said and "held-out pairs" in printed
    result = read_json(OUT / "result.json")
    assert result["held_out"]["accuracy"] == 1.0 and result["held_out"]["log_loss"] < 0.3
    assert result["held_out"]["length_only"]["rule"] == "shorter"
    assert set(result["held_out"]["by_source"]) == {"mine/a", "mine/b"}
    by_density = result["held_out"]["by_density_decile"]  # in the uniform arm too
    assert sum(part["pairs"] for part in by_density.values()) == result["held_out"]["pairs"]
    pairs = list(read_pairs(Path("outputs/kat/pairs_all.jsonl")))
    kept = [pair for pair in pairs if held_out(prompt_id(pair.prompt), 0.25)]
    counts = result["counts"]
    assert counts["pairs"] == len(pairs) and counts["held_out_pairs"] == len(kept) == result["held_out"]["pairs"]
    assert counts["train_pairs"] == len(pairs) - len(kept)
    assert counts["train_prompts"] + counts["held_out_prompts"] == 40
    rewards = rewards_by(OUT, kept)
    accuracy = sum(chosen > rejected for chosen, rejected in rewards) / len(rewards)
    assert accuracy == result["held_out"]["accuracy"]
    flat = torch.tensor(rewards, dtype=torch.float64)
    assert result["rewards"]["mean"] == pytest.approx(float(flat.mean()), abs=1e-5)
    assert result["rewards"]["std"] == pytest.approx(float(flat.std(correction=0)), abs=1e-5)

    metrics = read_jsonl(OUT / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 41))
    assert metrics[-1]["loss"] < metrics[0]["loss"] and metrics[-1]["accuracy"] == 1.0
    assert metrics[0]["learning_rate"] == pytest.approx(0.003 / 11) and metrics[10]["learning_rate"] == 0.003
    ledger = read_jsonl(OUT / "ledger.jsonl")
    assert sum(row["drawn"] for row in ledger) == 40 * 4
    assert sum(row["intended"] for row in ledger) == pytest.approx(40 * 4)
    assert not [row for row in ledger if held_out(row["id"], 0.25)] and len(ledger) == counts["train_prompts"]
    assert sorted(path.name for path in (OUT / "checkpoints").iterdir()) == ["step-00000020.pt", "step-00000040.pt"]
    assert json.loads((OUT / "config.json").read_text())["steps"] == 40

    before = (OUT / "result.json").stat().st_mtime_ns
    status, _, said = program(*arguments)
    assert status == 0 and "finished before; force=true" in said
    assert (OUT / "result.json").stat().st_mtime_ns == before
    status, _, said = program(*arguments, "seed=0", "steps=41")
    assert status == 1 and "steps was 40 and is 41" in said and "force=true" in said
    status, _, said = program(*SMALL, "steps=1", "force=true")
    assert status == 0 and (OUT / "replaced" / "1" / "result.json").is_file()
    assert read_json(OUT / "result.json")["identity"]["steps"] == 1

    write_pairs(Path("others.jsonl"), 3, extra=[{"prompt": "x", "chosen": "", "rejected": "y", "subset": "a"}])
    first = f"reward={OUT}/replaced/1"
    status, printed, said = program("task=score", first, "path=others.jsonl", "model=tiny_random", of="run")
    assert status == 0, said
    assert "dropped 1: chosen is empty" in said and "others/a" in printed and "shorter one" in printed
    report = json.loads((OUT / "replaced/1/scores/others.json").read_text())
    assert report["pairs"] == 6 and report["counts"]["dropped"] == {"chosen is empty": 1}
    assert {name: part["pairs"] for name, part in report["by_source"].items()} == {"others/a": 4, "others/b": 2}
    assert report["accuracy"] == 1.0 and report["length_only"]["rule"] == "shorter"
    rows = read_jsonl(OUT / "replaced/1/scores/others.pairs.jsonl")
    assert len(rows) == 6 and all(row["chosen"] > row["rejected"] for row in rows)
    status, printed, said = program("task=score", first, "path=outputs/kat/pairs_all.jsonl", "out=all.json", of="run")
    assert status == 0 and "mine/a" in printed, said
    assert json.loads(Path("all.json").read_text())["pairs"] == len(pairs)
    model_alone = f"{first}/model"
    status, printed, said = program("task=score", model_alone, "path=others.jsonl", "out=x.json", of="run")
    assert status == 0 and "no length-only baseline" in said and "shorter" not in printed
    assert json.loads(Path("x.json").read_text())["accuracy"] == 1.0
    result = read_json(OUT / "replaced/1/result.json")
    del result["identity"]["max_length"]
    (OUT / "replaced/1/result.json").write_text(json.dumps(result))
    status, _, said = program("task=score", first, "path=others.jsonl", of="run")
    assert status == 1 and "result.json lacks identity.max_length: train the reward model again" in said


def die_at_step_5() -> None:
    """Let the process kill itself right after it logged its fifth step."""
    real = Run.log

    def log(self, step, *rest):
        real(self, step, *rest)
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    Run.log = log


@pytest.mark.slow
def test_a_start_that_has_seen_held_out_prompts_is_refused(program, tiny):
    for part in (tiny.model, tiny.tokenizer):
        part.save_pretrained("begun/model")
    questions = [row["prompt"] for row in read_jsonl(Path("mine.jsonl"))]
    ids = [prompt_id([{"role": "user", "content": question}]) for question in questions]
    seen = next(name for name in ids if held_out(name, 0.25))
    Path("begun/ledger.jsonl").write_text(json.dumps({"id": seen, "drawn": 1}) + "\n")
    start = [word for word in SMALL if not word.startswith("model=")] + ["model=path", "model.path=begun/model"]
    status, _, said = program(*start)
    assert status == 1 and "model.path=begun/model: was trained on 1 of the" in said and seen in said
    assert not OUT.exists()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_end(program):
    assert program(*SMALL, "out=whole", "pairs_per_prompt=1")[0] == 0
    arguments = [*SMALL, "out=killed", "pairs_per_prompt=1"]
    killed = start("train", *arguments, folder=Path(), before=die_at_step_5)
    assert killed.wait() == [-signal.SIGKILL], killed.told()
    assert len(read_jsonl(Path("killed/metrics.jsonl"))) == 5 and not Path("killed/result.json").exists()
    assert sum(row["drawn"] for row in read_jsonl(Path("killed/ledger.jsonl"))) == 4 * 4  # as at the checkpoint
    status, _, said = program(*arguments, "steps=7")
    assert status == 1 and "steps was 6 and is 7" in said  # a checkpoint of another configuration
    assert json.loads(Path("killed/config.json").read_text())["steps"] == 6
    status, _, said = program(*arguments)
    assert status == 0 and "going on after step 4 of 6" in said, said
    for name in ("metrics.jsonl", "ledger.jsonl", "model/model.safetensors", "model/config.json"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes(), name
    assert read_json(Path("killed") / "result.json")["held_out"] == read_json(Path("whole") / "result.json")["held_out"]
    assert len(read_jsonl(Path("whole/metrics.jsonl"))) == 6


@pytest.mark.slow
@pytest.mark.float_path
def test_two_processes_match_one(program):
    """Both runs draw the same prompts, and their losses agree up to rounding."""
    assert program(*SMALL, "out=one", "steps=3", "prompts_per_step=5")[0] == 0
    two = start("train", *SMALL, "out=two", "steps=3", "prompts_per_step=5", folder=Path(), ranks=2)
    assert two.wait() == [0, 0], two.told()
    assert read_json(Path("two") / "result.json")["processes"] == 2
    assert Path("one/ledger.jsonl").read_bytes() == Path("two/ledger.jsonl").read_bytes()
    for one, two in zip(*(read_jsonl(Path(name, "metrics.jsonl")) for name in ("one", "two")), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)
    accuracy, other = (read_json(Path(name) / "result.json")["held_out"]["log_loss"] for name in ("one", "two"))
    assert accuracy == pytest.approx(other, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "all"])
def test_lora_and_full_training_save_a_loadable_folder(program, method):
    status, _, said = program(*SMALL, f"tuning.method={method}", "steps=2", "optimizer.learning_rate=0.01")
    assert status == 0, said
    kept = [p for p in read_pairs(Path("outputs/kat/pairs_all.jsonl")) if held_out(prompt_id(p.prompt), 0.25)]
    flat = torch.tensor(rewards_by(OUT, kept), dtype=torch.float64)
    assert read_json(OUT / "result.json")["rewards"]["mean"] == pytest.approx(float(flat.mean()), abs=1e-4)
    losses = [row["loss"] for row in read_jsonl(OUT / "metrics.jsonl")]
    assert losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.float_path
def test_the_first_loss_is_the_mean_over_prompts_of_their_pairs(program):
    """The expected loss comes from an untrained model's scores of the pairs of the first four draws."""
    from kat.reward.model import reward_model_of
    from kat.sampling.sampler import DensityAwareSampler
    from latentwire.harness.random import generator_for
    from latentwire.lm.models import load_model

    assert program(*SMALL, "steps=1", "pairs_per_prompt=3")[0] == 0
    lm = load_model(model_spec("tiny_random"), torch.device("cpu"), torch.float32)
    data = split_pairs(encode_all(lm.tokenizer, read_pairs(Path("outputs/kat/pairs_all.jsonl")), 512)[0], 0.25)
    model = reward_model_of(lm, generator_for(0, "reward head"))
    order = list(DensityAwareSampler([1.0] * len(data.train), seed=0))[:4]
    losses = []
    for row in order:
        pairs = list(data.train.values())[row]
        values = [score(model, [(p.tree.prompt, c) for c in p.tree.completions]) for p in pairs]
        losses.append(torch.stack([(1 + (r - c).exp()).log() for c, r in values]).mean())
    logged = read_jsonl(OUT / "metrics.jsonl")[0]
    assert logged["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


@pytest.mark.slow
def test_density_sampling_prefers_rare_prompts(program):
    """The run also makes the files that it lacks: pairs, prompts, embeddings and weights."""
    status, _, said = program(*SMALL, "sampler=density", "steps=60")
    assert status == 0, said
    for name in ("pairs", "prompts", "embed", "density"):
        assert f"task={name} comes first" in said
    folder = Path("outputs/reward/density_seed0")
    weights = {row["id"]: row["weight"] for row in read_jsonl(Path("outputs/kat/weights.jsonl"))}
    ledger = read_jsonl(folder / "ledger.jsonl")
    total = sum(weights[row["id"]] for row in ledger)
    for row in ledger:
        assert row["intended"] == pytest.approx(240 * weights[row["id"]] / total)
    by_weight = sorted(ledger, key=lambda row: weights[row["id"]])
    half = len(ledger) // 2
    assert sum(row["drawn"] for row in by_weight[half:]) > 1.3 * sum(row["drawn"] for row in by_weight[:half])
    assert set(read_json(folder / "result.json")["held_out"]["by_density_decile"]) <= {str(n) for n in range(1, 11)}
    status, _, said = program(*SMALL, "sampler=shuffled", "steps=1")
    assert status == 0 and "comes first" not in said
    rows = read_jsonl(Path("outputs/kat/weights.jsonl"))
    Path("outputs/kat/weights.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    status, _, said = program(*SMALL, "sampler=reversed", "steps=1")
    assert status == 1 and "weights.jsonl: is not the file that outputs/kat/density.json describes" in said
    Path("outputs/kat/density.json").unlink()
    status, _, said = program(*SMALL, "sampler=reversed", "steps=1")
    assert status == 1 and "prompts have pairs but no weight" in said and "so the origin of" in said


@pytest.mark.slow
def test_a_nan_loss_stops_the_run_and_keeps_the_checkpoint(program, monkeypatch):
    from kat.reward import learning

    real, seen = learning.bradley_terry_loss, []

    def broken(chosen, rejected):
        seen.append(1)
        return real(chosen, rejected) * (float("nan") if len(seen) == 4 else 1.0)

    monkeypatch.setattr(learning, "bradley_terry_loss", broken)
    status, _, said = program(*SMALL)
    assert status == 1 and "the loss is nan at step 4 of uniform_seed0" in said
    assert [path.name for path in (OUT / "checkpoints").iterdir()] == ["step-00000002.pt"]
    assert program(*SMALL)[0] == 0 and len(read_jsonl(OUT / "metrics.jsonl")) == 6


@pytest.mark.slow
def test_out_of_memory_names_the_settings_to_lower(program, monkeypatch):

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("kat.reward.learning.bradley_terry_loss", full)
    status, _, said = program(*SMALL, "batch_tokens=300", "states_gib=1")
    assert status == 1 and "error: batch_tokens=300, states_gib=1.0: cpu (" in said and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["prompts_per_step=99"], "prompts_per_step=99: there are"),
        (["max_length=2"], "no pair of outputs/kat/pairs_all.jsonl is in this split and fits into max_length=2"),
        (["split=test"], "split=test: no pair"),
        (["held_out=0"], "held_out=0.0: of 40 prompts none is held out"),
        (["sampler=other"], "sampler=other: unknown"),
        (["tuning.blocks=3"], "tuning.blocks=3: the model has 2 blocks"),
        (["steps=many"], "steps=many: expected a whole number"),
        (["steps=0"], "steps=0: must be at least 1"),
        (["checkpoint_every=1.5"], "checkpoint_every=1.5: expected a whole number"),
        (["keep_checkpoints=0"], "keep_checkpoints=0: must be at least 1"),
        (["held_out=null"], "held_out=None: expected a number"),
        (["held_out=1"], "held_out=1.0: must be a share"),
        (["states_gib=much"], "states_gib=much: expected a number"),
        (["states_gib=-1"], "states_gib=-1.0: must be 0 (keep none) or more"),
        (["seed=lucky"], "seed=lucky: expected a whole number"),
        (["force=perhaps"], "force=perhaps: expected true or false"),
        (["path=nowhere.jsonl"], "path=nowhere.jsonl: no such file"),
        (["lr=3"], "lr=3: no such setting"),
    ],
)
def test_bad_settings_are_one_line(program, arguments, reason):
    status, _, said = program(*SMALL, *arguments)
    assert status == 1 and reason in said, said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "reward: no reward model given"),
        (["reward=nowhere"], "path: no file given"),
        (["reward=nowhere", "path=mine.jsonl"], "reward=nowhere: no such folder"),
        (["reward=.", "path=mine.jsonl"], "holds no model"),
    ],
)
def test_bad_settings_of_score_are_one_line(program, arguments, reason):
    status, _, said = program("task=score", *arguments, of="run")
    assert status == 1 and reason in said and "Traceback" not in said, said


@pytest.mark.slow
def test_a_full_disk_stops_the_run_which_resumes_later(program, monkeypatch):
    """The error message gives a remedy."""
    from latentwire.harness import checkpoint

    real = checkpoint.torch.save

    def full(content, file):
        if "step" in content:  # a checkpoint; embeddings are still written
            raise OSError(28, "No space left on device")
        real(content, file)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    status, _, said = program(*SMALL)
    assert status == 1 and "No space left on device" in said and "out=FOLDER" in said
    monkeypatch.setattr(checkpoint.torch, "save", real)
    status, _, said = program(*SMALL)
    assert status == 0, said


@pytest.mark.parametrize("name", ["prompts_per_step", "pairs_per_prompt", "batch_tokens", "max_length"])
def test_numbers_out_of_their_range_are_named(name):
    good = {"split": None, "max_length": 2, "prompts_per_step": 1, "pairs_per_prompt": 1, "batch_tokens": 1}
    RewardSpec(**good)
    with pytest.raises(UserError, match=rf"{name}={good[name] - 1}: "):
        RewardSpec(**{**good, name: good[name] - 1})


@pytest.mark.parametrize("name", ["steps", "checkpoint_every", "keep_checkpoints"])
def test_numbers_of_the_loop_out_of_their_range_are_named(name):
    good = {"seed": 0, "steps": 1, "held_out": 0.0, "checkpoint_every": 1, "keep_checkpoints": 1, "force": False}
    assert LoopSpec(**good).identity() == {"seed": 0, "steps": 1, "held_out": 0.0}
    with pytest.raises(UserError, match=rf"{name}=0: must be at least 1"):
        LoopSpec(**{**good, name: 0})


def pair(name: str, source: str = "s") -> RewardPair:
    return RewardPair(name, source, Tree((1,), ((2,), (3,))), (1, 2))


def test_the_split_is_by_prompt_and_keeps_the_order():
    names = [f"{n % 50:016x}" for n in range(200)]
    data = split_pairs([pair(name) for name in names], 0.3)
    out = {p.prompt_id for p in data.held_out}
    assert out == {name for name in names if held_out(name, 0.3)} and not out & data.train.keys()
    assert len(data.held_out) + len(data.train_pairs) == 200
    assert list(data.train) == [name for name in dict.fromkeys(names) if name not in out]
    with pytest.raises(UserError, match=r"held_out=0: of 50 prompts none is held out"):
        split_pairs([pair(name) for name in names], 0)
    kept = next(name for name in names if held_out(name, 0.3))
    with pytest.raises(UserError, match=r"held_out=0.3: of 1 prompts none is to train on"):
        split_pairs([pair(kept)], 0.3)


def test_cut_and_dropped_pairs_are_counted(tiny, tmp_path):
    write_pairs(tmp_path / "p.jsonl", 1)
    row = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    from kat.data.pairs import PreferencePair

    def made(number: int, **changes: str) -> PreferencePair:
        new = {**row, **changes}
        message = [{"role": "user", "content": new["prompt"]}]
        answers = ([{"role": "assistant", "content": new[k]}] for k in ("chosen", "rejected"))
        return PreferencePair(str(number), message, *answers, "src")

    pairs = [made(0), made(1, chosen="word " * 60), made(2, prompt="a long question " * 30)]
    found, counts = encode_all(tiny.tokenizer, pairs, 50)
    whole, _ = encode_all(tiny.tokenizer, pairs[2:], 5000)
    cut = len(whole[0].tree.prompt) - len(found[1].tree.prompt)
    assert counts == Counter(pairs=2, too_long=1, trimmed=1, tokens_trimmed=cut) and cut > 0
    assert found[0].lengths == (len(row["chosen"]), len(row["rejected"])) and found[0].source == "src"
    assert found[0].prompt_id == prompt_id(pairs[0].prompt)
    said = describe_counts(counts, 50)
    assert said == (f"2 pairs; 1 dropped: an answer of 50 tokens or more; 1 prompts cut from the left to fit "
                    f"max_length=50 ({cut} tokens)")  # fmt: skip
    assert describe_counts({"pairs": 3, "too_long": 0, "trimmed": 0, "tokens_trimmed": 0}, 9) == "3 pairs"
