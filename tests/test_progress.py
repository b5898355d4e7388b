"""The time and the memory of a build, stage by stage."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.index import Index
from colbert_sqlite.progress import BuildReport, Progress, memory


def test_the_steps_of_a_stage_add_up() -> None:
    report = BuildReport()
    for stage in ("encode", "write", "encode"):
        with report.step(stage):
            time.sleep(0.02)
    assert list(report.stages) == ["encode", "write"]
    assert report.stages["encode"].seconds >= 0.04
    assert report.stages["write"].seconds >= 0.02


def test_a_step_counts_when_it_fails_too() -> None:
    report = BuildReport()
    with pytest.raises(ZeroDivisionError), report.step("train"):
        time.sleep(0.02)
        _ = 1 / 0
    assert report.stages["train"].seconds >= 0.02


def test_getting_items_is_counted_and_using_them_is_not() -> None:
    report = BuildReport()
    began = time.perf_counter()
    for _ in report.steps("read", iter(range(3))):
        time.sleep(0.02)
    assert report.stages["read"].seconds < time.perf_counter() - began - 0.05


def test_nothing_to_read_is_a_stage_of_no_items() -> None:
    assert list(BuildReport().steps("read", [])) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no anonymous memory")
def test_memory_grows_with_what_is_held() -> None:
    before = memory()
    held = np.ones(8 << 20)
    after = memory()
    assert before.anonymous is not None and after.anonymous is not None and after.peak is not None
    assert after.anonymous - before.anonymous == pytest.approx(held.nbytes, rel=0.2)
    assert after.peak >= after.anonymous


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_without_proc_the_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    anonymous, peak = memory()
    assert anonymous is None
    assert peak is not None and peak > 10_000_000
    monkeypatch.setattr("colbert_sqlite.progress.resource", None)
    assert memory() == (None, None)


def test_a_build_reports_its_stages_and_an_index_that_is_opened_has_none(db_path: Path, encoder: Encoder) -> None:
    with Index.create(db_path, "posts", ["body"], model=encoder) as index:
        assert index.build_report is not None
        assert list(index.build_report.stages) == ["read", "encode", "train", "compress", "write", "invert"]
        assert index.build_report.n_tokens == index.counts().tokens
    with Index.open(db_path, "posts") as index:
        assert index.build_report is None
        index.rebuild()
        report = index.build_report
        assert report is not None
        assert list(report.stages) == ["load", "read", "encode", "train", "compress", "write", "invert"]


def test_work_that_fails_keeps_the_report_of_what_was_done(small_index: Index) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    before = small_index.build_report
    assert before is not None
    with pytest.raises(KeyboardInterrupt):
        small_index.rebuild(progress=stop)
    small_index.optimize()
    assert small_index.build_report is before
