"""Training batches: which frames or views train together, in full batches with labels and methods mixed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.store import DamagedClip
from data.views import View, Views
from stage import Per, StageError, say


@dataclass(frozen=True)
class Batch:
    """A training batch of frames, where frame ``t`` of view ``v`` has the row ``v * T + t``, or of whole views."""

    rows: NDArray[np.int64]
    """int64 [B]: rows of frames, or numbers of views."""
    labels: NDArray[np.int64]
    """int64 [B], 1 = fake."""

    def part(self, number: int, of: int) -> "Batch":
        """Return every ``of``-th sample, starting with sample ``number``."""
        return Batch(self.rows[number::of], self.labels[number::of])

    def frame_rows(self, frames: int) -> NDArray[np.int64]:
        """Return the rows of all frames of a batch of views of T = ``frames``, int64 [B * T]."""
        return (self.rows[:, None] * frames + np.arange(frames)).ravel()


def _mixed(groups: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of all groups, each group in random order and spread evenly over the result."""
    positions = [(np.arange(len(group)) + rng.random(len(group))) / len(group) for group in groups]
    shuffled = np.concatenate([rng.permutation(group) for group in groups])
    return shuffled[np.argsort(np.concatenate(positions), kind="stable")]


def _repeated(groups: Sequence[NDArray[np.int64]], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return ``length`` rows: fresh random orders one after another, so that all rows are drawn equally often."""
    rounds = -(-length // sum(map(len, groups)))
    return np.concatenate([_mixed(groups, rng) for _ in range(rounds)])[:length]


def _rows_by_method(views: Views, label: int, per: Per, number: int | None) -> list[NDArray[np.int64]]:
    """Return the rows of a label's valid frames (or of its views), one array per method, sorted by method.

    Views that cannot be read are left out, as are views of another ``number`` unless that is None. Raises StageError
    if none is left.
    """
    groups: dict[str, list[int]] = {}
    for index, view in enumerate(views.views):
        if view.label == label and index not in views.unreadable and number in (None, view.number):
            rows = [index] if per == "clip" else (index * len(view.valid) + np.flatnonzero(view.valid)).tolist()
            groups.setdefault(view.method, []).extend(rows)
    if not any(groups.values()):
        raise StageError(f"no {'fake' if label else 'real'} view of {views.store.path} can be read: prepare it again")
    return [np.array(groups[method], np.int64) for method in sorted(groups) if groups[method]]


def balanced_batches(
    views: Views, batch_size: int, seed: tuple[int, ...], per: Per = "frame", number: int | None = None
) -> Iterator[Batch]:
    """Yield one pass: every valid frame (or view) at least once, each batch full and half real, half fake.

    The rarer label is repeated, and each label's methods are mixed in proportion. Both labels are shuffled with the
    same seed, so that forged views meet their originals in a batch. ``batch_size`` must be even; ``number``: draw only
    from views of this number, from all if None. Raises StageError if a label has no view that can be read.
    """
    rows = [_rows_by_method(views, label, per, number) for label in (0, 1)]
    half = batch_size // 2
    batches = -(-max(sum(map(len, groups)) for groups in rows) // half)
    real, fake = (_repeated(groups, batches * half, np.random.default_rng(seed)) for groups in rows)
    labels = np.repeat(np.array([0, 1], np.int64), half)
    for start in range(0, batches * half, half):
        yield Batch(np.concatenate([real[start : start + half], fake[start : start + half]]), labels)


def natural_batches(
    views: Views, batch_size: int, seed: tuple[int, ...], per: Per = "frame", number: int | None = None
) -> Iterator[Batch]:
    """Yield one pass: every valid frame (or view) once, labels as they occur, and some again to fill the last batch.

    Labels and methods are spread evenly. ``number``: draw only from views of this number, from all if None.
    Raises StageError if a label has no view that can be read.
    """
    rng = np.random.default_rng(seed)
    of_label = [_rows_by_method(views, label, per, number) for label in (0, 1)]
    groups = [group for label in (0, 1) for group in of_label[label]]
    batches = -(-sum(map(len, groups)) // batch_size)
    rows = _repeated(groups, batches * batch_size, rng)
    per_view = 1 if per == "clip" else len(views.views[0].valid)
    labels = np.array([views.views[index].label for index in (rows // per_view).tolist()], np.int64)
    for start in range(0, len(rows), batch_size):
        yield Batch(rows[start : start + batch_size], labels[start : start + batch_size])


def label_shares(views: Views, per: Per) -> NDArray[np.float64]:
    """Return the shares of real and fake among valid frames (or views), float64 [2], which sum to 1."""
    counts = np.array([sum(map(len, _rows_by_method(views, label, per, None))) for label in (0, 1)], np.float64)
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


@dataclass(frozen=True)
class Pictures:
    """The pictures of a batch, as they were read."""

    pixels: NDArray[np.uint8]
    """uint8 [B, S, S, 3] of frames, or [B, T, S, S, 3] of views; [..., M, S, S, 3] of several modalities."""
    batch: Batch
    """The batch that was read: views that cannot be read are replaced by others."""
    valid: NDArray[np.bool_] | None = None
    """For views: mask of their valid frames, bool [B, T]; None for frames."""


def read_batch(views: Views, batch: Batch, per: Per = "frame") -> Pictures:
    """Return the pictures of a batch of frames or of whole views.

    A view that cannot be read is added to ``views.unreadable`` and replaced by another of its label. Raises StageError
    if a label has no view left, and DamagedClip outside the training split, where nothing is replaced.
    """
    return _read_frames(views, batch) if per == "frame" else _read_views(views, batch)


def _read_frames(views: Views, batch: Batch) -> Pictures:
    per_view = views.store.frames
    numbers, frames = np.divmod(batch.rows, per_view)
    pixels: dict[int, NDArray[np.uint8]] = {}
    rows = batch.rows.copy()
    for number in np.unique(numbers).tolist():
        positions = np.flatnonzero(numbers == number)
        crops, index, chosen = _read_or_replace(views, number, frames[positions].tolist())
        pixels |= dict(zip(positions.tolist(), crops, strict=True))
        rows[positions] = index * per_view + np.array(chosen)
    return Pictures(np.stack([pixels[position] for position in range(len(rows))]), Batch(rows, batch.labels))


def _read_views(views: Views, batch: Batch) -> Pictures:
    read = [_read_or_replace(views, number, None) for number in batch.rows.tolist()]
    rows = np.array([index for _, index, _ in read], np.int64)
    valid = np.stack([views.views[index].valid for index in rows.tolist()])
    return Pictures(np.stack([pixels for pixels, *_ in read]), Batch(rows, batch.labels), valid)


def _read_or_replace(
    views: Views, number: int, frames: list[int] | None
) -> tuple[NDArray[np.uint8], int, list[int] | None]:
    """Return the pictures of a view's frames (all if None), or of another view of its label, and that view and frames.

    Other views are tried in an order that depends on the view's number only. Raises StageError if none can be read, and
    DamagedClip outside the training split.
    """
    requested = views.views[number]
    for index in _candidates(views, number):
        if index in views.unreadable:
            continue
        view = views.views[index]
        view_frames = frames
        if frames is not None and index != number:
            valid = np.flatnonzero(view.valid)
            view_frames = valid[np.resize(np.arange(len(valid)), len(frames))].tolist()
        try:
            return views.pixels(view, view_frames), index, view_frames
        except DamagedClip as error:
            if views.split != "train":
                raise
            _mark_unreadable(views, index, view, error)
    raise StageError(f"no {'fake' if requested.label else 'real'} view of {views.store.path} can be read any more")


def _candidates(views: Views, number: int) -> Iterator[int]:
    """Yield a view's number, then those of all views of its label in random order, seeded by the number."""
    yield number
    same_label = [index for index, view in enumerate(views.views) if view.label == views.views[number].label]
    yield from np.random.default_rng(number).permutation(same_label).tolist()


def _mark_unreadable(views: Views, index: int, view: View, error: DamagedClip) -> None:
    """Mark a view as unreadable and say so."""
    views.unreadable.add(index)
    say(f"clip {view.clip.clip_id} is replaced by others: {error}", everywhere=True)
