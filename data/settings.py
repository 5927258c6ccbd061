"""The settings that decide what a ClipStore holds."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from data.crops import CropRule
from data.depth import DepthWeights
from stage import Modality

ClipStart = Literal["first", "random", "spread"]
"""Where a video's clips begin: with its first face, at random frames, or evenly spread over it."""


class StoreSettings(BaseModel):
    """Settings that decide a store's content: the same settings and inputs give the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: int = Field(ge=1)
    crop: CropRule
    detector: Literal["dlib", "mtcnn"] = "dlib"
    all_faces: bool = False
    clips_per_video: PositiveInt = 1
    start: ClipStart = "first"
    modalities: tuple[Modality, ...] = ("rgb",)
    flow: str | None = None
    """Name of the estimator of the flow pictures, with the SHA-256 of its weights if it has any."""
    depth: DepthWeights | None = None
    forge: NonNegativeInt = 0
    weakest_forgery: float = Field(default=1.0, ge=0, le=1)
    """Least strength of forgeries. Stores without this field hold coarse forgeries (1) only."""
    ratios: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]
    seed: NonNegativeInt
    sources_sha256: str

    def asked(self) -> dict[str, Any]:
        """Return all that decides a store's content: of weights the hash, not the name of the folder."""
        return self.model_dump(mode="json", exclude={"depth": {"name"}})

    @property
    def flow_and_weights(self) -> tuple[str, str]:
        """Name of the estimator of flow (the default without flow) and its weights' SHA-256 (empty without any)."""
        name, _, sha256 = (self.flow or "dis").partition(" ")
        return name, sha256

    def made(self, modalities: Iterable[Modality]) -> str:
        """Return in words all that decides pictures of these modalities, besides their size."""
        parts = [self.crop.described(self.detector)]
        if "depth" in modalities and self.depth:
            parts.append(f"depth by weights {self.depth.sha256[:8]}")
        if "flow" in modalities:
            name, sha256 = self.flow_and_weights
            parts.append(f"flow by {name} {sha256[:8]}".rstrip())
        return ", ".join(parts)
