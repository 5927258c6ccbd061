"""Runs, and the scripted phone, that several tests of this room measure."""

import functools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.processor import measure_products
from compress.teach import teach
from models.detector import Architecture, Detector
from models.megatron import MegatronSettings
from models.run import Run, save_run
from tests.benchmarks.runner_logs import EXECUTORCH, ONNXRUNTIME
from tests.benchmarks.scripted_adb import ADB, Adb
from tests.conftest import note_anew, shared
from tests.export.clip_student import clip_bundle


@pytest.fixture(autouse=True, scope="session")
def measured_products() -> Iterator[None]:
    """Measure this machine's matrix products once, and not twice for each report: each time takes two processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.bench.measure_products", functools.cache(measure_products))
        yield


@pytest.fixture(scope="module")
def random_run(demo_store, tmp_path_factory):
    options = {"backbone": "test_vit", "random_weights": True, "epochs": 0}
    return shared(tmp_path_factory, "random/large", lambda out: teach("dino", demo_store, out, **options))


def _save_clip_run_and_store(demo_store, teacher_run, folder):
    store = shutil.copytree(demo_store, folder / "store")
    for file in (store / "clips").iterdir():
        rows = pq.read_table(file)
        rows = rows.set_column(rows.schema.get_field_index("depth"), "depth", rows["rgb"])
        pq.write_table(rows, file, row_group_size=1)
    info = json.loads((store / "store.json").read_text())
    info["settings"]["modalities"] = ["rgb", "depth"]
    (store / "store.json").write_text(json.dumps(info))
    note_anew(store)
    source = Run(teacher_run)
    changes = {"modalities": ("rgb", "depth"), "megatron": MegatronSettings(feed_forward=16)}
    architecture = Architecture(backbone="test_byobnet", size=64, **changes)
    metrics = json.loads(source.read("metrics.json"))
    run_info = source.info.model_copy(update={"architecture": architecture})
    save_run(folder / "megatron", run_info, Detector(architecture), metrics)


@pytest.fixture(scope="module")
def clip_run_and_store(demo_store, teacher_run, tmp_path_factory):
    """A Megatron run of random weights that says it was trained, and a store whose depth is a copy of its RGB."""
    folder = shared(tmp_path_factory, "clips", lambda out: _save_clip_run_and_store(demo_store, teacher_run, out))
    return folder / "megatron", folder / "store"


@pytest.fixture(scope="module")
def clip_artifacts(demo_store, tmp_path_factory):
    return clip_bundle(demo_store, tmp_path_factory)


@pytest.fixture
def adb(tmp_path, monkeypatch) -> Adb:
    folder = tmp_path / "platform-tools"
    folder.mkdir()
    program = folder / "adb"
    program.write_text(ADB.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    properties = {
        "ro.product.manufacturer": "Google",
        "ro.product.model": "Pixel 8",
        "ro.build.version.release": "15",
        "ro.soc.model": "Tensor G3",
    }
    prints = {"executor_runner": EXECUTORCH, "perf_test": ONNXRUNTIME}
    known = {"devices": [("R5CT", "device")], "serial": "R5CT", "properties": properties, "prints": prints}
    made = Adb(folder, known)
    made.change(stderr="", code=0, logcat="")
    return made


@pytest.fixture
def runners(tmp_path) -> list[Path]:
    """Files whose names hold a space and quotes."""
    folder = tmp_path / "my 'own' \"tools\"; echo $HOME"
    folder.mkdir()
    files = [folder / "executor_runner (1)", folder / "onnxruntime_perf_test"]
    for file in files:
        file.write_bytes(b"\x7fELF")
    return files
