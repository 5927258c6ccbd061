"""Figures of crops cut otherwise against plain loops, and their way into the report."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.bench import bench
from benchmarks.pages.render import html, markdown
from benchmarks.robustness import robustness_of
from benchmarks.schema import read_report
from benchmarks.worker import measure
from compress.metrics import Threshold
from compress.scoring import ClipScores, score_split
from data.perturb import PERTURBATIONS
from export.bundle import Bundle
from stage import StageError


def _scores(ids, labels, values):
    return ClipScores(
        clip_ids=tuple(ids),
        video_ids=tuple(ids),
        labels=np.array(labels),
        methods=("x",) * len(ids),
        identities=((),) * len(ids),
        whole=np.array(values, np.float64),
    )


def test_figures_are_over_the_clips_that_could_be_cut():
    before = _scores("abcd", [0, 0, 1, 1], [0.1, 0.6, 0.7, 0.4])
    after = _scores("cda", [1, 1, 0], [0.3, 0.9, 0.2])
    threshold = Threshold(value=0.5, false_positive_rate=0.0, rule="x", equal_error=0.25)
    prepared = _scores("dcba", [1, 1, 0, 0], [0.65, 0.7, 0.6, 0.1])
    unchanged, other = robustness_of({"unchanged": before, "other": after}, prepared, threshold)
    assert (unchanged.clips, unchanged.delta_auc) == (4, pytest.approx(0.75 - 1.0))
    assert (unchanged.verdict_flips, unchanged.equal_error_flips) == (0.25, 0.0)  # d
    assert unchanged.auc == roc_auc_score(before.labels, before.clips)
    assert (other.clips, other.auc, other.delta_auc) == (3, 1.0, 0.0)
    assert other.verdict_flips == pytest.approx(2 / 3)  # c and d
    assert other.equal_error_flips == 0.0


@pytest.fixture(scope="module")
def report(bundle_path, demo_store, demo_corpus, reference_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("robust") / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.rounds.measure_apart", measure)
        patch.setattr("benchmarks.rounds.usable_cores", lambda: 1)
        patch.setattr("benchmarks.machine.usable_cores", lambda: 2)
        patch.setattr("benchmarks.worker.LEAST_SECONDS", 0.0)
        patch.setattr("data.perturb.in_processes", lambda function, jobs, *_: [function(*job) for job in jobs])
        options = {"repeats": 10, "sources": [demo_corpus], "threads": "1,2", "rounds": 1}
        bench([bundle_path], demo_store, reference_file, out, **options)
    return out


def test_every_artifact_that_runs_here_has_a_table(report, bundle_path, opened_store):
    made, bundle = read_report(report / "report.json"), Bundle(bundle_path)
    for row in made.rows:
        if row.threads > 1 or row.status != "measured":
            assert row.robustness is None
            continue
        assert [found.perturbation for found in row.robustness] == [how.name for how in PERTURBATIONS]
        unchanged = row.robustness[0]
        assert (unchanged.clips, unchanged.auc, unchanged.delta_auc) == (6, pytest.approx(row.auc), 0.0)
        assert unchanged.verdict_flips == 0.0
        if row.name.endswith("fp32.onnx"):
            turned = next(found for found in row.robustness if found.perturbation == "turned by 90 degrees")
    runner = bundle.load(bundle.artifact("test_byobnet-fp32.onnx"))
    scores = score_split(lambda crops: runner(np.rot90(crops, -1, (1, 2))), opened_store, "test")
    assert turned.auc == pytest.approx(roc_auc_score(scores.labels, scores.clips))
    assert sum(row.robustness is not None for row in made.rows) == 4


def test_the_pages_show_the_tables(report):
    made = read_report(report / "report.json")
    page, text = html(made), markdown(made)
    for row in made.rows:
        if row.robustness:
            assert f"<summary><bdi>{row.name}" in page
    for how in PERTURBATIONS:
        assert page.count(f'<th scope="row"><bdi>{how.name.replace(chr(39), "&#39;")}</bdi></th>') == 4
    assert "| Crop | Clips | AUC | Delta AUC | Verdict flips | Flips at EER |" in text
    assert "bench --sources" not in text.partition("## Environment")[0]


def test_without_sources_the_report_says_so(report):
    made = read_report(report / "report.json")
    plain = made.model_copy(update={"rows": [row.model_copy(update={"robustness": None}) for row in made.rows]})
    for page in (html(plain), markdown(plain)):
        assert "bench --sources FOLDER gives it." in page


def test_missing_sources_are_one_line(bundle_path, demo_store, reference_file, tmp_path):
    with pytest.raises(StageError, match="of the store is in none of"):
        bench([bundle_path], demo_store, reference_file, tmp_path / "report", sources=[tmp_path])
    assert not (tmp_path / "report").exists()
