"""One search from a new process, end to end, and where its time and memory go. Linux and macOS.

    python -m tests.benchmarks.cold DATABASE INDEX QUERY [--rounds 9]

First the command itself, ``colbert-sqlite search``, with nothing added. Then a process that does the same in steps and
looks at the clock after each. Medians of all rounds. Beside the time on the clock stands that of the processor: on a
busy machine the first is waiting too. The index must have been built or searched before, so that the model's export
and the compiled kernels are in their caches. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import sys
sys.argv = ["colbert-sqlite", "search", *sys.argv[1:], "-t"]
from sqlite_utils_colbert.cli import colbert
colbert()
"""
STEPS = """
import resource, sys, time
database, name, query = sys.argv[1:]
marks = []
def mark(step):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    marks.append((step, time.time(), time.process_time(), peak))
mark("start Python")
import numpy
mark("import numpy")
import sqlite_utils
mark("import sqlite_utils")
import sqlite_utils_colbert.cli
mark("import the commands (click, tqdm, tabulate)")
import numba
mark("import numba")
from colbert_sqlite import Index
import colbert_sqlite.index
mark("import our modules")
import onnxruntime, tokenizers
mark("import onnxruntime, tokenizers")
index = Index.open(database, name)
mark("open the index")
encoder = index.load_encoder()
mark("load the model")
encoder.encode_queries([query])
mark("encode the query")
hits = index.search(query)
mark("search, kernels from their cache")
index.search(query)
mark("search again")
print("result", [hit.pk for hit in hits])
import json, os
assert not {"torch", "transformers"} & set(sys.modules), "no export is at hand: index or search once"
print(json.dumps(marks))
sys.stdout.flush()
"""


def run(code: str, *words: str) -> tuple[float, float, int, str]:
    """Seconds on the clock, seconds of the processor, peak memory in bytes and output of a new process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")])}
    started = time.time()
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise SystemExit(f"a round failed: {output}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.time() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database")
    parser.add_argument("index")
    parser.add_argument("query")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    words = (arguments.database, arguments.index, arguments.query)
    whole: list[tuple[float, float, int]] = []
    steps: dict[str, list[tuple[float, float, int]]] = {}
    for _ in range(arguments.rounds):
        whole.append(run(COMMAND, *words)[:3])
        before: Any = (time.time(), 0.0)
        for step, clock, processor, peak in json.loads(run(STEPS, *words)[3].splitlines()[-1]):
            steps.setdefault(step, []).append((clock - before[0], processor - before[1], peak))
            before = (clock, processor)
    print("| | ms | processor, ms | peak memory, MB |")
    print("| --- | ---: | ---: | ---: |")
    for name, rounds in {"**colbert-sqlite search**": whole, **steps}.items():
        clock, processor, peak = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {name} | {1000 * clock:.0f} | {1000 * processor:.0f} | {peak / 1e6:.0f} |")
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"\nMedian of {arguments.rounds} rounds{load}, {os.cpu_count()} processors.")


if __name__ == "__main__":
    main()
