"""Find out which network weights belong to, by the roles and shapes of their tensors in order."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from torch import Tensor

from engine.errors import UserError
from ofa.weights.networks import Network, Source, find_networks, networks_of, packaged_networks
from ofa.weights.order import Slot, definition_order, first_difference, slots_of, slots_of_arch
from ofa.weights.reading import State

ANY_CLASSES = 1000  # the number of classes is not compared
# Whose names a file has, by the first layer's; networks that both libraries name alike are not here.
LIBRARIES = {"conv_stem": "timm", "features": "torchvision", "layers": "torchvision"}


class Recognised(NamedTuple):
    """A network, and the tensors of its weights in the order of our layers."""

    network: Network
    tensors: list[Tensor]


class Layout:
    """The tensors of a file in the orders in which its layers may be defined: as they stand, and by name."""

    def __init__(self, state: State):
        self.state = state
        # The file's own order first: names of layers that are in no list of layouts say nothing of order.
        self.orders = [slots_of(state, state), slots_of(state, definition_order(state))]

    def fitting(self, wanted: Sequence[Slot]) -> list[Tensor] | None:
        """The tensors in the order of `wanted`; None if it is another network."""
        # No file fits in a wrong order: sorted by name, the bias of a BatchNorm comes before its weight.
        for slots in self.orders:
            if first_difference(slots, wanted) is None:
                return [self.state[slot.name] for slot in slots]
        return None

    def likeness(self, wanted: Sequence[Slot]) -> float:
        """How many tensors both networks have, whatever their order: 2 if all, 0 if none."""
        found = self.orders[0]
        # A wider network has the same kinds of tensors, but few of the same shape.
        kinds = _common([_kind(slot) for slot in found], [_kind(slot) for slot in wanted])
        return kinds + _common([slot[1:] for slot in found], [slot[1:] for slot in wanted])

    def describe_difference(self, wanted: Sequence[Slot]) -> str:
        """The first tensor that differs, in whichever order agrees for longer."""
        place, slots = -1, self.orders[0]
        for order in self.orders:
            differs = first_difference(order, wanted)
            assert differs is not None
            if differs > place:
                place, slots = differs, order
        if place >= len(slots):
            return f"it ends after {len(slots)} tensors of {len(wanted)}"
        if place >= len(wanted):
            return f"it has {slots[place]} after the {len(wanted)} tensors of that network"
        return f"tensor {place + 1} is {slots[place]} where {wanted[place]} is wanted"


def _kind(slot: Slot) -> tuple[str, int, tuple[int, ...]]:
    """What a tensor is, whatever the number of channels: its role, its axes and its kernel."""
    return slot.role, len(slot.shape), slot.shape[2:]


def _common(found: Iterable[object], wanted: Iterable[object]) -> float:
    """The share of things that are in both."""
    ours, theirs = Counter(found), Counter(wanted)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def slots_of_network(network: Network) -> list[Slot]:
    """The places of a network's tensors."""
    return _slots_of_entry(network.model_dump_json())


# Cached, since reading a space and listing its tensors takes a tenth of a second, and every file is compared
# with all networks. By the text of the entry: its `changes` are a dict, which no cache can look up.
@cache
def _slots_of_entry(entry: str) -> list[Slot]:
    network = Network.model_validate_json(entry)
    space = network.load_space()
    return slots_of_arch(space, network.find_arch(space), ANY_CLASSES)


def fitting_networks(state: State, candidates: Sequence[Network]) -> list[Recognised]:
    """Those of the candidates whose tensors these are."""
    layout, found = Layout(state), []
    for network in candidates:
        tensors = layout.fitting(slots_of_network(network))
        if tensors is not None:
            found.append(Recognised(network, tensors))
    return found


def recognise(state: State, where: str, source: Source, name: str | None = None) -> Recognised:
    """The network of a source that weights belong to.

    Args:
        state: the tensors by name, in the order of the file.
        where: what they are, for error sentences, such as `Checkpoint 'net.pth'`.
        source: whose network it is.
        name: of the network, of its space, or a YAML file; None: it is found by the tensors.

    Raises:
        UserError: no network or several fit; the sentence names them, or else the one most like it.
    """
    library = LIBRARIES.get(next(iter(state)).partition(".")[0], source)
    if library != source and source in LIBRARIES.values():
        raise UserError(
            f"{where} names its layers as {library} does, not as {source}; take --from {library}."
        )
    candidates = find_networks(source, name) if name else networks_of(source)
    found = fitting_networks(state, candidates)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(one.network.name for one in found)
        raise UserError(f"{where} fits several networks of {source}: {names}; name one with --as.")
    wrong = f"{where} is not {source}'s '{name}'" if name else f"{where} fits no network of {source}"
    others = fitting_networks(state, packaged_networks())
    if others:
        remedies = " or ".join(one.network.flags for one in others)
        raise UserError(f"{wrong}: it has all tensors of another; take {remedies}.")
    raise UserError(f"{wrong}: {_nearest(state, candidates)}")


def _nearest(state: State, candidates: Sequence[Network]) -> str:
    """The end of a sentence: the candidate most like these tensors, and the first that differs."""
    layout = Layout(state)
    wanted = [slots_of_network(network) for network in candidates]
    likeness = [layout.likeness(slots) for slots in wanted]
    best = likeness.index(max(likeness))
    difference = layout.describe_difference(wanted[best])
    remedy = "describe a network of your own in a YAML file for --as"
    return f"it is most like {candidates[best].name}, but {difference}; {remedy}."
