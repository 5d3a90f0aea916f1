"""A headless Chromium, driven by its own chromedriver over the W3C WebDriver protocol."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
ARROW_RIGHT = "\ue014"


class Browser:
    """`with Browser() as browser:`; needs `chromium` and `chromedriver` on the path."""

    def __init__(self, width: int = 1200, height: int = 1000):
        self.size = f"--window-size={width},{height}"

    def __enter__(self) -> Browser:
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        lines = iter(self.driver.stdout.readline, "")
        port = next(
            found[1] for line in lines if (found := re.search(r"started .*port (\d+)", line))
        )
        self.url = f"http://127.0.0.1:{port}"
        options = {"goog:chromeOptions": {"args": [*FLAGS, self.size]}}
        capabilities = {"capabilities": {"alwaysMatch": options}}
        self.url += "/session/" + self._send("/session", capabilities)["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        self._send("", method="DELETE")
        self.driver.terminate()
        self.driver.wait(timeout=30)
        self.driver.stdout.close()

    def _send(self, path: str, body: dict | None = None, method: str = "POST") -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.url + path, data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self._send("/url", {"url": url})

    def run(self, script: str) -> Any:
        """The value a script returns in the page."""
        return self._send("/execute/sync", {"script": script, "args": []})

    def type(self, selector: str, keys: str) -> None:
        """Press keys with the element in focus, as a person would."""
        found = self._send("/element", {"using": "css selector", "value": selector})
        self._send(f"/element/{found[ELEMENT]}/value", {"text": keys})

    def wait(self, script: str, seconds: float = 60) -> Any:
        """The first value other than null and false that the script returns."""
        end = time.monotonic() + seconds
        while True:
            value = self.run(script)
            if value not in (None, False):
                return value
            assert time.monotonic() < end, f"never true in the page: {script}"
            time.sleep(0.1)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._send("/screenshot", method="GET")))
