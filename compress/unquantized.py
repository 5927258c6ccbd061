"""A run to quantize, with the validation samples on which its quantized programs are compared."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.auc import DIGITS
from compress.calibration import NetworkInputs, drawn_inputs, logits, one_pair, validation_scores
from compress.diagnosis import layer_noise
from compress.fidelity import LayerNoise, snr_db
from compress.provenance import check_crops
from compress.runs import check_store, takes
from compress.scoring import ClipScores, Takes
from data.store import ClipStore
from models.detector import Detector
from models.fusing import fuse
from models.run import Run
from stage import Per, StageError, progress

VALIDATION = {"frame": 64, "clip": 16}
"""Frames or clips on which observers are compared and noise is measured."""
DIAGNOSED = {"frame": 8, "clip": 1}
"""Batch size in frames or clips of the noise measurement, which holds their activations and gradients."""


@dataclass(frozen=True)
class Unquantized:
    """A run to quantize, fused, with the validation inputs and the accuracy limit for its programs."""

    run: Run
    store: ClipStore
    fused: Detector
    validation: list[NetworkInputs]
    max_auc_drop: float
    seed: int

    @classmethod
    def load(cls, run: Run, store: ClipStore, max_auc_drop: float, seed: int) -> "Unquantized":
        """Fuse a run and draw validation inputs. Raises StageError if the run cannot be quantized on this store."""
        if run.info.scheme != "fp32":
            raise StageError(f"{run.path} is quantized already ({run.info.scheme}): give the run that it came from")
        inputs = takes(run.info)
        check_store(run, store)
        check_crops(run, store)
        validation = drawn_inputs(run, inputs, store, "val", VALIDATION[inputs.per], seed)
        return cls(run, store, fuse(run.detector(), *validation[0]), validation, max_auc_drop, seed)

    @property
    def per(self) -> Per:
        """Whether the run scores frames or clips."""
        return self.run.info.architecture.per

    @cached_property
    def least_auc(self) -> float | None:
        """Smallest validation AUC that a scheme may have; None if the run's scores mean nothing."""
        if self.run.info.meaningless:
            return None
        before = self.scores(self.fused)
        return round(before.auc - max(self.max_auc_drop, one_pair(before)), DIGITS)

    def drawn(self, inputs: Takes, samples: int) -> list[NetworkInputs]:
        """Return inputs of a detector for drawn training frames or clips, in batches (``drawn_inputs``)."""
        return drawn_inputs(self.run, inputs, self.store, "train", samples, self.seed)

    def scores(self, program: nn.Module) -> ClipScores:
        """Return the scores of a program on the validation split."""
        return validation_scores(program, self.run, self.store)

    def snr_db(self, program: nn.Module) -> float:
        """Return the SNR in dB of a program's fake-minus-real logits against those of the run."""
        return snr_db(self.expected, logits(program, self.validation))

    @cached_property
    def expected(self) -> NDArray[np.float64]:
        """Fake-minus-real logits of the run on the validation inputs, float64 [N]."""
        return logits(self.fused, self.validation)

    def layer_noise(self, program: Detector) -> list[LayerNoise]:
        """Return how much noise each layer of an int8 program adds to the logits."""
        small_batches = [
            batch
            for inputs in self.validation
            for batch in zip(*(torch.split(tensor, DIAGNOSED[self.per]) for tensor in inputs), strict=True)
        ]
        return layer_noise(program, progress(small_batches, "diagnose"))
