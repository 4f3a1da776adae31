"""What the page shows while it waits, and that nothing is lost when the server goes away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from browser import Served, Tab
from tiny_photos import truth

pytestmark = pytest.mark.page

RED, BLUE, GROUND = (40, 40), (70, 120), (10, 100)


def ring(tab: Tab, place: tuple[float, float]) -> tuple[int, int]:
    """Alpha of the overlay in the middle of a marker, and on its ring."""
    scale = tab.at((0, 1))[0] - tab.at((0, 0))[0]
    inside = tab.colour((place[0] + 2.5 / scale, place[1] + 2.5 / scale))
    return inside[3], tab.colour((place[0] + 7 / scale, place[1]))[3]


def test_a_click_is_seen_before_it_is_answered(served: Served, context: Any) -> None:
    """Hollow, then filled; a stroke stays; "saved" is not shown in between."""
    tab = Tab(context, served.url)
    served.hold()
    tab.page.mouse.click(*tab.at(GROUND))
    tab.drawn()
    assert ring(tab, GROUND) == (0, 255)
    assert tab.text("#saved") == "working"
    served.release()
    tab.idle()
    assert ring(tab, GROUND)[0] == 255
    assert tab.text("#saved") == "saved"
    tab.press("b")
    served.hold()
    tab.page.mouse.move(*tab.at((110, 20)))
    tab.page.mouse.down()
    tab.page.mouse.move(*tab.at((110, 80)), steps=3)
    tab.page.mouse.up()
    tab.page.mouse.move(*tab.at((80, 20)))
    tab.drawn()
    assert tab.colour((110, 50))[3] > 80
    served.release()
    tab.idle()
    assert tab.colour((110, 50))[3] > 80
    assert tab.errors == []


def test_a_double_click_counts_once(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.page.mouse.dblclick(*tab.at(RED))
    tab.idle()
    assert tab.text("#objects .clicks") == "1"
    tab.page.mouse.click(*tab.at(BLUE))
    tab.page.mouse.click(*tab.at((60, 100)))  # elsewhere: two clicks
    tab.idle()
    assert tab.text("#objects .clicks") == "3"


def test_what_is_painted_survives_clicks_until_it_is_erased(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.press("b")
    tab.drag((110, 20), (110, 80))
    line = served.mask("a_0")
    tab.press("v")
    tab.click(RED)
    assert np.array_equal(served.mask("a_0"), truth("red") | line)
    tab.click(GROUND, button="right")
    assert np.array_equal(served.mask("a_0"), truth("red") | line)
    tab.click((110, 50), button="right")
    assert "painted by hand" in tab.text("#message")
    tab.press("e")
    tab.drag((110, 10), (110, 90))
    assert not served.mask("a_0")[110].any()
    assert tab.errors == []


def test_a_server_that_is_gone_loses_nothing(served: Served, context: Any) -> None:
    """What is done meanwhile waits; it is sent when a server answers at this address again, with its new token."""
    tab = Tab(context, served.url)
    tab.click(RED)
    served.stop()
    tab.page.mouse.click(*tab.at(BLUE))
    tab.page.wait_for_selector("#held:has-text('1 action is not saved')")
    assert tab.text("#saved") == "not saved"
    tab.page.keyboard.press("b")
    tab.page.mouse.move(*tab.at((110, 20)))
    tab.page.mouse.down()
    tab.page.mouse.move(*tab.at((110, 80)), steps=3)
    tab.page.mouse.up()
    tab.page.wait_for_selector("#held:has-text('2 actions are not saved')")
    tab.page.keyboard.press("PageDown")
    tab.page.click("#retry")
    assert tab.page.is_visible("#held"), "nobody answers"
    assert "a.png" in tab.text("#title")
    served.start(again=True, token="another-token")
    tab.page.wait_for_selector("#held:has-text('earlier start')")
    tab.page.evaluate("location.hash = 'another-token'")  # as its new address is opened in this tab
    tab.page.wait_for_selector("#held", state="hidden")
    tab.idle()
    mask = served.mask("a_0")
    assert mask[truth("red") | truth("blue")].all()
    assert mask[110, 50]
    assert served.record()["revision"] == 3
    assert tab.text("#saved") == "saved"


def test_another_tab_passes_the_new_address_on(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.click(RED)
    served.stop()
    tab.page.mouse.click(*tab.at(BLUE))
    tab.page.wait_for_selector("#held:has-text('1 action is not saved')")
    served.start(again=True, token="another-token")
    Tab(context, served.url)
    tab.page.wait_for_selector("#held", state="hidden")
    tab.page.wait_for_selector("#saved:has-text('saved')")
    assert np.array_equal(served.mask("a_0"), truth("red") | truth("blue"))


def test_an_answer_lost_on_the_way_is_not_applied_twice(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.click(RED)
    lost = []

    def lose(route: Any) -> None:
        if route.request.method == "POST" and not lost:
            lost.append(route.fetch().status)
            route.abort()
        else:
            route.continue_()

    tab.page.route("**/api/images/0", lose)
    tab.page.mouse.click(*tab.at(BLUE))
    tab.page.wait_for_selector("#held")
    tab.page.click("#retry")
    tab.page.wait_for_selector("#held", state="hidden")
    tab.idle()
    assert lost == [200]
    assert tab.text("#objects .clicks") == "2"
    assert len(served.record()["objects"][0]["actions"]) == 2
    assert np.array_equal(served.mask("a_0"), truth("red") | truth("blue"))


def test_a_full_disk_keeps_the_action_for_a_retry(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    tab.click(RED)
    record = served.place / "annotations" / "images" / "a.json"
    away = record.rename(served.place / "a.json")
    record.mkdir()  # as good as a full disk: it cannot be replaced
    tab.page.mouse.click(*tab.at(BLUE))
    tab.page.wait_for_selector("#held:has-text('not saved')")
    record.rmdir()
    away.rename(record)
    tab.page.click("#retry")
    tab.page.wait_for_selector("#held", state="hidden")
    tab.idle()
    assert np.array_equal(served.mask("a_0"), truth("red") | truth("blue"))


def test_the_empty_panel_says_what_to_do(served: Served, context: Any) -> None:
    tab = Tab(context, served.url)
    told = tab.text("#hint")
    for part in ("Left click", "Right click", "the background", "?", "masks/", "shop"):
        assert part in told
    tab.click(RED)
    assert tab.page.is_hidden("#hint")
