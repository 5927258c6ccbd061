"""What ``bench --video`` is given: files that can be used, and no others."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.clip_budget import BudgetOptions
from benchmarks.rows import list_subjects
from data.store import ClipStore
from data.video import write_video
from files import sha256_of
from stage import StageError, WrongArgument


def test_weights_of_flow_are_those_that_made_the_store_s_and_are_asked_for(
    demo_store, demo_corpus, drawn_run, student_run, tmp_path
):
    video = sorted(demo_corpus.rglob("*.mp4"))[0]
    store = shutil.copytree(demo_store, tmp_path / "store")
    weights, other = tmp_path / "raft.pth", tmp_path / "other.pth"
    weights.write_bytes(b"weights")
    other.write_bytes(b"others")
    info = json.loads((store / "store.json").read_text())
    info["settings"]["flow"] = f"raft {sha256_of(weights)}"
    (store / "store.json").write_text(json.dumps(info))
    drawn_run(tmp_path / "flow", {"trained_steps": 0}, modalities=("flow",))
    of_flow, of_rgb = (list_subjects([run], [1], "here") for run in (tmp_path / "flow", student_run))
    BudgetOptions(video, flow_weights=weights).check(of_flow, ClipStore(store))
    BudgetOptions(video).check(of_rgb, ClipStore(store))
    BudgetOptions().check(of_flow, ClipStore(store))
    with pytest.raises(WrongArgument, match=r"the flow of .*store too, which raft made: give its weights, --flow-wei"):
        BudgetOptions(video).check(of_flow, ClipStore(store))
    with pytest.raises(WrongArgument, match=r"--flow-weights .*other.pth did not make the flow of .*store$"):
        BudgetOptions(video, flow_weights=other).check(of_flow, ClipStore(store))
    with pytest.raises(WrongArgument, match=r"--flow-weights gone is not a file"):
        BudgetOptions(video, flow_weights=Path("gone")).check(of_flow, ClipStore(store))
    with pytest.raises(WrongArgument, match=r"--flow-weights is for --video, which times networks: leave it out"):
        BudgetOptions(flow_weights=weights).check(of_flow, ClipStore(store))


def test_depth_is_timed_by_the_network_that_made_the_store_s(modal_store, drawn_run, tiny_depth, demo_corpus, tmp_path):
    video = sorted(demo_corpus.rglob("*.mp4"))[0]
    store = shutil.copytree(modal_store, tmp_path / "store")
    of_depth = list_subjects([drawn_run(tmp_path / "depth", {"trained_steps": 0}, modalities=("depth",))], [1], "here")
    with pytest.raises(WrongArgument, match=r"the depth of .*store too, which tiny made: give its folder, --depth-wei"):
        BudgetOptions(video).check(of_depth, ClipStore(store))
    BudgetOptions(video, depth_weights=tiny_depth).check(of_depth, ClipStore(store))
    with pytest.raises(StageError, match=r"has no config\.json"):
        BudgetOptions(video, depth_weights=tmp_path).check(of_depth, ClipStore(store))
    info = json.loads((store / "store.json").read_text())
    info["settings"]["depth"] |= {"source": "hub", "name": "depth-anything/Depth-Anything-V2-Large-hf"}
    (store / "store.json").write_text(json.dumps(info))
    with pytest.raises(StageError, match="the weights of depth-anything/Depth-Anything-V2-Large-hf are not on this"):
        BudgetOptions(video).check(of_depth, ClipStore(store))


def test_a_video_without_a_clip_is_refused_before_anything_is_timed(demo_store, student_run, astronaut, tmp_path):
    write_video(tmp_path / "short.mp4", [astronaut] * 3)
    subjects = list_subjects([student_run], [1], "here")
    with pytest.raises(StageError, match=r"short\.mp4: no face is seen in 4 frames on end among its first 1000"):
        BudgetOptions(tmp_path / "short.mp4").check(subjects, ClipStore(demo_store))
