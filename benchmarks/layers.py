"""What a step spends on which kind of layer, ours against a plain network, by torch's profiler."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

Kinds = dict[
    str, tuple[str, ...]
]  # kind of layer: what the profiler's names of it begin with; the first fits
REST = "rest: views, autograd, optimisers"


def layer_times(step: Callable[[int], object], kinds: Kinds, rounds: int) -> dict[str, float]:
    """Milliseconds of a step by kind of layer, forward and backward together; one step runs before."""
    step(0)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for number in range(rounds):
            step(number + 1)
    spent = dict.fromkeys([*kinds, REST], 0.0)
    for event in profiled.key_averages():
        kind = REST
        for name, starts in kinds.items():
            if event.key.startswith(starts):
                kind = name
                break
        spent[kind] += event.self_cpu_time_total / rounds / 1000
    return spent


def print_layers(name: str, ours: dict[str, float], plain: dict[str, float], needed: tuple[str, ...]) -> None:
    """A table of layers.

    Args:
        name: of the step.
        ours: milliseconds by kind.
        plain: the same of the plain network.
        needed: the kinds that both networks compute alike, which no way of computing edges together saves.
    """
    all_ours, all_plain = sum(ours.values()), sum(plain.values())
    print(f"{name}: milliseconds of a step\n{'layer':36}{'ours':>8}{'plain':>8}{'share of ours':>15}")
    for kind in ours:
        print(f"{kind:36}{ours[kind]:8.0f}{plain[kind]:8.0f}{ours[kind] / all_ours:15.0%}")
    print(f"{'all':36}{all_ours:8.0f}{all_plain:8.0f}   ratio {all_plain / all_ours:.2f}")
    floor = sum(ours[kind] for kind in needed)
    print(f"with nothing but {' and '.join(needed)} the ratio would be {all_plain / floor:.2f}")
