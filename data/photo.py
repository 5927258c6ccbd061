"""Photo files, read like a video of one frame."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.picture import Frame, Picture, UnreadableVideo
from data.video import VideoInfo
from stage import reason_of

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


class Photo:
    """A photo file, turned upright by its EXIF orientation. Raises UnreadableVideo if it cannot be read."""

    def __init__(self, path: Path) -> None:
        try:
            if path.exists() and not path.is_file():
                raise ValueError("it is not a file")
            with warnings.catch_warnings():  # Pillow warns of faults that it repairs, and of photos above 89 megapixels
                warnings.simplefilter("ignore")
                with Image.open(path, formats=FORMATS) as image:
                    self._pixels = _rgb(ImageOps.exif_transpose(image))
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
