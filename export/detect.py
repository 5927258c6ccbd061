"""Score videos through an exported artifact, exactly as a phone app would."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from data.clips import FaceClip, face_clips
from data.crops import CropRule
from data.faces import DETECTORS
from data.tracks import Tracker
from data.video import Video
from export.bundle import Artifact, Bundle
from export.rules import ClipRule
from export.runtimes import Runner, evaluated_by
from stage import StageError, run_as_script


@dataclass(frozen=True)
class Scored:
    """What one clip of a video got."""

    score: float
    frames: int
    """Frames with the face, all of which were looked at."""
    seconds: float


def _score_clip(clip: FaceClip, rule: CropRule, clips: ClipRule, runner: Runner) -> Scored | None:
    """Score a clip as ``clips`` says; None where a clip model is shown the face in less than half of its frames."""
    frames = int(clip.valid.sum())
    if clips.per == "clip" and 2 * frames < clips.frames:
        return None
    crops = rule.cut_clip([picture.rgb for picture in clip.pictures], clip.boxes)
    inputs: tuple[NDArray[np.generic], ...] = (crops[clip.valid],)
    if clips.per == "clip":
        missing = clips.frames - len(clip)
        inputs = tuple(
            np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)])[None] for array in (crops, clip.valid)
        )
    before = time.perf_counter()
    score = float(runner(*inputs).mean())
    return Scored(score, frames, time.perf_counter() - before)


def detect_video(path: Path, bundle: Bundle, artifact: Artifact, runner: Runner) -> dict[str, Any]:
    """Score every clip of a video. The score is the mean P(fake) over all valid frames, or of a clip model over clips.

    Raises UnreadableVideo if the video cannot be read, StageError if no face is found in it.
    """
    rule, clips = bundle.manifest.crop.rule, bundle.manifest.clip
    found: list[tuple[int, Scored]] = []
    left_out = 0
    started = time.perf_counter()
    with Video(path) as video:
        tracker = Tracker(DETECTORS[bundle.manifest.crop.detector]())
        for clip, *_ in face_clips(tracker.follow(video.pictures()), clips.frames):
            if scored := _score_clip(clip, rule, clips, runner):
                found.append((clip.start, scored))
            else:
                left_out += 1
    if not found:
        seen = f" in half of {clips.frames} frames on end" if left_out else ""
        raise StageError(f"no face was found{seen} in {path}: there is nothing to score")
    frames = sum(scored.frames for _, scored in found)
    weights = [scored.frames if clips.per == "frame" else 1 for _, scored in found]
    score = float(np.average([scored.score for _, scored in found], weights=weights))
    by = evaluated_by(artifact.runtime)
    seconds = sum(scored.seconds for _, scored in found)
    whole = time.perf_counter() - started
    return {
        "video": str(path),
        "score": score,
        "verdict": "fake" if score > artifact.threshold.value else "real",
        "threshold": artifact.threshold.value,
        "artifact": artifact.file,
        "evaluated_by": by,
        "frames": frames,
        "clips_left_out": left_out,
        "clips": [{"start_frame": start, "score": scored.score, "frames": scored.frames} for start, scored in found],
        "milliseconds": {"score_per_frame": None if by else 1e3 * seconds / frames, "whole_video": 1e3 * whole},
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
    opened.check_files()
    chosen = opened.chosen(artifact)
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
                f"(threshold {result['threshold']:.3f}, {result['frames']} frames, {result['artifact']}"
                f"{', evaluated ' + result['evaluated_by'] if result['evaluated_by'] else ''})"
            )
    if failed:
        raise StageError("; ".join(failed))


if __name__ == "__main__":
    run_as_script(detect)
