"""Train both teachers from videos, end to end: ``python -m benchmarks.studies.teachers VIDEOS --out DIR``.

Prepares RGB and depth with self-blended forgeries, trains DINOv2 and Megatron, kills a second training of each and
resumes it, compares its weights with those of the uninterrupted one, and evaluates the latter. The depth network and
the backbones are small and have random weights: the figures show that the stages work, not how good the teachers are.
"""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from command import run_as_script
from data.prepare import prepare
from export.evaluate import evaluate
from files import sha256_of
from resuming import unfinished_of
from stage import StageError, say

FAMILIES = {
    "dino": ["--backbone=vit_small_patch14_dinov2", "--modality=rgb+depth", "--unfreeze=1", "--epochs=3"],
    "megatron": ["--backbone=repvit_m0_9", "--epochs=10", "--batch-size=8"],
}


@dataclass(frozen=True)
class DepthSize:
    """The size of a Depth Anything network."""

    width: int
    layers: int
    heads: int
    side: int
    """Side of the input pictures, in pixels."""
    taken: tuple[int, int, int, int]
    """Layers whose outputs go to the neck."""
    neck: tuple[int, int, int, int]
    """Channels of the neck's four stages."""
    fusion: int
    """Channels of the fusion stages."""


TINY = DepthSize(32, 4, 2, 56, (1, 2, 3, 4), (8, 8, 16, 16), 8)
SMALL = DepthSize(384, 12, 6, 518, (3, 6, 9, 12), (48, 96, 192, 384), 64)
"""The size of Depth Anything V2 Small."""


def save_random_depth(folder: Path, size: DepthSize = TINY) -> None:
    """Write a Depth Anything network with random weights as a transformers folder."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=size.width, num_hidden_layers=size.layers, num_attention_heads=size.heads, image_size=size.side,
        patch_size=14, out_indices=list(size.taken), apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    neck = {
        "reassemble_hidden_size": size.width,
        "neck_hidden_sizes": list(size.neck),
        "fusion_hidden_size": size.fusion,
    }
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, **neck)).save_pretrained(folder)
    DPTImageProcessor(size={"height": size.side, "width": size.side}, ensure_multiple_of=14).save_pretrained(folder)


def taught(family: str, store: Path, out: Path, kill: bool) -> Path:
    """Teach in a process of its own; return ``out``.

    ``kill``: end the process with SIGKILL after its first checkpoint, and start it again. Raises StageError if a
    training fails, or ends before it is killed.
    """
    command = [
        sys.executable,
        "-m",
        "compress.teach",
        family,
        "--data",
        str(store),
        "--out",
        str(out),
        "--random-weights",
    ]
    process = subprocess.Popen([*command, *FAMILIES[family]])
    checkpoint = unfinished_of(out) / "checkpoints" / "last.pt"
    while kill and process.poll() is None:
        if checkpoint.exists():
            process.send_signal(signal.SIGKILL)
            process.wait()
            say(f"killed {family} after its first checkpoint")
            return taught(family, store, out, kill=False)
        time.sleep(0.05)
    if kill:
        raise StageError(f"{family} ended before it could be killed: the study shows nothing")
    if process.wait():
        raise StageError(f"{family} was not taught: see above")
    return out


def teachers(
    videos: Annotated[Path, typer.Argument(help="Folder of videos of real faces, one person in each.")],
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")],
) -> None:
    """Teach both families, once whole and once killed, compare their weights, and evaluate them.

    Example: **python -m benchmarks.studies.teachers ../shared/data/talking --out studies/teachers**
    """
    store = out / "store"
    save_random_depth(out / "depth")
    prepare(
        [videos], store, label="real", identity_pattern=r"([^/]+)\.[^.]+$", modalities="rgb,depth", forge=2,
        depth_weights=out / "depth", ratios="0.5,0.25,0.25", workers=2,
    )  # fmt: skip
    for family in FAMILIES:
        whole, killed = (taught(family, store, out / f"{family}-{how}", how == "killed") for how in ("whole", "killed"))
        same = sha256_of(whole / "model.safetensors") == sha256_of(killed / "model.safetensors")
        evaluate(whole, store)
        print(f"{family}: weights of the killed training {'equal' if same else 'DIFFER FROM'} those of the whole one")


if __name__ == "__main__":
    run_as_script(teachers)
