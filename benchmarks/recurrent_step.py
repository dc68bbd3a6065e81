"""Time of one search step on the recurrent space, ours against plain code that applies one operation at a
time.

The plain network follows the definition as reference code does: all states times a node's matrix, then each
operation, gate and weight by itself, log-probabilities, and gradients of everything. Both take an
architecture step and a weight step of first order with the same weights, words and masks; losses and
gradients are compared first. Both run by turns in one process; the ratio counts, best by CPU time.

    python benchmarks/recurrent_step.py --threads 2

--layers shows instead what a step spends on which kind of operation.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from benchmarks.layers import layer_times, print_layers
from engine.compute.memory import keep_freed_memory
from engine.run import environment
from oneshot.axes.edge_weights import EdgeWeights
from oneshot.networks.dropout import Dropout, Masks
from oneshot.networks.language_loss import slowness, text_loss
from oneshot.networks.recurrent import SPACE, RecurrentNetwork, draw_masks

SLOWNESS = 1e-3
Job = tuple[RecurrentNetwork, Tensor, Tensor, Tensor, Tensor, Masks]
Gradients = tuple[Tensor, Tensor, list[Tensor]]


def plain_loss(
    network: RecurrentNetwork, alpha: Tensor, x: Tensor, y: Tensor, h: Tensor, masks: Masks, penalty: float
) -> Tensor:
    weight, embedded, outputs, size = (
        alpha.softmax(-1),
        network.embedding_VH[x] * masks.embedding_BH,
        [],
        network.hidden,
    )
    activations = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "identity": lambda g: g}

    def normalise(s: Tensor) -> Tensor:
        return F.batch_norm(s, network.running_mean, network.running_var, training=True)

    for x_BH in embedded:
        c, g = (torch.cat((x_BH * masks.inputs_BH, h * masks.hidden_BH), -1) @ network.first_2HD).split(
            size, -1
        )
        states = normalise(h + c.sigmoid() * (g.tanh() - h))[None]
        for node, matrix in enumerate(network.nodes):
            product = ((states * masks.hidden_BH).view(-1, size) @ matrix).view(node + 1, -1, 2 * size)
            c, g = product.split(size, -1)
            c, total = c.sigmoid(), torch.zeros_like(h)
            for column, name in enumerate(SPACE.operations):
                if name != "none":
                    passed = states + c * (activations[name](g) - states)
                    total = total + (weight[SPACE.entering[node], column][:, None, None] * passed).sum(0)
            states = torch.cat((states, normalise(total)[None]))
        h = states[1:].mean(0)
        outputs.append(h)
    output = torch.stack(outputs)
    log_prob = F.linear(
        (output * masks.output_BH).view(-1, size), network.embedding_VH, network.bias_V
    ).log_softmax(-1)
    loss = F.nll_loss(log_prob, y.view(-1))
    return loss + penalty * (output[1:] - output[:-1]).pow(2).mean() if penalty else loss


def plain_step(
    network: RecurrentNetwork, alpha: Tensor, x: Tensor, y: Tensor, h: Tensor, masks: Masks
) -> Gradients:
    parameters = list(network.parameters())
    loss = plain_loss(network, alpha, x, y, h, masks, 0.0)
    grad_alpha, *_ = torch.autograd.grad(loss, [alpha, *parameters])
    grads = torch.autograd.grad(plain_loss(network, alpha, x, y, h, masks, SLOWNESS), parameters)
    return loss.detach(), grad_alpha, list(grads)


def our_step(
    network: RecurrentNetwork, alpha: Tensor, x: Tensor, y: Tensor, h: Tensor, masks: Masks
) -> Gradients:
    fixed = {name: p.detach() for name, p in network.named_parameters()}
    read = functional_call(network, fixed, (x, h[None], {"recurrent": EdgeWeights(alpha.softmax(-1))}, masks))
    loss = text_loss(read, y)
    (grad_alpha,) = torch.autograd.grad(loss, [alpha])
    read = network(x, h[None], {"recurrent": EdgeWeights(alpha.detach().softmax(-1))}, masks)
    grads = torch.autograd.grad(text_loss(read, y) + SLOWNESS * slowness(read), list(network.parameters()))
    return loss.detach(), grad_alpha, list(grads)


STEP = {"ours": our_step, "plain": plain_step}


def prepared(args: argparse.Namespace, dtype: torch.dtype) -> Job:
    generator = torch.Generator(device=args.device).manual_seed(0)
    network = RecurrentNetwork(args.words, args.hidden, torch.Generator().manual_seed(0)).to(
        args.device, dtype
    )
    x, y = torch.randint(args.words, (2, args.bptt, args.batch), generator=generator, device=args.device)
    alpha = torch.randn(
        len(SPACE.edges), len(SPACE.operations), generator=generator, device=args.device, dtype=dtype
    ).requires_grad_()
    h = 0.1 * torch.randn(args.batch, args.hidden, generator=generator, device=args.device, dtype=dtype)
    return network, alpha, x, y, h, draw_masks(Dropout(), network, args.batch, generator)


def check_equal(args: argparse.Namespace) -> None:
    job = prepared(args, torch.float64)
    (loss, alpha, grads), (loss_, alpha_, grads_) = our_step(*job), plain_step(*job)
    pairs = [(loss, loss_), (alpha, alpha_), *zip(grads, grads_, strict=True)]
    error = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    assert error < 1e-9, error
    print(f"loss and gradients agree in float64: relative difference at most {error:.1e}")


LAYERS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "aten::baddbmm"),
    "softmax and loss": ("aten::_log_softmax", "aten::nll_loss", "aten::log_softmax", "aten::exp"),
    "BatchNorm": ("aten::native_batch_norm", "aten::batch_norm"),
    "activations": ("aten::tanh", "aten::sigmoid", "aten::relu", "aten::threshold", "aten::clamp_min"),
    "sums and products": ("aten::add", "aten::sub", "aten::mul", "aten::sum", "aten::cat", "aten::addcmul"),
    "copies": ("aten::copy_", "aten::fill_", "aten::zero_", "aten::clone"),
}


def compare_layers(args: argparse.Namespace) -> None:
    """Print what both steps spend on which kind of operation."""
    job = prepared(args, torch.float32)
    ours = layer_times(lambda _: our_step(*job), LAYERS, args.rounds)
    plain = layer_times(lambda _: plain_step(*job), LAYERS, args.rounds)
    print_layers("recurrent", ours, plain, ("matrix products", "softmax and loss"))


def timed(name: str, job: Job) -> tuple[float, float]:
    """Seconds of CPU, all threads together, and of wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    STEP[name](*job)
    if job[1].is_cuda:
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--hidden", type=int, default=300)
    parser.add_argument("--bptt", type=int, default=35)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", action="store_true", help="show what is spent on which operation")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    if args.layers:
        compare_layers(args)
        return
    check_equal(args)
    job = prepared(args, torch.float32)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in STEP}
    for _ in range(args.rounds):
        for name in STEP:
            taken[name].append(timed(name, job))
    for place, clock in enumerate(("CPU", "wall")):
        for name in STEP:
            print(f"{name:6} {clock:4} least {min(t[place] for t in taken[name]):.3f} s a step")
        ratios = sorted(b[place] / a[place] for a, b in zip(taken["ours"], taken["plain"], strict=True))
        print(
            f"ours is {ratios[len(ratios) // 2]:.2f} times faster by {clock} ({ratios[0]:.2f} to "
            f"{ratios[-1]:.2f})"
        )
    print(environment()["versions"])


if __name__ == "__main__":
    main()
