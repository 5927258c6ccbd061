"""Outputs of a teacher for the training views: computed once and kept on disk, or computed at every step."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.caches import CacheKey, shared_cache
from compress.compute import Compute
from data.batches import Pictures, read_batch
from data.views import Views
from models.outputs import Outputs, example_outputs, on_grids, outputs
from models.pixels import PixelDetector
from models.run import Run
from models.temporal import ClipHead
from stage import Per, StageError


@dataclass(frozen=True)
class Layout:
    """How a teacher's outputs for a frame are stored in one row, float [W]: features, logits, maps by position.

    For a frame of a clip, the features are those after attention, and the logits are those of the whole clip.
    """

    example: Outputs
    """Example outputs for one sample, which define the shapes."""
    head: ClipHead | None
    """The head of a clip teacher; None for a frame teacher."""

    def rows(self, teacher_outputs: Outputs) -> Tensor:
        """Return the rows of ``teacher_outputs``, float32 [N, W], or [N, T, W] for clips."""
        if teacher_outputs.frames is not None:
            logits_by_frame = teacher_outputs.logits[:, None].expand(-1, teacher_outputs.frames.shape[1], -1)
            return torch.cat([teacher_outputs.frames.float(), logits_by_frame.float()], dim=-1)
        maps = on_grids([stage.float() for stage in teacher_outputs.maps], self.example.grids)
        positions = (stage.permute(0, 2, 3, 1).flatten(1) for stage in maps)
        return torch.cat([teacher_outputs.embedding.float(), teacher_outputs.logits.float(), *positions], dim=-1)

    def outputs(self, rows: Tensor, valid: Tensor | None) -> Outputs:
        """Return the outputs that ``rows`` holds, as the method ``rows`` stores them; valid: of clips, bool [N, T]."""
        width = self.example.embedding.shape[1]
        features, logits = rows[..., :width], rows[..., width : width + 2]
        if self.head is not None:
            assert valid is not None
            return Outputs(logits[:, 0], self.head.pooled(features, valid), frames=features, valid=valid)
        shapes = [stage.shape[1:] for stage in self.example.maps]
        sizes = [math.prod(shape) for shape in shapes]
        flat_maps = torch.split(rows[..., width + 2 :], sizes, dim=-1) if shapes else ()
        maps = tuple(
            flat.view(-1, h, w, c).permute(0, 3, 1, 2) for flat, (c, h, w) in zip(flat_maps, shapes, strict=True)
        )
        return Outputs(logits, features, maps)


def _on_grids(teacher: Outputs, student: Outputs) -> Outputs:
    """Return the teacher's outputs with maps of the last stages that both have, on the coarser grid of both."""
    stages = min(len(teacher.maps), len(student.maps))
    if not stages:
        return teacher
    pairs = zip(teacher.grids[-stages:], student.grids[-stages:], strict=True)
    coarser = [(min(t[0], s[0]), min(t[1], s[1])) for t, s in pairs]
    return Outputs(teacher.logits, teacher.embedding, on_grids(teacher.maps, coarser))


class _Teacher:
    """Runs a teacher: pictures to rows (``Layout``)."""

    def __init__(self, run: Run, student: Outputs, frames: int, compute: Compute) -> None:
        self.network, self._compute = run.detector(), compute
        head = self.network.head
        example = example_outputs(self.network, frames, bool(student.maps))
        self.layout = Layout(_on_grids(example, student), head if isinstance(head, ClipHead) else None)
        pixels_in = PixelDetector(self.network, run.info.preprocessing)
        self._pixels_in = pixels_in.to(compute.device).to(memory_format=torch.channels_last).eval()

    def rows(self, pixels: NDArray[np.uint8], valid: NDArray[np.bool_] | None) -> Tensor:
        """Return the rows of frames, float32 [N, W], or of clips, [N, T, W].

        pixels: uint8, as ``PixelDetector`` takes them; valid: bool [N, T] for clips, else None.
        """
        device = self._compute.device
        pictures = self._pixels_in.pictures(torch.from_numpy(pixels).to(device))
        mask = () if valid is None else (torch.from_numpy(valid).to(device),)
        with torch.no_grad(), self._compute.context():
            teacher_outputs = outputs(self.network, pictures, *mask, with_maps=bool(self.layout.example.maps))
            return self.layout.rows(teacher_outputs)

    def of_view(self, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]) -> Tensor:
        """Return the rows of a view's frames, float32 [T, W]."""
        return self.rows(pixels, None) if self.layout.head is None else self.rows(pixels[None], valid[None])[0]


class TeacherOutputs:
    """Outputs of a teacher for batches of ``views``, rounded to half precision whether they are cached or not.

    ``teacher_views``: the student's ``views`` in the modalities of the teacher. A view whose pictures cannot be read
    for the teacher is marked as unreadable, and not drawn again. ``student``: example outputs of the student for one
    sample; if they have feature maps, so do the teacher's, averaged to the student's grids where these are coarser.
    ``cache``: the folder for the outputs; None runs the teacher at every step.
    """

    def __init__(
        self, run: Run, views: Views, teacher_views: Views, student: Outputs, compute: Compute, cache: Path | None
    ) -> None:
        self._views, self._teacher_views, self._device = views, teacher_views, compute.device
        teacher_views.unreadable = views.unreadable
        teacher = _Teacher(run, student, views.store.frames, compute)
        self.layout = teacher.layout
        self.per: Per = run.info.architecture.per
        self._live = None if cache else teacher
        if cache:
            settings = f"{run.info.architecture.model_dump_json()} {run.info.preprocessing.model_dump_json()}"
            maps = str([list(stage.shape[1:]) for stage in self.layout.example.maps])
            key = CacheKey.of_views(
                "teacher outputs",
                teacher_views,
                teacher_views.modalities,
                teacher.network,
                settings,
                compute.numbers,
                maps,
            )
            self._cache = shared_cache(cache, key, teacher_views, teacher.of_view, compute)

    def __call__(self, read: Pictures) -> tuple[Tensor, Pictures]:
        """Return the teacher's rows, float32 [B, W], or [B, T, W] for clips, and the student's pictures they belong to.

        These pictures are ``read``, unless some of the teacher's pictures could not be read: then other views are drawn
        in their place.
        """
        if self._live:
            return self._run_live(self._live, read)
        if self.per == "frame":
            return self._cache[read.batch.rows].to(self._device), read
        frames = self._views.store.frames
        rows = self._cache[read.batch.frame_rows(frames)]
        return rows.view(len(read.batch.rows), frames, -1).to(self._device), read

    def _run_live(self, teacher: _Teacher, read: Pictures) -> tuple[Tensor, Pictures]:
        """Run the teacher on a batch; returns as ``__call__``. Raises StageError for values beyond half precision."""
        teacher_read = read
        if self._teacher_views.modalities != self._views.modalities:
            teacher_read = read_batch(self._teacher_views, read.batch, self.per)
            while not np.array_equal(teacher_read.batch.rows, read.batch.rows):  # until both could read the same views
                read = read_batch(self._views, teacher_read.batch, self.per)
                teacher_read = read_batch(self._teacher_views, read.batch, self.per)
        rows = teacher.rows(teacher_read.pixels, teacher_read.valid).half().float()
        if not rows.isfinite().all():
            raise StageError("the teacher gives numbers beyond half precision: take another --teacher")
        return rows, read
