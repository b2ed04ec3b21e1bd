"""Promises of benchmark.py: both ways of a row run in turn, ratios are of the same round, the figures are kept."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from command import REPOSITORY, refusal, succeed


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_under_test", REPOSITORY / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ways_run_in_turn_each_for_long_enough_after_one_call_that_does_not_count(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that only the calls move: the first costs 0.125 s, the second 0.25 s, their first calls 5 s."""
    clock, calls = [0.0], []

    def way(name: str, costs_s: float) -> None:
        clock[0] += costs_s if name in calls else 5.0
        calls.append(name)

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    taken = benchmark.paired({"plain": lambda: way("plain", 0.125), "ours": lambda: way("ours", 0.25)}, 2)
    assert taken == {"plain": pytest.approx([0.125, 0.125]), "ours": pytest.approx([0.25, 0.25])}
    assert calls == ["plain"] * 2 + ["ours"] * 2 + (["plain"] * 3 + ["ours"] * 2) * 2  # 0.375 s, 0.5 s


def test_the_ratio_is_the_median_of_the_rounds_ratios_not_the_ratio_of_the_medians(benchmark: ModuleType) -> None:
    """The machine was four times slower in the second round, for both ways."""
    rows = benchmark.rows_of("x", "frames/s", {"plain": [1.0, 4.0, 3.0], "ours": [0.5, 2.0, 1.0]}, items=8)
    assert [row["ratio_to_plain"] for row in rows] == [1.0, 2.0]
    assert [row["rate"] for row in rows] == [8 / 3, 8.0]
    assert "frames/s" in benchmark.table(rows) and "2.00" in benchmark.table(rows)


def test_every_part_has_the_plain_way_and_ours_and_the_figures_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    words = ("--preset", "smoke", "--rounds", 1, "--device", "cpu", "--out", out)
    printed = succeed("benchmark.py", *words, cwd=tmp_path)
    figures = json.loads(out.read_text())
    found = [(row["what"], row["way"]) for row in figures["rows"]]
    assert found == [
        ("frames drawn", "PyTorch on 1 thread"),
        ("frames drawn", "ONNX Runtime on 1 thread"),
        ("trained on, 4 at a time", "float32"),
        ("trained on, 4 at a time", "bfloat16, channels last"),
        ("frames encoded", "float32, one at a time"),
        ("frames encoded", "float32, channels last, 32 at a time"),
    ]
    for row in figures["rows"]:
        (each_s,) = row["seconds"]
        items = {"frames drawn": 1, "frames encoded": 32}.get(row["what"], 4)
        assert row["rate"] == pytest.approx(items / each_s) and f"{row['rate']:.4g} {row['unit']}" in printed
    for plain, ours in zip(figures["rows"][::2], figures["rows"][1::2], strict=True):
        assert plain["ratio_to_plain"] == 1.0
        assert ours["ratio_to_plain"] == pytest.approx(plain["seconds"][0] / ours["seconds"][0])
    assert set(figures["frame_ms"]) == {"PyTorch on 1 thread", "ONNX Runtime on 1 thread"}
    assert figures["machine"]["threads"] == 1 and printed.splitlines()[-1] == f"wrote {out}"


def test_what_cannot_be_measured_or_written_is_one_line(tmp_path: Path) -> None:
    assert "--preset: invalid choice" in refusal("benchmark.py", "--preset", "large")
    (tmp_path / "file").write_text("in the way")
    line = refusal("benchmark.py", "--out", tmp_path / "file" / "figures.json")
    assert "--out" in line and "is a file" in line
