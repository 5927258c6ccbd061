"""The HTML page in a browser, where there is one: sorting, filters, narrow screens, both themes."""

import base64
import hashlib
import html as markup
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pages.render import html
from tests.benchmarks.reports import full_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
THEMES = {"light": 1, "dark": 0}

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")

SCRIPT = """
(() => {
  const rows = () => [...document.querySelectorAll("#table tbody tr")];
  const shown = () => rows().filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
  const heads = [...document.querySelectorAll("#table thead th")];
  const head = (title) => heads.find((own) => own.textContent === title);
  const column = (title) => rows().map((row) => row.cells[heads.indexOf(head(title))].textContent);
  const visible = () => heads.filter((own) => own.offsetWidth > 0).length;
  const pick = (name, value) => {
    const select = document.querySelector(`select[name="${name}"]`);
    select.value = value;
    select.dispatchEvent(new Event("change"));
  };
  const count = () => document.getElementById("count").textContent;
  const width = () => [innerWidth, document.documentElement.scrollWidth];
  const found = { dark: matchMedia("(prefers-color-scheme: dark)").matches, start: shown(), width: width() };
  found.page = getComputedStyle(document.body).backgroundColor;
  found.few = visible();
  document.getElementById("all-columns").click();
  found.all = visible();
  document.querySelectorAll("details").forEach((own) => { own.open = true; });
  found.widthOfAll = width();
  const sorted = (title) => {
    head(title).querySelector("button").click();
    return [head(title).getAttribute("aria-sort"), column(title)];
  };
  found.up = sorted("p50, ms");
  found.down = sorted("p50, ms");
  found.scheme = sorted("Scheme");
  found.within = column("p50, ms");
  found.sorts = heads.filter((own) => own.hasAttribute("aria-sort")).map((own) => own.textContent);
  pick("Scheme", "int8");
  found.int8 = [shown(), count()];
  pick("Runtime", "ONNX Runtime");
  found.both = [shown(), count()];
  document.getElementById("clear").click();
  found.cleared = [shown().length, count(), document.getElementById("clear").disabled];
  parent.postMessage(JSON.stringify(found), "*");
})();
"""
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark"><pre id="told"></pre>
<script>addEventListener("message", (event) => { document.getElementById("told").textContent = event.data; });</script>
<iframe src="page.html" style="width: {width}px; height: 900px"></iframe>
"""
"""Windows of browsers have a least width; frames have none."""


def browse(folder: Path, width: int, theme: str) -> tuple[dict[str, Any], str]:
    """Return what SCRIPT finds in a copy of the page whose policy lets it run, and what the browser logs."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    page = html(full_report()).replace("script-src ", f"script-src 'sha256-{digest}' ")
    page = page.replace("</body>", f"<script>{SCRIPT}</script></body>")
    (folder / "page.html").write_text(page, encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.replace("{width}", str(width)), encoding="utf-8")
    assert BROWSER
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"]
    options += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    options += [f"--blink-settings=preferredColorScheme={THEMES[theme]}"]
    done = subprocess.run([BROWSER, *options, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told and told[1], "the script of the test did not run"
    return json.loads(markup.unescape(told[1])), done.stderr


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (375, "dark")])
def test_page_sorts_filters_and_fits(tmp_path: Path, width: int, theme: str) -> None:
    found, log = browse(tmp_path, width, theme)
    assert ":CONSOLE" not in log
    assert found["dark"] == (theme == "dark")
    assert found["page"] == ("rgb(20, 23, 26)" if theme == "dark" else "rgb(255, 255, 255)")
    assert found["width"] == found["widthOfAll"] == [width, width]
    names = [row.name for row in full_report().rows]
    assert found["start"] == names
    assert (found["few"], found["all"]) == (14, 42)
    missing = ["–", "–"]
    figures = ["2.50", "3.00", "4.00", "6.00", "12.0", "21.5", "33.0", "600"]
    assert found["up"] == ["ascending", figures + missing]
    assert found["down"] == ["descending", figures[::-1] + missing]
    assert found["scheme"] == ["ascending", ["fp32"] * 6 + ["int8"] * 4]
    assert found["within"] == ["600", "33.0", "21.5", "12.0", *missing, "6.00", "4.00", "3.00", "2.50"]
    assert found["sorts"] == ["Scheme"]
    int8 = ["student-int8.onnx", "student-int8.pte", "fast|but_.onnx", "student-int8.pte"]
    assert found["int8"] == [int8, "4 of 10 rows"]
    assert found["both"] == [["student-int8.onnx"], "1 of 10 rows"]
    assert found["cleared"] == [10, "10 of 10 rows", True]
