"""Records which persons a run was trained on, so that figures on another store do not count them as unseen.

Splits are drawn for each store: a person of one store's test split may be in another one's training split.
"""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from data.store import Clip, ClipStore

if TYPE_CHECKING:
    from models.run import Run


def hashed(clips: Iterable[Clip]) -> set[str]:
    """Return the persons of clips, each as the first 12 hexadecimal digits of the SHA-256 of the name."""
    names = {name for clip in clips for name in clip.identities}
    return {hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12] for name in names}


def seen_persons(store: ClipStore, *runs: "Run") -> dict[str, list[str]]:
    """Return ``persons`` and ``validation_persons`` of a ``DataSource``: of a store and of the parent runs, sorted."""
    of_store = {
        split: hashed(store.clips(split, both=False))
        for split in ("train", "val")
        if sum(store.info.clips[split].values())
    }
    trained_on = of_store.get("train", set()).union(*(run.info.data.training_persons for run in runs))
    everyone = trained_on.union(of_store.get("val", ()), *(run.info.data.persons for run in runs))
    return {"persons": sorted(everyone), "validation_persons": sorted(everyone - trained_on)}


def seen_note(
    names: Iterable[str],
    persons: Iterable[str],
    clips: Iterable[Clip],
    split: str,
    figures: str = "its figures here",
    seen_in: str = "training or validation",
) -> list[str]:
    """Return a note on how many persons of a split were seen by the runs or artifacts of these names; [] if none.

    ``persons``: the hashed persons that they have seen, and ``seen_in`` which data; ``clips``: of the split;
    ``figures``: what is too good then.
    """
    split_persons = hashed(clips)
    if not (seen := split_persons.intersection(persons)):
        return []
    return [
        f"{len(seen)} of {len(split_persons)} persons of the {split} split have names of persons in the {seen_in} of "
        f"{', '.join(names)}: {figures} may be too good."
    ]
