"""Differentiable search on cells and on chains of blocks. These names are what a notebook needs.

    import torch
    import oneshot

    genotype = oneshot.find_genotype("DARTS_V2")  # or the folder of a search, or a file
    print(genotype.cells["normal"].nodes[0])  # (('sep_conv_3x3', 0), ('sep_conv_3x3', 1))
    network = oneshot.FinalNetwork(genotype, channels=16, cells=5, classes=10)
    logits = network(torch.zeros(1, 3, 32, 32))  # untrained; python -m oneshot.retrain trains it

`find_space` gives a search space of cells, `load_chain_space` one of chains; `DartsNetwork` and
`ChainNetwork` are the networks that a search trains. The names are imported when they are first used, so
that `import oneshot` costs milliseconds, not torch.
"""

from engine.command.start import start
from engine.lazy import lazy_names

# Ctrl-C while torch is still being imported ends a command without a traceback.
start()

__all__ = [
    "Cell",
    "CellSpace",
    "ChainGenotype",
    "ChainNetwork",
    "DartsNetwork",
    "EdgeWeights",
    "FinalChain",
    "FinalNasBench201Network",
    "FinalNetwork",
    "Genotype",
    "TrainedNetwork",
    "draw_genotype",
    "edge_costs",
    "find_genotype",
    "find_space",
    "load_chain_space",
]
__getattr__ = lazy_names(
    __name__,
    {
        "Cell": "oneshot.spaces.genotype",
        "CellSpace": "oneshot.spaces.cells",
        "ChainGenotype": "oneshot.chains.genotype",
        "ChainNetwork": "oneshot.chains.network",
        "DartsNetwork": "oneshot.networks.search",
        "EdgeWeights": "oneshot.axes.edge_weights",
        "FinalChain": "oneshot.chains.network",
        "FinalNasBench201Network": "oneshot.networks.final_nasbench201",
        "FinalNetwork": "oneshot.networks.final",
        "Genotype": "oneshot.spaces.genotype",
        "TrainedNetwork": "oneshot.trained",
        "draw_genotype": "oneshot.ending.drawing",
        "edge_costs": "oneshot.spaces.costs",
        "find_genotype": "oneshot.spaces.read_genotype",
        "find_space": "oneshot.spaces.cells",
        "load_chain_space": "oneshot.chains.space",
    },
)
