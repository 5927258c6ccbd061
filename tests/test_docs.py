"""The commands in README.md and docs/: each is one that the command line takes, and its pages are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import pocketproof

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
UsageError = typer.BadParameter.__base__
"""Of the click that typer brings with it."""
OF_MODULES = {module: name for name, (module, _) in pocketproof.STAGES.items()}


def shell_lines(page: Path) -> list[str]:
    """Return the lines of a page's blocks of commands, those that go on in the next one joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def stage_of(line: str) -> tuple[str, list[str]] | None:
    """Return the stage that a line calls, as a sub-command or as a script, and its arguments; None for other lines."""
    words = shlex.split(line, comments=True)
    if "pocketproof" in words:
        name, *arguments = words[words.index("pocketproof") + 1 :]
        return name, arguments
    modules = [place for place, word in enumerate(words) if words[place - 1] == "-m" and word in OF_MODULES]
    return (OF_MODULES[words[modules[0]]], words[modules[0] + 1 :]) if modules else None


COMMANDS = [
    pytest.param(*stage, id=f"{page.name}: {' '.join(line.split())}")
    for page in PAGES
    for line in shell_lines(page)
    if (stage := stage_of(line))
]


def parsed(name: str, arguments: list[str]) -> None:
    """Parse a stage's arguments as the command line does, without calling it."""
    commands = typer.main.get_command(pocketproof.build_app(name)).commands
    commands[name].make_context(name, list(arguments))


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_commands_are_what_the_command_line_takes(name, arguments):
    if "--help" not in arguments:
        parsed(name, arguments)


@pytest.mark.parametrize(
    "line",
    [
        "pocketproof distill --teacher runs/dino --data store",  # without --out
        "pocketproof teach dino --data store --out runs/x --backbones y",
        "python -m compress.quantize runs/x --scheme int9 --data store --out runs/y",
        "torchrun --nproc_per_node 2 -m compress.teach dino --data store --out runs/x --epochs many",
    ],
)
def test_other_commands_are_found_out(line):
    with pytest.raises(UsageError):
        parsed(*stage_of(line))


def test_readme_calls_every_stage():
    called = {parameters.values[0] for parameters in COMMANDS}
    assert called >= set(pocketproof.STAGES) - {"demo"}  # which make calls
    assert "make demo" in shell_lines(PAGES[0]) and "make test" in shell_lines(PAGES[0])


def test_studies_that_pages_name_are_there():
    named = {name for page in PAGES for name in re.findall(r"benchmarks\.studies\.(\w+)", page.read_text())}
    assert named and all((ROOT / "benchmarks" / "studies" / f"{name}.py").exists() for name in named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    linked = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    linked += re.findall(r"`(docs/[\w./-]+|tests/[\w./-]+\.py)`", text)
    missing = [link for link in linked if link and not any((at / link).exists() for at in (page.parent, ROOT))]
    assert missing == []


def test_doctor_runs():
    command = [sys.executable, "-W", "ignore", "-m", "pocketproof", "doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "onnxruntime" in done.stdout
