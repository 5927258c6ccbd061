"""Inputs that several rooms' tests share: a small rendered corpus, the stores prepared from it, runs and a bundle.

The processes of pytest-xdist make each of them once, for all. What imports torch (7 s) is imported where it is used, so
that tests of data start without it.
"""

import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from filelock import FileLock
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from data.demo import render_corpora
from data.prepare import prepare
from data.store import ClipStore
from files import sha256_of

# Wherever the tests run, the hub's cache is empty and the hub cannot be reached: set before its library is imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(Path(tempfile.gettempdir(), "no-hub-in-tests"))}

if TYPE_CHECKING:
    from models.detector import Detector

settings.register_profile(
    "few", max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("many", settings.get_profile("few"), max_examples=500, derandomize=False)
settings.load_profile("few")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with one file that makes the bundle, while another process runs what needs none: nobody waits for it."""
    rooms = ["data", "models", "compress", "export", "benchmarks"]

    def place(item: pytest.Item) -> tuple[bool, int]:
        room = item.path.parent.name
        return item.path.name != "test_export.py", rooms.index(room) if room in rooms else len(rooms)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _threads_taken_back() -> Iterator[None]:
    """Take back the threads that a measurement in this process gave torch.

    With more than one in each process of pytest-xdist, every operation waits for the others' threads: fifty times as
    long.
    """
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def astronaut() -> NDArray[np.uint8]:
    """The photo of scikit-image, uint8 [512, 512, 3] RGB: eyes at (204, 101) and (247, 103), mouth at (225, 146)."""
    return np.ascontiguousarray(skimage.data.astronaut())


def note_anew(store: Path) -> None:
    """Note the hashes of a store's files as they are now, as one who changed them on purpose would."""
    videos = pq.read_table(store / "videos.parquet")
    files = [store / "clips" / f"{video}.parquet" for video in videos["video_id"].to_pylist()]
    hashes = [sha256_of(file) if file.exists() else None for file in files]
    column = videos.column_names.index("clips_sha256")
    pq.write_table(videos.set_column(column, "clips_sha256", pa.array(hashes)), store / "videos.parquet")
    info = json.loads((store / "store.json").read_text()) | {"fingerprint": sha256_of(store / "videos.parquet")}
    (store / "store.json").write_text(json.dumps(info))


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a path that the first process which needs it makes, and that all processes only read."""
    root = factory.getbasetemp()
    path = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            make(path)
    return path


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file can grow beyond 4 kB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def demo_renders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of 12 renders with a forgery each, and of 3 renders with an identity "forgery" each."""
    root = shared(
        tmp_path_factory, "renders", lambda out: render_corpora(out, renders=12, controls=3, seed=0, workers=2)
    )
    return root / "corpus", root / "control"


@pytest.fixture(scope="session")
def demo_corpus(demo_renders: tuple[Path, Path]) -> Path:
    """Folder of 12 original videos and one forgery of each, laid out like FaceForensics++. Read only."""
    return demo_renders[0]


@pytest.fixture(scope="session")
def demo_control(demo_renders: tuple[Path, Path]) -> Path:
    """Folder of 3 real and 3 "fake" videos, whose forgeries changed nothing. Read only."""
    return demo_renders[1]


@pytest.fixture(scope="session")
def demo_store(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ClipStore of ``demo_corpus``: 4 frames of 64 pixels; 12 train, 6 val and 6 test clips. Read only."""
    options = {"frames": 4, "size": 64, "ratios": "0.5,0.25,0.25", "workers": 2}
    return shared(tmp_path_factory, "stores/demo", lambda out: prepare([demo_corpus], out, **options))


@pytest.fixture(scope="session")
def demo_control_store(demo_control: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ClipStore of ``demo_control``, 6 test clips of 4 frames of 64 pixels. Read only."""
    options = {"frames": 4, "size": 64, "ratios": "0,0,1", "workers": 2}
    return shared(tmp_path_factory, "stores/control", lambda out: prepare([demo_control], out, **options))


@pytest.fixture(scope="session")
def opened_store(demo_store: Path) -> ClipStore:
    """The opened ``demo_store``."""
    return ClipStore(demo_store)


@pytest.fixture(scope="session")
def real_crops(opened_store: ClipStore) -> NDArray[np.uint8]:
    """Real crops of both labels, uint8 [24, 64, 64, 3] RGB."""
    return np.concatenate([opened_store.pixels(clip) for clip in opened_store.clips("val")])


@pytest.fixture(scope="session")
def tiny_depth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder with a Depth Anything network of 4 layers and weights drawn at random. Read only."""
    return shared(tmp_path_factory, "depth/tiny", _save_tiny_depth)


def _save_tiny_depth(out: Path) -> None:
    import torch
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    layers = [1, 2, 3, 4]
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    backbone = Dinov2Config(**shape, out_indices=layers, apply_layernorm=True, reshape_hidden_states=False)
    neck = {"reassemble_hidden_size": 32, "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}
    network = DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, **neck))
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    network.save_pretrained(out)
    size = {"height": 56, "width": 56}
    processor = DPTImageProcessor(size=size, ensure_multiple_of=14, keep_aspect_ratio=True, image_std=[0.2, 0.3, 0.4])
    processor.save_pretrained(out)


@pytest.fixture(scope="session")
def modal_store(demo_corpus: Path, tiny_depth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ClipStore of ``demo_corpus`` with depth and flow: frames, size and splits as in ``demo_store``. Read only."""
    options = {"frames": 4, "size": 64, "ratios": "0.5,0.25,0.25", "modalities": "rgb,depth,flow"}
    return shared(
        tmp_path_factory, "stores/modal", lambda out: prepare([demo_corpus], out, depth_weights=tiny_depth, **options)
    )


@pytest.fixture(scope="session")
def teacher_run(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vision transformer, its last block trained for two epochs."""
    from compress.teach import teach

    options = {"backbone": "test_vit", "random_weights": True, "unfreeze": "1", "epochs": 2}
    return shared(tmp_path_factory, "teacher", lambda out: teach("dino", demo_store, out, **options))


@pytest.fixture(scope="session")
def tiny_transformer(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer of one block, trained until its logits have something to lose."""
    from compress.teach import teach
    from tests import tiny  # noqa: F401  (timm knows it from then on)

    options = {"backbone": "test_tiny_vit", "random_weights": True, "unfreeze": "all", "epochs": 30}
    return shared(tmp_path_factory, "tiny-transformer", lambda out: teach("dino", demo_store, out, **options))


@pytest.fixture(scope="session")
def student_run(demo_store: Path, teacher_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network distilled from ``teacher_run``."""
    from compress.distill import distill

    options = {"student": "test_byobnet", "epochs": 8}
    return shared(tmp_path_factory, "student", lambda out: distill(demo_store, out, teacher_run, **options))


@pytest.fixture(scope="session")
def int8_run(demo_store: Path, student_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``student_run`` in int8."""
    from compress.quantize import quantize

    options = {"calibration_clips": 24, "max_auc_drop": 1.0}
    return shared(tmp_path_factory, "student-int8", lambda out: quantize(student_run, demo_store, out, **options))


@pytest.fixture(scope="session")
def bundle_path(demo_store: Path, student_run: Path, int8_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``student_run`` and ``int8_run`` in all three runtimes. Read only."""
    return shared(tmp_path_factory, "bundle", lambda out: export_here([student_run, int8_run], demo_store, out))


@pytest.fixture(scope="session")
def reference_file(demo_store: Path, teacher_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference of ``teacher_run``. Read only."""
    from benchmarks.reference import reference

    measured = {"device": "cpu", "repeats": 10}
    return shared(tmp_path_factory, "reference.json", lambda out: reference(teacher_run, demo_store, out, **measured))


def export_here(
    runs: list[Path], store: Path, out: Path, formats: str = "executorch,onnx,coreml", **options: Any
) -> None:
    """Export in this process: starting others, which import everything anew, takes longer than most of the rest."""
    from export.export import export

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.export.in_processes", lambda function, jobs, *_: [function(*job) for job in jobs])
        export(runs, store, out, formats, **options)


@pytest.fixture(scope="session")
def drawn_run() -> Callable[..., Path]:
    """Return how to save a run at a path in no time: ``architecture`` of test_vit, its weights drawn at random.

    It claims one step of training, so that it may teach; ``info`` are further fields of ``model.json``.
    """
    import torch

    from models.detector import Architecture, Detector

    def save(out: Path, info: dict[str, object] | None = None, **architecture: object) -> Path:
        torch.manual_seed(7)
        known = Architecture.model_validate({"backbone": "test_vit", "size": 64} | architecture)
        return save_drawn(out, Detector(known), {"kind": "teacher"} | (info or {}), {})

    return save


def forget_hashes(run: Path) -> None:
    """Take the hashes of its other files out of a run's ``model.json``: older runs have none."""
    model = json.loads((run / "model.json").read_text())
    del model["files"]
    (run / "model.json").write_text(json.dumps(model))


def save_drawn(out: Path, detector: "Detector", info: dict[str, object], metrics: dict[str, object]) -> Path:
    """Save a detector whose weights were drawn at random as a run that claims one step of training."""
    from models.origin import DataSource, Weights
    from models.pixels import Preprocessing
    from models.run import RunInfo, save_run

    fields = {
        "architecture": detector.architecture,
        "preprocessing": Preprocessing.of(detector.architecture.backbone),
        "weights": Weights(source="random", name="random initialization", licence="none"),
        "trained_steps": 1,
        "data": DataSource(fingerprint="none"),
        "seed": 7,
    }
    save_run(out, RunInfo.model_validate(fields | info), detector, metrics)
    return out
