"""Quantize a run: fuse, verify, calibrate on training crops, and measure what it cost."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor

from compress.int8 import calibrate, quantized
from compress.runs import check_rgb_frames, check_size, data_source, torch_scorer, validation_metrics
from data.batches import Batch, balanced_batches, read_batch
from data.layouts import FAKE, REAL
from data.store import ClipStore
from data.views import ViewRule, Views
from models.detector import PixelDetector
from models.fusing import fuse
from models.run import Run, save_run
from stage import Seed, StageError, progress, refuse_existing, run_as_script, say

CALIBRATION_BATCH = 32


def calibration_pictures(pixels_in: PixelDetector, store: ClipStore, clips: int, seed: int) -> list[Tensor]:
    """Return label-balanced pictures of training clips, float32 [N, 3, S, S], normalized, in batches.

    As many frames are drawn as ``clips`` says, or as the rarer label has, evenly over the methods of forgery. A split
    without fakes is calibrated on forgeries of its own.
    """
    labels = {clip.label for clip in store.clips("train", both=False)}
    views = Views(store, ViewRule(forge=FAKE not in labels, seed=seed))
    fewest = min(sum(int(view.valid.sum()) for view in views.views if view.label == label) for label in (REAL, FAKE))
    batch = next(balanced_batches(views, 2 * min(clips // 2, fewest), (seed,)))
    parts = [slice(i, i + CALIBRATION_BATCH) for i in range(0, len(batch.rows), CALIBRATION_BATCH)]
    pixels = [read_batch(views, Batch(batch.rows[part], batch.labels[part])).pixels for part in parts]
    return [pixels_in.pictures(torch.from_numpy(crops)) for crops in pixels]


def quantize(
    run: Annotated[Path, typer.Argument(help="The run to quantize.")],
    data: Annotated[Path, typer.Option(help="The ClipStore to calibrate on.")],
    out: Annotated[Path, typer.Option(help="The run to write.")],
    scheme: Annotated[Literal["int8"], typer.Option(help="int8: static, per-channel weights.")] = "int8",
    calibration_clips: Annotated[int, typer.Option(help="Training crops to calibrate on.", min=2)] = 256,
    seed: Seed = 0,
) -> None:
    """Turn a run into an integer one.

    Example: **pocketproof quantize runs/student --scheme int8 --data store --out runs/student-int8**
    """
    refuse_existing(out)
    store = ClipStore(data)
    source = Run(run)
    if source.info.scheme != "fp32":
        raise StageError(f"{run} is quantized already ({source.info.scheme}): give the run that it came from")
    check_rgb_frames(source)
    check_size(run, source.info.architecture.size, store)
    pixels_in = PixelDetector(source.detector(), source.info.preprocessing)
    batches = calibration_pictures(pixels_in, store, calibration_clips, seed)
    fused = fuse(source.detector(), batches[0])
    crops = sum(len(batch) for batch in batches)
    quantization = calibrate(fused, progress(batches, "calibrate"), crops, store.info.fingerprint)
    program = PixelDetector(quantized(fused, quantization, dynamic_batch=True), source.info.preprocessing)
    info = source.info.model_copy(
        update={
            "scheme": scheme,
            "architecture": fused.architecture,
            "parents": [source.as_parent()],
            "data": data_source(store),
            "seed": seed,
        }
    )
    # The test split is for the artifacts: their kernels round otherwise than this program.
    metrics: dict[str, Any] = (
        {"val": None, "reason": info.meaningless}
        if info.meaningless
        else validation_metrics(torch_scorer(program, torch.device("cpu")), store)
    )
    save_run(out, info, fused, metrics, quantization=quantization.model_dump_json(indent=2))
    accuracy = f"val AUC {metrics['val']['auc']:.3f} in torch" if metrics["val"] else str(metrics["reason"])
    say(f"{out}: {len(quantization.tensors)} tensors quantized on {crops} crops; {accuracy}")


if __name__ == "__main__":
    run_as_script(quantize)
