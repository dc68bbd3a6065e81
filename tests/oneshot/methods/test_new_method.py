"""A method as a newcomer writes one: a file, and its name in the union of `oneshot/methods/__init__.py`.

The idea of FairDARTS (2020, arXiv:1911.12126), written anew: operations do not compete; each has a sigmoid of
its own, driven to 0 or 1 by a loss.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from pydantic import Field, create_model
from torch import Tensor

from engine.command.cli import parse
from engine.config import Config
from engine.errors import UserError
from engine.run import read_lines
from oneshot.axes.penalty import Penalty, PenaltyInputs
from oneshot.axes.relaxation import Softmax
from oneshot.methods.darts import Darts
from oneshot.methods.method import Method
from oneshot.search import Search

# --- what would be oneshot/methods/newcomer.py ---


class OwnSigmoid(Softmax):
    """Each operation has a probability of its own."""

    name: Literal["own_sigmoid"] = "own_sigmoid"  # type: ignore[assignment]

    def probabilities(self, alpha_EO: Tensor, allowed_EO: Tensor) -> Tensor:
        return alpha_EO.sigmoid() * allowed_EO


class FromHalf(Config):
    """Drives probabilities away from a half."""

    name: Literal["from_half"] = "from_half"
    weight: float = Field(10.0, ge=0, description="of the loss")

    def __call__(self, loss: Tensor, seen: PenaltyInputs) -> Tensor:
        theta = torch.cat([alpha.sigmoid() for alpha in seen.alphas.values()])
        return loss - self.weight * (theta - 0.5).square().mean()


class Newcomer(Method):
    """Sigmoids and a zero-one loss."""

    name: Literal["newcomer"] = "newcomer"
    relaxation: OwnSigmoid = OwnSigmoid()
    penalties: tuple[Annotated[Penalty | FromHalf, Field(discriminator="name")], ...] = (FromHalf(),)


# --- and the line in oneshot/methods/__init__.py ---

Methods = Annotated[Darts | Newcomer, Field(discriminator="name")]


class WithNewcomer(Search):
    """examples: the command of the list with the new name."""

    method: Methods = Field(Darts(), description="the search method")  # type: ignore[assignment]


SMALL = ("--space", "nasbench201", "--cells", "1", "--channels", "2", "--device", "cpu", "--epochs", "2")
FLAGS = (*SMALL, "--method", "newcomer")


@pytest.mark.slow
def test_a_method_is_a_file_and_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = parse(
        WithNewcomer,
        [*FLAGS, "--method.geometry.lr", "0.05", "--penalties", "cost", "--out", str(tmp_path / "run")],
    )
    assert found.method.name == "newcomer"
    assert found.execute() == 0
    (first, *_, last) = [
        p["alphas"]["cell"] for p in read_lines(tmp_path / "run" / "metrics.jsonl") if "genotype" in p
    ]
    assert np.sum(first) > 10, "30 operations near a half: nothing sums to 1"
    assert np.square(np.array(last) - 0.5).mean() > np.square(np.array(first) - 0.5).mean()
    assert json.loads((tmp_path / "run" / "genotype.json").read_text())["space"] == "nasbench201"
    assert "method newcomer (first order) on space nasbench201" in capsys.readouterr().out
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "name: own_sigmoid" in config and "name: from_half" in config
    again = parse(
        WithNewcomer,
        ["--config", str(tmp_path / "run" / "config.yaml"), "--out", str(tmp_path / "run"), "--resume"],
    )
    assert again.execute() == 0


def test_its_settings_are_flags_and_its_mistakes_sentences(tmp_path: Path) -> None:
    found = parse(WithNewcomer, [*FLAGS, "--method.penalties", '[{"name": "from_half", "weight": 3}]'])
    assert found.method.penalties == (FromHalf(weight=3),)
    with pytest.raises(UserError, match=r"looks ahead .* needs level bilevel"):
        parse(WithNewcomer, [*FLAGS, "--method.order", "second", "--method.level", "single"])
    with pytest.raises(UserError, match="there is no method 'newcome'; did you mean 'newcomer'"):
        parse(WithNewcomer, ["--method", "newcome"])
    with pytest.raises(UserError, match=r"^command line: .*weight.* = -3 is not valid"):
        parse(WithNewcomer, [*FLAGS, "--method.penalties", '[{"name": "from_half", "weight": -3}]'])


@pytest.mark.slow
def test_the_example_of_the_page_on_searching_is_a_method(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "search.md").read_text(encoding="utf-8")
    section = page[page.index("## A method of your own") :]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    kind = found["Noisy"]
    methods = Annotated[Darts | kind, Field(discriminator="name")]  # type: ignore[valid-type]
    command = create_model("WithNoisy", __base__=Search, method=(methods, Darts()), __doc__="examples: none.")
    noisy = parse(command, [*SMALL, "--method", "noisy", "--method.tau", "2", "--out", str(tmp_path / "run")])
    assert noisy.method.tau == 2 and noisy.execute() == 0
