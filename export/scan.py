"""Score many videos by an artifact into one table, in processes or on a cluster; an interrupted scan goes on."""

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

from data.cluster import on_ray, refuse_not_shared, seen_from_here
from data.journal import KILLER, Journal, in_noted_processes
from data.layouts import is_media, unknown_or_media
from data.parquet import Row, read_rows
from data.picture import UnreadableVideo
from data.remote import is_remote
from export.bundle import MANIFEST, Bundle
from export.manifest import Artifact
from export.scorer import Milliseconds, NothingToScore, VideoScorer
from files import files_in, written_whole
from parsing import shown
from resuming import Lock, discard, go_on_with, unfinished_of
from stage import StageError, reason_of, say, some_of

CLIP = pa.struct([("start_frame", pa.int32()), ("score", pa.float64()), ("frames", pa.int32())])
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
        ("milliseconds", pa.struct([(step, pa.float64()) for step in Milliseconds.model_fields])),
    ]
)
"""One row per video. ``status``: ok, no_face, too_short, unreadable, or refused (a photo, by a clip student)."""
SCORER_KEY = b"pocketproof.scorer.sha256"
"""Key of the table's metadata under which the hash of artifact and rules lies (see ``_scorer_hash``)."""
MEANING = {"scorer": "another artifact, threshold or rule"}


def videos_in(paths: Sequence[Path]) -> list[Path]:
    """Return each file once, and in place of each folder the videos and photos below it.

    What a folder holds in formats that are not read is told. Raises StageError for a folder that holds nothing else,
    and for a URL that is not that of a video or photo.
    """
    videos: list[Path] = []
    for path in paths:
        if is_remote(path) and not is_media(path):
            raise StageError(
                f"{path} is not the URL of a video or photo that is read: folders behind URLs are not listed"
            )
        if is_remote(path) or not path.is_dir():
            videos.append(path)
            continue
        found = list(unknown_or_media(path))
        inside = [file for file, _ in found if is_media(file)]
        unread = [name for file, name in found if not is_media(file)]
        if not inside:
            of_others = f" of a format that is read (it has {some_of(unread)})" if unread else ""
            raise StageError(f"{path} holds no video and no photo{of_others}")
        if unread:
            say(f"note: {len(unread)} files of {path} are of formats that are not read: {some_of(unread)}.")
        videos += inside
    return list(dict.fromkeys(videos))


def _row_name(path: Path) -> str:
    """Return the name under which a file's row is kept in the journal."""
    return hashlib.sha256(shown(path).encode()).hexdigest()[:32]


def _scorer_hash(bundle: Bundle, artifact: Artifact) -> str:
    """Return the SHA-256 of all that decides a score and a verdict: the artifact, its threshold, crops and clips."""
    manifest = bundle.manifest
    rules = (
        manifest.crop.model_dump_json(include={"rule", "detector"}),
        manifest.clip.model_dump_json(exclude={"text", "frame_rate"}),
    )
    parts = [artifact.sha256, artifact.threshold.model_dump_json(), *rules]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _stamp(path: Path) -> Row:
    """Return the size and time by which a file is known to be unchanged; -1 for both if they cannot be read."""
    try:
        status = path.stat()
    except Exception as error:  # each storage client has its own errors; the row will say that it cannot be read
        if not isinstance(error, OSError) and not is_remote(path):
            raise
        return {"bytes": -1, "modified_ns": -1}
    # The table has an int64: after the year 2262, only their sizes tell files apart.
    return {"bytes": status.st_size, "modified_ns": min(round(1e9 * status.st_mtime), 2**63 - 1)}


def _is_current(row: Row | None, stamp: Row) -> bool:
    """Return whether a row was written for a file with this stamp; one that could not be read may be readable now."""
    return row is not None and row["status"] != "unreadable" and {key: row[key] for key in stamp} == stamp


def _unscored_row(path: Path, artifact: Artifact) -> Row:
    """Return the columns of a row that are known before its file is scored."""
    return {"video": shown(path), "artifact": artifact.file, "reason": ""} | _stamp(path)


def _killed_row(path: Path, artifact: Artifact) -> Row:
    """Return the row of a video on which a process died."""
    return _unscored_row(path, artifact) | {"status": "unreadable", "reason": KILLER}


def _scored_row(path: Path, scorer: VideoScorer) -> Row:
    """Score a video and return its row, which gives the reason if it could not be scored."""
    row = _unscored_row(path, scorer.artifact)
    try:
        return row | {"status": "ok"} | scorer.detect(path).model_dump()
    except UnreadableVideo as error:
        return row | {"status": "unreadable", "reason": " ".join(error.what.split())}
    except NothingToScore as error:
        return row | {"status": error.status, "reason": error.what}
    except StageError as error:
        return row | {"status": "refused", "reason": str(error)}


@functools.cache
def _cached_scorer(bundle: Path, file: str, scorer_sha256: str) -> VideoScorer:
    """Load what scores. Raises StageError if it has not this hash any more."""
    opened = Bundle(bundle)
    if _scorer_hash(opened, opened.artifact(file)) != scorer_sha256:
        raise StageError(f"{bundle} was replaced meanwhile: what is done is kept, for a call with the former bundle")
    return VideoScorer.load(opened, file)


def _scan_in_process(video: Path, name: str, bundle: Path, file: str, scorer_sha256: str, folder: Path) -> None:
    """Score a video in a process of this machine and note its row, unless the journal has it already."""
    journal = Journal(folder)
    if _is_current(journal.row(name), _stamp(video)):
        return
    journal.begin(name)
    journal.note(name, _scored_row(video, _cached_scorer(bundle, file, scorer_sha256)))


_SCORERS: dict[str, VideoScorer] = {}
"""Scorers that a process on a cluster has loaded, by the hash of artifact and rules."""


def _scan_on_cluster(video: Path, file: str, files: dict[str, bytes], scorer_sha256: str) -> Row:
    """Score a video on a cluster by the bundle sent along: ``files`` holds its contents by path."""
    if scorer_sha256 not in _SCORERS:
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        _SCORERS[scorer_sha256] = VideoScorer.load(Bundle(folder), file)
    return {"row": json.dumps(_scored_row(video, _SCORERS[scorer_sha256]))} | seen_from_here(video)


def _files_to_send(bundle: Bundle, artifact: Artifact) -> dict[str, bytes]:
    """Return the contents of the files that a machine of a cluster needs, by path in the bundle."""
    path = bundle.checked_path(artifact)
    programs = [path] if path.is_file() else files_in(path)
    files = [bundle.path / MANIFEST, *programs]
    return {file.relative_to(bundle.path).as_posix(): file.read_bytes() for file in files}


def _read_table(out: Path, artifact: Artifact, scorer_sha256: str) -> list[Row]:
    """Return the rows of a table of scores; none if there is no file.

    Raises StageError if the file is no such table, or holds the scores of another artifact.
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
    if (pq.read_schema(out).metadata or {}).get(SCORER_KEY) != scorer_sha256.encode():
        raise StageError(
            f"{out} holds scores of another artifact or manifest than {artifact.file}'s: give another --out"
        )
    return rows


def _write_table(out: Path, rows: list[Row], scorer_sha256: str) -> None:
    schema = TABLE_SCHEMA.with_metadata({SCORER_KEY: scorer_sha256})
    with written_whole(out) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), aside)


def _refuse_equal_names(videos: Sequence[Path]) -> None:
    """Raise StageError for files that are shown under the same name: a table could hold only one of them."""
    for name, count in Counter(map(shown, dict.fromkeys(videos))).items():
        if count > 1:
            raise StageError(f"{name} is how {count} files are shown, as a name is not UTF-8: rename one")


def scan(
    videos: Sequence[Path], bundle: Bundle, artifact: Artifact, out: Path, workers: int, ray: str | None
) -> Counter[str]:
    """Score videos into a table, and return the number of videos by status.

    Rows that ``out`` already has of unchanged files stay, but of those that could not be read. An interrupted scan
    leaves its rows beside ``out`` and goes on from them. ``ray``: address of a cluster, or None for processes here.
    Raises StageError if ``out`` holds something else, or the scores of another artifact or manifest.
    """
    folder, scorer_sha256 = unfinished_of(out), _scorer_hash(bundle, artifact)
    with Lock(out, may_exist=True) as lock:
        rows = {row["video"]: row for row in _read_table(out, artifact, scorer_sha256)}
        journal = Journal(folder)
        go_on_with(folder, "asked.json", json.dumps({"scorer": scorer_sha256}), lambda: any(journal.rows()), MEANING)
        journal.open()
        rows |= {row["video"]: row for row in journal.rows()}
        absolute = [path if is_remote(path) else path.absolute() for path in videos]
        _refuse_equal_names(absolute)
        todo = {}
        for path in absolute:
            if not _is_current(rows.get(shown(path)), _stamp(path)):
                todo[_row_name(path)] = path
                journal.forget(_row_name(path))
        if ray is None:
            _scan_in_processes(todo, bundle, artifact, folder, workers)
        else:
            _scan_on_ray(todo, bundle, artifact, journal, ray, workers)
        rows |= {row["video"]: row for row in journal.rows()}
        _write_table(out, [rows[video] for video in sorted(rows)], scorer_sha256)
        discard(folder)
        lock.remove()
    return Counter(rows[shown(path)]["status"] for path in absolute)


def _scan_in_processes(todo: dict[str, Path], bundle: Bundle, artifact: Artifact, folder: Path, workers: int) -> None:
    """Score the videos of ``todo``, by the names of their rows, in ``workers`` processes of this machine."""
    journal, scorer_sha256 = Journal(folder), _scorer_hash(bundle, artifact)
    jobs = {name: (path, name, bundle.path, artifact.file, scorer_sha256, folder) for name, path in todo.items()}

    def note_killer(name: str) -> None:
        journal.note(name, _killed_row(todo[name], artifact))

    in_noted_processes(_scan_in_process, jobs, journal, workers, "detect", note_killer)


def _scan_on_ray(
    videos: dict[str, Path], bundle: Bundle, artifact: Artifact, journal: Journal, address: str, workers: int
) -> None:
    """Score videos on a cluster. Its machines reach them by the same paths, and are sent all else that they need."""
    files, scorer_sha256 = _files_to_send(bundle, artifact), _scorer_hash(bundle, artifact)
    # Sent to the cluster once, not with each video.
    score = functools.partial(_scan_on_cluster, file=artifact.file, files=files, scorer_sha256=scorer_sha256)
    jobs = [(path,) for path in videos.values()]
    for (path,), result in on_ray(score, jobs, address, workers, "detect"):
        if result:
            refuse_not_shared(path, result)
        journal.note(_row_name(path), json.loads(result["row"]) if result else _killed_row(path, artifact))
