"""What installs an extra depends on where the packages lie."""

from pathlib import Path

import pytest

from engine.command import install
from engine.command.install import install_command


def test_from_a_clone_its_folder_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    monkeypatch.setattr(install, "ROOT", clone)
    assert install_command("openvino") == f"pip install -e '{clone}[openvino]'"
    monkeypatch.chdir(clone)
    assert install_command("openvino") == "pip install -e '.[openvino]'"


def test_from_an_index_the_distribution_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "ROOT", tmp_path)
    assert install_command("openvino") == "pip install 'ofa-toolkit[openvino]'"
