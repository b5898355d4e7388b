"""What clients that come at the same time get from Datasette: a real server, in a process of its own.

    python -m tests.benchmarks.serving DATABASE INDEX [--queries FILE] [--clients 20] [--seconds 120] [--threads 1]

Every client asks for one page after another, without a pause, from a mix: search pages in each mode that the table
allows, with a filter, second pages, JSON, similar rows, the table narrowed by a query, the plain table. Prints
Markdown: requests and times by kind, what was not answered with 200, and the server's memory and its time to the first
answer. FILE has a query a line; without one the titles of rows are asked. Linux.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

from colbert_sqlite.index import Index
from colbert_sqlite.info import has_fts

HOST = "127.0.0.1"
PATIENCE_SECONDS = 120
MEMORY_SECONDS = 5


def requests_of(database: Path, name: str, queries: Sequence[str]) -> list[tuple[str, str]]:
    """Kinds of requests and their addresses, ``{}`` in place of the query."""
    with Index.open(database, name) as index:
        table, keys = index.settings.table, index.key_columns
        with index.read() as view:
            modes = ["colbert", "hybrid", "fts"] if has_fts(view) else ["colbert"]
        pks = [hit.pk for hit in index.search(queries[0], 20)]
    page = f"/{database.stem}/-/colbert/{quote(name)}"
    of_table = f"/{database.stem}/{quote(table)}"
    half = urlencode({f"{keys[0]}__gte": str(sorted(pks, key=str)[len(pks) // 2] if len(keys) == 1 else "")})
    return [
        *((f"page, {mode}", f"{page}?q={{}}&_mode={mode}") for mode in modes),
        ("page, filtered", f"{page}?q={{}}&{half}"),
        ("page 2", f"{page}?q={{}}&_page=2"),
        ("JSON", f"{page}.json?q={{}}"),
        *(("similar", f"{page}/similar/{pk}.json") for pk in pks[:1] if isinstance(pk, int)),
        ("table, narrowed", f"{of_table}?_colbert={{}}"),
        ("table", of_table),
    ]


@contextmanager
def server(database: Path, settings: dict[str, object]) -> Iterator[tuple[int, int, float]]:
    """Port and process of a Datasette that serves the file, and the seconds until it first answered."""
    with closing(socket.socket()) as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "datasette.json")
        config.write_text(json.dumps({"plugins": {"colbert-sqlite": settings}}))
        option = "--config" if datasette_is_1_0() else "--metadata"
        command = [sys.executable, "-m", "datasette", str(database), option, str(config), "-p", str(port)]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        drained = threading.Thread(target=lambda: process.stderr and process.stderr.read(), daemon=True)
        drained.start()
        try:
            while True:
                try:
                    get(port, "/-/versions.json")
                    break
                except OSError:
                    if process.poll() is not None:
                        raise SystemExit("datasette did not start") from None
                    time.sleep(0.02)
            yield port, process.pid, time.perf_counter() - started
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)


def datasette_is_1_0() -> bool:
    from datasette.app import Datasette

    return hasattr(Datasette, "allowed")


def get(port: int, path: str) -> int:
    with closing(http.client.HTTPConnection(HOST, port, timeout=PATIENCE_SECONDS)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status


def megabytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", type=Path)
    parser.add_argument("index")
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    queries = read_queries(options.database, options.index, options.queries)
    asked = requests_of(options.database, options.index, queries)
    times: dict[str, list[float]] = defaultdict(list)
    statuses: Counter[int] = Counter()
    memory: list[float] = []
    settings = {"num_search_threads": options.threads, "max_queued_searches": 2 * options.clients}
    settings["search_time_limit_ms"] = 60_000
    with server(options.database, settings) as (port, pid, first_answer):
        cold = time.perf_counter()
        get(port, asked[0][1].format(quote(queries[0])))
        cold = time.perf_counter() - cold
        end = time.perf_counter() + options.seconds

        def client(number: int) -> None:
            mine = random.Random(number)
            for kind, path in itertools.cycle(mine.sample(asked, len(asked))):
                started = time.perf_counter()
                if started > end:
                    return
                status = get(port, path.format(quote(mine.choice(queries))))
                times[kind].append(time.perf_counter() - started)
                statuses[status] += 1

        clients = [threading.Thread(target=client, args=[number]) for number in range(options.clients)]
        for thread in clients:
            thread.start()
        while any(thread.is_alive() for thread in clients):
            memory.append(megabytes(pid))
            time.sleep(MEMORY_SECONDS)
    report(options, [kind for kind, _ in asked], times, statuses)
    early, late = memory[len(memory) // 5 : 2 * len(memory) // 5] or memory, memory[-max(1, len(memory) // 5) :]
    print(
        f"\nFirst answer {first_answer:.2f} s after the start, first search {cold:.2f} s after that. "
        f"Memory: {memory[0]:.0f} MB at the beginning, {statistics.median(early):.0f} MB in the second fifth of the "
        f"time, {statistics.median(late):.0f} MB in the last, {max(memory):.0f} MB at most."
    )


def report(
    options: argparse.Namespace, kinds: Sequence[str], times: dict[str, list[float]], statuses: Counter[int]
) -> None:
    n = sum(map(len, times.values()))
    print(
        f"{options.clients} clients, {options.seconds:.0f} s, search threads: {options.threads}. {n} requests, "
        f"{n / options.seconds:.1f} a second; statuses {dict(statuses)}\n"
    )
    print("| request | number | p50, ms | p95, ms |\n| --- | ---: | ---: | ---: |")
    for kind, of_kind in [
        *((kind, times[kind]) for kind in kinds),
        ("all", [t for each in times.values() for t in each]),
    ]:
        values = [1000 * value for value in of_kind] or [float("nan")]
        print(f"| {kind} | {len(of_kind)} | {statistics.median(values):.0f} | {quantile(values, 0.95):.0f} |")


def read_queries(database: Path, name: str, path: Path | None) -> list[str]:
    if path is not None:
        return [line for line in path.read_text().splitlines() if line.strip()]
    with Index.open(database, name) as index:
        column = index.settings.heading or index.settings.columns[0]
        table = index.settings.table
    quoted = [part.replace('"', '""') for part in (column, table)]
    with closing(sqlite3.connect(database)) as conn:
        sql = f'SELECT "{quoted[0]}" FROM "{quoted[1]}" WHERE length("{quoted[0]}") > 3 ORDER BY random() LIMIT 500'
        return [str(text)[:80] for (text,) in conn.execute(sql)]


if __name__ == "__main__":
    main()
