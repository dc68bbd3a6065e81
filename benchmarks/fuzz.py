"""Give damaged and hostile bytes to every reader of files from outside, guided by what the readers do.

    pip install 'ofa-toolkit[fuzz]'
    python benchmarks/fuzz.py --seconds 60                 all readers, two seconds or more for each
    python benchmarks/fuzz.py --reader npz --seconds 600

atheris (libFuzzer) keeps changes that reach new lines of Python. Whatever a reader raises other than a
sentence is printed with the bytes, and belongs into `FOUND` of tests/contracts/test_readers.py. Status 1:
there was something.
"""

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
# Not torch and scipy, whose instrumentation would take minutes.
WATCHED = ["engine", "ofa", "oneshot", "predictors", "export", "yaml", "json"]
with atheris.instrument_imports(include=WATCHED):
    from readers import LONGEST_SENTENCE, READERS, said_of, seed_of

LONGEST = 4096  # bytes of an input
LONGEST_RUN = 20  # seconds after which one input counts as an endless loop
MEGABYTES = 4096  # of memory, after which one input counts as too large


def fuzz(name: str, seconds: int, work: Path) -> None:
    """Fuzz one reader in this process, which libFuzzer ends."""
    warnings.simplefilter("ignore")
    corpus = work / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(seed_of(name))

    def run(content: bytes) -> None:
        assert len(said_of(name, content, work)) < LONGEST_SENTENCE, "an endless message"

    flags = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={LONGEST_RUN}"]
    flags += [f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={work}/", "-seed=1"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], run)
    atheris.Fuzz()


def fuzz_apart(name: str, seconds: int) -> bool:
    """Fuzz one reader in a process of its own; whether something was found, which is printed."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # A fork, since the instrumented modules take half a minute to import.
        child = os.fork()
        if child == 0:
            log = os.open(work / "log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            fuzz(name, seconds, work)
            os._exit(0)
        os.waitpid(child, 0)
        lines = (work / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        # libFuzzer writes `Done 1234 runs in 5 second(s)` if it came to its end. The status of the process
        # says nothing: threads of the libraries, which a fork does not have, make it fail when it exits.
        runs = next((line for line in lines if line.startswith("Done ")), None)
        print(f"{name}: {runs or 'FOUND'}", flush=True)
        if runs is None:
            print(*lines[-40:], sep="\n")
            for found in work.iterdir():
                if found.name.startswith(("crash", "timeout", "oom", "slow")):
                    print(f"{found.name}: {found.read_bytes()!r}", flush=True)
        return runs is None


def main() -> int:
    """Fuzz the readers one after the other."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of files from outside.")
    parser.add_argument("--seconds", type=int, default=60, help="for all readers together")
    parser.add_argument("--reader", choices=READERS, help="only this one")
    flags = parser.parse_args()
    names = [flags.reader] if flags.reader else list(READERS)
    results = [fuzz_apart(name, max(2, flags.seconds // len(names))) for name in names]
    return int(any(results))


if __name__ == "__main__":
    sys.exit(main())
