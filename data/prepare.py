"""Videos to a ClipStore: decode, find and follow a face, cut crops, and account for every input file."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from data.clips import FaceClip, bridge, face_clips
from data.crops import CropRule
from data.faces import DlibHog
from data.layouts import Source, corpus_note, read_layout
from data.splits import SPLITS, parse_ratios, split_sources
from data.store import CLIP_SCHEMA, VIDEO_SCHEMA, StoreInfo, StoreSettings, encode_png, write_rows
from data.video import UnreadableVideo, Video, VideoInfo
from stage import Seed, StageError, in_processes, refuse_existing, run_as_script, say, sha256_of, written_whole


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
    clip, broken, info = FaceClip(0), "", None
    try:
        with Video(source.path) as video:
            info = video.info
            clip = next(face_clips(video.frames(), DlibHog(), settings.frames), clip)
    except UnreadableVideo as error:
        broken = _without_folder(str(error), source)
    if info is not None:
        row |= {"fps": info.fps, "width": info.width, "height": info.height}
    if len(clip) == settings.frames and info is not None:
        return _write_clip(row, clip, info, settings, clips_folder)
    if broken:
        return row | {"status": "unreadable", "reason": broken}
    if not clip:
        return row | {"status": "no_face", "reason": "no face in any frame"}
    reason = f"{len(clip)} frames from the first face on, {settings.frames} are needed"
    return row | {"status": "too_short", "reason": reason}


def _without_folder(message: str, source: Source) -> str:
    """Name the file as the store does, so that a store does not depend on where its sources lay."""
    return message.replace(str(source.path), source.name)


def _write_clip(
    row: dict[str, Any], clip: FaceClip, info: VideoInfo, settings: StoreSettings, clips_folder: Path
) -> dict[str, Any]:
    boxes, scores, valid = bridge(clip.faces)
    row["frames_without_face"] = sum(face is None for face in clip.faces)
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


def _is_done(note: Path, clips_folder: Path) -> bool:
    """Tell whether a noted row is whole and its clip file too: after a power cut a file can be empty."""
    try:
        row = json.loads(note.read_text())
        return not row["clips"] or sha256_of(clips_folder / f"{row['video_id']}.parquet") == row["clips_sha256"]
    except (FileNotFoundError, ValueError):
        return False


def _prepare_and_note(source: Source, split: str, settings: StoreSettings, work: Path) -> None:
    """Prepare one video and note its row, so that an interrupted run goes on after it."""
    note = work / "rows" / f"{source.video_id}.json"
    if not _is_done(note, work / "clips"):
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
    for partial in work.rglob(".*.partial"):
        partial.unlink()
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
    work.replace(out)
    return info


def _bytes(path: Path) -> int:
    """Return the size of a file, or -1 for a link that leads nowhere: it gets its row like any other file."""
    return path.stat().st_size if path.exists() else -1


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
    listing = "\n".join(f"{s.name}\0{s.label}\0{s.method}\0{_bytes(s.path)}" for s in sources)
    settings = StoreSettings(
        frames=frames,
        crop=CropRule(size=size),
        ratios=shares,
        seed=seed,
        sources_sha256=hashlib.sha256(listing.encode()).hexdigest(),
    )
    work = out.with_name(f".{out.name}.unfinished")
    _open_work(work, settings)
    splits = split_sources(sources, shares, seed)
    jobs = [(source, split, settings, work) for source, split in zip(sources, splits, strict=True)]
    in_processes(_prepare_and_note, jobs, workers, "prepare")
    notes = [note for note in dict.fromkeys(corpus_note(root) for root in source) if note]
    info = _finish(work, out, sources, settings, notes)
    statuses = ", ".join(f"{count} {status}" for status, count in info.videos.items())
    say(f"{out}: {len(sources)} videos ({statuses}); clips by split: {info.clips}")
    if not info.videos["ok"]:
        raise StageError(f"no video of {len(sources)} gave a clip: the reasons are in {out / 'videos.parquet'}")
    return info


if __name__ == "__main__":
    run_as_script(prepare)
