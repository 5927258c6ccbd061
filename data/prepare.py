"""Videos to a ClipStore: every input file accounted for, in many processes, resumable."""

import functools
import hashlib
import io
import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import typer

from data.cluster import on_ray
from data.crops import CropRule
from data.faces import DETECTORS
from data.forge import WEAKEST
from data.journal import KILLER, Journal, in_noted_processes
from data.layouts import SPLITS, Selection, Source, read_sources
from data.modalities import Modalities, ModalityOptions
from data.parquet import RowWriter
from data.prepare_video import Recipe, prepare_video, without_clips
from data.remote import at_hand, is_remote, place, refuse_occupied, upload
from data.schemas import CLIP_SCHEMA
from data.splits import parse_ratios, split_sources
from data.store import ClipStore, Start, StoreInfo, StoreSettings
from data.unfinished import Unfinished, clips_of, is_done, note
from data.views import WeakestForgery
from files import refuse_existing, written_whole
from stage import Seed, StageError, WrongArgument, run_as_script, say, takes_options

MANY_FILES = 10
"""Of a method, which chance alone does not put into one split."""
Job = tuple[Source, str, Recipe, bool, Path]
"""A source, its split, what to make of it, whether its file was found, and the folder of the unfinished store."""


def _is_there(source: Source) -> bool:
    """Tell whether this machine has a file; one behind a URL is known to be there when it is fetched."""
    return is_remote(source.path) or _bytes(source.path) >= 0


def _on_one_thread(recipe: Recipe) -> None:
    """Compute on one thread: the processes are the threads, and sums in networks depend on their number."""
    cv2.setNumThreads(1)
    if recipe.modalities.in_torch:
        import torch

        torch.set_num_threads(1)


def _prepare_one(source: Source, split: str, recipe: Recipe, found: bool, folder: Path) -> None:
    """Prepare one video unless an interrupted run has. Raises StageError if a file that was found is gone."""
    if is_done(folder, source):
        return
    Journal(folder).begin(source.video_id)
    _on_one_thread(recipe)
    with clips_of(folder, source.video_id) as clips:
        row = prepare_video(source, split, recipe, clips.write)
        if row["status"] == "unreadable" and found and not _is_there(source):
            raise StageError(f"{source.path} is no longer there: what is done is kept, call the command again to go on")
    note(folder, source, row)


def _prepare_here(jobs: list[Job], store: Unfinished, workers: int) -> None:
    """Prepare in processes of this machine. A file that kills its process, tried again alone, is unreadable."""
    named = {job[0].video_id: job for job in jobs}

    def killed(name: str) -> dict[str, Any]:
        return without_clips(*named[name][:2], "unreadable", KILLER)

    in_noted_processes(_prepare_one, named, store.journal, workers, "prepare", killed)


def _prepare_there(source: Source, split: str, recipe: Recipe, found: bool) -> dict[str, Any]:
    """Prepare one video on a cluster: its row as JSON and the file of its clips, for this machine to write."""
    _on_one_thread(recipe)
    if found and not _is_there(source):
        return {"error": f"{source.path} is not on {platform.node()}: share the disk with the cluster, or give a URL"}
    file = io.BytesIO()
    with RowWriter(file, CLIP_SCHEMA) as clips:
        row = prepare_video(source, split, recipe, clips.write)
    return {"row": json.dumps(row), "clips": file.getvalue()}


def _prepare_on_ray(jobs: list[Job], store: Unfinished, address: str, workers: int) -> None:
    """Prepare on a cluster, whose machines need not share a disk with this one."""
    todo = [job[:4] for job in jobs if not is_done(store.folder, job[0])]
    for (source, split, *_), result in on_ray(_prepare_there, todo, address, workers, "prepare"):
        row = json.loads(result["row"]) if result else without_clips(source, split, "unreadable", KILLER)
        if result and result["clips"]:
            with written_whole(store.folder / "clips" / f"{row['video_id']}.parquet") as aside:
                aside.write_bytes(result["clips"])
        note(store.folder, source, row)


def _make(
    out: Path, sources: list[tuple[Source, str | None]], recipe: Recipe, notes: list[str], workers: int, ray: str | None
) -> StoreInfo:
    """Prepare all sources, each with its split, into a store; those without one get a row that says so."""
    with Unfinished(out, recipe.settings) as store:
        folder = store.folder.absolute()
        jobs = [(source, split, recipe, _is_there(source), folder) for source, split in sources if split]
        for source in (source for source, split in sources if not split):
            note(folder, source, without_clips(source, "", "left_out", "it shows persons of two splits"))
        if ray is None:
            _prepare_here(jobs, store, workers)
        else:
            _prepare_on_ray(jobs, store, ray, workers)
        return store.finish([source for source, _ in sources], notes)


def _to_upload(out: Path) -> Path:
    """Return where a store for a URL is made."""
    return Path(f".{out.name}.upload")


def _uploaded(out: Path, settings: StoreSettings, make: Callable[[Path], StoreInfo]) -> StoreInfo:
    """Make a store here and upload it, or upload one that was made before its upload was interrupted."""
    local = _to_upload(out)
    if local.exists() and ClipStore(local).info.settings == settings:
        info = ClipStore(local).info
    else:
        refuse_existing(local)
        info = make(local)
    upload(local, out)
    shutil.rmtree(local)
    return info


def _found(places: list[Path], selection: Selection) -> tuple[list[Source], list[str], str]:
    """Return the sources of all places, the longest work first, notes on them, and their fingerprint."""
    with at_hand(places) as (roots, origin):
        sources, notes = read_sources(roots, selection)
        fingerprint = _fingerprint(sources)
        # So that no worker is left with the longest work at the end.
        sources.sort(key=lambda entry: _bytes(entry.path), reverse=True)
        return [replace(entry, path=origin(entry.path)) for entry in sources], notes, fingerprint


def _fingerprint(sources: list[Source]) -> str:
    """Return the SHA-256 of what the sources are, whose faces they show and how long their files are."""
    lines = (f"{s.name}\0{s.label}\0{s.method}\0{s.identities}\0{s.split}\0{_bytes(s.path)}" for s in sources)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _bytes(path: Path) -> int:
    """Return the size of a file, or -1 for one that cannot be found: it gets its row like any other file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _frames_of(sources: list[Source], frames: int | None, modalities: Modalities) -> int:
    """Return the length of a clip: what was asked for, else 1 for photos alone and 20 otherwise."""
    length = frames or (1 if all(source.is_photo for source in sources) else 20)
    if length == 1 and "flow" in modalities.names:
        raise WrongArgument("--modalities flow needs clips of at least 2 frames: a photo has no motion")
    return length


def _lacking(info: StoreInfo) -> list[str]:
    """Say which of the splits that training looks at lacks a label, though files were to go there."""
    shares = dict(zip(SPLITS, info.settings.ratios, strict=True))
    return [
        f"The {split} split has {counts['real']} real and {counts['fake']} fake clips, and teach and distill need "
        "both: other --ratios, --seed or --forge may mend it; persons who are in one video are kept in one split."
        for split, counts in info.clips.items()
        if split != "train" and shares[split] and not all(counts.values())
    ]


def _left_out(splits: list[str | None]) -> list[str]:
    """Say how many files have no split, if any."""
    if not (left_out := splits.count(None)):
        return []
    return [
        "Fakes link most persons, so that a split would lack a label: the persons were split one by one, and "
        f"{left_out} of {len(splits)} files, which show persons of two splits, are left out."
    ]


def _in_one_split(sources: list[Source], splits: list[str | None], ratios: tuple[float, float, float]) -> list[str]:
    """Name the methods of which all files, though many, are in one split because fakes link their persons."""
    notes = []
    for method in sorted({source.method for source in sources}):
        own = [place for place, source in enumerate(sources) if source.method == method]
        found = {splits[place] for place in own if splits[place]}
        drawn = any(sources[place].split is None for place in own)
        if drawn and len(own) >= MANY_FILES and len(found) == 1 and sum(ratio > 0 for ratio in ratios) > 1:
            notes.append(
                f"All {len(own)} files of {method} are in {found.pop()}, as their persons are kept in one split: "
                "figures of the other splits are not of it. In a store of its own its persons are split one by one."
            )
    return notes


def _tell(out: Path, info: StoreInfo, notes: list[str]) -> None:
    """Say what is in a store that was made. Raises StageError if that is no clip."""
    statuses = ", ".join(f"{count} {status}" for status, count in info.videos.items())
    say(f"{out}: {sum(info.videos.values())} files ({statuses}); clips by split: {info.clips}")
    for line in notes:
        say(f"note: {line}")
    if not info.videos["ok"]:
        raise StageError(
            f"no file of {sum(info.videos.values())} gave a clip: the reasons are in {out / 'videos.parquet'}"
        )
    for line in _lacking(info):
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
    start: Annotated[Start, typer.Option(help="Where in a video its clips begin.")] = "first",
    detector: Annotated[Literal["dlib", "mtcnn"], typer.Option(help="Face detector.")] = "dlib",
    all_faces: Annotated[bool, typer.Option(help="A clip of each steady face, not only of the largest.")] = False,
    crop: CropRule = CropRule(),
    looks: ModalityOptions = ModalityOptions(),
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
        refuse_occupied(out, _to_upload(out))
    else:
        refuse_existing(out)
    if weakest_forgery != WEAKEST and not forge:
        raise WrongArgument(f"--weakest-forgery {weakest_forgery} is for forgeries: give --forge with it")
    shares = parse_ratios(ratios)
    wanted = looks.checked()
    sources, notes, fingerprint = _found(source, selection)
    if all_faces and any(entry.label for entry in sources):
        notes.append("Every face of a fake video counts as fake (--all-faces), also one that nobody forged.")
    settings = StoreSettings(
        frames=_frames_of(sources, frames, wanted),
        crop=crop,
        detector=detector,
        all_faces=all_faces,
        clips_per_video=clips_per_video,
        start=start,
        modalities=wanted.names,
        flow=wanted.flow_settings(),
        depth=wanted.depth_settings(),
        forge=forge,
        weakest_forgery=weakest_forgery,
        ratios=shares,
        seed=seed,
        sources_sha256=fingerprint,
    )
    DETECTORS[detector]()  # says now, and once, if its extra is not installed
    recipe = Recipe(settings, wanted)
    splits = split_sources(sources, shares, seed)
    notes += _left_out(splits) + _in_one_split(sources, splits, shares)
    make = functools.partial(
        _make, sources=list(zip(sources, splits, strict=True)), recipe=recipe, notes=notes, workers=workers, ray=ray
    )
    info = _uploaded(out, settings, make) if is_remote(out) else make(out)
    _tell(out, info, notes)
    return info


if __name__ == "__main__":
    run_as_script(prepare)
