"""Encoders of other packages, found by their entry points, and encoders that a caller brings along."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlite_utils_colbert.cli import colbert

from colbert_sqlite import Index, errors, register
from colbert_sqlite.encoders import export_model, known_models, load_encoder, own_class
from colbert_sqlite.encoders.hashing import HashingEncoder

ACME = """
from colbert_sqlite.encoders.hashing import HashingEncoder


class AcmeEncoder(HashingEncoder):
    def __init__(self, options):
        super().__init__(32)
        self.name = "acme"
        self.fingerprint = "acme" * 16
        self.options = options


class Nameless(AcmeEncoder):
    def __init__(self, options):
        super().__init__(options)
        self.name = "acme-2"


def fail(options):
    raise RuntimeError("no license\\nfor this machine")


def nothing(options):
    return object()
"""


class OwnEncoder(HashingEncoder):
    """An encoder of a caller's own."""

    def __init__(self) -> None:
        super().__init__(32)
        self.name = "minilmm"
        self.fingerprint = "0123456789abcdef" * 4


OWN = f"{__name__}.OwnEncoder"
SENTENCE = (
    f"index 'posts' was built with the encoder {OWN}, which you must pass: Index.open(db, 'posts', model=encoder); "
    "or offer it under the name 'minilmm' as an entry point of the group colbert_sqlite.encoders"
)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a package with the given entry points into a folder of its own."""

    def install_(package: str = "acme-colbert", **entry_points: str) -> None:
        folder = tmp_path / "site-packages" / package
        info = folder / f"{package.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = [f"{name} = {target}" for name, target in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[colbert_sqlite.encoders]", *lines, ""]))
        (folder / "acme_colbert.py").write_text(ACME)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, "acme_colbert", raising=False)

    return install_


@pytest.fixture
def acme(install: Callable[..., None]) -> None:
    """An installed package that offers the encoder acme."""
    install(acme="acme_colbert:AcmeEncoder")


# Plugins


def test_a_plugin_is_loaded_by_its_name_with_the_options(acme: None) -> None:
    encoder = load_encoder("acme", device="cpu", dtype="float32", batch_size=3)
    assert (encoder.name, encoder.dim) == ("acme", 32)
    options = encoder.options  # type: ignore[attr-defined]
    assert (options.device, options.dtype, options.batch_size) == ("cpu", "float32", 3)


def test_plugins_are_listed_without_being_imported(acme: None) -> None:
    last = known_models()[-1]
    assert (last.alias, last.source, last.dim, last.on_this_machine) == ("acme", "package acme-colbert", None, True)
    assert "acme_colbert" not in sys.modules
    listed = CliRunner().invoke(colbert, ["models", "--json"])
    assert json.loads(listed.stdout)[-1]["source"] == "package acme-colbert"
    assert "package acme-colbert" in CliRunner().invoke(colbert, ["models"]).stdout


def test_an_index_of_a_plugin_works_on_the_command_line_and_in_sql(acme: None, db_path: Path) -> None:
    made = CliRunner().invoke(colbert, ["index", str(db_path), "posts", "body", "--model", "acme", "--silent"])
    assert made.exit_code == 0, made.output
    found = CliRunner().invoke(colbert, ["search", str(db_path), "posts", "comet", "--nl"])
    assert json.loads(found.stdout.splitlines()[0])["pk"] == 2
    info = json.loads(CliRunner().invoke(colbert, ["info", str(db_path), "posts", "--json"]).stdout)
    assert (info["model"], info["backend"]) == ("acme", "acme-colbert 1.2")
    conn = sqlite3.connect(db_path)
    register(conn)
    assert json.loads(conn.execute("SELECT colbert_search('posts', 'comet', 1)").fetchone()[0])[0]["pk"] == 2
    conn.close()


def test_an_alias_of_this_package_wins_over_a_plugin(install: Callable[..., None]) -> None:
    install(hashing="acme_colbert:AcmeEncoder")
    assert load_encoder("hashing").dim == 128
    assert [model.source for model in known_models() if model.alias == "hashing"] == ["this package"]


def test_a_folder_wins_over_a_plugin(acme: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "acme").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(errors.ModelError, match="is not a ColBERT model"):
        load_encoder("acme")


def test_a_name_close_to_a_plugin_is_answered_with_the_plugin(acme: None) -> None:
    with pytest.raises(errors.ModelNotFound, match="did you mean acme?"):
        load_encoder("akme")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("acme_colbert:fail", "can't be loaded: RuntimeError: no license"),
        ("acme_colbert:missing", "can't be loaded: AttributeError: module 'acme_colbert' has no attribute 'missing'"),
        ("acme_nowhere:load", "can't be loaded: ModuleNotFoundError: No module named 'acme_nowhere'"),
        ("acme_colbert:nothing", "is not an encoder: it has no name"),
        ("acme_colbert:Nameless", "calls itself 'acme-2': an index would not find it again"),
    ],
)
def test_a_plugin_that_fails_is_named_in_one_sentence(install: Callable[..., None], target: str, sentence: str) -> None:
    install(acme=target)
    with pytest.raises(errors.ModelError) as caught:
        load_encoder("acme")
    assert str(caught.value) == f"the encoder 'acme' of package acme-colbert (entry point {target}) {sentence}"


def test_two_packages_with_one_name_are_refused(install: Callable[..., None]) -> None:
    install("acme-colbert", acme="acme_colbert:AcmeEncoder")
    install("other-colbert", acme="acme_colbert:AcmeEncoder")
    with pytest.raises(errors.ModelError) as caught:
        load_encoder("acme")
    assert str(caught.value) == (
        "the packages acme-colbert and other-colbert both offer an encoder called 'acme': uninstall one"
    )


def test_a_plugin_is_not_exported(acme: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model 'acme' is a plugin: only what torch runs is exported"):
        export_model("acme", tmp_path / "x")


# An encoder of one's own


@pytest.fixture
def own(db_path: Path) -> Path:
    """A database with an index that the caller's own encoder made."""
    Index.create(db_path, "posts", ["body"], model=OwnEncoder()).close()
    return db_path


def test_the_class_of_an_own_encoder_is_known(acme: None) -> None:
    assert own_class(OwnEncoder()) == OWN
    assert own_class(load_encoder("hashing")) == ""
    assert own_class(load_encoder("acme")) == ""


def test_an_index_remembers_the_class_of_its_encoder(own: Path, db_path: Path) -> None:
    with Index.open(own, "posts", model=OwnEncoder()) as index:
        assert (index.settings.model, index.settings.encoder) == ("minilmm", OWN)
        assert index.search("comet")[0].pk == 2
    with Index.create(db_path, "posts", ["body"], model=load_encoder("hashing"), name="other") as index:
        assert index.settings.encoder == ""


def test_without_its_encoder_an_index_says_which_one_made_it(own: Path) -> None:
    with Index.open(own, "posts") as index:
        for use in (lambda: index.search("comet"), lambda: index.load_encoder(), lambda: index.rebuild()):
            with pytest.raises(errors.ModelNotFound) as caught:
                use()
            assert str(caught.value) == SENTENCE
        assert index.verify() == [SENTENCE]
        assert index.info().backend == f"{OWN}, passed by the caller"


def test_the_command_line_and_sql_say_so_too(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = CliRunner().invoke(colbert, ["search", str(own), "posts", "comet"])
    assert (result.exit_code, result.stderr) == (1, f"Error: {SENTENCE}\n")
    info = CliRunner().invoke(colbert, ["info", str(own), "posts", "--json"])
    assert json.loads(info.stdout)["backend"] == f"{OWN}, passed by the caller"
    conn = sqlite3.connect(own)
    register(conn)
    with pytest.raises(sqlite3.OperationalError):
        conn.execute("SELECT colbert_search('posts', 'comet')").fetchone()
    assert [record.getMessage() for record in caplog.records] == [f"colbert_search: {SENTENCE}"]
    conn.close()


def test_an_own_encoder_offered_as_a_plugin_opens_its_index(own: Path, install: Callable[..., None]) -> None:
    install(minilmm="own_encoder:load")
    folder = Path(sys.path[0])
    (folder / "own_encoder.py").write_text(f"from {__name__} import OwnEncoder\ndef load(_): return OwnEncoder()\n")
    with Index.open(own, "posts") as index:
        assert index.search("comet")[0].pk == 2
        assert index.info().backend == "acme-colbert 1.2"


def test_an_own_encoder_that_wraps_a_model_on_this_machine_is_not_needed_again(db_path: Path) -> None:
    class Wrapper(HashingEncoder):
        pass

    Index.create(db_path, "posts", ["body"], model=Wrapper()).close()
    with Index.open(db_path, "posts") as index:
        assert index.search("comet")[0].pk == 2


def test_another_encoder_under_a_name_of_this_package_is_no_model_of_it(db_path: Path) -> None:
    class Impostor(OwnEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.name = "hashing"

    Index.create(db_path, "posts", ["body"], model=Impostor()).close()
    with Index.open(db_path, "posts") as index, pytest.raises(errors.ModelNotFound) as caught:
        index.search("comet")
    assert "Impostor, which you must pass: Index.open(db, 'posts', model=encoder)" in str(caught.value)
