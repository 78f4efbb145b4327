"""A real browser walks the built site: `make test-site`."""

from pathlib import Path

import pytest

from tests.site.conftest import INTERACTIVE, SITE, complaints, find, prefer, resize

pytestmark = pytest.mark.site

DEMANDED = {
    "index.html", "five-minutes.html", "course.html", "mathematics.html", "guide/operation.html", "api/operation.html",
    "kernels.html", INTERACTIVE,
}  # fmt: skip
SOURCES = [
    "source/kernels/cuda.html",
    "source/kernels/cuda/address/decode.cu.html",
    "_modules/ramnet_np/core/memory.html",
]
BUILT = sorted(page.relative_to(SITE).as_posix() for page in SITE.rglob("*.html"))
PAGES = [page for page in BUILT if not page.startswith(("_modules", "source", "lite"))] + SOURCES
WIDTHS = (390, 1440)
CONTRAST = Path(__file__).with_name("contrast.js").read_text()
SCREENSHOTS = SITE.parent / "screenshots"


def test_the_main_pages_are_walked():
    assert set(PAGES) >= DEMANDED


@pytest.mark.parametrize("width", WIDTHS)
def test_pages(browser, site, width):
    """No error on the console, no broken image, nothing from elsewhere, and nothing wider than the window."""
    resize(browser, width)
    for page in PAGES:
        browser.get(f"{site}/{page}")
        assert complaints(browser) == [], page
        seen = browser.execute_script(
            """
            return {
              broken: [...document.images].filter((i) => i.loading !== "lazy" && !i.naturalWidth).map((i) => i.src),
              loaded: performance.getEntriesByType("resource").map((r) => r.name),
              wide: document.documentElement.scrollWidth - window.innerWidth,
              words: document.body.innerText.trim().length,
            };
            """
        )
        assert seen["broken"] == [], page
        assert [url for url in seen["loaded"] if not url.startswith((site, "data:"))] == [], page
        assert seen["wide"] <= 0, f"{page} is {seen['wide']} px wider than {width}"
        assert seen["words"] > 80, page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_text_can_be_read(browser, site, width, scheme):
    """Contrast of at least 4.5 between text and what lies behind it, and no text below 9 px on the main pages."""
    resize(browser, width)
    prefer(browser, scheme, "reduce")  # digits that fly have a ground of their own
    for page in sorted(DEMANDED):
        browser.get(f"{site}/{page}")
        browser.execute_script("localStorage.removeItem('theme')")
        browser.get(f"{site}/{page}")
        poor = browser.execute_script(CONTRAST)
        assert poor == [], page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_screenshots(browser, site, width, scheme):
    """Leaves pictures of the main pages in docs/_build/screenshots, for whoever wants to look."""
    import base64

    SCREENSHOTS.mkdir(exist_ok=True)
    resize(browser, width)
    prefer(browser, scheme)
    for page in sorted(DEMANDED):
        browser.get(f"{site}/{page}")
        if page == INTERACTIVE:
            for _ in range(8):
                find(browser, "#step").click()
        browser.execute_script("return new Promise((done) => setTimeout(done, 2500));")
        size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": min(size["height"], 3000), "scale": 1}
        png = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})["data"]
        name = page.removesuffix(".html").replace("/", "-").removeprefix("_static-")
        (SCREENSHOTS / f"{name}-{width}-{scheme}.png").write_bytes(base64.b64decode(png))
