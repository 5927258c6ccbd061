"""Tracks against the places where the tests put a photo's face, and against a look at every frame of real videos."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data.faces import DlibHog, Face, iou, whole
from data.picture import Frame, Picture, UnreadableVideo
from data.tracks import FORGET_AFTER, SEARCH_EVERY, STRIDE, Seen, Tracker
from data.video import Video

TALKING = Path(__file__).parents[3] / "shared" / "data" / "talking"
HEAD = (140, 30)
"""Corner of the photo's 180 x 180 pixels with the head."""
FACE = np.array([178.0, 72.0, 274.0, 168.0])
"""The face in the photo by hand: eyes at (204, 101) and (247, 103), chin at y = 168."""
Box = NDArray[np.float64]
Place = tuple[int, int, int]
"""Left, top and side of the head in the frame."""


class Noting(DlibHog):
    """Notes at which heights it looked, and whether at the whole frame."""

    def __init__(self) -> None:
        super().__init__()
        self.heights: list[int] = []
        self.wholes: list[bool] = []

    def detect(self, picture: Picture, region: Box, scale: float) -> list[Face]:
        self.heights.append(round((region[3] - region[1]) * scale))
        self.wholes.append(np.array_equal(region, whole(picture)))
        return super().detect(picture, region, scale)


def at(place: Place) -> Box:
    """Where the face is in a frame with the head at ``place``."""
    x, y, side = place
    return (FACE - np.tile(HEAD, 2)) * side / 180 + np.tile([x, y], 2)


def shown(photo: Frame, *places: Place, height: int = 360, width: int = 640) -> Frame:
    """A grey frame with the head at every place."""
    frame = np.full((height, width, 3), 128, np.uint8)
    left, top = HEAD
    for x, y, side in places:
        head = cv2.resize(photo[top : top + 180, left : left + 180], (side, side), interpolation=cv2.INTER_AREA)
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
        if x0 < x1 and y0 < y1:
            frame[y0:y1, x0:x1] = head[y0 - y : y1 - y, x0 - x : x1 - x]
    return frame


def followed(frames: list[Frame], every_face: bool = False, detector: DlibHog | None = None) -> list[Seen]:
    seen = list(Tracker(detector or DlibHog(), every_face).follow(Picture.of(frame) for frame in frames))
    assert len(seen) == len(frames)
    return seen


def overlaps(seen: list[Seen], track: int, places: list[Place]) -> list[float]:
    """IoU of a track's face with its true place in every frame; 0 where it is not seen."""
    pairs = zip((frame.faces.get(track) for frame in seen), places, strict=True)
    return [0.0 if face is None else iou(face.box, at(place)) for face, place in pairs]


def pattern(seen: list[Seen]) -> str:
    """One character a frame: the number of its track, ``-`` for none, ``+`` for several."""
    return "".join(str(*frame.faces) if len(frame.faces) == 1 else "-+"[bool(frame.faces)] for frame in seen)


def looks(seen: list[Seen], track: int = 0) -> str:
    """One character a frame: ``*`` where the detector saw the face, ``~`` where it was followed, ``-`` for none."""
    faces = [frame.faces.get(track) for frame in seen]
    return "".join("-" if face is None else "~*"[face.score > 0] for face in faces)


MOVES = {
    "still": [(100, 80, 180)] * 25,
    "slow": [(60 + 2 * n, 60 + n, 180) for n in range(25)],
    "walking": [(20 + 6 * n, 40 + 3 * n, 180) for n in range(25)],
    "running": [(20 + 18 * n, 20 + 4 * n, 180) for n in range(24)],
    "nodding": [(200, round(80 + 40 * np.sin(n)), 180) for n in range(25)],
    "shaking": [(200 + 30 * (n % 2), 80, 180) for n in range(25)],
    "nearing": [(40, 20, round(150 * 1.03**n)) for n in range(25)],
    "going away": [(60, 20, round(320 * 0.97**n)) for n in range(25)],
    "leaving by half": [(-2 * n, 80, 180) for n in range(20)],
}


@pytest.mark.parametrize("move", MOVES)
def test_every_frame_of_a_moving_face_has_it_where_it_is(astronaut: Frame, move: str) -> None:
    seen = followed([shown(astronaut, place) for place in MOVES[move]])
    assert {track for frame in seen for track in frame.faces} == {0}
    assert min(overlaps(seen, 0, MOVES[move])) > 0.6


@pytest.mark.parametrize("change", range(1, 2 * STRIDE + 2))
def test_at_a_cut_one_track_ends_and_another_begins(astronaut: Frame, change: int) -> None:
    places = [(40, 40, 180)] * change + [(400, 150, 180)] * (20 - change)
    seen = followed([shown(astronaut, place) for place in places])
    assert pattern(seen) == "0" * change + "1" * (20 - change)
    assert min(max(pair) for pair in zip(overlaps(seen, 0, places), overlaps(seen, 1, places), strict=True)) > 0.6


@pytest.mark.parametrize("jump", [22, 30])
@pytest.mark.parametrize("change", range(1, STRIDE + 2))
def test_a_jump_within_reach_is_followed(astronaut: Frame, jump: int, change: int) -> None:
    places = [(100, 80, 180)] * change + [(100 + jump, 80 + jump // 2, 180)] * (16 - change)
    assert min(overlaps(followed([shown(astronaut, place) for place in places]), 0, places)) > 0.6


def covered(frame: Frame, place: Place) -> Frame:
    """Hold something grey before the face."""
    x0, y0, x1, y1 = at(place).astype(int)
    frame[y0:y1, x0:x1] = 110
    return frame


@pytest.mark.parametrize("hide", ["gone", "covered", "noise"])
@pytest.mark.parametrize(("first", "last"), [(1, 1), (3, 4), (5, 5), (6, 6), (5, 7), (6, 12), (7, 8), (4, 18)])
def test_a_face_is_claimed_in_no_frame_that_hides_it(astronaut: Frame, hide: str, first: int, last: int) -> None:
    place = (100, 80, 180)
    hidden = {
        "gone": shown(astronaut),
        "covered": covered(shown(astronaut, place), place),
        "noise": np.random.default_rng(0).integers(0, 256, (360, 640, 3)).astype(np.uint8),
    }[hide]
    frames = [hidden if first <= n <= last else shown(astronaut, place) for n in range(25)]
    seen = followed(frames)
    assert pattern(seen) == "".join("-" if first <= n <= last else "0" for n in range(25))
    assert min(value for value in overlaps(seen, 0, [place] * 25) if value > 0) > 0.6


@pytest.mark.parametrize("gap", [3, 10, 17, FORGET_AFTER - STRIDE])
def test_a_face_that_comes_back_near_keeps_its_number(astronaut: Frame, gap: int) -> None:
    places = [(100, 80, 180)] * 8 + [(900, 900, 180)] * gap + [(112, 90, 180)] * 8
    seen = followed([shown(astronaut, place) for place in places])
    assert pattern(seen) == "0" * 8 + "-" * gap + "0" * 8


@pytest.mark.parametrize(("gap", "place"), [(4, (400, 90, 180)), (20, (400, 90, 180)), (50, (100, 80, 180))])
def test_a_face_that_comes_back_elsewhere_or_late_gets_a_new_number(astronaut: Frame, gap: int, place: Place) -> None:
    places = [(100, 80, 180)] * 8 + [(900, 900, 180)] * gap + [place] * 8
    seen = followed([shown(astronaut, place) for place in places])
    assert pattern(seen) == "0" * 8 + "-" * gap + "1" * 8


@pytest.mark.parametrize("every_face", [False, True])
def test_two_faces_have_a_track_each(astronaut: Frame, every_face: bool) -> None:
    left, right = [(20 + n, 90, 150) for n in range(20)], [(440 - 3 * n, 100, 160) for n in range(20)]
    seen = followed([shown(astronaut, *pair) for pair in zip(left, right, strict=True)], every_face)
    assert {frozenset(frame.faces) for frame in seen} == {frozenset({0, 1})}
    tracks = {"left": left, "right": right}
    number = {name: int(iou(seen[0].faces[1].box, at(places[0])) > 0.5) for name, places in tracks.items()}
    assert sorted(number.values()) == [0, 1]
    for name, places in tracks.items():
        assert min(overlaps(seen, number[name], places)) > 0.6


def test_a_fast_face_is_kept_beside_a_still_one(astronaut: Frame) -> None:
    still, fast = [(20, 20, 150)] * 30, [(440 - 12 * n, 200, 150) for n in range(30)]
    seen = followed([shown(astronaut, *pair) for pair in zip(still, fast, strict=True)])
    number = int(iou(seen[0].faces[1].box, at(fast[0])) > 0.5)
    assert min(overlaps(seen, number, fast)) > 0.6
    assert min(overlaps(seen, 1 - number, still)) > 0.6


def test_a_newcomer_is_found_soon_and_the_first_face_keeps_its_number(astronaut: Frame) -> None:
    first, second = (20, 90, 150), (400, 90, 150)
    frames = [shown(astronaut, first, second) if n >= 8 else shown(astronaut, first) for n in range(40)]
    seen = followed(frames)
    assert min(overlaps(seen, 0, [first] * 40)) > 0.6
    came = min(n for n, frame in enumerate(seen) if 1 in frame.faces)
    assert 8 < came <= SEARCH_EVERY
    assert min(overlaps(seen, 1, [second] * 40)[came:]) > 0.6


def test_a_small_face_in_a_large_frame_is_found_at_once_and_followed(astronaut: Frame) -> None:
    places = [(700 + 4 * n, 400 + 2 * n, 180) for n in range(14)]
    frames = [shown(astronaut, place, height=1080, width=1920) for place in places]
    assert DlibHog().detect(Picture.of(frames[0]), np.array([0, 0, 1920, 1080.0]), 360 / 1080) == []
    assert min(overlaps(followed(frames), 0, places)) > 0.6


@pytest.mark.parametrize("every_face", [False, True])
def test_a_small_face_beside_a_large_one_counts_where_every_face_does(astronaut: Frame, every_face: bool) -> None:
    large, small = (100, 100, 800), (1400, 400, 180)
    seen = followed([shown(astronaut, large, small, height=1080, width=1920)] * 8, every_face)
    assert min(overlaps(seen, 0, [large] * 8)) > 0.6
    assert [len(frame.faces) for frame in seen] == [1 + every_face] * 8
    assert not every_face or min(overlaps(seen, 1, [small] * 8)) > 0.6
    plain = followed([shown(astronaut, large, height=1080, width=1920)] * 8)
    np.testing.assert_array_equal([frame.faces[0].box for frame in seen], [frame.faces[0].box for frame in plain])


@pytest.mark.parametrize("change", range(1, STRIDE + 3))
def test_a_frame_of_another_size_begins_a_new_track(astronaut: Frame, change: int) -> None:
    before, after = (100, 80, 180), (150, 200, 270)
    small, large = shown(astronaut, before), shown(astronaut, after, height=720, width=720)
    seen = followed([small] * change + [large] * (16 - change))
    assert pattern(seen) == "0" * change + "1" * (16 - change)
    assert min(overlaps(seen, 0, [before] * 16)[:change]) > 0.6
    assert min(overlaps(seen, 1, [after] * 16)[change:]) > 0.6


def test_a_still_video_is_looked_at_on_key_frames_only(astronaut: Frame) -> None:
    detector = Noting()
    seen = followed([shown(astronaut, (100, 80, 180))] * 61, detector=detector)
    assert looks(seen) == "".join("*" if n % STRIDE == 0 else "~" for n in range(61))
    assert sum(not entire for entire in detector.wholes) == 60 // STRIDE
    assert sum(detector.wholes) == 1 + 60 // SEARCH_EVERY


def test_a_picture_in_between_is_compared_with_the_nearer_key_frame(astronaut: Frame) -> None:
    """The head is mirrored between two key frames: half of the pictures are like the first, half like the second."""
    frame = shown(astronaut, (100, 80, 180))
    mirrored = frame.copy()
    mirrored[80:260, 100:280] = frame[80:260, 279:99:-1]
    half = STRIDE // 2 + 1
    seen = followed([frame] * half + [mirrored] * (STRIDE + 1 - half))
    assert looks(seen) == "*" + "~" * (STRIDE - 1) + "*"


def test_a_face_that_moved_by_much_of_its_size_is_looked_at_in_every_frame(astronaut: Frame) -> None:
    places = [(60 + 4 * n, 40 + 4 * n, 180) for n in range(2 * STRIDE + 1)]
    assert iou(at(places[0]), at(places[STRIDE])) == pytest.approx(0.39, abs=0.01)
    assert looks(followed([shown(astronaut, place) for place in places])) == "*" * len(places)


def test_a_score_is_that_of_the_detector_or_none(astronaut: Frame) -> None:
    seen = followed([shown(astronaut, (100, 80, 180))] * 8)
    scores = [frame.faces[0].score for frame in seen]
    assert [score > 0.5 for score in scores] == [True, *[False] * 5, True, True]
    assert np.isnan(scores[1:6]).all()


def test_faces_are_where_the_same_frames_were_at_any_other_time(astronaut: Frame) -> None:
    frames = [shown(astronaut, place) for place in MOVES["walking"]]
    first, again = ([(n, f.box.tolist(), f.score) for s in followed(frames) for n, f in s.faces.items()] for _ in "ab")
    np.testing.assert_equal(first, again)


@pytest.mark.parametrize("count", [1, 2, STRIDE, STRIDE + 1, STRIDE + 2])
def test_streams_of_any_length_come_out_whole(astronaut: Frame, count: int) -> None:
    frames = [shown(astronaut, (100 + n, 80, 180)) for n in range(count)]
    seen = followed(frames)
    assert pattern(seen) == "0" * count
    for frame, pixels in zip(seen, frames, strict=True):
        np.testing.assert_array_equal(frame.picture.rgb, pixels)
    assert followed([]) == []


@pytest.mark.parametrize("count", [0, 1, STRIDE, STRIDE + 4])
def test_frames_before_a_break_come_out_with_their_faces(astronaut: Frame, count: int) -> None:
    def broken() -> Iterator[Picture]:
        for n in range(count):
            yield Picture.of(shown(astronaut, (100 + n, 80, 180)))
        raise UnreadableVideo(Path("a.mp4"), "breaks while decoding")

    seen = []
    with pytest.raises(UnreadableVideo, match=r"a\.mp4 breaks while decoding"):
        for frame in Tracker(DlibHog()).follow(broken()):
            seen.append(frame)
    assert pattern(seen) == "0" * count


def test_no_more_than_a_stride_is_read_ahead(astronaut: Frame) -> None:
    picture, read = Picture.of(shown(astronaut, (100, 80, 180))), []
    stream = Tracker(DlibHog()).follow(read.append(n) or picture for n in range(30))
    assert max(len(read) - given for given, _ in enumerate(stream, start=1)) == STRIDE - 1


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
def test_a_sliver_has_no_face(size: tuple[int, int]) -> None:
    assert pattern(followed([np.zeros((*size, 3), np.uint8)] * 8)) == "-" * 8


@pytest.mark.parametrize(
    ("height", "looked_at"),
    [(200, [200]), (1080, [360, 720, 1080]), (1440, [360, 720, 1440]), (2160, [360, 720, 1440])],
)
def test_no_height_is_searched_twice(height: int, looked_at: list[int]) -> None:
    detector = Noting()
    followed([np.zeros((height, 90, 3), np.uint8)], detector=detector)
    assert detector.heights == looked_at


@pytest.mark.skipif(not TALKING.is_dir(), reason=f"{TALKING} is missing")
@pytest.mark.parametrize("name", ["d12.mp4", "s13.mp4", "s18.mp4"])
def test_real_faces_are_where_a_look_at_the_whole_frame_sees_them(name: str) -> None:
    detector = DlibHog()
    with Video(TALKING / name) as video:
        seen = list(Tracker(detector).follow(islice(video.pictures(), 50)))
    assert pattern(seen) == "0" * 50
    for frame in seen[1::8]:
        box = frame.faces[0].box
        found = detector.detect(frame.picture, whole(frame.picture), min(1.0, 110 / (box[2] - box[0])))
        assert max(iou(box, face.box) for face in found) > 0.55
