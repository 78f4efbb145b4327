"""A real browser plays with the interactive page: `make test-site`."""

import json

import pytest

from tests.interactive_cases import RUN, assert_agrees, draw
from tests.site.conftest import INTERACTIVE, complaints, find, prefer, resize

pytestmark = pytest.mark.site


def opened(browser, site, *, motion="reduce", width=1440, height=900, query=""):
    resize(browser, width, height)
    prefer(browser, "light", motion)
    browser.get(f"{site}/{INTERACTIVE}")
    browser.execute_script("localStorage.removeItem('theme')")
    browser.get(f"{site}/{INTERACTIVE}{query}")
    return browser


@pytest.fixture
def by_hand(browser, site):
    """The page without motion: every step is at its end at once."""
    yield opened(browser, site)
    assert complaints(browser) == []


def caption(browser):
    return browser.execute_script("return document.getElementById('caption').textContent")


def set_range(browser, name, value):
    browser.execute_script(
        "const c = document.getElementById(arguments[0]); c.value = arguments[1];"
        "c.dispatchEvent(new Event('input', {bubbles: true}));",
        name,
        value,
    )


def choose(browser, scene):
    find(browser, f"[data-scene={scene}]").click()


def step(browser, times=1):
    for _ in range(times):
        find(browser, "#step").click()


def written_slots(browser):
    return [int(cell.text) for cell in browser.find_elements("css selector", "#written tbody td:nth-child(2)")]


def answer(browser):
    return find(browser, "#y").get_attribute("aria-label")


def slot(browser, number):
    return find(browser, f"#ring [data-slot='{number}']")


def goal(browser):
    return find(browser, "#goal-state").text


def wait(browser, milliseconds):
    browser.execute_script(f"return new Promise((done) => setTimeout(done, {milliseconds}));")


def until(browser, condition, seconds=60):  # other tests may keep the cores busy
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, seconds).until(lambda _: condition())


def test_it_plays_by_itself(browser, site):
    opened(browser, site, motion="no-preference")
    assert find(browser, "#play").get_attribute("aria-pressed") == "true"
    assert "digits" in caption(browser)
    place = "const g = [...document.querySelectorAll('.glyph')].find((g) => +g.style.opacity > 0.9);"
    where = f"{place} return g ? g.getAttribute('transform') : '';"
    until(browser, lambda: browser.execute_script(where))  # the value travels
    here = browser.execute_script(where)
    until(browser, lambda: browser.execute_script(where) not in ("", here))
    until(browser, lambda: caption(browser).startswith("y adds up"))
    find(browser, "#play").click()
    assert find(browser, "#play").text == "Play"
    assert complaints(browser) == []


def test_nothing_plays_where_motion_is_not_wanted(by_hand):
    before = caption(by_hand)
    wait(by_hand, 1500)
    assert caption(by_hand) == before
    assert find(by_hand, "#play").get_attribute("aria-pressed") == "false"
    find(by_hand, "#play").click()  # on demand it goes from step to step
    until(by_hand, lambda: caption(by_hand) != before)


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_ring_controls_and_answer_share_a_screen(browser, site, width, height):
    opened(browser, site, width=width, height=height)
    if width < 500:  # the ring stays while the bars scroll below it
        browser.execute_script("document.querySelector('#key').scrollIntoView({block: 'end'})")
    boxes = browser.execute_script(
        "return ['#ring', '.transport', '#key', '#caption'].map((s) => {"
        "const b = document.querySelector(s).getBoundingClientRect(); return [s, b.top, b.bottom]; });"
    )
    for name, top, bottom in boxes:
        assert top >= 0, name
        assert bottom <= height + 1, name
    assert boxes[2][1] >= boxes[3][2] - 1 or width > 1000  # nothing lies over the bars
    if width > 1000:  # on a phone y is at the hub of the ring
        assert find(browser, "#y").rect["y"] + find(browser, "#y").rect["height"] <= height
        assert find(browser, "#given").rect["y"] <= height


def test_step_back_and_reset(by_hand):
    back = find(by_hand, "#back")
    assert "name slot 27" in caption(by_hand)
    assert not back.is_enabled()
    step(by_hand)
    assert caption(by_hand).startswith("Slot 27 keeps")
    step(by_hand)
    assert answer(by_hand).startswith("y = 0.")
    step(by_hand)
    assert "Ada: owl" in find(by_hand, "#token-title").text
    assert answer(by_hand) == "y is not read yet"
    back.click()
    assert caption(by_hand).startswith("y adds up")
    find(by_hand, "#reset").click()
    assert not back.is_enabled()
    step(by_hand, 17)
    assert not find(by_hand, "#step").is_enabled()


def test_tables_show_what_has_happened(by_hand):
    def cells(table):
        return find(by_hand, f"#{table} tbody").text

    assert "27" in cells("written")
    assert "0.97" in cells("written")
    assert "→" not in cells("written")
    assert cells("reads").strip() == "not yet"
    step(by_hand)
    assert "→" in cells("written")
    assert cells("reads").strip() == "not yet"
    step(by_hand)
    assert "27" in cells("reads")


def test_every_scene_plays_to_its_end(by_hand):
    scenes = [button.get_attribute("data-scene") for button in by_hand.find_elements("css selector", "#scenes button")]
    assert len(scenes) == 8
    for scene in scenes:
        choose(by_hand, scene)
        said = []
        while find(by_hand, "#step").is_enabled():
            step(by_hand)
            said.append(caption(by_hand))
        assert len(said) >= 8
        assert not any("NaN" in line or "undefined" in line for line in said)


def test_every_goal_has_an_answer(by_hand):
    for scene in ("lose", "collide", "before", "newest", "blur", "vague", "pieces"):
        choose(by_hand, scene)
        assert goal(by_hand) == "", scene
        find(by_hand, "#show").click()
        assert goal(by_hand).startswith("This is one answer."), scene


def test_the_fox_is_lost_by_erasing_its_slot(by_hand):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    choose(by_hand, "lose")
    step(by_hand, 8)
    ActionChains(by_hand).move_to_element(slot(by_hand, 27)).perform()
    assert "last written by “Tom: fox”" in find(by_hand, "#card").text
    slot(by_hand, 6).click()
    find(by_hand, "#erase").click()
    assert goal(by_hand) == ""  # that was the owl
    find(by_hand, "#erased button").click()
    by_hand.execute_script("document.querySelector('#ring [data-slot=\"27\"]').focus()")
    assert "slot 27" in by_hand.switch_to.active_element.get_attribute("aria-label")
    by_hand.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert "slot 28" in by_hand.switch_to.active_element.get_attribute("aria-label")
    by_hand.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    by_hand.switch_to.active_element.send_keys(Keys.DELETE)
    assert goal(by_hand).startswith("You did it.")
    step(by_hand, 3)
    assert caption(by_hand).endswith("lost.")


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
    step(by_hand)
    kept = find(by_hand, "#written tbody td:nth-child(4)").text
    set_range(by_hand, "gamma", 5)
    assert find(by_hand, "#written tbody td:nth-child(4)").text != kept
    find(by_hand, "[name=update][value=gsu]").click()
    set_range(by_hand, "gamma", -5)
    assert find(by_hand, "#gamma-out").text == "\N{MINUS SIGN}5.0"
    for order, bars in (("1", 64), ("2", 16), ("6", 12), ("3", 12)):
        find(by_hand, f"#order option[value='{order}']").click()
        assert len(by_hand.find_elements("css selector", "#key [role=slider]")) == bars


def test_mask_and_given_state(by_hand):
    step(by_hand, 2)
    written = find(by_hand, "#written").text
    find(by_hand, "#given").click()
    assert find(by_hand, "#written").text != written  # the slot is full already
    find(by_hand, "#given").click()
    assert find(by_hand, "#written").text == written
    find(by_hand, "#masked").click()
    assert answer(by_hand).startswith("y = 0.00, 0.00, 0.00, 0.00")
    assert "masked" in find(by_hand, "#reads").text


def test_y_knows_only_differences_of_positions(by_hand):
    choose(by_hand, "before")
    find(by_hand, "#cape").click()
    step(by_hand, 8)
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
    assert bar.get_attribute("aria-valuenow") == "10.00"
    assert caption(by_hand) != before
    bar.send_keys(Keys.ARROW_DOWN)
    assert bar.get_attribute("aria-valuenow") == "9.75"
    bar.send_keys(Keys.ARROW_RIGHT)
    assert by_hand.switch_to.active_element.get_attribute("aria-label") == "logit of digit 2, value 1"
    ActionChains(by_hand).move_to_element_with_offset(bar, 0, 28).click().perform()
    assert float(bar.get_attribute("aria-valuenow")) < -2
    value = find(by_hand, "#value [role=slider]")
    step(by_hand, 2)
    here = answer(by_hand)
    value.send_keys(Keys.HOME)
    assert answer(by_hand) != here


def test_keys_of_the_page(by_hand):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    by_hand.execute_script("document.activeElement.blur()")
    ActionChains(by_hand).send_keys(Keys.ARROW_RIGHT).perform()
    assert caption(by_hand).startswith("Slot 27 keeps")
    ActionChains(by_hand).send_keys(Keys.ARROW_LEFT).perform()
    assert "name slot 27" in caption(by_hand)
    ActionChains(by_hand).send_keys(Keys.SPACE).perform()
    assert find(by_hand, "#play").get_attribute("aria-pressed") == "true"
    ActionChains(by_hand).send_keys(Keys.SPACE).perform()
    assert find(by_hand, "#play").get_attribute("aria-pressed") == "false"


def test_a_scene_in_another_page(browser, site):
    opened(browser, site, query="?embed&scene=before&solved")
    assert not find(browser, "#key").is_displayed()
    assert find(browser, "#ring").is_displayed()
    step(browser, 5)
    assert caption(browser).endswith("clear.")
    assert find(browser, "#more").get_attribute("href").endswith("index.html?scene=before")
    browser.get(f"{site}/index.html")
    frame = find(browser, "iframe.scene")
    assert frame.is_displayed()
    browser.switch_to.frame(frame)
    assert find(browser, "#ring").is_displayed()
    browser.switch_to.default_content()
    assert complaints(browser) == []


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
