"""The bundle's ``README.md``: what an app developer does with it, step by step, on each platform."""

from pathlib import PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined

from export.bundle import Manifest
from export.coreml import MINIMUM_OS
from export.rules import DETECTOR_NAMES
from export.runtimes import Runtime


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
        detector=DETECTOR_NAMES[manifest.crop.detector],
        minimum_os=MINIMUM_OS,
        file=file,
        stem=lambda runtime: PurePath(file(runtime)).stem or "THE-MODEL",
    )
