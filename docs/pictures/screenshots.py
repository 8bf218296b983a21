"""A terminal session and Flower's list of tasks, both from a real run on a local stack of its own.

    scripts/screenshots

It starts a stack in /tmp/grid, runs the commands of SESSION, sends some requests, writes `terminal.svg` and `flower.png` beside
this file, and stops the stack. It needs a Docker engine, the runtime images (`make images`) and Chromium (`scripts/setup --tests`).
The pictures show times and ids, so each run makes others: no test compares them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = Path("/tmp/grid")  # noqa: S108 - it is shown in the picture, so it must be short
COLUMNS = 100
HELLO = ("invoke", "examples/functions/hello", "--payload", '{"name": "grid"}')
SESSION = (("up", "--detach"), HELLO, HELLO, ("pool",))
REQUESTS = (
    ("invoke", "examples/functions/primes", "--payload", "100000"),
    ("invoke", "examples/functions/failing"),
    ("invoke", "examples/functions/hungry", "--memory-mb", "64"),
    ("invoke", "examples/functions/endless", "--timeout-ms", "1000"),
    ("invoke", "examples/functions/shout", "--handler", "texts.shout", "--payload", '{"text": "hi"}'),
)
CURSOR = re.compile(r"\x1b\[\?25[lh]")
FONT_FACE = re.compile(r"@font-face \{\{.*?\}\}\n", re.DOTALL)
BROWSER_OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def main() -> None:
    """Run everything, then stop the stack."""
    if FOLDER.exists():
        sys.exit(
            f"{FOLDER} exists: a stack runs there, or was not cleaned up. Run `nanogrid down --data-dir {FOLDER}` and remove it."
        )
    try:
        draw_terminal([(command, run(*command)) for command in SESSION])
        for command in REQUESTS:
            run(*command)
        photograph(flower_address() + "/tasks", HERE / "flower.png")
    finally:
        run("down")
        shutil.rmtree(FOLDER, ignore_errors=True)


def run(*command: str) -> str:
    """What a `nanogrid` command prints on a terminal, colors included and animations left out."""
    environment = {
        **os.environ,
        "NANOGRID_LOCAL_DIR": str(FOLDER),
        "FORCE_COLOR": "1",
        "TTY_INTERACTIVE": "0",
        "COLUMNS": str(COLUMNS),
    }
    done = subprocess.run(
        [Path(sys.executable).with_name("nanogrid"), *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return CURSOR.sub("", done.stdout).rstrip()


def draw_terminal(session: list[tuple[tuple[str, ...], str]]) -> None:
    """Write a session as an SVG that loads no font from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    for command, output in session:
        words = " ".join(word if re.fullmatch(r"[\w/.=-]+", word) else f"'{word}'" for word in ("nanogrid", *command))
        console.print(Text("$ ", style="green").append(words, style="bold"), soft_wrap=True)
        console.print(Text.from_ansi(output), soft_wrap=True)
        console.print()
    picture = console.export_svg(
        title="NanoGrid on one machine",
        theme=DIMMED_MONOKAI,
        code_format=FONT_FACE.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code, monospace", "monospace"),
        unique_id="terminal",
    )
    (HERE / "terminal.svg").write_text(picture)


def flower_address() -> str:
    """Where the stack's Flower listens."""
    parts = json.loads(run("status", "--json"))["parts"]
    return next(str(part["address"]) for part in parts if part["name"] == "flower")


def photograph(url: str, path: Path) -> None:
    """Write what Chromium shows of a page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=BROWSER_OPTIONS)
        page = browser.new_page(viewport={"width": 1400, "height": 640})
        page.goto(url)
        page.wait_for_selector("tbody tr td")
        page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    main()
