"""Which frames train together: full, label-balanced, source-mixed batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.views import View, Views
from stage import StageError, say


@dataclass(frozen=True)
class Batch:
    """Frames of a training batch. Frame ``t`` of view ``v`` has the row ``v * T + t``."""

    rows: NDArray[np.int64]
    """int64 [B]."""
    labels: NDArray[np.int64]
    """int64 [B], 1 = fake."""


def _mixed(groups: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of all groups, each group in random order and spread evenly over the whole."""
    places = [(np.arange(len(group)) + rng.random(len(group))) / len(group) for group in groups]
    shuffled = np.concatenate([rng.permutation(group) for group in groups])
    return shuffled[np.argsort(np.concatenate(places), kind="stable")]


def _repeated(groups: Sequence[NDArray[np.int64]], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return ``length`` rows: fresh orders one after another, so that each row is drawn equally often."""
    rounds = -(-length // sum(map(len, groups)))
    return np.concatenate([_mixed(groups, rng) for _ in range(rounds)])[:length]


def _rows_by_method(views: Views, label: int) -> list[NDArray[np.int64]]:
    """Return the rows of valid frames of a label, by method; views that cannot be read are left out."""
    groups: dict[str, list[int]] = {}
    for index, view in enumerate(views.views):
        if view.label == label and index not in views.unreadable:
            groups.setdefault(view.method, []).extend((index * len(view.valid) + np.flatnonzero(view.valid)).tolist())
    if not any(groups.values()):
        raise StageError(f"no {'fake' if label else 'real'} view of {views.store.path} can be read: prepare it again")
    return [np.array(groups[method], np.int64) for method in sorted(groups) if groups[method]]


def balanced_batches(views: Views, batch_size: int, seed: tuple[int, ...]) -> Iterator[Batch]:
    """Yield one epoch: every valid frame at least once, as many real as fake ones in each batch, all batches full.

    The rarer label is repeated, and each label's methods are mixed in proportion. ``batch_size`` must be even. Raises
    StageError if a label has no view that can be read.
    """
    rng = np.random.default_rng(seed)
    rows = [_rows_by_method(views, label) for label in (0, 1)]
    half = batch_size // 2
    batches = -(-max(sum(map(len, groups)) for groups in rows) // half)
    real, fake = (_repeated(groups, batches * half, rng) for groups in rows)
    labels = np.repeat(np.array([0, 1], np.int64), half)
    for start in range(0, batches * half, half):
        yield Batch(np.concatenate([real[start : start + half], fake[start : start + half]]), labels)


def batch_pixels(views: Views, batch: Batch) -> NDArray[np.uint8]:
    """Return the crops of a batch, uint8 [B, S, S, 3] RGB.

    The frames of a view that cannot be read are replaced by frames of other views of their label, and the view is
    drawn no more; ``views.unreadable`` counts. Raises StageError if a label has no view left.
    """
    store = views.store
    numbers, frames = np.divmod(batch.rows, store.frames)
    pixels = np.empty((len(batch.rows), store.size, store.size, 3), np.uint8)
    for number in np.unique(numbers):
        here = np.flatnonzero(numbers == number)
        pixels[here] = _read_or_replace(views, int(number), frames[here].tolist())
    return pixels


def _read_or_replace(views: Views, number: int, frames: list[int]) -> NDArray[np.uint8]:
    """Read frames of a view, or as many of others of its label, in an order that depends on its number alone."""
    wanted = views.views[number]
    others = [index for index, view in enumerate(views.views) if view.label == wanted.label]
    order = np.random.default_rng(number).permutation(others)
    for index in (number, *order.tolist()):
        if index in views.unreadable:
            continue
        view = views.views[index]
        valid = np.flatnonzero(view.valid)
        chosen = frames if index == number else valid[np.resize(np.arange(len(valid)), len(frames))].tolist()
        try:
            return views.pixels(view, chosen)
        except StageError as error:
            _give_up(views, index, view, error)
    raise StageError(f"no {'fake' if wanted.label else 'real'} view of {views.store.path} can be read any more")


def _give_up(views: Views, index: int, view: View, error: StageError) -> None:
    views.unreadable.add(index)
    say(f"clip {view.clip.clip_id} is replaced by others: {error}")
