"""Views of clips, on which networks train: each is one deterministic draw of augmentation and forging.

A view is named by (seed, clip, number), so that a frozen network's outputs for it can be cached. Number 0 is the plain
clip; every other number is an augmented copy.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from data.augment import DEFAULT_POLICY, augment, check_policy, generator
from data.forge import WEAKEST, Forgery
from data.layouts import FAKE, REAL
from data.store import Clip, ClipStore
from data.video import through_jpeg
from stage import Modality, StageError, WrongArgument

WeakestForgery = Annotated[
    float, typer.Option(help="Forgeries are drawn from this strength on up to coarse ones, 1.", min=0.0, max=1.0)
]
JPEG_QUALITY = (50, 96)
"""Range, its end excluded, from which the JPEG quality after forging is drawn."""


def check_weakest_forgery(weakest: float, forge: bool) -> None:
    """Raise WrongArgument if a strength of forgeries is given without ``--forge``."""
    if weakest != WEAKEST and not forge:
        raise WrongArgument(f"--weakest-forgery {weakest} is for forgeries: give --forge with it")


class ViewRule(BaseModel):
    """Number of views of each clip and how they differ. Annotated fields are command-line options of training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    views: Annotated[
        int, typer.Option(help="Views of each training clip: the plain one and augmented copies.", min=1, max=1000)
    ] = Field(default=1, ge=1, le=1000)
    augment: Annotated[str, typer.Option(help="How copies are augmented: ten, or a policy of torchvision or timm.")] = (
        DEFAULT_POLICY
    )
    forge: Annotated[bool, typer.Option("--forge", help="Train also on self-blended forgeries of every real view.")] = (
        False
    )
    """Adds a self-blended forgery of every real view; real and forged views are then JPEG-compressed alike."""
    weakest_forgery: WeakestForgery = Field(default=WEAKEST, ge=0, le=1)
    seed: int = 0

    def seeded(self, seed: int) -> "ViewRule":
        """Return the rule with a seed. Raises WrongArgument for an option that would change nothing."""
        if self.augment != DEFAULT_POLICY and self.views == 1:
            raise WrongArgument(f"--augment {self.augment} changes views but the first: give --views 2 or more with it")
        check_weakest_forgery(self.weakest_forgery, self.forge)
        return self.model_copy(update={"seed": seed})


@dataclass(frozen=True)
class View:
    """One view of a clip."""

    clip: Clip
    number: int
    forged: bool

    @property
    def label(self) -> int:
        """1 = fake, 0 = real."""
        return FAKE if self.forged else self.clip.label

    @property
    def method(self) -> str:
        """How it was forged, or for an original where it comes from."""
        return f"forged {self.clip.method}" if self.forged else self.clip.method

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Mask of valid frames, bool [T]."""
        return self.clip.valid


class Views:
    """All views of a split. Frame ``t`` of view ``v`` has the row ``v * T + t``.

    Views come in blocks of one number, unforged ones before forged ones, in the order of the store's clips. Raises
    StageError if a label would be missing or if the store lacks one of the modalities, WrongArgument if the policy is
    unknown or cannot augment one of them, and for forgeries of depth or flow.
    """

    def __init__(
        self, store: ClipStore, rule: ViewRule, split: str = "train", modalities: Sequence[Modality] = ("rgb",)
    ) -> None:
        check_policy(rule.augment, modalities)
        store.require(modalities)
        if rule.forge and any(modality != "rgb" for modality in modalities):
            raise WrongArgument(
                "--forge forges rgb alone: for depth or flow of forgeries, prepare the store with --forge N"
            )
        self.store, self.rule, self.split, self.modalities = store, rule, split, tuple(modalities)
        clips = store.clips(split, both=not rule.forge)
        reals = [clip for clip in clips if clip.label == REAL]
        if rule.forge and not reals:
            raise StageError(f"--forge needs real clips, and the {split} split of {store.path} has none")
        kinds = [(clips, False), (reals, True)] if rule.forge else [(clips, False)]
        self.blocks = [
            [View(clip, number, forged) for clip in clips_of_kind]
            for number in range(rule.views)
            for clips_of_kind, forged in kinds
        ]
        self.views = [view for block in self.blocks for view in block]
        self.unreadable: set[int] = set()
        """Indices of views that could not be read; they are not drawn again."""

    def __len__(self) -> int:
        return len(self.views)

    @property
    def clips_sha256(self) -> str:
        """The SHA-256 of the names of the clips, in order, whatever the number of views of each.

        A clip whose file is missing or damaged is none of them.
        """
        names = "\n".join(f"{view.clip.clip_id} {view.forged}" for view in self.views if not view.number)
        return hashlib.sha256(names.encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Return the entry for ``metrics.json``: the views that were trained on, and what could not be read."""
        clips = {self.views[index].clip.clip_id for index in self.unreadable}
        lost = [file.name for file in self.store.lost_files(self.split)]
        return self.rule.model_dump() | {"count": len(self), "replaced_clips": sorted(clips), "lost_files": lost}

    def pixels(
        self, view: View, frames: list[int] | None = None, modalities: Sequence[Modality] = ()
    ) -> NDArray[np.uint8]:
        """Return a view's pictures, uint8 [T, M, S, S, 3] RGB, or only those of the given frame numbers.

        ``modalities``: some of the views' M, all if empty; a single one gives [T, S, S, 3]. A frame's pictures do not
        depend on which other frames are read. Raises StageError if the clip is damaged.
        """
        plain: dict[str, NDArray[np.uint8]] = {
            name: self.store.pixels(view.clip, frames, name) for name in modalities or self.modalities
        }
        if self.rule.forge:
            rgb = self._forged(plain["rgb"], view, frames) if view.forged else plain["rgb"]
            plain["rgb"] = self._compressed(rgb, view)
        augmented = augment(plain, self.rule.augment, self.rule.seed, view.clip.clip_id, view.number)
        pictures = list(augmented.values())
        return pictures[0] if len(pictures) == 1 else np.stack(pictures, axis=1)

    def _forged(self, crops: NDArray[np.uint8], view: View, frames: list[int] | None) -> NDArray[np.uint8]:
        rng = generator(self.rule.seed, f"forge {view.clip.clip_id}", view.number)
        forgery = Forgery.draw(rng, self.rule.weakest_forgery)
        jittered = [forgery.jitter(rng) for _ in view.valid]
        numbers = range(len(jittered)) if frames is None else frames
        boxes = self.store.boxes_in_crops(view.clip)
        return np.stack([jittered[t].blend(crop, boxes[t]) for t, crop in zip(numbers, crops, strict=True)])

    def _compressed(self, crops: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
        rng = generator(self.rule.seed, f"compress {view.clip.clip_id}", view.number)
        quality = int(rng.integers(*JPEG_QUALITY))
        return np.stack([through_jpeg(crop, quality) for crop in crops])
