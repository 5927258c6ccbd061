"""``prepare`` as a user runs it: in processes that can be killed, over files that can kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
