"""The engine against its peers on the same embeddings: latency, recall, opening, memory, building, size.

    python -m tests.benchmarks.peers FOLDER [--peer colbert-ai=PYTHON] [--peer fast-plaid=PYTHON]
        [--peer xtr-warp=PYTHON] [--peer exhaustive=PYTHON] [--nbits 4 2] [--threads 1 2]
        [--chart docs/internals/latency_recall.svg]
    python -m tests.benchmarks.peers --from RESULTS [--chart FILE]

FOLDER holds emb.f16.npy (tokens, dim), doclens.npy, queries.npy (queries, tokens, dim) and gt_ids.npy (queries, 100),
the exhaustive ranking. PYTHON is an interpreter whose environment has that engine. Indexes are made in WORK
(FOLDER/peers unless given), ours in every run and a peer's once; --peer-index colbert-ai=INDEX takes one that is there,
{nbits} stands for the number. With --share-centroids the first index of colbert-ai lends its centroids to all other
indexes of peers, which spares them their k-means; the table says so.

Every engine runs in a process of its own, all at one number of threads, and they take turns: a round asks each of them
each of its settings once, and the next round begins with another engine. A query's latency is its median over the
rounds. Recall is that of all queries, from a round of its own. Prints Markdown and writes JSON lines, from which tables
and chart can be made again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.peer_engines import ENGINES

Record = dict[str, Any]

OURS = ("colbert-sqlite", "Index.search")
COLOURS = {
    "colbert-sqlite": "#c2410c",
    "Index.search": "#a16207",
    "colbert-ai": "#1d4ed8",
    "fast-plaid": "#15803d",
    "xtr-warp": "#7e22ce",
    "exhaustive": "#57534e",
}
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
REPOSITORY = Path(__file__).parents[2]

# A stored embedding is a float16; what has no residuals is listed under its bits.
UNCOMPRESSED = 16


class Process:
    """An engine that answers requests, see ``peer_engines.py``."""

    def __init__(self, name: str, python: str, folder: Path, index: Path, nbits: int, threads: int, log: Path) -> None:
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", **{each: str(threads) for each in THREAD_VARIABLES})
        # colbert-ai calls the ninja of its environment.
        environment["PATH"] = os.pathsep.join([str(Path(python).absolute().parent), environment["PATH"]])
        self.name, self.nbits, self._log = name, nbits, log
        with log.open("a") as stderr:
            self._process = subprocess.Popen(
                [python, "-m", "tests.benchmarks.peer_engines", name, str(folder), str(index), str(nbits)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=REPOSITORY,
                env=environment,
            )
        self._answer()

    def ask(self, do: str, **arguments: Any) -> Record:
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> Record:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} at {self.nbits} bits ended without an answer, {self._log} may say why")
        answer: Record = json.loads(line)
        return answer


class Benchmark:
    """One run over one folder. Yields records as they are measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._folder = arguments.folder.absolute()
        self._work = (arguments.work or self._folder / "peers").absolute()
        self._work.mkdir(parents=True, exist_ok=True)
        self._pythons = dict.fromkeys(OURS, sys.executable) | dict(arguments.peer)
        self._indexes = dict(arguments.peer_index)
        self._truth = np.load(self._folder / "gt_ids.npy")
        self._queries = np.linspace(0, len(self._truth) - 1, arguments.queries or len(self._truth)).astype(int)
        self._tokens = int(np.load(self._folder / "doclens.npy").sum(dtype=np.int64))
        self._recall: dict[tuple[str, int, int], Record] = {}

    def records(self) -> Iterator[Record]:
        passages = len(np.load(self._folder / "doclens.npy"))
        yield {
            "what": "run",
            "machine": f"{processor()}, {os.cpu_count()} cores",
            "passages": passages,
            "tokens": self._tokens,
            "queries": len(self._queries),
            "rounds": self._arguments.rounds,
        }
        engines = [(name, nbits) for name in self._pythons for nbits in self._bits(name)]
        for name, nbits in engines:
            if name not in ("Index.search", "exhaustive"):
                yield {"what": "build", "engine": name, "nbits": nbits, **self._build(name, nbits)}
        for threads in self._arguments.threads:
            yield from self._searches(engines, threads)

    def _bits(self, name: str) -> list[int]:
        return [UNCOMPRESSED] if name == "exhaustive" else self._arguments.nbits

    def _index(self, name: str, nbits: int) -> Path:
        if name in self._indexes:
            return Path(self._indexes[name].format(nbits=nbits)).absolute()
        return Path(self._work) / (f"{OURS[0]}-{nbits}.db" if name in OURS else f"{name}-{nbits}")

    def _process(self, name: str, nbits: int, threads: int) -> Process:
        log = self._work / f"{name}.log"
        return Process(name, self._pythons[name], self._folder, self._index(name, nbits), nbits, threads, log)

    def _build(self, name: str, nbits: int) -> Record:
        """What building took: now, or when the index that is there was built, as a file beside it says."""
        index = self._index(name, nbits)
        told = index.with_name(f"{index.name}.build.json")
        if index.exists() and (name not in OURS or self._arguments.keep):
            known: Record = json.loads(told.read_text()) if told.exists() else {}
            return known
        if index.is_dir():
            shutil.rmtree(index)
        threads = max(self._arguments.threads)
        process = self._process(name, nbits, threads)
        first = "colbert-ai", self._arguments.nbits[0]
        lent = self._arguments.share_centroids and name not in OURS and (name, nbits) != first
        centroids = str(self._index(*first) / "centroids.pt") if lent else None
        record = {"threads": threads, "k_means": not lent, **process.ask("build", centroids=centroids)}
        process.close()
        told.write_text(json.dumps(record))
        return record

    def _searches(self, engines: list[tuple[str, int]], threads: int) -> Iterator[Record]:
        processes: list[Process] = []
        for name, nbits in engines:
            starts = []
            for _ in range(self._arguments.starts):
                process = self._process(name, nbits, threads)
                starts.append(process.ask("open"))
                if len(starts) < self._arguments.starts:
                    process.close()
            processes.append(process)
            facts = process.ask("facts")
            yield {
                "what": "open",
                "engine": name,
                "nbits": nbits,
                "threads": threads,
                "version": facts["version"],
                "bytes_per_token": facts["bytes"] / self._tokens,
                **{key: median_or_none([start[key] for start in starts]) for key in starts[0]},
            }
        settings = {process: process.ask("facts")["settings"] for process in processes}
        counts = {}
        for process in processes:
            for number, (_, k, _) in enumerate(settings[process]):
                counts[process, number] = self._first_round(process, number, k)
        answers: dict[tuple[Process, int], list[Record]] = {place: [] for place in counts}
        for turn in range(self._arguments.rounds):
            first = turn * len(processes) // self._arguments.rounds
            for process in processes[first:] + processes[:first]:
                for number in range(len(settings[process])):
                    spread = np.linspace(0, len(self._queries) - 1, counts[process, number]).astype(int)
                    queries = self._queries[spread].tolist()
                    answers[process, number].append(
                        process.ask("search", setting=number, queries=queries, passages=False)
                    )
        for process in processes:
            memory = process.ask("memory")
            for number, (label, k, arguments) in enumerate(settings[process]):
                yield {
                    "what": "query",
                    "engine": process.name,
                    "nbits": process.nbits,
                    "threads": threads,
                    "setting": label,
                    "k": k,
                    "arguments": arguments,
                    **latencies(
                        *(np.array([each[key] for each in answers[process, number]]) for key in ("ms", "cpu_ms"))
                    ),
                    **self._recall[process.name, process.nbits, number],
                }
            yield {"what": "memory", "engine": process.name, "nbits": process.nbits, "threads": threads, **memory}
            process.close()

    def _first_round(self, process: Process, number: int, k: int) -> int:
        """How many queries a round has time for. Measures recall, unless that is known from other threads."""
        place = process.name, process.nbits, number
        known = place in self._recall
        queries = (self._queries[:4] if known else self._queries).tolist()
        answer = process.ask("search", setting=number, queries=queries, passages=not known)
        if not known:
            self._recall[place] = {
                f"recall@{n}": recall(answer["passages"], self._truth[queries], n) for n in (10, 100) if n <= k
            }
        fits = int(1000 * self._arguments.seconds / np.median(answer["ms"]))
        return int(min(len(self._queries), max(self._arguments.at_least, fits)))


def recall(found: list[list[int]], truth: NDArray[np.integer], n: int) -> float:
    """Mean share of the exhaustive top n among the n passages found."""
    shares = [len(set(ids[:n]) & set(row[:n].tolist())) / n for ids, row in zip(found, truth, strict=True)]
    return float(np.mean(shares))


def latencies(ms: NDArray[np.float64], cpu_ms: NDArray[np.float64]) -> Record:
    """Percentiles over queries, of each query's median over the rounds and of its fastest; mean CPU time.

    :param ms: float64 [n_rounds, n_queries]
    :param cpu_ms: float64 [n_rounds, n_queries], of all threads. On a busy machine it stays nearer to the truth
    """
    middle, fastest = np.median(ms, axis=0), ms.min(axis=0)
    return {
        "p50": float(np.percentile(middle, 50)),
        "p95": float(np.percentile(middle, 95)),
        "p50_fastest": float(np.percentile(fastest, 50)),
        "p95_fastest": float(np.percentile(fastest, 95)),
        "cpu": float(np.median(cpu_ms, axis=0).mean()),
        "timed": ms.shape[1],
    }


def median_or_none(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def tables(records: list[Record]) -> str:
    """Markdown: what was measured on, a row per index and number of threads, a row per setting."""
    kept = {
        (r["what"], r.get("engine"), r.get("nbits"), r.get("threads"), r.get("setting"), r.get("k")): r for r in records
    }
    by_what: dict[str, list[Record]] = {"run": [], "build": [], "open": [], "query": [], "memory": []}
    for record in kept.values():
        by_what[record["what"]].append(record)
    (run,) = by_what["run"]
    builds = {(r["engine"], r["nbits"]): r for r in by_what["build"]}
    memories = {(r["engine"], r["nbits"], r["threads"]): r for r in by_what["memory"]}
    lines = [
        f"{run['machine']}; {run['passages']:,} passages, {run['tokens']:,} tokens, {run['queries']} queries,"
        f" {run['rounds']} rounds",
        "",
        "| engine | bits | threads | p50 ms | p95 ms | CPU ms | recall@10 | recall@100 | k | setting |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for r in sorted(by_what["query"], key=lambda r: (r["threads"], -r["nbits"])):
        times = [shown(r[key], 1) for key in ("p50", "p95", "cpu")]
        recalls = [shown(r.get(key), 3) for key in ("recall@10", "recall@100")]
        lines.append(row(r["engine"], bits(r["nbits"]), r["threads"], *times, *recalls, r["k"], r["setting"]))
    lines += [
        "",
        "| engine | version | bits | build s | CPU s | peak MiB | bytes a token | threads | import s | open ms |"
        " first query ms | peak MiB | anonymous MiB |",
        "| --- | --- |" + " ---: |" * 11,
    ]
    for r in sorted(by_what["open"], key=lambda r: (r["threads"], -r["nbits"])):
        build = builds.get((r["engine"], r["nbits"]), {})
        memory = memories.get((r["engine"], r["nbits"], r["threads"]), {})
        lines.append(
            row(
                r["engine"],
                r["version"],
                bits(r["nbits"]),
                shown(build.get("seconds"), 0) + ("" if build.get("k_means", True) else " without k-means"),
                shown(build.get("cpu_seconds"), 0),
                shown(build.get("peak_mib"), 0),
                shown(r["bytes_per_token"], 1),
                r["threads"],
                shown(r["import_seconds"], 1),
                shown(r["open_ms"], 1),
                shown(r["first_ms"], 1),
                shown(memory.get("searching_mib"), 0),
                shown(memory.get("anonymous_mib"), 0),
            )
        )
    lines += [
        "",
        "Peak: highest resident size above the imports, while building and after the first query. Anonymous: without"
        " pages of files.",
    ]
    return "\n".join(lines)


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def bits(nbits: int) -> str:
    return "-" if nbits == UNCOMPRESSED else str(nbits)


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both latency and recall, fastest first."""
    best: list[tuple[float, float]] = []
    for latency, found in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or found > best[-1][1]:
            best.append((latency, found))
    return best


def draw(records: list[Record], path: Path) -> None:
    """Latency against recall at the fewest threads: a line per engine and bits, through its best settings."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    # Text stays text, and the same records give the same file.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "latency", "font.size": 10})
    threads = min(r["threads"] for r in records if r["what"] == "query")
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    figure.set_facecolor("white")
    for panel, key in zip(panels, ("recall@10", "recall@100"), strict=True):
        curves: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for r in records:
            if r["what"] == "query" and r["threads"] == threads and key in r and r["engine"] != "Index.search":
                curves.setdefault((r["engine"], r["nbits"]), []).append((r["p50"], r[key]))
        ends = []
        for (engine, nbits), points in curves.items():
            line = frontier(points)
            panel.plot(
                *zip(*line, strict=True),
                color=COLOURS[engine],
                linestyle="--" if nbits == 2 else "-",
                linewidth=2.4 if engine in OURS else 1.6,
                marker="o",
                markersize=4,
            )
            label = "exhaustive, float32" if nbits == UNCOMPRESSED else f"{engine}, {nbits} bits"
            ends.append((*line[-1], label, COLOURS[engine]))
        panel.set_xscale("log")
        panel.set_xlabel(f"milliseconds a query, median, {threads} thread{'s' if threads > 1 else ''}")
        panel.set_title(key, loc="left", fontweight="bold")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(color="#e7e5e4", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        low, high = panel.get_xlim()
        # Room for the labels right of where the lines end.
        panel.set_xlim(low, high * (high / low) ** 0.35)
        place_labels(figure, panel, ends)
    figure.savefig(path, metadata={"Date": None})
    print(f"{path}: {path.stat().st_size:,} bytes", file=sys.stderr)


def place_labels(figure: Any, panel: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each label beside the end of its line, lower ones moved down where two would meet."""
    height, width = 13, 130
    figure.canvas.draw()
    placed: list[tuple[float, float]] = []
    for x, y, label, color in sorted(ends, key=lambda end: -end[1]):
        across, up = panel.transData.transform((x, y)) * 72 / figure.dpi
        wanted = up
        while clashes := [other for where, other in placed if abs(where - across) < width and abs(other - up) < height]:
            up = min(clashes) - height
        placed.append((across, up))
        panel.annotate(
            label,
            (x, y),
            (7, up - wanted),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )


def pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or name not in ENGINES or name in OURS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(set(ENGINES) - set(OURS))}, =, and a path")
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--peer", type=pair, action="append", default=[], help="NAME=PYTHON")
    parser.add_argument("--peer-index", type=pair, action="append", default=[], help="NAME=FOLDER, may have {nbits}")
    parser.add_argument(
        "--share-centroids", action="store_true", help="only the first index of colbert-ai runs k-means"
    )
    parser.add_argument("--nbits", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--queries", type=int, help="so many of them, evenly spread; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="a setting in a round: slow ones get fewer queries")
    parser.add_argument("--at-least", type=int, default=10, help="queries of a slow setting")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes that open the index")
    parser.add_argument("--work", type=Path, help="folder for indexes")
    parser.add_argument("--keep", action="store_true", help="use our indexes of an earlier run")
    parser.add_argument("--results", type=Path, help="JSON lines; default: results.jsonl in WORK")
    parser.add_argument("--from", type=Path, dest="source", help="JSON lines of an earlier run: measure nothing")
    parser.add_argument("--chart", type=Path)
    arguments = parser.parse_args()
    if (arguments.folder is None) == (arguments.source is None):
        parser.error("give either FOLDER or --from RESULTS")
    if arguments.source is not None:
        records = [json.loads(line) for line in arguments.source.read_text().splitlines()]
    else:
        records = []
        results = arguments.results or (arguments.work or arguments.folder / "peers") / "results.jsonl"
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("w") as lines:
            for record in Benchmark(arguments).records():
                print(json.dumps(record), file=lines, flush=True)
                print(json.dumps(record), file=sys.stderr, flush=True)
                records.append(record)
    print(tables(records))
    if arguments.chart is not None:
        draw(records, arguments.chart)


if __name__ == "__main__":
    main()
