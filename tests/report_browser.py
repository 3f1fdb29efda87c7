#!/usr/bin/env python3
"""The report page in a real browser, at the width of a desktop and of a phone.

    python3 tests/report_browser.py ENGINE [SCREENSHOT_FOLDER]

Makes two small runs, writes their pages with ENGINE, opens them in headless Chromium and works them as a reader would: slider, play,
quantities, switches, cursor, sorting. No message may come into the console, no request may leave, and nothing may be wider than the
phone. Then it watches a run that trains. Speaks the DevTools protocol with the standard library alone. Where there is no Chromium it
says that it skips (exit code 0).
"""
import base64
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

TINY = ["--set", "image_size=8", "--set", "widths=8,16", "--set", "embedding_dim=8", "--set", "batch_size=16",
        "--set", "sample_count=9", "--set", "sample_steps=4", "--set", "valid_fraction=0.9"]


class Socket:
    """A WebSocket client for one page: text frames, both ways."""

    def __init__(self, url):
        host, port, path = re.fullmatch(r"ws://([^:/]+):(\d+)(/.*)", url).groups()
        self.stream = socket.create_connection((host, int(port)), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall((f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.stream.recv(1)
        assert b" 101 " in head.split(b"\r\n")[0], head

    def exactly(self, count):
        data = b""
        while len(data) < count:
            more = self.stream.recv(count - len(data))
            if not more:
                raise ConnectionError("the browser hung up")
            data += more
        return data

    def send(self, text):
        data, mask = text.encode(), os.urandom(4)
        size = len(data)
        head = b"\x81" + (bytes([0x80 | size]) if size < 126 else
                          b"\xfe" + struct.pack(">H", size) if size < 1 << 16 else b"\xff" + struct.pack(">Q", size))
        self.stream.sendall(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))

    def receive(self):
        text = b""
        while True:
            first, second = self.exactly(2)
            size = second & 0x7F
            if size == 126:
                size = struct.unpack(">H", self.exactly(2))[0]
            elif size == 127:
                size = struct.unpack(">Q", self.exactly(8))[0]
            data = self.exactly(size)
            if first & 0x0F in (0, 1):
                text += data
                if first & 0x80:
                    return text.decode()


class Page:
    """A tab, with what it complained of and what it asked the network for."""

    def __init__(self, port):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=30) as answer:
            tab = json.load(answer)
        self.socket, self.number, self.events = Socket(tab["webSocketDebuggerUrl"]), 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.receive())
            if message.get("id") == self.number:
                assert "error" not in message, (method, message)
                return message["result"]
            self.events.append(message)

    def open(self, url, width, height, phone=False, dark=False):
        self.events.clear()
        self.size(width, height, phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank' && document.querySelector('h1') !== null")
        self.settle()

    def size(self, width, height, phone=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)

    def js(self, text):
        result = self.call("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, (text, result["exceptionDetails"])
        return result["result"].get("value")

    def settle(self):
        """Waits until the page has laid itself out and drawn."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60))))")

    def until(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not self.js(condition):
            assert time.monotonic() < end, f"not within {seconds} s: {condition}"
            time.sleep(0.05)

    def complaints(self):
        found = []
        for event in self.events:
            what = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(what["exceptionDetails"])
            elif event.get("method") == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
                found.append(what["args"])
            elif event.get("method") == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
                found.append(what["entry"])
        return found

    def requests(self):
        sent = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def key(self, name):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode={"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}[name])

    def mouse(self, kind, x, y, pressed=False):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left" if pressed or kind != "mouseMoved" else "none",
                  buttons=1 if pressed else 0, clickCount=1)

    def shot(self, name):
        if not shots:
            return
        height = self.js("Math.ceil(document.documentElement.scrollHeight)")
        width = self.js("window.innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        png = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        with open(os.path.join(shots, name), "wb") as file:
            file.write(base64.b64decode(png))


def engine(*arguments):
    subprocess.run([program, *arguments], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def check(what, holds):
    if not holds:
        sys.exit(f"report_browser: FAILED: {what}")


def quiet(page, what, allowed=()):
    check(f"{what}: messages in the console: {page.complaints()}", not page.complaints())
    others = [url for url in page.requests() if not any(url.startswith(a) for a in allowed)]
    check(f"{what}: requests to {others}", not others)


def fits(page, what):
    inner, wide = page.js("window.innerWidth"), page.js("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
    check(f"{what}: {wide} pixels wide in a window of {inner}", wide <= inner)


SRC = "document.querySelector('.grids img').src"
READ = "document.querySelector('.read').innerText"


def work(page, what):
    """The page of one run, as a reader works it."""
    frames = page.js("data.runs[0].samples.frames.length")
    check(f"{what}: there are grids to slide through", frames >= 3)
    check(f"{what}: the picture is drawn", page.js("document.querySelector('.grids img').naturalWidth > 0"))
    last = page.js(SRC)
    page.js("document.querySelector('.player input').focus()")
    page.key("Home")
    page.settle()
    first = page.js(SRC)
    check(f"{what}: the slider moves the picture", first != last and page.js("document.querySelector('.player output').textContent") == "epoch 1")
    page.key("ArrowRight")
    check(f"{what}: the keyboard moves the picture", page.js(SRC) not in (first, last))
    page.key("End")
    page.js("document.querySelector('.player button').click()")
    check(f"{what}: play begins with the first", page.js(SRC) == first)
    page.until(f"{SRC} !== data.runs[0].samples.frames[0].src", 5)
    page.js("document.querySelector('.player button').click()")

    page.js("document.querySelector('.chart').focus()")
    page.key("Home")
    at = page.js(READ)
    check(f"{what}: the cursor reads the first step: {at}", "step 10," in at and "last values" not in at)
    page.key("End")
    check(f"{what}: the cursor has moved", page.js(READ) != at)
    lines = "document.querySelectorAll('.curve:not(.raw)').length"
    check(f"{what}: two curves", page.js(lines) == 2)
    page.js("document.querySelector('.toggle.dashed').click()")
    check(f"{what}: a curve can be switched off", page.js(lines) == 1 and page.js("document.querySelector('.toggle.dashed').ariaPressed") == "false")
    page.js("document.querySelector('.toggle.dashed').click()")
    path = "document.querySelector('.curve:not(.raw)').getAttribute('d')"
    drawn = page.js(path)
    page.js("document.querySelector('.controls input[type=checkbox]').click()")
    check(f"{what}: the scale becomes linear", page.js(path) != drawn)
    drawn = page.js(path)
    page.js("(() => { const s = document.querySelector('.controls input[type=range]'); s.value = 0; s.dispatchEvent(new Event('input')); })()")
    check(f"{what}: smoothing can be switched off", page.js(path) != drawn and page.js("document.querySelectorAll('.curve.raw').length") == 0)
    drawn = page.js(path)
    page.js("document.querySelector('[data-metric=image_loss]').click()")
    check(f"{what}: another quantity", page.js(path) != drawn and page.js("document.querySelector('[data-metric=image_loss]').ariaPressed") == "true")
    for axis in ("time", "images", "step"):
        page.js(f"(() => {{ const s = document.querySelector('.controls select'); s.value = '{axis}'; s.dispatchEvent(new Event('change')); }})()")
        check(f"{what}: over {axis}", "NaN" not in page.js(path))
    check(f"{what}: bars by noise level", page.js("document.querySelectorAll('.bars rect').length") == 20)
    page.js("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    fits(page, what)
    check(f"{what}: the settings are there", "image_size = 8" in page.js("document.body.innerText"))
    names = page.js("[...document.querySelectorAll('button, input, select, img, [role]')].filter((n) => n.checkVisibility()"
                    " && !(n.ariaLabel || n.alt || n.innerText || n.closest('label'))).map((n) => n.outerHTML)")
    check(f"{what}: without a name: {names}", not names)


def evaluated(run):
    """An evaluation, as `ddim-engine evaluate` leaves it."""
    level = lambda i: {"time": [i / 10, (i + 1) / 10], "noise_rate": [i / 10, (i + 1) / 10], "count": 40,
                       "noise_loss": 0.9 / (1 + i), "image_loss": 0.02 + 0.05 * i}
    quality = {"protocol": "engine", "inception": "inception_v3.safetensors", "pictures": [819, 1000], "sampler": "ddim", "steps": 20,
               "network_calls": 19, "kid": 0.1234, "kid_std": 0.0041, "kid_subsets": [50, 100], "fid": 81.3, "precision": 0.52, "recall": 0.31}
    found = {"step": 60, "weights": "moving average", "data": "procedural", "split": "valid", "pictures": 400, "loss": 0.2,
             "noise_loss": 0.2, "image_loss": 0.3, "levels": [level(i) for i in range(10)], "quality": quality, "device": "cpu", "seconds": 1.0}
    with open(os.path.join(run, "evaluation.json"), "w") as file:
        json.dump(found, file)


def live(page, folder):
    """A run that is watched while it trains."""
    run = os.path.join(folder, "watched")
    train = subprocess.Popen([program, "train", "--run-dir", run, "--watch", "0", "--steps", "4000", *TINY],
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        address = None
        for line in train.stderr:
            if address := re.search(r"http://127\.0\.0\.1:\d+/", line):
                break
        check("watch prints its address", address)
        url = address.group(0)
        page.open(url, 1200, 900)
        page.until("data.runs[0].steps > 0 && document.querySelector('.curve') !== null")
        check("the run is told to be running", page.js("data.runs[0].status") == "running" and "still training" in page.js("document.body.innerText"))
        step = page.js("data.runs[0].steps")
        page.until(f"data.runs[0].steps > {step}")
        page.until("document.querySelector('.grids img') !== null && document.querySelector('.grids img').naturalWidth > 0", 30)
        page.shot("live.png")
        quiet(page, "live", [url])
    finally:
        train.send_signal(2)
        try:
            train.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            train.kill()
            sys.exit("report_browser: FAILED: the watched run does not end on Ctrl-C within a minute")
    page.until("document.getElementById('lost') !== null && !document.getElementById('lost').hidden || data.runs[0].status === 'stopped'", 30)


def main():
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("report_browser: skipped: no chromium here (Debian: apt-get install chromium)")
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        runs = [os.path.join(folder, "runs", name) for name in ("a", "b with a longer name-and-no-place-to-break-it-anywhere")]
        for i, run in enumerate(runs):
            engine("train", "--run-dir", run, "--steps", "100", "--set", f"lr={(i + 1) / 1000}", *TINY)
        evaluated(runs[0])
        one, both = os.path.join(folder, "one.html"), os.path.join(folder, "both.html")
        engine("report", runs[0], "--out", one)
        engine("report", os.path.dirname(runs[0]), "--out", both, "--title", "</script><img src=x onerror=alert(1)>")
        profile = os.path.join(folder, "profile")
        browser = subprocess.Popen([chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                                    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
                                    f"--user-data-dir={profile}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            active = os.path.join(profile, "DevToolsActivePort")
            end = time.monotonic() + 60
            while not (os.path.exists(active) and os.path.getsize(active)):
                check("the browser starts within a minute", time.monotonic() < end and browser.poll() is None)
                time.sleep(0.05)
            with open(active) as file:
                page = Page(int(file.readline()))
            for name, width, height, phone, dark in (("desktop", 1200, 900, False, False), ("phone", 360, 740, True, True)):
                page.open(f"file://{one}", width, height, phone, dark)
                fits(page, name)
                page.shot(f"{name}.png")
                work(page, name)
                quiet(page, name, [f"file://{one}"])
                page.open(f"file://{both}", width, height, phone, dark)
                fits(page, f"{name}, two runs")
                page.shot(f"{name}-two.png")
                check("a title stays text", page.js("document.querySelector('h1').textContent") == "</script><img src=x onerror=alert(1)>")
                check("two runs are drawn", page.js("document.querySelectorAll('.curve:not(.raw)').length") == 4)
                page.js("document.querySelector('thead button[data-name=lr]').click()")
                page.js("document.querySelector('thead button[data-name=lr]').click()")
                order = page.js("[...document.querySelectorAll('section table tbody th')].slice(0, 2).map((n) => n.innerText)")
                check(f"the table is sorted: {order}", order[0].startswith("b "))
                page.js("document.querySelector('.read tbody .toggle').click()")
                check("a run can be switched off", page.js("document.querySelectorAll('.curve:not(.raw)').length") == 2)
                page.js("document.querySelectorAll('details').forEach((d) => (d.open = true))")
                fits(page, f"{name}, two runs, all open")
                quiet(page, f"{name}, two runs", [f"file://{both}"])
            page.open(f"file://{one}", 1200, 900)
            box = page.js("(() => { const b = document.querySelector('.chart').getBoundingClientRect(); return [b.x, b.y + scrollY, b.width, b.height]; })()")
            page.js(f"scrollTo(0, {box[1]} - 100)")
            top = page.js("document.querySelector('.chart').getBoundingClientRect().y")
            ticks = page.js("document.querySelector('.chart svg').textContent")
            page.mouse("mouseMoved", box[0] + box[2] * 0.4, top + 100)
            check("the mouse reads the curves", "step" in page.js(READ).split("\n")[-1].lower() or "step " in page.js(READ))
            page.mouse("mousePressed", box[0] + box[2] * 0.4, top + 100, True)
            page.mouse("mouseMoved", box[0] + box[2] * 0.7, top + 100, True)
            page.mouse("mouseReleased", box[0] + box[2] * 0.7, top + 100)
            check("dragging zooms", page.js("document.querySelector('.chart svg').textContent") != ticks and not page.js("document.querySelector('.reset').hidden"))
            page.js("document.querySelector('.reset').click()")
            check("and back", page.js("document.querySelector('.chart svg').textContent") == ticks)
            quiet(page, "zoom", [f"file://{one}"])
            live(page, folder)
        finally:
            browser.terminate()
            browser.wait(timeout=30)
    print(f"report_browser: the page works at both widths, and live ({time.monotonic() - began:.0f} s)")


if len(sys.argv) not in (2, 3):
    sys.exit(__doc__)
program, shots = os.path.abspath(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else None
if shots:
    os.makedirs(shots, exist_ok=True)
main()
