"""The report as one HTML page, which is XML too.

The page needs nothing else: no script, font, picture or style comes from elsewhere.
"""

from collections.abc import Mapping, Sequence

from engine.config import format_count
from engine.plot.canvas import colors_css, safe, to_svg
from engine.statistics import similar_macs, tau_in_bands, wilson_interval
from ofa.space.arch import Arch
from predictors.accuracy.cross_validation import (
    CrossValidated,
    PredictorQuality,
    predictor_quality,
    quality_in_bands,
)
from predictors.reporting.alone import Worth, worth_section
from predictors.reporting.architecture import draw_architecture, shades
from predictors.reporting.classes import class_table
from predictors.reporting.figures import Picture, describe_limits, describe_prediction
from predictors.reporting.findings import (
    Comparison,
    Findings,
    SelectedRecord,
    SelectedSubnet,
    SubnetRecord,
    by_arch,
)
from predictors.reporting.html import CSS, html_cell, html_grid, html_table, small_print
from predictors.search.constraints import format_cost

MOST_CANDIDATES, MOST_CLASSES = 10, 20  # that are listed


def render_page(found: Findings, drawn: Mapping[str, Picture], worth: Worth | None = None) -> str:
    """The page as text.

    Args:
        found: what it tells.
        drawn: what `predictors.reporting.figures.pictures` returned for it.
        worth: the selected subnets beside the same networks trained alone, if some were.
    """
    title = f"Subnets of {found.run}"
    fronts = [_figure(drawn[name]) for name in drawn if name.startswith(("front", "validation"))]
    confusions = [_figure(drawn[name]) for name in drawn if name.startswith("confusion")]
    parts = [
        f"<h1>{safe(title)}</h1>",
        *_lead(found),
        "<h2>Chosen subnets</h2>",
        *_selected_table(found),
        *worth_section(worth),
        "<h2>Class by class</h2>",
        *class_table(found.confusions, found.classes),
        html_grid(confusions),
        "<h2>The front</h2>",
        html_grid(fronts),
        "<h2>How far the predictor can be trusted</h2>",
        *_predictor_section(found, drawn.get("predictor")),
        "<h2>Architectures</h2>",
        *_architectures(found),
        small_print(
            f"The same as pictures and tables, beside this page: {safe(', '.join(drawn))}, each as .png and "
            f".csv; report.json. All of the weights with SHA-256 {found.weights_sha256}."
        ),
    ]
    head = (
        '<meta charset="utf-8"/><meta name="viewport" content="width=device-width,initial-scale=1"/>'
        f"<title>{safe(title)}</title><style>{colors_css()}{CSS}</style>"
    )
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'
    )


def _lead(found: Findings) -> list[str]:
    """What the selection was worth, in one sentence, and what the figures mean."""
    # In points of accuracy, on average over the selected subnets.
    gains = [100 * (c.test_accuracy - c.random_median) for c in found.comparisons]
    gain = sum(gains) / len(gains)
    beaten = sum(c.random_beaten for c in found.comparisons)
    count = sum(c.random_count for c in found.comparisons)
    which = "the chosen subnet is" if len(gains) == 1 else f"the {len(gains)} chosen subnets are on average"
    where = "above" if gain >= 0 else "below"
    classes = ", ".join(found.classes[:MOST_CLASSES])
    if len(found.classes) > MOST_CLASSES:
        classes += ", …"
    size = found.space.size()
    # Large numbers of architectures only as a power of ten.
    many = f"{size:,}" if size < 10**9 else f"about 10<sup>{len(str(size)) - 1}</sup>"
    return [
        f'<p class="lead">On test images, {which} {abs(gain):.1f} points {where} the median random subnet of '
        f"the same size, and better than {beaten} of {count}.</p>",
        small_print(
            f"One supernet holds {many} architectures (space “{safe(found.space.name)}”). Accuracy is top-1, "
            f"for {len(found.classes)} classes ({safe(classes)}). {found.images['val']} validation images "
            f"decided what was chosen; {found.images['test']} test images were looked at for this report "
            "only. FLOPs here means multiply-accumulates (MACs) of one image: 600M is 600 million."
        ),
    ]


def _selected_table(found: Findings) -> list[str]:
    has_latency = any(s.record.latency_ms is not None for s in found.selected)
    # Without a device there is no column of dashes.
    heads = ["chosen", "MACs", "params", "predicted", "validation", "test", "random (test)", "beats"]
    if has_latency:
        heads.insert(3, "latency")
    has_tuned = any(c.tuned_accuracy is not None for c in found.comparisons)
    if has_tuned:
        heads.insert(heads.index("random (test)"), "tuned (test)")
    rows = []
    for subnet, comparison in zip(found.selected, found.comparisons, strict=True):
        cells = _selected_row(subnet, comparison, found.images, has_latency)
        if has_tuned:
            cells.insert(
                heads.index("tuned (test)"), _tuned_cell(comparison.tuned_accuracy, found.images["test"])
            )
        rows.append(cells)
    return [
        html_table(heads, rows),
        small_print(
            "In order of budget. In small print: the limits, the search and when the file was written; 90% "
            "intervals. That of a prediction is what the predictor said before the subnet was measured; a "
            "dash means that it was known without a predictor: collected, or measured by an earlier search. "
            "That of a measurement comes from the number of images alone. Random: the median of random "
            "subnets whose MACs differ by no more than it says. Test and random are with the supernet's "
            "weights, tuned with those of ofa.tune."
        ),
    ]


def _selected_row(
    subnet: SelectedSubnet, comparison: Comparison, images: Mapping[str, int], has_latency: bool
) -> list[str]:
    record = subnet.record
    cells = [
        _name_cell(subnet),
        html_cell(format_count(record.macs)),
        html_cell("–" if record.params is None else format_count(record.params)),
        _predicted_cell(record),
        _measured_cell(record.val_accuracy, images["val"]),
        _measured_cell(comparison.test_accuracy, images["test"]),
        html_cell(f"{100 * comparison.random_median:.1f}%", f"within {comparison.random_macs_apart:.0%}"),
        html_cell(f"{comparison.random_beaten} of {comparison.random_count}"),
    ]
    if has_latency:
        ms = record.latency_ms
        cells.insert(3, html_cell("–" if ms is None else format_cost("latency", ms)))
    return cells


def _tuned_cell(accuracy: float | None, images: int) -> str:
    """Accuracy with the weights of ofa.tune; a dash if the subnet was not tuned."""
    return html_cell("–") if accuracy is None else _measured_cell(accuracy, images)


def _name_cell(subnet: SelectedSubnet) -> str:
    """The name, and in small print the limits, and how and when the subnet was selected."""
    record = subnet.record
    # A file may hold no more than a subnet and its accuracy.
    small = []
    if record.constraints:
        small.append(describe_limits(subnet))
    how = f"{subnet.written:%Y-%m-%d %H:%M}"
    if record.explore:
        how = f"{record.explore} from {record.pairs} pairs, seed {record.seed} · {how}"
    return html_cell(subnet.name, *small, how)


def _predicted_cell(record: SelectedRecord) -> str:
    interval = record.predicted_interval()
    predicted = describe_prediction(record.predicted_accuracy, None)
    if not interval:
        return html_cell(predicted)
    return html_cell(predicted, f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}")


def _measured_cell(accuracy: float, images: int) -> str:
    low, high = wilson_interval(accuracy, images)
    return html_cell(f"{100 * accuracy:.1f}%", f"{100 * low:.1f} to {100 * high:.1f}")


def _predictor_section(found: Findings, picture: Picture | None) -> list[str]:
    """How well the collected pairs predict each other."""
    judged = found.judged
    if judged is None or picture is None:
        return [
            f"<p>{found.pairs} subnets are collected; from 20 on, this report predicts each of them from the "
            "others.</p>"
        ]
    # "Predicted" by MACs: whatever beats this has learned more than that larger subnets are better.
    by_macs = judged._replace(predicted=judged.macs.astype(float))
    gap = format_count(similar_macs(judged.macs), 2)
    rows = [_tau_row("predictor", judged), _tau_row("MACs alone", by_macs)]
    parts = [
        "<h3>Kendall’s tau: does it rank as measurements do?</h3>",
        html_table(["", "overall", f"at similar MACs (±{gap})"], rows),
        small_print(
            "1: the same order; 0: no relation. Overall flatters, since larger subnets are better anyway: "
            "that is what “MACs alone” scores by itself. The second column compares only subnets of similar "
            "size, as a choice under a budget does. Measurements are uncertain by themselves "
            f"({found.images['val']} images), so 1 cannot be reached."
        ),
    ]
    bands = quality_in_bands(judged)
    if bands:
        heads = ["MACs", "subnets", "tau", "typical miss", "inside 90%"]
        parts += [
            "<h3>In bands of MACs</h3>",
            html_table(heads, [_band_row(*band) for band in bands]),
            small_print("Typical miss: the median of |predicted − measured|, in points of accuracy."),
        ]
    return [html_grid([_figure(picture), "<div>" + "\n".join(parts) + "</div>"])]


def _tau_row(name: str, pairs: CrossValidated) -> list[str]:
    similar = tau_in_bands(pairs.measured, pairs.predicted, pairs.macs)
    return [html_cell(name), html_cell(_number(predictor_quality(pairs).tau)), html_cell(_number(similar))]


def _band_row(low: int, high: int, quality: PredictorQuality) -> list[str]:
    return [
        html_cell(f"{format_count(low)} to {format_count(high)}"),
        html_cell(str(quality.pairs)),
        html_cell(_number(quality.tau)),
        html_cell(f"{100 * quality.miss:.2f}"),
        html_cell(f"{quality.coverage:.0%}"),
    ]


def _architectures(found: Findings) -> list[str]:
    keys = []
    for kernel, shade in shades(found.space).items():
        swatch = f'<svg class="key" viewBox="0 0 11 9"><path class="f-{shade}" d="M0 0H11V9H0Z"/></svg>'
        text = f"{kernel}×{kernel}" if kernel else "no elastic kernel"
        keys.append(f"{swatch}{text}")
    diagrams = [_architecture(found, arch, same) for arch, same in by_arch(found.selected).items()]
    return [
        small_print(
            "From the image above to the classes below, one row for each stage; blocks from left to right. A "
            "block says its kernel and its expansion (e4: four times the channels inside). Taller: more "
            "channels; dashed: what the supernet has and this subnet leaves out. ch: output channels; then "
            "the size of the map that leaves the stage; SE: squeeze-and-excitation. "
            f"Kernel:{''.join(keys)}"
        ),
        html_grid(diagrams),
    ]


def _architecture(found: Findings, arch: Arch, same: Sequence[SelectedSubnet]) -> str:
    """One architecture with its diagram, and the other candidates of all that selected it."""
    names = ", ".join(s.name for s in same)
    # Subnets of one architecture have the same MACs, whatever their budgets are.
    facts = f"{format_count(same[0].record.macs)} MACs, image {arch.resolution} × {arch.resolution}"
    drawing = to_svg(draw_architecture(f"architecture of {names}", found.space, arch))
    candidates = [_candidates(s, found.images["val"]) for s in same]
    return (
        f"<article><h3>{safe(names)}</h3>{small_print(safe(facts))}{drawing}{''.join(candidates)}</article>"
    )


def _candidates(subnet: SelectedSubnet, images: int) -> str:
    candidates = subnet.record.candidates
    shown = candidates[:MOST_CANDIDATES]
    if not shown:
        return ""
    count = str(len(shown)) if len(shown) == len(candidates) else f"{len(shown)} of {len(candidates)}"
    rows = [[html_cell(str(i)), *_candidate_row(record, images)] for i, record in enumerate(shown, start=1)]
    table = html_table(["rank", "MACs", "predicted (90%)", "validation"], rows)
    summary = f"Other candidates for {safe(subnet.name)}, by measured accuracy ({count})"
    return f"<details><summary>{summary}</summary>{table}</details>"


def _candidate_row(record: SubnetRecord, images: int) -> list[str]:
    predicted = describe_prediction(record.predicted_accuracy, record.predicted_interval())
    return [
        html_cell(format_count(record.macs)),
        html_cell(predicted),
        _measured_cell(record.val_accuracy, images),
    ]


def _number(value: float) -> str:
    """Two digits, or a dash for what is not a number."""
    return "–" if value != value else f"{value:.2f}"


def _figure(picture: Picture) -> str:
    title, caption = safe(picture.drawing.title), safe(picture.caption)
    return f"<figure><h3>{title}</h3>{to_svg(picture.drawing)}<figcaption>{caption}</figcaption></figure>"
