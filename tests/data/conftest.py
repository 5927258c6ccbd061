"""What several tests of this room share: pictures to change, a small corpus and its store."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
from numpy.typing import NDArray

from data.flow import flow_picture
from tests.conftest import shared
from tests.data.commands import files, made

SIZE = 64
Pictures = dict[str, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def clip() -> NDArray[np.uint8]:
    """Return a face that moves and grows lighter, uint8 [3, SIZE, SIZE, 3]."""
    face = skimage.data.astronaut()[20:212, 130:340]
    cuts = [cv2.resize(face[:, 4 * t : 4 * t + 192], (SIZE, SIZE), interpolation=cv2.INTER_AREA) for t in range(3)]
    return np.stack([np.minimum(cut.astype(int) + 8 * t, 255).astype(np.uint8) for t, cut in enumerate(cuts)])


@pytest.fixture(scope="module")
def pictures(clip: NDArray[np.uint8]) -> Pictures:
    vectors = np.random.default_rng(0).uniform(-3, 3, (3, 4, 4, 2)).astype(np.float32)
    flow = np.stack([cv2.resize(v, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for v in vectors])
    return {"rgb": clip, "depth": clip[..., :1].repeat(3, axis=-1), "flow": flow_picture(flow)}


@pytest.fixture(scope="module")
def small_corpus(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four renders and their forgeries."""
    root = tmp_path_factory.mktemp("small") / "corpus"
    for path in demo_corpus.rglob("00[0-3]*.mp4"):
        target = root / path.relative_to(demo_corpus)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return root


@pytest.fixture(scope="module")
def whole(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of the store of ``small_corpus``, made by two processes."""
    return files(shared(tmp_path_factory, "small-store", lambda out: made(small_corpus, out, workers=2)))
