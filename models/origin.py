"""Where a model comes from: its starting weights, the runs before it, the data. Read also where there is no torch."""

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
    persons: list[str] = Field(default_factory=list)
    """Of training and validation, and of the runs from which this one was made, as ``compress.persons`` names them;
    older runs do not say."""
