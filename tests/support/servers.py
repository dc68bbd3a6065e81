"""Database servers that a test starts in a temporary folder, on a free port, and stops at its end."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE = 60  # seconds until a server has started
# Where Debian keeps the programs of servers, beside the folders of PATH.
FOLDERS = [os.environ.get("PATH", ""), "/usr/sbin", *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]


@contextmanager
def server(kind: str) -> Iterator[str]:
    """The address of an empty database of a server that runs while the block does.

    It skips the test where the server is not installed.

    Args:
        kind: `postgresql`, `mysql` or `redis`.
    """
    start = {"postgresql": _postgresql, "mysql": _mysql, "redis": _redis}[kind]
    with tempfile.TemporaryDirectory(prefix="server", ignore_cleanup_errors=True) as folder:
        account = _account(Path(folder))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command, address = start(Path(folder), port, account)
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, user=account)
            try:
                _wait(port, process, Path(folder) / "log")
                yield address
            finally:
                # SIGINT: at SIGTERM PostgreSQL waits for its clients, of which this process is one.
                process.send_signal(signal.SIGINT if kind == "postgresql" else signal.SIGTERM)
                process.wait()


def _program(*names: str) -> str:
    for name in names:
        found = shutil.which(name, path=":".join(FOLDERS))
        if found:
            return found
    pytest.skip(f"{names[0]} is not installed")


def _account(folder: Path) -> str | None:
    """The account that runs the server: PostgreSQL and MariaDB refuse that of root."""
    if os.geteuid():
        return None
    name = "nobody"
    os.chown(folder, pwd.getpwnam(name).pw_uid, pwd.getpwnam(name).pw_gid)
    return name


def _run(command: list[str], folder: Path, account: str | None) -> None:
    done = subprocess.run(command, cwd=folder, user=account, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _postgresql(folder: Path, port: int, account: str | None) -> tuple[list[str], str]:
    data = str(folder / "data")
    make, serve = _program("initdb"), _program("postgres")
    _run([make, "-D", data, "-A", "trust", "-U", "tester", "--no-sync"], folder, account)
    words = [serve, "-D", data, "-p", str(port), "-k", "", "-F", "-c", "listen_addresses=127.0.0.1"]
    return words, f"postgresql://tester:secret@127.0.0.1:{port}/postgres"


def _mysql(folder: Path, port: int, account: str | None) -> tuple[list[str], str]:
    data = f"--datadir={folder / 'data'}"
    make, serve = _program("mariadb-install-db"), _program("mariadbd")
    setup = folder / "setup.sql"
    setup.write_text(
        "CREATE DATABASE studies;\n"
        "CREATE USER tester@'127.0.0.1' IDENTIFIED BY 'secret';\n"
        "GRANT ALL ON studies.* TO tester@'127.0.0.1';\n"
    )
    _run(
        [make, "--no-defaults", data, "--skip-test-db", "--auth-root-authentication-method=normal"],
        folder,
        account,
    )
    words = [serve, "--no-defaults", data, f"--port={port}", f"--socket={folder / 'socket'}"]
    words += ["--bind-address=127.0.0.1", "--skip-name-resolve", f"--init-file={setup}"]
    return words, f"mysql://tester:secret@127.0.0.1:{port}/studies"


def _redis(folder: Path, port: int, account: str | None) -> tuple[list[str], str]:
    words = [_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    return words, f"journal+redis://127.0.0.1:{port}/0"


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(10 * PATIENCE):
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())
