"""A space of chains that is small enough for a test, with groups, a skip and a fixed layer."""

from oneshot.chains.space import ChainSpace

SMALL_CHAIN = """
resolution: 8
act: relu
expand_always: true
stem: {width: 8, stride: 1}
candidates: [k3_e1, k3_e1_g2, k5_e2, skip]
stages:
  - {width: 8, layers: 1, candidates: [k3_e1]}
  - {width: 12, layers: 2, stride: 2}
  - {width: 16, layers: 2, stride: 2}
head: {width: 24}
"""


def small_chain() -> ChainSpace:
    """The space as data."""
    import yaml

    return ChainSpace.model_validate({"name": "small_chain"} | yaml.safe_load(SMALL_CHAIN))
