"""A space as parameters of Optuna, and architectures made from them."""

import numpy as np
import optuna
import pytest

from engine.errors import UserError
from ofa.space.codes import Codes, encode, sample_codes
from ofa.space.space import Space, load_space
from predictors.search.constraints import Constraint
from predictors.search.optuna_space import (
    codes_from_params,
    distributions,
    params_from_codes,
    set_constraints,
    suggest,
)


@pytest.mark.parametrize("name", ["digits", "ofa_mbv3", "ofa_resnet50"])
def test_parameters_are_one_to_one_with_architectures(name: str) -> None:
    space = load_space(name)
    rows = sample_codes(space, 50, np.random.default_rng(0))
    for row in rows:
        params = params_from_codes(space, row)
        assert np.array_equal(codes_from_params(space, params), row)
        assert params.keys() <= distributions(space).keys()
        # A sampler that knows nothing of depths gives every parameter.
        full = {key: choices.choices[0] for key, choices in distributions(space).items()} | params
        assert np.array_equal(codes_from_params(space, full), row)


def test_a_trial_is_asked_for_blocks_that_there_are(tiny: Space) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        row = encode(tiny, suggest(trial, tiny))
        assert trial.params == params_from_codes(tiny, row)


def test_a_limit_that_is_passed_is_positive(tiny: Space, everything: Codes) -> None:
    def number_of(rows: Codes) -> np.ndarray:
        return rows.sum(axis=1)

    study = optuna.create_study()
    trial = study.ask(distributions(tiny))
    set_constraints(trial, [Constraint("macs", 1e9, number_of)], everything[0])
    study.tell(trial, 0.5)
    assert study.trials[0].constraints == {"macs": everything[0].sum() - 1e9}


def test_an_unknown_latency_is_above_its_limit_and_finite(everything: Codes) -> None:
    def unknown(rows: Codes) -> np.ndarray:
        return np.full(len(rows), np.inf)

    trial = optuna.create_study().ask()
    set_constraints(trial, [Constraint("latency", 15.0, unknown)], everything[0])
    violation = trial.constraints["latency"]
    assert violation > 0 and np.isfinite(violation), "infinity is no JSON"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"resolution": 9}, "resolution = 9 is not in space 'tiny'; its choices are 8, 12"),
        ({"resolution": "8"}, "resolution = '8' is not in space"),
        ({"depth[0]": True}, r"depth\[0\] = True is not in space"),
        ({"resolution": [8]}, "is not in space"),
        ({"wdth[0]": 4}, r"no parameter 'wdth\[0\]'; did you mean 'width\[0\]'"),
    ],
)
def test_what_is_no_architecture_is_named(tiny: Space, change: dict[str, object], sentence: str) -> None:
    row = sample_codes(tiny, 1, np.random.default_rng(0))[0]
    with pytest.raises(UserError, match=sentence):
        codes_from_params(tiny, params_from_codes(tiny, row) | change)


def test_a_parameter_that_is_missing_is_named(tiny: Space) -> None:
    params = params_from_codes(tiny, sample_codes(tiny, 1, np.random.default_rng(0))[0])
    del params["depth[1]"]
    with pytest.raises(UserError, match=r"'depth\[1\]' of space 'tiny' is missing"):
        codes_from_params(tiny, params)
