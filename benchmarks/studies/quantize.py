"""The accuracy and speed of int8: ``python -m benchmarks.studies.quantize RUN --data STORE --teacher RUN --out DIR``.

First it compares settings: logit SNR on validation crops by observer, number of calibration crops and strength of
equalization (in torch, where int8 is simulated, before logits are matched: ``quantize`` chooses after that). Then it
measures the artifacts of fp32 and of every scheme for phones: speed, AUC with the interval of the paired difference,
logit SNR and flips on test persons. Last it times what a block in fp32 costs: bundles in which one of the noisiest
blocks stays in fp32.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.bench import bench
from benchmarks.reference import reference
from benchmarks.schema import read_report
from command import run_as_script
from compress.calibration import backbone_pictures, drawn_inputs, logits
from compress.diagnosis import block_of, noisiest_blocks
from compress.equalization import STRENGTH, equalize
from compress.fidelity import logits_of, snr_db
from compress.int8 import Quantization, observe, simulated
from compress.quantize import quantize
from compress.quantized import RefusedScheme
from compress.runs import diagnosis_of, pixel_detector, takes, torch_scorer
from compress.scoring import score_split
from data.store import ClipStore
from export.bundle import Bundle
from export.export import export
from models.fusing import fuse
from models.run import Run, save_run
from stage import LowPrecision

SCHEMES: tuple[LowPrecision, ...] = ("fp16", "int8", "int8-qat")
CROPS = (64, 256)
VALIDATION_CROPS = 128


def settings(run: Run, store: ClipStore) -> Iterator[dict[str, Any]]:
    """Yield the logit SNR of each setting, in dB against fp32."""
    model_takes = takes(run.info)
    validation = drawn_inputs(run, model_takes, store, "val", VALIDATION_CROPS, seed=1)
    fused = fuse(run.detector(), *validation[0])
    fp32_logits = logits(fused, validation)
    drawn = [drawn_inputs(run, model_takes, store, "train", crops, seed=0) for crops in CROPS]
    # A small store gives fewer than are asked for.
    for crops, inputs in {sum(len(pictures) for pictures, *_ in inputs): inputs for inputs in drawn}.items():
        pictures = backbone_pictures(inputs)
        for strength in (0.0, STRENGTH):
            detector = equalize(fused, pictures, strength)
            for observer, tensors in observe(detector, pictures).items():
                snr = snr_db(fp32_logits, logits(simulated(detector, tensors), validation))
                yield {"crops": crops, "equalization": strength, "observer": observer, "snr_db": snr}


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print rows as a table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=140).print(table)


def artifacts(folder: Path, fp32: Run, store: ClipStore) -> list[dict[str, Any]]:
    """Return speed and accuracy of a folder's artifacts, and their logit SNR against the fp32 run on test clips."""
    model_takes = takes(fp32.info)
    fp32_scores = score_split(torch_scorer(pixel_detector(fp32), torch.device("cpu")), store, "test", model_takes).clips
    bundle = Bundle(folder / "bundle")
    figures = []
    score = functools.cache(
        lambda name: score_split(bundle.load(bundle.artifact(name)), store, "test", model_takes).clips
    )
    for row in read_report(folder / "report" / "report.json").rows:
        if row.kind == "artifact" and row.latency_ms:
            figures.append(
                {
                    "artifact": row.name,
                    "threads": row.threads,
                    "ms": row.latency_ms.p50,
                    "MB": row.bytes / 1e6,
                    "AUC": row.auc,
                    "SNR, dB": snr_db(logits_of(fp32_scores), logits_of(score(row.name))),
                    "flips": row.verdict_flips,
                    "flips at EER": row.equal_error_flips,
                    "against fp32": row.earned_because,
                }
            )
    return figures


def in_float(run: Run, block: str, out: Path) -> Path:
    """Write a copy of an int8 run, unless it exists, with one more block in float32, to be timed only."""
    quantization = Quantization.model_validate_json(run.read("quantization.json"))
    diagnosis = diagnosis_of(run)
    assert diagnosis is not None
    layers = [noise.layer for noise in diagnosis.layers]
    float_layers = [layer for layer in layers if layer in quantization.float_layers or block_of(layer) == block]
    if not out.exists():
        changed = quantization.model_copy(update={"float_layers": float_layers}).model_dump_json()
        metrics = json.loads(run.read("metrics.json"))
        metrics["diagnosis"]["float_layers"] = float_layers
        save_run(out, run.info, run.detector(), metrics, quantization=changed)
    return out


def written(run: Path, data: Path, teacher: Path, out: Path) -> dict[str, str]:
    """Quantize a run in each scheme, unless that is done; return the reasons of refused schemes, by scheme."""
    refused: dict[str, str] = {}
    for scheme in SCHEMES:
        if (out / scheme).exists():
            continue
        try:
            quantize(run, data, out / scheme, scheme, teacher=teacher if scheme == "int8-qat" else None)
        except RefusedScheme as error:
            refused[scheme] = str(error)
    return refused


def measured(runs: list[Path], formats: str, data: Path, out: Path, beside: list[Path], threads: str) -> Path:
    """Export runs into a bundle and measure it, unless that is done; return the folder of both."""
    if not (out / "bundle").exists():
        export(runs, data, out / "bundle", format=formats)
    if not (out / "report").exists():
        bench([out / "bundle", *beside], data, out.parent / "reference.json", out / "report", threads=threads)
    return out


def quantize_study(
    run: Annotated[Path, typer.Argument(help="The fp32 run to quantize.")],
    data: Annotated[Path, typer.Option(help="The ClipStore that it was trained on.")],
    teacher: Annotated[Path, typer.Option(help="The run of its teacher, for the reference.")],
    out: Annotated[Path, typer.Option(help="Folder for everything that is made; a second call goes on with it.")],
    threads: Annotated[str, typer.Option(help="Threads that artifacts are timed with.")] = "1,2",
    blocks: Annotated[int, typer.Option(help="Noisiest blocks whose cost in float32 is measured.", min=0)] = 3,
) -> None:
    """Compare settings of int8, then measure its artifacts against fp32, and what blocks in float32 cost.

    Example: **python -m benchmarks.studies.quantize runs/student --data store --teacher runs/faces --out studies/int8**
    """
    store, fp32 = ClipStore(data), Run(run)
    tried = list(settings(fp32, store))
    show(tried, "logit SNR on validation crops, in torch, before logits are matched")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "reference.json").exists():
        reference(teacher, data, out / "reference.json", repeats=10)
    refused = written(run, data, teacher, out)
    runs = [run, *(out / scheme for scheme in SCHEMES if scheme not in refused)]
    whole = measured(runs, "executorch,onnx", data, out / "whole", [run], threads)
    figures = artifacts(whole, fp32, store)
    show(figures, "artifacts on test clips")
    costs, noisiest = [], list[str]()
    if "int8" not in refused and (diagnosis := diagnosis_of(Run(out / "int8"))):
        in_int8 = {block_of(noise.layer) for noise in diagnosis.layers if noise.layer not in diagnosis.float_layers}
        noisiest = [block for block in noisiest_blocks(diagnosis.layers) if block in in_int8][:blocks]
    for block in noisiest:
        changed = in_float(Run(out / "int8"), block, out / f"int8-without-{block}")
        folder = measured([changed], "executorch", data, out / f"without-{block}", [run], threads)
        rows = artifacts(folder, fp32, store)
        costs += [
            {"in fp32": block} | {name: row[name] for name in ("artifact", "threads", "ms", "MB")} for row in rows
        ]
    if costs:
        show(costs, "int8 with one more block in fp32")
    report = read_report(whole / "report" / "report.json")
    print(
        json.dumps(
            {
                "settings": tried,
                "artifacts": figures,
                "refused": refused,
                "blocks": costs,
                "machine": report.sessions[0].environment,
            }
        )
    )


if __name__ == "__main__":
    run_as_script(quantize_study)
