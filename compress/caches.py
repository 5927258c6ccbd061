"""Outputs of a frozen network for every frame, computed once and kept on disk."""

import hashlib
import resource
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import torch
import typer
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from compress.compute import Compute
from compress.filling import Filling, OfView
from data.views import ViewRule, Views
from files import require_writable, written_whole
from resuming import versions_of
from stage import Modality, StageError, say

PACKAGES = ("pocketproof", "torch", "torchvision", "timm", "opencv-python-headless")
KEY_FILE = "key.json"
SPARE_FILES = 64
"""Files that a training opens besides those of its cache, at most."""
CacheFolder = Annotated[
    Path | None, typer.Option(help="Where outputs of frozen networks are kept; beside the store: STORE.cache.")
]


def default_cache(store: Path) -> Path:
    """Return the cache folder beside a store: ``STORE.cache``."""
    store = store.resolve()  # the path ``.`` has no name to append to
    return store.with_name(f"{store.name}.cache")


def weights_fingerprint(network: nn.Module) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and values of a network's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class CacheKey(BaseModel):
    """Everything that the numbers in a cache depend on; another key means another cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str
    """Kind of content: ``frozen features`` or ``teacher outputs``."""
    store: str
    clips: str
    """SHA-256 of the clips that the rows belong to (``Views.clips_sha256``): a clip whose file is damaged is left out,
    and is back once the file is repaired."""
    weights: str
    network: str
    precision: str
    versions: dict[str, str] = Field(default_factory=lambda: versions_of(PACKAGES))
    """Versions of the packages that draw views and compute outputs."""
    maps: str = ""
    """Shapes of the feature maps that are kept beside embedding and logits."""
    modalities: tuple[Modality, ...] = ("rgb",)
    split: str = "train"
    rule: ViewRule

    @classmethod
    def of_views(
        cls,
        of: str,
        views: Views,
        modalities: tuple[Modality, ...],
        network: nn.Module,
        settings: str,
        precision: str,
        maps: str = "",
    ) -> "CacheKey":
        """Return the key of what ``network`` gives for ``views``; settings: all else of the network, as text."""
        return cls(
            of=of,
            store=views.store.info.fingerprint,
            clips=views.clips_sha256,
            weights=weights_fingerprint(network),
            network=settings,
            precision=precision,
            maps=maps,
            modalities=modalities,
            split=views.split,
            rule=views.rule,
        )

    @field_validator("rule")
    @classmethod
    def _plain(cls, rule: ViewRule) -> ViewRule:
        """Reset settings without effect: plain clips are the same under every seed and policy."""
        if rule.views == 1 and not rule.forge:
            return ViewRule()
        without_effect = {"augment": rule.views == 1, "weakest_forgery": not rule.forge}
        return ViewRule(**rule.model_dump(exclude={name for name, unused in without_effect.items() if unused}))

    @property
    def folder(self) -> str:
        """Name of the cache's folder. It does not depend on the number of views, so that more can be added later."""
        one_view = self.model_copy(update={"rule": self.rule.model_copy(update={"views": 1})})
        return f"{self.of.replace(' ', '-')}-{hashlib.sha256(one_view.model_dump_json().encode()).hexdigest()[:16]}"


def _say_why_anew(root: Path, key: CacheKey) -> None:
    """Print in which parts the key differs from that of the most similar existing cache."""
    others = []
    for file in sorted(root.glob(f"{key.of.replace(' ', '-')}-*/{KEY_FILE}")):
        try:
            others.append(CacheKey.model_validate_json(file.read_bytes()))
        except (OSError, ValidationError):
            continue
    others = [other for other in others if (other.split, other.modalities) == (key.split, key.modalities)]
    fields = list(CacheKey.model_fields)
    changes = [[field for field in fields if getattr(other, field) != getattr(key, field)] for other in others]
    if changes:
        say(f"{key.of} are computed: those that are kept differ in {', '.join(sorted(changes, key=len)[0])}")


def _allow_open_files(blocks: int) -> None:
    """Let this process keep a file open for each block of a cache, besides those that it has open.

    Raises StageError, before anything is computed, if the system does not allow so many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = psutil.Process().num_fds() + blocks + SPARE_FILES
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise StageError(
            f"{blocks} blocks of cached views need {needed} open files, and the system allows {hard}: give fewer "
            "--views, or allow more (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class FrameCache:
    """One float16 array per frame, in one memory-mapped file per block of views. Rows are numbered as in ``Views``.

    Interrupted filling resumes where it was. Of several trainings that need one cache, one fills it, the others wait.
    """

    def __init__(self, blocks: list[NDArray[np.float16]], done: list[NDArray[np.bool_]], folder: Path) -> None:
        """``blocks``: float16 [V * T, ...] each, of V views; ``done``: bool [V] each; ``folder``: of their files."""
        self._blocks, self._done, self._folder = blocks, done, folder
        self._ends = np.cumsum([len(block) for block in blocks])

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the arrays of the rows, int64 [B], as float32 [B, ...]."""
        result = np.empty((len(rows), *self._blocks[0].shape[1:]), np.float16)
        block_numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(block_numbers):
            in_block = block_numbers == number
            block = self._blocks[number]
            first_row = self._ends[number] - len(block)
            result[in_block] = block[rows[in_block] - first_row]
        return torch.from_numpy(result).float()

    @classmethod
    def fill(
        cls,
        root: Path,
        key: CacheKey,
        views: Views,
        compute: OfView,
        where: Compute,
    ) -> "FrameCache":
        """Open the cache for ``key`` below ``root``, after calling ``compute`` on each view that it lacks.

        Prints the disk space before it writes. ``where``: the processes that train together, each of which computes its
        share. Training views that cannot be read are added to ``views.unreadable`` and keep zeros. Raises StageError if
        the folder cannot be written, or if a view of another split than train cannot be read.
        """
        folder = root / key.folder
        if where.rank == 0 and not (folder / KEY_FILE).exists():
            require_writable(folder / KEY_FILE, "--cache")
            _say_why_anew(root, key)
            with written_whole(folder / KEY_FILE) as aside:
                aside.write_text(key.model_dump_json(indent=2) + "\n", encoding="utf-8")
        filling = Filling(folder, key.modalities, views, compute)
        size = 2 * views.store.frames * len(views) * int(np.prod(filling.shape))
        say(f"{key.of} of {key.split} {'+'.join(key.modalities)}: {size / 1e6:.0f} MB on disk at {folder}")
        _allow_open_files(len(views.blocks))
        if where.processes == 1:
            filling.fill()
        else:
            filling.fill_together(where)
        blocks, done = [], []
        for number in range(len(views.blocks)):  # copied at once: a block has two files, and only one may stay open
            rows, whole_views = filling.opened(number)
            blocks.append(rows)
            done.append(np.array(whole_views))
        return cls(blocks, done, folder)

    def require_whole(self, unreadable: set[int]) -> None:
        """Raise StageError if a view is missing that is not among the ``unreadable`` ones (numbers in ``Views``)."""
        missing = set(np.flatnonzero(~np.concatenate(self._done)).tolist()) - unreadable
        if missing:
            raise StageError(
                f"{self._folder} lacks {len(missing)} views that another process was to fill: "
                "give --cache on a disk that all processes see"
            )


def shared_cache(root: Path, key: CacheKey, views: Views, compute: OfView, where: Compute) -> FrameCache:
    """Fill a cache (``FrameCache.fill``) with all processes of a training and share which views cannot be read.

    Raises StageError as ``fill`` does, and if a process does not see what the others filled.
    """
    cache = FrameCache.fill(root, key, views, compute, where)
    views.unreadable.update(*where.gathered(views.unreadable))
    cache.require_whole(views.unreadable)
    return cache
