"""A headless Chromium for the tests of pages, where one is installed: no download, no driver, the program itself."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
        if (found := shutil.which(name))
    ),
    None,
)
REASON = "no Chromium is installed (chromium, google-chrome)"

# What a page says of itself at some width. It is framed, so that the width is exact, by a page that reads it.
_MEASURE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="f" style="border:0;width:{width}px;height:900px" src="{name}"></iframe>
<pre id="answer"></pre>
<script>
document.getElementById("f").onload = function () {{
  const d = this.contentDocument, w = this.contentWindow;
  const wide = [...d.querySelectorAll("body *")].filter(e => {{
    if (e.closest(".table, svg, pre")) return false;
    const r = e.getBoundingClientRect();
    return r.right > {width} + 1 || r.left < -1;
  }}).map(e => e.tagName + "." + e.className);
  const svgs = [...d.querySelectorAll("svg")].map(e => e.getBoundingClientRect());
  document.getElementById("answer").textContent = JSON.stringify({{
    scroll: d.documentElement.scrollWidth, wide: wide,
    sections: [...d.querySelectorAll("section")].map(e => e.id),
    svgs: svgs.map(r => [Math.round(r.width), Math.round(r.height)]),
    resources: w.performance.getEntriesByType("resource").map(e => e.name),
    background: w.getComputedStyle(d.body).backgroundColor,
    ink: w.getComputedStyle(d.body).color,
    series: w.getComputedStyle(d.documentElement).getPropertyValue("--converted").trim(),
  }});
}};
</script>"""


def measured(page: Path, width: int, profile: Path, *, dark: bool = False) -> dict[str, Any]:
    """What Chromium found on the page at a width in CSS pixels; "console" holds what was said on its console.

    Args:
        page: of the folder that the measuring page is written to as well.
        profile: an empty folder.
    """
    assert PROGRAM is not None
    frame = page.with_name(f"measure-{width}.html")
    frame.write_text(_MEASURE.format(width=width, name=page.name), encoding="utf-8")
    # Read from the disk, a page may not look into another one unless the browser is told so.
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--disable-extensions"]
    options += [f"--user-data-dir={profile}", f"--window-size={max(width, 500)},1000", "--virtual-time-budget=8000"]
    options += ["--enable-logging=stderr", "--v=0", "--no-first-run", "--disable-background-networking"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [PROGRAM, *options, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    answer = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert answer is not None and answer[1], done.stderr[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(answer[1]))
    found["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return found
