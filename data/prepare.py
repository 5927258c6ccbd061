"""Turn videos into a ClipStore in many processes: resumable, with a row for every input file."""

import functools
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import cv2
import typer

from command import run_as_script, takes_options
from data.cluster import check_workers, on_ray, refuse_not_shared, seen_from_here
from data.crops import CropRule
from data.faces import DETECTORS
from data.forge import WEAKEST
from data.journal import KILLER, Journal, in_noted_processes
from data.layouts import Selection, Source, read_sources
from data.modalities import Modalities, ModalityOptions
from data.parquet import Row, RowWriter
from data.prepare_video import Recipe, prepare_video, without_clips
from data.presence import disk_has_gone
from data.remote import at_hand, is_remote, place, refuse_occupied, upload
from data.schemas import CLIP_SCHEMA
from data.settings import ClipStart, StoreSettings
from data.splits import parse_ratios, split_sources
from data.store import ClipStore, StoreInfo, clip_file
from data.store_notes import (
    in_one_split_notes,
    left_out_notes,
    missing_label_notes,
    photo_notes,
    prescribed_notes,
)
from data.unfinished import Unfinished, clips_of, is_done, modified_ns, note
from data.views import WeakestForgery, check_weakest_forgery
from files import refuse_existing, written_whole
from stage import Seed, StageError, WrongArgument, progress, say, usable_cores

GPU_SHARE = 0.25
"""Share of a GPU that a process with a network for depth or flow takes on a cluster: by estimate it needs 1 to 2 GB."""


class Job(NamedTuple):
    """The work on one source, and what ``_prepare_one`` takes."""

    source: Source
    split: str
    recipe: Recipe
    modified: int | None
    """When its file was last changed as the command began, in nanoseconds; None for a remote or missing one."""
    folder: Path
    """Folder of the unfinished store."""


def _use_one_thread(recipe: Recipe) -> None:
    """Use one thread per process: work is parallel over processes, and sums in networks depend on the thread count."""
    cv2.setNumThreads(1)
    if recipe.modalities.in_torch:
        import torch

        torch.set_num_threads(1)


def _refuse_gone(source: Source, modified: int | None) -> None:
    """Raise StageError if a file that was found is gone with its disk; one that was deleted has its row."""
    if modified is not None and disk_has_gone(source.path):
        raise StageError(f"{source.path} is no longer there: what is done is kept, call the command again to go on")


def _prepare_one(source: Source, split: str, recipe: Recipe, modified: int | None, folder: Path) -> None:
    """Prepare one video. Raises StageError if its disk has gone."""
    Journal(folder).begin(source.video_id)
    _use_one_thread(recipe)
    with clips_of(folder, source.video_id) as clips:
        row = prepare_video(source, split, recipe, clips.write)
        _refuse_gone(source, modified)  # a video may end early, without a word
    note(folder, row, modified)


def _prepare_here(jobs: list[Job], store: Unfinished, workers: int) -> None:
    """Prepare in local processes. A file that kills its process, and a second one when tried alone, is unreadable."""
    job_of = {job.source.video_id: job for job in jobs}

    def note_killer(video_id: str) -> None:
        source, split, _, modified, _ = job_of[video_id]
        note(store.folder, without_clips(source, split, "unreadable", KILLER), modified)

    in_noted_processes(_prepare_one, job_of, store.journal, workers, "prepare", note_killer)


def _prepare_on_cluster(source: Source, split: str, recipe: Recipe) -> Row:
    """Prepare one video on a cluster; return its row as JSON and its clip file's bytes."""
    _use_one_thread(recipe)
    file = io.BytesIO()
    with RowWriter(file, CLIP_SCHEMA) as clips:
        row = prepare_video(source, split, recipe, clips.write)
    return {"row": json.dumps(row), "clips": file.getvalue()} | seen_from_here(source.path)


def _prepare_on_ray(jobs: list[Job], store: Unfinished, address: str, workers: int) -> None:
    """Prepare on a Ray cluster, whose machines need not share a disk with this one."""
    share = GPU_SHARE if jobs and jobs[0].recipe.modalities.in_torch else 0.0
    pending, modified_of = [job[:3] for job in jobs], {job.source.video_id: job.modified for job in jobs}
    for (source, split, _), result in on_ray(_prepare_on_cluster, pending, address, workers, "prepare", share):
        modified = modified_of[source.video_id]
        if result and not result["seen"]:
            refuse_not_shared(source.path, result)
            _refuse_gone(source, modified)
        row = json.loads(result["row"]) if result else without_clips(source, split, "unreadable", KILLER)
        if result and result["clips"]:
            with written_whole(clip_file(store.folder, row["video_id"])) as aside:
                aside.write_bytes(result["clips"])
        note(store.folder, row, modified)


def _build(
    out: Path, sources: list[tuple[Source, str | None]], recipe: Recipe, notes: list[str], workers: int, ray: str | None
) -> StoreInfo:
    """Prepare all sources, each with its split, into a store; one without a split gets the status left_out."""
    with Unfinished(out, recipe.settings) as store:
        folder = store.folder.absolute()
        jobs = [
            Job(source, split, recipe, modified_ns(source), folder)
            for source, split in _not_done(folder, [(source, split) for source, split in sources if split])
        ]
        if ray is None:
            _prepare_here(jobs, store, workers)
        else:
            _prepare_on_ray(jobs, store, ray, workers)
        for source in (source for source, split in sources if not split):
            note(folder, without_clips(source, "", "left_out", "it shows persons of two splits"), None)
        return store.finish([source for source, _ in sources], notes)


def _not_done(folder: Path, sources: Sequence[tuple[Source, str]]) -> list[tuple[Source, str]]:
    """Return the sources that an interrupted run has not prepared; reads what it has prepared once."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        found = pool.map(lambda entry: is_done(folder, entry[0]), sources)
        done = list(progress(found, "check what was prepared", len(sources)))
    return [entry for entry, its_done in zip(sources, done, strict=True) if not its_done]


def _staging_path(out: Path) -> Path:
    """Return the local path where a store for a URL is made before its upload."""
    return Path(f".{out.name}.upload")


def _make_and_upload(out: Path, settings: StoreSettings, make: Callable[[Path], StoreInfo]) -> StoreInfo:
    """Make a store locally and upload it, or go on with the upload of one that is already made."""
    local = _staging_path(out)
    if local.exists() and ClipStore(local).info.settings.asked() == settings.asked():
        info = ClipStore(local).info
    else:
        refuse_existing(local)
        info = make(local)
    upload(local, out)
    shutil.rmtree(local)
    return info


def _read_places(places: list[Path], selection: Selection) -> tuple[list[Source], list[str], str]:
    """Return the sources of all places, largest files first, the notes on them, and their SHA-256 fingerprint."""
    with at_hand(places) as (roots, origin):
        sources, notes = read_sources(roots, selection)
        fingerprint = _fingerprint(sources)
        # Largest files first, so that no worker is left with a long video at the end.
        sources.sort(key=lambda entry: _size_in_bytes(entry.path), reverse=True)
        return [replace(entry, path=origin(entry.path)) for entry in sources], notes, fingerprint


def _fingerprint(sources: list[Source]) -> str:
    """Return the SHA-256 of the sources' names, labels, methods, identities, splits and file sizes."""
    lines = (f"{s.name}\0{s.label}\0{s.method}\0{s.identities}\0{s.split}\0{_size_in_bytes(s.path)}" for s in sources)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _size_in_bytes(path: Path) -> int:
    """Return the size of a file, or -1 for a missing one, which gets its row like any other file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _frames_of(sources: list[Source], frames: int | None, modalities: Modalities) -> int:
    """Return the frames of a clip: ``frames`` if given, else 1 for photos only and 20 otherwise.

    Raises WrongArgument for flow of photos.
    """
    length = frames or (1 if all(source.is_photo for source in sources) else 20)
    if length == 1 and "flow" in modalities.names:
        raise WrongArgument("--modalities flow needs clips of at least 2 frames: a photo has no motion")
    return length


def _report(out: Path, info: StoreInfo, labels: set[int]) -> None:
    """Print what is in a new store, made of files of ``labels``. Raises StageError if it holds no clip."""
    statuses = ", ".join(f"{count} {status}" for status, count in info.videos.items())
    say(f"{out}: {sum(info.videos.values())} files ({statuses}); clips by split: {info.clips}")
    for line in info.notes:
        say(f"note: {line}")
    if not info.videos["ok"]:
        raise StageError(
            f"no file of {sum(info.videos.values())} gave a clip: the reasons are in {out / 'videos.parquet'}"
        )
    for line in missing_label_notes(info, labels):
        say(f"note: {line}")


@takes_options
def prepare(
    source: Annotated[
        list[Path], typer.Argument(parser=place, help="Folders of videos or photos, or tables (.csv); paths or URLs.")
    ],
    out: Annotated[Path, typer.Option(parser=place, help="The ClipStore to write; a path or URL.")],
    selection: Selection = Selection(),
    frames: Annotated[int | None, typer.Option(help="Frames of a clip; 20, or 1 for photos.", min=1)] = None,
    clips_per_video: Annotated[int, typer.Option(help="Stretches of frames to take from a video.", min=1)] = 1,
    start: Annotated[ClipStart, typer.Option(help="Where in a video its clips begin.")] = "first",
    detector: Annotated[Literal["dlib", "mtcnn"], typer.Option(help="Face detector.")] = "dlib",
    all_faces: Annotated[bool, typer.Option(help="A clip of each steady face, not only of the largest.")] = False,
    crop: CropRule = CropRule(),
    modality_options: ModalityOptions = ModalityOptions(),
    forge: Annotated[
        int, typer.Option(help="Self-blended forgeries of each real clip, for validation and test.", min=0)
    ] = 0,
    weakest_forgery: WeakestForgery = WEAKEST,
    ratios: Annotated[str, typer.Option(help="Shares of train, val and test.")] = "0.7,0.1,0.2",
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster to work on (auto, HOST:PORT); local starts one here.")
    ] = None,
    seed: Seed = 0,
) -> StoreInfo:
    """Turn videos or photos into clips of a tracked face, split so that no identity is in two splits.

    Example: **pocketproof prepare FaceForensics++ --out store --workers 4**
    """
    if is_remote(out):
        refuse_occupied(out, _staging_path(out))
    else:
        refuse_existing(out)
    check_weakest_forgery(weakest_forgery, bool(forge))
    check_workers(ray, workers)
    split_ratios = parse_ratios(ratios)
    modalities = modality_options.checked()
    sources, notes, fingerprint = _read_places(source, selection)
    if all_faces and any(entry.label for entry in sources):
        notes.append("Every face of a fake video counts as fake (--all-faces), also one that nobody forged.")
    settings = StoreSettings(
        frames=_frames_of(sources, frames, modalities),
        crop=crop,
        detector=detector,
        all_faces=all_faces,
        clips_per_video=clips_per_video,
        start=start,
        modalities=modalities.names,
        flow=modalities.flow_settings(crop.size),
        depth=modalities.depth_settings(),
        forge=forge,
        weakest_forgery=weakest_forgery,
        ratios=split_ratios,
        seed=seed,
        sources_sha256=fingerprint,
    )
    DETECTORS[detector]()  # raises here, once, if its extra is not installed
    recipe = Recipe(settings, modalities)
    splits = split_sources(sources, split_ratios, seed)
    notes += photo_notes(sources, settings.frames) + prescribed_notes(splits, split_ratios)
    notes += left_out_notes(splits) + in_one_split_notes(sources, splits, split_ratios)
    make = functools.partial(
        _build, sources=list(zip(sources, splits, strict=True)), recipe=recipe, notes=notes, workers=workers, ray=ray
    )
    info = _make_and_upload(out, settings, make) if is_remote(out) else make(out)
    _report(out, info, {entry.label for entry in sources})
    return info


if __name__ == "__main__":
    run_as_script(prepare)
