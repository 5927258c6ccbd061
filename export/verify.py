"""Check a bundle: every file, the schema, the crop rule's test vectors, and its artifacts' outputs of golden inputs.

Needs neither training code nor torch. Without torch a ``.pte`` is checked by its hash only, and a line says so.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from command import run_as_script
from export.bundle import Bundle
from export.manifest import Artifact, rounded_up
from export.parity import LEAST_SNR_DB, compare
from export.rules import CropExample, CropPixels
from export.runtimes import evaluated_by
from files import sha256_of
from stage import StageError, printable


def check_crops(bundle: Bundle) -> None:
    """Raise StageError if the bundle's test vectors differ from what the manifest's crop rule gives."""
    crop = bundle.manifest.crop
    file = bundle.path / crop.pixels.crops
    side = 2 * crop.rule.size
    of_rule = (crop.pixels.picture, crop.pixels.boxes) == ((side, side), CropPixels.boxes_of(crop.rule))
    if not of_rule or sha256_of(file) != crop.pixels.sha256:
        raise StageError(f"{file} is not what the manifest says of it: export the bundle again")
    expected, crops = CropPixels.cut(crop.rule, crop.pixels.boxes), np.fromfile(file, np.uint8)
    if crops.size != expected.size or np.abs(crops.reshape(expected.shape) - expected.astype(int)).max() > (
        crop.pixels.tolerance
    ):
        raise StageError(f"{file} is not what the manifest's crop rule gives: export the bundle again")
    for example in crop.examples:
        if CropExample.of(crop.rule, example.box, example.picture, example.rotation) != example:
            raise StageError(f"{bundle.path}: the crop of the box {example.box} is not what the manifest's rule gives")


def check_outputs(bundle: Bundle, artifact: Artifact) -> str:
    """Compare an artifact's outputs of the golden inputs with those in the manifest; return how it was checked.

    Raises StageError if they differ by more than rounding does between machines.
    """
    bundle.check_programs(artifact)
    if not bundle.has_golden:
        return "by its hash only: golden/ was taken out"
    inputs = bundle.golden_inputs()
    if reason := artifact.cannot_run():
        return f"by its hash only: {reason}"
    outputs = bundle.load(artifact)(*inputs)
    least = max([LEAST_SNR_DB, *(step.least_snr_db for step in artifact.parity)])
    parity = compare(bundle.golden_outputs(artifact), outputs, artifact.scheme, least)
    if not parity.passed:
        raise StageError(f"{bundle.path / artifact.file} does not give its golden outputs: {parity.failure}")
    evaluator = evaluated_by(artifact.runtime)
    nearness = f"golden outputs within {rounded_up(parity.max_difference):.1g}"
    return f"{nearness}, evaluated {evaluator}" if evaluator else nearness


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle to check.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check that a bundle is whole and gives what it gave when it was exported; needs no torch.

    Example: **pocketproof verify bundle**
    """
    opened = Bundle(bundle)
    files = opened.check_files()
    check_crops(opened)
    results = {artifact.file: check_outputs(opened, artifact) for artifact in opened.manifest.artifacts}
    if as_json:
        print(json.dumps({"bundle": str(bundle), "files": files, "artifacts": results}))
        return
    for file, result in results.items():
        print(printable(f"{bundle / file}: {result}"))
    print(printable(f"{bundle}: all {files} files are as they were exported"))


if __name__ == "__main__":
    run_as_script(verify)
