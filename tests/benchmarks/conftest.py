"""Runs that several tests of this room measure."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from compress.teach import teach
from models.detector import Architecture, Detector
from models.megatron import MegatronSettings
from models.run import Run, save_run
from tests.conftest import note_anew, shared


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
