"""Videos to a ClipStore: every input file accounted for, in many processes, resumable."""

import contextlib
import hashlib
import io
import json
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import cv2
import typer

from data.cluster import on_ray
from data.crops import CropRule, Fit
from data.faces import DETECTORS
from data.forge import WEAKEST
from data.journal import KILLER, Journal, in_noted_processes
from data.layouts import SPLITS, Selection, Source, read_sources
from data.modalities import Modalities
from data.parquet import RowWriter
from data.prepare_video import Recipe, prepare_video, without_clips
from data.remote import answering, at_hand, is_remote, place, upload
from data.splits import parse_ratios, split_sources
from data.store import CLIP_SCHEMA, ClipStore, Start, StoreInfo, StoreSettings
from data.unfinished import Unfinished, clips_of, is_done, note
from data.views import WeakestForgery
from files import refuse_existing, written_whole
from stage import Modality, Seed, StageError, run_as_script, say

LayoutName = Literal["auto", "ffpp", "dfdc", "celebdf", "folder", "csv"]
Label = Literal["real", "fake"]
Compression = Literal["c0", "c23", "c40"]


Job = tuple[Source, str, Recipe, Path]
"""A source, its split, what to make of it, and the folder of the unfinished store."""


def _on_one_thread(recipe: Recipe) -> None:
    """Compute on one thread: the processes are the threads, and sums in networks depend on their number."""
    cv2.setNumThreads(1)
    if recipe.modalities.in_torch:
        import torch

        torch.set_num_threads(1)


def _prepare_one(source: Source, split: str, recipe: Recipe, folder: Path) -> None:
    """Prepare one video unless an interrupted run has."""
    if is_done(folder, source.video_id):
        return
    Journal(folder).begin(source.video_id)
    _on_one_thread(recipe)
    with clips_of(folder, source.video_id) as clips:
        row = prepare_video(source, split, recipe, clips.write)
    note(folder, row)


def _prepare_here(jobs: list[Job], store: Unfinished, workers: int) -> None:
    """Prepare in processes of this machine. A file that kills its process, tried again alone, is unreadable."""
    named = {job[0].video_id: job for job in jobs}

    def killed(name: str) -> dict[str, Any]:
        return without_clips(*named[name][:2], "unreadable", KILLER)

    in_noted_processes(_prepare_one, named, store.journal, workers, "prepare", killed)


def _prepare_there(source: Source, split: str, recipe: Recipe, found: bool) -> dict[str, Any]:
    """Prepare one video on a cluster: its row as JSON and the file of its clips, for this machine to write.

    ``found``: whether the machine that asks has the file.
    """
    _on_one_thread(recipe)
    if found and not is_remote(source.path) and not source.path.exists():
        return {"error": f"{source.path} is not on {platform.node()}: share the disk with the cluster, or give a URL"}
    file = io.BytesIO()
    with RowWriter(file, CLIP_SCHEMA) as clips:
        row = prepare_video(source, split, recipe, clips.write)
    return {"row": json.dumps(row), "clips": file.getvalue()}


def _prepare_on_ray(jobs: list[Job], store: Unfinished, address: str, workers: int) -> None:
    """Prepare on a cluster, whose machines need not share a disk with this one."""
    todo = [
        (*job[:3], not is_remote(job[0].path) and job[0].path.exists())
        for job in jobs
        if not is_done(store.folder, job[0].video_id)
    ]
    for (source, split, *_), result in on_ray(_prepare_there, todo, address, workers, "prepare"):
        row = json.loads(result["row"]) if result else without_clips(source, split, "unreadable", KILLER)
        if result and result["clips"]:
            with written_whole(store.folder / "clips" / f"{row['video_id']}.parquet") as aside:
                aside.write_bytes(result["clips"])
        note(store.folder, row)


def _make(
    out: Path, sources: list[tuple[Source, str | None]], recipe: Recipe, notes: list[str], workers: int, ray: str | None
) -> StoreInfo:
    """Prepare all sources, each with its split, into a store; those without one get a row that says so."""
    with Unfinished(out, recipe.settings) as store:
        folder = store.folder.absolute()
        jobs = [(source, split, recipe, folder) for source, split in sources if split]
        for source in (source for source, split in sources if not split):
            note(folder, without_clips(source, "", "left_out", "it shows persons of two splits"))
        if ray is None:
            _prepare_here(jobs, store, workers)
        else:
            _prepare_on_ray(jobs, store, ray, workers)
        return store.finish([source for source, _ in sources], notes)


def _fingerprint(sources: list[Source]) -> str:
    """Return the SHA-256 of what the sources are, whose faces they show and how long their files are."""
    lines = (f"{s.name}\0{s.label}\0{s.method}\0{s.identities}\0{s.split}\0{_bytes(s.path)}" for s in sources)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _bytes(path: Path) -> int:
    """Return the size of a file, or -1 for a link that leads nowhere: it gets its row like any other file."""
    return path.stat().st_size if path.exists() else -1


def _modalities(
    text: str, flow: str, flow_weights: Path | None, depth_size: str | None, depth_weights: Path | None
) -> Modalities:
    """Check the options of modalities; StageError names the one that is wrong."""
    names = tuple(name.strip() for name in text.split(","))
    if len(set(names)) < len(names) or not {"rgb"} <= set(names) <= set(get_args(Modality)):
        raise StageError(f"--modalities {text!r}: give rgb, and depth and flow if wanted, as rgb,depth,flow")
    if "depth" not in names and (depth_size or depth_weights):
        raise StageError("--depth-size and --depth-weights are for depth: add it to --modalities")
    if "flow" not in names and flow_weights:
        raise StageError("--flow-weights is for flow: add it to --modalities")
    ordered: list[Modality] = [name for name in get_args(Modality) if name in names]
    files = [path and path.absolute() for path in (flow_weights, depth_weights)]
    return Modalities(tuple(ordered), flow, files[0], depth_size, files[1])


def _frames_of(sources: list[Source], frames: int | None, modalities: Modalities) -> int:
    """Return the length of a clip: what was asked for, else 1 for photos alone and 20 otherwise."""
    length = frames or (1 if all(source.is_photo for source in sources) else 20)
    if length == 1 and "flow" in modalities.names:
        raise StageError("--modalities flow needs clips of at least 2 frames: a photo has no motion")
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


def prepare(
    source: Annotated[
        list[Path], typer.Argument(parser=place, help="Folders of videos or photos, or tables (.csv); paths or URLs.")
    ],
    out: Annotated[Path, typer.Option(parser=place, help="The ClipStore to write; a path or URL.")],
    layout: Annotated[LayoutName, typer.Option(help="How the folders are laid out.")] = "auto",
    label: Annotated[Label | None, typer.Option(help="Label of everything in folders of no layout.")] = None,
    identity_pattern: Annotated[
        str | None, typer.Option(help="With --label: regular expression whose first group in a path is the identity.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Only these methods, with commas between.")] = None,
    max_videos: Annotated[int | None, typer.Option(help="At most so many videos of each method.", min=1)] = None,
    compression: Annotated[Compression | None, typer.Option(help="FaceForensics++: only this compression.")] = None,
    official_splits: Annotated[
        Path | None, typer.Option(help="FaceForensics++: folder of its train.json, val.json and test.json.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip; 20, or 1 for photos.", min=1)] = None,
    clips_per_video: Annotated[int, typer.Option(help="Stretches of frames to take from a video.", min=1)] = 1,
    start: Annotated[Start, typer.Option(help="Where in a video its clips begin.")] = "first",
    detector: Annotated[Literal["dlib", "mtcnn"], typer.Option(help="Face detector.")] = "dlib",
    all_faces: Annotated[bool, typer.Option(help="A clip of each steady face, not only of the largest.")] = False,
    size: Annotated[int, typer.Option(help="Side of a crop in pixels.", min=16, max=1024)] = 224,
    margin: Annotated[float, typer.Option(help="Side of the crop's square / longer side of the face box.")] = 1.3,
    fit: Annotated[Fit, typer.Option(help="Resize each face, or pad to the clip's largest.")] = "resize",
    modalities: Annotated[str, typer.Option(help="rgb, and depth and flow if wanted, with commas between.")] = "rgb",
    flow: Annotated[Literal["dis", "farneback", "raft"], typer.Option(help="Estimator of optical flow.")] = "dis",
    flow_weights: Annotated[Path | None, typer.Option(help="Weights of RAFT.")] = None,
    depth_size: Annotated[
        Literal["small", "base", "large"] | None, typer.Option(help="Size of Depth Anything V2; small.")
    ] = None,
    depth_weights: Annotated[Path | None, typer.Option(help="Folder of Depth Anything V2's weights.")] = None,
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
    with answering(out) if is_remote(out) else contextlib.nullcontext():
        refuse_existing(out / "store.json" if is_remote(out) else out)
    if not 1 <= margin <= 4:
        raise StageError(f"--margin {margin}: give a number from 1 to 4")
    shares = parse_ratios(ratios)
    selection = Selection(layout, label, identity_pattern, methods, max_videos, compression, official_splits)
    wanted = _modalities(modalities, flow, flow_weights, depth_size, depth_weights)
    with at_hand(source) as (roots, origin):
        sources, notes = read_sources(roots, selection)
        if all_faces and any(entry.label for entry in sources):
            notes.append("Every face of a fake video counts as fake (--all-faces), also one that nobody forged.")
        fingerprint = _fingerprint(sources)
        # The longest work first, so that no worker is left with it at the end.
        sources.sort(key=lambda entry: _bytes(entry.path), reverse=True)
        sources = [replace(entry, path=origin(entry.path)) for entry in sources]
    settings = StoreSettings(
        frames=_frames_of(sources, frames, wanted),
        crop=CropRule(size=size, margin=margin, fit=fit),
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
    if left_out := splits.count(None):
        notes.append(
            "Fakes link most persons, so that a split would lack a label: the persons were split one by one, and "
            f"{left_out} of {len(sources)} files, which show persons of two splits, are left out."
        )
    local = Path(f".{out.name}.upload") if is_remote(out) else out
    if is_remote(out) and local.exists() and ClipStore(local).info.settings == settings:
        info = ClipStore(local).info  # made before, and the upload was interrupted
    else:
        refuse_existing(local)
        info = _make(local, list(zip(sources, splits, strict=True)), recipe, notes, workers, ray)
    if is_remote(out):
        upload(local, out)
        shutil.rmtree(local)
    statuses = ", ".join(f"{count} {status}" for status, count in info.videos.items())
    say(f"{out}: {len(sources)} files ({statuses}); clips by split: {info.clips}")
    for line in notes:
        say(f"note: {line}")
    if not info.videos["ok"]:
        raise StageError(f"no file of {len(sources)} gave a clip: the reasons are in {out / 'videos.parquet'}")
    for line in _lacking(info):
        say(f"note: {line}")
    return info


if __name__ == "__main__":
    run_as_script(prepare)
