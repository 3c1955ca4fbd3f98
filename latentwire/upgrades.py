"""Upgrades of results and summaries of earlier versions. Main entries: `upgraded_result()`, `upgraded_summary()`."""

from __future__ import annotations

from typing import cast

from latentwire.harness.results import FORMAT, JsonObject


def upgraded_result(old: JsonObject) -> JsonObject:
    """Return a result of format 1 in format 2."""
    result = {"variant": "", "control": None, "model_id": old.get("model"), **old, "format": FORMAT}
    result["num_examples"] = result.pop("asked", None)
    if result.get("status") != "ok":
        return result
    result = {"warnings": [], "fit": None, "latents": None, **result}
    latents, timing = result["latents"], result.get("timing", {})
    if isinstance(latents, dict) and "likeness" in latents:
        others = {name: value for name, value in latents.items() if name != "likeness"}
        result["latents"] = {"mean_pairwise_cosine": latents["likeness"], **others}
    if {"f1", "f1_interval", "em", "em_interval"} <= result.keys():
        names = ("f1", "em")
        result["scores"] = {name: {"mean": result[name], "interval": result[f"{name}_interval"]} for name in names}
    if isinstance(timing, dict):
        unmeasured = {"decode_sec": 0.0, "positions": 0, "shots_sec": 0.0, "shots_positions": 0}
        result["timing"] = {**unmeasured, **timing}
    return result


def upgraded_summary(summary: JsonObject) -> JsonObject:
    """Return a summary of 0.3.0 with the settings of its draw and the examples that decided its rounds.

    0.3.0 evaluated all parts of the data, with one seed for shots and examples.
    """
    results = [result for result in cast(list[object], summary["results"]) if isinstance(result, dict)]
    drawn = [r["num_samples"] + r["too_long"] for r in results if {"num_samples", "too_long"} <= r.keys()]
    budget, seeds = summary.get("budget"), {result.get("seed") for result in results}
    seed = seeds.pop() if len(seeds) == 1 else None
    new: JsonObject = {"part": "all", "samples": max(drawn, default=None), "seed": seed, "shots_seed": seed}
    if isinstance(budget, dict) and "halvings" in budget:
        counts = [budget["first"], *(halving["samples"] for halving in budget["halvings"])]
        halvings = [{"decided_on": n, **one} for n, one in zip(counts, budget["halvings"], strict=False)]
        return {**new, "samples": budget["wanted"], **summary, "budget": {**budget, "halvings": halvings}}
    return {**new, **summary}
