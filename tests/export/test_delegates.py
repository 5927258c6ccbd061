"""ExecuTorch's delegates: a file for each, and what is said of those that cannot run here."""

import json
import shutil
import zipfile
from importlib.metadata import version

import pytest
import torch
from executorch.runtime import Runtime

from compress.runs import own_threshold, pixel_detector, torch_scorer
from compress.scoring import score_split
from export.bundle import Bundle
from export.readme import readme
from export.verify import verify
from models.run import Run
from stage import StageError
from tests.conftest import export_here, forget_hashes, shared
from tests.export.clip_student import frame_run


@pytest.fixture(scope="module")
def delegated(demo_store, tmp_path_factory) -> Bundle:
    """A student of two convolutions for each of ExecuTorch's delegates."""
    options = {"formats": "executorch", "delegate": "vulkan,coreml,xnnpack", "etrecord": True}
    run = frame_run(tmp_path_factory)
    return Bundle(shared(tmp_path_factory, "delegates", lambda out: export_here([run], demo_store, out, **options)))


def test_each_delegate_has_its_file(delegated, real_crops):
    known = Runtime.get().backend_registry.registered_backend_names
    delegates = (("coreml", "CoreMLBackend", "iOS 17 / macOS 14"), ("vulkan", "VulkanBackend", "Android with Vulkan"))
    needed = f"and as the ExecuTorch runtime that the app links, {version('executorch')} or newer"
    for delegate, backend, system in delegates:
        artifact = delegated.artifact(f"test_tiny-fp32-{delegate}.pte")
        assert artifact.delegate == delegate and backend in artifact.programs[0].operators
        assert artifact.delegated_fraction > 0.5
        assert artifact.minimum_os.startswith(system)
        assert needed in artifact.minimum_os
        assert backend.encode() in (delegated.path / artifact.file).read_bytes()
        if backend not in known:
            reason = f"ExecuTorch has no {backend} on this machine"
            assert artifact.not_checked == f"not compared: {reason}" and artifact.cannot_run() == reason
            assert artifact.threshold_from.endswith("in torch: it cannot run where it was exported")
            with pytest.raises(StageError, match=f"fp32-{delegate}.pte cannot run here: {reason}"):
                delegated.load(artifact)
    assert delegated.chosen(None).file == "test_tiny-fp32.pte"
    assert len(delegated.load(delegated.chosen(None))(real_crops)) == 24


@pytest.mark.parametrize(
    ("delegates", "ios", "android"),
    [
        (("", "-coreml", "-vulkan"), "-coreml", ""),
        (("", "-vulkan"), "", ""),
        (("-coreml",), "-coreml", None),
        (("-coreml", "-vulkan"), "-coreml", "-vulkan"),
        (("-vulkan",), None, "-vulkan"),
    ],
)
def test_the_readme_names_for_each_system_a_file_that_runs_there(delegated, delegates, ios, android):
    artifacts = {delegate: delegated.artifact(f"test_tiny-fp32{delegate}.pte") for delegate in delegates}
    text = readme(delegated.manifest.model_copy(update={"artifacts": list(artifacts.values())}))
    for heading, delegate, call in (
        ("## iOS (Swift, ExecuTorch)", ios, 'module.execute("forward", [pixels])'),
        ("## Android (Kotlin, ExecuTorch)", android, 'module.execute("forward", pixels)'),
    ):
        section = text.partition(heading)[2].partition("\n## ")[0]
        assert bool(section) == (delegate is not None)
        if delegate is not None:
            artifact = artifacts[delegate]
            assert f"System and runtime: {artifact.minimum_os}." in section and f"// of {artifact.file}\n" in section
            assert call in section
            if "Kotlin" in heading:
                assert ("`org.pytorch:executorch-android-vulkan`" in section) == ("-vulkan" in delegates)


def test_notes_of_a_corpus_are_text_in_the_readme(delegated):
    data = delegated.manifest.data.model_copy(update={"notes": ["<!-- a draft", "two\nlines of *it*"]})
    text = readme(delegated.manifest.model_copy(update={"data": data}))
    assert "Note: &lt;!-- a draft\n" in text and r"Note: two lines of \*it\*" in text


def test_a_threshold_that_is_not_a_file_s_own_is_told(delegated):
    text = readme(delegated.manifest)
    for artifact in delegated.manifest.artifacts:
        told = f"The threshold of `{artifact.file}` and its rate are not its own: {artifact.threshold_from}.\n"
        assert (told in text) == bool(artifact.cannot_run())
        assert artifact.in_core_ml == (artifact.delegate == "coreml")


def test_the_threshold_of_a_file_that_cannot_run_here_is_of_the_store_of_the_export(
    demo_store, opened_store, tmp_path_factory, tmp_path
):
    if "VulkanBackend" in Runtime.get().backend_registry.registered_backend_names:
        pytest.skip("this machine has Vulkan")
    run = shutil.copytree(frame_run(tmp_path_factory), tmp_path / "run")
    told = json.loads((run / "model.json").read_text())
    told["data"] |= {"fingerprint": "of another store"}
    (run / "model.json").write_text(json.dumps(told))
    scores = score_split(torch_scorer(pixel_detector(Run(run)), torch.device("cpu")), opened_store, "val")
    forget_hashes(run)
    export_here([run], demo_store, tmp_path / "bundle", "executorch", delegate="vulkan")
    made = Bundle(tmp_path / "bundle")
    (artifact,) = made.manifest.artifacts
    assert artifact.validation is None and made.manifest.data.fingerprint == opened_store.info.fingerprint
    assert artifact.threshold.value == pytest.approx(scores.choose_threshold().value, abs=1e-6)
    assert artifact.threshold.value != own_threshold(Run(run)).value


def test_a_bundle_with_files_for_other_machines_is_verified(delegated, capsys):
    verify(delegated.path)
    if "VulkanBackend" not in Runtime.get().backend_registry.registered_backend_names:
        assert (
            "vulkan.pte: by its hash only: ExecuTorch has no VulkanBackend on this machine" in capsys.readouterr().out
        )


def test_an_etrecord_lies_beside_its_artifact(delegated):
    for artifact in delegated.manifest.artifacts:
        ((name, meaning),) = artifact.companions.items()
        assert name == artifact.file.replace(".pte", ".etrecord") and "Inspector" in meaning
        assert zipfile.is_zipfile(delegated.path / name)
