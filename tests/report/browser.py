"""A headless Chromium for tests of pages; where there is none, they are skipped."""

import contextlib
import shutil

import pytest

# Milliseconds: a busy machine takes its time, and a page that hangs is still found.
PATIENCE = 180_000
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextlib.contextmanager
def chromium():
    """Yield a browser; skip, with the reason, where it can't be had."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no browser tests: pip install playwright"
    )
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no browser tests: no Chromium here (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        # Containers have no user namespaces for the sandbox; the pages are ours.
        found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


def provenance(page):
    """Return {name: words} of where a page comes from."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("#provenance dt")]
          .map((name) => [name.textContent, name.nextElementSibling.textContent]))"""
    )


def reads_well(page):
    """Hold a page to both widths and both colours; it is in the light.

    Nothing is wider than the screen, and every figure, drawn anew, fills its place and
    is in the page's ink, which stands out from the paper.
    """
    # One change at a time, each of which draws all figures anew.
    for width, scheme in ((390, "light"), (390, "dark"), (1400, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(
            """() => document.documentElement.scrollWidth <= innerWidth &&
              [...document.querySelectorAll(".panel:not(.empty) .plot")]
              .every((plot) => plot.layout.font.color === css("--ink") &&
                plot.querySelector(".main-svg").getBoundingClientRect().right
                  <= innerWidth)""",
            timeout=20_000,
        )
        ink, paper = page.evaluate(
            "[css('--ink'), css('--paper')].map((color) =>"
            " parseInt(color.slice(1, 3), 16))"
        )
        assert (ink - paper > 128) if scheme == "dark" else (paper - ink > 128)


@contextlib.contextmanager
def opened(browser, path, width=1400, scheme="light"):
    """Yield a page from disk; it must load nothing else and raise no error."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on(
        "console",
        lambda said: page.errors.append(said.text) if said.type == "error" else None,
    )
    page.on("dialog", lambda dialog: page.errors.append(f"dialog {dialog.message}"))
    page.goto(path.as_uri())
    yield page
    assert page.errors == []
    outside = [
        url for url in page.asked if not url.startswith(("file:", "blob:", "data:"))
    ]
    assert outside == []
    context.close()
