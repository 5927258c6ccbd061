"""Break every stage on purpose: ``python tests/torture.py OUT [SCENARIO...]``, a quarter of an hour; OUT is scratch.

Each stage is run once undisturbed on rendered videos. Then it is killed, run twice at once, given a full disk, a disk
that cannot be written, another locale and no home folder, files of another version, thousands of files, and mutated
videos. What it must do: end with 0 and everything whole, or with 1 (2: wrong arguments) and one line; called again,
end as if nothing had happened. Prints one Markdown row for each trial and ends with 1 if any went wrong. A full disk
needs root.
"""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from data.demo import render_corpora
from tests.chain import Running, Stage, run, stages

KILLS = 3
MUTATED = 300
MANY = 10_000


@dataclass(frozen=True)
class Trial:
    """One row of the result."""

    scenario: str
    stage: str
    told: str
    wrong: str


@dataclass(frozen=True)
class House:
    """The undisturbed results, how long each took, and where to work."""

    base: Path
    scratch: Path
    seconds: dict[str, float]

    @property
    def stages(self) -> list[Stage]:
        """The chain."""
        return stages(self.base)

    def whole(self, stage: Stage) -> Path:
        """Return a stage's undisturbed result."""
        return self.base / f"{stage.name}{stage.suffix}"

    def compared(self, stage: Stage, out: Path) -> str:
        """Say what is wrong with a result, or nothing."""
        return "" if stage.same(self.whole(stage), out) else "not what an undisturbed command makes"


def killed(house: House) -> Iterator[Trial]:
    """Kill -9 at random moments, then run to the end."""
    rng = random.Random(5)
    for stage in house.stages:
        out = house.scratch / f"killed-{stage.name}{stage.suffix}"
        moments = [rng.uniform(0.3, 0.95) * house.seconds[stage.name] for _ in range(KILLS)]
        for moment in moments:
            running = Running(stage.into(out))
            running.kill_after(moment)
            running.end()
        wrong = "" if out.exists() else run(stage.into(out)).wrong(0)  # one may have been killed after its last deed
        told = "killed after " + ", ".join(f"{moment:.1f}" for moment in moments) + " s"
        yield Trial("kill -9", stage.name, told, wrong or house.compared(stage, out))


def twice(house: House) -> Iterator[Trial]:
    """Two commands on the same output at once: one makes it, the other says so."""
    for stage in house.stages:
        out = house.scratch / f"twice-{stage.name}{stage.suffix}"
        both = [Running(stage.into(out)) for _ in range(2)]
        ended = sorted((running.end() for running in both), key=lambda one: one.code)
        wrong = ended[0].wrong(0) or ended[1].wrong(0, 1) or house.compared(stage, out)
        yield Trial("two at once", stage.name, " ".join(ended[1].errors) or "both ended", wrong)


def _mounted(at: Path, options: str) -> None:
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)], check=True)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def full(house: House) -> Iterator[Trial]:
    """A disk that is full near the beginning, or half-way, and then is not."""
    for stage, share in itertools.product(house.stages, (0.05, 0.5)):
        disk = house.scratch / f"full-{stage.name}-{share}"
        out = disk / f"out{stage.suffix}"
        _mounted(disk, f"size={max(4096, int(_size(house.whole(stage)) * share))}")
        try:
            ended = run(stage.into(out))
            wrong = ended.wrong(1) or ("" if "No space left" in ended.said else "it does not say that the disk is full")
            subprocess.run(["mount", "-o", "remount,size=1G", str(disk)], check=True)
            again = run(stage.into(out))
            wrong = wrong or again.wrong(0) or house.compared(stage, out)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
        yield Trial(f"full disk, {share:.0%} fits", stage.name, " ".join(ended.errors), wrong)


def read_only(house: House) -> Iterator[Trial]:
    """A disk that cannot be written."""
    disk = house.scratch / "read-only"
    _mounted(disk, "ro")
    try:
        for stage in house.stages:
            ended = run(stage.into(disk / f"out{stage.suffix}"))
            said = "" if "Read-only" in ended.said else "it does not say that the disk is read-only"
            yield Trial("read-only disk", stage.name, " ".join(ended.errors), ended.wrong(1) or said)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def bare(house: House) -> Iterator[Trial]:
    """No home folder, no UTF-8 locale, names of files that need one."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "LANG", "XDG_CACHE_HOME")}
    environment |= {"LC_ALL": "C", "HOME": "/nonexistent"}
    for stage in house.stages:
        out = house.scratch / f"bare-ü漢-{stage.name}{stage.suffix}"
        ended = run(stage.into(out), environment)
        told = "LC_ALL=C, HOME=/nonexistent"
        yield Trial("bare machine", stage.name, told, ended.wrong(0) or house.compared(stage, out))
    out = house.scratch / "ascii-ü漢"
    ended = run(house.stages[0].into(out), environment | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    yield Trial("bare machine", house.stages[0].name, " ".join(ended.errors), ended.wrong(1))


def other_version(house: House) -> Iterator[Trial]:
    """A store, a run, a bundle and a reference of a schema version that is not known."""
    readers = {
        "prepare/store.json": ["inspect", "@prepare"],
        "teach/model.json": ["evaluate", "@teach", "--data", str(house.base / "prepare")],
        "export/manifest.json": ["verify", "@export"],
        "reference.json": [
            *("bench", str(house.base / "export"), "--data", str(house.base / "prepare")),
            *("--reference", "@reference.json", "--out", str(house.scratch / "version-report")),
        ],
    }
    for file, arguments in readers.items():
        other = house.scratch / "version"
        shutil.rmtree(other, ignore_errors=True)
        other.mkdir()
        top = file.split("/")[0]
        source = house.base / top
        shutil.copytree(source, other / top) if source.is_dir() else shutil.copy(source, other / top)
        values = json.loads((other / file).read_text())
        (other / file).write_text(json.dumps(values | {"schema_version": 99}))
        ended = run([str(other / word[1:]) if word.startswith("@") else word for word in arguments])
        said = "" if "schema version 99" in ended.said else "it does not name the version"
        yield Trial("schema 99", file, " ".join(ended.errors), ended.wrong(1) or said)


def many(house: House) -> Iterator[Trial]:
    """A folder of thousands of files that are no videos, and two that are."""
    folder = house.scratch / "many"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for number in range(MANY):
        (folder / f"{number:05d}.mp4").write_bytes(rng.bytes(100))
    for number, video in enumerate(sorted((house.base / "corpus").rglob("*.mp4"))[:2]):
        shutil.copy(video, folder / f"good{number}.mp4")
    out = house.scratch / "many-store"
    ended = run(["prepare", str(folder), "--label", "real", "--frames", "4", "--workers", "2", "--out", str(out)])
    wrong = ended.wrong(0)
    if not wrong:
        counts = pd.read_parquet(out / "videos.parquet").status.value_counts().to_dict()
        wrong = "" if counts == {"unreadable": MANY, "ok": 2} else f"statuses {counts}"
    yield Trial(f"{MANY} files", "prepare", f"{ended.seconds:.0f} s", wrong)
    table = house.scratch / "many.parquet"
    ended = run(["detect", str(folder), "--bundle", str(house.base / "export"), "--workers", "2", "--out", str(table)])
    wrong = ended.wrong(0) or ("" if len(pd.read_parquet(table)) == MANY + 2 else "rows are missing")
    yield Trial(f"{MANY} files", "detect", f"{ended.seconds:.0f} s", wrong)


def _mutated(data: bytes, rng: random.Random) -> bytes:
    """Return a file's bytes with some flipped, cut out, doubled or zeroed."""
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 4, 30))):
        at, length = rng.randrange(len(spoilt)), rng.choice((1, 16, 2000))
        piece = spoilt[at : at + length]
        ways = (bytes(len(piece)), rng.randbytes(len(piece)), b"", piece * 2)
        spoilt[at : at + length] = rng.choice(ways)
    return bytes(spoilt)


def mutated(house: House) -> Iterator[Trial]:
    """Videos of which bytes were changed: each has its row, and those beside them are not touched."""
    folder, rng = house.scratch / "mutated", random.Random(9)
    folder.mkdir()
    videos = sorted((house.base / "corpus").rglob("*.mp4"))
    for number in range(MUTATED):
        (folder / f"{number:03d}.mp4").write_bytes(_mutated(videos[number % len(videos)].read_bytes(), rng))
    out, table = house.scratch / "mutated-store", house.scratch / "mutated.parquet"
    ended = run(["prepare", str(folder), "--label", "fake", "--frames", "4", "--workers", "2", "--out", str(out)])
    counts = {} if ended.wrong(0) else pd.read_parquet(out / "videos.parquet").status.value_counts().to_dict()
    wrong = ended.wrong(0) or ("" if sum(counts.values()) == MUTATED else "rows are missing")
    yield Trial(f"{MUTATED} mutated videos", "prepare", str(counts), wrong)
    ended = run(["detect", str(folder), "--bundle", str(house.base / "export"), "--workers", "2", "--out", str(table)])
    counts = {} if ended.wrong(0) else pd.read_parquet(table).status.value_counts().to_dict()
    wrong = ended.wrong(0) or ("" if sum(counts.values()) == MUTATED else "rows are missing")
    yield Trial(f"{MUTATED} mutated videos", "detect", str(counts), wrong)


SCENARIOS = (killed, twice, full, read_only, bare, other_version, many, mutated)


def built(out: Path) -> House:
    """Run the whole chain undisturbed, or take what an earlier call has made."""
    base, times = out / "base", out / "seconds.json"
    if not base.exists():
        render_corpora(base, renders=12, controls=3, seed=0, workers=2)
    seconds = json.loads(times.read_text()) if times.exists() else {}
    for stage in stages(base):
        if stage.name not in seconds:
            ended = run(stage.into(base / f"{stage.name}{stage.suffix}"))
            if ended.code:
                sys.exit(f"{stage.name} does not even work undisturbed: {ended.said}")
            seconds[stage.name] = ended.seconds
            times.write_text(json.dumps(seconds))
    scratch = out / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return House(base, scratch, seconds)


def main(out: Path, names: list[str]) -> int:
    """Run the named scenarios, or all; return the exit code."""
    house, failures = built(out.resolve()), 0
    print("| | stage | said | |\n|---|---|---|---|", flush=True)
    for scenario in SCENARIOS:
        if names and scenario.__name__ not in names:
            continue
        if scenario in (full, read_only) and os.geteuid():
            print(f"| {scenario.__name__} | | not run: mounting needs root | |", flush=True)
            continue
        for trial in scenario(house):
            failures += bool(trial.wrong)
            print(f"| {trial.scenario} | {trial.stage} | {trial.told} | {trial.wrong or 'ok'} |", flush=True)
    print(f"{failures} wrong")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
