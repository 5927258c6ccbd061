"""Videos to a ClipStore: decode, find and follow a face, cut crops, and account for every input file."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from data.crops import CropRule
from data.faces import DlibHog, Face, track_face
from data.layouts import Source, corpus_note, read_layout
from data.splits import SPLITS, parse_ratios, split_sources
from data.store import CLIP_SCHEMA, VIDEO_SCHEMA, StoreInfo, StoreSettings, encode_png, write_rows
from data.video import Frame, UnreadableVideo, Video, VideoInfo
from stage import Seed, StageError, progress, refuse_existing, run_as_script, say, sha256_of, written_whole

BRIDGED_FRAMES = 5
"""A gap of at most this many frames without a face is bridged by interpolated boxes; a longer one is not valid."""


def bridge(faces: Sequence[Face | None]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Fill gaps in a track: boxes float32 [T, 4], scores float32 [T] (0 where no face was seen), valid bool [T].

    Boxes in gaps are interpolated linearly, and held at the ends. Needs at least one face.
    """
    seen = np.array([index for index, face in enumerate(faces) if face is not None])
    boxes = np.stack([face.box for face in faces if face is not None])
    everywhere = np.arange(len(faces))
    filled = np.stack([np.interp(everywhere, seen, boxes[:, side]) for side in range(4)], axis=-1)
    scores = np.array([0.0 if face is None else face.score for face in faces], np.float32)
    edges = np.concatenate([[-1], seen, [len(faces)]])
    gap = np.diff(edges) - 1
    valid = np.ones(len(faces), np.bool_)
    for start, length in zip(edges[:-1] + 1, gap, strict=True):
        valid[start : start + length] = length <= BRIDGED_FRAMES
    return filled.astype(np.float32), scores, valid


class FaceClip:
    """The first ``frames`` consecutive frames of a video from the first face on."""

    def __init__(self, video: Video, detector: DlibHog, frames: int) -> None:
        self.start, self.pictures, self.faces, self.read = 0, list[Frame](), list[Face | None](), 0
        self.broken: str | None = None
        try:
            for picture, face in track_face(video.frames(), detector):
                self.read += 1
                if face is None and not self.faces:
                    self.start += 1
                    continue
                self.pictures.append(picture)
                self.faces.append(face)
                if len(self.faces) == frames:
                    break
        except UnreadableVideo as error:
            self.broken = str(error)


def prepare_video(source: Source, split: str, settings: StoreSettings, clips_folder: Path) -> dict[str, Any]:
    """Prepare one video: write its clip file if it gives a clip, and return its row of ``videos.parquet``."""
    row: dict[str, Any] = {
        "video_id": source.video_id,
        "path": source.name,
        "label": source.label,
        "method": source.method,
        "split": split,
        "identities": list(source.identities),
        "clips": 0,
    }
    try:
        with Video(source.path) as video:
            clip = FaceClip(video, DlibHog(), settings.frames)
            info = video.info
    except UnreadableVideo as error:
        return row | {"status": "unreadable", "reason": _without_folder(str(error), source)}
    row |= {"fps": info.fps, "width": info.width, "height": info.height, "frames_read": clip.read}
    row["frames_without_face"] = clip.start + sum(face is None for face in clip.faces)
    if len(clip.faces) < settings.frames:
        if clip.broken:
            return row | {"status": "unreadable", "reason": _without_folder(clip.broken, source)}
        if not clip.faces:
            return row | {"status": "no_face", "reason": f"no face in its {clip.read} frames"}
        reason = f"{len(clip.faces)} frames from the first face on, {settings.frames} are needed"
        return row | {"status": "too_short", "reason": reason}
    return _write_clip(row, clip, info, settings, clips_folder)


def _without_folder(message: str, source: Source) -> str:
    """Name the file as the store does, so that a store does not depend on where its sources lay."""
    return message.replace(str(source.path), source.name)


def _write_clip(
    row: dict[str, Any], clip: FaceClip, info: VideoInfo, settings: StoreSettings, clips_folder: Path
) -> dict[str, Any]:
    boxes, scores, valid = bridge(clip.faces)
    if valid.sum() * 2 < len(valid):
        reason = f"the face is seen in {int(valid.sum())} of the clip's {len(valid)} frames"
        return row | {"status": "no_face", "reason": reason}
    clip_row = {
        "clip_id": f"{row['video_id']}-0",
        "video_id": row["video_id"],
        "track": 0,
        "label": row["label"],
        "method": row["method"],
        "split": row["split"],
        "identities": row["identities"],
        "start_frame": clip.start,
        "fps": info.fps,
        "boxes": boxes.tolist(),
        "detector_score": scores.tolist(),
        "valid": valid.tolist(),
        "rgb": [encode_png(settings.crop.cut(p, box)) for p, box in zip(clip.pictures, boxes, strict=True)],
    }
    file = clips_folder / f"{row['video_id']}.parquet"
    write_rows(file, [clip_row], CLIP_SCHEMA)
    return row | {"status": "ok", "reason": "", "clips": 1, "clips_sha256": sha256_of(file)}


def _prepare_and_note(source: Source, split: str, settings: StoreSettings, work: Path) -> None:
    """Prepare one video and note its row, so that an interrupted run goes on after it."""
    note = work / "rows" / f"{source.video_id}.json"
    if not note.exists():
        row = prepare_video(source, split, settings, work / "clips")
        with written_whole(note) as aside:
            aside.write_text(json.dumps(row))


def _open_work(work: Path, settings: StoreSettings) -> None:
    """Make the folder of an unfinished store, or go on with one of the same settings."""
    mark = work / "settings.json"
    if mark.exists() and mark.read_text() != settings.model_dump_json():
        say(f"{work} is of other settings or inputs: starting anew")
        shutil.rmtree(work)
    if work.exists() and not mark.exists():
        shutil.rmtree(work)
    (work / "clips").mkdir(parents=True, exist_ok=True)
    (work / "rows").mkdir(exist_ok=True)
    with written_whole(mark) as aside:
        aside.write_text(settings.model_dump_json())


def _finish(work: Path, out: Path, sources: list[Source], settings: StoreSettings, notes: list[str]) -> StoreInfo:
    """Join the rows into ``videos.parquet`` and ``store.json`` and put the store in its place."""
    rows = [json.loads((work / "rows" / f"{source.video_id}.json").read_text()) for source in sources]
    rows.sort(key=lambda row: row["video_id"])
    write_rows(work / "videos.parquet", rows, VIDEO_SCHEMA)
    clips = {split: {"real": 0, "fake": 0} for split in SPLITS}
    videos = dict.fromkeys(("ok", "no_face", "too_short", "unreadable"), 0)
    for row in rows:
        videos[row["status"]] += 1
        clips[row["split"]]["fake" if row["label"] else "real"] += row["clips"]
    info = StoreInfo(
        settings=settings,
        notes=notes,
        videos=videos,
        clips=clips,
        fingerprint=sha256_of(work / "videos.parquet"),
    )
    (work / "store.json").write_text(info.model_dump_json(indent=2) + "\n")
    shutil.rmtree(work / "rows")
    (work / "settings.json").unlink()
    os.replace(work, out)
    return info


def _read_sources(roots: Sequence[Path], layout: str) -> list[Source]:
    sources = [source for root in roots for source in read_layout(root, layout)]
    ids = [source.video_id for source in sources]
    if len(set(ids)) < len(ids):
        twice = next(source for source in sources if ids.count(source.video_id) > 1)
        raise StageError(f"{twice.name} is in two of the given sources: prepare them into stores of their own")
    return sources


def prepare(
    source: Annotated[list[Path], typer.Argument(help="Folders of videos.")],
    out: Annotated[Path, typer.Option(help="The ClipStore to write.")],
    layout: Annotated[Literal["auto", "ffpp", "folder"], typer.Option(help="How the folders are laid out.")] = "auto",
    frames: Annotated[int, typer.Option(help="Frames of a clip.", min=1)] = 20,
    size: Annotated[int, typer.Option(help="Side of a crop in pixels.", min=16, max=1024)] = 224,
    ratios: Annotated[str, typer.Option(help="Shares of train, val and test.")] = "0.7,0.1,0.2",
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    seed: Seed = 0,
) -> StoreInfo:
    """Turn videos into clips of one tracked face, split so that no identity is in two splits.

    Example: **pocketproof prepare FaceForensics++ --out store --workers 4**
    """
    refuse_existing(out)
    shares = parse_ratios(ratios)
    sources = _read_sources(source, layout)
    listing = "\n".join(f"{s.name}\0{s.label}\0{s.method}\0{s.path.stat().st_size}" for s in sources)
    settings = StoreSettings(
        frames=frames,
        crop=CropRule(size=size),
        ratios=shares,
        seed=seed,
        sources_sha256=hashlib.sha256(listing.encode()).hexdigest(),
    )
    work = out.with_name(f".{out.name}.unfinished")
    _open_work(work, settings)
    jobs = zip(sources, split_sources(sources, shares, seed), strict=True)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_prepare_and_note, s, split, settings, work) for s, split in jobs]
        for future in progress(futures, "prepare"):
            future.result()
    notes = [note for note in dict.fromkeys(corpus_note(root) for root in source) if note]
    info = _finish(work, out, sources, settings, notes)
    statuses = ", ".join(f"{count} {status}" for status, count in info.videos.items())
    say(f"{out}: {len(sources)} videos ({statuses}); clips by split: {info.clips}")
    if not info.videos["ok"]:
        raise StageError(f"no video of {len(sources)} gave a clip: the reasons are in {out / 'videos.parquet'}")
    return info


if __name__ == "__main__":
    run_as_script(prepare)
