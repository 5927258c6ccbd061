"""What ``bench --video`` is given: files that can be used, and no others."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.clip_cost import ClipCost
from benchmarks.rows import list_subjects
from data.store import ClipStore
from files import sha256_of
from stage import WrongArgument


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
    ClipCost(video, flow_weights=weights).check(of_flow, ClipStore(store))
    ClipCost(video).check(of_rgb, ClipStore(store))
    ClipCost().check(of_flow, ClipStore(store))
    with pytest.raises(WrongArgument, match=r"the flow of .*store too, which raft made: give its weights, --flow-wei"):
        ClipCost(video).check(of_flow, ClipStore(store))
    with pytest.raises(WrongArgument, match=r"--flow-weights .*other.pth did not make the flow of .*store$"):
        ClipCost(video, flow_weights=other).check(of_flow, ClipStore(store))
    with pytest.raises(WrongArgument, match=r"--flow-weights gone is not a file"):
        ClipCost(video, flow_weights=Path("gone")).check(of_flow, ClipStore(store))
    with pytest.raises(WrongArgument, match=r"--flow-weights is for --video, which times networks: leave it out"):
        ClipCost(flow_weights=weights).check(of_flow, ClipStore(store))
