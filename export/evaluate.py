"""Evaluate a run, or an artifact of a bundle, on any corpus."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from command import run_as_script
from compress.evaluation import Evaluated, Evaluation, evaluations, print_evaluation
from compress.runs import check_length, check_size
from compress.scoring import Takes
from data.recompress import parse_recompressions
from data.store import ClipStore
from export.bundle import Bundle, is_bundle
from export.runtimes import evaluated_by
from stage import WrongArgument


def artifact_of(path: Path, file: str | None, store: ClipStore) -> Evaluated:
    """Load the artifact ``file`` of a bundle (None: as ``Bundle.chosen``), to be evaluated on a store.

    Raises StageError if the bundle was changed, or takes crops or clips of another size than the store holds.
    """
    bundle = Bundle(path)
    bundle.check_files()
    artifact, rule = bundle.chosen(file), bundle.manifest.clip
    check_size(path / artifact.file, bundle.manifest.crop.rule.size, store)
    if rule.per == "clip":
        check_length(path / artifact.file, rule.frames, store)
    evaluator, resolved = evaluated_by(artifact.runtime), path.resolve()
    return Evaluated(
        name=artifact.file,
        sha256=artifact.sha256,
        scorer=bundle.load(artifact),
        takes=Takes(per=rule.per),
        threshold=artifact.threshold.value,
        device="cpu",
        folder=resolved.with_name(f"{resolved.name}.evaluations") / artifact.file,
        data=bundle.manifest.trained_on,
        notes=(f"{artifact.file} was evaluated {evaluator}.",) if evaluator else (),
    )


def evaluate(
    model: Annotated[Path, typer.Argument(help="The run to evaluate, of any scheme, or the bundle.")],
    data: Annotated[Path, typer.Option(help="The ClipStore to evaluate on; it need not be the run's own.")],
    artifact: Annotated[str | None, typer.Option(help="File of a bundle's artifact; else as detect chooses.")] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="The split to score.")] = "test",
    recompress: Annotated[
        str | None, typer.Option(help="Also on crops compressed once more: h264:CRF,... or jpeg:QUALITY,...")
    ] = None,
    depth_weights: Annotated[
        Path | None, typer.Option(help="With --recompress: folder of the weights that made the store's depth.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per evaluation.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep figures in; RUN/evaluations, BUNDLE.evaluations/ARTIFACT.")
    ] = None,
) -> list[Evaluation]:
    """Measure a model at its own threshold on any corpus, also on one of another kind or of one label.

    Figures are kept as JSON in RUN/evaluations, or in BUNDLE.evaluations/ARTIFACT beside a bundle, or where --out says.

    Example: **pocketproof evaluate runs/student --data celebdf --recompress h264:23,40**
    """
    recompressions = parse_recompressions(recompress) if recompress is not None else []
    store = ClipStore(data)
    if is_bundle(model):
        evaluated = artifact_of(model, artifact, store)
    elif artifact is not None:
        raise WrongArgument(f"--artifact {artifact} is for bundles, and {model} is not one: leave it out")
    else:
        evaluated = Evaluated.of_run(model, store)
    results = []
    for evaluation in evaluations(evaluated, store, split, recompressions, depth_weights, out):
        results.append(evaluation)
        if as_json:
            print(evaluation.model_dump_json())
        else:
            print_evaluation(evaluation)
    return results


if __name__ == "__main__":
    run_as_script(evaluate)
