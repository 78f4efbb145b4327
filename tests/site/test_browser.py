"""A real browser walks the built site: `make test-site`."""

import json
from pathlib import Path

import pytest

from tests.interactive_cases import RUN, assert_agrees, draw
from tests.site.conftest import SITE

pytestmark = pytest.mark.site

INTERACTIVE = "_static/interactive/index.html"
DEMANDED = {"index.html", "mathematics.html", "guide/operation.html", "api/operation.html", "kernels.html", INTERACTIVE}
SOURCES = [
    "source/kernels/cuda.html",
    "source/kernels/cuda/address/decode.cu.html",
    "_modules/ramnet_np/core/memory.html",
]
BUILT = sorted(page.relative_to(SITE).as_posix() for page in SITE.rglob("*.html"))
PAGES = [page for page in BUILT if not page.startswith(("_modules", "source"))] + SOURCES
WIDTHS = (390, 1440)
CONTRAST = Path(__file__).with_name("contrast.js").read_text()
SCREENSHOTS = SITE.parent / "screenshots"


def resize(browser, width, height=900):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(browser, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def find(browser, selector):
    return browser.find_element("css selector", selector)


def complaints(browser):
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


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
    prefer(browser, scheme)
    for page in sorted(DEMANDED):
        browser.get(f"{site}/{page}")
        browser.execute_script("localStorage.removeItem('theme')")
        browser.get(f"{site}/{page}")
        poor = browser.execute_script(CONTRAST)
        assert poor == [], page


@pytest.fixture
def by_hand(browser, site):
    resize(browser, 1440)
    prefer(browser, "light")
    browser.get(f"{site}/{INTERACTIVE}")
    browser.execute_script("localStorage.removeItem('theme')")
    browser.get(f"{site}/{INTERACTIVE}")
    yield browser
    assert complaints(browser) == []


def caption(browser):
    return find(browser, "#caption").text


def set_range(browser, name, value):
    browser.execute_script(
        "const c = document.getElementById(arguments[0]); c.value = arguments[1];"
        "c.dispatchEvent(new Event('input', {bubbles: true}));",
        name,
        value,
    )


def written_slots(browser):
    return [int(cell.text) for cell in browser.find_elements("css selector", "#written tbody td:nth-child(2)")]


def answer(browser):
    return find(browser, "#y").get_attribute("aria-label")


def test_step_back_reset_and_play(by_hand):
    step, back = find(by_hand, "#step"), find(by_hand, "#back")
    assert "softmaxes multiply" in caption(by_hand)
    assert not back.is_enabled()
    step.click()
    assert caption(by_hand).startswith("Write: slot 27")
    step.click()
    assert caption(by_hand).startswith("Read:")
    assert answer(by_hand).startswith("y = 0.")
    step.click()
    assert "store B" in find(by_hand, "#token-title").text
    assert answer(by_hand) == "y is not read yet"
    back.click()
    assert caption(by_hand).startswith("Read:")
    find(by_hand, "#play").click()
    assert find(by_hand, "#play").get_attribute("aria-pressed") == "true"
    find(by_hand, "#reset").click()
    assert find(by_hand, "#play").get_attribute("aria-pressed") == "false"
    assert not back.is_enabled()
    for _ in range(17):
        step.click()
    assert not step.is_enabled()


def test_every_scene_plays_to_its_end(by_hand):
    for button in by_hand.find_elements("css selector", "#scenes button"):
        button.click()
        said = []
        while find(by_hand, "#step").is_enabled():
            find(by_hand, "#step").click()
            said.append(caption(by_hand))
        assert len(said) >= 11
        assert not any("NaN" in line or "undefined" in line for line in said)


def test_controls_change_what_is_shown(by_hand):
    before = caption(by_hand)
    set_range(by_hand, "temperature", 4)
    assert caption(by_hand) != before
    assert find(by_hand, "#temperature-out").text == "4.0"
    set_range(by_hand, "k", 16)
    assert len(written_slots(by_hand)) == 16
    at_zero = written_slots(by_hand)
    set_range(by_hand, "first", 70)
    assert written_slots(by_hand) == at_zero  # CAPE is off
    find(by_hand, "#cape").click()
    assert written_slots(by_hand) == [(slot - 70) % 64 for slot in at_zero]
    assert "CAPE turns the address by t = 70" in caption(by_hand)
    find(by_hand, "#step").click()
    kept = find(by_hand, "#written tbody td:nth-child(4)").text
    set_range(by_hand, "gamma", 5)
    assert find(by_hand, "#written tbody td:nth-child(4)").text != kept
    find(by_hand, "[name=update][value=gsu]").click()
    set_range(by_hand, "gamma", -5)
    assert find(by_hand, "#gamma-out").text == "\N{MINUS SIGN}5.0"
    for order, bars in (("1", 64), ("2", 16), ("6", 12), ("3", 12)):
        find(by_hand, f"#order option[value='{order}']").click()
        assert len(by_hand.find_elements("css selector", "#key [role=slider]")) == bars


def test_y_knows_only_differences_of_positions(by_hand):
    find(by_hand, "[data-scene=before]").click()
    for _ in range(8):
        find(by_hand, "#step").click()
    here = answer(by_hand)
    set_range(by_hand, "first", 61)  # round the end of the memory
    assert answer(by_hand) == here
    find(by_hand, "#cape").click()
    assert answer(by_hand) != here


def test_bars_by_keyboard_and_pointer(by_hand):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    bar = find(by_hand, "#key [role=slider]")
    before = caption(by_hand)
    bar.send_keys(Keys.END)
    assert bar.get_attribute("aria-valuenow") == "5.00"
    assert caption(by_hand) != before
    bar.send_keys(Keys.ARROW_DOWN)
    assert bar.get_attribute("aria-valuenow") == "4.75"
    bar.send_keys(Keys.ARROW_RIGHT)
    assert by_hand.switch_to.active_element.get_attribute("aria-label") == "logit of digit 2, value 1"
    ActionChains(by_hand).move_to_element_with_offset(bar, 0, 30).click().perform()
    assert float(bar.get_attribute("aria-valuenow")) < -3
    value = find(by_hand, "#value [role=slider]")
    for _ in range(2):
        find(by_hand, "#step").click()
    here = answer(by_hand)
    value.send_keys(Keys.HOME)
    assert answer(by_hand) != here


def test_keys_of_the_page(by_hand):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    by_hand.execute_script("document.activeElement.blur()")
    ActionChains(by_hand).send_keys(Keys.ARROW_RIGHT).perform()
    assert caption(by_hand).startswith("Write")
    ActionChains(by_hand).send_keys(Keys.ARROW_LEFT).perform()
    assert "softmaxes" in caption(by_hand)
    ActionChains(by_hand).send_keys(Keys.SPACE).perform()
    assert find(by_hand, "#play").get_attribute("aria-pressed") == "true"
    ActionChains(by_hand).send_keys(Keys.SPACE).perform()
    assert find(by_hand, "#play").get_attribute("aria-pressed") == "false"


def test_light_and_dark_are_shared_with_the_site(by_hand, site):
    find(by_hand, "#theme").click()
    assert find(by_hand, "html").get_attribute("data-theme") == "dark"
    by_hand.get(f"{site}/index.html")
    assert find(by_hand, "body").get_attribute("data-theme") == "dark"
    by_hand.execute_script("localStorage.removeItem('theme')")


def test_the_mathematics_agrees_with_ramnet_np(by_hand):
    cases = draw(count=20, seed=1)
    results = by_hand.execute_script(
        f"const cases = JSON.parse(arguments[0]);\n{RUN}\nreturn results;", json.dumps(cases)
    )
    for case, result in zip(cases, results, strict=True):
        assert_agrees(case, result)


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
        browser.execute_script("return new Promise((done) => setTimeout(done, 900));")
        size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": min(size["height"], 3000), "scale": 1}
        png = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})["data"]
        name = page.removesuffix(".html").replace("/", "-").removeprefix("_static-")
        (SCREENSHOTS / f"{name}-{width}-{scheme}.png").write_bytes(base64.b64decode(png))
