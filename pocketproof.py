"""The command ``pocketproof``: one sub-command per stage."""

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from command import call
from stage import StageError

STAGES = {
    "demo": ("benchmarks.demo", "Run the whole chain on data it makes itself, without a network."),
    "prepare": ("data.prepare", "Turn videos into clips of one tracked face."),
    "inspect": ("data.inspect", "Count what is in a ClipStore and draw a contact sheet."),
    "teach": ("compress.teach", "Fine-tune a teacher."),
    "distill": ("compress.distill", "Distill a teacher into a student small enough for a phone."),
    "quantize": ("compress.quantize", "Turn a run into one that computes in fewer bits."),
    "evaluate": ("export.evaluate", "Measure a run or an artifact on any corpus, also on recompressed crops."),
    "export": ("export.export", "Write runs as artifacts for phones, each checked on real crops."),
    "verify": ("export.verify", "Check that a bundle is whole and gives what it gave; needs no torch."),
    "reference": ("benchmarks.reference", "Measure a teacher: scores, latency, memory."),
    "bench": ("benchmarks.bench", "Measure every artifact and run and write the report."),
    "report": ("benchmarks.report", "Put the reports of several machines into one."),
    "detect": ("export.detect", "Score videos exactly as the phone app would."),
    "doctor": ("benchmarks.doctor", "Say what this machine can do."),
}
"""For each sub-command: its module, which has a function of the same name, and one line of help."""


def build_app(chosen: str) -> typer.Typer:
    """Return the command-line app. Only the chosen stage is imported; the others are there for ``--help`` alone."""
    app = typer.Typer(
        name="pocketproof",
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    app.callback()(_common)
    for name, (module, summary) in STAGES.items():
        stage: Callable[..., Any] = _stand_in
        if name == chosen:
            stage = getattr(importlib.import_module(module), name)
        app.command(name, short_help=summary)(stage)
    return app


def _stand_in() -> None:
    raise StageError("this stage was not imported: call it as the first argument")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"pocketproof {importlib.metadata.version('pocketproof')}")
        raise typer.Exit


def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Makes big deepfake detectors small enough for a phone and proves what that cost."""


def main() -> None:
    """Run the command line."""
    chosen = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    call(lambda: build_app(chosen)())


if __name__ == "__main__":
    main()
