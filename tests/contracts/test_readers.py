"""Whatever bytes a file has, its reader returns or says in a sentence what is wrong.

The fuzzer of benchmarks/fuzz.py looks for more; what it finds goes into `FOUND`.
"""

import json
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import LONGEST_SENTENCE, READERS, SEEDS, said_of, seed_of

from engine.config import format_count, parse_count, parse_duration
from engine.errors import UserError, printable, shortened
from engine.outside.documents import DocumentError, parse_json, parse_yaml
from predictors.search.constraints import parse_bytes, parse_milliseconds

# The same examples each time, so that nobody's change fails by chance; the fuzzer is for new ones.
QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# Reader and bytes that once ended in something else than a sentence.
FOUND: list[tuple[str, bytes]] = [
    ("yaml", b"a: " + b"[" * 5000),
    ("yaml", b"a: &a [*a]"),
    ("yaml", b"a: " + b"9" * 5000),
    ("yaml", b"a: 2024-99-99"),
    ("json", b"[" * 100_000),
    ("json", b"9" * 5000),
    ("lines", b"[" * 100_000 + b"\n"),
    ("genotype", b"Genotype(normal=[], normal_concat=range(0, 10000000000), reduce=[], reduce_concat=[])"),
    ("genotype", b"Genotype(" + b"(" * 5000),
    ("genotype", b"Genotype(normal=[('a', 9999999999, 0)], normal_concat=[2], reduce=[], reduce_concat=[])"),
    ("genotype as text", b"~nosuchuser/x"),
    ("genotype as text", b"x" * 5000),
    ("metrics", b'{"val_accuracy": 0.5}\n'),
    ("timings", b"name,round,wall_p50\nnet-ff,0,1\n"),
    ("timings", b"name,round,wall_p50\nnet-zz,0,1\n"),
    ("timings", b"name,round,wall_p50\n"),
    ("timings", b"name,round,wall_p50,threads\nx,0,1,\xc2\xb2\n"),
    ("timings", b"name,round,wall_p50\na,0,1,2,3\n"),
]


def check(name: str, content: bytes, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's and torch's, about files that are damaged
        assert len(said_of(name, content, folder)) < LONGEST_SENTENCE


@pytest.mark.parametrize("name", READERS)
def test_what_it_is_given_is_read(name: str, tmp_path: Path) -> None:
    """Or refused, where that is short: seeds of tables are not complete."""
    check(name, seed_of(name), tmp_path)


@pytest.mark.parametrize(("name", "content"), FOUND)
def test_what_once_failed(name: str, content: bytes, tmp_path: Path) -> None:
    check(name, content, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_changed_files(name: str, tmp_path: Path) -> None:
    seed = seed_of(name)
    places = st.integers(0, len(seed))
    changes = st.lists(st.tuples(places, st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=4)

    @QUICK
    @given(changes)
    def run(found: list[tuple[int, int, bytes]]) -> None:
        content = seed
        for place, dropped, added in found:
            content = content[:place] + added + content[place + dropped :]
        check(name, content, tmp_path)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_any_bytes(name: str, tmp_path: Path) -> None:
    @QUICK
    @given(st.binary(max_size=200))
    def run(content: bytes) -> None:
        check(name, content, tmp_path)

    run()


TEXT = st.text(max_size=60) | st.text("0123456789.eE+-kKmMgGtT hs²٣_", max_size=30)


@QUICK
@given(TEXT)
def test_numbers_that_people_type(text: str) -> None:
    for parse in (parse_count, parse_duration, parse_milliseconds, parse_bytes):
        try:
            value = parse(text)
        except ValueError as error:
            message = str(error)
        else:
            assert 0 <= value < 1e300
            continue
        assert len(message) < 400


@QUICK
@given(st.integers(0, 10**15))
def test_counts_are_read_back(count: int) -> None:
    assert parse_count(format_count(count, 15)) == count


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@QUICK
@given(VALUES)
def test_what_json_writes_is_read_back(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@QUICK
@given(VALUES)
def test_what_yaml_writes_is_read_back(value: object) -> None:
    text = yaml.safe_dump(value, allow_unicode=False)
    try:
        assert parse_yaml(text) == yaml.safe_load(text)
    except DocumentError as error:
        reason = str(error)
    else:
        return
    assert "special characters" in reason or "control" in reason, reason


@QUICK
@given(st.text(max_size=500), st.integers(10, 100))
def test_messages_are_short_and_printable(text: str, most: int) -> None:
    assert len(shortened(text, most)) <= most + 40
    shown = printable(text)
    shown.encode("utf-8")
    assert "\x1b" not in shown and "\r" not in shown
    assert len(str(UserError(text * 50))) < 6100 * 10


def test_every_seed_is_of_a_reader() -> None:
    assert SEEDS.keys() <= READERS.keys()
    assert all(bool(READERS[name].seed) != (name in SEEDS) for name in READERS)
