"""What a teacher says of the training views: computed once and kept on disk, or anew at every step."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.caches import CacheKey, clips_fingerprint, shared_cache, weights_fingerprint
from compress.compute import Compute
from data.batches import Pictures, read_batch
from data.views import Views
from models.detector import PixelDetector
from models.outputs import Outputs, example_outputs, on_grids, outputs
from models.run import Run
from models.temporal import ClipHead
from stage import Per, StageError


@dataclass(frozen=True)
class Layout:
    """How what a teacher says of a frame lies in one row, float [W]: features, logits, then maps position by position.

    Of a clip's frame, the features are the fused ones, and the logits those of its clip.
    """

    example: Outputs
    """Of one sample."""
    head: ClipHead | None

    def rows(self, said: Outputs) -> Tensor:
        """Return rows, float32 [N, W], or [N, T, W] of clips."""
        if said.frames is not None:
            spread = said.logits[:, None].expand(-1, said.frames.shape[1], -1)
            return torch.cat([said.frames.float(), spread.float()], dim=-1)
        maps = on_grids([stage.float() for stage in said.maps], self.example.grids)
        positions = (stage.permute(0, 2, 3, 1).flatten(1) for stage in maps)
        return torch.cat([said.embedding.float(), said.logits.float(), *positions], dim=-1)

    def outputs(self, rows: Tensor, valid: Tensor | None) -> Outputs:
        """Return what ``rows`` was made of; valid: of clips, bool [N, T]."""
        width = self.example.embedding.shape[1]
        features, logits = rows[..., :width], rows[..., width : width + 2]
        if self.head is not None:
            assert valid is not None
            return Outputs(logits[:, 0], self.head.pooled(features, valid), frames=features, valid=valid)
        shapes = [stage.shape[1:] for stage in self.example.maps]
        flat = torch.split(rows[..., width + 2 :], [math.prod(shape) for shape in shapes], dim=-1) if shapes else ()
        maps = tuple(p.view(-1, h, w, c).permute(0, 3, 1, 2) for p, (c, h, w) in zip(flat, shapes, strict=True))
        return Outputs(logits, features, maps)


def _on_grids(teacher: Outputs, student: Outputs) -> Outputs:
    """Return the teacher's sample on the coarser grid of both, for as many of the last stages as both have."""
    stages = min(len(teacher.maps), len(student.maps))
    if not stages:
        return teacher
    pairs = zip(teacher.grids[-stages:], student.grids[-stages:], strict=True)
    coarser = [(min(t[0], s[0]), min(t[1], s[1])) for t, s in pairs]
    return Outputs(teacher.logits, teacher.embedding, on_grids(teacher.maps, coarser))


class _Teacher:
    """A teacher that is asked: pictures to rows."""

    def __init__(self, run: Run, student: Outputs, frames: int, compute: Compute) -> None:
        self.network, self._compute = run.detector(), compute
        head = self.network.head
        said = example_outputs(self.network, frames, bool(student.maps))
        self.layout = Layout(_on_grids(said, student), head if isinstance(head, ClipHead) else None)
        pixels_in = PixelDetector(self.network, run.info.preprocessing)
        self._pixels_in = pixels_in.to(compute.device).to(memory_format=torch.channels_last).eval()

    def rows(self, pixels: NDArray[np.uint8], valid: NDArray[np.bool_] | None) -> Tensor:
        """Return rows of pictures, float32 [N, W], or of clips and their valid frames, [N, T, W]."""
        device = self._compute.device
        pictures = self._pixels_in.pictures(torch.from_numpy(pixels).to(device))
        given = () if valid is None else (torch.from_numpy(valid).to(device),)
        with torch.no_grad(), self._compute.context():
            found = outputs(self.network, pictures, *given, with_maps=bool(self.layout.example.maps))
            return self.layout.rows(found)

    def of_view(self, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]) -> Tensor:
        """Return the rows of a view's frames, float32 [T, W]."""
        return self.rows(pixels, None) if self.layout.head is None else self.rows(pixels[None], valid[None])[0]


class TeacherOutputs:
    """What a teacher says of batches of ``views``, rounded to half precision whether it is kept or not.

    It sees the pictures that the student sees, as ``seen`` shows them: the same views in its own modalities. Views of
    which it sees something that cannot be read are marked, and drawn no more. ``student``: what the student says of one
    sample; feature maps are asked for where it has some, and averaged to its grids where those are coarser. ``cache``:
    folder to keep it in; None asks the teacher at every step.
    """

    def __init__(
        self, run: Run, views: Views, seen: Views, student: Outputs, compute: Compute, cache: Path | None
    ) -> None:
        self._views, self._seen, self._device = views, seen, compute.device
        seen.unreadable = views.unreadable
        teacher = _Teacher(run, student, views.store.frames, compute)
        self.layout = teacher.layout
        self.per: Per = run.info.architecture.per
        self._live = None if cache else teacher
        if cache:
            key = CacheKey(
                of="teacher outputs",
                store=views.store.info.fingerprint,
                clips=clips_fingerprint(views),
                weights=weights_fingerprint(teacher.network),
                network=f"{run.info.architecture.model_dump_json()} {run.info.preprocessing.model_dump_json()}",
                maps=str([list(stage.shape[1:]) for stage in self.layout.example.maps]),
                precision=compute.numbers,
                modalities=seen.modalities,
                rule=views.rule,
            )
            self._cache = shared_cache(cache, key, seen, teacher.of_view, compute)

    def __call__(self, read: Pictures) -> tuple[Tensor, Pictures]:
        """Return what the teacher says, float32 [B, W], or [B, T, W] of clips, and the pictures it is said of.

        These are ``read``, what the student sees, unless the teacher could not read its side of them.
        """
        if self._live:
            return self._ask(self._live, read)
        if self.per == "frame":
            return self._cache[read.batch.rows].to(self._device), read
        frames = self._views.store.frames
        rows = self._cache[read.batch.frame_rows(frames)]
        return rows.view(len(read.batch.rows), frames, -1).to(self._device), read

    def _ask(self, teacher: _Teacher, read: Pictures) -> tuple[Tensor, Pictures]:
        own = read
        if self._seen.modalities != self._views.modalities:
            own = read_batch(self._seen, read.batch, self.per)
            while not np.array_equal(own.batch.rows, read.batch.rows):  # until both sides could read the same views
                read = read_batch(self._views, own.batch, self.per)
                own = read_batch(self._seen, read.batch, self.per)
        said = teacher.rows(own.pixels, own.valid).half().float()
        if not said.isfinite().all():
            raise StageError("the teacher gives numbers beyond half precision: take another --teacher")
        return said, read
