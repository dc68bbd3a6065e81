"""How well the predictors do on measured ImageNet accuracies of OFA subnets."""

import ast
import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from ofa.space import Arch, encode, features, load_space
from predictors.accuracy import GaussianProcess, Ridge, make_predictor


def test_auto_chooses_by_the_number_of_pairs() -> None:
    assert [type(make_predictor("auto", n)) for n in (10, 30, 2000, 2001)] == [Ridge, GaussianProcess, GaussianProcess, Ridge]


def test_hundred_measured_subnets_rank_imagenet_accuracy(nas_data: Path) -> None:
    space = load_space("ofa_mbv3")
    with (nas_data / "ofa_measured" / "mbnv3w10_evonsga2_acc_macs.csv").open() as file:
        rows = [(ast.literal_eval(r["Sub-network"]), float(r["Top-1 Acc (%)"]) / 100) for r in csv.DictReader(file)]
    width = (16, 16, 24, 40, 80, 112, 160, 1280)
    archs = [Arch(resolution=a["r"][0], width=width, depth=(1, *a["d"]), kernel=(3, *a["ks"]), expand=(1, *a["e"])) for a, _ in rows]
    X = features(space, np.stack([encode(space, a) for a in archs]))
    y = np.array([accuracy for _, accuracy in rows])
    order = np.random.default_rng(0).permutation(len(y))
    train, held = order[:100], order[100:500]
    mean, _ = GaussianProcess().fit(X[train], y[train], 0).predict(X[held])
    assert kendalltau(mean, y[held]).statistic == pytest.approx(0.93, abs=0.03)
