"""The server of the demo: its page, a bundle's files, and answers about images, for this machine.

Only if --host says so, others in the network reach it, by an address that holds a random token.
"""

import contextlib
import io
import json
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from PIL import Image, UnidentifiedImageError

from engine.errors import UserError
from engine.outside.names import inside
from export.bundle.classify import classify
from export.bundle.contents import MANIFEST, read_bundle
from export.demo.vendor import RUNTIME_FILES, VERSION, vendored
from export.formats import format_of
from export.formats.format import Run
from export.formats.onnx import first_line

WEB = Path(__file__).parent / "web"
PAGE = ("index.html", "demo.css", "demo.js", "prepare.js")
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
}
LOOPBACK = "127.0.0.1"  # the address that only this machine itself reaches
MOST_BYTES = 50 * 1000**2  # of an image; it is held in memory
# The page may load from this server only; onnxruntime-web compiles WebAssembly, and images are shown as
# blobs.
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src blob: data:; connect-src 'self'; "
    "frame-ancestors 'none'"
)


class Server(ThreadingHTTPServer):
    """Serves one bundle.

    Args:
        folder: of the bundle.
        port: where to listen; 0: any that is free.
        runtime: the folder of onnxruntime-web, if it was fetched.
        host: the address to listen on. Where that is not this machine's own, every path begins with a random
            `token`, so that only those find the page who were told its address.
    """

    daemon_threads = True  # Ctrl-C ends the server even while a request is answered

    def __init__(self, folder: Path, port: int, runtime: Path | None, host: str = LOOPBACK):
        self.token = "" if host == LOOPBACK else secrets.token_urlsafe(16)
        self.folder, self.bundle, self.runtime = folder, read_bundle(folder), runtime
        self.files = {file["file"]: file for file in self.bundle.model_dump(mode="json")["files"]}
        self.opened: dict[str, Run] = {}  # files that were asked for, by name
        self.lock = threading.Lock()
        super().__init__((host, port), Handler)

    def in_browser(self) -> list[str]:
        """The model files that onnxruntime-web runs."""
        return [name for name in self.files if format_of(Path(name)).in_browser]

    def classify(self, name: str, content: bytes) -> list[float]:
        """Probabilities by the model file `name` for an encoded image.

        Raises:
            ValueError: there is no such file, the image cannot be read, or the file's runtime is not
                installed.
        """
        if name not in self.files:
            raise ValueError(f"This bundle has no model file '{name}'.")
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise ValueError(
                "The file is no image that can be read, or it is damaged or far too large."
            ) from None
        # One request at a time: not every runtime may be called from several threads.
        with self.lock:
            if name not in self.opened:
                path = inside(self.folder, name)
                self.opened[name] = format_of(path).open(path)
            try:
                shares = classify(image, self.files[name], self.opened[name])
            except ValueError:
                raise
            except Exception as error:
                # Runtimes have no common class of errors, and a request must be answered whatever they raise.
                raise ValueError(f"The model file fails on this image ({first_line(error)}).") from None
        return [float(share) for share in shares]


def open_server(folder: Path, port: int, runtime: Path | None = None, host: str = LOOPBACK) -> Server:
    """A server that listens.

    Args:
        folder: of a bundle.
        port: where to listen; 0: any that is free.
        runtime: the folder of onnxruntime-web; none: where --vendor put it, if it did.
        host: the address to listen on.

    Raises:
        UserError: the folder is no bundle, the port is taken, or the machine does not have that address.
    """
    try:
        return Server(folder, port, runtime or vendored(), host)
    except OSError as error:
        raise UserError(
            f"Port {port} cannot be used on {host} ({error.strerror}); choose another with --port, or 0 for "
            "any that is free."
        ) from None


class Handler(BaseHTTPRequestHandler):
    """Answers requests of this machine's pages.

    A page from elsewhere that found a way to this port is refused by its Host, or for want of the token.
    """

    server: Server
    timeout = 60  # seconds without a byte, after which a connection is closed
    protocol_version = "HTTP/1.1"  # a browser fetches all files of the page over one connection

    def do_GET(self) -> None:
        """The page, the bundle's files, and onnxruntime-web."""
        if not self._welcome():
            return
        # Only names of known files are served, so no path can lead out of the folders.
        name, runtime = self._name() or PAGE[0], self.server.runtime
        if name == "runtime.json":
            names = self.server.in_browser() if runtime else []
            self._json({"version": VERSION if runtime else None, "files": names})
        elif name in PAGE:
            self._file(WEB / name)
        elif name == MANIFEST or name in self.server.files:
            self._file(inside(self.server.folder, name))
        elif runtime is not None and name in {f"vendor/{file}" for file in RUNTIME_FILES}:
            self._file(runtime / name.removeprefix("vendor/"))
        else:
            self._json({"error": "There is no such page."}, HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """classify?file=NAME with an image as the body."""
        if not self._welcome():
            return
        # The size is checked before the body is read, so that nobody can fill the memory.
        size = self.headers.get("Content-Length", "")
        # Digits of other scripts, such as ², are digits for Python and no numbers.
        is_number = size.isascii() and size.isdigit() and len(size) <= len(str(MOST_BYTES))
        if not is_number or int(size) > MOST_BYTES:
            self.close_connection = True  # the body is not read
            self._json(
                {"error": f"The image must have no more than {MOST_BYTES // 1000**2} MB."},
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
            return
        content = self.rfile.read(int(size))
        name = parse_qs(urlsplit(self.path).query).get("file", [""])[0]
        if self._name() != "classify":
            self._json({"error": "There is no such page."}, HTTPStatus.NOT_FOUND)
            return
        try:
            self._json({"probabilities": self.server.classify(name, content)})
        except ValueError as error:
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)

    def _name(self) -> str:
        """What is asked for, without the token and the first slash."""
        path = unquote(urlsplit(self.path).path)
        return path.removeprefix(f"/{self.server.token}" if self.server.token else "").removeprefix("/")

    def _welcome(self) -> bool:
        """Whether the request comes from this machine, or has the token; if not, it is answered here."""
        if self.server.token:
            # Compared in a time that does not tell how much of it is right. A page elsewhere does not know
            # it, so the Host does not matter.
            start = unquote(urlsplit(self.path).path)[: len(self.server.token) + 2]
            welcome = secrets.compare_digest(start.encode(), f"/{self.server.token}/".encode())
        else:
            # A page elsewhere can point a name of its own at 127.0.0.1 (DNS rebinding). Its Host tells.
            welcome = self.headers.get("Host", "").rpartition(":")[0] in (LOOPBACK, "localhost")
        if not welcome:
            self.close_connection = True
            self._json({"error": "This page is served to its own machine only."}, HTTPStatus.FORBIDDEN)
        return welcome

    def _file(self, path: Path) -> None:
        self._send(path.read_bytes(), TYPES.get(path.suffix, "application/octet-stream"), HTTPStatus.OK)

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        headers |= {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        # A reader that closed its page while this was sent is no error.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests are no news."""
