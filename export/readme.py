"""The bundle's ``README.md``: what an app developer does with it, step by step, on each platform."""

from pathlib import PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined

from export.bundle import DETECTOR_NAMES, Artifact, Manifest
from export.coreml import MINIMUM_OS
from export.runtimes import Runtime


def _compared(artifact: Artifact) -> str:
    """Say in a few words how near an artifact came to its run, and who computed that."""
    if artifact.not_checked:
        return artifact.not_checked
    last = artifact.parity[-1]
    near = f"within {last.max_difference:.1g}, {last.logit_snr_db:.0f} dB"
    return f"{near}, evaluated {artifact.evaluated_by}" if artifact.evaluated_by else near


def readme(manifest: Manifest) -> str:
    """Return the text, Markdown, of a bundle with this manifest."""
    pages = Environment(loader=PackageLoader("export", ""), undefined=StrictUndefined, autoescape=False)  # noqa: S701

    def file(runtime: Runtime) -> str:
        """Return the file of a runtime's artifact, the smallest; nothing if there is none."""
        own = [artifact for artifact in manifest.artifacts if artifact.runtime == runtime]
        return min(own, key=lambda artifact: artifact.bytes).file if own else ""

    programs = manifest.artifacts[0].programs
    return pages.get_template("readme.md.j2").render(
        manifest=manifest,
        frame=manifest.clip.per == "frame",
        size=manifest.crop.rule.size,
        width=programs[0].output.shape[-1],
        detector=DETECTOR_NAMES[manifest.crop.detector].capitalize(),
        minimum_os=MINIMUM_OS,
        compared=_compared,
        file=file,
        stem=lambda runtime: PurePath(file(runtime)).stem or "THE-MODEL",
    )
