"""The demo's videos: renders of scikit-image's face photo with a moving, zooming camera and light, and forgeries.

The photo is of the astronaut Eileen Collins (NASA, public domain). As it is only one person, each render counts as an
identity of its own, and figures measured on these videos are about new draws, not about new persons.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.faces import DlibHog, whole
from data.forge import Forgery
from data.picture import Frame, Picture
from data.video import write_video
from files import written_whole
from processes import in_processes
from stage import StageError

FPS = 25
FRAMES = 30
HEIGHT, WIDTH = 360, 480
NOTE = (
    "All demo videos show one person: they are renders of one photo, and each render counts as an identity of its "
    "own. Accuracy here measures new draws of camera and forgery, not new persons."
)


@dataclass(frozen=True)
class Portrait:
    """The photo, uint8 [512, 512, 3] RGB, and the box of its face in pixels."""

    pixels: Frame
    box: NDArray[np.float64]

    @classmethod
    @functools.cache
    def load(cls) -> "Portrait":
        """Return the photo that scikit-image ships, with the box of its face."""
        import skimage.data

        pixels = np.ascontiguousarray(skimage.data.astronaut())
        picture = Picture.of(pixels)
        return cls(pixels, max(DlibHog().detect(picture, whole(picture), 1.0), key=lambda face: face.score).box)


@dataclass(frozen=True)
class Camera:
    """One random draw of camera and light for filming the photo. Time runs from 0 to 1 over the clip."""

    face_width: tuple[float, float]
    """Width of the face in pixels at the start and at the end."""
    path: NDArray[np.float64]
    """[2, 3]: amplitude (pixels), cycles and phase of the camera's sway in x and y."""
    tilt: tuple[float, float]
    """Rotation in degrees at the start and at the end."""
    light: NDArray[np.float64]
    """[3]: factor on R, G and B of the whole picture."""
    gamma: float
    shade: NDArray[np.float64]
    """[2]: relative change of brightness from the centre to the edge, in x and y."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Camera":
        """Draw a camera."""
        return cls(
            face_width=(float(rng.uniform(100, 165)), float(rng.uniform(100, 165))),
            path=np.stack([rng.uniform(8, 30, 2), rng.uniform(0.5, 1.5, 2), rng.uniform(0, 2 * np.pi, 2)], axis=-1),
            tilt=(float(rng.uniform(-6, 6)), float(rng.uniform(-6, 6))),
            light=rng.uniform(0.75, 1.2) * rng.uniform(0.85, 1.15, 3),
            gamma=float(rng.uniform(0.8, 1.25)),
            shade=rng.uniform(-0.25, 0.25, 2),
        )

    def film(self, photo: Portrait) -> Iterator[tuple[Frame, NDArray[np.float64]]]:
        """Yield FRAMES pairs: a frame, uint8 [HEIGHT, WIDTH, 3] RGB, and the face box in it, float64 [4] pixels."""
        across, down = np.linspace(-1.0, 1.0, WIDTH)[None, :], np.linspace(-1.0, 1.0, HEIGHT)[:, None]
        light = ((1.0 + across * self.shade[0] + down * self.shade[1])[..., None] * self.light).astype(np.float32)
        gamma_table = np.rint(255.0 * (np.arange(256) / 255.0) ** self.gamma).astype(np.uint8)
        face_centre = (photo.box[:2] + photo.box[2:]) / 2
        for time in np.linspace(0.0, 1.0, FRAMES):
            width = self.face_width[0] + time * (self.face_width[1] - self.face_width[0])
            zoom = width / (photo.box[2] - photo.box[0])
            sway = self.path[:, 0] * np.sin(2 * np.pi * self.path[:, 1] * time + self.path[:, 2])
            angle = self.tilt[0] + time * (self.tilt[1] - self.tilt[0])
            affine = cv2.getRotationMatrix2D((float(face_centre[0]), float(face_centre[1])), angle, float(zoom))
            affine[:, 2] += np.array([WIDTH, HEIGHT]) / 2 + sway - face_centre
            view = cv2.warpAffine(
                photo.pixels, affine, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
            )
            picture = cv2.LUT(np.clip(view * light, 0.0, 255.0).astype(np.uint8), gamma_table)
            shown_centre = np.array([WIDTH, HEIGHT]) / 2 + sway
            half_size = zoom * (photo.box[2:] - photo.box[:2]) / 2
            yield np.asarray(picture, np.uint8), np.concatenate([shown_centre - half_size, shown_centre + half_size])


def render_pair(real: Path, fake: Path, seed: tuple[int, int], forged: bool) -> None:
    """Write one clip and its forgery, encoded alike; without ``forged`` the forgery changes no pixel."""
    photo = Portrait.load()
    rng = np.random.default_rng(seed)
    frames_and_boxes = list(Camera.draw(rng).film(photo))
    forgery = Forgery.draw(rng) if forged else Forgery()
    forgeries = [forgery.jitter(rng).blend(frame, box) for frame, box in frames_and_boxes]
    for path, frames in ((real, [frame for frame, _ in frames_and_boxes]), (fake, forgeries)):
        with written_whole(path) as aside:
            write_video(aside, frames, FPS)


def render_corpora(out: Path, renders: int, controls: int, seed: int, workers: int) -> None:
    """Render the demo's two corpora.

    ``out/corpus`` is laid out like FaceForensics++ (``renders`` originals, one forgery each). ``out/control`` is a
    plain folder of ``controls`` other renders whose "forgeries" went through the identity transform: a detector that
    learned the forgery, and not a trait of the files, cannot tell them from the real ones. Existing files are kept.
    Raises StageError if they were rendered with another seed.
    """
    corpus, control = out / "corpus", out / "control"
    for folder in (corpus, control):
        about, text = folder / "corpus.json", json.dumps({"note": NOTE, "seed": seed}, indent=2) + "\n"
        if about.exists() and about.read_text(encoding="utf-8") != text:
            raise StageError(f"{folder} was rendered with another --seed: remove it, or give another --out")
        with written_whole(about) as aside:
            aside.write_text(text, encoding="utf-8")
    pairs = [
        (
            corpus / f"original_sequences/youtube/c23/videos/{n:03d}.mp4",
            corpus / f"manipulated_sequences/SelfBlended/c23/videos/{n:03d}_{n:03d}.mp4",
            (seed, n),
            True,
        )
        for n in range(renders)
    ]
    pairs += [
        (control / f"real/{n:03d}.mp4", control / f"fake/{n:03d}.mp4", (seed + 1, n), False) for n in range(controls)
    ]
    missing = [pair for pair in pairs if not (pair[0].exists() and pair[1].exists())]
    in_processes(render_pair, missing, workers, "render")
