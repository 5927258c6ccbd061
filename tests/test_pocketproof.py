"""The command line as a user calls it: exit codes and messages."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import pocketproof
from stage import StageError

ROOT = Path(__file__).parents[1]
ROOMS = ("data", "models", "compress", "export", "benchmarks")


def _call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "pocketproof", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _refused(capsys, monkeypatch, *arguments: object) -> tuple[int, str]:
    """Call the command in this process (torch is imported already) and return its exit code and its one line."""
    monkeypatch.setattr(sys, "argv", ["pocketproof", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        pocketproof.main()
    return stopped.value.code, capsys.readouterr().err


def test_help_lists_every_stage():
    done = _call("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in pocketproof.STAGES)


def test_the_version_is_that_of_the_package(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pocketproof", "--version"])
    with pytest.raises(SystemExit) as stopped:
        pocketproof.main()
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert (stopped.value.code, capsys.readouterr().out) == (0, f"pocketproof {project['version']}\n")


@pytest.mark.parametrize("name", [name for name in pocketproof.STAGES if name != "demo"])
def test_stage_is_one_function_as_sub_command_and_as_script(name, capsys, monkeypatch):
    module = sys.modules.get(pocketproof.STAGES[name][0]) or __import__(pocketproof.STAGES[name][0], fromlist=["x"])
    source = ast.parse(Path(module.__file__).read_text())
    assert ast.unparse(source.body[-1]) == f"if __name__ == '__main__':\n    run_as_script({name})"
    monkeypatch.setattr(sys, "argv", ["pocketproof", name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        pocketproof.main()
    assert stopped.value.code == 0
    assert "Example: pocketproof" in " ".join(capsys.readouterr().out.split())


def test_a_stage_lies_in_a_module_of_its_name():
    """So that ``python -m room.stage`` is the stage."""
    assert {name: module.rpartition(".")[2] for name, (module, _) in pocketproof.STAGES.items()} == {
        name: name for name in pocketproof.STAGES
    }


def test_stage_as_a_script_shows_the_same_help():
    script = subprocess.run(
        [sys.executable, "-m", "data.prepare", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert script.returncode == 0
    assert script.stdout.split("Turn videos")[1] == _call("prepare", "--help").stdout.split("Turn videos")[1]


@pytest.mark.parametrize("arguments", [["prepare"], ["nonsense"], ["prepare", "x", "--out", "y", "--frames", "0"]])
def test_wrong_arguments_exit_with_2(arguments):
    done = _call(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_missing_source_is_one_line(tmp_path):
    done = _call("prepare", tmp_path / "none", "--out", tmp_path / "store")
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'none'} does not exist: give the folder, or the .csv file, of a corpus\n"


def test_empty_folder_is_one_line(tmp_path):
    (tmp_path / "corpus" / "real").mkdir(parents=True)
    done = _call("prepare", tmp_path / "corpus", "--out", tmp_path / "store")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'corpus'} holds no video (.3g2, .3gp, ")
    assert len(done.stderr.splitlines()) == 1


def test_source_without_any_video_that_can_be_read(tmp_path):
    for kind in ("real", "fake"):
        (tmp_path / "corpus" / kind).mkdir(parents=True)
        (tmp_path / "corpus" / kind / "x.mp4").write_text("text")
    done = _call("prepare", tmp_path / "corpus", "--out", tmp_path / "store")
    assert done.returncode == 1
    assert "error: no file of 2 gave a clip: the reasons are in" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teach", "dino", "--data", "{tmp}/none", "--out", "{tmp}/out"], "/none does not exist"),
        (["distill", "--teacher", "{tmp}/none", "--data", "{store}", "--out", "{tmp}/out"], "/none does not exist"),
        (["quantize", "{tmp}/none", "--data", "{store}", "--out", "{tmp}/out"], "/none does not exist"),
        (["detect", "{tmp}/none.mp4", "--bundle", "{tmp}/none"], "/none does not exist"),
        (["detect", "{tmp}/none.mp4", "--bundle", "{bundle}"], "cannot be read as a video: No such file"),
        (["detect", "{text}", "--bundle", "{bundle}"], "cannot be read as a video: Invalid data"),
        (["detect", "{text}", "--bundle", "{store}"], "is not a bundle"),
        (["bench", "{bundle}", "--data", "{store}", "--reference", "{tmp}/none", "--out", "{tmp}/out"],
         "cannot be read: make it with pocketproof reference"),
        (["teach", "dino", "--data", "{store}", "--out", "{store}", "--random-weights"], "already exists: remove it"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_1(
    arguments, message, capsys, monkeypatch, tmp_path, demo_store, bundle_path
):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    names = {"tmp": tmp_path, "store": demo_store, "bundle": bundle_path, "text": text}
    code, said = _refused(capsys, monkeypatch, *[argument.format(**names) for argument in arguments])
    assert code == 1
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "{tmp}", "--out", "{tmp}/out", "--ratios", "1,2"], "--ratios '1,2': give three shares"),
        (["prepare", "{tmp}", "--out", "{tmp}/out", "--modalities", "smell"], "--modalities 'smell': give rgb"),
        (["prepare", "{tmp}", "--out", "{tmp}/out", "--flow", "raft"], "--flow and --flow-weights are for flow"),
        (["prepare", "{tmp}", "--out", ""], "an argument is empty"),
        (["prepare", "{tmp}", "--out", "{tmp}/out", "--label", "real", "--identity-pattern", "("],
         "--identity-pattern '(' is not a regular expression"),
        (["teach", "dino", "--data", "{store}", "--out", "s3://bucket/run"], "is a URL, and a path of this machine"),
        (["teach", "dino", "--data", "s3://bucket/store", "--out", "{tmp}/out"], "is a URL, and a path of this"),
        (["detect", "{tmp}/a.mp4", "--bundle", "{tmp}", "--out", "s3://b/t.parquet"], "is a URL, and a path of this"),
        (["inspect", "{store}", "--sheet", "{tmp}/a.jpg"], "give a name that ends with .png"),
        (["distill", "--data", "{store}", "--out", "{tmp}/out", "--loss", "klm"], "--loss 'klm' is unknown"),
        (["distill", "--data", "{store}", "--out", "{tmp}/out", "--loss", "classification",
          "--augment", "spin", "--views", "2"], "--augment spin is not known"),
        (["quantize", "{tmp}", "--data", "{store}", "--out", "{tmp}/out", "--scheme", "fp16", "--passes", "2"],
         "--scheme fp16 has no use for --passes: leave it out"),
        (["export", "{tmp}", "--data", "{store}", "--out", "{tmp}/out", "--format", "tflite"], "--format 'tflite' is"),
        (["export", "{tmp}", "--data", "{store}", "--out", "{tmp}/out", "--batch", "x"], "--batch 'x' is neither"),
        (["evaluate", "{tmp}", "--data", "{tmp}", "--recompress", "vp9:1"], "--recompress 'vp9:1': give h264:CRF"),
        (["bench", "{tmp}", "--data", "{tmp}", "--reference", "{tmp}", "--out", "{tmp}/out", "--threads", "all"],
         "--threads 'all': give one or more counts"),
        (["detect", "{tmp}/a.mp4", "--bundle", "{tmp}", "--out", "{tmp}/t.csv"], "is not a .parquet: name one"),
        (["detect", "data://x", "--bundle", "{tmp}"], "data://x is not the URL of a file or folder"),
        (["distill", "--data", "{store}", "--out", "{tmp}/out", "--loss", "classification", "--student", "repvit"],
         "timm has no backbone 'repvit'; some that it has: repvit_m0_9"),
        (["teach", "dino", "--data", "{store}", "--out", "{tmp}/out", "--backbone", "test_byobnet", "--random-weights"],
         "the last blocks of a ByobNet cannot be trained alone"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch, tmp_path, demo_store):
    names = {"tmp": tmp_path, "store": demo_store}
    code, said = _refused(capsys, monkeypatch, *[argument.format(**names) for argument in arguments])
    assert code == 2
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]


def test_missing_weights_stop_the_command(capsys, monkeypatch, tmp_path, demo_store):
    code, said = _refused(capsys, monkeypatch, "teach", "dino", "--data", demo_store, "--out", tmp_path / "out")
    assert code == 1
    assert "weights of vit_base_patch14_dinov2 are not on this machine and the hub cannot be reached" in said
    assert "--weights FILE, or --random-weights" in said


def test_detect_prints_what_the_scorer_says_as_json(capsys, monkeypatch, bundle_path, demo_control):
    from export.bundle import Bundle
    from export.scorer import VideoScorer

    video = demo_control / "real" / "001.mp4"
    monkeypatch.setattr(sys, "argv", ["pocketproof", "detect", str(video), "--bundle", str(bundle_path), "--json"])
    with pytest.raises(SystemExit) as stopped:
        pocketproof.main()
    assert stopped.value.code == 0
    result = json.loads(capsys.readouterr().out)
    scorer = VideoScorer.load(Bundle(bundle_path))
    threshold = scorer.artifact.threshold.value
    assert result["score"] == pytest.approx(scorer.detect(video).score, abs=1e-6)
    assert (result["verdict"], result["threshold"]) == ("fake" if result["score"] > threshold else "real", threshold)


def test_a_real_talking_video_s_score_is_the_mean_of_its_frames(bundle_path):
    from export.bundle import Bundle
    from export.scorer import VideoScorer

    video = ROOT.parent / "shared" / "data" / "talking" / "d10.mp4"
    if not video.exists():
        pytest.skip("shared/data/talking is not here")
    scorer, scores = VideoScorer.load(Bundle(bundle_path)), []
    found = scorer.detect(video, lambda _, of_clip: scores.extend(of_clip.tolist()))
    assert found.frames_used == len(scores) > 400
    assert found.score == pytest.approx(np.mean(scores), abs=1e-6)
    assert found.verdict == ("fake" if found.score > scorer.artifact.threshold.value else "real")


def test_stand_in_is_never_silent():
    with pytest.raises(StageError, match="call it as the first argument"):
        pocketproof._stand_in()


def calls():
    """Yield every call in the product: its file, what is called, its options and its text."""
    for path in [*ROOT.glob("*.py"), *(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                yield path.relative_to(ROOT), ast.unparse(node.func), options, ast.unparse(node)


def test_text_files_are_utf_8_in_any_locale():
    found = [
        f"{path}: {text}"
        for path, name, options, text in calls()
        if name.endswith((".read_text", ".write_text")) and "encoding" not in options
    ]
    assert found == []


def test_nothing_unpickles_without_restriction_or_runs_text():
    """``torch.export.load`` unpickles; a shell string may hold any command."""
    found = []
    for path, name, options, text in calls():
        loose = name == "torch.load" and options.get("weights_only") != "True"
        unpickles = name in ("torch.export.load", "pickle.load", "pickle.loads", "joblib.load", "np.load")
        safe_arrays = name == "np.load" and options.get("allow_pickle", "False") == "False"
        runs_text = name in ("eval", "exec", "os.system") or options.get("shell", "False") != "False"
        if loose or (unpickles and not safe_arrays) or runs_text:
            found.append(f"{path}: {text}")
    assert found == []


def test_imports_point_one_way():
    rank = {"data": 0, "models": 0, "compress": 1, "export": 2, "benchmarks": 3, "pocketproof": 4}
    wrong = []
    for path in [
        *ROOT.glob("*.py"),
        *(p for room in rank if (ROOT / room).is_dir() for p in (ROOT / room).rglob("*.py")),
    ]:
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in (name.split(".")[0] for name in names):
                if top in rank and top != room and rank[top] >= rank.get(room, -1):
                    wrong.append(f"{os.path.relpath(path, ROOT)} imports {top}")
    assert wrong == []
