"""Several pairs of runs as one comparison: means and intervals over runs, and mismatched reports."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kat.diversity.comparison import compare_arms
from kat.diversity.files import read_diversity
from kat.diversity.metrics import metric_records
from kat.diversity.verdict import arms_of, pool, require_alike, verdict_markdown, verdict_summary
from latentwire.harness.errors import UserError
from latentwire.stats.intervals import t_quantile
from latentwire.stats.seeds import mean_over_seeds
from tests.helpers.random import numbers

KEYS = [("within", "ead"), ("within", "self_bleu"), ("each", "policy_entropy"), ("each", "not_just_but")]
METRICS = {name: metric for name, metric in metric_records().items() if name in dict(map(reversed, KEYS))}
UNLIKE_0 = {("within", "ead"): 0.2, ("each", "policy_entropy"): -0.1}  # by how much the second arm differs


def report(seed: int, *others: str) -> dict:
    """Return a report of task=diversity on 12 prompts; the n-th further arm differs n times as much."""
    generator = numbers(seed)
    labels = [f"{name}_seed{seed}" for name in ("uniform", *(others or ("density",)))]
    base = {key: generator.normal(1, 0.1, 12) for key in KEYS}
    comparisons = []
    for n, label in enumerate(labels[1:], 1):
        for group, form in (("all", "matched"), ("all", "raw"), ("rare", "matched")):
            second = {key: values + n * UNLIKE_0.get(key, 0) + generator.normal(0, 0.01, 12) * (key != KEYS[-1])
                      for key, values in base.items()}  # fmt: skip
            about = {"first": labels[0], "second": label, "group": group, "form": form, "prompts": 12}
            comparisons.append({**about, "rows": compare_arms(base, second, 0)})
    return {
        "format": 2,
        "key": f"key of {seed}",
        "checkpoints": [{"label": label, "weights": f"{label} weights", "totals": {}} for label in labels],
        "settings": {"prompts": 12, "temperature": 1.0},
        "seed": 0,
        "prompts": {"all": 100, "rare_at_most": 0.5},
        "embedder": "hidden of tiny_random",
        "dtype": "float32",
        "warnings": [],
        "reading": [],
        "metrics": METRICS,
        "comparisons": comparisons,
        "seconds": 1.0,
        "device": "cpu",
        "processes": 1,
        "versions": {},
        "git_commit": None,
    }


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30])
def test_students_t_equals_scipy(degrees):
    for within in (0.5, 0.95, 0.999):
        assert t_quantile(within, degrees) == pytest.approx(stats.t.ppf((1 + within) / 2, degrees))


def test_the_differences_of_the_runs_are_pooled_metric_by_metric():
    reports = [report(seed) for seed in range(3)]
    found = pool(reports)
    assert [(c["first"], c["second"], c["group"], c["form"], c["prompts"]) for c in found] == [
        ("uniform", "density", "all", "matched", 12), ("uniform", "density", "all", "raw", 12),
        ("uniform", "density", "rare", "matched", 12),
    ]  # fmt: skip
    for number, pooled in enumerate(found):
        assert [(row["level"], row["metric"]) for row in pooled["rows"]] == KEYS
        for place, row in enumerate(pooled["rows"]):
            given = [each["comparisons"][number]["rows"][place] for each in reports]
            assert row["runs"] == [one["difference"] for one in given]
            assert row["difference"] == pytest.approx(np.mean(row["runs"]))
            for arm in ("first", "second"):
                assert row[arm] == pytest.approx(np.mean([one[arm]["value"] for one in given]))
            (over,) = mean_over_seeds(np.array([row["runs"]]))  # with the correction of skewness
            assert (row["interval"], row["p_value"]) == (list(over.interval), over.p_value)
        p = [row["p_value"] for row in pooled["rows"]]
        assert p[0] >= stats.ttest_1samp(pooled["rows"][0]["runs"], 0).pvalue - 1e-12 and p[3] == 1
        assert min(row["p_holm"] for row in pooled["rows"]) == pytest.approx(4 * min(p))
        assert pooled["rows"][0]["interval"][0] > 0 > pooled["rows"][2]["interval"][1]


def test_the_reading_names_differences_and_few_runs():
    (said,) = verdict_summary(pool([report(seed) for seed in range(3)]), METRICS, 3)
    assert said.startswith("3 pairs of runs, density against uniform, lengths matched. Over all 12 prompts a")
    assert "the 12 rare prompts a difference is shown in expectation-adjusted distinct-n within prompts (+0." in said
    assert "more diverse) and policy entropy (-0." in said
    assert "less diverse) (Holm's correction over 4 metrics)" in said
    assert "3 runs of each arm are few: the interval extends about 4.3 standard errors" in said
    (many,) = verdict_summary(pool([report(seed) for seed in range(10)]), METRICS, 10)
    assert "few" not in many and "the same prompts" in many


def test_intervals_significant_only_uncorrected_are_listed():
    """The reading lists intervals without 0 whose differences are not significant after Holm's correction."""
    row = {"level": "within", "metric": "vendi", "difference": 0.2, "interval": [0.1, 0.3], "p_holm": 0.06,
           "runs": [0.1, 0.2, 0.3]}  # fmt: skip
    other = {**row, "metric": "ead", "interval": [-0.1, 0.5], "p_holm": 1.0, "runs": [-0.1, 0.2, 0.5]}
    one = {"first": "u", "second": "d", "group": "all", "form": "matched", "prompts": 64, "rows": [row, other]}
    (said,) = verdict_summary([one, {**one, "form": "raw"}], metric_records(), 3)
    expected = (
        "Over all 64 prompts no difference is shown (Holm's correction over 2 metrics). Without the correction, 1 of "
        "the intervals excludes 0, about 0.1 expected by chance: Vendi score within prompts (+0.200 [+0.100, +0.300], "
        "more diverse). In 1 of the metrics all 3 differences have the same sign."
    )
    assert expected in said
    assert said.count("Over all 64") == 1


def changed(name: str, value) -> dict:
    other = copy.deepcopy(report(1))
    node, *rest = name.split(".")
    if rest:
        other[node][rest[0]] = value
    else:
        other[node] = value
    return other


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (changed("settings.temperature", 0.7), "different settings: settings.temperature is 1.0 and 0.7; run task=div"),
        (changed("prompts.rare_at_most", 0.4), "prompts.rare_at_most is 0.5 and 0.4"),
        (changed("seed", 3), "seed is 0 and 3"),
        (changed("embedder", "sentence"), "embedder is hidden of tiny_random and sentence"),
        (changed("dtype", "bfloat16"), "dtype is float32 and bfloat16"),
        (
            changed("metrics", {**METRICS, "vendi": metric_records()["vendi"]}),
            "different metrics: one has ead, not_just_but, policy_entropy and self_bleu, the other ead, not_just_but, "
            "policy_entropy, self_bleu and vendi; run task=diversity on all pairs with the same plugins",
        ),
        (changed("metrics.ead", {**METRICS["ead"], "source": "edited"}), "one has other code or another order"),
        (report(1, "reversed"), "one compares uniform and density, two uniform and reversed"),
        (report(0), "uniform_seed0 of two has the weights of uniform_seed0 of one, so one run would count as two"),
    ],
)
def test_reports_that_do_not_fit_are_refused(other, message):
    with pytest.raises(UserError, match=message):
        require_alike({"one": report(0), "two": other})


def test_one_report_is_not_enough():
    with pytest.raises(UserError, match="1 given; an interval over runs needs the reports of at least 2 pairs"):
        require_alike({"one": report(0)})
    same = report(0)
    same["checkpoints"][1]["weights"] = same["checkpoints"][0]["weights"]
    require_alike({"one": same, "two": report(1)})  # a model compared with itself does not count as a repeated run
    labels = [{"label": "long_uniform_seed12"}, {"label": "x_seed3_b"}]
    assert arms_of({"checkpoints": labels}) == ["long_uniform", "x_b"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(folder: str, content: object) -> None:
    Path(folder).mkdir(parents=True)
    Path(folder, "diversity.json").write_text(json.dumps(content))


def first_format(one: dict) -> dict:
    """Return a report as version 0.2.0 wrote it."""
    old = {name: value for name, value in copy.deepcopy(one).items() if name not in ("format", "metrics")}
    for number, checkpoint in enumerate(old["checkpoints"]):
        del checkpoint["totals"]
        checkpoint |= {"em_dashes": number, "not_just_but": 7}
    return old


def test_a_report_of_format_1_is_upgraded():
    write("old", first_format(report(0)))
    found = read_diversity(Path("old/diversity.json"))
    assert found["format"] == 1 and found["metrics"] == METRICS
    assert [one["totals"] for one in found["checkpoints"]] == [
        {"em_dashes": 0, "not_just_but": 7}, {"em_dashes": 1, "not_just_but": 7},
    ]  # fmt: skip
    assert all("em_dashes" not in one for one in found["checkpoints"])
    require_alike({"old": found, "new": report(1)})
    assert pool([found, report(1)]) == pool([report(0), report(1)])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda old: old["comparisons"][0]["rows"][0].update(metric="gone"), "has the metric gone, which this version"),
        (lambda old: old.pop("embedder"), "lacks embedder: make it again with task=diversity and force=true"),
        (lambda old: old.update(format=99), "has format 99, and this version reads up to"),
        (lambda old: old.update(comparisons=[{}]), "is damaged"),
    ],
)
def test_a_report_that_cannot_be_read_is_refused(change, reason):
    old = first_format(report(0))
    change(old)
    write("old", old)
    with pytest.raises(UserError, match=f"old/diversity.json:? {reason}"):
        read_diversity(Path("old/diversity.json"))


@pytest.mark.slow
def test_the_task_reads_folders_by_pattern_and_writes_a_verdict(cli):
    reports = [report(seed, "density", "shuffled") for seed in range(3)]
    reports[2]["warnings"] = ["they differ in more"]
    for seed, one in enumerate(reports):
        write(f"outputs/diversity/u_seed{seed}_vs_d", one)
    status, printed, said = cli("task=verdict", "reports=[outputs/diversity/u_seed*_vs_d]")
    assert status == 0, said
    out = Path("outputs/verdict/uniform_vs_density_vs_shuffled")
    found = json.loads((out / "verdict.json").read_text())
    assert found["reports"] == [f"outputs/diversity/u_seed{seed}_vs_d" for seed in range(3)]
    assert found["comparisons"] == pool(reports)
    assert found["warnings"] == ["outputs/diversity/u_seed2_vs_d: they differ in more"]
    assert len(found["reading"]) == 2 and printed.strip() == "\n".join(found["reading"])
    text = (out / "verdict.md").read_text()
    assert text.startswith("# density and shuffled against uniform, over 3 pairs of runs")
    assert verdict_markdown(found) == text
    assert "**Warning:** outputs/diversity/u_seed2_vs_d: they differ in more." in text
    row = found["comparisons"][0]["rows"][0]
    assert f"| {row['first']:.3f} | {row['second']:.3f} | {row['difference']:+.3f} [" in text
    assert ", ".join(f"{value:+.3f}" for value in row["runs"]) in text
    assert {path.name for path in out.glob("*.png")} == {"verdict_density.png", "verdict_shuffled.png"}

    status, _, said = cli("task=verdict", "reports=[outputs/diversity/u_seed0_vs_d,outputs/diversity/u_seed0*]")
    assert status == 1 and "1 given" in said  # named twice, but counted once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "folder, reports: neither is given"),
        (["reports=here"], "reports=here: expected a list"),
        (["reports=[nowhere*]"], "reports: nowhere*: no such folder with a diversity.json"),
        (["reports=[bad,bad]"], "bad/diversity.json lacks comparisons, device"),
        (["reports=[one,two]", "out=bad/diversity.json"], "is a file; write out=FOLDER"),
    ],
)
def test_invalid_reports_are_refused(cli, arguments, message):
    write("bad", {"checkpoints": []})
    write("one", report(0))
    write("two", report(1))
    status, _, said = cli("task=verdict", *arguments)
    assert status == 1 and message in said and "Traceback" not in said
