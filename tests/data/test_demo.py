"""The demo's renders: their files, their reproducibility, and where the face is."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.demo import NOTE, Camera, Portrait, render_corpora, render_pair
from data.faces import DlibHog, Face, iou, whole
from data.picture import Frame, Picture
from stage import StageError
from tests.data.commands import files


def faces(frame: Frame) -> list[Face]:
    picture = Picture.of(frame)
    return DlibHog().detect(picture, whole(picture), 1.0)


def test_corpus_is_laid_out_like_faceforensics(demo_corpus: Path) -> None:
    real = {f"original_sequences/youtube/c23/videos/{n:03d}.mp4" for n in range(12)}
    fake = {f"manipulated_sequences/SelfBlended/c23/videos/{n:03d}_{n:03d}.mp4" for n in range(12)}
    assert set(files(demo_corpus)) == real | fake | {"corpus.json"}
    assert len(set(files(demo_corpus).values())) == 25


def test_identity_forgeries_give_the_same_files(demo_control: Path) -> None:
    content = files(demo_control)
    assert set(content) == {f"{kind}/{n:03d}.mp4" for kind in ("real", "fake") for n in range(3)} | {"corpus.json"}
    for n in range(3):
        assert content[f"real/{n:03d}.mp4"] == content[f"fake/{n:03d}.mp4"]
    assert len({content[f"real/{n:03d}.mp4"] for n in range(3)}) == 3


def test_renders_of_two_seeds_do_not_mix(tmp_path: Path) -> None:
    render_corpora(tmp_path, renders=0, controls=0, seed=0, workers=1)
    with pytest.raises(StageError, match=r"corpus was rendered with another --seed: remove it, or give another --out"):
        render_corpora(tmp_path, renders=0, controls=0, seed=1, workers=1)
    render_corpora(tmp_path, renders=0, controls=0, seed=0, workers=1)


def test_control_shows_no_render_of_the_corpus(demo_renders: tuple[Path, Path]) -> None:
    corpus, control = (set(files(root).values()) for root in demo_renders)
    assert {json.loads(note)["note"] for note in corpus & control} == {NOTE}


def test_videos_are_of_the_stated_size_and_length(demo_corpus: Path) -> None:
    for path in sorted(demo_corpus.rglob("00?.mp4")):
        video = cv2.VideoCapture(str(path))
        figures = [video.get(p) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS)]
        assert figures == [480, 360, 25]
        assert sum(video.read()[0] for _ in range(40)) == 30


def test_a_pair_differs_at_the_face_and_little_elsewhere(demo_corpus: Path) -> None:
    for n in range(3):
        real = cv2.VideoCapture(str(demo_corpus / f"original_sequences/youtube/c23/videos/{n:03d}.mp4")).read()[1]
        fake = demo_corpus / f"manipulated_sequences/SelfBlended/c23/videos/{n:03d}_{n:03d}.mp4"
        difference = np.abs(real.astype(int) - cv2.VideoCapture(str(fake)).read()[1]).mean(axis=-1)
        x0, y0, x1, y1 = max(faces(real[..., ::-1]), key=lambda face: face.score).box.astype(int)
        height, width = (y1 - y0) // 2, (x1 - x0) // 2
        far = np.ones(difference.shape, bool)
        far[max(y0 - height, 0) : y1 + height, max(x0 - width, 0) : x1 + width] = False
        assert difference[y0:y1, x0:x1].mean() > 4 * difference[far].mean()


def test_the_camera_tells_where_the_face_is() -> None:
    camera = Camera.draw(np.random.default_rng(5))
    film = list(camera.film(Portrait.load()))
    for frame, box in film[::10]:
        assert max(iou(face.box, box) for face in faces(frame)) > 0.6
    assert film[0][1][2] - film[0][1][0] == pytest.approx(camera.face_width[0])
    assert film[-1][1][2] - film[-1][1][0] == pytest.approx(camera.face_width[1])


def test_existing_files_are_kept_and_missing_ones_made_again_alike(
    demo_renders: tuple[Path, Path], tmp_path: Path
) -> None:
    root = shutil.copytree(demo_renders[0].parent, tmp_path / "demo")
    (root / "control/fake/001.mp4").unlink()
    kept = root / "corpus/original_sequences/youtube/c23/videos/000.mp4"
    kept.write_bytes(b"kept")
    render_corpora(root, renders=12, controls=3, seed=0, workers=1)
    assert kept.read_bytes() == b"kept"
    assert files(root / "control") == files(demo_renders[1])


def test_a_pair_is_decided_by_its_seed(demo_control: Path, tmp_path: Path) -> None:
    render_pair(tmp_path / "real.mp4", tmp_path / "fake.mp4", (1, 2), forged=True)
    assert (tmp_path / "real.mp4").read_bytes() == (demo_control / "real/002.mp4").read_bytes()
    assert (tmp_path / "fake.mp4").read_bytes() != (tmp_path / "real.mp4").read_bytes()
