"""Open a bundle (artifacts, golden inputs and outputs, manifest), check its files and load its artifacts."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.manifest import PIXELS, SCHEMA_VERSION, Artifact, Manifest
from export.runtimes import Programs, evaluated_by, open_artifact, program_file, scorer_of
from files import OF_BUNDLES, bytes_of, files_in, is_left_by_system, sha256_of
from parsing import read_json
from stage import Scorer, StageError, WrongArgument

MANIFEST, SUMS = OF_BUNDLES
GOLDEN = PIXELS.partition("/")[0]


def write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` of all files of a bundle, in the format of coreutils' sha256sum."""
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in files_in(folder)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def is_bundle(path: Path) -> bool:
    """Return whether a folder is a bundle, and not a run."""
    return (path / MANIFEST).exists()


class Bundle:
    """A bundle on disk. Raises StageError if it is missing, damaged or of another version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        missing = f"{path} is not a bundle: it has no readable manifest.json"
        self.manifest = read_json(path / MANIFEST, Manifest, SCHEMA_VERSION, missing, "export it again")

    def check_files(self) -> int:
        """Compare every file with ``SHA256SUMS``; return the number of files.

        Raises StageError if a file was changed, added or removed. Two things are allowed: that the whole of ``golden/``
        is missing, since it shows faces, and files that a system or its file manager leaves.
        """
        try:
            lines = (self.path / SUMS).read_text(encoding="utf-8").splitlines()
            expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        except (OSError, UnicodeError, ValueError) as error:
            raise StageError(f"{self.path / SUMS} is missing or damaged: export the bundle again") from error
        entries = [path for path in self.path.rglob("*") if path.is_symlink() or not path.is_dir()]
        entries = [path for path in entries if not is_left_by_system(path.name)]
        names = {path.relative_to(self.path).as_posix() for path in entries} - {SUMS}
        if not self.has_golden:
            expected = {name: digest for name, digest in expected.items() if not name.startswith(f"{GOLDEN}/")}
        for name in sorted(names ^ set(expected)):
            fault = "is missing" if name in expected else "was not exported with it"
            raise StageError(f"{self.path} is not as it was exported: {name} {fault}")
        for path in entries:
            if path.is_symlink() or not path.is_file():
                raise StageError(f"{path} is not a file of its own: export the bundle again")
        for name, digest in expected.items():
            if sha256_of(self.path / name) != digest:
                raise StageError(f"{self.path / name} is not the file that was exported: its SHA-256 differs")
        return len(names)

    @property
    def has_golden(self) -> bool:
        """Whether the bundle still has its golden inputs, which may be removed because they show faces."""
        return (self.path / GOLDEN).exists()

    def artifact(self, file: str) -> Artifact:
        """Return an artifact by its file name. Raises WrongArgument, which lists the known names."""
        for artifact in self.manifest.artifacts:
            if artifact.file == file:
                return artifact
        known = ", ".join(artifact.file for artifact in self.manifest.artifacts)
        raise WrongArgument(f"{self.path} has no artifact {file!r}; it has {known}")

    def chosen(self, file: str | None) -> Artifact:
        """Return the named artifact, or the best that its runtime can run here.

        Prefers one that takes a single sample or any number, then one that scores clips in steps, then the smallest.
        Raises WrongArgument for an unknown name, StageError if no artifact runs here.
        """
        if file is not None:
            return self.artifact(file)
        runnable = [
            artifact
            for artifact in self.manifest.artifacts
            if not artifact.cannot_run() and not evaluated_by(artifact.runtime)
        ]
        if not runnable:
            others = [artifact.file for artifact in self.manifest.artifacts if not artifact.cannot_run()]
            mend = f": give --artifact {others[0]}, which Pocketproof evaluates, slowly" if others else ""
            raise StageError(f"no artifact of {self.path} can run on this machine{mend}")

        def rank(artifact: Artifact) -> tuple[bool, bool, int]:
            return artifact.batch not in (1, None), artifact.method == "clip", artifact.bytes

        return min(runnable, key=rank)

    def checked_path(self, artifact: Artifact) -> Path:
        """Return the path of an artifact after checking its hash. Raises StageError if it is missing or was changed."""
        path = self.path / artifact.file
        if Path(artifact.file).name != artifact.file or artifact.file == ".." or not path.exists():
            raise StageError(f"{self.path} lacks its artifact {artifact.file}: export it again")
        if sha256_of(path) != artifact.sha256:
            raise StageError(f"{path} is not the file that was exported (its SHA-256 differs): export it again")
        return path

    def check_programs(self, artifact: Artifact) -> None:
        """Raise StageError if an artifact's files differ in name, size or SHA-256 from what the manifest states."""
        stated = [(self.checked_path(artifact), (artifact.bytes, artifact.sha256))]
        for program in artifact.programs:
            file = program_file(Path(artifact.file), artifact.runtime, program.name)
            if program.file != file.as_posix():
                raise StageError(f"{self.path / 'manifest.json'} names {program.file} where {file} is: export it again")
            stated.append((self.path / file, (program.bytes, program.sha256)))
        found = {file: (bytes_of(file), sha256_of(file)) for file in dict(stated) if file.exists()}
        for file, size_and_digest in stated:
            if found.get(file) != size_and_digest:
                raise StageError(f"{file} is not of the size and SHA-256 that manifest.json states: export it again")

    def open(self, artifact: Artifact, threads: int = 1) -> Programs:
        """Load the programs by which an artifact scores, after checking its hash.

        Raises StageError if it is missing, was changed or cannot run here, and as ``open_artifact``.
        """
        path = self.checked_path(artifact)
        if reason := artifact.cannot_run():
            raise StageError(f"{path.name} cannot run here: {reason}")
        return open_artifact(path, artifact.runtime, threads, artifact.method)

    def load(self, artifact: Artifact, threads: int = 1) -> Scorer:
        """Load an artifact, as ``open`` does, as a scorer, which returns P(fake), float32 [N]."""
        return scorer_of(self.open(artifact, threads), artifact.method)

    def golden_inputs(self) -> tuple[NDArray[np.generic], ...]:
        """Return the golden inputs as a scorer takes them. Raises StageError if they are missing or were changed."""
        golden = self.manifest.golden
        path = self.path / golden.pixels
        if not path.is_file() or sha256_of(path) != golden.sha256:
            raise StageError(f"{path} is missing or was changed: export the bundle again")
        pixels, valid = np.fromfile(path, np.uint8), golden.valid
        sides = None if valid is None else [len(valid), *dict.fromkeys(map(len, valid))]
        if pixels.size != math.prod(golden.shape) or sides not in (None, golden.shape[:2]):
            raise StageError(f"{path} is not of the shape that manifest.json states: export the bundle again")
        pixels = pixels.reshape(golden.shape)
        return (pixels,) if valid is None else (pixels, np.array(valid))

    def golden_outputs(self, artifact: Artifact) -> NDArray[np.float32]:
        """Return an artifact's P(fake) of the golden inputs, float32 [N]. Raises StageError if one is missing."""
        golden = self.manifest.golden
        outputs = golden.outputs.get(artifact.file, [])
        if len(outputs) != golden.shape[0]:
            raise StageError(
                f"{self.path / 'manifest.json'} has {len(outputs)} golden outputs of {artifact.file} for "
                f"{golden.shape[0]} inputs: export the bundle again"
            )
        return np.array(outputs, np.float32)
