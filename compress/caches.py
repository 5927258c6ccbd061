"""What a frozen network says of every frame, computed once and kept on disk."""

import hashlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from compress.compute import Compute
from compress.filling import Filling, OfView, ProcessGroup
from data.views import ViewRule, Views
from files import require_writable, written_whole
from models.run import versions_of
from stage import Modality, StageError, say

PACKAGES = ("pocketproof", "torch", "torchvision", "timm", "opencv-python-headless")
KEY_FILE = "key.json"
CacheFolder = Annotated[
    Path | None, typer.Option(help="Where outputs of frozen networks are kept; beside the store: STORE.cache.")
]


def default_cache(store: Path) -> Path:
    """Return the folder beside a store in which outputs of frozen networks are kept."""
    store = store.resolve()  # of ``.``, which has no name
    return store.with_name(f"{store.name}.cache")


def weights_fingerprint(network: nn.Module) -> str:
    """Return the SHA-256 of a network's tensors by name, shape and value."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def clips_fingerprint(views: Views) -> str:
    """Return the SHA-256 of the names of a split's clips, in order: those that every number of views is made of."""
    names = "\n".join(f"{view.clip.clip_id} {view.forged}" for view in views.views if not view.number)
    return hashlib.sha256(names.encode()).hexdigest()


class CacheKey(BaseModel):
    """What decides the numbers in a cache; another key is another cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str
    """What is kept: ``frozen features``, ``teacher outputs``."""
    store: str
    clips: str
    """SHA-256 of what the rows are of: training does without clips whose file is damaged, and has them when it is not.
    """
    weights: str
    network: str
    precision: str
    versions: dict[str, str] = Field(default_factory=lambda: versions_of(PACKAGES))
    """Of what draws views and computes."""
    maps: str = ""
    """Shapes of feature maps that are kept beside embedding and logits."""
    modalities: tuple[Modality, ...] = ("rgb",)
    split: str = "train"
    rule: ViewRule

    @field_validator("rule")
    @classmethod
    def _plain(cls, rule: ViewRule) -> ViewRule:
        """Forget what decides nothing: plain clips are the same under every seed and policy."""
        if rule.views == 1 and not rule.forge:
            return ViewRule()
        needless = {"augment": rule.views == 1, "weakest_forgery": not rule.forge}
        return ViewRule(**rule.model_dump(exclude={name for name, idle in needless.items() if idle}))

    @property
    def folder(self) -> str:
        """Name of the cache's folder: the same for any number of views, which are added one by one."""
        alike = self.model_copy(update={"rule": self.rule.model_copy(update={"views": 1})})
        return f"{self.of.replace(' ', '-')}-{hashlib.sha256(alike.model_dump_json().encode()).hexdigest()[:16]}"


def _say_why_anew(root: Path, key: CacheKey) -> None:
    """Say which parts of the key differ from those of the caches that are there."""
    others = []
    for file in sorted(root.glob(f"{key.of.replace(' ', '-')}-*/{KEY_FILE}")):
        try:
            others.append(CacheKey.model_validate_json(file.read_bytes()))
        except (OSError, ValidationError):
            continue
    others = [other for other in others if (other.split, other.modalities) == (key.split, key.modalities)]
    parts = list(CacheKey.model_fields)
    changes = [[part for part in parts if getattr(other, part) != getattr(key, part)] for other in others]
    if changes:
        say(f"{key.of} are computed: those that are kept differ in {', '.join(sorted(changes, key=len)[0])}")


class FrameCache:
    """One array per frame, float16, memory-mapped, in one file a block of views. Rows are those of ``Views``.

    Interrupted work goes on where it was. Two processes may fill one cache at once: both write the same numbers.
    """

    def __init__(self, blocks: list[NDArray[np.float16]], done: list[NDArray[np.bool_]], folder: Path) -> None:
        self._blocks, self._done, self._folder = blocks, done, folder
        self._ends = np.cumsum([len(block) for block in blocks])

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the arrays of the given rows, float32 [B, ...]."""
        result = np.empty((len(rows), *self._blocks[0].shape[1:]), np.float16)
        places = np.searchsorted(self._ends, rows, side="right")
        for place in np.unique(places):
            here = places == place
            block = self._blocks[place]
            result[here] = block[rows[here] - (self._ends[place] - len(block))]
        return torch.from_numpy(result).float()

    @classmethod
    def fill(
        cls,
        root: Path,
        key: CacheKey,
        views: Views,
        compute: OfView,
        where: ProcessGroup | None = None,
    ) -> "FrameCache":
        """Call ``compute`` on each view that the cache at ``root`` lacks.

        Says how much disk it takes before it writes. ``where``: the processes that train together, each of which
        computes its share. Views that cannot be read are marked so and keep zeros. Raises StageError where nothing can
        be written, or where a view of another split than train cannot be read.
        """
        folder = root / key.folder
        if (where is None or where.rank == 0) and not (folder / KEY_FILE).exists():
            require_writable(folder / KEY_FILE, "--cache")
            _say_why_anew(root, key)
            with written_whole(folder / KEY_FILE) as aside:
                aside.write_text(key.model_dump_json(indent=2) + "\n")
        filling = Filling(folder, key.modalities, views, compute)
        size = 2 * views.store.frames * len(views) * int(np.prod(filling.shape))
        say(f"{key.of} of {key.split} {'+'.join(key.modalities)}: {size / 1e6:.0f} MB on disk at {folder}")
        if where is None or where.processes == 1:
            filling.fill()
        else:
            filling.fill_together(where)
        filled = [filling.opened(number) for number in range(len(views.blocks))]
        return cls([rows for rows, _ in filled], [done for _, done in filled], folder)

    def require_whole(self, unreadable: set[int]) -> None:
        """Raise StageError unless every view is there but those that could not be read."""
        absent = set(np.flatnonzero(~np.concatenate(self._done)).tolist()) - unreadable
        if absent:
            raise StageError(
                f"{self._folder} lacks {len(absent)} views that another process was to fill: "
                "give --cache on a disk that all processes see"
            )


def shared_cache(root: Path, key: CacheKey, views: Views, compute: OfView, where: Compute) -> FrameCache:
    """Fill a cache (``FrameCache.fill``) by all processes of a training, and let each know what none can read.

    Raises StageError also if one of them does not see what the others filled.
    """
    cache = FrameCache.fill(root, key, views, compute, where)
    views.unreadable.update(*where.gathered(views.unreadable))
    cache.require_whole(views.unreadable)
    return cache
