"""Rules that an app follows around a model, as the manifest states them: from box to crop, from frames to verdict."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from data.clips import BRIDGED_FRAMES
from data.crops import CropRule
from data.faces import DETECTORS
from data.settings import StoreSettings
from data.tracks import FORGET_AFTER, LARGEST_SCALE, REACH, SAME_FACE_IOU, SEARCH_EVERY, STRIDE
from stage import Per

CROP_RULE = (
    "Take any detector's face box [x0, y0, x1, y1] in pixels of the upright picture (a video whose pixels are not "
    "square is stretched in width alone, by area where that shrinks it, else bilinearly); x1 and y1 are the edges of "
    "its last column and row: dlib's right() and bottom() plus 1. side = floor(margin * max(x1 - x0, y1 - y0) + 0.5); "
    "left = floor((x0 + x1 - side) / 2 + 0.5); top = floor((y0 + y1 - side) / 2 + 0.5). Cut that square, black where "
    "it leaves the picture, and resize it to size x size: when it shrinks, by area (each new pixel is the mean of all "
    "that it covers, pixels at its borders by the part that it covers, as OpenCV's INTER_AREA; not Pillow's BOX, "
    "which takes whole pixels), when it grows, bilinearly. Where fit is pad, resize all squares of a clip by size / "
    "(side of the clip's largest square) instead, sides rounded half up, each centred on black (of an odd remainder, "
    "the smaller part lies left and above). Colours of a video: by the matrix and range that its stream names; one "
    "that names none is read as BT.601, limited range, whatever its height (phones may take BT.709 for HD, which "
    "turned 3 % of verdicts). Nothing else is made of the decoded numbers: HDR is read without tone mapping, "
    "interlaced frames as they are woven, and colour profiles of photos, and primaries of videos, are not applied "
    "(iOS: draw into the picture's own colour space, and turn colour management off in Core Image; Android: take a "
    "bitmap's bytes by copyPixelsToBuffer, as getPixels makes sRGB of them). "
)
DETECTOR_NAMES = {"dlib": "dlib's frontal HOG detector", "mtcnn": "MTCNN"}
SEEN_AS = {"dlib": "on luma, without upsampling of its own", "mtcnn": "on RGB"}
EXAMPLES = (
    ((100.0, 80.0, 260.0, 240.0), (640, 480), 0),
    ((-12.0, 4.0, 51.0, 90.0), (640, 480), 90),
    ((33.5, 20.25, 118.0, 99.75), (120, 160), 180),
    ((500.0, 900.0, 740.0, 1190.0), (1920, 1080), 270),
)
"""Test vectors: a box in the upright picture, the stored picture's width and height, and its rotation in degrees."""


class Frozen(BaseModel):
    """A part of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Place = Annotated[float, Field(ge=-(2**20), le=2**20)]


class CropExample(Frozen):
    """A test vector of the crop rule."""

    box: tuple[Place, Place, Place, Place]
    """Left, top, right and bottom of the face in pixels of the upright picture."""
    picture: tuple[int, int]
    """Width and height as stored."""
    rotation: Literal[0, 90, 180, 270]
    """Degrees, clockwise, by which the stored picture is turned to be upright."""
    left: int
    top: int
    side: int
    """The square in the upright picture."""
    corners: list[tuple[int, int]]
    """x and y, in the stored picture, of the square's left upper, right upper, right lower and left lower corner."""

    @classmethod
    def of(
        cls, rule: CropRule, box: tuple[float, float, float, float], picture: tuple[int, int], rotation: int
    ) -> "CropExample":
        """Return the test vector of a crop rule for a box in the upright picture."""
        left, top, side = rule.square(box)
        width, height = picture

        def stored(x: int, y: int) -> tuple[int, int]:
            return {0: (x, y), 90: (y, height - x), 180: (width - x, height - y), 270: (width - y, x)}[rotation]

        upright = [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]
        corners = [stored(*corner) for corner in upright]
        return cls.model_validate(
            {"box": box, "picture": picture, "rotation": rotation, "left": left, "top": top, "side": side}
            | {"corners": corners}
        )


def example_picture(size: int) -> NDArray[np.uint8]:
    """Return the picture of ``CropPixels``, uint8 [2 size, 2 size, 3] RGB: full of edges, on which filters differ."""
    y, x = np.mgrid[: 2 * size, : 2 * size]
    return np.stack([x * x // 16 + 5 * y, y * y // 16 + 3 * x, x * y // 8], axis=-1).astype(np.uint8)


class CropPixels(Frozen):
    """Test vectors of the whole crop rule, to the pixel: boxes in a picture made by a formula, the crops' bytes."""

    picture: tuple[int, int]
    """Width and height."""
    formula: Literal["red = x * x / 16 + 5 * y, green = y * y / 16 + 3 * x, blue = x * y / 8, integers modulo 256"] = (
        "red = x * x / 16 + 5 * y, green = y * y / 16 + 3 * x, blue = x * y / 8, integers modulo 256"
    )
    """Value of the pixel in column x and row y, both from 0; divisions round down."""
    boxes: list[tuple[Place, Place, Place, Place]] = Field(min_length=3, max_length=3)
    """One whose square shrinks, one whose square leaves the picture, one whose square grows. Where fit is pad, they are
    one clip, and all shrink."""
    crops: Literal["crop-examples.bin"] = "crop-examples.bin"
    """File of uint8 [3, S, S, 3], RGB, C order, without a header."""
    sha256: str
    tolerance: Literal[2] = 2
    """Largest difference of a byte that rounding explains; from 32 pixels on, other filters are off by 17 and more."""

    @classmethod
    def of(cls, rule: CropRule) -> "CropPixels":
        """Return the test vectors of a rule."""
        boxes = cls.boxes_of(rule)
        digest = hashlib.sha256(cls.cut(rule, boxes).tobytes()).hexdigest()
        return cls(picture=(2 * rule.size, 2 * rule.size), boxes=boxes, sha256=digest)

    @staticmethod
    def boxes_of(rule: CropRule) -> list[tuple[float, float, float, float]]:
        """Return the boxes of a rule's test vectors: left, top, right and bottom in pixels."""
        size = rule.size
        return [
            _box_about(center, round(side * size / rule.margin, 2))
            for center, side in (((0.9 * size, 0.8 * size), 1.37), ((0.3 * size, 1.9 * size), 1.1),
                                 ((1.2 * size, 1.1 * size), 0.61))
        ]  # fmt: skip

    @staticmethod
    def cut(rule: CropRule, boxes: Sequence[tuple[float, float, float, float]]) -> NDArray[np.uint8]:
        """Return the crops of boxes in the picture, uint8 [N, S, S, 3] RGB."""
        return rule.cut_clip([example_picture(rule.size)] * len(boxes), np.array(boxes, np.float64))


def _box_about(center: tuple[float, float], longer: float) -> tuple[float, float, float, float]:
    """Return a box about a point, ``longer`` pixels high and three quarters of that wide."""
    (x, y), half, shorter = center, longer / 2, 0.375 * longer
    return round(x - shorter, 2), round(y - half, 2), round(x + shorter, 2), round(y + half, 2)


def finding(detector: Literal["dlib", "mtcnn"], all_faces: bool = False) -> str:
    """Return a text that says how ``prepare`` and ``detect`` run a detector."""
    sought_heights, width = DETECTORS[detector].sought_heights, DETECTORS[detector].followed_width
    *lower, highest = map(str, sought_heights)
    every_face = " (in the store of these figures, whose clips are of every face, at each of them)" if all_faces else ""
    return (
        f"All figures are with boxes of {DETECTOR_NAMES[detector]}, run {SEEN_AS[detector]}: on the whole picture, "
        f"scaled (by area where that shrinks it, else bilinearly) to a height of {', '.join(lower)} and at last "
        f"{highest} pixels (or its own, if that is less), until a face is found{every_face}, on a video's first frame, "
        f"where the last face is lost, and on every {SEARCH_EVERY}th frame without a face; at the first of these "
        f"heights alone on every {STRIDE}th frame without a face, and on every {SEARCH_EVERY}th for newcomers. For a "
        f"known face, on every {STRIDE}th frame, on what lies around the last box ({REACH} of its width beyond each "
        f"side), scaled so that the face is {width} pixels "
        f"wide (at most {LARGEST_SCALE:g} times as large as it is). Boxes in between are interpolated where the face "
        "looks alike, else looked for in the same way."
    )


class CropGeometry(Frozen):
    """How to cut the crop from a face box."""

    rule: CropRule
    detector: Literal["dlib", "mtcnn"] = "dlib"
    """Whose boxes the crops were cut from, in training and for every figure."""
    finding: str
    """How that detector was run."""
    text: str
    examples: list[CropExample] = Field(min_length=1)
    pixels: CropPixels

    @classmethod
    def of(cls, settings: StoreSettings) -> "CropGeometry":
        """Return the description of a store's crop rule, with test vectors."""
        rule, detector = settings.crop, settings.detector
        examples = [CropExample.of(rule, *example) for example in EXAMPLES]
        return cls(
            rule=rule,
            detector=detector,
            finding=finding(detector, settings.all_faces),
            text=CROP_RULE.strip(),
            examples=examples,
            pixels=CropPixels.of(rule),
        )


COUNTING = (
    f"A face is the same as before if its box overlaps the last one by more than {SAME_FACE_IOU:g} (intersection over "
    f"union), also after up to {FORGET_AFTER} frames in which it was lost. "
    "A clip begins at a frame with a face: the first such from there on. Of several faces in a clip, take the "
    "largest (by the median area of its boxes) of those of which at least half of `frames` frames count (of that many "
    "in a shorter last clip, too), or else the largest. A frame counts if that face was found in it, or is missing for "
    f"at most {BRIDGED_FRAMES} frames on end within the clip, with boxes that are interpolated, and held at the clip's "
    "ends; frames of longer gaps do not count, nor those beyond the video's end. No clip spans a change of the "
    "picture's size. A video of which nothing counts has no verdict: it is not known to be real. "
)
MEAN_RULE = (
    "Cut the video into clips of `frames` consecutive frames of one tracked face, one after another. "
    f"{COUNTING}Score each frame that counts; the mean of all their P(fake) above the threshold is a fake. Of a photo, "
    "its own P(fake) decides."
)
SCORE_RULE = (
    "Cut the video into clips of exactly `frames` consecutive frames of one tracked face, each `hop` frames after the "
    "one before. Run embed on every frame that counts, and put the embeddings in the order of the frames into "
    "score's input, with valid 1; other frames have an embedding of zeros and valid 0. A frame that two clips share "
    "keeps its embedding if its crop is the same in both: it may not be where fit is pad and the clips' largest "
    "squares differ, and where a box was held at the end of one. "
    f"{COUNTING}Leave out clips of which less than half of the frames count, and one at the video's end, or before a "
    "change of the picture's size, whose frames were all in the clip before. score gives a clip's P(fake); the mean "
    "over the clips above the threshold is a fake. "
    "A photo has no score."
)


OTHER_RATE = 1.5
"""Least ratio of two frame rates at which faces move so much otherwise from frame to frame that it is said."""


class ClipRule(Frozen):
    """How frames make a verdict."""

    frames: PositiveInt
    stride: Literal[1] = 1
    """Steps from one frame of a clip to the next, in frames of the video."""
    hop: PositiveInt
    """Frames from the beginning of one clip to that of the next."""
    aggregation: Literal["mean", "score"] = "mean"
    """``mean`` of the frames' scores, or the program ``score`` over exactly ``frames`` embeddings."""
    frame_rate: PositiveFloat | None = None
    """Median frames a second of the videos that clips were measured on; None where frames are scored one by one,
    or where no video tells its rate."""
    text: str

    @classmethod
    def of(cls, frames: int, per: Per, frame_rate: float | None) -> "ClipRule":
        """Return the rule of a model that scores frames or clips of T = ``frames`` of videos of this rate."""
        if per == "frame":
            return cls(frames=frames, hop=frames, text=MEAN_RULE)
        hop = max(1, frames // 2)
        return cls(frames=frames, hop=hop, aggregation="score", frame_rate=frame_rate, text=SCORE_RULE)

    def other_rate(self, frame_rate: float) -> str:
        """Return a remark on a video of another frame rate than that which clips were measured on; "" if alike.

        A rate of 0 is not known.
        """
        slower, faster = sorted((frame_rate, self.frame_rate or 0))
        if not slower or faster < OTHER_RATE * slower:
            return ""
        return f"{frame_rate:.4g} frames a second: clips were measured at a median of {self.frame_rate:.4g}"

    @property
    def per(self) -> Per:
        """Whether the artifacts score frames or clips."""
        return "frame" if self.aggregation == "mean" else "clip"
