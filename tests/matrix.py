"""Run chosen tests several times: under each set of CPU instructions, or with several seeds. Prints a table.

python -m tests.matrix              the floating-point paths: each set of instructions, one thread and two
python -m tests.matrix --seeds 10   the statistical tests with TEST_SEED from 0 to 9
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.helpers.paths import ROOT, TESTS

# Values of ATEN_CPU_CAPABILITY from the least to the most, by kind of processor. PyTorch takes an x86 value without
# asking whether the processor has the instructions, so nothing above what it chooses itself is tried.
CAPABILITIES = {
    "x86_64": ["default", "avx2", "avx512"],
    "amd64": ["default", "avx2", "avx512"],
    "aarch64": ["default", "sve", "sve256"],
    "arm64": ["default", "sve", "sve256"],
}
CAPABILITY = "import torch; print(torch.backends.cpu.get_cpu_capability())"


@dataclass
class Run:
    """One run of the chosen tests.

    Args:
        capability: Value of ATEN_CPU_CAPABILITY; "" leaves the choice to PyTorch.
        threads: Threads of each process.
        order: Seed of the order of the tests.
        hashes: Value of PYTHONHASHSEED.
        data: Value of TEST_SEED.
    """

    capability: str
    threads: int
    order: int
    hashes: int
    data: int

    def environment(self) -> dict[str, str]:
        """Return the environment of the run."""
        named = {
            "OMP_NUM_THREADS": self.threads,
            "TEST_THREADS": self.threads,
            "PYTHONHASHSEED": self.hashes,
            "TEST_SEED": self.data,
        }
        own = {name: str(value) for name, value in named.items()}
        if self.capability:
            own["ATEN_CPU_CAPABILITY"] = self.capability
        return {**os.environ, **own}


def capability(value: str = "") -> str:
    """Return the instructions that PyTorch uses when ATEN_CPU_CAPABILITY has this value, in small letters."""
    environment = {name: text for name, text in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    environment |= {"ATEN_CPU_CAPABILITY": value} if value else {}
    line = [sys.executable, "-c", CAPABILITY]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip().lower()


def capabilities() -> list[str]:
    """Return the values of ATEN_CPU_CAPABILITY that this processor has, each a different set of instructions."""
    own = capability()
    known = CAPABILITIES.get(platform.machine().lower(), [])
    if own not in known:
        return [""]
    return [value for value in known[: known.index(own) + 1] if capability(value) == value]


def runs(seeds: int) -> Iterator[Run]:
    """Yield the runs: one for each seed, or one for each set of instructions and one more with two threads."""
    if seeds:
        yield from (Run("", 1, seed, seed, seed) for seed in range(seeds))
        return
    found = capabilities()
    for number, value in enumerate(found, 1):
        yield Run(value, 1, number, number, 0)
    yield Run(found[-1], 2, len(found) + 1, len(found) + 1, 0)


def files(marked: str) -> list[str]:
    """Return the test files with this mark, or none, for all files, where it is an expression of several."""
    found = [path for path in sorted(TESTS.rglob("test_*.py")) if f"mark.{marked}" in path.read_text(encoding="utf-8")]
    return [str(path.relative_to(ROOT)) for path in found]


def main() -> int:
    """Run the matrix and return the exit status: 1 if any run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=0, help="number of seeds; 0 runs the matrix of CPU instructions")
    parser.add_argument("--select", help="expression of markers; float_path, with seeds statistical")
    parser.add_argument("--workers", default="logical", help="processes at a time, as in pytest --numprocesses")
    asked = parser.parse_args()
    marked = asked.select or ("statistical" if asked.seeds else "float_path")
    print("| capability | threads | order seed | hash seed | TEST_SEED | result | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    failed = False
    for run in runs(asked.seeds):
        line = [sys.executable, "-m", "pytest", "-m", marked, "--numprocesses", asked.workers, "--dist", "worksteal",
                f"--randomly-seed={run.order}", "--durations=0", "--durations-min=9999", *files(marked)]  # fmt: skip
        began = time.monotonic()
        done = subprocess.run(line, cwd=ROOT, env=run.environment(), capture_output=True, text=True)
        told = [found for found in done.stdout.splitlines() if re.search(r"\d+ (passed|failed|error)", found)]
        result = re.sub(r"(^=+ | in .*$)", "", told[-1]) if told else f"exit status {done.returncode}"
        cells = [run.capability or capability(), run.threads, run.order, run.hashes, run.data, result]
        print(f"| {' | '.join(map(str, cells))} | {time.monotonic() - began:.0f} |", flush=True)
        if done.returncode:
            failed = True
            print(done.stdout[-20_000:] + done.stderr[-5_000:], flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
