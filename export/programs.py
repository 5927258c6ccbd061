"""The programs that an artifact consists of: one for a frame student, two or one for a clip student.

With two, a phone embeds each frame once, as it arrives, and scores a clip from the embeddings.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from export.forms import MOST_AT_ONCE, Form
from export.manifest import Program, Tensor
from export.runtimes import Loaded, ProgramName, Programs, in_batches
from files import bytes_of, sha256_of
from models.cost import macs_of
from models.detector import Detector
from models.pixels import ImageDetector, PixelDetector, Preprocessing, fake_probability
from models.run import RunInfo
from stage import STATIC_INT8, Scheme

DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


@dataclass(frozen=True)
class TorchProgram:
    """A program to write: a module in torch, and the description of its inputs and output."""

    name: ProgramName
    module: nn.Module
    inputs: tuple[Tensor, ...]
    output: Tensor
    scheme: Scheme = "fp32"
    """Scheme in which a runtime that converts float32 itself is to compute and store."""
    licence: str = ""
    """Licence of the weights."""

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return zeros as the module takes them: two samples for any number, an image as float32 [1, 3, S, S]."""
        shapes = [[2 if side is None else side for side in tensor.shape] for tensor in self.inputs]
        return tuple(
            torch.zeros(1, 3, *shape) if tensor.dtype == "image" else torch.zeros(shape, dtype=DTYPES[tensor.dtype])
            for tensor, shape in zip(self.inputs, shapes, strict=True)
        )

    @property
    def batch(self) -> int | None:
        """Samples that it takes at once; None: any number."""
        return self.output.shape[0]

    @cached_property
    def exported(self) -> ExportedProgram:
        """The module as a program of ATen operations, from which the programs of all runtimes are made.

        Constants are folded, such as a transformer's resampled positions, which no phone could compute; but not in an
        int8 program, whose integer weights would become floats.
        """
        from executorch.exir.passes.constant_prop_pass import constant_prop_pass

        dynamic_shapes = None
        if self.batch is None:
            batch = torch.export.Dim("batch", min=1, max=MOST_AT_ONCE)
            dynamic_shapes = tuple({0: batch} for _ in self.inputs)
        program = torch.export.export(self.module, self.example(), dynamic_shapes=dynamic_shapes)
        return program if self.scheme in STATIC_INT8 else constant_prop_pass(program)

    def described(self, bundle: Path, file: Path, operators: list[str]) -> Program:
        """Return the manifest's entry of the program; ``file`` is its path in the folder ``bundle``."""
        return Program(
            name=self.name,
            file=file.as_posix(),
            sha256=sha256_of(bundle / file),
            bytes=bytes_of(bundle / file),
            inputs=list(self.inputs),
            output=self.output,
            operators=operators,
            macs=macs_of(self.module, *self.example()) // (self.batch or 2),
        )


def probability(batch: int | None = 1) -> Tensor:
    """Return the description of the output of a program that scores."""
    return Tensor(name="fake_probability", dtype="float32", layout="N", shape=[batch], range=(0, 1), meaning="P(fake)")


RAW = "RGB, 0..255; normalization is inside the graph"
PIXELS: dict[str, Any] = {"colours": "RGB", "range": (0, 255)}


def pixel_input(size: int, planar: bool = False, batch: int | None = 1) -> Tensor:
    """Return the description of the crop input: bytes [N, S, S, 3], or with ``planar`` one image (Core ML)."""
    if planar:
        shape: list[int | None] = [size, size]
        meaning = f"raw pixels of one crop, {RAW}"
        return Tensor(name="image", dtype="image", layout="RGB image", shape=shape, meaning=meaning, **PIXELS)
    meaning = f"raw pixels of {'one crop' if batch == 1 else 'crops'}, {RAW}"
    return Tensor(name="pixels", dtype="uint8", layout="NHWC", shape=[batch, size, size, 3], meaning=meaning, **PIXELS)


def flags(frames: int, batch: int | None) -> Tensor:
    """Return the description of the input that says which frames of a clip count."""
    return Tensor(
        name="valid",
        dtype="float32",
        layout="NT",
        shape=[batch, frames],
        range=(0, 1),
        meaning="1 for a frame that counts, 0 for one that is left out; at least one frame must count",
    )


class Embed(nn.Module):
    """Embed raw pixels of one frame: uint8 [1, S, S, 3] RGB -> float32 [1, D]."""

    def __init__(self, backbone: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.pixels_in = PixelDetector(backbone, preprocessing)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the embedding."""
        embedding: torch.Tensor = self.pixels_in.network(self.pixels_in.pictures(pixels))
        return embedding


class ImageEmbed(Embed):
    """``Embed`` for runtimes whose image input is planar: float32 [1, 3, S, S] RGB 0..255 -> float32 [1, D]."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the embedding."""
        embedding: torch.Tensor = self.pixels_in.network(self.pixels_in.normalize(image))
        return embedding


class Score(nn.Module):
    """Score embeddings of a clip, float32 [1, T, D], and flags of its frames, float32 [1, T] -> P(fake), float32 [1].

    A flag is 1 for a frame that counts, else 0: Core ML has no bool inputs.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, embeddings: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return P(fake)."""
        return fake_probability(self.head(embeddings, valid > 0.5))


class WholeClip(nn.Module):
    """Score raw pixels of a clip, [1, T, S, S, 3] RGB, and flags of its frames, float32 [1, T] -> P(fake), float32 [1].

    A flag is 1 for a frame that counts, else 0.
    """

    def __init__(self, network: Detector, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.pixels_in = PixelDetector(network, preprocessing)

    def forward(self, pixels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return P(fake)."""
        scores: torch.Tensor = self.pixels_in(pixels, valid > 0.5)
        return scores


def step_programs(
    network: Detector,
    preprocessing: Preprocessing,
    planar: bool,
    frames: int,
    batch: int | None = 1,
    scheme: Scheme = "fp32",
    licence: str = "",
) -> list[TorchProgram]:
    """Return the programs ``embed`` and ``score`` of a clip student, for clips of T = ``frames``."""
    width = network.embedding_size
    embedding = Tensor(
        name="embedding", dtype="float32", layout="NC", shape=[batch, width], meaning="what score takes of this frame"
    )
    embeddings = Tensor(
        name="embeddings",
        dtype="float32",
        layout="NTC",
        shape=[batch, frames, width],
        meaning="embeddings of a clip's frames in their order; zeros for a frame that does not count",
    )
    embed = (ImageEmbed if planar else Embed)(network.backbone, preprocessing).eval()
    pixels, score = pixel_input(network.architecture.size, planar, batch), Score(network.head).eval()
    return [
        TorchProgram("embed", embed, (pixels,), embedding, scheme, licence),
        TorchProgram("score", score, (embeddings, flags(frames, batch)), probability(batch), scheme, licence),
    ]


def whole_program(
    network: Detector, preprocessing: Preprocessing, frames: int, form: Form, scheme: Scheme, licence: str
) -> TorchProgram:
    """Return a clip student as the one program ``clip``, for clips of T = ``frames``."""
    size = network.architecture.size
    pixels = Tensor(
        name="pixels",
        dtype="float32" if form.runtime == "coreml" else "uint8",  # Core ML has no tensors of bytes
        layout="NTHWC",
        shape=[form.batch, frames, size, size, 3],
        meaning=f"raw pixels of a clip's crops in their order, {RAW}",
        **PIXELS,
    )
    inputs = (pixels, flags(frames, form.batch))
    return TorchProgram(
        "clip", WholeClip(network, preprocessing).eval(), inputs, probability(form.batch), scheme, licence
    )


def in_torch(torch_programs: Sequence[TorchProgram]) -> Programs:
    """Return the exported programs, run in torch."""

    def load(name: ProgramName) -> Loaded:
        (torch_program,) = (torch_program for torch_program in torch_programs if torch_program.name == name)
        module = torch_program.exported.module()

        def run(*inputs: NDArray[Any]) -> NDArray[np.float32]:
            tensors = map(torch.from_numpy, inputs)
            arguments = (
                value.permute(0, 3, 1, 2).float() if tensor.dtype == "image" else value.to(DTYPES[tensor.dtype])
                for tensor, value in zip(torch_program.inputs, tensors, strict=True)
            )
            with torch.inference_mode():
                output: NDArray[np.float32] = module(*arguments).numpy()
            return output

        return in_batches(run, torch_program.batch)

    return load


class TanhGelu(nn.Module):
    """GELU by its approximation with tanh (arXiv 1606.08415, section 2), written out."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Return the activation, float of any shape."""
        return 0.5 * value * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value * value * value)))


def _with_written_gelus(detector: PixelDetector) -> PixelDetector:
    """Return a detector whose GELUs by tanh are written out, as a copy if it has any.

    ExecuTorch's XNNPACK (1.5) and coremltools (9.0) take torch's own for the exact GELU, without a word. In an int8
    program they stay: the two differ by less than 5e-4, which is far below a step there.
    """
    names = [name for name, module in detector.named_modules() if _is_tanh_gelu(module)]
    if names:
        detector = copy.deepcopy(detector)
        for name in names:
            detector.set_submodule(name, TanhGelu())
    return detector


def _is_tanh_gelu(module: nn.Module) -> bool:
    return isinstance(module, timm.layers.GELUTanh) or (isinstance(module, nn.GELU) and module.approximate == "tanh")


def programs_of(detector: PixelDetector, info: RunInfo, form: Form, frames: int) -> list[TorchProgram]:
    """Return the programs of a run's artifact; ``frames`` is the length of a clip student's clips."""
    if form.runtime != "onnxruntime":
        detector = _with_written_gelus(detector)
    network, preprocessing = detector.network, info.preprocessing
    planar = form.runtime == "coreml"
    scheme, licence = info.scheme, info.weights.licence
    if form.method == "forward":
        module = ImageDetector(network, preprocessing) if planar else detector
        pixels = pixel_input(info.architecture.size, planar, form.batch)
        return [TorchProgram("forward", module, (pixels,), probability(form.batch), scheme, licence)]
    assert isinstance(network, Detector)
    if form.method == "steps":
        return step_programs(network, preprocessing, planar, frames, form.batch, scheme, licence)
    return [whole_program(network, preprocessing, frames, form, scheme, licence)]
