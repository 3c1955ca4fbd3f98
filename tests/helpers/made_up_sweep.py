"""A made-up sweep with every part of an analysis, and the contents of its page. Main entry: `made_up_sweep()`."""

from __future__ import annotations

import numpy as np

from latentwire.records import F1
from latentwire.reports.html import collect
from tests.helpers.results import result_of

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror='throw 1'>\u2028<!-- & \"q'"
COUNT = 16
KINDS = [
    ("baseline", "baseline", {}),
    *((f"rms_scale{s}", "rms_matching", {"target_scale": s}) for s in (0.8, 1.0, 1.2)),
    *((f"nearest_k{k}_a{a}", "nearest_k", {"k": k, "alpha": a}) for k in (3, 5, 10) for a in (0.2, 0.5, 0.7)),
    *((f"anchor_eps{e}", "anchor_offset", {"eps": e}) for e in (0.01, 0.02, 0.3)),
    *((f"codebook{c}_tau{t}", "soft_codebook", {"codebook_size": c, "tau": t}) for c in (128, 512) for t in (0.7, 1.0)),
    ("random_k3", "random_interpolation", {"k": 3}),
]


EM = {"name": "em", "label": "exact match", "higher_is_better": True}


def made_up_sweep(metric: dict = F1) -> tuple[dict, dict[str, list[dict]]]:
    """Return a summary with every part of an analysis, and its predictions; each score is a count over 16 examples.

    Args:
        metric: The primary metric; EM is F1 / 2.
    """
    results, groups, answers = [], [], {}
    for g, source in enumerate(["text", "scaled117.0"]):
        suffix = "" if source == "text" else f"@{source}"
        rows = []
        for number, (experiment, family, dials) in enumerate(KINDS):
            name, right = experiment + suffix, (5 * number + 3 * g + 11) % (COUNT + 1)
            if experiment == "baseline":
                right = 11 if g == 0 else 1
            f1 = right / COUNT
            score, identity = f1 / 2 if metric == EM else f1, source == "text" and family == "anchor_offset"
            shared_fields = {
                "name": name, "experiment": experiment, "family": family, "dials": dials, "f1": f1,
                "em": f1 / 2, "empty_rate": number / 100, "identity": identity, "num_samples": COUNT, "warnings": [],
            }  # fmt: skip
            results.append(result_of(family, name, np.full(COUNT, f1), source) | shared_fields)
            comparison = dict.fromkeys(("difference", "difference_interval", "p_value", "p_holm"))
            if family == "baseline":
                comparison["verdict"] = "baseline"
            elif identity:
                comparison["verdict"] = "identity"
            else:
                comparison = {"verdict": ("worse", "within noise", "better")[number % 3], "difference": f1 - 0.5,
                              "difference_interval": [-0.1, 0.1], "p_value": 0.01,
                              "p_holm": round(0.001 + number / 100, 3)}  # fmt: skip
            rows.append({**shared_fields, **comparison, "score": score,
                         "score_interval": [max(0.0, score - 0.2), min(0.9, score + 0.1)], "supervised": False,
                         "recovered": f1 / 0.6875, "recovered_interval": [0.0, 1.0], "detectable": None,
                         "detectable_corrected": None, "cross_fit": None})  # fmt: skip
            answers[name] = [
                {"id": f"q{i}", "question": f"Question {i}? {HOSTILE}", "references": [f"answer {i}", "other"],
                 "prediction": f"answer {i}" if i < right else ("", f"wrong {HOSTILE}")[number % 2],
                 "f1": float(i < right), "em": float(i < right) / 2,
                 "scores": {"f1": float(i < right), "em": float(i < right) / 2}}
                for i in range(COUNT)
            ]  # fmt: skip
        rows.sort(key=lambda row: (-row["score"], row["name"]))
        best = rows[0]
        best["cross_fit"] = {"score": best["score"] - 0.0625, "score_interval": [0.4375, best["score"]],
                             "difference": 0.3125, "difference_interval": [0.125, 0.5], "recovered": 0.5,
                             "among": 19, "chosen": 0.4}  # fmt: skip
        groups.append({
            "group": source, "source": source, "num_samples": COUNT, "ranking": rows, "passages": 16 - 4 * g,
            "design_effect": 1.25, "confirmation": None, "confirm_command": None, "best_of_family": [best],
            "winner": best["name"],
            "verdict": f"{rows[0]['experiment']} is best. {HOSTILE}", "next": "Integrate it.", "answerable": True,
            "observations": [{"observation": "o", "holds": "yes", "meaning": "m", "action": "a"}],
            "power": {"num_samples": COUNT, "comparisons": 9, "power": 0.8, "detectable": 0.123,
                      "detectable_corrected": 0.234, "target_difference": 0.05, "samples_needed": 1234,
                      "samples_needed_corrected": 2345},
            "controls": {"clean": {"name": "baseline", "score": 0.6875, "score_interval": [0.5, 0.8]},
                         "lower": [{"name": "control_empty", "control": "empty", "score": 0.0625}],
                         "scrambled": None},
        })  # fmt: skip
    answers["control_empty"] = [
        {**row, "prediction": "", "scores": {"f1": 0.0, "em": 0.0}} for row in answers["baseline"]
    ]
    ladder = {
        "ladder": "scaled up", "source": "scaled", "variant": "", "dial": "factor", "unit": "", "axis": "log",
        "levels": [1.0, 117.0], "threshold": 0.34375,
        "transforms": [{"experiment": "baseline", "family": "baseline", "num_samples": COUNT,
                        "scores": [0.6875, 0.0625], "supervised": False, "anchored": True,
                        "status": "crosses", "level": 12.345,
                        "interval": [{"status": "crosses", "level": 9.0}, {"status": "beyond", "level": None}]}],
        "left_out": ["random_k3"], "reason": None,
    }  # fmt: skip
    share = {"score": 0.625, "share": 0.91, "above": [-0.1, 0.2], "reached": "met"}
    source = {"group": "text", "num_samples": COUNT, "clean_score": 0.6875, "best": "rms_scale1.0",
              "best_share": share, "auto": "auto", "auto_share": {**share, "score": 0.6875, "share": 1.0}, "met": "met",
              "reason": None}  # fmt: skip
    low = {**share, "share": 0.8, "reached": "not met"}
    sources = [source, {**source, "group": "alone", "best_share": low, "met": None},
               {**source, "group": "nobody", "best_share": low, "auto_share": low, "met": None},
               {**source, "group": "tied", "best_share": None, "auto_share": None, "met": None,
                "reason": "an empty context scores as much"}]  # fmt: skip
    auto = {"share_wanted": 0.9, "harm_allowed": 0.01, "definition": "As defined.", "met": "met", "sources": sources,
            "recovered": ["text"], "reached": ["text"], "failed": [], "auto_alone": ["alone"], "harm": []}  # fmt: skip
    failed = {**results[1], "name": "broken", "experiment": "broken", "status": "failed", "error": f"k=0: {HOSTILE}"}
    control = {**results[0], "name": "control_empty", "control": "empty", "f1": 0.0, "config_hash": "empty"}
    summary = {
        "sweep": "made_up", "total_experiments": len(results) + 1, "successful": len(results), "failed": 1,
        "results": [*results, failed], "controls": [control], "command": "python run.py -m sweep=made_up",
        "budget": {"minutes": 30, "wanted": COUNT, "stopped": "All rounds are done.", "note": "Pruned.", "halvings": [
            {"round": 1, "samples": 8, "why": "Time.", "groups": [{"group": "text", "kept": [], "left_out": ["x"]}]}]},
        "analysis": {
            "metric": metric, "groups": groups, "draws": [], "across": {"sources": 2, "helped": 1, "alpha": 0.05},
            "atlas": {"tolerance": [ladder]}, "auto": auto,
            "warnings": [{"kind": "all_alike", "level": "warning", "message": HOSTILE + tail, "names": ["random_k3"],
                          "count": 1} for tail in ("", *"abcdefg")],
        },
    }  # fmt: skip
    return summary, answers


def page_content(metric: dict = F1) -> dict:
    """Return what the page of the made-up sweep contains."""
    summary, answers = made_up_sweep(metric)
    configs = [{"config": {"samples": 16, "embed": {"name": n, "same": 1}}, "versions": {"torch": "9"}} for n in "ab"]
    return collect(summary, answers, configs)
