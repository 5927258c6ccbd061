"""The programs that an artifact consists of: one of a frame student, two of a clip student.

A phone embeds each frame once, when it comes, and scores a clip from the embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from export.bundle import Program, Tensor
from export.runtimes import Loaded, ProgramName, Programs, Runtime
from models.detector import Detector, ImageDetector, PixelDetector, Preprocessing, fake_probability
from models.run import RunInfo
from stage import STATIC_INT8, Scheme, bytes_of, sha256_of

PROBABILITY = Tensor(name="fake_probability", dtype="float32", layout="N", shape=[1], meaning="P(fake), 0..1")
DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


@dataclass(frozen=True)
class Graph:
    """A program to write: a module in torch, and how its inputs and its output are called."""

    name: ProgramName
    module: nn.Module
    inputs: tuple[Tensor, ...]
    output: Tensor = PROBABILITY
    scheme: Scheme = "fp32"
    """In which a runtime is to compute and store that converts float32 itself."""
    licence: str = ""
    """Of the weights."""

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return zeros as the module takes them; an image as float32 [1, 3, S, S]."""
        return tuple(
            torch.zeros(1, 3, *tensor.shape)
            if tensor.dtype == "image"
            else torch.zeros(tensor.shape, dtype=DTYPES[tensor.dtype])
            for tensor in self.inputs
        )

    @cached_property
    def exported(self) -> ExportedProgram:
        """The module as a program of ATen operations, which runtimes' own programs are made from.

        What depends on weights alone is computed: a transformer's resampled positions, say, which no phone could do.
        Weights of an int8 program stay as they are: their integers would become floats.
        """
        from executorch.exir.passes.constant_prop_pass import constant_prop_pass

        program = torch.export.export(self.module, self.example())
        return program if self.scheme in STATIC_INT8 else constant_prop_pass(program)

    def described(self, bundle: Path, file: Path, operators: list[str]) -> Program:
        """Return the manifest's entry of the program, whose file in the folder ``bundle`` is ``file``."""
        return Program(
            name=self.name,
            file=file.as_posix(),
            sha256=sha256_of(bundle / file),
            bytes=bytes_of(bundle / file),
            inputs=list(self.inputs),
            output=self.output,
            operators=operators,
        )


def pixel_input(size: int, planar: bool = False) -> Tensor:
    """Return how a program takes one crop: as bytes, or as an image where a runtime has such."""
    return Tensor(
        name="image" if planar else "pixels",
        dtype="image" if planar else "uint8",
        layout="RGB image" if planar else "NHWC",
        shape=[size, size] if planar else [1, size, size, 3],
        meaning="raw pixels of one crop, RGB, 0..255; normalization is inside the graph",
    )


class Embed(nn.Module):
    """Raw pixels of one frame, uint8 [1, S, S, 3] RGB, to its embedding, float32 [1, D]."""

    def __init__(self, backbone: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.pixels_in = PixelDetector(backbone, preprocessing)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the embedding."""
        embedding: torch.Tensor = self.pixels_in.network(self.pixels_in.pictures(pixels))
        return embedding


class ImageEmbed(Embed):
    """The same for runtimes whose image input is planar: float32 [1, 3, S, S] RGB 0..255 -> float32 [1, D]."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the embedding."""
        embedding: torch.Tensor = self.pixels_in.network(self.pixels_in.normalize(image))
        return embedding


class Score(nn.Module):
    """Embeddings of a clip, float32 [1, T, D], and which frames count, float32 [1, T] of 1 and 0, to P(fake) [1].

    Core ML has no bool inputs.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, embeddings: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return P(fake)."""
        return fake_probability(self.head(embeddings, valid > 0.5))


def clip_graphs(
    network: Detector, preprocessing: Preprocessing, planar: bool, frames: int, scheme: Scheme = "fp32"
) -> list[Graph]:
    """Return ``embed`` and ``score`` of a clip student for clips of T = ``frames``."""
    width = network.embedding_size
    embedding = Tensor(
        name="embedding", dtype="float32", layout="NC", shape=[1, width], meaning="what score takes of this frame"
    )
    embeddings = Tensor(
        name="embeddings",
        dtype="float32",
        layout="NTC",
        shape=[1, frames, width],
        meaning="embeddings of a clip's frames in their order; zeros for a frame that does not count",
    )
    valid = Tensor(
        name="valid",
        dtype="float32",
        layout="NT",
        shape=[1, frames],
        meaning="1 for a frame that counts, 0 for one that is left out; at least one frame must count",
    )
    embed = (ImageEmbed if planar else Embed)(network.backbone, preprocessing)
    return [
        Graph("embed", embed.eval(), (pixel_input(network.architecture.size, planar),), embedding, scheme),
        Graph("score", Score(network.head).eval(), (embeddings, valid), scheme=scheme),
    ]


def in_torch(graphs: Sequence[Graph]) -> Programs:
    """Return the exported programs as they compute in torch."""

    def load(name: ProgramName) -> Loaded:
        (graph,) = (graph for graph in graphs if graph.name == name)
        module = graph.exported.module()

        def run(*inputs: NDArray[Any]) -> NDArray[np.float32]:
            given = map(torch.from_numpy, inputs)
            planar = (
                value.permute(0, 3, 1, 2).float() if tensor.dtype == "image" else value
                for tensor, value in zip(graph.inputs, given, strict=True)
            )
            with torch.inference_mode():
                found: NDArray[np.float32] = module(*planar).numpy()
            return found

        return run

    return load


def graphs_of(detector: PixelDetector, info: RunInfo, runtime: Runtime, frames: int) -> list[Graph]:
    """Return the programs of a run's artifact for a runtime; ``frames`` is the length of a clip student's clips."""
    planar = runtime == "coreml"
    licence = info.weights.licence
    if info.architecture.per == "clip":
        assert isinstance(detector.network, Detector)
        graphs = clip_graphs(detector.network, info.preprocessing, planar, frames, info.scheme)
        return [replace(graph, licence=licence) for graph in graphs]
    module = ImageDetector(detector.network, info.preprocessing) if planar else detector
    return [
        Graph("forward", module, (pixel_input(info.architecture.size, planar),), scheme=info.scheme, licence=licence)
    ]
