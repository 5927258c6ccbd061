"""README.md and docs/: commands, options, defaults and error lines are the code's, and every stage has a page."""

import ast
import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import pocketproof
from tests.chain import stages

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
    words = shlex.split(line.partition(" > ")[0], comments=True)
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


@functools.cache
def command_of(name: str) -> Any:
    """Return the command of a stage."""
    return typer.main.get_command(pocketproof.build_app(name)).commands[name]


def parsed(name: str, arguments: list[str]) -> None:
    """Parse a stage's arguments as the command line does, without calling it."""
    command_of(name).make_context(name, list(arguments))


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_commands_are_what_the_command_line_takes(name, arguments):
    if "--help" not in arguments:
        parsed(name, arguments)


@pytest.mark.parametrize("stage", stages(Path("base")), ids=lambda stage: stage.name)
def test_commands_of_the_torture_are_what_the_command_line_takes(stage):
    name, *arguments = stage.into(Path("out"))
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


def stages_of(page: Path) -> list[str]:
    """Return the stages that a page is of: its title names them, as in ``# `prepare` and `inspect`: ...``."""
    title = page.read_text(encoding="utf-8").partition("\n")[0]
    return [name for name in re.findall(r"`(\w+)`", title.partition(":")[0]) if name in pocketproof.STAGES]


STAGE_PAGES = [page for page in PAGES if stages_of(page)]


def test_every_stage_has_a_page():
    assert sorted(stage for page in STAGE_PAGES for stage in stages_of(page)) == sorted(
        set(pocketproof.STAGES) - {"demo", "doctor"}
    )


def rows_of(page: Path) -> list[tuple[str, str]]:
    """Return each option of a page's table of options with its default, as they are written there."""
    section = page.read_text(encoding="utf-8").partition("\n## Options\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "--" in line]
    rows = [row for row in rows if row[0].startswith("`--")]
    found = []
    for names, defaults, _ in rows:
        options = re.findall(r"`(--[\w-]+)`", names)
        several = [cell.strip() for cell in re.split(r"[,;] (?=`|none$|off$|none,|off,)", defaults)]
        found += zip(options, several if len(options) > 1 else [defaults], strict=True)
    return found


def written(default: object) -> str | None:
    """Return how a table of options writes a default; None where it says in words what takes its place."""
    if default is None or default is False:
        return "none" if default is None else "off"
    return f"`{default}`"


@pytest.mark.parametrize("page", STAGE_PAGES, ids=lambda page: page.name)
def test_tables_name_every_option_and_its_default(page):
    options: dict[str, set[str | None]] = {}
    for stage in stages_of(page):
        for parameter in command_of(stage).params:
            if parameter.opts[0].startswith("--") and not parameter.required:
                options.setdefault(parameter.opts[0], set()).add(written(parameter.default))
    rows = rows_of(page)
    assert {option for option, _ in rows} == set(options)
    for option, default in rows:
        in_words = "none" in options[option] and not default.startswith("`")
        assert in_words or default in options[option], f"{option}: {default}"


def sayings(path: Path) -> list[list[str | None]]:
    """Return a module's strings, None for each value in them; not those that are of values alone."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
        fixed = "".join(text for text in texts if isinstance(text, str))
        if all(text is None or isinstance(text, str) for text in texts) and len(fixed) > 12:
            found.append(texts)
    return found


def says(saying: list[str | None], line: str) -> bool:
    """Tell whether a string of the code can become a line."""
    if not all(text in line for text in saying if text):  # which is seldom so, and quickly told
        return False
    return bool(re.fullmatch("".join(".*" if text is None else re.escape(text) for text in saying), line))


SAYINGS = [
    saying
    for room in ("data", "models", "compress", "export", "benchmarks")
    for path in (ROOT / room).rglob("*.py")
    for saying in sayings(path)
] + [saying for path in ROOT.glob("*.py") for saying in sayings(path)]
ERRORS = [
    pytest.param(error, id=f"{page.name}: {error}")
    for page in STAGE_PAGES
    for error in re.findall(r"^error: (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("error", ERRORS)
def test_errors_are_what_the_code_says(error):
    assert any(says(saying, error) for saying in SAYINGS)


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
    assert not done.stderr
