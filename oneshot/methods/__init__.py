"""The search methods, one file a paper. The union is their list: a new method is a file and a name here."""

from typing import Annotated

from pydantic import Field

from oneshot.methods.beta_darts import BetaDarts
from oneshot.methods.darts import Darts
from oneshot.methods.darts_minus import DartsMinus
from oneshot.methods.darts_pt import DartsPt
from oneshot.methods.fair_darts import FairDarts
from oneshot.methods.gaea import Gaea, GaeaPcDarts
from oneshot.methods.pc_darts import PcDarts
from oneshot.methods.sampled.enas import Enas
from oneshot.methods.sampled.fbnet import FbNet
from oneshot.methods.sampled.gdas import Gdas
from oneshot.methods.sampled.pr_darts import PrDarts
from oneshot.methods.sampled.proxyless import Proxyless, ProxylessR
from oneshot.methods.sampled.random_ws import RandomWs
from oneshot.methods.snas import Snas
from oneshot.methods.staged.drnas import DrNas
from oneshot.methods.staged.p_darts import PDarts
from oneshot.methods.weights.lambda_darts import LambdaDarts
from oneshot.methods.weights.oles import Oles
from oneshot.methods.weights.sdarts import Sdarts

# pydantic picks the class by its field `name`.
MethodConfig = Annotated[
    Darts
    | PcDarts
    | BetaDarts
    | PrDarts
    | Gaea
    | GaeaPcDarts
    | Gdas
    | DartsMinus
    | RandomWs
    | Enas
    | Snas
    | Proxyless
    | ProxylessR
    | FbNet
    | DrNas
    | FairDarts
    | Sdarts
    | LambdaDarts
    | Oles
    | DartsPt
    | PDarts,
    Field(discriminator="name"),
]
