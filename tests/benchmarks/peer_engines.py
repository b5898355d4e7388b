"""One engine in one process: builds an index, opens it and answers queries, as asked on standard input.

    python -m tests.benchmarks.peer_engines ENGINE FOLDER INDEX NBITS

In: a JSON request a line, and the embeddings in FOLDER (see ``peers.py``, which starts this with the Python that has
the engine). Out: a JSON answer a line. Leaves to others: taking turns, recall, tables. Imports nothing of the project
before its own engine is asked for: the peers' environments have none of its dependencies.

What is loaded once whatever the index (libraries, compiled extensions, compiled kernels) counts as imports for each
engine, not as opening; queries are in memory before. An engine that must be told its number of threads takes it from
``OMP_NUM_THREADS``.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MIB = 1 << 20

# Passages scored at once by the exhaustive engine: a padded block of them stays in cache.
PASSAGES_AT_ONCE = 64

Setting = tuple[str, int, dict[str, Any]]


class Engine(Protocol):
    """What a benchmark asks of an engine. Making one imports everything it needs."""

    distribution: str

    def settings(self) -> list[Setting]:
        """Label, k and arguments of :meth:`search`. The first one answers the first query of a process."""

    def build(self, centroids: Path | None) -> None:
        """Write the index. With *centroids*, a ``centroids.pt`` of colbert-ai, skip k-means."""

    def open(self) -> None:
        """Do all that a first query needs."""

    def search(self, query: int, k: int, **arguments: Any) -> Any:
        """Answer a query by its number, in whatever form the engine answers."""

    def passages(self, answer: Any, k: int) -> list[int]:
        """Numbers of at most k passages of such an answer, best first. Not timed."""

    def bytes(self) -> int:
        """Size of the index on disk."""


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Data:
    """The embeddings, which every engine is given."""

    def __init__(self, folder: Path, index: Path, nbits: int) -> None:
        self.folder, self.index, self.nbits = folder, index, nbits
        self.queries: NDArray[np.float32] = np.load(folder / "queries.npy").astype(np.float32)

    def passages(self) -> list[NDArray[np.float16]]:
        embeddings = np.load(self.folder / "emb.f16.npy")
        return np.split(embeddings, np.cumsum(np.load(self.folder / "doclens.npy").astype(np.int64))[:-1])


class Ours:
    """The engine alone: embeddings in, passage ids out, over a snapshot of a real database."""

    distribution = "colbert-sqlite"

    def __init__(self, data: Data) -> None:
        from colbert_sqlite.encoders import load_encoder
        from colbert_sqlite.index import Index
        from colbert_sqlite.settings import SearchSettings

        self._data, self._settings = data, SearchSettings
        # Compiled kernels are read from a cache on their first call, as an extension module is on its import.
        with closing(sqlite3.connect(":memory:")) as db:
            db.execute("CREATE TABLE texts (id INTEGER PRIMARY KEY, body TEXT)")
            db.executemany("INSERT INTO texts (body) VALUES (?)", ((f"a {i} b {i + 1}",) for i in range(64)))
            small = Index.create(db, "texts", ["body"], model=load_encoder("hashing"), nbits=data.nbits)
            small.search("a b", k=2, nprobe=4, ndocs=16)

    def settings(self) -> list[Setting]:
        grid = [(8, 256), (16, 512), (16, 1024), (16, 1536), (32, 2048), (32, 4096), (32, 8192), (64, 16384)]
        arguments = [{"nprobe": nprobe, "ndocs": ndocs} for nprobe, ndocs in grid]
        wide = [(f"{each['nprobe']}/{each['ndocs']}", k, each) for k in (10, 100) for each in arguments]
        # A quarter of ndocs is scored exactly, and no fewer passages than k make sense.
        return [("default", 10, {}), ("default", 100, {}), *(each for each in wide if each[1] <= each[2]["ndocs"] // 4)]

    def build(self, centroids: Path | None) -> None:
        from colbert_sqlite.index import Index
        from tests.benchmarks.engine import LookUpEncoder, make_database

        self._data.index.unlink(missing_ok=True)
        make_database(self._data.index, len(np.load(self._data.folder / "doclens.npy")))
        encoder: Any = LookUpEncoder(self._data.folder)
        Index.create(self._data.index, "passages", ["body"], model=encoder, nbits=self._data.nbits).close()

    def open(self) -> None:
        from colbert_sqlite.codec import load_codec
        from colbert_sqlite.storage.connection import connect
        from colbert_sqlite.storage.postings import StoredPostings
        from colbert_sqlite.storage.store import Store

        self._conn, _ = connect(self._data.index)
        store = Store.open(self._conn, "passages")
        stored, self._codec = load_codec(store)
        self._snapshot = StoredPostings(store, stored)
        self._table = store.table("passages")

    def search(self, query: int, k: int, **arguments: Any) -> NDArray[np.int64]:
        from colbert_sqlite.engine import plaid
        from colbert_sqlite.storage.connection import reading

        settings = self._settings(**arguments) if arguments else self._settings.for_k(k)
        with reading(self._conn):
            passage_ids, _ = plaid.search(self._data.queries[query], self._codec, self._snapshot, settings)
        return passage_ids[:k]

    def passages(self, answer: NDArray[np.int64], k: int) -> list[int]:
        sql = f"SELECT p.pk_id FROM json_each(?) AS ids CROSS JOIN {self._table} AS p ON p.passage_id = ids.value"
        return [pk for (pk,) in self._conn.execute(sql, (json.dumps(answer[:k].tolist()),))]

    def bytes(self) -> int:
        """What the file grew by: the same table without an index is subtracted."""
        from tests.benchmarks.engine import make_database

        bare = self._data.index.with_suffix(".bare")
        bare.unlink(missing_ok=True)
        size = make_database(bare, len(np.load(self._data.folder / "doclens.npy")))
        bare.unlink()
        return self._data.index.stat().st_size - size


class OursWhole(Ours):
    """``Index.search``: text in, rows and passages out. Only the encoder is a look-up."""

    def settings(self) -> list[Setting]:
        return [("default", 10, {}), ("default", 100, {})]

    def open(self) -> None:
        from colbert_sqlite.index import Index
        from tests.benchmarks.engine import LookUpEncoder

        encoder: Any = LookUpEncoder(self._data.folder)
        self._index = Index.open(self._data.index, "passages", model=encoder)

    def search(self, query: int, k: int, **arguments: Any) -> Any:
        return self._index.search(str(query), k, **arguments)

    def passages(self, answer: Any, k: int) -> list[int]:
        return [hit.pk for hit in answer[:k]]


class ColbertAi:
    """Stanford's own indexer and searcher, with embeddings in place of the text model."""

    distribution = "colbert-ai"

    def __init__(self, data: Data) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from colbert.infra import ColBERTConfig
        from colbert.modeling.colbert import ColBERT
        from colbert.search.index_storage import IndexScorer
        from colbert.search.strided_tensor import StridedTensor

        # These are compiled on first use anywhere, and loaded on first use in a process.
        for extended in (ColBERT, IndexScorer, StridedTensor):
            extended.try_load_torch_extensions(False)
        self._data, self._config, self._scorer_class = data, ColBERTConfig, IndexScorer
        self._queries = torch.from_numpy(data.queries)

    def settings(self) -> list[Setting]:
        """What ``Searcher.dense_search`` picks for k = 10 and 100, then wider without a threshold."""
        grid = [(1, 256), (2, 1024), (4, 1024), (4, 4096), (8, 4096), (16, 8192)]
        return [
            ("default", 10, {"ncells": 1, "centroid_score_threshold": 0.5, "ndocs": 256}),
            ("default", 100, {"ncells": 2, "centroid_score_threshold": 0.45, "ndocs": 1024}),
            *((f"{p}/{n}", 100, {"ncells": p, "centroid_score_threshold": -9.0, "ndocs": n}) for p, n in grid),
        ]

    def build(self, centroids: Path | None) -> None:
        import torch
        from colbert.data.collection import Collection
        from colbert.indexing import collection_indexer
        from colbert.indexing.index_saver import IndexSaver

        passages = [torch.from_numpy(each) for each in self._data.passages()]

        class Encoder:
            def encode_passages(self, numbers: list[int]) -> Any:
                if not numbers:
                    return None, None
                chosen = [passages[number] for number in numbers]
                return torch.cat(chosen).float(), [len(each) for each in chosen]

        class Indexer(collection_indexer.CollectionIndexer):  # type: ignore[misc]
            def __init__(self, config: Any) -> None:
                self.config, self.verbose, self.rank, self.nranks, self.use_gpu = config, 1, 0, 1, False
                self.collection, self.encoder = Collection(data=list(range(len(passages)))), Encoder()
                self.saver = IndexSaver(config)
                # Without CUDA the library first takes this for a number and sets a tensor, which torch.empty refuses.
                self.num_sample_embs: Any = None

            def _concatenate_and_split_sample(self) -> Any:
                self.num_sample_embs = int(self.num_sample_embs)
                return super()._concatenate_and_split_sample()

            def _train_kmeans(self, sample: Any, shared_lists: Any) -> Any:
                if centroids is None:
                    return super()._train_kmeans(sample, shared_lists)
                return torch.load(centroids).float()

        self._data.index.mkdir(parents=True, exist_ok=True)
        config = self._config(nbits=self._data.nbits, dim=self._data.queries.shape[2], kmeans_niters=4)
        config.index_path = str(self._data.index)
        Indexer(config).run([[]])

    def open(self) -> None:
        self._scorer = self._scorer_class(str(self._data.index), use_gpu=False, load_index_with_mmap=False)

    def search(self, query: int, k: int, **arguments: Any) -> Any:
        found, _ = self._scorer.rank(self._config(**arguments), self._queries[query : query + 1])
        return found

    def passages(self, answer: Any, k: int) -> list[int]:
        return list(answer[:k])

    def bytes(self) -> int:
        return folder_bytes(self._data.index)


class FastPlaid:
    distribution = "fast-plaid"

    def __init__(self, data: Data) -> None:
        import torch
        from fast_plaid import search

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._data, self._class = data, search.FastPlaid
        self._queries = torch.from_numpy(data.queries)

    def settings(self) -> list[Setting]:
        grid = [(1, 256), (4, 1024), (4, 4096)]
        return [
            ("default", 10, {}),
            ("default", 100, {}),
            *((f"{p}/{n}", 100, {"n_ivf_probe": p, "n_full_scores": n}) for p, n in grid),
        ]

    def build(self, centroids: Path | None) -> None:
        import torch

        if centroids is not None:
            from fast_plaid.search import fast_plaid

            fast_plaid.compute_kmeans = lambda *_, **__: torch.load(centroids).half()
        passages = [torch.from_numpy(each) for each in self._data.passages()]
        self._class(index=str(self._data.index), device="cpu").create(passages, nbits=self._data.nbits)

    def open(self) -> None:
        self._engine = self._class(index=str(self._data.index), device="cpu")

    def search(self, query: int, k: int, **arguments: Any) -> Any:
        return self._engine.search(
            self._queries[query : query + 1], top_k=k, show_progress=False, n_processes=1, **arguments
        )

    def passages(self, answer: Any, k: int) -> list[int]:
        return [passage for passage, _ in answer[0][:k]]

    def bytes(self) -> int:
        return folder_bytes(self._data.index)


class XtrWarp:
    distribution = "xtr-warp-rs"

    def __init__(self, data: Data) -> None:
        import torch
        from xtr_warp import XTRWarp

        self._threads = int(os.environ["OMP_NUM_THREADS"])
        torch.set_num_threads(self._threads)
        self._data, self._class = data, XTRWarp
        self._queries = torch.from_numpy(data.queries)

    def settings(self) -> list[Setting]:
        wide = [
            (f"{p} probes", 100, {"nprobe": p, "bound": 2048, "centroid_score_threshold": 0.0}) for p in (4, 8, 16, 32)
        ]
        return [("default", 10, {}), ("default", 100, {}), *wide]

    def build(self, centroids: Path | None) -> None:
        import torch

        if centroids is not None:
            from xtr_warp import search

            shared = torch.load(centroids).float()
            search.compute_kmeans = lambda *_, **__: (shared, shared.shape[1])
        passages = [torch.from_numpy(each) for each in self._data.passages()]
        self._class(index=str(self._data.index)).create(
            passages, device="cpu", nbits=self._data.nbits, show_progress=False
        )

    def open(self) -> None:
        self._engine = self._class(index=str(self._data.index), device="cpu")
        self._engine.load(device="cpu")

    def search(self, query: int, k: int, **arguments: Any) -> Any:
        return self._engine.search(
            self._queries[query : query + 1], top_k=k, num_threads=self._threads, show_progress=False, **arguments
        )

    def passages(self, answer: Any, k: int) -> list[int]:
        return [passage for passage, _ in answer[0][:k]]

    def bytes(self) -> int:
        return folder_bytes(self._data.index)


class Exhaustive:
    """MaxSim of every passage in float32, passages of like length padded to blocks. Its index is the embeddings."""

    distribution = "torch"

    def __init__(self, data: Data) -> None:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._torch, self._data = torch, data
        self._queries = torch.from_numpy(data.queries)

    def settings(self) -> list[Setting]:
        return [("all passages", 100, {})]

    def build(self, centroids: Path | None) -> None:
        pass

    def open(self) -> None:
        passages = self._data.passages()
        by_length = sorted(range(len(passages)), key=lambda i: len(passages[i]))
        self._order = self._torch.tensor(by_length)
        self._blocks = []
        for first in range(0, len(by_length), PASSAGES_AT_ONCE):
            numbers = by_length[first : first + PASSAGES_AT_ONCE]
            longest = len(passages[numbers[-1]])
            # Padding repeats the last token, which changes no maximum.
            rows = [np.minimum(np.arange(longest), len(passages[i]) - 1) for i in numbers]
            block = np.stack([passages[i][row] for i, row in zip(numbers, rows, strict=True)]).astype(np.float32)
            self._blocks.append(self._torch.from_numpy(block))

    def search(self, query: int, k: int, **arguments: Any) -> Any:
        transposed = self._queries[query].T.contiguous()
        scores = self._torch.cat([(block @ transposed).amax(1).sum(1) for block in self._blocks])
        return self._order[scores.topk(k).indices]

    def passages(self, answer: Any, k: int) -> list[int]:
        found: list[int] = answer[:k].tolist()
        return found

    def bytes(self) -> int:
        return (self._data.folder / "emb.f16.npy").stat().st_size


ENGINES: dict[str, Callable[[Data], Engine]] = {
    "colbert-sqlite": Ours,
    "Index.search": OursWhole,
    "colbert-ai": ColbertAi,
    "fast-plaid": FastPlaid,
    "xtr-warp": XtrWarp,
    "exhaustive": Exhaustive,
}


def status(key: str) -> float | None:
    """A size in the kernel's account of this process, in MiB; None where it keeps none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 / MIB for line in lines if line.startswith(f"{key}:"))


def forget_peak() -> None:
    """Let the kernel count the highest resident size from here on."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


class Worker:
    """Answers requests: the methods, by name."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        start = time.perf_counter()
        self._engine = make()
        self._import_seconds = time.perf_counter() - start
        self._before = {key: status(key) for key in ("VmRSS", "RssAnon")}
        forget_peak()

    def build(self, centroids: str | None) -> dict[str, Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        self._engine.build(Path(centroids) if centroids else None)
        return {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "peak_mib": self._above_imports("VmHWM", "VmRSS"),
        }

    def open(self) -> dict[str, Any]:
        _, k, arguments = self._engine.settings()[0]
        start = time.perf_counter()
        self._engine.open()
        opened = time.perf_counter()
        answer = self._engine.search(0, k, **arguments)
        answered = time.perf_counter()
        self._engine.passages(answer, k)
        loaded = self._above_imports("VmHWM", "VmRSS")
        forget_peak()
        return {
            "import_seconds": self._import_seconds,
            "open_ms": 1000 * (opened - start),
            "first_ms": 1000 * (answered - opened),
            "loading_mib": loaded,
        }

    def search(self, setting: int, queries: list[int], passages: bool) -> dict[str, Any]:
        _, k, arguments = self._engine.settings()[setting]
        ms, cpu_ms, found = [], [], []
        for query in queries:
            start, cpu_start = time.perf_counter(), time.process_time()
            answer = self._engine.search(query, k, **arguments)
            ms.append(1000 * (time.perf_counter() - start))
            cpu_ms.append(1000 * (time.process_time() - cpu_start))
            if passages:
                found.append(self._engine.passages(answer, k))
        return {"ms": ms, "cpu_ms": cpu_ms, "passages": found}

    def facts(self) -> dict[str, Any]:
        return {
            "settings": self._engine.settings(),
            "version": version(self._engine.distribution),
            "bytes": self._engine.bytes(),
        }

    def memory(self) -> dict[str, Any]:
        """The most since the first query, in all; and now, without pages of files that the system can take back."""
        return {
            "searching_mib": self._above_imports("VmHWM", "VmRSS"),
            "anonymous_mib": self._above_imports("RssAnon", "RssAnon"),
        }

    def _above_imports(self, key: str, before: str) -> float | None:
        now, then = status(key), self._before[before]
        return None if now is None or then is None else now - then


def main() -> None:
    name, folder, index, nbits = sys.argv[1:]
    # Libraries print what they do: only answers go where answers are read.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    data = Data(Path(folder), Path(index), int(nbits))
    worker = Worker(lambda: ENGINES[name](data))
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(worker, request.pop("do"))(**request)), file=answers)


if __name__ == "__main__":
    main()
