"""The tasks density, subsample, cluster and project from the command line, and what they reject."""

from __future__ import annotations

import json
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from kat.data.tables import read_weights
from kat.density.clusters import closest_to_centroid, cluster
from kat.density.projection import project
from kat.embedding.store import load_embeddings
from latentwire.harness.errors import UserError
from tests.helpers.files import read_rows, write_rows
from tests.helpers.planted import planted
from tests.helpers.programs import command, environment
from tests.helpers.random import draws

pytestmark = pytest.mark.usefixtures("one_thread")
N = 240


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with embeddings and prompts of planted clusters, where the tasks look for them."""
    monkeypatch.chdir(tmp_path)
    kat = tmp_path / "outputs" / "kat"
    kat.mkdir(parents=True)
    x, labels = planted(0, n=N, width=32, clusters=5)
    ids = [f"p{i:03d}" for i in range(N)]
    torch.save({"ids": ids, "emb": x}, kat / "embeddings.pt")
    rows = [
        {"id": name, "prompt": [{"role": "user", "content": f"prompt {name}"}], "text": f"prompt {name}",
         "source": "ab"[i % 2]} for i, name in enumerate(ids)
    ]  # fmt: skip
    write_rows(kat / "prompts_all.jsonl", rows[::-1])  # another order than the embeddings
    (kat / "known.json").write_text(json.dumps({"labels": dict(zip(ids, labels.tolist(), strict=True))}))
    return kat


@pytest.mark.slow
def test_density_then_subsample_cluster_and_project(folder, cli):
    status, printed, said = cli("task=density", "clusters_file=known.json")
    assert status == 0, said
    assert "5 known clusters" in printed and "source a: 0.500 of the prompts" in printed
    report = json.loads((folder / "density.json").read_text())
    assert report["prompts"] == N and report["ess_share"] == pytest.approx(0.4)
    assert report["clusters"]["total_variation"] < report["clusters"]["total_variation_uniform"]
    assert (folder / "density.png").read_bytes().startswith(b"\x89PNG")
    ids, density, weights = read_weights(folder / "weights.jsonl")
    assert ids == load_embeddings(folder / "embeddings.pt")[0]
    assert float(weights.sum()) == pytest.approx(1)
    assert weights[density.argmax()] == weights.min()
    again = (folder / "weights.jsonl").read_bytes()
    assert cli("task=density")[0] == 0
    assert (folder / "weights.jsonl").read_bytes() == again

    for arm in ("density", "reversed", "shuffled", "uniform"):
        status, _, said = cli("task=subsample", "budget=60", f"sampler={arm}", f"out=./{arm}.txt")
        assert status == 0, said
    chosen = {arm: Path(f"{arm}.txt").read_text().split() for arm in ("density", "reversed", "uniform")}
    assert all(len(set(names)) == 60 and set(names) <= set(ids) for names in chosen.values())
    row = {name: i for i, name in enumerate(ids)}
    mean = {arm: float(weights[[row[name] for name in names]].mean()) for arm, names in chosen.items()}
    assert mean["density"] > mean["uniform"] > mean["reversed"]
    assert cli("task=subsample", "budget=60", "out=./again.txt")[0] == 0
    assert Path("again.txt").read_bytes() == Path("density.txt").read_bytes()

    status, printed, said = cli("task=cluster", "clusters=5")
    assert status == 0, said
    made = json.loads((folder / "clusters.json").read_text())
    assert [entry["size"] for entry in made["clusters"]] == sorted((e["size"] for e in made["clusters"]), reverse=True)
    assert sum(entry["size"] for entry in made["clusters"]) == N == len(made["labels"])
    assert sum(entry["mass"] for entry in made["clusters"]) == pytest.approx(1)
    members = [name for name, number in made["labels"].items() if number == 2]
    assert {near["id"] for near in made["clusters"][2]["nearest"]} <= set(members)
    assert made["clusters"][2]["mean_density"] == pytest.approx(float(density[[row[name] for name in members]].mean()))
    assert cli("task=density", "clusters_file=clusters.json")[0] == 0

    status, _, said = cli("task=project")
    assert status == 0, said
    points = json.loads((folder / "embeddings_3d.json").read_text())["points"]
    assert [point["id"] for point in points] == ids
    assert points[7]["text"] == "prompt p007" and points[7]["weight"] == float(weights[7])
    assert "prompt p007" in (folder / "embeddings_3d.html").read_text()
    assert sorted(path.name for path in Path().iterdir()) == [
        "again.txt", "density.txt", "outputs", "reversed.txt", "shuffled.txt", "uniform.txt",
    ]  # fmt: skip


@pytest.mark.slow
def test_density_prints_and_stores_the_gates(folder, cli):
    """Planted clusters of few prompts are stable and local; a second file of the same rows agrees."""
    blob = torch.load(folder / "embeddings.pt", weights_only=True)
    torch.save({"ids": blob["ids"][::-1], "emb": blob["emb"].flip(0)}, folder / "other.pt")
    status, printed, said = cli("task=density", "compare_file=other.pt")
    assert status == 0, said
    gates = json.loads((folder / "density.json").read_text())["gates"]
    assert gates["local_share"] == 1 and 0 <= gates["crowd_ratio_mean"] <= gates["crowd_ratio"] < 1
    assert gates["stability"] > 0.5 and gates["agreement"] == 1 and gates["weights_apart"] < 1e-6
    assert f"planted crowd over uniform {gates['crowd_ratio']:.2f}, stability over halves" in printed
    torch.save({"ids": blob["ids"][1:], "emb": blob["emb"][1:]}, folder / "other.pt")
    status, _, said = cli("task=density", "compare_file=other.pt")
    assert status == 1 and "embed the same prompts for both" in said, said


@pytest.mark.slow
def test_near_duplicates_are_shown_and_deduplicated(folder, cli):
    """Sixty copies of a prompt are one group, which is drawn as often as any other prompt."""
    blob = torch.load(folder / "embeddings.pt", weights_only=True)
    x = normalize(torch.randn(N, 32, generator=draws(3)), dim=1)
    x[:60] = normalize(x[:1] + 0.01 * torch.randn(60, 32, generator=draws(4)), dim=1)
    torch.save({**blob, "emb": x}, folder / "embeddings.pt")
    status, printed, said = cli("task=density")
    assert status == 0, said
    assert "near-duplicates: 60 prompts in 1 groups, 181 groups in all\n  60 x  prompt p000  |  prompt p001" in printed
    near = json.loads((folder / "density.json").read_text())["near_duplicates"]
    assert (near["groups"], near["largest"][0]["size"]) == (181, 60)
    assert [row["group"] for row in read_rows(folder / "weights.jsonl")] == [*[0] * 60, *range(1, 181)]
    assert cli("task=subsample", "sampler=deduplicated", "budget=100", "out=./drawn.txt")[0] == 0
    drawn = Path("drawn.txt").read_text().split()
    assert len(set(drawn)) == 100 and sum(name < "p060" for name in drawn) < 10
    edit(folder / "weights.jsonl", lambda rows: [row.pop("group") for row in rows])
    (folder / "density.json").unlink()
    status, _, said = cli("task=subsample", "sampler=deduplicated", "budget=100")
    assert status == 1 and "has no group" in said, said


@pytest.mark.slow
def test_from_the_shell_an_error_is_one_line(folder):
    line = command("run", "task=density", "sampler.k=999")
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 1
    assert "error: k=999 needs at least 1000 different prompts, got 240; lower sampler.k or add prompts" in done.stderr
    assert "Traceback" not in done.stderr


def break_embeddings(folder: Path, **changes) -> None:
    blob = torch.load(folder / "embeddings.pt", weights_only=True)
    torch.save({**blob, **changes}, folder / "embeddings.pt")


def edit(path: Path, change) -> None:
    rows = read_rows(path)
    change(rows)
    write_rows(path, rows)


IDS = [f"p{i:03d}" for i in range(N)]
BAD = {
    "no prompts": (lambda f: (f / "prompts_all.jsonl").unlink(), "no such file; make it with task=prompts"),
    "empty prompts": (lambda f: (f / "prompts_all.jsonl").write_text("\n\n"), "the file has no rows"),
    "a broken line": (lambda f: (f / "prompts_all.jsonl").write_text('{"id": "p'), "line 1: is not valid JSON"),
    "a missing column": (
        lambda f: edit(f / "prompts_all.jsonl", lambda r: r[3].pop("prompt")),
        "line 4: not a row of a prompts file, which is a JSON object with a prompt",
    ),
    "no object": (lambda f: (f / "prompts_all.jsonl").write_text("[1]\n"), "row 0: not a row of a prompts file"),
    "a duplicate id": (
        lambda f: edit(f / "prompts_all.jsonl", lambda r: r.append(r[0])),
        "has the id p239, as line 1 has",
    ),
    "no text at all": (lambda f: (f / "prompts_all.jsonl").write_bytes(b"\xff\xfe"), "line 1: is not UTF-8 text"),
    "other ids": (
        lambda f: edit(f / "prompts_all.jsonl", lambda r: r[0].update(id="x")),
        "do not match: 1 of 240",
    ),
    "no embeddings": (lambda f: (f / "embeddings.pt").unlink(), "no such file"),
    "foreign embeddings": (lambda f: (f / "embeddings.pt").write_text("hello"), "not a file of torch.save"),
    "fewer ids than rows": (lambda f: break_embeddings(f, ids=IDS[1:]), "239 ids for 240 rows"),
    "duplicate ids": (lambda f: break_embeddings(f, ids=["a"] * N), "the id a occurs twice"),
    "a zero vector": (
        lambda f: break_embeddings(f, emb=torch.eye(N) * (torch.arange(N) != 5)),
        "p005 has length 0, not 1",
    ),
    "not a number": (lambda f: break_embeddings(f, emb=torch.full((N, 4), torch.nan)), "p000 holds NaN or infinity"),
    "no clusters": (lambda f: (f / "known.json").unlink(), "clusters_file="),
    "foreign clusters": (lambda f: (f / "known.json").write_text("[]"), "has no readable labels"),
    "a cluster between two": (
        lambda f: (f / "known.json").write_text(json.dumps({"labels": dict.fromkeys(IDS, 2.9)})),
        "has no readable labels (TypeError: 'float'",
    ),
    "no clusters named": (lambda f: (f / "known.json").write_text('{"labels": 3}'), "has no readable labels"),
    "prompts not embedded": (
        lambda f: break_embeddings(f, ids=IDS[1:], emb=torch.eye(N)[1:]),
        "1 of 1 ids are only in the first, p000 for instance; run task=embed again",
    ),
    "all noise": (lambda f: (f / "known.json").write_text(json.dumps({"labels": dict.fromkeys(IDS, -1)})), "noise"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_and_nothing_is_written(folder, cli, name):
    damage, reason = BAD[name]
    damage(folder)
    status, _, said = cli("task=density", "clusters_file=known.json")
    assert status == 1 and reason in said, said
    assert not (folder / "weights.jsonl").exists()


WEIGHTS = [{"id": f"p{i:03d}", "density": 1.0, "weight": 0.25} for i in range(4)]


@pytest.mark.parametrize(
    ("weights", "arguments", "reason"),
    [
        (WEIGHTS, ["budget=5"], "budget=5: 4 prompts"),
        (WEIGHTS, ["budget=0"], "budget=0"),
        (WEIGHTS, ["budget=all"], "budget=all"),
        ([{**WEIGHTS[0], "weight": 0}, *WEIGHTS[1:]], ["budget=4"], "3 prompts"),
        ([{**WEIGHTS[0], "weight": -1}], ["budget=1"], "weight -1 of p000"),
        ([{**WEIGHTS[0], "weight": float("nan")}], ["budget=1"], "weight nan of p000"),
        ([{**WEIGHTS[0], "weight": "much"}], ["budget=1"], "has no weight"),
        (
            [{**WEIGHTS[0], "id": "a"}],
            ["budget=1"],
            "1 of 1 ids are only in the first, a for instance; run task=density again",
        ),
        ([{"id": "p000", "density": 1.0}], ["budget=1"], "line 1: has no weight"),
        ([{**row, "weight": 0} for row in WEIGHTS], ["budget=1"], "all weights are 0"),
    ],
)
def test_subsample_refuses_invalid_weights_and_budgets(folder, cli, weights, arguments, reason):
    write_rows(folder / "weights.jsonl", weights)
    status, _, said = cli("task=subsample", *arguments)
    assert status == 1 and reason in said, said
    assert not (folder / "sampled_ids.txt").exists()


def test_an_id_with_a_line_break_is_refused(folder, cli):
    edit(folder / "prompts_all.jsonl", lambda rows: rows[0].update(id="a\nb"))
    write_rows(folder / "weights.jsonl", [{**WEIGHTS[0], "id": "a\nb"}])
    status, _, said = cli("task=subsample", "budget=1")
    assert status == 1 and "has a line break" in said, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["task=density", "sampler=uniform"], "sampler=uniform: task=density computes the weights"),
        (["task=density", "sampler=reversed"], "sampler=reversed: task=density computes the weights"),
        (["task=subsample", "sampler.k=5"], "sampler.k=5: no such setting"),
        (["task=density", "sampler.size=5"], "sampler.size=5: no such setting; sampler=density has sampler.estimator,"),
        (["task=subsample", "sampler=difficulty"], "sampler=difficulty: its weights follow the rewards of a training"),
        (["task=density", "tracker=wandb"], "tracker=wandb: task=density does not use a tracker"),
        (["task=density", "out=density.json"], "out=density.json: this name is reserved for files"),
        (["task=density", "out=embeddings.pt"], "out=embeddings.pt: would overwrite embeddings_file"),
        (["task=cluster", "out=weights.jsonl"], "out=weights.jsonl: would overwrite weights_file"),
        (["task=cluster", "clusters=five"], "clusters=five: must be a whole number"),
        (["task=cluster", "clusters=2.5"], "clusters=2.5: must be a whole number"),
        (["task=density", "sampler.k=ten"], "sampler.k"),
        (["task=cluster", "clusters=241"], "clusters=241"),
        (["task=project"], "weights.jsonl: no such file"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, cli, arguments, reason):
    status, _, said = cli(*arguments)
    assert status == 1 and reason in said, said


@pytest.mark.slow
def test_only_recorded_long_prompts_may_lack_embeddings(folder, cli):
    """The task counts them; any other prompt without an embedding is an error."""
    break_embeddings(folder, ids=IDS[2:], emb=torch.eye(N)[2:])
    record = {"key": "k", "embedder": {}, "model": None, "n": 238, "dim": N, "prompts_file": "", "time_sec": 1.0,
              "texts": "", "device": "cpu", "processes": 1, "versions": {}, "git_commit": None}  # fmt: skip
    (folder / "embeddings.json").write_text(json.dumps({**record, "too_long": IDS[:1]}))
    status, _, said = cli("task=density")
    assert status == 1 and "1 of 2 ids are only in the first, p001 for instance; run task=embed again" in said, said
    (folder / "embeddings.json").write_text(json.dumps({**record, "too_long": IDS[:2]}))
    status, _, said = cli("task=density", "sampler.gamma=0", "sampler.target_ess=null")
    assert status == 0 and "note: 2 of 240 prompts are too long" in said, said
    (folder / "embeddings.json").write_text(json.dumps({"too_long": IDS[:2]}))
    status, _, said = cli("task=density", "sampler.gamma=0", "sampler.target_ess=null")
    assert status == 1 and "embeddings.json lacks device, dim, embedder" in said, said


@pytest.mark.slow
def test_weights_of_other_embeddings_are_refused(folder, cli):
    assert cli("task=density")[0] == 0
    report = json.loads((folder / "density.json").read_text())
    assert report["embeddings_sha256"] == sha256((folder / "embeddings.pt").read_bytes()).hexdigest()
    assert report["weights_sha256"] == sha256((folder / "weights.jsonl").read_bytes()).hexdigest()
    assert {"seed", "versions", "git_commit", "estimator", "k", "cap"} <= report.keys()
    blob = torch.load(folder / "embeddings.pt", weights_only=True)
    torch.save({**blob, "emb": blob["emb"].flip(0)}, folder / "embeddings.pt")  # the same ids, other rows
    for task in ("cluster", "project"):
        status, _, said = cli(f"task={task}")
        assert status == 1 and "embeddings.pt: is not the file that" in said, said
        assert "run task=density again" in said
    edit(folder / "weights.jsonl", lambda rows: rows.reverse())
    status, _, said = cli("task=subsample", "budget=3")
    assert status == 1 and "weights.jsonl: is not the file that" in said, said
    (folder / "density.json").unlink()
    status, _, said = cli("task=subsample", "budget=3")
    assert status == 0 and "so the origin of" in said, said


@pytest.mark.slow
def test_other_weights_have_their_own_diagnostics(folder, cli):
    assert cli("task=density")[0] == 0
    before = {name: (folder / name).read_bytes() for name in ("density.json", "density.png", "weights.jsonl")}
    assert cli("task=density", "out=knn.jsonl", "sampler.estimator=knn")[0] == 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert json.loads((folder / "knn_density.json").read_text())["estimator"] == "knn"
    assert (folder / "knn_density.png").is_file()
    assert cli("task=project", "weights_file=knn.jsonl", "out=knn_map.json")[0] == 0


@pytest.mark.parametrize(("n", "d"), [(12, 40), (40, 12)])
def test_the_axes_equal_a_singular_value_decomposition(n, d):
    emb = torch.randn(n, d, generator=draws(0), dtype=torch.float64)
    xyz, shares = project(emb, "pca", 0)
    x = emb - emb.mean(0)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    assert shares == pytest.approx((s**2 / (s**2).sum())[:3].tolist())
    expected = u[:, :3] * s[:3]
    expected = (expected / expected.norm(dim=1).max()).float()
    assert torch.allclose(xyz.abs(), expected.abs(), atol=1e-5)


@pytest.mark.slow
def test_a_page_does_not_overwrite_its_own_data(folder, cli):
    assert cli("task=density")[0] == 0
    status, _, said = cli("task=project", "out=./map.html")
    assert status == 1 and "use another ending" in said
    assert not Path("map.html").exists()


@pytest.mark.statistical
def test_clusters_are_the_planted_ones():
    labels = torch.arange(600) % 4
    x = normalize(torch.eye(64)[labels] + 0.05 * torch.randn(600, 64, generator=draws(0)), dim=1)
    found = cluster(x, 4, seed=0)
    pairs = {(a, b) for a, b in zip(found.labels.tolist(), labels.tolist(), strict=True)}
    assert len(pairs) == 4
    assert torch.equal(found.labels, cluster(x, 4, seed=0).labels)
    first = closest_to_centroid(x, found, 3)[0]
    cosines = x[found.labels == 0] @ found.centroids[0]
    assert sorted((x[first] @ found.centroids[0]).tolist(), reverse=True) == pytest.approx(
        cosines.topk(3).values.tolist()
    )
    assert len(cluster(x, None, seed=0).centroids) <= round(300**0.5)
    with pytest.raises(UserError, match="clusters=0"):
        cluster(x, 0, seed=0)
