"""Give damaged and hostile bytes to every reader of files from outside, guided by what the readers do.

    pip install 'ofa-toolkit[fuzz]'
    python benchmarks/fuzz.py --seconds 60                 all readers, two seconds or more for each
    python benchmarks/fuzz.py --reader npz --seconds 600

atheris (libFuzzer) keeps changes that reach new lines of Python. Whatever a reader raises other than a
sentence is printed with the bytes, and belongs into `FOUND` of tests/contracts/test_readers.py. Status 1:
there was something.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

WATCHED = ["engine", "ofa", "oneshot", "predictors", "export", "yaml", "json", "PIL", "pydantic", "numpy.lib"]
LONGEST = 4096  # bytes of an input
LONGEST_RUN = 20  # seconds after which one input counts as an endless loop
MEGABYTES = 4096  # of memory, after which one input counts as too large


def fuzz(name: str, seconds: int, work: Path) -> None:
    """Fuzz one reader in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=WATCHED, enable_loader_override=False):
        from readers import EXPECTED, READERS, seed_of
    warnings.simplefilter("ignore")
    reader, path = READERS[name], work / READERS[name].name
    corpus = work / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(seed_of(name))

    def run(content: bytes) -> None:
        path.write_bytes(content)
        try:
            reader.read(path)
        except EXPECTED as error:
            message = str(error)
        else:
            return
        if len(message) > 7000:
            raise AssertionError("an endless message")

    flags = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={LONGEST_RUN}"]
    flags += [f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={work}/", "-seed=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], str(corpus), *flags], run)
    atheris.Fuzz()


def main() -> int:
    """Fuzz the readers one after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of files from outside.")
    parser.add_argument("--seconds", type=int, default=60, help="for all readers together")
    parser.add_argument("--reader", help="only this one")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.work is not None:
        fuzz(flags.reader, flags.seconds, flags.work)
        return 0
    from readers import READERS

    names, failed = [flags.reader] if flags.reader else list(READERS), 0
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            seconds = max(2, flags.seconds // len(names))
            words = [sys.executable, __file__, "--reader", name, "--seconds", str(seconds), "--work", work]
            done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
            found = [
                p for p in Path(work).iterdir() if p.name.startswith(("crash", "timeout", "oom", "slow"))
            ]
            print(f"{name}: {'nothing' if not done.returncode else 'FOUND'}", flush=True)
            if done.returncode:
                failed += 1
                print(done.stderr[-3000:], *(f"{p.name}: {p.read_bytes()!r}" for p in found), sep="\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
