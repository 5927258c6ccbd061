"""Score videos through an exported artifact, exactly as a phone app would."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from data.clips import face_clips
from data.faces import DETECTORS
from data.tracks import Tracker
from data.video import Video
from export.bundle import Artifact, Bundle
from export.runtimes import Runner, cannot_run
from stage import StageError, run_as_script


def choose_artifact(bundle: Bundle, file: str | None) -> Artifact:
    """Return the named artifact, or the smallest one that runs here. Raises StageError if there is none."""
    if file is not None:
        return bundle.artifact(file)
    runnable = [artifact for artifact in bundle.manifest.artifacts if not cannot_run(artifact.runtime)]
    if not runnable:
        raise StageError(f"no artifact of {bundle.path} can run on this machine")
    return min(runnable, key=lambda artifact: artifact.bytes)


def detect_video(path: Path, bundle: Bundle, artifact: Artifact, runner: Runner) -> dict[str, Any]:
    """Score every clip of a video. The score is the mean P(fake) over all valid frames.

    Raises UnreadableVideo if the video cannot be read, StageError if no face is found in it.
    """
    rule, frames = bundle.manifest.crop.rule, bundle.manifest.clip.frames
    clips: list[dict[str, Any]] = []
    scores: list[float] = []
    score_seconds, started = 0.0, time.perf_counter()
    with Video(path) as video:
        for clip, *_ in face_clips(
            Tracker(DETECTORS[bundle.manifest.crop.detector]()).follow(video.pictures()), frames
        ):
            crops = rule.cut_clip([picture.rgb for picture in clip.pictures], clip.boxes)[clip.valid]
            before = time.perf_counter()
            probabilities = runner(crops)
            score_seconds += time.perf_counter() - before
            clips.append({"start_frame": clip.start, "score": float(probabilities.mean()), "frames": len(crops)})
            scores.extend(float(p) for p in probabilities)
    if not scores:
        raise StageError(f"no face was found in {path}: there is nothing to score")
    score = float(np.mean(scores))
    seconds = time.perf_counter() - started
    return {
        "video": str(path),
        "score": score,
        "verdict": "fake" if score > artifact.threshold.value else "real",
        "threshold": artifact.threshold.value,
        "artifact": artifact.file,
        "frames": len(scores),
        "clips": clips,
        "milliseconds": {"score_per_frame": 1e3 * score_seconds / len(scores), "whole_video": 1e3 * seconds},
    }


def detect(
    video: Annotated[list[Path], typer.Argument(help="Videos to score.")],
    bundle: Annotated[Path, typer.Option(help="The bundle to score with.")],
    artifact: Annotated[str | None, typer.Option(help="File of an artifact; else the smallest that runs here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per video.")] = False,
) -> None:
    """Score videos exactly as the phone app would.

    Example: **pocketproof detect video.mp4 --bundle bundle**
    """
    opened = Bundle(bundle)
    chosen = choose_artifact(opened, artifact)
    runner = opened.load(chosen)
    failed = []
    for path in video:
        try:
            result = detect_video(path, opened, chosen, runner)
        except StageError as error:
            failed.append(str(error))
            continue
        if as_json:
            print(json.dumps(result))
        else:
            print(
                f"{result['video']}: {result['verdict']}, P(fake) {result['score']:.3f} "
                f"(threshold {result['threshold']:.3f}, {result['frames']} frames, {result['artifact']})"
            )
    if failed:
        raise StageError("; ".join(failed))


if __name__ == "__main__":
    run_as_script(detect)
