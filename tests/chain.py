"""The chain of stages on rendered videos, as commands in processes of their own, and how two results are compared."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from files import sha256_of

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    said: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """Its error lines; click's box of a wrong argument has others."""
        return [line for line in self.said.splitlines() if line.startswith("error:")]

    def wrong(self, *codes: int) -> str:
        """Say what is wrong with it, or nothing."""
        if "Traceback" in self.said:
            return f"a traceback: {self.said.strip().splitlines()[-1]}"
        if self.code not in codes:
            return f"exit code {self.code}: {' '.join(self.errors) or self.said[-200:]}"
        if self.code == 1 and len(self.errors) != 1:
            return f"{len(self.errors)} error lines"
        return ""


class Running:
    """A command in a process of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "pocketproof", *arguments]
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def kill_after(self, seconds: float) -> None:
        """Kill it as ``kill -9`` does, its main process only, unless it has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def end(self) -> Ended:
        """Wait for its end."""
        said = self._process.communicate()[1]
        return Ended(self._process.returncode, said, time.perf_counter() - self._started)


def run(arguments: list[str], environment: dict[str, str] | None = None) -> Ended:
    """Run a command to its end."""
    return Running(arguments, environment).end()


def _same_tree(one: Path, other: Path) -> bool:
    return sha256_of(one) == sha256_of(other)


def _same_run(one: Path, other: Path) -> bool:
    a, b = (load_file(path / "model.safetensors") for path in (one, other))
    scales = [path / "quantization.json" for path in (one, other)]
    equal = a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    return equal and scales[0].exists() == scales[1].exists() and (not scales[0].exists() or _same_tree(*scales))


def _same_bundle(one: Path, other: Path) -> bool:
    a, b = (json.loads((path / "manifest.json").read_text())["golden"]["outputs"] for path in (one, other))
    close = all(np.allclose(a[name], b[name], atol=1e-6) for name in a)
    return a.keys() == b.keys() and close and run(["verify", str(other)]).code == 0


def _same_reference(one: Path, other: Path) -> bool:
    a, b = (json.loads(path.read_text())["scores"] for path in (one, other))
    return bool(a == b)


def _same_report(one: Path, other: Path) -> bool:
    a, b = (json.loads((path / "report.json").read_text())["rows"] for path in (one, other))
    return [(row["name"], row["status"], row["auc"]) for row in a] == [
        (row["name"], row["status"], row["auc"]) for row in b
    ]


def _same_table(one: Path, other: Path) -> bool:
    a, b = (pd.read_parquet(path).sort_values("video").reset_index(drop=True) for path in (one, other))
    columns = ["video", "status", "score", "verdict"]
    return bool(a[columns].equals(b[columns]))


@dataclass(frozen=True)
class Stage:
    """A stage as the chain calls it, and how two of its results are compared."""

    name: str
    arguments: tuple[str, ...]
    same: Callable[[Path, Path], bool]
    suffix: str = ""

    def into(self, out: Path) -> list[str]:
        """Return its arguments, writing to ``out``."""
        return [*self.arguments, "--out", str(out)]


def stages(base: Path) -> list[Stage]:
    """Return the chain, each stage of which takes what the one before has left in ``base``."""

    def words(line: str) -> tuple[str, ...]:
        return tuple(str(base / word[1:]) if word.startswith("@") else word for word in line.split())

    teach = "teach dino --data @prepare --backbone test_vit --random-weights --unfreeze 1 --epochs 4"
    distill = "distill --teacher @teach --student test_byobnet --data @prepare --epochs 16"
    quantize = "quantize @distill --scheme int8 --data @prepare --calibration-clips 24 --max-auc-drop 1"
    return [
        Stage("prepare", words("prepare @corpus --frames 4 --size 64 --ratios .5,.25,.25 --workers 2"), _same_tree),
        Stage("teach", words(teach), _same_run),
        Stage("distill", words(distill), _same_run),
        Stage("quantize", words(quantize), _same_run),
        Stage("export", words("export @distill @quantize --data @prepare --format executorch,onnx"), _same_bundle),
        Stage("reference", words("reference @teach --data @prepare --repeats 10"), _same_reference, ".json"),
        Stage(
            "bench",
            words("bench @export --data @prepare --reference @reference.json --rounds 1 --repeats 10"),
            _same_report,
        ),
        Stage("detect", words("detect @corpus --bundle @export"), _same_table, ".parquet"),
    ]
