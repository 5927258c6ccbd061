"""``prepare`` as a user runs it: in processes that can be killed, over files that can kill; and what it has made."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from numpy.typing import NDArray
from PIL import Image

from data.layouts import Source
from data.prepare import prepare
from data.prepare_video import Recipe, prepare_video
from data.store import StoreInfo

ROOT = Path(__file__).parents[2]
SHARED = {"frames": 4, "size": 32, "ratios": "0.5,0,0.5", "seed": 7}
KILLER = "killer.mp4"
"""How the name of a file ends that kills the process which opens it, where ``killing`` is the stub."""


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def started(corpus: Path, out: Path, *options: str, stub: Path | None = None) -> "subprocess.Popen[str]":
    """Start the command in a process group of its own; ``stub`` is a folder with a sitecustomize.py."""
    shared = [f"--{name}={value}" for name, value in SHARED.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "data.prepare", str(corpus), f"--out={out}", "--workers=2", *shared, *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, filter(None, [stub, ROOT])))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(run: "subprocess.Popen[str]", code: int = 0) -> str:
    """Wait for a command that must end with this exit code; return what it said."""
    try:
        said, _ = run.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        raise
    assert run.returncode == code, said
    return said


def wait_for_rows(run: "subprocess.Popen[str]", out: Path, rows: int) -> None:
    while len(list(out.with_name(f".{out.name}.unfinished").glob("rows/*.json"))) < rows:
        assert run.poll() is None
        time.sleep(0.005)


def killing(folder: Path) -> Path:
    """Write a sitecustomize.py that kills each process which opens a file named like a killer."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, signal, av\n"
        "whole = av.open\n"
        "def opened(name, *args, **kwargs):\n"
        f"    if str(name).endswith({KILLER!r}):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return whole(name, *args, **kwargs)\n"
        "av.open = opened\n"
    )
    return folder


def made(corpus: Path, out: Path, workers: int = 1) -> StoreInfo:
    return prepare([corpus], out, frames=4, size=32, ratios="0.5,0,0.5", workers=workers, seed=7)


def command(corpus: Path, out: Path) -> list[str]:
    options = ["--frames=4", "--size=32", "--ratios=0.5,0,0.5", "--workers=1", "--seed=7"]
    return [sys.executable, "-m", "data.prepare", str(corpus), "--out", str(out), *options]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "data.prepare", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def videos_of(store: Path) -> dict[str, dict[str, Any]]:
    return dict(pd.read_parquet(store / "videos.parquet").set_index("path").to_dict("index"))


def clips_of(store: Path) -> pd.DataFrame:
    """Return the rows of all clips of a store."""
    return pd.concat([pd.read_parquet(file) for file in sorted((store / "clips").iterdir())], ignore_index=True)


def prepared(source: Source, split: str, recipe: Recipe) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a video's row and those of its clips."""
    clips: list[dict[str, Any]] = []
    return prepare_video(source, split, recipe, clips.append), clips


def photos_below(root: Path, astronaut: NDArray[np.uint8]) -> Path:
    """Photos of two persons, one of nobody, and a file that is none."""
    head = astronaut[30:210, 140:320]
    for person, shift in (("anna", 0), ("anna", 4), ("bert", 8)):
        (root / person).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(head, shift, axis=1)).save(root / person / f"{person}_{shift}.jpg", quality=95)
    Image.fromarray(np.full_like(head, 90)).save(root / "anna/anna_9.png")
    (root / "bert/bert_9.webp").write_text("no photo")
    return root


def processes_of(run: "subprocess.Popen[str]", *words: str) -> list[psutil.Process]:
    """Return the processes that a command has started and that have an argument with all of these words."""
    found = []
    for child in psutil.Process(run.pid).children(recursive=True):
        try:
            if any(all(word in argument for word in words) for argument in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found
