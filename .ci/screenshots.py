"""Pictures of a run's report page for the documentation, taken in a real browser.

python .ci/screenshots.py runs/tools/p2o-0 docs/report/run
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from p2o.reports.page import write_report
from p2o.reports.run_data import load_run

VIEWS = {"light": ("light", 1200, 1000), "dark": ("dark", 1200, 1000)}


def main(run: Path, pictures: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as started:
        page_file = Path(scratch) / "report.html"
        write_report([load_run(run)], page_file)
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (scheme, width, height) in VIEWS.items():
            page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
            page.goto(page_file.as_uri())
            page.locator("html[data-ready=yes]").wait_for(state="attached")
            page.locator(".main-svg").first.wait_for()
            page.screenshot(path=f"{pictures}-{name}.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
