"""A headless browser for tests of pages, spoken to over its debugging pipe: no driver, no port, no
package."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)
SECONDS = 60.0
AS_3_AND_4 = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(word), fcntl.F_DUPFD, 10) for word in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4), os.execv(sys.argv[3], sys.argv[3:])
"""  # where the browser expects its debugging pipe


def find_browser() -> str:
    """Chromium or Chrome; the test is skipped where there is none."""
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
    )
    if found is None:
        pytest.skip("no chromium, google-chrome or chrome on PATH to open the page in")
    return found


class Browser:
    """One page in a fresh profile. Use it in a `with`."""

    def __init__(self, profile: Path):
        (from_us, to_it), (from_it, to_us) = os.pipe(), os.pipe()
        words = [find_browser(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        start = [sys.executable, "-c", AS_3_AND_4, str(from_us), str(to_us), *words]
        self.process = subprocess.Popen(
            start, pass_fds=(from_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(from_us)
        os.close(to_us)
        self.send, self.receive, self.ids = to_it, from_it, itertools.count(1)
        self.rest = b""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session: str | None = self.ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]

    session = None

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self.send)
        os.close(self.receive)

    def ask(self, method: str, **values: Any) -> dict[str, Any]:
        """The answer to one command of the DevTools protocol."""
        number = next(self.ids)
        message = {"id": number, "method": method, "params": values} | (
            {"sessionId": self.session} if self.session else {}
        )
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                part = os.read(self.receive, 1 << 16)
                assert part, "the browser ended"
                self.rest += part
            line, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        answer = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression once it is truthy; while a page is loading, it may not even be
        defined."""
        tried = f"(() => {{ try {{ return {script} }} catch {{ return null }} }})()"
        until = time.monotonic() + SECONDS
        while not (value := self.run(tried)):
            assert time.monotonic() < until, (
                f"{script} stays {value!r}: {self.run('document.body.innerText')}"
            )
            time.sleep(0.05)
        return value
