"""Headless Chromium by its debugging pipe (NUL-separated JSON on two file descriptors): no driver, no extra package."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe")
FLAGS += ("--disable-dev-shm-usage", "--hide-scrollbars", "--autoplay-policy=no-user-gesture-required")


class Browser:
    """One page. `complaints` collects console errors and warnings, exceptions and what could not be loaded."""

    def __init__(self, to_browser: int, from_browser: int):
        self._to, self._from = os.fdopen(to_browser, "wb"), os.fdopen(from_browser, "rb")
        self._pending, self._last_id = b"", 0
        self.complaints: list[str] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict:
        """One command of the protocol and its result."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        answer = next(m for m in self._messages() if m.get("id") == self._last_id)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _messages(self) -> Iterator[dict]:
        while True:
            while b"\0" not in self._pending:
                more = self._from.read1(1 << 20)
                if not more:
                    raise RuntimeError("the browser is gone")
                self._pending += more
            one, _, self._pending = self._pending.partition(b"\0")
            message = json.loads(one)
            self._listen(message.get("method", ""), message.get("params", {}))
            yield message

    def _listen(self, method: str, params: dict) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(params["args"])[:400])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            self.complaints.append(f"not loaded: {params['errorText']}")

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file and wait until it is there."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def close(self) -> None:
        self.call("Page.close")
        self._to.close()
        self._from.close()

    def run(self, script: str) -> object:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def click(self, element: str) -> None:
        """A real click of the mouse in the middle of what a JavaScript expression gives."""
        box = f"(e => (e.scrollIntoView({{block: 'center'}}), e.getBoundingClientRect()))({element})"
        self.run("document.documentElement.style.scrollBehavior = 'auto'")
        x, y = self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, element: str, text: str) -> None:
        """Real typing into an input."""
        self.click(element)
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with this folder for its own files, closed at the end of the block."""
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    shell = ["bash", "-c", 'exec "${@:3}" 3<&"$1" 4>&"$2"', "bash", str(theirs_in), str(theirs_out)]
    command = [*shell, str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Browser(ours_out, ours_in)
        yield page
        page.close()
    finally:
        process.terminate()
        process.wait(20)
