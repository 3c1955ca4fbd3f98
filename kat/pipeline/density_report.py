"""The report of task=density: density.json without its origin, and what is printed. Main entry: `report_of()`."""

from __future__ import annotations

from pathlib import Path

from kat.density.estimate import Density, DensitySpec
from kat.density.gates import FEWEST
from kat.density.records import DensityReport, DuplicateGroups, WeightDiagnostics
from latentwire.harness.progress import log


def report_of(
    spec: DensitySpec, found: Density, near_duplicate: float, groups: DuplicateGroups, diagnostics: WeightDiagnostics
) -> DensityReport:
    """Return the settings and diagnostics of weights.

    Args:
        spec: The settings.
        found: The densities and weights.
        near_duplicate: The cosine of near-duplicates.
        groups: Their groups.
        diagnostics: What the weights do.
    """
    return {
        "estimator": spec.estimator,
        "k": spec.k,
        "gamma": found.gamma,
        "target_ess": spec.target_ess,
        "cap": spec.cap,
        "crowd_cap": spec.crowd_cap,
        "index": found.index,
        "min_recall": spec.min_recall,
        "bandwidth": found.bandwidth,
        "recall": found.recall,
        "error": found.error,
        "weights_error": found.weights_error,
        "lists": None if found.lists is None else found.lists[0],
        "lists_searched": None if found.lists is None else found.lists[1],
        "distinct_embeddings": found.distinct,
        "capped_share": found.capped,
        "near_duplicate": near_duplicate,
        "near_duplicates": groups,
        **diagnostics,
    }


def print_report(report: DensityReport, seconds: float, out: Path, *files: Path) -> None:
    """Print what the weights do.

    Args:
        report: The report.
        seconds: The time that it took.
        out: The weights.
        files: The files of the diagnostics.
    """
    n = report["prompts"]
    print(
        f"{n} prompts, estimator {report['estimator']}, k {report['k']}, bandwidth {report['bandwidth']:.3f}, "
        f"gamma {report['gamma']:.3f}, {report['index']} search (recall {report['recall']:.3f}), {seconds:.1f} s"
    )
    if report["lists"] is not None:
        print(f"{report['lists_searched']} of {report['lists']} lists searched for each different prompt")
    if report["weights_error"]:
        print(f"total variation from the weights of an exact search, on a sample: {report['weights_error']:.3f}")
    ratio = "infinite" if report["p99_p1"] is None else f"{report['p99_p1']:.1f}"
    print(f"ESS {report['ess']:.0f} ({report['ess_share']:.2f} of N)  p99/p1 {ratio}  "
          f"largest weight {report['largest_times_uniform']:.1f} x uniform")  # fmt: skip
    print("mass of each tenth, most crowded first  " + " ".join(f"{mass:.3f}" for mass in report["mass_by_decile"]))
    for name, entry in report["mass_by_source"].items():
        print(f"source {name}: {entry['share']:.3f} of the prompts, {entry['mass']:.3f} of the mass")
    if "clusters" in report:
        c = report["clusters"]
        print(
            f"{c['clusters']} known clusters: total variation from equal shares {c['total_variation_uniform']:.3f} -> "
            f"{c['total_variation']:.3f}, mass of the smaller half {c['rare_uniform']:.3f} -> {c['rare']:.3f} (equal "
            f"shares: {c['rare_wanted']:.2f}), noise {c['noise_uniform']:.3f} -> {c['noise']:.3f}"
        )
    _print_gates(report)
    for warning in report["warnings"]:
        log(f"warning: {warning}")
    log(f"weights: {out}; diagnostics: {', '.join(map(str, files))}")


def _print_gates(report: DensityReport) -> None:
    gates, near = report["gates"], report["near_duplicates"]
    shown = {
        "local share": gates["local_share"],
        "rank correlation with the centre": gates["centre_correlation"],
        "planted crowd over uniform": gates["crowd_ratio"],
        "stability over halves": gates["stability"],
        "agreement of the embedders": gates["agreement"],
        "total variation of their weights": gates["weights_apart"],
    }
    print("gates: " + ", ".join(f"{name} {value:.2f}" for name, value in shown.items() if value is not None))
    if gates["crowd_ratio"] is None:
        log(f"note: fewer than {FEWEST} different prompts, so no crowd is planted and no halves are compared")
    print(
        f"near-duplicates: {near['prompts_in_them']} prompts in {near['groups_of_several']} groups, {near['groups']} "
        "groups in all"
    )
    for group in near["largest"]:
        print(f"  {group['size']} x  " + "  |  ".join(text.replace("\n", " ")[:60] for text in group["texts"]))
