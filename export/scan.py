"""Many videos through an artifact into one table, in processes or on a cluster; an interrupted scan goes on."""

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.cluster import on_ray
from data.journal import KILLER, Journal, Row, in_noted_processes
from data.layouts import PHOTO_SUFFIXES, VIDEO_SUFFIXES, media, shown
from data.parquet import read_rows
from data.picture import UnreadableVideo
from data.remote import is_remote
from export.bundle import MANIFEST, Bundle
from export.manifest import Artifact
from export.scorer import NoFace, VideoScorer
from files import Lock, go_on_with, unfinished_of, written_whole
from stage import StageError, reason_of

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
SCORER_KEY = b"pocketproof.scorer.sha256"
"""In the file's metadata: what gave the scores, see ``_scorer_hash``."""
MEANING = {"scorer": "another artifact, threshold or rule"}
FETCH = "cannot be fetched"
"""Begins the reason of a file behind a URL that did not come."""


def videos_in(paths: Sequence[Path]) -> list[Path]:
    """Return files as they are, and in place of folders the videos and photos below them.

    Raises StageError for a folder that holds none.
    """
    found: list[Path] = []
    for path in paths:
        if is_remote(path) and path.suffix.lower() not in VIDEO_SUFFIXES | PHOTO_SUFFIXES:
            raise StageError(f"{path} is not the URL of a video or photo: folders behind URLs are not listed")
        if is_remote(path) or not path.is_dir():
            found.append(path)
            continue
        inside = [file for file, _ in media(path, "", VIDEO_SUFFIXES | PHOTO_SUFFIXES)]
        if not inside:
            raise StageError(f"{path} holds no video and no photo")
        found += inside
    return list(dict.fromkeys(found))


def _name(path: Path) -> str:
    """Return the name of a file's row in the journal."""
    return hashlib.sha256(shown(path).encode()).hexdigest()[:32]


def _scorer_hash(bundle: Bundle, artifact: Artifact) -> str:
    """Return the SHA-256 of all that decides a score and a verdict: the artifact, its threshold, crops and clips."""
    manifest = bundle.manifest
    rules = (
        manifest.crop.model_dump_json(include={"rule", "detector"}),
        manifest.clip.model_dump_json(exclude={"text"}),
    )
    parts = [artifact.sha256, artifact.threshold.model_dump_json(), *rules]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _stamp(path: Path) -> Row:
    """Return what tells whether a file is the one that was scored."""
    try:
        known = path.stat()
    except Exception as error:  # each storage client has its own errors; the row will say that it cannot be read
        if not isinstance(error, OSError) and not is_remote(path):
            raise
        return {"bytes": -1, "modified_ns": -1}
    # As the table's int64 has room: after the year 2262, files are told by their sizes alone.
    return {"bytes": known.st_size, "modified_ns": min(round(1e9 * known.st_mtime), 2**63 - 1)}


def _is_of(row: Row | None, stamp: Row) -> bool:
    """Tell whether a row is that of a file as it is now."""
    return row is not None and {key: row[key] for key in stamp} == stamp


def _may_pass(row: Row) -> bool:
    """Tell whether a file that could not be scored may be another time: its way was broken, or the memory short."""
    reason = str(row["reason"])
    return row["status"] == "unreadable" and (reason == KILLER or reason.startswith(FETCH))


def _begun(path: Path, artifact: Artifact) -> Row:
    """Return what a row says of a file before it is scored."""
    return {"video": shown(path), "artifact": artifact.file, "reason": ""} | _stamp(path)


def _killed(path: Path, artifact: Artifact) -> Row:
    return _begun(path, artifact) | {"status": "unreadable", "reason": KILLER}


def _row(path: Path, scorer: VideoScorer) -> Row:
    """Score a video; whatever happens, it has a row."""
    row = _begun(path, scorer.artifact)
    try:
        return row | {"status": "ok"} | scorer.detect(path).model_dump()
    except UnreadableVideo as error:
        return row | {"status": "unreadable", "reason": " ".join(error.what.split())}
    except NoFace as error:
        return row | {"status": "no_face", "reason": error.what}
    except StageError as error:
        return row | {"status": "refused", "reason": str(error)}


@functools.cache
def _scorer_here(bundle: Path, file: str) -> VideoScorer:
    return VideoScorer.load(Bundle(bundle), file)


def _scan_here(video: Path, name: str, bundle: Path, file: str, folder: Path) -> None:
    """Score a video in a process of this machine, and note its row, unless that was done."""
    journal = Journal(folder)
    if _is_of(journal.row(name), _stamp(video)):
        return
    journal.begin(name)
    journal.note(name, _row(video, _scorer_here(bundle, file)))


_SCORERS: dict[str, VideoScorer] = {}
"""Of a process on a cluster, by the hash of the artifact and of its rules."""


def _scan_there(video: Path, file: str, files: dict[str, bytes], scorer: str) -> Row:
    """Score a video on a cluster, with a bundle that came along."""
    if scorer not in _SCORERS:
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        _SCORERS[scorer] = VideoScorer.load(Bundle(folder), file)
    return {"row": json.dumps(_row(video, _SCORERS[scorer]))}


def _parcel(bundle: Bundle, artifact: Artifact) -> dict[str, bytes]:
    """Return the files that a machine of a cluster needs, by name."""
    path = bundle.checked_path(artifact)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(bundle.path).as_posix(): file.read_bytes() for file in (bundle.path / MANIFEST, *files)}


def _read_table(out: Path, artifact: Artifact, scorer: str) -> list[Row]:
    """Return the rows of a table of scores; none if there is no file.

    Raises StageError if it is something else, or holds the scores of another artifact.
    """
    if not out.exists():
        return []
    try:
        rows = read_rows(out, TABLE_SCHEMA)
        if not all(row["video"] and row["status"] for row in rows):
            raise ValueError("a row has no video or no status")
        if len({row["video"] for row in rows}) < len(rows):
            raise ValueError("a video has two rows")
    except ValueError as error:
        raise StageError(f"{out} is not a table of scores ({reason_of(error)}): give another --out") from error
    if (pq.read_schema(out).metadata or {}).get(SCORER_KEY) != scorer.encode():
        raise StageError(
            f"{out} holds scores of another artifact or manifest than {artifact.file}'s: give another --out"
        )
    return rows


def _write_table(out: Path, rows: list[Row], scorer: str) -> None:
    schema = TABLE_SCHEMA.with_metadata({SCORER_KEY: scorer})
    with written_whole(out) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), aside)


def _refuse_alike(videos: Sequence[Path]) -> None:
    """Raise StageError for two files of one shown name, of which a table could hold one."""
    for name, count in Counter(map(shown, dict.fromkeys(videos))).items():
        if count > 1:
            raise StageError(f"{name} is how {count} files are shown, as a name is not UTF-8: rename one")


def scan(
    videos: Sequence[Path], bundle: Bundle, artifact: Artifact, out: Path, workers: int, ray: str | None
) -> Counter[str]:
    """Score videos into a table, and return how many of them have which status.

    Rows that it has already, of unchanged files, stay. What an interrupted scan has done is kept beside ``out``. Raises
    StageError if ``out`` holds something else, or scores of another artifact or by another manifest.
    """
    folder, scorer = unfinished_of(out), _scorer_hash(bundle, artifact)
    with Lock(out, may_exist=True) as lock:
        rows = {row["video"]: row for row in _read_table(out, artifact, scorer)}
        journal = Journal(folder)
        go_on_with(folder, "asked.json", json.dumps({"scorer": scorer}), lambda: any(journal.rows()), MEANING)
        journal.open()
        rows |= {row["video"]: row for row in journal.rows()}
        absolute = [path if is_remote(path) else path.absolute() for path in videos]
        _refuse_alike(absolute)
        todo = {}
        for path in absolute:
            known = rows.get(shown(path))
            if known is None or not _is_of(known, _stamp(path)) or _may_pass(known):
                todo[_name(path)] = path
                journal.forget(_name(path))
        if ray is None:
            _in_processes(todo, bundle, artifact, folder, workers)
        else:
            _on_ray(todo, bundle, artifact, journal, ray, workers)
        rows |= {row["video"]: row for row in journal.rows()}
        _write_table(out, [rows[video] for video in sorted(rows)], scorer)
        shutil.rmtree(folder)
        lock.remove()
    return Counter(rows[shown(path)]["status"] for path in absolute)


def _in_processes(todo: dict[str, Path], bundle: Bundle, artifact: Artifact, folder: Path, workers: int) -> None:
    jobs = {name: (path, name, bundle.path, artifact.file, folder) for name, path in todo.items()}

    def killed(name: str) -> Row:
        return _killed(todo[name], artifact)

    in_noted_processes(_scan_here, jobs, Journal(folder), workers, "detect", killed)


def _on_ray(
    videos: dict[str, Path], bundle: Bundle, artifact: Artifact, journal: Journal, address: str, workers: int
) -> None:
    """Score on a cluster, whose machines reach the videos by the same paths and need nothing else of this one."""
    files = _parcel(bundle, artifact)
    scorer = _scorer_hash(bundle, artifact)
    there = functools.partial(_scan_there, file=artifact.file, files=files, scorer=scorer)  # which is sent once
    for (path,), result in on_ray(there, [(path,) for path in videos.values()], address, workers, "detect"):
        journal.note(_name(path), json.loads(result["row"]) if result else _killed(path, artifact))
