"""A real headless Chromium for the tests of pages, driven through ChromeDriver's W3C protocol.

The standard library suffices for that. Debian and Ubuntu: `apt-get install -y chromium chromium-driver`. Graphics are
computed in software, so that no test depends on the machine.
"""

import base64
import io
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
MISSING = (
    "" if CHROMIUM and CHROMEDRIVER else "needs Chromium and ChromeDriver: apt-get install chromium chromium-driver"
)
"""The reason why no browser can run, or an empty text."""

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--no-first-run",
    "--disable-extensions",
    "--disable-component-update",
    "--disable-background-networking",
)
START_S = 60


class BrowserError(Exception):
    """An error that ChromeDriver returned."""


class Browser:
    """One tab.

    Args:
        address: of the ChromeDriver session.
        downloads: folder where files land.
    """

    def __init__(self, address: str, downloads: Path) -> None:
        self._address, self.downloads = address, downloads
        self.command("Page.enable")
        self.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads), eventsEnabled=False)

    def open(self, url: str, *, width: int = 512, height: int = 512, ratio: float = 1, touch: bool = False) -> None:
        """Loads a page in a window of a size in CSS pixels, and clears the logs."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=ratio,
            mobile=touch,
        )
        self.command("Emulation.setTouchEmulationEnabled", enabled=touch)
        _call("POST", f"{self._address}/url", {"url": "about:blank"})
        self.log("performance")
        self.log("browser")
        _call("POST", f"{self._address}/url", {"url": url})

    def run(self, body: str, *arguments: Any) -> Any:
        """Runs the body of an async JavaScript function with `arguments`, and returns its result."""
        script = (
            "const done = arguments[arguments.length - 1];"
            f"(async function () {{ {body} }}).apply(null, arguments)"
            ".then((value) => done({ value }), (problem) => done({ problem: String(problem) }));"
        )
        answer = _call("POST", f"{self._address}/execute/async", {"script": script, "args": list(arguments)})
        if "problem" in answer:
            raise BrowserError(answer["problem"])
        return answer.get("value")

    def command(self, name: str, **parameters: Any) -> Any:
        """The answer to a command of the DevTools protocol."""
        return _call("POST", f"{self._address}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """New entries of a log (`browser` or `performance`) since the last call."""
        entries: list[dict[str, Any]] = _call("POST", f"{self._address}/se/log", {"type": kind})
        return entries

    def requests(self) -> list[str]:
        """Addresses that the page and its workers have requested since `open`."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def errors(self) -> list[str]:
        """Errors and warnings in the console since `open`."""
        return [entry["message"] for entry in self.log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def screenshot(self) -> NDArray[np.uint8]:
        """A screenshot of the window, [h, w, 3]."""
        return decoded(_call("GET", f"{self._address}/screenshot"))[..., :3]

    def wait_for_download(self, seconds: float = 20) -> Path:
        """The one downloaded file, after it is complete."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            files = list(self.downloads.iterdir())
            if len(files) == 1 and files[0].suffix != ".crdownload" and files[0].stat().st_size:
                return files[0]
            time.sleep(0.05)
        raise BrowserError(f"no download within {seconds} s")


def decoded(png: str) -> NDArray[np.uint8]:
    """The pixels of a PNG in base64, [h, w, 4]."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA"))


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A browser with a profile of its own, which ends with the block; `flags` are further Chromium flags."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        driver = subprocess.Popen(
            [str(CHROMEDRIVER), "--port=0", "--allowed-ips="],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            base = f"http://127.0.0.1:{_port(driver)}"
            downloads = Path(folder) / "downloads"
            downloads.mkdir()
            session = _call("POST", f"{base}/session", {"capabilities": {"alwaysMatch": _wishes(folder, flags)}})
            address = f"{base}/session/{session['sessionId']}"
            try:
                yield Browser(address, downloads)
            finally:
                _call("DELETE", address)
        finally:
            driver.terminate()
            driver.wait(timeout=20)
            assert driver.stdout is not None
            driver.stdout.close()


def _wishes(folder: str, flags: tuple[str, ...]) -> dict[str, Any]:
    return {
        "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        "goog:chromeOptions": {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={folder}/profile", *flags]},
        "timeouts": {"script": 120_000, "pageLoad": 120_000},
    }


def _port(driver: "subprocess.Popen[str]") -> int:
    """The port that ChromeDriver chose, from its output."""
    deadline = time.monotonic() + START_S
    assert driver.stdout is not None
    for line in driver.stdout:
        words = line.strip().rstrip(".").split()
        if "successfully" in words and words[-1].isdigit():
            return int(words[-1])
        if time.monotonic() > deadline:
            break
    raise BrowserError("ChromeDriver did not start")


def _call(method: str, address: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback, whatever the proxy settings
    try:
        with opener.open(request, timeout=180) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as problem:
        with problem:
            raise BrowserError(json.load(problem)["value"]["message"]) from problem
