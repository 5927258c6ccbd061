"""Many videos through an artifact into one table, in processes or on a cluster; an interrupted scan goes on."""

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from data.cluster import on_ray
from data.journal import KILLER, Journal, Row, in_noted_processes
from data.layouts import PHOTO_SUFFIXES, VIDEO_SUFFIXES, media
from data.remote import is_remote
from data.video import UnreadableVideo
from export.bundle import Artifact, Bundle
from export.scorer import NoFace, VideoScorer
from stage import StageError, locked, reason_of, say, written_whole

CLIP = pa.struct([("start_frame", pa.int32()), ("score", pa.float64()), ("frames", pa.int32())])
STAGES = ("decode", "faces", "crop", "embed", "score", "whole")
TABLE_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("score", pa.float64()),
        ("verdict", pa.string()),
        ("threshold", pa.float64()),
        ("artifact", pa.string()),
        ("evaluated_by", pa.string()),
        ("frames_read", pa.int32()),
        ("frames_used", pa.int32()),
        ("faces_missed", pa.int32()),
        ("clips_left_out", pa.int32()),
        ("clips", pa.list_(CLIP)),
        ("milliseconds", pa.struct([(stage, pa.float64()) for stage in STAGES])),
    ]
)
"""One row per video. ``status``: ok, no_face, unreadable, or refused (a photo, of a clip student)."""
ARTIFACT_KEY = b"pocketproof.artifact.sha256"
"""In the file's metadata: whose scores the table holds."""


def videos_in(paths: Sequence[Path]) -> list[Path]:
    """Return files as they are, and in place of folders the videos and photos below them.

    Raises StageError for a folder that holds none.
    """
    found: list[Path] = []
    for path in paths:
        if is_remote(path) or not path.is_dir():
            found.append(path)
            continue
        inside = [file for file, _ in media(path, "", VIDEO_SUFFIXES | PHOTO_SUFFIXES)]
        if not inside:
            raise StageError(f"{path} holds no video and no photo")
        found += inside
    return list(dict.fromkeys(found))


def _name(video: str) -> str:
    return hashlib.sha256(video.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _stamp(path: Path) -> Row:
    """Return what tells whether a file is the one that was scored."""
    try:
        known = path.stat()
    except OSError:  # its row will say that it cannot be read
        return {"bytes": -1, "modified_ns": -1}
    return {"bytes": known.st_size, "modified_ns": 0 if is_remote(path) else known.st_mtime_ns}


def _row(path: Path, scorer: VideoScorer) -> Row:
    """Score a video; whatever happens, it has a row."""
    cv2.setNumThreads(1)  # the processes are the threads
    row = {"video": str(path), "artifact": scorer.artifact.file, "reason": ""} | _stamp(path)
    try:
        return row | {"status": "ok"} | scorer.detect(path).model_dump()
    except UnreadableVideo as error:
        return row | {"status": "unreadable", "reason": " ".join(error.what.split())}
    except NoFace:
        return row | {"status": "no_face", "reason": "no face in any frame"}
    except StageError as error:
        return row | {"status": "refused", "reason": str(error)}


@functools.cache
def _scorer_here(bundle: Path, file: str) -> VideoScorer:
    return VideoScorer.load(Bundle(bundle), file)


def _scan_here(video: Path, name: str, bundle: Path, file: str, folder: Path) -> None:
    """Score a video in a process of this machine, and note its row."""
    journal = Journal(folder)
    journal.begin(name)
    journal.note(name, _row(video, _scorer_here(bundle, file)))


_SCORERS: dict[str, VideoScorer] = {}
"""Of a process on a cluster, by the hash of the artifact."""


def _scan_there(video: Path, file: str, files: dict[str, bytes], sha256: str) -> Row:
    """Score a video on a cluster, with a bundle that came with the job."""
    if sha256 not in _SCORERS:
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        _SCORERS[sha256] = VideoScorer.load(Bundle(folder), file)
    return {"row": json.dumps(_row(video, _SCORERS[sha256]))}


def _parcel(bundle: Bundle, artifact: Artifact) -> dict[str, bytes]:
    """Return the files that a machine of a cluster needs, by name."""
    path = bundle.checked_path(artifact)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {
        file.relative_to(bundle.path).as_posix(): file.read_bytes() for file in (bundle.path / "manifest.json", *files)
    }


def read_table(out: Path, artifact: Artifact) -> list[Row]:
    """Return the rows of a table of scores; none if there is no file.

    Raises StageError if it is something else, or holds the scores of another artifact.
    """
    if not out.exists():
        return []
    try:
        table = pq.read_table(out)
    except (OSError, pa.ArrowException) as error:
        raise StageError(f"{out} is not a table of scores ({reason_of(error)}): give another --out") from error
    if not table.schema.equals(TABLE_SCHEMA):
        raise StageError(f"{out} is not a table of scores: give another --out")
    if (table.schema.metadata or {}).get(ARTIFACT_KEY) != artifact.sha256.encode():
        raise StageError(f"{out} holds scores of another artifact than {artifact.file}: give another --out")
    rows: list[Row] = table.to_pylist()
    return rows


def _write_table(out: Path, rows: list[Row], artifact: Artifact) -> None:
    schema = TABLE_SCHEMA.with_metadata({ARTIFACT_KEY: artifact.sha256})
    with written_whole(out) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), aside)


def scan(
    videos: Sequence[Path], bundle: Bundle, artifact: Artifact, out: Path, workers: int, ray: str | None
) -> dict[str, int]:
    """Score videos into a table, and return how many of its rows have which status.

    Rows that it has already, of the same artifact and unchanged files, stay. What an interrupted scan has done is kept
    beside ``out``.
    """
    folder = out.with_name(f".{out.name}.unfinished")
    with closing(locked(out)) as lock:
        kept = {row["video"]: row for row in read_table(out, artifact)}
        _go_on(folder, artifact)
        journal = Journal(folder)
        paths = {str(path): path for path in (path if is_remote(path) else path.absolute() for path in videos)}
        names = {_name(video): video for video in paths}
        stamps = {video: _stamp(path) for video, path in paths.items()}

        def is_done(name: str, row: Row | None) -> bool:
            return row is not None and all(row[key] == value for key, value in stamps[names[name]].items())

        todo = [name for name, video in names.items() if not is_done(name, journal.row(name) or kept.get(video))]
        if ray is None:
            jobs = {name: (paths[names[name]], name, bundle.path, artifact.file, folder) for name in todo}

            def killed(name: str) -> Row:
                base = {"video": names[name], "artifact": artifact.file} | stamps[names[name]]
                return base | {"status": "unreadable", "reason": KILLER}

            in_noted_processes(_scan_here, jobs, journal, workers, "detect", killed)
        else:
            _on_ray({name: paths[names[name]] for name in todo}, bundle, artifact, journal, ray, workers)
        kept |= {names[name]: row for name in names if (row := journal.row(name))}
        _write_table(out, [kept[video] for video in sorted(kept)], artifact)
        shutil.rmtree(folder)
        Path(lock.name).unlink(missing_ok=True)
    counts: dict[str, int] = {}
    for row in kept.values():
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    return counts


def _go_on(folder: Path, artifact: Artifact) -> None:
    """Make the folder of an unfinished scan, or go on with that of the same artifact."""
    mark = folder / "artifact.json"
    if folder.exists() and (not mark.exists() or json.loads(mark.read_text()) != artifact.sha256):
        say(f"{folder} is of another artifact: starting anew")
        shutil.rmtree(folder)
    Journal(folder).open()
    with written_whole(mark) as aside:
        aside.write_text(json.dumps(artifact.sha256))


def _on_ray(
    videos: dict[str, Path], bundle: Bundle, artifact: Artifact, journal: Journal, address: str, workers: int
) -> None:
    """Score on a cluster, whose machines reach the videos by the same paths and need nothing else of this one."""
    files = _parcel(bundle, artifact)
    named = {str(path): name for name, path in videos.items()}
    jobs = [(path, artifact.file, files, artifact.sha256) for path in videos.values()]
    for (path, *_), result in on_ray(_scan_there, jobs, address, workers, "detect"):
        base = {"video": str(path), "artifact": artifact.file} | _stamp(path)
        row = json.loads(result["row"]) if result else base | {"status": "unreadable", "reason": KILLER}
        journal.note(named[str(path)], row)
