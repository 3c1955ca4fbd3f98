"""The task latent from the command line on a tiny model: training, resuming, evaluating, reporting, screening."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from latentwire.data.fingerprints import fingerprint
from latentwire.harness.errors import UserError
from latentwire.harness.optimization import OptimizerSpec, learning_rate_share
from latentwire.harness.results import read_jsonl
from latentwire.harness.run import Run
from latentwire.latent_training.gradients import LossSums
from latentwire.latent_training.losses import LossWeights
from latentwire.latent_training.objective import LatentObjective
from latentwire.latent_training.screening import rounds_of
from latentwire.latent_training.validation import HeldOut
from latentwire.transforms.codebook import SoftCodebook
from tests.helpers.files import read_json, read_rows, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = ["task=latent", "model=tiny_random", "device=cpu", "dtype=float32", "adapter_hidden=16", "samples=24", "shots=1"]
QUICK = [*BASE, "encoder=bottleneck", "d_z=8", "loss=reconstruction", "epochs=3"]
WHOLE = [*BASE, "encoder=lm_layers", "layers=1", "ratio=2", "epochs=2", "first_phase=0.5", "held_out=0.05",
         "passages_per_step=3", "max_new_tokens=2", "checkpoint_every=2"]  # fmt: skip

OFF = dict.fromkeys(
    ("embedding", "vocabulary", "text", "continuation", "answer", "distillation", "hidden", "rms", "manifold"), 0
)


def full(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. Of the allocated memory none")


@pytest.mark.slow
@pytest.mark.float_path
def test_reconstruction_learns_and_can_be_evaluated(trains, cli, tmp_path):
    status, _, err = trains(*QUICK, "evaluate_every=1", "out=run")
    assert status == 0, err
    steps = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert {step["kind"] for step in steps} == {"reconstruction"}
    assert steps[-1]["embedding"] < steps[0]["embedding"]
    assert steps[0]["loss"] == pytest.approx(steps[0]["embedding"] + steps[0]["vocabulary"])
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["scored_by"] == "cosine"
    assert result["score"] == max(entry["cosine"] for entry in result["history"])
    assert [entry["epoch"] for entry in result["history"]] == [1, 2, 3]
    assert "F1" not in err  # no LM in the loop
    counts = result["counts"]
    assert f"{counts['train_passages']} passages with 24 questions to train on (samples=24)" in err
    about = json.loads((tmp_path / "run/encoder/config.json").read_text())
    assert len(about["trained_on"]) == counts["train_passages"] + counts["held_out_passages"] > 1

    status, _, err = cli("model=tiny_random", "embed_source=latent", "checkpoint=run", "samples=6", "shots=1",
                         "max_new_tokens=2", "device=cpu", "dtype=float32", "out=asked")  # fmt: skip
    assert status == 0, err
    asked = json.loads((tmp_path / "asked/baseline@latent.json").read_text())
    latents = asked["latents"]
    assert latents["positions"] == latents["text_positions"] > 10
    assert latents["bytes"] == pytest.approx(2 * 8 * latents["positions"])
    assert latents["seen_in_training"] == 0
    assert latents["text_zlib_bytes"] < latents["text_bytes"]

    status, _, err = trains(*QUICK, "evaluate_every=1", "out=run")
    assert status == 0
    assert "finished before" in err
    status, _, err = trains(*QUICK, "out=run", "evaluate_every=1", "d_z=9")
    assert status == 1
    assert "encoder.dials.d_z was 8 and is 9" in err


@pytest.mark.slow
def test_a_checkpoint_of_another_lm_is_refused_before_any_work(trains, cli, tmp_path):
    assert trains(*QUICK, "out=run", "epochs=1")[0] == 0
    config = json.loads((tmp_path / "run/encoder/config.json").read_text())
    config["lm"] = {"repo": "other/model"}
    (tmp_path / "run/encoder/config.json").write_text(json.dumps(config))
    status, _, err = cli("model=tiny_random", "embed_source=latent", "checkpoint=run", "samples=2")
    assert status == 1
    assert "not for this one; choose that model" in err
    status, _, err = cli(
        "-m", "sweep=embed35", "model=tiny_random", "embed_source=latent", "checkpoint=run", "samples=2"
    )
    assert status == 1
    assert "not for this one; choose that model" in err
    assert not list((tmp_path / "outputs").rglob("control_*"))  # the controls are not evaluated first either
    status, _, err = cli("model=tiny_random", "embed_source=latent", "samples=2")
    assert status == 1
    assert "checkpoint=FOLDER" in err


@pytest.mark.slow
@pytest.mark.float_path
def test_each_loss_is_logged_and_the_report_has_controls(trains, cli, tmp_path, monkeypatch):
    status, _, err = trains(*WHOLE, "out=run")
    assert status == 0, err
    steps = read_rows(tmp_path / "run" / "metrics.jsonl")
    kinds = [step["kind"] for step in steps]
    half = len(kinds) // 2
    assert kinds[:2] == ["reconstruction", "continuation"]
    assert set(kinds[:half]) == {"reconstruction", "continuation"}
    assert set(kinds[half:]) == {"answers"}
    weights = dict.fromkeys(("embedding", "text", "continuation", "answer", "distillation"), 1.0)
    weights |= {"rms": 0.01, "manifold": 0.01}
    for step in steps:
        own = {"reconstruction": {"embedding", "text"}, "continuation": {"continuation"},
               "answers": {"answer", "distillation"}}[step["kind"]] | {"rms", "manifold"}  # fmt: skip
        assert own == weights.keys() & step.keys()
        assert step["loss"] == pytest.approx(sum(weights[name] * step[name] for name in own), rel=1e-5)
    assert [step["epoch"] for step in steps if "held_out_f1" in step] == [1, 2]

    with monkeypatch.context() as patch:  # another version of the word selection
        patch.setattr("latentwire.encoders.pooled.FORMAT", 3)
        status, _, err = trains(*WHOLE, "out=run")
    assert status == 1
    assert "encoder.versions.words was 2 and is 3" in err
    with monkeypatch.context() as patch:  # another version of the passage selection
        patch.setattr("latentwire.latent_training.passages.FORMAT", 2)
        status, _, err = trains(*WHOLE, "out=run")
    assert status == 1
    assert "passages was 1 and is 2" in err

    asking = ["task=latent_report", "checkpoint=run", "model=tiny_random", "samples=6", "shots=1", "max_new_tokens=2",
              "device=cpu", "dtype=float32", "out=report"]  # fmt: skip
    status, out, err = cli(*asking)
    assert status == 0, err
    report = json.loads((tmp_path / "report/report.json").read_text())
    rows = {row["source"]: row for row in report["rows"]}
    assert list(rows) == ["text", "latent", "cut", "chosen", "averaged", "empty"]
    assert len({rows[name]["positions"] for name in ("latent", "cut", "chosen", "averaged")}) == 1
    assert rows["text"]["positions"] / 2 <= rows["cut"]["positions"] <= rows["text"]["positions"] / 2 + 0.5
    assert rows["empty"]["positions"] == 0
    assert "no passage" in out
    kept = read_jsonl(tmp_path / "report/cut_likelihood.predictions.jsonl")
    for measure in ("nll", "kl"):
        assert rows["cut"][measure] == pytest.approx(sum(row[measure] for row in kept) / 6)
        low, high = rows["cut"][f"{measure}_interval"]
        assert low < rows["cut"][measure] < high
    assert rows["text"]["kl"] == 0 < rows["empty"]["kl"]
    assert ": the latents save positions, not bytes" in out
    assert "-0.000" not in out  # zero is printed without a sign
    with monkeypatch.context() as patch:
        patch.setattr("latentwire.evaluation.latent_report.evaluate", full)
        status, _, err = cli(*asking, "out=other", "batch_tokens=300")
    assert status == 1
    assert "error: batch_tokens=300: cpu (" in err
    for stray in ("embed_source=text", "embed_transform=rms_matching", "control=random"):
        status, _, err = cli("task=latent_report", "model=tiny_random", stray)
        assert status == 1
        assert f"{stray}: task=latent_report evaluates the encoder without changes" in err
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "report").glob("*.json")}
    (tmp_path / "report/cut_likelihood.json").unlink()
    assert cli(*asking)[0] == 0
    after = {path: path.stat().st_mtime_ns for path in before}
    made = {path.name for path in before if after[path] != before[path]}
    assert made == {"cut_likelihood.json", "report.json"}  # existing results are not evaluated again
    rows_file = tmp_path / "report/cut_likelihood.predictions.jsonl"
    whole = rows_file.read_text()
    write_rows(rows_file, [{key: value for key, value in row.items() if key != "nll"} for row in kept])
    status, _, err = cli(*asking)
    assert status == 1 and "cut_likelihood.predictions.jsonl lacks nll: restore the file" in err
    rows_file.write_text(whole)
    again = json.loads((tmp_path / "report/report.json").read_text())
    assert [row["nll"] for row in again["rows"]] == [row["nll"] for row in report["rows"]]

    def made_by(*more: str) -> set[str]:
        """Return the names of the results that are computed again."""
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "report").glob("*.json")}
        assert cli(*asking, *more)[0] == 0
        return {path.stem for path, time in before.items() if path.stat().st_mtime_ns != time} - {"report"}

    with monkeypatch.context() as patch:
        patch.setattr("latentwire.evaluation.latent_report.prepare", full)
        assert made_by() == set()  # without a missing result, no model is loaded
    with monkeypatch.context() as patch:
        patch.setattr("latentwire.evaluation.likelihood.FORMAT", 2)
        assert made_by() == {f"{name}_likelihood" for name in rows}
    assert made_by("force=true") == {*rows, *(f"{name}_likelihood" for name in rows)}


STATES = [*WHOLE[: WHOLE.index("encoder=lm_layers")], "encoder=lm_states", "every=1", *WHOLE[-6:], "ratio=4",
          "markers=1", "ratios=[4,2]", "weights.hidden=1", "continuation_share=0.4"]  # fmt: skip
SHOTS = [*WHOLE, "compressed_shots=true", "ratios=[3,2]"]  # each step of answers encodes the shots anew


@pytest.mark.slow
@pytest.mark.float_path
@pytest.mark.parametrize("whole", [WHOLE, STATES, SHOTS], ids=["lm_layers", "lm_states", "compressed_shots"])
def test_a_killed_run_resumes_bit_for_bit(trains, tmp_path, monkeypatch, whole):
    assert trains(*whole, "out=straight")[0] == 0
    logged = read_rows(tmp_path / "straight" / "metrics.jsonl")

    class KilledError(BaseException):
        """An exception that no handler catches, like SIGKILL."""

    real = Run.log
    for at in (3, 5):  # in either phase
        folder = tmp_path / f"killed{at}"

        def log(run, step, *rest, at=at):
            real(run, step, *rest)
            if step == at:
                raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(Run, "log", log)
            with pytest.raises(KilledError):
                trains(*whole, f"out={folder.name}")
        assert not (folder / "result.json").exists()
        saved = [int(path.stem.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*.pt")]
        assert max(saved) < at
        status, _, err = trains(*whole, f"out={folder.name}")
        assert status == 0, err
        assert "going on after step" in err
        assert read_rows(folder / "metrics.jsonl") == logged
        ours, theirs = (load_file(tmp_path / name / "encoder/model.safetensors") for name in (folder.name, "straight"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frozen_states_have_the_dtype_of_the_run(trains, tmp_path, dtype):
    """The copies of the frozen layers are stored as they computed; what is trained stays float32."""
    status, _, err = trains(*STATES, f"dtype={dtype}", "loss=reconstruction", "weights.hidden=0", "epochs=1", "out=run")
    assert status == 0, err
    weights = load_file(tmp_path / "run/encoder/model.safetensors")
    frozen = {name: own.dtype for name, own in weights.items() if name.startswith("encoder.body.")}
    assert set(map(str, frozen.values())) == {f"torch.{dtype}"}
    assert {own.dtype for name, own in weights.items() if name not in frozen} == {torch.float32, torch.bool}


def test_a_run_that_stops_early_keeps_its_best(trains, tmp_path):
    # a learning rate near 0: no epoch is better than the first
    status, _, err = trains(
        *QUICK, "out=run", "epochs=9", "patience=2", "evaluate_every=1", "optimizer.learning_rate=1e-30"
    )
    assert status == 0, err
    assert "stopped: no better than epoch 1 for 2 evaluations" in err
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["stopped"]
    assert result["held_out"]["epoch"] == 1
    assert len(result["history"]) == 3


def test_no_run_stops_before_the_first_answers(trains, tmp_path):
    # a learning rate near 0, yet the run may not stop in its first phase
    status, _, err = trains(
        *BASE, "encoder=bottleneck", "d_z=8", "samples=9", "max_new_tokens=2", "out=run", "epochs=6", "first_phase=0.5",
        "patience=1", "weights.text=0", "weights.continuation=0", "weights.distillation=0",
        "optimizer.learning_rate=1e-30",
    )  # fmt: skip
    assert status == 0, err
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert [entry["epoch"] for entry in result["history"]] == [1, 2, 3, 4]
    assert result["stopped"] and result["held_out"]["epoch"] == 1


def test_out_of_memory_names_the_settings_to_lower(trains, monkeypatch):
    monkeypatch.setattr("latentwire.latent_training.learning.LatentObjective.losses", full)
    status, _, err = trains(*QUICK, "out=run", "batch_tokens=300")
    assert status == 1
    assert "error: batch_tokens=300, passages_per_step=8: cpu (" in err
    assert "no memory left for it (CUDA out of memory. Tried to allocate 2.00 GiB.); lower batch_tokens or" in err
    assert "Traceback" not in err


CANDIDATES = [
    f"{{embed_transform:{candidate},seed:[0,1]}}"
    for candidate in ("baseline", "rms_matching,target_scale:1.0", "batch_distribution", "anchor_offset,eps:0.3")
]


@pytest.mark.slow
def test_a_screening_promotes_a_third_and_resumes_runs(trains, tmp_path):
    """Promoted runs continue from their last checkpoint, and a repeated screening reports the same scores."""
    given = ["-m", "sweep=latent_screen", f"sweep.grids=[{','.join(CANDIDATES)}]", *BASE[1:], "d_z=8", "epochs=3",
             "sweep.rounds=[1,2,3]", "judge_by=cosine"]  # fmt: skip
    status, out, err = trains(*given)
    assert status == 0, err
    screen = json.loads((tmp_path / "outputs/latent_screen/screen.json").read_text())
    assert [len(judged["ranking"]) for judged in screen["rounds"]] == [4, 2, 1]
    assert [len(judged["kept"]) for judged in screen["rounds"]] == [2, 1, 1]
    assert "2 of 4 candidates go on to epoch 2" in err
    assert [run["stop_epoch"] for run in screen["runs"]] == [1] * 8 + [2] * 4 + [3] * 2
    for earlier, later in zip(screen["rounds"], screen["rounds"][1:], strict=False):
        best = {row["candidate"] for row in earlier["ranking"][: len(later["ranking"])]}
        assert best == set(earlier["kept"])
        assert {row["candidate"] for row in later["ranking"]} == set(earlier["kept"])
    best = screen["rounds"][-1]["ranking"][0]
    assert set(best["scores"]) == {"0", "1"}
    first, last = screen["rounds"][0], screen["rounds"][-1]
    assert {row["against_best"]["seeds"] for row in first["ranking"][1:]} == {2}
    assert f"scored on the left-out one: {first['cross_fit']:.3f}" in out and last["cross_fit"] is None
    assert "goes on" in out
    folder = Path(best["encoders"][0]).parent
    same = [*QUICK, "evaluate_every=30", "judge_by=cosine", f"embed_transform={_family(best)}", *_dials(best)]
    assert trains(*same, "out=straight")[0] == 0
    straight = read_rows(tmp_path / "straight" / "metrics.jsonl")
    screened = read_rows(tmp_path / folder / "metrics.jsonl")
    assert [step["loss"] for step in straight] == [step["loss"] for step in screened]

    # A repetition reports the same scores for each round, although the promoted runs are further by now.
    assert trains(*given)[0] == 0
    assert json.loads((tmp_path / "outputs/latent_screen/screen.json").read_text()) == screen
    status, _, err = trains(*given, "sweep.rounds=[2,3]")  # promoted runs have scores only at the judged epochs
    assert status == 0, err
    (further,) = (tmp_path / "outputs/latent_screen").glob(f"{Path(best['encoders'][0]).parent.name}/result.json")
    told = json.loads(further.read_text())
    del told["history"][1]
    further.write_text(json.dumps(told))
    status, _, err = trains(*given, "sweep.rounds=[2,3]")
    assert status == 1
    assert "was trained further and not evaluated at that epoch" in err
    assert "Traceback" not in err
    # With force=true, a promoted run continues the run that the first round started.
    assert trains(*given, "force=true")[0] == 0
    for run in screen["runs"]:
        assert [path.name for path in (tmp_path / run["encoder"]).parent.glob("replaced/*")] == ["1"]


def _family(row: dict) -> str:
    known = {"rms_scale1.0": "rms_matching", "anchor_eps0.3": "anchor_offset"}
    label = row["candidate"].removeprefix("bottleneck8_reconstruction_")
    return known.get(label, label)


def _dials(row: dict) -> list[str]:
    return ["eps=0.3"] if _family(row) == "anchor_offset" else []


@pytest.mark.slow
def test_a_diverging_candidate_does_not_stop_the_others(trains, tmp_path):
    status, _, err = trains("-m", *QUICK, "optimizer.learning_rate=1e-3,1e30")
    assert status == 0, err
    assert err.count("FAILED") == 1
    screen = json.loads((tmp_path / "outputs/latent/screen.json").read_text())
    assert [run["status"] for run in screen["runs"]].count("failed") == 1
    (ranked,) = screen["rounds"][0]["ranking"]
    assert set(ranked["scores"]) == {"0"}
    assert "learning_rate0.001" in ranked["candidate"]


@pytest.mark.slow
def test_too_short_parts_of_split_passages_are_skipped(trains, tmp_path):
    """The run counts the skipped parts; a passage that is this short in the file is refused."""
    whole = "The ferry left the long pier at noon with forty sacks of flour, and nobody on the quay waved. No."
    (tmp_path / "more.txt").write_text(whole)
    arguments = [*WHOLE, "out=run", "weights.continuation=0", "stop_epoch=1", "ratio=4", "extra=more.txt"]
    status, _, err = trains(*arguments, "extra_words=18")
    assert status == 0, err
    counts = json.loads((tmp_path / "run/result.json").read_text())["counts"]
    assert counts["parts of split passages, too short for ratio=4"] == 1
    assert "note: skipped 1 parts of split passages, too short for ratio=4" in err
    weights = load_file(tmp_path / "run/encoder/model.safetensors")
    assert len(set(weights["encoder.information"].tolist())) > 2  # the words come from the texts
    assert not weights["encoder.begins"].all()
    (tmp_path / "more.txt").write_text("No.")  # a passage that is this short in the file is refused
    status, _, err = trains(*arguments, "force=true", "extra_words=18")
    assert status == 1
    assert "ratio=4: more than the" in err


def test_rounds_rise():
    assert rounds_of(OmegaConf.create({"sweep": {"rounds": [1, 3]}})) == [1, 3]
    assert rounds_of(OmegaConf.create({"sweep": {}})) == []
    for rounds in ([3, 2], [2, 2]):
        with pytest.raises(UserError, match=rf"sweep.rounds=\[{rounds[0]}, 2\]: must be epochs, each later"):
            rounds_of(OmegaConf.create({"sweep": {"rounds": rounds}}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weights.answer=-1"], "weights.answer=-1.0: must be 0 or more"),
        (["layers=1", "ratio=500"], "ratio=500: more than the"),
        (["layers=9"], "layers=9: must be between 1 and the LM's 2 layers"),
        (["layers=1", "ratio=36"], "ratio=36: more than the"),  # more than the tokens of its first half
        (["encoder=byte", "weights.vocabulary=1"], "random tokens are not a passage that encoder=byte can encode"),
        (["embed_transform=random_interpolation"], "does not depend on the encoder"),
        (["encoder=byte", "latent_len=4096"], "positions, more than the model's 4096"),
        (["stop_epoch=11"], "stop_epoch=11: must be an epoch of the run, from 1 to epochs=10"),
        (["stop_epoch=0"], "stop_epoch=0: must be an epoch of the run, from 1 to epochs=10"),
        (["stop_epoch=1.5"], "stop_epoch=1.5: expected a whole number or null"),
        (["checkpoint_every=0"], "checkpoint_every=0: must be at least 1"),
        (["keep_checkpoints=0"], "keep_checkpoints=0: must be at least 1"),
        (["adapter_hidden=x"], "adapter_hidden=x: expected a whole number"),
        (["extra=5"], "extra=5: no such file"),
        (["judge_by=em"], "judge_by=em: unknown"),
        (["dtype=float16"], "dtype=float16"),
        (["eps=0.1"], "eps=0.1: embed_transform=baseline has no such dial"),
        (["latent_len=3"], "latent_len=3: encoder=lm_layers has no such dial"),
        (["layers=1", "pool=foo"], "pool=foo: unknown; use one of mean, query, halving"),
        (["encoder=lm_attention", "layers=99"], "layers=99: must be between 1 and the LM's 2 layers"),
        (["encoder=lm_states", "every=0"], "every=0: must be between 1 and the LM's 2 layers"),
        (["markers=-1"], "markers=-1: must be 0 or more"),
        (["markers=30"], "ratio=2 with markers=30: more than the"),
        (["ratios=[0]"], "ratios=[0]: must be ratios of 1 or more"),
        (["ratios=[]"], "ratios=[]: must be ratios of 1 or more"),
        (["ratios=x"], "ratios=x: expected"),
        (["ratios=[2,36]"], "ratio=36: more than the"),
        (["encoder=bottleneck", "ratios=[8]"], "ratios=[8]: encoder=bottleneck has no ratio that can change"),
        (["layers=2", "groups=equal", "pool=halving", "ratios=[4,3,2]"], "ratio=3: must be a power of 2"),
        (["mixed_share=2"], "mixed_share=2.0: must be a share, from 0 to 1"),
        (["continuation_share=-1"], "continuation_share=-1.0: must be a share, from 0 to 1"),
        (["copied_rate=-1"], "copied_rate=-1.0: must be 0 or more"),
        (["extra_part=x"], "extra_part=x: unknown; use one of all, select, confirm"),
        (
            ["extra_part=select"],
            "extra_part=select: is a part of the extra file, and extra is not set; give extra=FILE",
        ),
        (["templates=x"], "templates=x: no passages are generated from them, because generated=0; give a number"),
        (["adapter_scale=no"], "adapter_scale=no: unknown; use one of norm, free"),
    ],
)
def test_invalid_settings_are_refused_before_any_work(trains, tmp_path, arguments, message):
    usual = [] if {"layers", "encoder", "latent_len"} & {a.split("=")[0] for a in arguments} else ["layers=1"]
    status, _, err = trains(*BASE, "out=run", *usual, *arguments)
    assert status == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def test_losses_that_are_all_off_are_refused():
    with pytest.raises(UserError, match="all losses are off"):
        LossWeights(**{**OFF, "rms": 1, "manifold": 1})
    weights = LossWeights(**{**OFF, "embedding": 1, "rms": 1, "manifold": 1})
    assert weights.first_phase_kinds() == ["reconstruction"]
    assert not weights.trains_answers() and not weights.needs_lm()


NOWHERE = "optimizer.learning_rate=1e-30"  # steps that change nothing


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "encoder/model.safetensors")


def test_gradients_are_weighted_and_averaged_over_the_step():
    x = torch.ones(2, requires_grad=True)
    weights = LossWeights(**{**OFF, "embedding": 1, "rms": 0.5})
    sums = LossSums(weights, "")
    for _ in range(2):  # two batches of one step
        sums.accumulate({"rms": x.sum()}, 4)
    assert x.grad is not None and x.grad.tolist() == [0.25, 0.25]
    assert sums.sums == {"rms": 1.0}


@pytest.mark.slow
@pytest.mark.float_path
def test_splitting_a_step_into_batches_changes_nothing(trains, tmp_path, monkeypatch):
    real, asked = LatentObjective.losses, {1: [], 4096: []}
    for batch_tokens, sizes in asked.items():

        def noted(self, kind, passages, generator, ratio, sizes=sizes):
            sizes.append(len(passages))
            return real(self, kind, passages, generator, ratio)

        monkeypatch.setattr(LatentObjective, "losses", noted)
        assert trains(*WHOLE, f"batch_tokens={batch_tokens}", NOWHERE, f"out=r{batch_tokens}")[0] == 0
    assert set(asked[1]) == {1} and max(asked[4096]) == 3
    parts, whole = read_rows(tmp_path / "r1" / "metrics.jsonl"), read_rows(tmp_path / "r4096" / "metrics.jsonl")
    for a, b in zip(parts, whole, strict=True):
        assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-3)


@pytest.mark.slow
def test_the_weights_of_the_best_epoch_are_saved(trains, tmp_path, monkeypatch):
    told = iter([0.9, 0.2, 0.1, 0.9])
    monkeypatch.setattr(HeldOut, "scores", lambda *_: {"cosine": next(told), "mean_pairwise_cosine": 0.0})
    status, _, err = trains(*QUICK, "evaluate_every=1", "out=all")
    assert status == 0 and "held-out passages, epoch 1, best of 3 evaluations: cosine with the tokens 0.900" in err
    status, _, err = trains(*QUICK, "evaluate_every=1", "stop_epoch=1", "out=one")
    assert status == 0 and "held-out passages, epoch 1: cosine with the tokens 0.900" in err
    assert [read_json(tmp_path / name / "result.json")["chosen_from"] for name in ("all", "one")] == [3, 1]
    ours, theirs = weights_in(tmp_path / "all"), weights_in(tmp_path / "one")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    result = read_json(tmp_path / "one/result.json")
    (tmp_path / "one/result.json").write_text(json.dumps({k: v for k, v in result.items() if k != "stop_epoch"}))
    status, _, err = trains(*QUICK, "evaluate_every=1", "stop_epoch=1", "out=one")
    assert status == 1 and "one/result.json lacks stop_epoch: train anew with force=true" in err


def test_training_starts_from_the_lms_layers(trains, tiny, tmp_path):
    assert trains(*WHOLE, "stop_epoch=1", NOWHERE, "out=run")[0] == 0
    name = "layers.0.self_attn.q_proj.weight"
    saved = weights_in(tmp_path / "run")["encoder.body." + name]
    assert torch.equal(saved, tiny.model.base_model.get_parameter(name))


@pytest.mark.slow
def test_copied_layers_may_stay_as_they_are(trains, tiny, tmp_path):
    """With copied_rate=0 the other weights train; of lm_states the LM's layers are never among the trained weights."""
    frozen = {}
    for name, arguments in (("layers", [*WHOLE, "copied_rate=0"]), ("states", STATES)):
        status, _, err = trains(*arguments, "stop_epoch=1", f"out={name}")
        assert status == 0, err
        saved, counted = weights_in(tmp_path / name), read_json(tmp_path / name / "result.json")["trained_weights"]
        body = {key.removeprefix("encoder.body."): own for key, own in saved.items() if key.startswith("encoder.body.")}
        assert body
        for key, own in body.items():  # lm_states keeps them in the dtype in which it reads
            assert torch.equal(own, tiny.model.base_model.get_parameter(key).to(own.dtype))
        assert float(saved["adapter.mlp.2.weight"].norm()) > 0
        others = sum(own.numel() for key, own in saved.items() if "information" not in key and "begins" not in key)
        frozen[name] = others - counted
    assert frozen == {"layers": 0, "states": sum(own.numel() for own in body.values())}


@pytest.mark.slow
def test_initial_weights_depend_only_on_the_seed(trains, tmp_path):
    for name, more in (("a", "seed=0"), ("b", "seed=1"), ("c", "embed_transform=rms_matching")):
        assert trains(*QUICK, "epochs=1", NOWHERE, more, f"out={name}")[0] == 0
    a, b, c = (weights_in(tmp_path / name)["encoder.down.weight"] for name in "abc")
    assert torch.equal(a, c)
    assert not torch.equal(a, b)


def test_the_rate_follows_its_schedule(trains, tmp_path):
    assert trains(*QUICK, "passages_per_step=3", "optimizer.warmup_steps=1", "out=run")[0] == 0
    steps = read_rows(tmp_path / "run" / "metrics.jsonl")
    config = json.loads((tmp_path / "run/config.json").read_text())["optimizer"]
    spec = OptimizerSpec(**config)
    shares = [learning_rate_share(number, spec, len(steps)) for number in range(len(steps))]
    assert [step["learning_rate"] for step in steps] == pytest.approx([spec.learning_rate * share for share in shares])
    assert len(set(shares)) > 2


def test_noise_is_drawn_at_each_step_but_not_in_evaluation(trains, monkeypatch):
    seen, real = [], SoftCodebook.repair

    def spied(self, x, generator):
        seen.append((self.training, generator and generator.initial_seed()))
        return real(self, x, generator)

    monkeypatch.setattr(SoftCodebook, "repair", spied)
    status, _, err = trains(*QUICK, "embed_transform=soft_codebook", "codebook_size=8", "out=run")
    assert status == 0, err
    drawn = [seed for training, seed in seen if training]
    assert None not in drawn and len(set(drawn)) == 3
    assert {seed for training, seed in seen if not training} == {None}


@pytest.mark.slow
def test_settings_that_affect_a_run_are_in_its_identity(trains, tmp_path):
    (tmp_path / "more.txt").write_text("A text.")
    assert trains(*QUICK, "epochs=1", "out=run")[0] == 0
    for change in ("seed=1", "embed_transform=rms_matching", "weights.rms=1", "optimizer.learning_rate=0.1",
                   "extra=more.txt", "adapter_hidden=17", "held_out=0.2"):  # fmt: skip
        status, _, err = trains(*QUICK, "epochs=1", "out=run", change)
        assert status == 1, change
        assert "belongs to another configuration" in err, change


def test_a_ratio_above_a_held_out_passage_is_refused(trains, tmp_path):
    """The ratio is larger than the number of tokens of the shortest held-out passage."""

    def held(text: str) -> bool:
        return int(fingerprint(text)[:8], 16) / 2**32 < 0.3

    long = [f"Name{n} lives in house number {n} of the long street behind the old mill." for n in range(40)]
    texts = [text for text in long if not held(text)] + [t for n in range(40) if held(t := f"Name{n} left.")]
    rows = [{"context": text, "question": "Who?", "answers": [text.split()[0]]} for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status, _, err = trains(
        *WHOLE, "data=file", "path=a.jsonl", "held_out=0.3", "weights.continuation=0", "ratio=12", "out=run"
    )
    assert status == 1
    assert "ratio=12: more than the" in err
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_version_is_refused(trains, monkeypatch):
    assert trains(*QUICK, "stop_epoch=1", "out=run")[0] == 0

    def missing(*_: object) -> None:
        raise RuntimeError("Error(s) in loading\n\tMissing key(s): kappa")

    monkeypatch.setattr("latentwire.latent_training.learning.Latents.load_state_dict", missing)
    status, _, err = trains(*QUICK, "stop_epoch=2", "out=run")
    assert status == 1
    assert (
        "the state of latents is from another version of the program (Error(s) in loading Missing key(s): kappa)" in err
    )
    assert "train anew with force=true" in err and "Traceback" not in err
