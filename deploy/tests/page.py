#!/usr/bin/env python3
"""The status page of a real node in a headless Chromium: what it shows, light and dark, on a desk and on a phone, by
keyboard; what hostile names do to it, which is nothing; and that it says so when the node is gone. Then lance top in a
terminal, which it gives back as it was. Needs chromium, playwright, and a lance binary in $LANCE_BIN. Pictures of the page
are left in target/page.
"""

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from live_prometheus import ROOT, free_base_port

PICTURES = ROOT / "target/page"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"></td><script>document.title='owned'</script>"
# Chromium must not speak to anybody but the node.
ARGUMENTS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
LOOKS = {
    "desk-light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "desk-dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone-light": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light", "device_scale_factor": 2},
    "phone-dark": {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark", "device_scale_factor": 2},
}
# The least ratio that WCAG 2 asks for between text and what is behind it.
CONTRAST = 4.5
CONTRASTS = """() => {
    const style = getComputedStyle(document.documentElement);
    const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = (name) => {
        let hex = style.getPropertyValue('--' + name).trim().slice(1);
        if (hex.length === 3) hex = [...hex].map((c) => c + c).join('');
        const [r, g, b] = [0, 2, 4].map((at) => linear(parseInt(hex.slice(at, at + 2), 16)));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const pairs = [['warn', 'warn-ground'], ['bad', 'bad-ground']];
    for (const text of ['ink', 'quiet', 'in', 'good', 'warn', 'bad'])
        for (const ground of ['ground', 'surface', 'hover']) pairs.push([text, ground]);
    return pairs.map(([text, ground]) => [text + ' on ' + ground, ratio(text, ground)]);
}"""


class Visit:
    """A page in a browser of its own, and all that went wrong on it."""

    def __init__(self, browser, url, **look):
        self.context = browser.new_context(**look)
        self.page = self.context.new_page()
        self.url = url
        self.wrong = []
        self.page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self.asked)

    def asked(self, request):
        if not request.url.startswith((self.url, "data:image/svg+xml")):
            self.wrong.append(f"asked for {request.url}")

    def __enter__(self):
        self.page.goto(self.url)
        return self

    def __exit__(self, kind, *_):
        self.context.close()
        if kind is None:
            assert not self.wrong, "\n".join(self.wrong)

    def rows(self, table):
        return self.page.locator(f"#{table}-table tbody tr")

    def wait(self):
        expect(self.rows("groups")).to_have_count(4)


@contextlib.contextmanager
def load(lance, environment, topic):
    """Records come all the time, now more, now fewer, until the block ends."""
    ended = threading.Event()
    producer = subprocess.Popen([lance, "produce", topic, "--quiet"], env=environment, stdin=subprocess.PIPE)

    def produce():
        for step in range(1 << 20):
            if ended.wait(0.1):
                break
            producer.stdin.write(b"a line of an ordinary length, and some more of it\n" * (5 + step % 17 * 2))
            producer.stdin.flush()
        producer.stdin.close()

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        assert producer.wait(30) == 0


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read()


def shows_the_cluster(browser, url):
    for name, look in LOOKS.items():
        with Visit(browser, url, **look) as visit:
            page = visit.page
            visit.wait()
            expect(page.locator("#state")).to_have_text("all well")
            expect(visit.rows("nodes")).to_have_count(3)
            expect(page.get_by_role("table")).to_have_count(4)
            orders = page.get_by_role("button", name="orders")
            orders.click()
            partitions = page.locator("tbody", has=orders).locator("tr.part")
            expect(partitions).to_have_count(3)
            ends = sum(int(row.locator("td").nth(2).text_content().replace(",", "")) for row in partitions.all())
            assert ends == 30_000, f"{ends} records in orders"
            assert visit.rows("elections").count() >= 4
            growing = page.locator("tbody", has_text="t-00").locator("td").nth(4)
            expect(growing).not_to_have_text("0")
            expect(growing).not_to_have_text("–")
            for chart in page.locator("#charts .tone-in .line, #charts .tone-out .line").all():
                expect(chart).to_have_attribute("d", re.compile("^M"))
            page.wait_for_timeout(1500)
            PICTURES.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
            width = look["viewport"]["width"]
            wide = page.evaluate("[document.documentElement, ...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)")
            assert max(wide) == 0, f"{name}: something is wider than {width} pixels: {wide}"
            low = [pair for pair in page.evaluate(CONTRASTS) if pair[1] < CONTRAST]
            assert not low, f"{name}: {low}"
            dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
            assert dark == (look["color_scheme"] == "dark"), name
            small = page.evaluate("[...document.querySelectorAll('td, th, p, button')].filter(e => e.offsetParent && parseFloat(getComputedStyle(e).fontSize) < 12).length")
            assert small == 0, f"{name}: {small} texts are too small to read"


def can_be_used_by_keyboard(browser, url):
    with Visit(browser, url, **LOOKS["desk-light"]) as visit:
        page = visit.page
        visit.wait()
        seen = []
        for _ in range(35):
            page.keyboard.press("Tab")
            name, outline = page.evaluate("""() => {
                const e = document.activeElement;
                return [e === document.body ? '' : e.id || e.textContent.trim(), getComputedStyle(e).outlineStyle + getComputedStyle(e).outlineWidth];
            }""")
            if name in seen or not name:
                break
            assert outline == "solid2px", f"no focus is seen on {name}: {outline}"
            seen.append(name)
        head = ["Skip to the charts", "pause", "Rates", "Nodes", "Groups", "Topics", "Elections", "node 2", "node 3", "find", "sort"]
        assert seen[: len(head)] == head, seen
        assert "orders" in seen and "next" in seen, seen
        assert seen[-4:] == ["This as JSON", "Metrics", "Health", "Readiness"], seen

        orders = page.get_by_role("button", name="orders")
        orders.focus()
        expect(orders).to_have_attribute("aria-expanded", "false")
        page.keyboard.press("Enter")
        expect(orders).to_have_attribute("aria-expanded", "true")
        page.wait_for_timeout(2500)
        expect(orders).to_be_focused()

        # Where the order of topics changes under the focus, the focus goes with the topic.
        page.evaluate("document.getElementById('sort').value = 'records'; document.getElementById('sort').dispatchEvent(new Event('change'))")
        expect(page.locator("#topics-table tbody").first).to_contain_text("orders")
        expect(orders).to_be_focused()

        pause = page.locator("#pause")
        pause.focus()
        page.keyboard.press("Space")
        expect(pause).to_have_attribute("aria-pressed", "true")
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.wait_for_timeout(2500)
        assert requests == [], requests
        page.keyboard.press("Space")
        page.wait_for_timeout(2500)
        assert len(requests) >= 2, requests


def pages_and_sorts_topics(browser, url):
    with Visit(browser, url, **LOOKS["desk-light"]) as visit:
        page = visit.page
        bodies = page.locator("#topics-table tbody")
        expect(bodies).to_have_count(25)
        expect(page.locator("#range")).to_contain_text("1 to 25 of 38, 13 more")
        page.locator("#next").click()
        expect(bodies).to_have_count(13)
        expect(page.locator("#next")).to_be_disabled()
        page.locator("#back").click()
        expect(bodies).to_have_count(25)
        page.locator("#sort").select_option("records")
        expect(bodies.first).to_contain_text("orders")
        page.locator("#find").fill("ORDER")
        expect(bodies).to_have_count(1)
        expect(page.locator("#range")).to_contain_text("1 to 1 of 1, 0 more")
        page.locator("#find").fill("no such topic")
        expect(page.locator("#topics-unfound")).to_be_visible()
        page.locator("#find").fill("")
        expect(bodies).to_have_count(25)


def hostile_names_are_text(browser, url):
    document = json.loads(get(f"{url}status.json?topics=1"))
    view = document["view"]
    topic = view["topics"]["page"][0]
    topic["name"] = HOSTILE
    topic["page"][0]["leader"] = None
    view["problems"] = [HOSTILE]
    view["nodes"][1].update(state=HOSTILE, client_address=HOSTILE, http_address='x" onclick="alert(1)', membership=HOSTILE)
    view["groups"][0].update(role=HOSTILE, lacks=HOSTILE, voters=[HOSTILE])
    document.update(not_ready=HOSTILE, problem=HOSTILE, version=HOSTILE)
    with Visit(browser, url, **LOOKS["phone-light"]) as visit:
        page = visit.page
        page.route("**/status.json*", lambda route: route.fulfill(json=document))
        expect(page.locator("#topics-table tbody").first).to_contain_text(HOSTILE)
        expect(page.locator("#problems")).to_contain_text(HOSTILE)
        expect(page.locator("#state")).to_have_text("silent")
        page.screenshot(path=PICTURES / "hostile.png", full_page=True)
        assert page.locator("img, td script, iframe").count() == 0
        assert "owned" not in page.title(), page.title()
        wide = page.evaluate("[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .skip') && e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 99))")
        assert not wide, wide


def runs_nothing_but_its_own_script(browser, url):
    with Visit(browser, url, **LOOKS["desk-light"]) as visit:
        page = visit.page
        visit.wait()
        page.evaluate("""() => {
            const script = document.createElement('script');
            script.textContent = 'window.owned = true';
            document.body.append(script);
            const link = document.createElement('a');
            link.setAttribute('onclick', 'window.owned = true');
            document.body.append(link);
            link.click();
        }""")
        assert page.evaluate("window.owned") is None
        assert len(visit.wrong) == 2 and all("Content Security Policy" in text for text in visit.wrong), visit.wrong
        visit.wrong.clear()


def keeps_still_for_those_who_ask(browser, url):
    motion = "getComputedStyle(document.getElementById('state'), '::before').animationName"
    for wish, animation in [("reduce", "none"), ("no-preference", "beat")]:
        with Visit(browser, url, reduced_motion=wish) as visit:
            visit.wait()
            assert visit.page.evaluate(motion) == animation, wish


def says_when_the_node_is_gone(browser, url, directory, cluster):
    with Visit(browser, url, **LOOKS["desk-light"]) as visit:
        page = visit.page
        visit.wait()
        os.kill(int((directory / ".lance/cluster/node-1/pid").read_text().split()[0]), signal.SIGKILL)
        stale = page.get_by_role("alert")
        expect(stale).to_contain_text("node 1 cannot be reached (no connection)")
        expect(stale).to_contain_text("What is below is")
        expect(page.locator("#state")).to_have_text("not reachable")
        assert page.title().startswith("not reachable"), page.title()
        expect(visit.rows("groups")).to_have_count(4)
        page.wait_for_timeout(1500)
        page.screenshot(path=PICTURES / "gone.png", full_page=True)
        cluster("start")
        expect(page.locator("#state")).to_have_text("all well", timeout=20_000)
        expect(stale).to_be_hidden()
        # Chromium itself tells the console of every connection that was refused.
        assert visit.wrong and all("net::ERR" in text for text in visit.wrong), visit.wrong
        visit.wrong.clear()


def other_nodes_see_the_loss(browser, url, directory, cluster):
    with Visit(browser, url, **LOOKS["phone-dark"]) as visit:
        page = visit.page
        visit.wait()
        os.kill(int((directory / ".lance/cluster/node-1/pid").read_text().split()[0]), signal.SIGKILL)
        expect(page.locator("#problems")).to_contain_text("node 1 is not connected")
        expect(page.locator("#state")).to_have_text("degraded")
        expect(visit.rows("elections").first).not_to_contain_text("node 1", timeout=10_000)
        page.screenshot(path=PICTURES / "loss.png", full_page=True)
        cluster("start")
        expect(page.locator("#problems")).to_be_hidden(timeout=20_000)


def read_until(terminal, text):
    """What a program has written to its terminal, up to a text."""
    seen, deadline = b"", time.monotonic() + 10
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{text!r} does not come: {seen[-2000:]!r}"
        try:
            seen += os.read(terminal, 65536)
        except OSError:
            raise AssertionError(f"the terminal was left without {text!r}: {seen[-2000:]!r}") from None
    return seen


def top_gives_the_terminal_back(lance, environment):
    ways = {
        "q": lambda process, terminal: os.write(terminal, b"q"),
        "Ctrl-C": lambda process, terminal: os.write(terminal, b"\x03"),
        "SIGTERM": lambda process, terminal: process.send_signal(signal.SIGTERM),
        "SIGHUP": lambda process, terminal: process.send_signal(signal.SIGHUP),
    }
    for way, end in ways.items():
        terminal, own = pty.openpty()
        termios.tcsetwinsize(own, (40, 120))
        before = termios.tcgetattr(own)
        process = subprocess.Popen([lance, "top"], env={**environment, "TERM": "xterm"}, stdin=own, stdout=own, stderr=own)
        try:
            assert b"\x1b[?1049h" in read_until(terminal, b"RECENT ELECTIONS"), "no screen of its own"
            assert termios.tcgetattr(own) != before, "keys come line by line"
            os.write(terminal, b"s")
            read_until(terminal, b"second")
            end(process, terminal)
            read_until(terminal, b"\x1b[?1049l")
            assert process.wait(10) == 0, f"{way}: exit code {process.returncode}"
            assert termios.tcgetattr(own) == before, f"{way}: the terminal was left otherwise"
        finally:
            process.kill()
            process.wait()
            os.close(own)
            os.close(terminal)


def main():
    lance = Path(os.environ["LANCE_BIN"]).resolve()
    base = free_base_port()
    endpoint = ",".join(f"127.0.0.1:{base + 10 * node}" for node in range(3))
    environment = {**os.environ, "LANCE_BIN": str(lance), "LANCE_BASE_PORT": str(base), "LANCE_ENDPOINT": endpoint}
    url = lambda node: f"http://127.0.0.1:{base + 10 * (node - 1) + 2}/"
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        directory = Path(directory)
        script = directory / "genCluster.sh"
        shutil.copy(ROOT / "genCluster.sh", script)
        cluster = lambda verb: subprocess.run([script, verb], check=True, env=environment, stdout=subprocess.DEVNULL)
        stack.callback(cluster, "clean")
        cluster("start")
        command = lambda *arguments, **options: subprocess.run(
            [lance, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL, **options
        )
        command("topic", "create", "orders", "--partitions", "3")
        command("topic", "create", "clicks.eu-west", "--partitions", "24", "--max-age", "7d")
        command("topic", "create", "an_uncommonly_long_name.of-a-topic_for-which-a-narrow-screen-has-no-room-in-one-line")
        for number in range(35):
            command("topic", "create", f"t-{number:02}")
        text = b"".join(b"%08d\n" % number for number in range(30_000))
        command("produce", "orders", "--quiet", input=text)
        command("consume", "orders", "--until-end")
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS.split())
        stack.callback(browser.close)
        expect.set_options(timeout=8_000)
        pages_and_sorts_topics(browser, url(1))
        topics = json.loads(get(f"{url(1)}status.json"))["view"]["topics"]["page"]
        leader = next(topic["page"][0]["leader"] for topic in topics if topic["name"] == "t-00")
        with load(lance, environment, "t-00"):
            shows_the_cluster(browser, url(leader))
        can_be_used_by_keyboard(browser, url(1))
        hostile_names_are_text(browser, url(1))
        runs_nothing_but_its_own_script(browser, url(1))
        keeps_still_for_those_who_ask(browser, url(1))
        says_when_the_node_is_gone(browser, url(1), directory, cluster)
        other_nodes_see_the_loss(browser, url(2), directory, cluster)
        top_gives_the_terminal_back(lance, environment)
        print(f"> Chromium {browser.version}: {len(LOOKS)} looks, keyboard, hostile names, a lost node; lance top; pictures in target/page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
