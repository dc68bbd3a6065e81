"""What a JSON or YAML file from outside may hold, and that everything else is one sentence."""

import json
from pathlib import Path

import pytest
import yaml

from engine.config import read_yaml
from engine.errors import MOST_OF_A_MESSAGE, UserError
from engine.outside.documents import MOST_DEPTH, DocumentError, parse_json, parse_yaml
from engine.run import read_json, read_lines

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested more than 64"),
        ("[" * 100_000, "nested more than 64"),
        ("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), "nested more than 64"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        ('{"a": ' + "9" * 4000 + "}", "4000 digits"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('{"a": "\\ud800"}', "half a character"),
        ('{"\\ud800": 1}', "half a character"),
        ("", "Expecting value"),
        (b"\xff", "not text in UTF-8"),
    ],
)
def test_json_that_is_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        parse_json(text)


def test_json_that_is_read() -> None:
    long = "1" * 40  # digits in a text are no number
    for value in ({"a": [1, 2.5, None, True, long, "Löwenzahn 🌼"]}, -(10**29), [[[]]], {}):
        assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, "maximum nesting depth|nested more than"),
        ("a: " + "[" * 65 + "]" * 65, "nested more than 64"),
        ("- " * 500 + "a", "nested more than"),
        ("a: " + "9" * 5000, "5000 digits"),
        ("epochs: 3\nepochs: 4", "'epochs' twice, the second time in line 2"),
        ("{a: 1, a: 2}", "'a' twice"),
        (BOMB, "aliases make more than"),
        ("a: &a [*a]", "alias"),
        ("a: &a {b: *a}", "alias"),
        ("a: !!python/object/apply:os.system ['true']", "only plain values"),
        ("a: !!binary aGVsbG8=", "only plain values"),
        ("a: !!timestamp 2024-05-01", "only plain values"),
        ("? [1, 2]\n: 3", "a list or a mapping"),
        ("a: !!int b", "invalid literal"),
        ("a: '\ud800'", "half a character|surrogates|not allowed"),
        ("a: b: c", "mapping values"),
        ("a: *b", "undefined alias"),
    ],
)
def test_yaml_that_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason) as caught:
        parse_yaml(text)
    assert len(str(caught.value)) < 500


def test_yaml_that_is_read() -> None:
    # As the safe loader of PyYAML reads it, but for dates, which are text here.
    text = "a: [1, 2.5, ~, yes, 0x1f, 1_000, 'x']\nb: &b {c: 1}\nd: *b\ne: {<<: *b, f: 2}\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("a: 2024-05-01\nb: 2024-99-99") == {"a": "2024-05-01", "b": "2024-99-99"}
    assert parse_yaml("") is None


def test_files_that_are_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"\xff\xfe", b"\x00", b"[" * 9000, b"{", b"a: [", b"1"):
        path.write_bytes(content)
        with pytest.raises(UserError):
            read_yaml(path)
    for content in (b"\xff\xfe", b"\x00", b"[" * 9000, b"{"):
        path.write_bytes(content)
        with pytest.raises(UserError):
            read_json(path)
    for name in (tmp_path / "none", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(UserError):
            read_json(name)
        with pytest.raises(UserError):
            read_yaml(name)


def test_damaged_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    for line in ("[" * 9000, '{"a": 1, "a": 2}', '{"a": ' + "9" * 5000 + "}"):
        path.write_text('{"a": 1}\n' + line + "\n")
        with pytest.raises(UserError, match="line 2 is not a JSON object"):
            read_lines(path)


def test_messages_end_and_do_not_steer_a_terminal() -> None:
    assert len(str(UserError("x" * 58_000_000))) < MOST_OF_A_MESSAGE + 100
    assert str(UserError("a\x1b[31mb\ud800\u202ec\nd")) == "a\\x1b[31mb\\ud800\\u202ec\nd"
    assert str(UserError("Löwenzahn 👩\u200d🌾")) == "Löwenzahn 👩\u200d🌾"
