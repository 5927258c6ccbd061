"""The origin of a model: starting weights, parent runs, data. Also imported where torch is not installed."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Weights(BaseModel):
    """Where a run's starting weights came from and under which licence they may be passed on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["random", "hub", "file", "folder"]
    name: str
    sha256: str | None = None
    licence: str


class Parent(BaseModel):
    """A run from which another was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str


class DataSource(BaseModel):
    """The store on which a run was trained, or quantized, and got its threshold, and what that store says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    notes: list[str] = Field(default_factory=list)
    frames: int | None = None
    """Frames of a clip, T."""
    crops: str | None = None
    """How the pictures that the run looks at were made (``StoreSettings.made``); None in older runs."""
    persons: list[str] = Field(default_factory=list)
    """Hashed names (``compress.provenance``) of the persons in the training and validation data of this run and of its
    parents; empty in older runs."""
    validation_persons: list[str] | None = None
    """Those of ``persons`` on whom nothing was trained: they chose weights and thresholds. None in older runs,
    and in what was made from them."""

    @property
    def training_persons(self) -> set[str]:
        """Hashed names of the persons on whom this run and its parents were trained; ``persons`` in older runs."""
        return set(self.persons) - set(self.validation_persons or ())
