"""A page on this machine where an image dropped in is classified by a bundle's model file: in the browser, or
else by this server."""

import contextlib
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from engine.command.cli import Command, main
from engine.command.start import say
from engine.errors import UserError
from export.demo.server import LOOPBACK, open_server
from export.demo.vendor import VERSION, vendor


class Demo(Command):
    """Serve a page, to this machine only, where an image dropped in is classified by the files of a bundle.

    The browser does it with onnxruntime-web, once that was fetched by --vendor (an npm package; npm must be
    installed); the image then does not leave the page. Otherwise this server does. With --host a phone in the
    same network can use the page, too, by an address that holds a random word. Ctrl-C ends it.

    examples:
      python -m export.bundle --run runs/photos
      python -m export.demo --vendor                            once
      python -m export.demo runs/photos/export/600M
    """

    folder: CliPositionalArg[Path | None] = Field(
        None, description="a bundle: a folder that python -m export.bundle wrote"
    )
    port: int = Field(8000, ge=0, le=65535, description="where to listen; 0: any that is free")
    host: str = Field(
        LOOPBACK,
        description=(
            "address to listen on; another than 127.0.0.1, such as this machine's own in the network or "
            "0.0.0.0, lets a phone use the page"
        ),
    )
    vendor: bool = Field(
        False, description=f"first fetch onnxruntime-web {VERSION} with npm into this user's cache"
    )

    def execute(self) -> int:
        """Fetch the runtime if asked to; serve until Ctrl-C."""
        if self.vendor:
            print(f"onnxruntime-web {VERSION} is in {vendor()}")
        if self.folder is None:
            if self.vendor:
                say(
                    "next: python -m export.demo DIR, where DIR is a folder that python -m export.bundle "
                    "wrote"
                )
                return 0
            raise UserError(
                "Name a bundle to serve, such as runs/supernet/export/600M; python -m export.bundle writes "
                "them."
            )
        with open_server(self.folder, self.port, host=self.host) as server:
            how = "by this server (python -m export.demo --vendor: in the browser)"
            if server.runtime and server.in_browser():
                how = "in the browser"
            address = f"http://{self.host}:{server.server_port}/"
            if server.token:
                address += f"{server.token}/"
                print(
                    "warning: everybody in the network who learns this address can use the page, and what is "
                    "sent can be read on the way"
                )
            print(f"{address} classifies images {how}; Ctrl-C ends it", flush=True)
            # Ctrl-C is how a server is ended, so it is no failure.
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
        return 0


if __name__ == "__main__":
    main(Demo)
