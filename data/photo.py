"""Photo files, read like a video of one frame."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from data.picture import Frame, Picture, UnreadableVideo
from data.video import VideoInfo
from stage import reason_of

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is to be turned, by its EXIF orientation (CIPA DC-008, 4.6.4)."""
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")


def _rgb(image: Image.Image) -> Frame:
    """Return a picture of any mode as RGB, uint8 [H, W, 3]; transparent pixels keep their colour.

    Raises ValueError for 32-bit pixels.
    """
    if image.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) whose white is not known")
    return np.asarray(image.convert("RGB"), np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    """Return a picture turned by its EXIF orientation; one whose EXIF data are broken, as it is."""
    image.load()
    try:
        turn = TURNS.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    except Exception:  # Pillow raises any error at damaged EXIF data
        turn = None
    return image if turn is None else image.transpose(turn)


class Photo:
    """A photo file, turned upright by its EXIF orientation. Raises UnreadableVideo if it cannot be read."""

    def __init__(self, path: Path) -> None:
        try:
            if path.exists() and not path.is_file():
                raise ValueError("it is not a file")
            with warnings.catch_warnings():  # Pillow warns of faults that it repairs, and of photos above 89 megapixels
                warnings.simplefilter("ignore")
                with Image.open(path, formats=FORMATS) as image:
                    self._pixels = _rgb(_upright(image))
        except UnidentifiedImageError as error:  # its text contains the path
            raise UnreadableVideo(path, "cannot be read as a photo: cannot identify image file") from error
        except Exception as error:  # Pillow raises its own errors and any that its many parsers run into
            raise UnreadableVideo(path, f"cannot be read as a photo: {reason_of(error)}") from error
        height, width = self._pixels.shape[:2]
        self.info = VideoInfo(0.0, width, height)
        self.position = 0
        """Number of the frame that comes next."""
        self.damaged = 0
        """Always 0, unlike for a video: a damaged photo cannot be read at all."""
        self.remarks: dict[str, None] = {}

    def pictures(self, start: int = 0) -> Iterator[Picture]:
        """Yield the one picture, once, and nothing if ``start`` is not 0."""
        if self.position == 0:
            self.position = 1
            if start == 0:
                yield Picture.of(self._pixels)

    def count(self) -> int:
        """Return the number of frames: 1."""
        return 1

    def __enter__(self) -> "Photo":
        return self

    def __exit__(self, *_: object) -> None:
        pass
