"""The Optuna study: seeds, constraint, and a journal that survives kills and does not grow."""

from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from ofa.cost import costs_of
from ofa.space import Codes, Space, encode, features, largest, smallest
from predictors.explore import Scores
from predictors.study import study


def run(space: Space, journal: Path, name: str, score: Scores) -> Codes:
    """20 trials with half of the range of MACs as budget, from the smallest and the largest architecture."""

    def macs(rows: Codes) -> np.ndarray:
        return costs_of(space, rows, 10, 1).macs

    seeds = np.stack([encode(space, smallest(space)), encode(space, largest(space))])
    budget = int(macs(seeds).mean())
    found = study(space, score, macs, budget, seeds, 20, journal, name, 0)
    assert (macs(found) <= budget).all()
    assert (found == seeds[0]).all(1).any() and not (found == seeds[1]).all(1).any()
    return found


@pytest.fixture
def score(tiny: Space) -> Scores:
    return lambda rows: features(tiny, rows).sum(axis=1).astype(float)


def studies(journal: Path) -> dict[str, optuna.Study]:
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return {name: optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)}


def facts(study: optuna.Study) -> list[object]:
    return [(t.number, t.state, t.value, t.params, t.constraints, t.datetime_complete) for t in study.trials]


def test_starts_from_the_seeds_is_best_first_and_can_be_opened(tiny: Space, score: Scores, tmp_path: Path) -> None:
    found = run(tiny, tmp_path / "journal", "flops-1M", score)
    assert (np.diff(score(found)) <= 0).all()
    opened = studies(tmp_path / "journal")["flops-1M"]
    assert len(opened.trials) == 20
    assert opened.direction is optuna.study.StudyDirection.MAXIMIZE
    assert opened.trials[0].params["width[0]"] == 4
    assert opened.trials[0].constraints["macs"] <= 0 < opened.trials[1].constraints["macs"]
    assert opened.best_value == score(found).max()


def test_a_study_of_the_same_name_is_replaced_the_others_are_kept_and_the_journal_does_not_grow(
    tiny: Space, score: Scores, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    run(tiny, journal, "flops-1M", score)
    run(tiny, journal, "flops-2M", score)
    lines = len(journal.read_bytes().splitlines())
    first = facts(studies(journal)["flops-2M"])
    for _ in range(3):
        run(tiny, journal, "flops-1M", score)
    assert len(journal.read_bytes().splitlines()) == lines
    assert set(studies(journal)) == {"flops-1M", "flops-2M"}
    assert facts(studies(journal)["flops-2M"]) == first


def test_the_lock_of_a_killed_process_is_neither_waited_for_nor_broken(tiny: Space, score: Scores, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    run(tiny, journal, "flops-1M", score)
    JournalFileSymlinkLock(str(journal)).acquire()
    run(tiny, journal, "flops-1M", score)
    assert (tmp_path / "journal.lock").is_symlink(), "whoever waits for a lock removes it after half a minute"
    assert len(studies(journal)["flops-1M"].trials) == 20


def test_ctrl_c_leaves_the_journal_as_it_was_and_says_nothing(
    tiny: Space, score: Scores, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    journal, asked = tmp_path / "journal", 0
    run(tiny, journal, "flops-1M", score)
    before, verbosity = journal.read_bytes(), optuna.logging.get_verbosity()

    def interrupted(rows: Codes) -> np.ndarray:
        nonlocal asked
        asked += 1
        if asked == 5:
            raise KeyboardInterrupt
        return score(rows)

    with pytest.raises(KeyboardInterrupt):
        run(tiny, journal, "flops-1M", interrupted)
    assert (journal.read_bytes(), optuna.logging.get_verbosity()) == (before, verbosity)
    assert [file.name for file in tmp_path.iterdir()] == ["journal"]
    assert capfd.readouterr() == ("", "")
