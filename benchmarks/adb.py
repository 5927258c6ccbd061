"""An Android phone over ``adb``."""

import contextlib
import os
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from stage import StageError, last_line, say

TMP = "/data/local/tmp"
"""The phone's folder where ``adb`` may write programs and run them."""
MOST_SECONDS = 900
"""Time limit of one call of ``adb``: a phone that was unplugged may never answer."""
PROPERTIES = {
    "manufacturer": "ro.product.manufacturer",
    "model": "ro.product.model",
    "android": "ro.build.version.release",
    "chip": "ro.soc.model",
}
"""Android's names of the properties that are read."""
MENDS = {
    "unauthorized": "allow USB debugging on its screen",
    "offline": "plug it in again, or call: adb reconnect",
}
"""The mend for each state of a phone that cannot be used."""


def _adb(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Call ``adb``. Raises StageError if it is not on the PATH or does not end in MOST_SECONDS."""
    program = shutil.which("adb")
    if program is None:
        raise StageError("--device adb needs adb on the PATH: install Android's platform-tools")
    try:
        return subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,  # else it reads input that the user's shell has for other commands
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=MOST_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise StageError(f"adb {arguments[-1]} did not end in {MOST_SECONDS} s: is the phone still there?") from error


def _chosen_serial() -> str:
    """Return the serial number in ``ANDROID_SERIAL``, or of the only phone. Raises StageError if it cannot be used."""
    done = _adb(["devices"])
    if done.returncode:
        raise StageError(f"adb devices failed: {last_line(done.stderr, f'exit code {done.returncode}')}")
    lines = done.stdout.partition("List of devices attached")[2].splitlines()
    # A wireless phone's name may hold spaces.
    states = dict(line.split("\t", maxsplit=1) for line in lines if "\t" in line)
    phones = ", ".join(f"{serial} ({state.strip()})" for serial, state in states.items())
    wanted = os.environ.get("ANDROID_SERIAL")
    if not states:
        raise StageError("adb sees no phone: plug one in with USB debugging allowed")
    if not wanted and len(states) > 1:
        raise StageError(f"adb sees several phones: set ANDROID_SERIAL to one of {phones}")
    serial = wanted or next(iter(states))
    if serial not in states:
        raise StageError(f"adb does not see ANDROID_SERIAL={serial}: it sees {phones}")
    if (state := states[serial].split()[0]) != "device":
        raise StageError(f"adb cannot use {phones}: {MENDS.get(state, 'see: adb devices')}")
    return serial


class Phone:
    """A connected phone. Raises StageError, with the mend, if there is none, or several and none is chosen."""

    def __init__(self) -> None:
        self.serial = _chosen_serial()
        values = {name: self.shell(["getprop", key]).stdout.strip() for name, key in PROPERTIES.items()}
        self.properties = {name: value or "not told" for name, value in values.items()}
        maker, model, chip = values["manufacturer"], values["model"], values["chip"]
        full_name = model if model.lower().startswith(maker.lower()) else f"{maker} {model}"
        self.name = f"{full_name}{f' ({chip})' if chip else ''}, Android {self.properties['android']}"

    def require(self) -> None:
        """Raise StageError if the phone is not there any more."""
        if _chosen_serial() != self.serial:
            raise StageError(f"{self.name} is not there any more: plug it in again")

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _adb(["-s", self.serial, *arguments])

    def shell(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the phone's shell and return its result, whether it fails or not."""
        return self._call("shell", shlex.join(command))

    def run(self, command: Sequence[str], folder: str, log_tag: str | None) -> str:
        """Run a program in a folder; return its stdout, stderr and, with ``log_tag``, Android's log of it.

        Raises StageError with the program's last line if it fails.
        """
        done = self._call("shell", f"cd {shlex.quote(folder)} && echo $$ && exec {shlex.join(command)}")
        process, _, printed = done.stdout.partition("\n")
        output = f"{printed}\n{done.stderr}"
        if log_tag and process.strip().isdecimal():  # builds with Android's platform layer print nothing
            logged = self._call("logcat", "-d", "-v", "raw", f"--pid={process.strip()}", "-s", log_tag)
            output += f"\n{logged.stdout}"
        if done.returncode:
            line = last_line(done.stderr, last_line(output, "it said nothing"))
            raise StageError(f"{command[0].removeprefix('./')} ended with exit code {done.returncode}: {line}")
        return output

    def push(self, file: Path, to: str) -> None:
        """Copy a file to the phone. Raises StageError if that fails."""
        done = self._call("push", str(file.resolve()), to)
        if done.returncode:
            raise StageError(
                f"{file} cannot be copied to the phone: {last_line(done.stderr or done.stdout, 'no reason given')}"
            )

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """Make a new folder on the phone, and remove it at the end of the block, also after an error.

        Raises StageError if it cannot be made; one that cannot be removed is named on stderr.
        """
        folder = f"{TMP}/pocketproof-{uuid.uuid4().hex[:12]}"
        if (done := self.shell(["mkdir", folder])).returncode:
            raise StageError(f"{folder} cannot be made on the phone: {last_line(done.stderr, 'no reason given')}")
        try:
            yield folder
        finally:
            try:
                removed = self.shell(["rm", "-rf", folder]).returncode == 0
            except StageError:
                removed = False
            if not removed:
                say(f"{folder} could not be removed from the phone")
