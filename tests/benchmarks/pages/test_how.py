"""Every figure that the pages show is explained."""

import subprocess
import sys

import pytest

from benchmarks.pages.columns import COLUMNS
from benchmarks.pages.how import how
from benchmarks.pages.sections import sections
from benchmarks.pages.tables import stability_table
from tests.benchmarks.reports import full_report, measured, plain_report


def test_every_column_and_every_section_of_figures_is_explained() -> None:
    report = full_report()
    terms = [own for term in how(report) for own in term.split("; ")]
    assert len(set(terms)) == len(terms)
    assert set(COLUMNS) <= set(terms)
    assert set(stability_table(report.rows).columns) <= set(terms)
    titles = {section.title for section in sections(report)}
    own = {"Clip budget", "Sustained speed", "Slowest operations", "What int8 cost", "Crops cut otherwise"}
    assert own | {"By method of forgery"} <= titles & set(terms)


@pytest.mark.parametrize(
    ("repeats", "told"), [((50, 50, 50), "over 50 repeats"), ((50, 10, 17), "over 10 to 50 repeats")]
)
def test_latency_tells_over_how_many_repeats_percentiles_were_taken(repeats: tuple[int, ...], told: str) -> None:
    report = plain_report()
    report.rows = [measured(f"{index}.pte", 4.0, 5_000_000, repeats=count) for index, count in enumerate(repeats)]
    assert told in how(report)["p50, ms; p90, ms; p99, ms"]


def test_names_of_teachers_and_students_are_told_or_their_lack() -> None:
    report = plain_report()
    assert "The fp32 teacher is runs/dino (vit_base_patch14_dinov2, torch fp32)." in how(report)["Speedup; Size ratio"]
    assert "Fp32 runs: student-fp32.pte." in how(report)["Verdict flips; Flips at EER; Frame flips"]
    report.rows = []
    assert "missing, so there are none" in how(report)["Speedup; Size ratio"]
    assert "over 0 repeats" in how(report)["p50, ms; p90, ms; p99, ms"]


def test_a_peak_says_that_torch_is_in_it_as_long_as_the_runtime_needs_it() -> None:
    """500 MB that no app has, beside ONNX Runtime's 140."""
    code = "import sys; from export.runtimes import import_runtime; import_runtime('executorch'); print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True).split()
    assert "executorch.exir" not in loaded  # its compiler, 210 MB more
    told = how(full_report())
    for name in ("Peak, MB; Over idle, MB", "Clip budget"):
        assert ("which ExecuTorch's Python package needs, and an app does not" in told[name]) == ("torch" in loaded)
