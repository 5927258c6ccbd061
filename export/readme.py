"""The bundle's ``README.md``: what an app developer does with it, step by step, on each platform."""

from collections.abc import Sequence
from pathlib import PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined

from compress.fidelity import LOGIT_LIMIT
from export.coreml import MINIMUM_OS
from export.manifest import OWN_SCORES, Artifact, Manifest
from export.onnx import NEEDS
from export.parity import LEAST_SNR_DB
from export.rules import OTHER_RATE
from export.runtimes import ORT, Delegate, Runtime
from stage import in_markdown

DELEGATES: dict[str, tuple[Delegate, ...]] = {"ios": ("coreml", "xnnpack"), "android": ("xnnpack", "vulkan")}
"""Delegates of a ``.pte`` that run on a system, the one whose file the instructions name first."""


def _shown(manifest: Manifest, runtime: Runtime, delegates: Sequence[Delegate] = ()) -> Artifact | None:
    """Return a runtime's artifact that the instructions name: the smallest of usual form; clips go in steps.

    ``delegates``: of a ``.pte``, those that its system has, the preferred one first.
    """
    usual = [
        artifact
        for artifact in manifest.artifacts
        if artifact.runtime == runtime and artifact.method != "clip" and not artifact.programs[0].file.endswith(ORT)
        if artifact.delegate is None or artifact.delegate in delegates
    ]

    def rank(artifact: Artifact) -> tuple[int, int]:
        return delegates.index(artifact.delegate) if artifact.delegate else 0, artifact.bytes

    return min(usual, key=rank, default=None)


def readme(manifest: Manifest) -> str:
    """Return the README, in Markdown, of a bundle with this manifest."""
    pages = Environment(loader=PackageLoader("export", ""), undefined=StrictUndefined, autoescape=False)  # noqa: S701
    pages.filters["in_markdown"] = in_markdown

    def file(runtime: Runtime) -> str:
        artifact = _shown(manifest, runtime)
        return artifact.file if artifact else ""

    onnx = _shown(manifest, "onnxruntime")
    embeds = [program for artifact in manifest.artifacts for program in artifact.programs if program.name == "embed"]
    rules: dict[str, list[str]] = {}
    for artifact in manifest.artifacts:
        rules.setdefault(artifact.threshold.rule, []).append(artifact.file)
    validations = [artifact.validation for artifact in manifest.artifacts if artifact.validation]
    return pages.get_template("readme.md.j2").render(
        other_rate=OTHER_RATE,
        manifest=manifest,
        frame=manifest.clip.per == "frame",
        size=manifest.crop.rule.size,
        width=embeds[0].output.shape[-1] if embeds else None,
        minimum_os=MINIMUM_OS,
        batch=(onnx and onnx.batch) or 1,
        dynamic=onnx is not None and onnx.batch is None,
        onnx_needs=onnx.minimum_os if onnx else "",
        onnx_version=NEEDS,
        file=file,
        stem=lambda runtime: PurePath(file(runtime)).stem,
        rules=rules,
        own=OWN_SCORES,
        judged=validations[0] if validations else None,
        pte={system: _shown(manifest, "executorch", delegates) for system, delegates in DELEGATES.items()},
        vulkan=any(artifact.delegate == "vulkan" for artifact in manifest.artifacts),
        least_snr_db=LEAST_SNR_DB,
        logit_limit=f"{LOGIT_LIMIT:.0f}",
        share=lambda part: f"{100 * part:.1f} %",
        tools=", ".join(f"{tool} {version}" for tool, version in manifest.tools.items()),
    )
