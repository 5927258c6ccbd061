"""What a teacher says of batches, kept or asked anew, against its own network on the same pictures."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compress.compute import Compute, prepare_compute
from compress.distill import distill
from compress.teacher_outputs import Layout, TeacherOutputs
from data.batches import Batch, Pictures, read_batch
from data.store import Clip, ClipStore, DamagedClip
from data.views import ViewRule, Views
from models.detector import Architecture, Detector
from models.megatron import MegatronSettings
from models.outputs import Outputs, example_outputs, outputs
from models.pixels import PixelDetector
from models.run import Run
from models.temporal import TemporalSettings

RULE = ViewRule(views=2, seed=3)
HALF = {"rtol": 1e-3, "atol": 1e-4}
"""Numbers that differ by float32's rounding, once they are rounded to half precision."""


@pytest.fixture(scope="module")
def teachers(drawn_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Teachers of frames, of frames in two modalities, and of clips."""
    root = tmp_path_factory.mktemp("teachers")
    megatron = MegatronSettings(feed_forward=16)
    made = {
        "frames": drawn_run(root / "frames", head_hidden=8),
        "depth+flow": drawn_run(root / "several", modalities=("depth", "flow")),
        "clips": drawn_run(root / "clips", modalities=("rgb", "depth"), megatron=megatron),
    }
    return {name: Run(path) for name, path in made.items()}


def student_says(kind: str, with_maps: bool) -> Outputs:
    """What a student with grids of 16, 8, 4 and 2 says of one sample; the teachers' grids are of 4."""
    temporal = TemporalSettings(width=8) if kind == "clip" else None
    detector = Detector(Architecture(backbone="test_byobnet", size=64, temporal=temporal))
    return example_outputs(detector, 4, with_maps)


def taught_of(run: Run, views: Views, student: Outputs, compute: Compute, cache: Path | None) -> TeacherOutputs:
    seen = Views(views.store, views.rule, modalities=run.info.architecture.modalities)
    return TeacherOutputs(run, views, seen, student, compute, cache)


def batch_of(views: Views, kind: str) -> Batch:
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(views) * (1 if kind == "clip" else views.store.frames))[:6]
    return Batch(rows, np.zeros(len(rows), np.int64))


def valid_of(read: Pictures) -> torch.Tensor | None:
    return None if read.valid is None else torch.from_numpy(read.valid)


@torch.no_grad()
def said_by(run: Run, store: ClipStore, batch: Batch, with_maps: bool) -> Outputs:
    """What a teacher's network says of a batch's pictures in its own modalities."""
    detector, architecture = run.detector(), run.info.architecture
    own = Views(store, RULE, modalities=architecture.modalities)
    read = read_batch(own, batch, architecture.per)
    pictures = PixelDetector(detector, run.info.preprocessing).pictures(torch.from_numpy(read.pixels))
    return outputs(detector, pictures, valid_of(read), with_maps=with_maps)


def check_same(found: Outputs, expected: Outputs) -> None:
    torch.testing.assert_close(found.logits, expected.logits, **HALF)
    torch.testing.assert_close(found.embedding, expected.embedding, **HALF)
    assert len(found.maps) == len(expected.maps)
    for own, other in zip(found.maps, expected.maps, strict=True):
        torch.testing.assert_close(own, other, **HALF)
    if expected.frames is not None:
        torch.testing.assert_close(found.frames, expected.frames, **HALF)
        assert torch.equal(found.valid, expected.valid)


@pytest.mark.parametrize(
    ("name", "with_maps"), [("frames", True), ("frames", False), ("depth+flow", True), ("clips", False)]
)
def test_what_is_kept_is_what_is_asked_anew_and_what_the_network_says(
    name: str, with_maps: bool, teachers: dict[str, Run], modal_store: Path, tmp_path: Path
) -> None:
    run, store, compute = teachers[name], ClipStore(modal_store), prepare_compute("fp32")
    kind = run.info.architecture.per
    views = Views(store, RULE)  # of a student, which sees rgb
    student = student_says(kind, with_maps)
    kept, live = (taught_of(run, views, student, compute, cache) for cache in (tmp_path, None))
    batch = batch_of(views, kind)
    read = read_batch(views, batch, kind)
    rows, of_rows = kept(read)
    assert of_rows is read
    torch.testing.assert_close(rows, live(read)[0], **HALF)
    assert torch.equal(rows, rows.half().float())
    expected = said_by(run, store, batch, with_maps)
    if with_maps:  # finer than the student's last one, of 2 x 2
        last = expected.maps[-1].unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))
        expected = dataclasses.replace(expected, maps=(*expected.maps[:-1], last))
        assert [stage.shape[-1] for stage in expected.maps] == [4, 4, 4, 2]
    check_same(kept.layout.outputs(rows, valid_of(read)), expected)
    files = list(tmp_path.glob("teacher-outputs-*/block-?.npy"))
    assert len(files) == RULE.views
    assert {np.load(file, mmap_mode="r").dtype for file in files} == {np.dtype(np.float16)}
    assert {np.load(file, mmap_mode="r").shape for file in files} == {(12 * 4, rows.shape[-1])}


def test_rows_of_frames_hold_features_logits_and_maps_and_give_them_back() -> None:
    said = Outputs(torch.randn(3, 2), torch.randn(3, 5), (torch.randn(3, 4, 2, 3), torch.randn(3, 6, 1, 1)))
    layout = Layout(said, None)
    rows = layout.rows(said)
    torch.testing.assert_close(rows[:, :7], torch.cat([said.embedding, said.logits], dim=1), atol=0, rtol=0)
    assert rows.shape == (3, 7 + 4 * 2 * 3 + 6)
    check_same(layout.outputs(rows, None), said)


def test_rows_of_clips_hold_each_frame_s_features_and_the_clip_s_logits() -> None:
    torch.manual_seed(0)
    detector = Detector(Architecture(backbone="test_byobnet", size=64, temporal=TemporalSettings(width=8))).eval()
    valid = torch.tensor([[True, False, True], [True, True, True]])
    with torch.no_grad():
        said = outputs(detector, torch.randn(2, 3, 3, 64, 64), valid)
        layout = Layout(said, detector.head)
        rows = layout.rows(said)
        assert rows.shape == (2, 3, 8 + 2)
        check_same(layout.outputs(rows, valid), said)


def test_a_clip_of_the_teacher_that_cannot_be_read_is_drawn_no_more(
    teachers: dict[str, Run], modal_store: Path, tmp_path: Path
) -> None:
    store = ClipStore(shutil.copytree(modal_store, tmp_path / "store"))
    views = Views(store, ViewRule())
    clip = views.views[2].clip
    (store.path / "clips" / f"{clip.video_id}.parquet").write_bytes(b"gone")
    taught_of(teachers["depth+flow"], views, student_says("frame", False), prepare_compute("fp32"), tmp_path / "cache")
    assert views.unreadable == {2}


def test_grids_another_network_and_another_store_are_other_caches(
    teachers: dict[str, Run], modal_store: Path, demo_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    compute, frames = prepare_compute("fp32"), teachers["frames"]
    for store, with_maps in ((modal_store, False), (modal_store, True), (demo_store, False)):
        taught_of(frames, Views(ClipStore(store), ViewRule()), student_says("frame", with_maps), compute, tmp_path)
    said = capfd.readouterr().err
    assert "teacher outputs are computed: those that are kept differ in maps\n" in said
    assert "teacher outputs are computed: those that are kept differ in store\n" in said
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("name", "kind"), [("depth+flow", "frame"), ("clips", "clip")])
def test_a_student_ends_the_same_with_a_live_teacher(
    name: str, kind: str, teachers: dict[str, Run], modal_store: Path, tmp_path: Path
) -> None:
    """6 steps of frames or clips, with nearly the same numbers from the teacher."""
    options = {"student": "test_byobnet", "kind": kind, "loss": "classification,kl,dense", "epochs": 1}
    options |= {"precision": "fp32", "batch_size": 8 if kind == "frame" else 2, "learning_rate": 1e-3}
    cache = tmp_path / "cache"
    for out, live in (("kept", False), ("live", True)):
        distill(
            modal_store,
            tmp_path / out,
            teachers[name].path,
            live_teacher=live,
            cache=None if live else cache,
            **options,
        )
    kept, live = (load_file(tmp_path / out / "model.safetensors") for out in ("kept", "live"))
    assert Run(tmp_path / "live").info.trained_steps == 6
    for tensor in kept:
        torch.testing.assert_close(kept[tensor], live[tensor], atol=1e-4, rtol=1e-4)
    assert len(list(cache.iterdir())) == 1


def test_a_teacher_s_finer_grids_are_averaged_to_the_student_s(
    drawn_run: Callable[..., Path], modal_store: Path, tmp_path: Path
) -> None:
    """A pyramid of 16, 8, 4 and 2 teaches a transformer of 4: what is finer is averaged, what is coarser stays."""
    run, views = Run(drawn_run(tmp_path / "run", backbone="test_byobnet")), Views(ClipStore(modal_store), RULE)
    student = example_outputs(Detector(Architecture(backbone="test_vit", size=64)), 4, with_maps=True)
    taught = taught_of(run, views, student, prepare_compute("fp32"), None)
    batch = batch_of(views, "frame")
    found = taught.layout.outputs(taught(read_batch(views, batch))[0], None)
    expected = said_by(run, views.store, batch, with_maps=True).maps
    assert [stage.shape[-1] for stage in expected] == [16, 8, 4, 2]
    for own, stage, step in zip(found.maps, expected, (4, 2, 1, 1), strict=True):
        cells = stage.unflatten(3, (-1, step)).unflatten(2, (-1, step)).mean((3, 5))
        torch.testing.assert_close(own, cells, **HALF)


@pytest.mark.parametrize(("name", "unit"), [("frames", "frame"), ("clips", "clip")])
def test_of_a_replaced_view_the_teacher_says_what_it_says_of_the_replacement(
    name: str, unit: str, teachers: dict[str, Run], modal_store: Path, tmp_path: Path
) -> None:
    store = ClipStore(shutil.copytree(modal_store, tmp_path / "store"))
    views = Views(store, ViewRule())
    kept = taught_of(teachers[name], views, student_says(unit, False), prepare_compute("fp32"), tmp_path / "cache")
    (store.path / "clips" / f"{views.views[2].clip.video_id}.parquet").write_bytes(b"gone")
    wanted = np.array([2, 3] if unit == "clip" else [2 * 4 + 1, 3 * 4 + 2])
    rows, read = kept(read_batch(views, Batch(wanted, np.zeros(2, np.int64)), unit))
    assert read.batch.rows[0] != wanted[0] and read.batch.rows[1] == wanted[1]
    expected = said_by(teachers[name], store, read.batch, with_maps=False)
    check_same(kept.layout.outputs(rows, valid_of(read)), expected)


def test_what_only_the_teacher_cannot_read_is_replaced_for_the_student_too(
    teachers: dict[str, Run], modal_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = Views(ClipStore(modal_store), ViewRule())
    live = taught_of(teachers["depth+flow"], views, student_says("frame", False), prepare_compute("fp32"), None)
    pixels, broken = ClipStore.pixels, views.views[2].clip.clip_id

    def damaged(store: ClipStore, clip: Clip, frames: object = None, modality: str = "rgb") -> object:
        if modality == "depth" and clip.clip_id == broken:
            raise DamagedClip("its depth is damaged")
        return pixels(store, clip, frames, modality)

    monkeypatch.setattr(ClipStore, "pixels", damaged)
    batch = Batch(np.array([2 * 4 + 1, 3 * 4 + 2]), np.zeros(2, np.int64))
    rows, read = live(read_batch(views, batch))
    assert views.unreadable == {2}
    assert read.batch.rows[0] // 4 != 2 and read.batch.rows[1] == batch.rows[1]
    np.testing.assert_array_equal(read.pixels, read_batch(views, read.batch).pixels)
    check_same(live.layout.outputs(rows, None), said_by(teachers["depth+flow"], views.store, read.batch, False))
