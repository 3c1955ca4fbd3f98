"""What a GPU does with this project: tests, sweeps, GRPO and embeddings, in one table. Main entry: `main()`.

make gpu                                                   # about eight minutes on one H100
python -m benchmarks.gpu parts=embed35,atlas samples=100
python -m benchmarks.gpu device=cpu model=tiny_random samples=4 prompts=200 parts=embed   # a trial without a GPU

Each part is a command of its own with a time limit. A part that fails or runs out of time is a row with its reason, and
the others go on. The logs of all parts are in the folder `out`, next to table.md and table.json.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from latentwire.harness.device import accelerator_state, describe_machine
from latentwire.harness.errors import UserError
from latentwire.harness.paths import ROOT
from latentwire.harness.results import write_json, write_jsonl, write_text_atomically
from latentwire.records import read_summary, succeeded

SETTINGS = {
    "parts": "tests,embed35,atlas,grpo,embed",
    "device": "cuda",
    "model": "smollm2",
    "samples": 100,  # examples of each configuration
    "prompts": 100_000,  # short prompts that are embedded
    "out": "outputs/gpu",
}
ATLAS_SLICE = "baseline|rms_scale1.0|nearest_k5_a0.5|anchor_eps0.1|auto"  # transforms of the atlas that are run
WORDS = ("river", "engine", "paper", "winter", "signal", "market", "garden", "planet", "letter", "copper")


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        command: Arguments of Python.
        limit: Most seconds.
        figures: Returns what the table shows, from the part's log.
    """

    command: Sequence[str]
    limit: int
    figures: Callable[[str], str]


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    part: str
    seconds: float
    result: str


def parts(cfg: DictConfig, out: Path) -> dict[str, Part]:
    """Return the parts by name."""
    common = [f"model={cfg.model}", f"device={cfg.device}"]
    sweep = ["-m", f"samples={cfg.samples}", *common]
    prompts = out / "prompts_all.jsonl"
    tests = ["-m", "pytest", "-m", "float_path", "-p", "no:randomly"]
    return {
        "tests": Part(tests, 150, counted),
        "embed35": Part(["run.py", *sweep, "sweep=embed35", f"out={out / 'embed35'}"], 150,
                        lambda _: decoding(out / "embed35")),
        "atlas": Part(["run.py", *sweep, "sweep=atlas", f"only={ATLAS_SLICE}", f"out={out / 'atlas'}"], 240,
                      lambda _: decoding(out / "atlas")),
        "grpo": Part(["-m", "benchmarks.grpo", "lengths=48", "dtypes=bfloat16", "rounds=3", *common], 120, table_of),
        "embed": Part(["run.py", "task=embed", *common, f"prompts_file={prompts}", f"out={out / 'embeddings.pt'}",
                       "force=true"], 120, embedding),
    }  # fmt: skip


def decoding(folder: Path) -> str:
    """Return the size and the speed of a finished sweep."""
    summary = read_summary(folder / "summary.json")
    every = [result for result in [*summary["results"], *summary["controls"]] if succeeded(result)]
    seconds = sum(result["timing"]["decode_sec"] for result in every)
    positions = sum(result["timing"]["positions"] for result in every)
    failed = len(summary["results"]) + len(summary["controls"]) - len(every)
    shown = f"{len(every)} configurations and controls, {positions / max(seconds, 1e-9):,.0f} positions/s of decoding"
    return f"{shown}, {failed} failed" if failed else shown


def counted(log: str) -> str:
    """Return the last line of pytest, without its frame: '412 passed, 3 failed in 90 s'."""
    found = [line.strip("= ") for line in log.splitlines() if re.search(r"\d+ (passed|failed|error)", line)]
    return found[-1] if found else "no test ran"


def table_of(log: str) -> str:
    """Return the rows of the last table in a log, in one line."""
    rows = [line.strip("| ").replace(" | ", ", ") for line in log.splitlines() if re.match(r"\| \d", line)]
    return "; ".join(rows) or "no table"


def embedding(log: str) -> str:
    """Return the last line of an embedding's progress: '100000/100000  0 s left  5210 prompts/s'."""
    found = [line for line in log.splitlines() if line.endswith("prompts/s")]
    return found[-1].partition("hidden")[2].strip() if found else "no progress was logged"


def run_part(name: str, part: Part, out: Path, device: str) -> Row:
    """Run a part, and return its row."""
    started, path = time.perf_counter(), out / f"{name}.log"
    environment = {**os.environ, "LATENTWIRE_DEVICE": device, "PYTHONPATH": str(ROOT)}
    with path.open("w", encoding="utf-8") as log:
        try:
            status = subprocess.run([sys.executable, *part.command], cwd=ROOT, env=environment, stdout=log,
                                    stderr=subprocess.STDOUT, timeout=part.limit, check=False).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return Row(name, time.perf_counter() - started, f"not finished within {part.limit} s; see {path}")
    seconds, told = time.perf_counter() - started, path.read_text(encoding="utf-8", errors="replace")
    if status and name != "tests":  # failed tests are a result
        return Row(name, seconds, f"failed: {(told.strip().splitlines() or ['no message'])[-1]}; see {path}")
    return Row(name, seconds, part.figures(told))


def made_up_prompts(count: int) -> list[dict[str, object]]:
    """Return prompts of 6 to 14 words, each one different."""
    found: list[dict[str, object]] = []
    for number in range(count):
        words = [WORDS[number // 10**place % 10] for place in range(6 + number % 9)]
        found.append({"prompt_id": f"p{number}", "source": "made_up", "prompt": f"{' '.join(words)} {number}?"})
    return found


def render(rows: Sequence[Row], machine: str) -> str:
    """Return the table as Markdown, with the device's name."""
    lines = [f"{machine}, torch {torch.__version__}", "", "| part | seconds | result |", "|---|---|---|"]
    lines += [f"| {row.part} | {row.seconds:.0f} | {row.result.replace('|', '/')} |" for row in rows]
    return "\n".join([*lines, f"| all | {sum(row.seconds for row in rows):.0f} | |", ""])


def main(arguments: list[str]) -> None:
    """Run all parts, and print and write the table."""
    cfg = OmegaConf.merge(SETTINGS, OmegaConf.from_dotlist(arguments))
    assert isinstance(cfg, DictConfig)
    try:
        machine = describe_machine(accelerator_state(cfg.device).device)
    except UserError as error:
        sys.exit(f"error: {error}")
    out = Path(cfg.out).resolve()
    known = parts(cfg, out)
    chosen = str(cfg.parts).split(",")
    if unknown := [name for name in chosen if name not in known]:
        sys.exit(f"error: parts={cfg.parts}: {', '.join(unknown)} unknown; use some of {', '.join(known)}")
    write_jsonl(out / "prompts_all.jsonl", made_up_prompts(cfg.prompts))
    rows = []
    for name in chosen:
        rows.append(run_part(name, known[name], out, cfg.device))
        print(f"{name}: {rows[-1].seconds:.0f} s, {rows[-1].result}", flush=True)
        write_text_atomically(out / "table.md", render(rows, machine))
        write_json(out / "table.json", {"device": machine, "rows": [asdict(row) for row in rows]})
    print(f"\n{render(rows, machine)}\ntable: {out / 'table.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
