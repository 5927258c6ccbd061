"""Score videos and photos through an exported artifact, exactly as a phone app would."""

from pathlib import Path
from typing import Annotated

import typer

from command import run_as_script
from compress.scoring import probability
from data.cluster import check_workers
from data.layouts import is_photo
from data.remote import place
from export.annotate import Marks
from export.annotate import annotate as write_annotated
from export.bundle import Bundle
from export.scan import scan, videos_in
from export.scorer import Detection, VideoScorer
from files import check_output, refuse_existing
from stage import StageError, WrongArgument, printable, say


def _line(detection: Detection) -> str:
    """Return the line that is printed for a video."""
    evaluated = f", evaluated {detection.evaluated_by}" if detection.evaluated_by else ""
    flaws = f", {detection.reason}" if detection.reason else ""
    missed = f", no face in {detection.faces_missed}" if detection.faces_missed else ""
    name = printable(detection.video)
    score, threshold = probability(detection.score), probability(detection.threshold)
    return (
        f"{name}: {detection.verdict}, P(fake) {score} (threshold {threshold}, "
        f"{detection.frames_used} of {detection.frames_read} frames{missed}{flaws}, {detection.artifact}{evaluated})"
    )


def _check(
    videos: list[Path], as_json: bool, annotate: Path | None, out: Path | None, workers: int, ray: str | None
) -> None:
    """Raise WrongArgument for options that do not go together."""
    if annotate is not None:
        if len(videos) != 1 or out is not None:
            raise WrongArgument("--annotate is for one video, without --out")
        if is_photo(videos[0]):
            raise WrongArgument(f"--annotate is for videos, and {videos[0]} is a photo")
        if annotate.suffix.lower() != ".mp4":
            raise WrongArgument(f"--annotate {annotate} is not an .mp4: name one")
    if out is not None and out.suffix.lower() != ".parquet":
        raise WrongArgument(f"--out {out} is not a .parquet: name one")
    if out is not None and as_json:
        raise WrongArgument("--json is for what is printed: the table of --out has the same columns")
    if out is None and (workers != 1 or ray is not None):
        raise WrongArgument("--workers and --ray are for a table of many videos: give --out scores.parquet too")
    check_workers(ray, workers)


def detect(
    video: Annotated[
        list[Path],
        typer.Argument(parser=place, help="Videos or photos, by paths or URLs, or folders of them, by paths."),
    ],
    bundle: Annotated[Path, typer.Option(help="The bundle to score with.")],
    artifact: Annotated[
        str | None,
        typer.Option(help="File of an artifact; else the smallest that runs here, clips in steps."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per video.")] = False,
    annotate: Annotated[
        Path | None,
        typer.Option(
            help="Write the pictures again (no sound, an even rate), with the face's box and the score (.mp4)."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Table of many videos (.parquet); rows that it has already stay.")
    ] = None,
    workers: Annotated[int, typer.Option(help="With --out: processes.", min=1)] = 1,
    ray: Annotated[
        str | None, typer.Option(help="With --out: address of a Ray cluster (auto, HOST:PORT); local starts one here.")
    ] = None,
) -> None:
    """Score videos exactly as the phone app would: every clip of the largest face, the mean, and a verdict.

    Example: **pocketproof detect video.mp4 --bundle bundle**
    """
    videos = videos_in(video)
    _check(videos, as_json, annotate, out, workers, ray)
    if annotate is not None:
        refuse_existing(annotate, "--annotate")
    if out is not None:
        check_output(out)
    opened = Bundle(bundle)
    opened.check_files()
    if out is not None:
        counts = scan(videos, opened, opened.chosen(artifact), out, workers, ray)
        say(f"{out}: {', '.join(f'{count} {status}' for status, count in counts.items())}")
        if not counts["ok"]:
            raise StageError(f"none of {sum(counts.values())} files could be scored: the reasons are in {out}")
        return
    scorer = VideoScorer.load(opened, artifact)
    failed = []
    for path in videos:
        marks = Marks()
        try:
            detection = scorer.detect(path, marks if annotate else None)
        except StageError as error:
            failed.append(str(error))
            continue
        print(detection.model_dump_json() if as_json else _line(detection))
        if annotate:
            write_annotated(path, detection, marks, annotate)
    if failed:
        raise StageError("; ".join(failed))


if __name__ == "__main__":
    run_as_script(detect)
