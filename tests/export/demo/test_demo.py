"""The page classifies what is dropped on it, in the browser as on the server, and tells its own machine
only."""

import base64
import http.client
import io
import json
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from browser import Browser
from PIL import Image, ImageOps

from engine.command.cli import parse
from engine.errors import UserError
from export.bundle.classify import prepare_image
from export.demo import vendor as vendor_module
from export.demo.__main__ import Demo
from export.demo.server import MOST_BYTES, Server, open_server
from export.demo.vendor import RUNTIME_FILES, VERSION, unpack, vendored

DROP = """(() => {{
  const bytes = Uint8Array.from(atob("{}"), (c) => c.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], "dropped", {{ type: "image/png" }}));
  document.dispatchEvent(new DragEvent("drop", {{ dataTransfer: data, cancelable: true }}));
}})()"""


def picture(width: int, height: int, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def server(bundled_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Of the bundle 60k, without onnxruntime-web."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield from serving(open_server(bundled_run / "export" / "60k", 0))


def serving(server: Server) -> Iterator[Server]:
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: Server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def dropped(browser: Browser, content: bytes) -> Any:
    """What the page says of an image."""
    browser.run(DROP.format(base64.b64encode(content).decode()))
    return json.loads(browser.wait("document.documentElement.dataset.answer"))


def test_the_page_asks_the_server_where_no_runtime_was_fetched(server: Server, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.ask("Page.navigate", url=f"http://localhost:{server.server_port}/")
        assert browser.wait("document.documentElement.dataset.ready") == "server"
        assert "classified by the server" in browser.run("document.body.innerText")
        content = picture(37, 53)
        chances = dropped(browser, content)
        assert chances == server.classify("60k.onnx", content)
        best = browser.run(
            "[...document.querySelectorAll('#answers li')].map((li) => li.innerText.split('\\n'))"
        )
        order = np.argsort(chances)[::-1]
        assert [label for label, _ in best] == [str(i) for i in order[:5]]
        assert best[0][1] == f"{100 * chances[order[0]]:.1f}%"
        browser.run(DROP.format(base64.b64encode(b"no image").decode()))
        assert browser.wait("document.documentElement.dataset.answer") == "failed"
        assert "The file is no image that can be read" in browser.run("document.body.innerText")


def test_the_browser_prepares_images_number_for_number(server: Server, tmp_path: Path) -> None:
    """The page's own code against Pillow and NumPy: larger, smaller, cropped, gray, as numbers and as
    pixels."""
    how = {
        "resize_shorter_side": 37,
        "center_crop": 32,
        "resize_interpolation": "bicubic, antialiased",
        "channels": "RGB",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.1],
    }
    cases = [how | {"resize": [size] * 2} for size in (32, 40, 21)]
    cases += [case | {"resize_interpolation": "bilinear, antialiased"} for case in cases]
    cases += [
        {"image_size": 12, "resize": [size] * 2, "channels": "gray", "mean": [0.3], "std": [0.4]}
        for size in (12, 9)
    ]
    cases.append(cases[0] | {"baked": "preprocessing"})
    with Browser(tmp_path / "profile") as browser:
        browser.ask("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/")
        browser.wait("document.documentElement.dataset.ready")
        rectangles = [(53, 37), (30, 41), (200, 133)]
        for case, size in zip(cases, [*rectangles * 2, (12, 12), (64, 17), (31, 9)], strict=True):
            image = Image.open(io.BytesIO(picture(*size)))
            for dtype, layout in (("float32", "NCHW"), ("uint8", "NHWC")):
                file = {"preprocessing": case, "input": {"dtype": dtype, "layout": layout}}
                pixels = {
                    "width": image.width,
                    "height": image.height,
                    "data": list(image.convert("RGBA").tobytes()),
                }
                got = browser.run(
                    "import('./prepare.js').then((m) => "
                    f"{{ const x = m.prepare({json.dumps(pixels)}, {json.dumps(file)});"
                    " return [Array.from(x.data), x.dims]; })"
                )
                wanted = prepare_image(image, file)
                assert got[1] == list(wanted.shape)
                np.testing.assert_allclose(
                    np.reshape(got[0], wanted.shape), wanted, atol=1e-6 if dtype == "float32" else 0
                )


def test_the_page_turns_images_upright(server: Server, tmp_path: Path) -> None:
    """Every orientation that a camera writes; a PNG, whose pixels no decoder changes."""
    with Browser(tmp_path / "profile") as browser:
        browser.ask("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/")
        browser.wait("document.documentElement.dataset.ready")
        for orientation in range(1, 9):
            image, exif, file = Image.open(io.BytesIO(picture(24, 16))), Image.Exif(), io.BytesIO()
            exif[274] = orientation
            image.save(file, "PNG", exif=exif)
            content = base64.b64encode(file.getvalue()).decode()
            width, height, data = browser.run(
                "import('./prepare.js').then((m) => m.decode(new Blob("
                f"[Uint8Array.from(atob('{content}'), (c) => c.charCodeAt(0))])))"
                ".then((x) => [x.width, x.height, Array.from(x.data)])"
            )
            upright = ImageOps.exif_transpose(Image.open(file)).convert("RGBA")
            assert (width, height) == upright.size, orientation
            assert bytes(data) == upright.tobytes(), orientation


@pytest.mark.parametrize("name", ["60k", "largest"])
def test_the_browser_classifies_as_the_server_does(bundled_run: Path, tmp_path: Path, name: str) -> None:
    """With the onnxruntime-web that `python -m export.demo --vendor` fetched; without the network there is
    nothing to test."""
    runtime = vendored()
    if runtime is None:
        pytest.skip("onnxruntime-web was not fetched; python -m export.demo --vendor does that")
    for server in serving(open_server(bundled_run / "export" / name, 0, runtime)):
        with Browser(tmp_path / "profile") as browser:
            browser.ask("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/")
            assert browser.wait("document.documentElement.dataset.ready") == "browser", browser.run(
                "document.body.innerText"
            )
            assert f"in this browser by onnxruntime-web {VERSION}" in browser.run("document.body.innerText")
            content = picture(90, 50)
            np.testing.assert_allclose(
                dropped(browser, content), server.classify(f"{name}.onnx", content), atol=1e-5
            )
            assert not server.opened.keys() - {f"{name}.onnx"}


def test_what_is_served_and_what_is_not(server: Server) -> None:
    status, page = ask(server, "GET", "/")
    assert status == 200 and b"Drop an image here" in page
    assert not [word for word in (b"http://", b"https://") if word in page], "nothing from elsewhere"
    assert json.loads(ask(server, "GET", "/runtime.json")[1]) == {"version": None, "files": []}
    assert json.loads(ask(server, "GET", "/manifest.json")[1])["subnet"] == "60k"
    assert ask(server, "GET", "/60k.onnx")[1] == (server.folder / "60k.onnx").read_bytes()
    for path in (
        "/README.md",
        "/../60k.json",
        "/..%2f60k.json",
        "/vendor/ort.wasm.bundle.min.mjs",
        "/nothing",
        "//etc/passwd",
    ):
        assert ask(server, "GET", path)[0] == 404


def test_bad_requests_are_sentences(server: Server) -> None:
    def error(*words: Any, **headers: str) -> tuple[int, str]:
        status, content = ask(server, *words, **headers)
        return status, json.loads(content)["error"]

    good = picture(9, 9)
    assert error("POST", f"/classify?file={quote('../60k.onnx')}", good) == (
        400,
        "This bundle has no model file '../60k.onnx'.",
    )
    for bad in (b"", b"hello", good[: len(good) // 2]):
        status, sentence = error("POST", "/classify?file=60k.onnx", bad)
        assert status == 400 and sentence.startswith("The file is no image that can be read")
    assert error("POST", "/elsewhere", good)[0] == 404
    for strange in ("²", "-1", "+5", "1_0", "0x10", "9" * 5000, "", " ", "٣"):
        # http.client sends no such header by itself.
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as line:
            head = "POST /classify?file=60k.onnx HTTP/1.1\r\nHost: localhost:1\r\n"
            head += f"Content-Length: {strange}\r\n\r\n"
            line.sendall(head.encode())
            assert line.recv(9999).startswith(b"HTTP/1.1 413 "), strange
    narrow = io.BytesIO()
    Image.new("RGB", (1, 20_000)).save(narrow, "PNG")
    status, sentence = error("POST", "/classify?file=60k.onnx", narrow.getvalue())
    assert status == 400 and "too long and narrow" in sentence
    too_much = {"Content-Length": str(MOST_BYTES + 1)}
    assert error("POST", "/classify?file=60k.onnx", None, **too_much) == (
        413,
        "The image must have no more than 50 MB.",
    )
    assert error("GET", "/", None, Host="example.org:80") == (
        403,
        "This page is served to its own machine only.",
    )
    assert ask(server, "GET", "/")[0] == 200, "it is still there"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_server_turns_images_upright(server: Server, orientation: int) -> None:
    image, exif, file = Image.open(io.BytesIO(picture(24, 16))), Image.Exif(), io.BytesIO()
    exif[274] = orientation
    image.save(file, "PNG", exif=exif)
    upright = io.BytesIO()
    ImageOps.exif_transpose(Image.open(file)).save(upright, "PNG", exif=b"")
    found = server.classify("60k.onnx", file.getvalue())
    np.testing.assert_allclose(found, server.classify("60k.onnx", upright.getvalue()), atol=1e-6)


def test_others_in_the_network_need_the_token(bundled_run: Path) -> None:
    """Any other address than that of this machine alone; here one that stands for all."""
    for server in serving(open_server(bundled_run / "export" / "60k", 0, host="0.0.0.0")):
        assert len(server.token) > 20
        for path in ("/", "/manifest.json", "/x/manifest.json", f"/{server.token}", f"/{server.token}x/"):
            assert ask(server, "GET", path)[0] == 403
            assert ask(server, "GET", path, Host="localhost:1")[0] == 403
        assert ask(server, "POST", "/classify?file=60k.onnx", picture(9, 9))[0] == 403
        start = f"/{server.token}/"
        assert b"Drop an image here" in ask(server, "GET", start, Host="192.168.1.7:8000")[1]
        assert json.loads(ask(server, "GET", f"{start}manifest.json")[1])["subnet"] == "60k"
        assert ask(server, "POST", f"{start}classify?file=60k.onnx", picture(9, 9))[0] == 200
        for path in ("../60k.json", "..%2f60k.json", "/etc/passwd", f"{server.token}/manifest.json"):
            assert ask(server, "GET", start + path)[0] == 404
    assert parse(Demo, ["x"]).host == "127.0.0.1"


def test_only_this_machine_reaches_the_page(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1" and server.token == ""


def test_the_commands_mistakes_are_sentences(bundled_run: Path, server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Name a bundle to serve"):
        parse(Demo, []).execute()
    with pytest.raises(UserError, match="is no bundle"):
        parse(Demo, [str(tmp_path)]).execute()
    with pytest.raises(UserError, match=f"Port {server.server_port} cannot be used"):
        parse(Demo, [str(server.folder), "--port", str(server.server_port)]).execute()
    copy = shutil.copytree(server.folder, tmp_path / "copy")
    (copy / "60k.onnx").write_bytes(b"other")
    with pytest.raises(UserError, match="is not what was bundled"):
        open_server(copy, 0)


def test_only_the_expected_package_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name in (*RUNTIME_FILES, "other.js"):
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))
    with pytest.raises(UserError, match=f"is not the onnxruntime-web {VERSION} that is expected"):
        unpack(package, vendor_module.cache())
    assert vendored() is None
    unpack(package, vendor_module.cache(), vendor_module.sha512_of(package))
    found = vendored()
    assert found is not None and sorted(p.name for p in found.iterdir()) == sorted(RUNTIME_FILES)
    assert vendor_module.vendor() == found, "not fetched again"


def test_without_npm_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"npm is not installed.*install Node\.js"):
        vendor_module.vendor()
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'no network' >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(UserError, match=r"npm could not fetch onnxruntime-web .* \(no network\)"):
        vendor_module.vendor()
