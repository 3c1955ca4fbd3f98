"""A made-up finished sweep that is sound, for detectors of finished results. Main entry: `sound_sweep()`.

A model reads inputs that are near real embeddings and answers most questions. Of inputs that are far it makes empty
answers, one common answer, or random words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentwire.analysis.findings import too_fast
from latentwire.analysis.suspicions import suspicions
from latentwire.records import F1, Finding
from latentwire.stats.answers import exact_match, f1_score
from tests.helpers.results import result_of

BEGINNINGS = (
    "bar",
    "con",
    "del",
    "fir",
    "gam",
    "hol",
    "jun",
    "kel",
    "lam",
    "mor",
    "nes",
    "pol",
    "qua",
    "rus",
    "sil",
    "tor",
)
ENDINGS = ("ta", "mo", "ri", "su", "ne", "ko", "va", "li")
WORDS = [beginning + ending for beginning in BEGINNINGS for ending in ENDINGS]
READ = 0.72  # share of the questions that the model answers on clean text
# Source -> distance of its baseline from real embeddings, and of a working repair.
SOURCES = {
    "text": (0.0, 0.02),
    "scaled": (116.0, 0.05),
    "noisy": (1.0, 0.85),
    "shifted": (3.0, 0.1),
    "low_rank": (0.25, 0.2),
}
# Family -> dial, its values, and whether it repairs what can be repaired.
FAMILIES: dict[str, tuple[str, list[float], bool]] = {
    "rms_matching": ("target_scale", [0.8, 1.0, 1.2], True),
    "batch_distribution": ("", [0.0], True),
    "anchor_offset": ("eps", [0.01, 0.05, 0.1], True),
    "nearest_k": ("k", [3, 5, 7], False),
    "soft_vocab": ("tau", [0.05, 0.1, 0.2], False),
    "random_interpolation": ("k", [3], False),
}


@dataclass
class MadeSweep:
    """Results and answers of a sweep, by the name of the result."""

    seed: int
    count: int  # examples
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)
        self.references = [self._words() for _ in range(self.count)]
        self.known = self.generator.random(self.count) < READ  # the questions that the model can answer
        self.guesses = [self._words() for _ in range(self.count)]  # its answers to the others

    def _words(self) -> str:
        return " ".join(self.generator.choice(WORDS, size=int(self.generator.integers(1, 4))))

    def read_answers(self, slips: float = 0.04) -> list[str]:
        """Return answers to inputs that the model reads; a share of `slips` is others'."""
        slipped = self.generator.random(self.count) < slips
        own = zip(self.known, self.references, self.guesses, slipped, strict=True)
        return [self._words() if slip else right if knows else guess for knows, right, guess, slip in own]

    def unread_answers(self) -> list[str]:
        """Return answers to inputs that the model does not read."""
        kinds = self.generator.choice(3, size=self.count, p=[0.4, 0.35, 0.25])
        return ["" if kind == 0 else "1" if kind == 1 else self._words() for kind in kinds]

    def add(self, name: str, family: str, source: str, answers: list[str], distance: float, **more: object) -> None:
        """Add a result. Its inputs have the given distance, and their own sketch and changes."""
        change = 0.0 if family == "baseline" else float(self.generator.uniform(0.2, 0.9))
        changes = change * self.generator.uniform(0.9, 1.1, self.count)
        suffix = "" if source == "text" else f"@{source}"
        self.rows[name + suffix] = [
            {"id": f"q{i}", "question": f"question {i}", "references": [reference], "prediction": answer,
             "cut_off": False, "change": float(changes[i]), "distance": distance, "tokens": 2 * len(answer.split()),
             "passage": f"p{i // 2}", "f1": 0.0, "em": 0.0, "scores": {}}
            for i, (reference, answer) in enumerate(zip(self.references, answers, strict=True))
        ]  # fmt: skip
        sketch = self.generator.standard_normal(16).tolist()
        fields = {"source": source, "experiment": name, "relative_change": change, "sketch": sketch, **more}
        self.results[name + suffix] = result_of(family, name + suffix, np.zeros(self.count), source, **fields)

    def names(self, family: str, source: str) -> list[str]:
        """Return the names of the configurations of a family on a source."""
        return [
            name for name, one in self.results.items()
            if (one["family"], one["group"], one["control"]) == (family, source, None)
        ]  # fmt: skip

    def answer(self, name: str, answers: list[str]) -> None:
        """Replace the answers of a result."""
        for row, answer in zip(self.rows[name], answers, strict=True):
            row["prediction"] = answer
            row["tokens"] = 2 * len(answer.split())

    def answers(self, name: str) -> list[str]:
        """Return the answers of a result."""
        return [row["prediction"] for row in self.rows[name]]

    def copy_inputs(self, name: str, other: str) -> None:
        """Give a result the inputs and answers of another one."""
        self.rows[name] = [dict(row) for row in self.rows[other]]
        self.results[name]["sketch"] = self.results[other]["sketch"]
        self.results[name]["relative_change"] = self.results[other]["relative_change"]

    def findings(self) -> dict[str, list[Finding]]:
        """Score all answers, and return what the detectors find, by name of the result."""
        for name, rows in self.rows.items():
            for row in rows:
                row["f1"] = f1_score(row["prediction"], row["references"])
                row["em"] = exact_match(row["prediction"], row["references"])
                row["scores"] = {"f1": row["f1"], "em": row["em"]}
            f1 = float(np.mean([row["f1"] for row in rows]))
            self.results[name]["scores"]["f1"] = {"mean": f1, "interval": (max(0.0, f1 - 0.1), min(1.0, f1 + 0.1))}
            self.results[name]["num_samples"] = len(rows)
        found = suspicions(self.results.values(), self.rows, F1)  # type: ignore[arg-type]
        for name, one in too_fast(list(self.results.values())).items():  # type: ignore[arg-type]
            found.setdefault(name, []).append(one)
        return found

    def warnings(self) -> dict[str, set[str]]:
        """Return the kinds of the warnings, by name of the result."""
        found = {name: {one["kind"] for one in findings if one["level"] == "warning"}
                 for name, findings in self.findings().items()}  # fmt: skip
        return {name: kinds for name, kinds in found.items() if kinds}


def sound_sweep(seed: int = 0, count: int = 60) -> MadeSweep:
    """Return a sweep of five sources in which nothing is wrong."""
    made = MadeSweep(seed, count)
    made.add("control_empty", "baseline", "text", made.unread_answers(), 0.0, control="empty")
    for source, (before, after) in SOURCES.items():
        readable = {"baseline": before < 0.3, "repaired": after < 0.3}
        answers = made.read_answers(0.0) if readable["baseline"] else made.unread_answers()
        made.add("baseline", "baseline", source, answers, before)
        for family, (dial, values, repairs) in FAMILIES.items():
            for value in values:
                reads = repairs and readable["repaired"]
                answers = made.read_answers() if reads else made.unread_answers()
                dials = {dial: value} if dial else {}
                made.add(f"{family}_{dial}{value}", family, source, answers, after if reads else 1.1, dials=dials)
        family = "rms_matching"
        name = f"control_scrambled_{family}_target_scale1.0"
        made.add(name, family, source, made.unread_answers(), 1.0, control="scrambled", dials={"target_scale": 1.0})
    return made
