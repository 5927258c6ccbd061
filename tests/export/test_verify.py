"""The check of a bundle: whatever is changed is found, and nothing but the bundle is needed."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from export.bundle import SUMS, Bundle, write_sums
from export.detect import detect
from export.manifest import manifest_schema
from export.rules import CropExample
from export.scorer import VideoScorer
from export.verify import verify
from stage import StageError
from tests.export.clip_student import clip_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(bundle_path, tmp_path):
    return shutil.copytree(bundle_path, tmp_path / "bundle")


@pytest.fixture(scope="module")
def clip_bundle_path(demo_store, tmp_path_factory):
    return clip_bundle(demo_store, tmp_path_factory)


def test_a_bundle_as_it_was_exported_passes(bundle_path, capsys):
    verify(bundle_path, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert len(said["artifacts"]) == 6 and said["files"] == len((bundle_path / SUMS).read_text().splitlines())
    assert all(how.startswith("golden outputs within") for how in said["artifacts"].values())


def test_coreutils_agree(bundle_path):
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=bundle_path, check=True)


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_one_byte_of_any_file_is_missed(copy):
    files = [path for path in sorted(copy.rglob("*")) if path.is_file()]
    assert len(files) > 10
    for file in files:
        before = file.read_bytes()
        _flip_a_byte(file)
        for refuse in (lambda: verify(copy), lambda: detect([Path("video.mp4")], copy)):
            with pytest.raises(StageError) as caught:
                refuse()
            assert "\n" not in str(caught.value) and "video.mp4" not in str(caught.value)
        file.write_bytes(before)
    verify(copy)


def _linked(path: Path) -> None:
    """Put a link to the same file elsewhere in a file's place."""
    path.rename(path.parents[1] / path.name)
    path.symlink_to(path.parents[1] / path.name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / SUMS).unlink(), r"SHA256SUMS is missing or damaged: export the bundle again"),
        (lambda path: (path / "README.md").unlink(), r"is not as it was exported: README.md is missing"),
        (lambda path: (path / "more.txt").write_text("x"), r"more.txt was not exported with it"),
        (lambda path: (path / "link").symlink_to("/etc/passwd"), r"link was not exported with it"),
        (lambda path: (path / "folder").symlink_to("/etc"), r"folder was not exported with it"),
        (lambda path: _linked(path / "README.md"), r"README.md is not a file of its own"),
    ],
)
def test_files_that_come_or_go_are_seen(copy, spoil, message):
    spoil(copy)
    with pytest.raises(StageError, match=message):
        verify(copy)


def test_what_file_managers_leave_in_a_bundle_s_folders_changes_nothing(copy):
    for folder in [copy, *(path for path in copy.rglob("*") if path.is_dir())]:
        for name in (".DS_Store", "._weight.bin"):
            (folder / name).write_bytes(b"x")
    verify(copy)
    opened = Bundle(copy)
    for artifact in opened.manifest.artifacts:
        opened.checked_path(artifact)


def _rewritten(path: Path, change) -> None:
    """Change the manifest and sum it up anew, as one who means it would."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / SUMS).unlink()
    write_sums(path)


@pytest.mark.parametrize(("scheme", "failure"), [("fp32", "scores differ by"), ("int8", "logits are .* dB from")])
def test_golden_outputs_of_another_model_are_refused(copy, scheme, failure):
    def exchange(manifest):
        outputs = manifest["golden"]["outputs"]
        outputs[f"test_byobnet-{scheme}.onnx"] = [1 - score for score in outputs[f"test_byobnet-{scheme}.onnx"]]

    _rewritten(copy, exchange)
    with pytest.raises(StageError, match=rf"test_byobnet-{scheme}.onnx does not give its golden outputs: {failure}"):
        verify(copy)


def test_an_artifact_is_held_to_the_ratio_that_its_gate_asked_for(copy):
    """Logits stretched by a tenth about their mean are 20 log10(11) = 20.8 dB from those that come out."""
    file = "test_byobnet-int8.onnx"

    def stretch(manifest):
        scores = np.array(manifest["golden"]["outputs"][file])
        logits = np.log(scores / (1 - scores))
        stretched = logits.mean() + 1.1 * (logits - logits.mean())
        manifest["golden"]["outputs"][file] = (1 / (1 + np.exp(-stretched))).tolist()
        (artifact,) = [own for own in manifest["artifacts"] if own["file"] == file]
        for number, step in enumerate(artifact["parity"]):
            step["least_snr_db"] = 15.0 if number else 30.0

    _rewritten(copy, stretch)
    with pytest.raises(StageError, match=rf"{file} .* logits are 20\.8 dB from .* at least 30\.0 dB is rounding"):
        verify(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=99), r"is of schema version 99, this program reads 10"),
        (lambda m: m["golden"]["outputs"].popitem(), r"has 0 golden outputs of .* for 32 inputs"),
        (
            lambda m: m["artifacts"][0]["programs"][0].update(bytes=7),
            r"is not of the size and SHA-256 that manif",
        ),
        (
            lambda m: m["artifacts"][0]["programs"][0].update(file="../x"),
            r"names \.\./x where test_byobnet-int8.pte",
        ),
        (lambda m: m["golden"].update(shape=[]), r"manifest.json is not valid: golden.shape"),
        (lambda m: m["golden"].update(shape=[32, 128, 32, 3]), r"golden inputs of .* are no crops of 64 pixels"),
        (lambda m: m["crop"]["rule"].update(size=224), r"manifest.json is not valid: .* no crops of 224 pixels"),
        (lambda m: m["clip"].update(aggregation="score"), r"manifest.json is not valid: .* in clips of 4"),
        (lambda m: m["clip"].update(frames=0), r"manifest.json is not valid: clip.frames"),
        (lambda m: m["artifacts"][0].update(programs=[]), r"has the programs none"),
        (
            lambda m: m["artifacts"][0]["threshold"].update(value=float("nan")),
            r"manifest.json is not valid: NaN is out",
        ),
        (
            lambda m: m["crop"]["examples"][1]["box"].__setitem__(0, float("inf")),
            r"not valid: Infinity is out of range",
        ),
        (lambda m: m.update(artifacts=[]), r"it has no artifact, or two of one name"),
        (lambda m: m["artifacts"].append(m["artifacts"][0]), r"it has no artifact, or two of one name"),
        (lambda m: m["golden"].update(pixels="../x"), r"manifest.json is not valid: golden.pixels"),
        (lambda m: m["crop"]["pixels"].update(boxes=[]), r"not valid: crop.pixels.boxes"),
        (lambda m: m["crop"]["pixels"].update(sha256="0" * 64), r"crop-examples.bin is not what the manifest says"),
        (
            lambda m: m["crop"]["pixels"]["boxes"][0].__setitem__(0, 3.0),
            r"crop-examples.bin is not what the manifest says",
        ),
        (lambda m: m["crop"]["examples"][1].update(side=7), r"the crop of the box .* is not what the manifest's rule"),
    ],
)
def test_a_manifest_that_is_not_this_bundle_s_is_refused(copy, change, message):
    _rewritten(copy, change)
    with pytest.raises(StageError, match=message):
        verify(copy)


def test_a_bundle_without_its_faces_is_checked_by_hashes_and_still_detects(copy, bundle_path, demo_control, capsys):
    shutil.rmtree(copy / "golden")
    (copy / ".DS_Store").write_bytes(b"Finder")
    verify(copy)
    said = capsys.readouterr().out
    assert said.count("by its hash only: golden/ was taken out") == 6
    video = next(demo_control.rglob("*.mp4"))
    detect([video], copy, as_json=True)
    result, scorer = json.loads(capsys.readouterr().out), VideoScorer.load(Bundle(bundle_path))
    assert result["score"] == pytest.approx(scorer.detect(video).score, abs=1e-6)
    assert result["verdict"] == ("fake" if result["score"] > scorer.artifact.threshold.value else "real")


def test_published_schema_is_the_manifest_s(bundle_path):
    assert (ROOT / "docs" / "manifest.schema.json").read_text() == manifest_schema()
    assert (bundle_path / "manifest.schema.json").read_text() == manifest_schema()


def test_corners_lie_where_the_turned_picture_has_the_square(opened_store):
    """Against numpy's own turning of a picture whose pixels hold their places."""
    for rotation in (0, 90, 180, 270):
        width, height = 64, 48
        stored = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
        upright = np.rot90(stored, -rotation // 90)
        found = CropExample.of(opened_store.info.settings.crop, (12.0, 10.0, 22.0, 21.0), (width, height), rotation)
        inside = upright[found.top : found.top + found.side, found.left : found.left + found.side].reshape(-1, 2)
        corners = np.array(found.corners)
        assert (corners.min(0) == inside.min(0)).all() and (corners.max(0) == inside.max(0) + 1).all()
        # The first corner is the upright square's left upper one.
        first = upright[found.top, found.left]
        assert (np.abs(corners[0] - first - 0.5) == 0.5).all()


def _with_what_they_need(names):
    """Return the installed distributions of these names, and of all that they require."""
    found, left = {}, list(names)
    while left:
        distribution = importlib.metadata.distribution(left.pop())
        if distribution.name not in found:
            found[distribution.name] = distribution
            needs = map(Requirement, distribution.requires or [])
            left += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return found.values()


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """An environment that has what docs/export.md says that ``verify`` needs, and nothing else."""
    text = " ".join((ROOT / "docs" / "export.md").read_text().split())
    (named,) = re.findall(r"`pip install --no-deps \.` and `pip install ([\w -]+)`", text)
    folder = tmp_path_factory.mktemp("packages")
    for distribution in _with_what_they_need(named.split()):
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    assert not (folder / "torch").exists() and (folder / "onnxruntime").exists()
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}


def _python(environment, *arguments: str, folder: Path = ROOT) -> str:
    command = [sys.executable, "-S", *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_bundle_is_verified_without_torch(bundle_path, without_torch):
    said = json.loads(_python(without_torch, "-m", "export.verify", str(bundle_path), "--json"))["artifacts"]
    for file, how in said.items():
        if not file.endswith(".onnx"):
            missing = ("coremltools",) if file.endswith(".mlpackage") else ("executorch", "torch")
            assert how in [f"by its hash only: the package {name} is not installed" for name in missing]
        else:
            assert how.startswith("golden outputs within")


@pytest.mark.parametrize("name", ["bundle_path", "clip_bundle_path"])
def test_the_readme_s_program_gives_the_golden_scores(name, without_torch, request):
    folder = request.getfixturevalue(name)
    text = (folder / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    said = _python(
        {**without_torch, "PYTHONPATH": without_torch["PYTHONPATH"].split(os.pathsep)[1]}, "-c", program, folder=folder
    )
    difference, verdicts = said.splitlines()
    assert float(difference.rpartition(" ")[2]) < 1e-5
    bundle = Bundle(folder)
    file = re.search(r'file = manifest\["golden"\], "(.*?)"', program)[1]
    artifact = bundle.artifact(file)
    expected = ["fake" if score > artifact.threshold.value else "real" for score in bundle.golden_outputs(artifact)]
    assert verdicts == str(expected)


@pytest.mark.parametrize("name", ["bundle_path", "clip_bundle_path"])
def test_the_readme_names_every_file_and_input(name, request):
    folder = request.getfixturevalue(name)
    text, manifest = (folder / "README.md").read_text(), Bundle(folder).manifest
    for artifact in manifest.artifacts:
        assert f"`{artifact.file}`" in text and f"| {artifact.threshold.value:.9g} |" in text
        for program in artifact.programs:
            assert all(given.name in text for given in program.inputs) and program.output.name in text
    assert manifest.crop.text in text and manifest.clip.text in text and "{{" not in text and "THE-MODEL" not in text
    assert "`com.microsoft.onnxruntime:onnxruntime-android`" in text
    hop = f" and `hop` is {manifest.clip.hop}" if manifest.clip.per == "clip" else ""
    assert f"Here `frames` is {manifest.clip.frames}{hop}." in text


def test_the_readme_names_the_folder_whose_two_programs_belong_together(clip_bundle_path):
    text, manifest = (clip_bundle_path / "README.md").read_text(), Bundle(clip_bundle_path).manifest
    assert (
        manifest.clip.frame_rate
        and f"on videos of {manifest.clip.frame_rate:.4g} frames a second (median). Far from that, as at 1.5 times"
        in text
    )
    clip, size = manifest.clip, manifest.crop.rule.size
    assert f"`pixels`, [1, {clip.frames}, {size}, {size}, 3] of bytes" in text
    steps = {artifact.runtime: artifact.file for artifact in manifest.artifacts if artifact.method == "steps"}
    swift = text.partition("## iOS (Swift, ExecuTorch)")[2].partition("## ")[0]
    for call in ('module.execute("embed", [pixels])', 'module.execute("score", [clip, counts])', steps["executorch"]):
        assert call in swift
    folders = {"coreml": "`embed.mlpackage` and `score.mlpackage` of the folder `{}`", "executorch": "(path)  // of {}"}
    folders["onnxruntime"] = "(embedPath, options)  // of {}/embed.onnx"
    for runtime, file in steps.items():
        assert folders[runtime].format(file) in text


def test_onnx_runtime_tells_nobody_of_a_bundle(bundle_path, without_torch, tmp_path):
    hidden = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in without_torch.items() if name not in hidden}
    places = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    _python(environment | places, "-m", "export.verify", str(bundle_path))
    assert not [path for path in tmp_path.rglob("*") if path.name in (".ses", "deviceid", "onnxruntime.db")]
