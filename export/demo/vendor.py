"""onnxruntime-web for the demo page: a pinned npm package, fetched once when the user asks for it.

Two of its files are kept in this user's cache.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from engine.errors import UserError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The module and the WebAssembly that it loads; the page needs nothing else of the package.
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def cache() -> Path:
    """The folder of the files, whether they are there or not."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "ofa-toolkit" / f"{PACKAGE}-{VERSION}"


def vendored() -> Path | None:
    """The folder of the files, if they were fetched."""
    return cache() if all((cache() / name).is_file() for name in RUNTIME_FILES) else None


def vendor() -> Path:
    """Fetch the package with npm, unless that was done; returns the folder.

    Raises:
        UserError: npm is missing or fails, or the package is not the one that is expected.
    """
    if (found := vendored()) is not None:
        return found
    if shutil.which("npm") is None:
        raise UserError(
            "npm is not installed, which fetches onnxruntime-web; install Node.js, or let the server "
            "classify."
        )
    with tempfile.TemporaryDirectory() as folder:
        # `npm pack` downloads the package and runs none of its scripts, which `npm install` would.
        words = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", folder]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode or not packed:
            reason = next(iter((done.stderr or done.stdout).strip().splitlines()[-1:]), "no message")
            raise UserError(
                f"npm could not fetch {PACKAGE} {VERSION} ({reason}); try again, or let the server classify."
            )
        return unpack(packed[0], cache())


def sha512_of(package: Path) -> str:
    """SHA-512 of a file in base64, as npm writes it."""
    return base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()


def unpack(package: Path, folder: Path, sha512: str = SHA512) -> Path:
    """Unpack the files of the npm package into `folder`, all of them or none; returns the folder.

    Raises:
        UserError: `package` is another one than the expected.
    """
    # Compared with the hash in this file, so that the registry cannot change what runs in the browser.
    if sha512_of(package) != sha512:
        raise UserError(
            f"{package.name} is not the {PACKAGE} {VERSION} that is expected (SHA-512 differs); nothing was "
            "kept of it."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work, tarfile.open(package) as archive:
        for name in RUNTIME_FILES:
            content = archive.extractfile(f"package/dist/{name}")
            assert content is not None
            (Path(work) / name).write_bytes(content.read())
        # All files are complete in the temporary folder before the old ones are removed.
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(work, folder)
    return folder
