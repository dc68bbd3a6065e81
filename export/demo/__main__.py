"""A page on this machine where an image dropped in is classified by a bundle's model file: in the browser, or
else by this server."""

import contextlib
import io
import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import onnxruntime as ort
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from pydantic_settings import CliPositionalArg

from engine.command.cli import Command, main
from engine.errors import UserError
from export.bundle.classify import classify
from export.bundle.contents import MANIFEST, read_bundle
from export.demo.vendor import RUNTIME_FILES, VERSION, vendor, vendored

WEB = Path(__file__).parent / "web"
PAGE = ("index.html", "demo.css", "demo.js", "prepare.js")
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
}
MOST_BYTES = 50 * 1000**2
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src blob: data:; connect-src 'self'; "
    "frame-ancestors 'none'"
)


class Demo(Command):
    """Serve a page, to this machine only, where an image dropped in is classified by the files of a bundle.

    The browser does it with onnxruntime-web, once that was fetched by --vendor (an npm package; npm must be
    installed); the image then does not leave the page. Otherwise this server does. Ctrl-C ends it.

    examples:
      python -m export.bundle --run runs/photos
      python -m export.demo --vendor                            once
      python -m export.demo runs/photos/export/600M
    """

    folder: CliPositionalArg[Path | None] = Field(
        None, description="a bundle: a folder that python -m export.bundle wrote"
    )
    port: int = Field(8000, ge=0, le=65535, description="where to listen on 127.0.0.1; 0: any that is free")
    vendor: bool = Field(
        False, description=f"first fetch onnxruntime-web {VERSION} with npm into this user's cache"
    )

    def execute(self) -> int:
        """Fetch if asked; serve until Ctrl-C."""
        if self.vendor:
            print(f"onnxruntime-web {VERSION} is in {vendor()}")
        if self.folder is None:
            if self.vendor:
                print(
                    "next: python -m export.demo DIR, where DIR is a folder that python -m export.bundle "
                    "wrote"
                )
                return 0
            raise UserError(
                "Name a bundle to serve, such as runs/supernet/export/600M; python -m export.bundle writes "
                "them."
            )
        with open_server(self.folder, self.port) as server:
            how = (
                "in the browser"
                if server.runtime
                else "by this server (python -m export.demo --vendor: in the browser)"
            )
            print(
                f"http://127.0.0.1:{server.server_port}/ classifies images {how}; Ctrl-C ends it", flush=True
            )
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
        return 0


class Server(ThreadingHTTPServer):
    """Serves one bundle. runtime: the folder of onnxruntime-web, if it was fetched."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int, runtime: Path | None):
        self.folder, self.bundle, self.runtime = folder, read_bundle(folder), runtime
        self.files = {file["file"]: file for file in self.bundle.model_dump(mode="json")["files"]}
        self.sessions: dict[str, ort.InferenceSession] = {}
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)

    def classify(self, name: str, content: bytes) -> list[float]:
        """Probabilities by the model file `name` for an encoded image.

        Raises:
            ValueError: there is no such file, or the image cannot be read. A sentence.
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
        with self.lock:
            if name not in self.sessions:
                self.sessions[name] = ort.InferenceSession(
                    str(self.folder / name), providers=["CPUExecutionProvider"]
                )
        return [float(p) for p in classify(image, self.files[name], self.sessions[name])]


def open_server(folder: Path, port: int, runtime: Path | None = None) -> Server:
    """A server that listens. runtime: where onnxruntime-web is; none: where --vendor put it, if it did.

    Raises:
        UserError: the folder is no bundle, or the port is taken.
    """
    try:
        return Server(folder, port, runtime or vendored())
    except OSError as error:
        raise UserError(
            f"Port {port} cannot be used ({error.strerror}); choose another with --port, or 0 for any that "
            "is free."
        ) from None


class Handler(BaseHTTPRequestHandler):
    """Answers pages of this machine only: a page from elsewhere that found a way to this port is refused by
    its Host."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, the bundle's files, and onnxruntime-web."""
        name = unquote(urlsplit(self.path).path).removeprefix("/") or PAGE[0]
        runtime = self.server.runtime
        if not self._from_here():
            return
        if name == "runtime.json":
            self._json({"version": VERSION if runtime else None})
        elif name in PAGE:
            self._file(WEB / name)
        elif name == MANIFEST or name in self.server.files:
            self._file(self.server.folder / name)
        elif runtime is not None and name in {f"vendor/{file}" for file in RUNTIME_FILES}:
            self._file(runtime / name.removeprefix("vendor/"))
        else:
            self._json({"error": "There is no such page."}, HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """classify?file=NAME with an image as the body."""
        if not self._from_here():
            return
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > MOST_BYTES:
            self.close_connection = True  # the body is not read
            self._json(
                {"error": f"The image must have no more than {MOST_BYTES // 1000**2} MB."},
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
            return
        content, parts = self.rfile.read(int(size)), urlsplit(self.path)
        if parts.path != "/classify":
            self._json({"error": "There is no such page."}, HTTPStatus.NOT_FOUND)
            return
        try:
            self._json(
                {"probabilities": self.server.classify(parse_qs(parts.query).get("file", [""])[0], content)}
            )
        except ValueError as error:
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)

    def _from_here(self) -> bool:
        here = self.headers.get("Host", "").rpartition(":")[0] in ("127.0.0.1", "localhost")
        if not here:
            self.close_connection = True
            self._json({"error": "This page is served to its own machine only."}, HTTPStatus.FORBIDDEN)
        return here

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
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are no news."""


if __name__ == "__main__":
    main(Demo)
