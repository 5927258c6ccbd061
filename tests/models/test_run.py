"""The run folder: schema, round trip, and what is refused."""

import json
import platform
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.run import Run, UnfinishedRun
from stage import StageError
from tests.conftest import forget_hashes

KEYS = {
    "schema_version", "kind", "scheme", "architecture", "preprocessing", "weights", "trained_steps",
    "parents", "data", "seed", "files", "tools", "python",
}  # fmt: skip


def test_files_of_a_run(student_run, teacher_run, opened_store):
    assert sorted(p.name for p in student_run.iterdir()) == [
        "log",
        "metrics.json",
        "model.json",
        "model.safetensors",
    ]
    model = json.loads((student_run / "model.json").read_text())
    assert set(model) == KEYS
    assert model["schema_version"] == 1
    assert model["architecture"] == {
        "backbone": "test_byobnet",
        "size": 64,
        "modalities": ["rgb"],
        "head_hidden": None,
        "megatron": None,
        "temporal": None,
        "activation": None,
        "fused": False,
    }
    assert model["weights"]["source"] == "random"
    assert model["parents"] == [{"name": "teacher", "sha256": Run(teacher_run).sha256}]
    assert model["data"]["fingerprint"] == opened_store.info.fingerprint


def test_detector_holds_the_stored_weights(student_run):
    stored = load_file(student_run / "model.safetensors")
    loaded = Run(student_run).detector().state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)


@pytest.fixture
def copy(student_run, tmp_path):
    return shutil.copytree(student_run, tmp_path / "run")


def test_missing_folder(tmp_path):
    with pytest.raises(StageError, match="none does not exist"):
        Run(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "is of schema version 99, this program reads 1"),
        ({"kind": "pupil"}, "model.json is not valid: kind: Input should be 'teacher' or 'student'"),
        ({"surprise": 1}, "model.json is not valid: surprise"),
        ({"architecture": {"backbone": "hf_hub:a/b", "size": 64}}, "timm has no backbone 'hf_hub:a/b'"),
    ],
)
def test_invalid_configuration_is_refused(copy, change, message):
    model = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(model | change))
    with pytest.raises(StageError, match=message):
        Run(copy)


def test_damaged_weights_are_refused(copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(StageError, match=r"model.safetensors is not the file that this run was written with"):
        Run(copy).detector()
    forget_hashes(copy)
    with pytest.raises(StageError, match=r"model.safetensors is missing, damaged, or does not fit"):
        Run(copy).detector()


def test_a_run_that_does_not_fit_on_the_disk_leaves_nothing(drawn_run, tmp_path, small_disk):
    with pytest.raises(StageError, match=r"cannot write .*run: File too large"):
        drawn_run(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_of_a_checkpoint_is_removed_and_the_last_whole_one_is_kept(tmp_path):
    for checkpoint_is_there in (False, True):
        with UnfinishedRun(tmp_path / "run", {"what": "nothing"}) as unfinished:
            assert unfinished.checkpoint.exists() is checkpoint_is_there
            left = unfinished.checkpoint.with_name(f".last.pt.{platform.node()}.{2**22 + 1}.partial")
            assert not left.exists()
            unfinished.checkpoint.write_bytes(b"whole")
            left.write_bytes(b"half")


def test_files_that_systems_and_editors_leave_do_not_change_what_a_run_is(copy):
    before = Run(copy).sha256
    (copy / ".DS_Store").write_bytes(b"Finder")
    (copy / "metrics.json~").write_text("{}")
    assert Run(copy).sha256 == before
    (copy / "metrics.json").write_text("{}")
    assert Run(copy).sha256 != before


def test_weights_of_another_run_of_the_same_network_are_refused(copy):
    weights = load_file(copy / "model.safetensors")
    save_file({name: tensor + 0.1 for name, tensor in weights.items()}, copy / "model.safetensors")
    with pytest.raises(StageError, match=r"model.safetensors is not the file that this run was written with"):
        Run(copy).detector()
    forget_hashes(copy)
    assert Run(copy).detector()


def test_scales_of_another_run_are_refused(int8_run, tmp_path):
    run = shutil.copytree(int8_run, tmp_path / "int8")
    (run / "quantization.json").write_text((run / "quantization.json").read_text() + " ")
    with pytest.raises(StageError, match=r"quantization.json is not the file that this run was written with"):
        Run(run).read("quantization.json")
