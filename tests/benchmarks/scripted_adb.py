"""An ``adb`` that replays what a phone and the runners on it print, and notes what it was asked."""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kept import KeptMeasurements
from benchmarks.on_phone import PhoneTimer
from benchmarks.rounds import Effort
from benchmarks.rows import list_subjects
from benchmarks.schema import Row

ADB = """\
#!{python}
import json, os, pathlib, sys
here = pathlib.Path({folder!r})
plan = json.loads((here / "plan.json").read_text())
arguments = sys.argv[1:]
with open(here / "calls.jsonl", "a") as file:
    file.write(json.dumps(arguments) + "\\n")
if arguments == ["devices"]:
    print("* daemon not running; starting now at tcp:5037\\n* daemon started successfully")
    sys.stdout.write("List of devices attached\\n" + "".join(f"{{s}}\\t{{t}}\\n" for s, t in plan["devices"]) + "\\n")
    sys.exit(0)
assert arguments[:2] == ["-s", plan["serial"]], arguments
verb, rest = arguments[2], arguments[3:]
if verb == "push":
    source, target = rest
    assert pathlib.Path(source).is_file(), source
    assert target.startswith("/data/local/tmp/pocketproof-"), target
    print(f"{{source}}: 1 file pushed, 0 skipped.")
elif verb == "logcat":
    assert rest[:4] == ["-d", "-v", "raw", "--pid=4242"] and rest[4:] == ["-s", "ExecuTorch"], rest
    sys.stdout.write(plan["logcat"])
elif rest[0].startswith("getprop "):
    print(plan["properties"].get(rest[0].removeprefix("getprop "), ""))
elif rest[0].startswith("cd "):
    print(4242)
    kind = "executor_runner" if "./executor_runner" in rest[0] else "perf_test"
    sys.stdout.write(plan["prints"][kind])
    sys.stderr.write(plan["stderr"])
    sys.exit(plan["code"])
else:
    assert rest[0].split()[0] in ("mkdir", "chmod", "rm"), rest
"""


@dataclass
class Adb:
    """The scripted ``adb`` and what it was asked."""

    folder: Path
    plan: dict[str, object]

    def change(self, **changes: object) -> None:
        self.plan |= changes
        (self.folder / "plan.json").write_text(json.dumps(self.plan))

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    @property
    def ran(self) -> list[str]:
        """The commands by which runners were called, without the folder."""
        shells = [call[3] for call in self.calls if call[2:3] == ["shell"]]
        return [command.partition("exec ")[2] for command in shells if "exec " in command]

    @property
    def pushed(self) -> dict[str, Path]:
        """Each file's own path by its name on the phone."""
        return {Path(call[4]).name: Path(call[3]) for call in self.calls if call[2:3] == ["push"]}

    @property
    def left(self) -> set[str]:
        """Folders that were made and not removed."""
        shells = [call[3].split() for call in self.calls if call[2:3] == ["shell"]]
        made = {words[1] for words in shells if words[0] == "mkdir"}
        assert made
        return made - {words[2] for words in shells if words[:2] == ["rm", "-rf"]}


PHONE = "Google Pixel 8 (Tensor G3), Android 15"


def timed(path: Path, runners: list[Path], threads: list[int], effort: Effort) -> dict[tuple[str, int], Row]:
    """Return the rows of a bundle on the scripted phone, by name and threads."""
    subjects = list_subjects([path], threads, "here")
    with KeptMeasurements(runners[0].parents[1] / "report", "here") as kept:
        PhoneTimer.connect(runners).measure(subjects, effort, kept)
    return {(subject.row.name, subject.row.threads): subject.row for subject in subjects}
