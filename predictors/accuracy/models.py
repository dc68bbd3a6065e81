"""The accuracy predictors by name.

A new one is a class with the methods of `Predictor`, or a learner for `Ensemble`, and one line in
`PREDICTORS`. `predictors.select --predictor NAME` then takes it, and tests/contracts/test_predictors.py runs
on it. Whether `--predictor auto` also tries it is decided in `predictors.accuracy.validation.candidates`.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from predictors.accuracy.ensemble import Ensemble, boosting, mlp
from predictors.accuracy.gaussian_process import GaussianProcess
from predictors.accuracy.predictor import Predictor
from predictors.accuracy.ridge import Ridge

PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "gp": GaussianProcess,
    "ridge": Ridge,
    "boosting": partial(Ensemble, boosting),
    "mlp": partial(Ensemble, mlp),
}

# The command line lists the names of the table in its help and in its errors; a type checker cannot read a
# table, so to it any string is a name.
if TYPE_CHECKING:
    PredictorName = str
    PredictorChoice = str
else:
    PredictorName = Literal[tuple(PREDICTORS)]
    PredictorChoice = Literal["auto", *PREDICTORS]


def make_predictor(name: PredictorName) -> Predictor:
    """A new predictor of that name in `PREDICTORS`, to be fitted.

    predictor = make_predictor("gp").fit(features(space, codes), accuracies, seed=0)
    mean, std = predictor.predict(features(space, other_codes))
    """
    return PREDICTORS[name]()
