"""Batches of the reference: where their doubling ends."""

import numpy as np
import pytest
import torch

from benchmarks.task import Task
from benchmarks.timing import time_batches


class Model:
    """Takes a millisecond whatever the batch, and fails on a batch of four."""

    def __init__(self, error):
        self.error, self.batches = error, []

    def __call__(self, crops):
        self.batches.append(len(crops))
        if len(crops) == 4:
            raise self.error
        torch.linalg.matrix_power(torch.ones(200, 200), 20)


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.timing.LEAST_GAIN", 0.0)
    monkeypatch.setattr("benchmarks.timing.MOST_SECONDS", 0.1)
    np.zeros((4, 8, 8, 3), np.uint8).tofile(tmp_path / "crops.bin")
    known = {"path": tmp_path, "runtime": "torch", "scheme": "fp32", "threads": 1, "repeats": 3, "size": 8}
    return Task.model_validate(known | {"crops": tmp_path / "crops.bin", "scored": {}})


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_batches_end_where_memory_ends(error, task):
    assert [timing.batch for timing in time_batches(Model(error), task)] == [1, 2]


def test_any_other_error_of_a_batch_is_none_of_memory(task):
    with pytest.raises(RuntimeError, match="shapes do not match"):
        time_batches(Model(RuntimeError("shapes do not match")), task)
