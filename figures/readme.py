"""Draw the README's picture: the explorer on a run of the bundled model, as a browser shows it.

Needs a Chromium on the PATH, which Playwright drives.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import dlm_lens as dl
from dlm_lens.demo import PROMPT

OUT = Path(__file__).parent / "explorer.png"


def main() -> None:
    browser_path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser_path is None:
        sys.exit("no Chromium on the PATH (on Debian: apt-get install chromium)")
    trace = dl.capture(dl.load("tiny"), PROMPT, gen_length=128, steps=64)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "explorer.html"
        dl.explore(trace).save_html(page_file)
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 1008}, device_scale_factor=1.25)
        page.goto(page_file.as_uri())
        page.wait_for_selector("canvas")
        page.keyboard.press("Home")
        for _ in range(20):
            page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)
        page.screenshot(path=OUT)
        browser.close()
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
