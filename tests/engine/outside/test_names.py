"""Names from files stay in their folder, and class names on their line."""

from pathlib import Path

import pytest
from rich.table import Table

from engine.command.table import show
from engine.errors import UserError
from engine.outside.names import check_class_names, expanded, inside, is_plain_name

OUTSIDE = [
    *("/etc/passwd", "../a", "a/b", "..", ".", "", "a\\b", "C:a", "a\0b", "a\nb", "\ud800", ".hidden"),
    *("/../../etc/passwd", "a" * 300, "~/a", "a\u2028b", "%2e%2e/a", "a/", "//a"),
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    assert not is_plain_name(name)
    with pytest.raises(UserError, match="plain name"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["600M.onnx", "a b;c,d", "Löwenzahn 🌼", "..a"[1:] + "x", "x" * 200, "a..b"])
def test_names_in_the_folder(name: str, tmp_path: Path) -> None:
    if not name.startswith("."):
        assert inside(tmp_path, name) == tmp_path / name


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "own").symlink_to(folder / "file")
    with pytest.raises(UserError, match="leads out"):
        inside(folder, "link")
    assert inside(folder, "own") == folder / "own"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("a", ""), "class 1 has an empty name"),
        (("a", " \t"), "empty name"),
        (("a", "b", "a"), "two classes are called 'a'"),
        (("a\nb", "c"), "line break"),
        (("a\rb", "c"), "line break"),
        (("a\x85b", "c"), "line break"),
        (("a\u2028b", "c"), "line break"),
        (("a\ud800", "c"), "control character"),
    ],
)
def test_class_names_that_would_shift_others(names: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_class_names(names)


def test_class_names_of_all_kinds() -> None:
    names = ("Löwenzahn 🌼", "a,b;c", "<script>", "[/b]", "👩\u200d🌾", "-1", "rote Rose")
    assert check_class_names(names) == names
    # Each stands on a line of its own, as labels.txt has them.
    assert "".join(f"{name}\n" for name in names).splitlines() == list(names)


def test_users_that_do_not_exist() -> None:
    with pytest.raises(UserError, match="nosuchuser"):
        expanded(Path("~nosuchuser/x"))
    assert expanded(Path("~/x")) == Path.home() / "x"


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("class", "[b]")
    table.add_row("[/b]", ":cat: [red]x")
    show(table)
    printed = capsys.readouterr().out
    assert "[/b]" in printed and ":cat: [red]x" in printed and "[b]" in printed
