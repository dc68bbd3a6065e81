"""The report as one HTML page, which is XML too.

The page needs nothing else: no script, font, picture or style comes from elsewhere.
"""

from collections.abc import Mapping, Sequence

from engine.config import are, counted, format_count
from engine.plot.canvas import colors_css, safe, to_svg
from engine.statistics import similar_macs, tau_in_bands
from ofa.space.arch import Arch
from predictors.accuracy.cross_validation import (
    CrossValidated,
    PredictorQuality,
    predictor_quality,
    quality_in_bands,
)
from predictors.accuracy.validation import chance_sentence
from predictors.reporting.alone import Worth, worth_section
from predictors.reporting.architecture import draw_architecture, shades
from predictors.reporting.classes import class_table
from predictors.reporting.comparison import Comparison, headline, lead_sentence
from predictors.reporting.exported import exported_section, files_of
from predictors.reporting.figures import Picture, describe_half, describe_limits, describe_prediction
from predictors.reporting.findings import (
    Findings,
    SelectedRecord,
    SelectedSubnet,
    SubnetRecord,
    by_arch,
    short_names,
)
from predictors.reporting.html import (
    CSS,
    DASH,
    html_cell,
    html_grid,
    html_table,
    measured_cell,
    notes,
    small_print,
    stacked_css,
)
from predictors.reporting.rivals import FEWEST_RIVALS, SAME_MACS
from predictors.search.constraints import format_cost

MOST_CANDIDATES, MOST_CLASSES = 10, 10  # that are listed


def render_page(found: Findings, drawn: Mapping[str, Picture], worth: Worth | None = None) -> str:
    """The page as text.

    Args:
        found: what it tells.
        drawn: what `predictors.reporting.figures.pictures` returned for it.
        worth: the selected subnets beside the same networks trained alone, if some were.
    """
    title = f"Subnets of {found.run}"
    short = short_names(found.selected)
    selected = [c.budget for c in found.comparisons if c.is_selected]
    said = []
    for budget, sentence in zip(selected, headlines(found, worth), strict=True):
        said.append(f"<li><strong>{safe(budget)}</strong>{safe(sentence[len(budget) :])}</li>")
    fronts = [_figure(drawn[name]) for name in drawn if name.startswith(("front", "validation"))]
    by_class = {short[budget]: counts for budget, counts in found.confusions.items()}
    confusions = [_figure(drawn[name]) for name in drawn if name.startswith("confusion")]
    parts = [
        f"<h1>{safe(title)}</h1>",
        f'<p class="lead">{safe(lead_sentence(found.comparisons, found.images["test"]))}</p>',
        '<ul class="budgets">' + "".join(said) + "</ul>",
        _about(found),
        "<h2>Chosen subnets</h2>",
        *_selected_table(found),
        *worth_section(worth),
        *exported_section(found.exported),
        "<h2>Class by class</h2>",
        *_class_section(class_table(by_class, found.classes), confusions),
        "<h2>The front</h2>",
        html_grid(fronts),
        "<h2>How far the predictor can be trusted</h2>",
        *_predictor_section(found, drawn.get("predictor")),
        "<h2>Architectures</h2>",
        *_architectures(found),
        notes(
            f"The same as pictures and tables, beside this page: {safe(', '.join(drawn))}, each as .png and "
            f".csv; report.json and report.csv. All of the weights with SHA-256 {found.weights_sha256}."
        ),
    ]
    head = (
        '<meta charset="utf-8"/><meta name="viewport" content="width=device-width,initial-scale=1"/>'
        f"<title>{safe(title)}</title><style>{colors_css()}{CSS}{stacked_css()}</style>"
    )
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'
    )


def headlines(found: Findings, worth: Worth | None) -> list[str]:
    """A sentence or two about each selected subnet, which the command prints too."""
    records = {subnet.name: subnet.record for subnet in found.selected}
    sentences = []
    for c in found.comparisons:
        if c.is_selected:
            extra = [worth.of_budget(c.budget)] if worth else []
            extra.append(describe_half(records[c.budget], found.images["val"]))
            files = files_of(found.exported, c.budget)
            sentences.append(headline(c, found.images, files, [text for text in extra if text]))
    return sentences


def _about(found: Findings) -> str:
    """What the figures mean."""
    classes = ", ".join(found.classes[:MOST_CLASSES])
    if len(found.classes) > MOST_CLASSES:
        classes += ", …"
    size = found.space.size()
    # Large numbers of architectures only as a power of ten.
    many = f"{size:,}" if size < 10**9 else f"about 10<sup>{len(str(size)) - 1}</sup>"
    return notes(
        f"One supernet holds {many} architectures (space “{safe(found.space.name)}”). Accuracy is top-1, for "
        f"{len(found.classes)} classes ({safe(classes)}). {found.images['val']} validation images decided "
        f"what was chosen; {found.images['test']} test images were looked at for this report only. FLOPs "
        "here means multiply-accumulates (MACs) of one image: 600M is 600 million. ± is one standard error, "
        "from the number of images alone."
    )


def _selected_table(found: Findings) -> list[str]:
    records = {subnet.name: subnet for subnet in found.selected}
    rows = []
    for c in found.comparisons:
        rows.append(_subnet_row(c, records.get(c.budget) if c.is_selected else None, found.images))
    # Without a device there is no column of dashes; nor without tuned weights or expected accuracies.
    shown = [name for name in rows[0] if any(row[name] != DASH for row in rows)]
    expected = "Expected is what prediction and measurement say together. " if "expected" in shown else ""
    return [
        html_table(shown, [[row[name] for name in shown] for row in rows]),
        notes(
            "In order of budget, between the smallest and the largest subnet of the supernet. In small "
            "print: the limits, the search and when the file was written; 90% intervals. Predicted is what "
            "the predictor said before the subnet was measured; a dash means that it was known without a "
            f"predictor: collected, or measured by an earlier search. {expected}The interval of "
            "a measurement comes from the number of images alone. Random: the median of random subnets whose "
            f"MACs are within {SAME_MACS:.0%}; a dash where the space has fewer than {FEWEST_RIVALS} of "
            "them. Test and random are with the supernet’s weights, tuned with those of ofa.tune."
        ),
    ]


def _subnet_row(c: Comparison, subnet: SelectedSubnet | None, images: Mapping[str, int]) -> dict[str, str]:
    """The cells of a subnet by the heads of their columns."""
    row = {
        "subnet": html_cell(c.budget) if subnet is None else _name_cell(subnet),
        "MACs": html_cell(format_count(c.macs)),
        "params": html_cell(format_count(c.params)),
        "latency": DASH if c.latency_ms is None else _latency_cell(c.latency_ms, subnet),
        "predicted": DASH if subnet is None else _predicted_cell(subnet.record),
        "expected": DASH,
        "validation": measured_cell(c.val_accuracy, images["val"]),
        "test": measured_cell(c.test_accuracy, images["test"]),
        "tuned (test)": measured_cell(c.tuned_accuracy, images["test"]),
        "random (test)": DASH,
        "beats": DASH,
    }
    if c.expected_accuracy is not None:
        interval = []
        if c.expected_low is not None and c.expected_high is not None:
            interval.append(f"{100 * c.expected_low:.1f} to {100 * c.expected_high:.1f}")
        row["expected"] = html_cell(f"{100 * c.expected_accuracy:.1f}%", *interval)
    if c.random_median is not None:
        row["random (test)"] = html_cell(f"{100 * c.random_median:.1f}%")
        row["beats"] = html_cell(f"{c.random_beaten} of {c.random_count}")
    return row


def _latency_cell(predicted_ms: float, subnet: SelectedSubnet | None) -> str:
    """The predicted latency, and under it what most subnets stay below, and what was timed."""
    small = []
    if subnet is not None and subnet.record.latency_bound_ms is not None:
        small.append(f"90% below {format_cost('latency', subnet.record.latency_bound_ms)}")
    if subnet is not None and subnet.record.latency_measured_ms is not None:
        small.append(f"timed {format_cost('latency', subnet.record.latency_measured_ms)}")
    return html_cell(format_cost("latency", predicted_ms), *small)


def _name_cell(subnet: SelectedSubnet) -> str:
    """The name, and in small print the limits, and how and when the subnet was selected."""
    record = subnet.record
    # A file may hold no more than a subnet and its accuracy.
    small = []
    if record.constraints:
        small.append(describe_limits(subnet))
    how = f"{subnet.written:%Y-%m-%d %H:%M}"
    if record.explore:
        how = f"{record.explore} from {counted(record.pairs or 0, 'pair')}, seed {record.seed} · {how}"
    return html_cell(subnet.name, *small, how)


def _predicted_cell(record: SelectedRecord) -> str:
    interval = record.predicted_interval()
    predicted = describe_prediction(record.predicted_accuracy, None)
    if not interval:
        return html_cell(predicted)
    return html_cell(predicted, f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}")


def _predictor_section(found: Findings, picture: Picture | None) -> list[str]:
    """How well the collected pairs predict each other."""
    judged = found.judged
    if judged is None or picture is None:
        return [
            f"<p>{counted(found.pairs, 'subnet')} {are(found.pairs)} collected; from 20 on, this report "
            "predicts each of them from the others.</p>"
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
    by_chance = chance_sentence(predictor_quality(judged).tau, len(judged.measured), found.images["val"])
    if by_chance:
        parts.append(f"<p>{by_chance}</p>")
    bands = quality_in_bands(judged)
    if bands:
        heads = ["MACs", "subnets", "tau", "typical miss", "inside 90%"]
        parts += [
            "<h3>In bands of MACs</h3>",
            html_table(heads, [_band_row(*band) for band in bands]),
            small_print("Typical miss: the median of |predicted − measured|, in points of accuracy."),
        ]
    parts += _proposed_table(found)
    return [html_grid([_figure(picture), "<div>" + "\n".join(parts) + "</div>"])]


def _proposed_table(found: Findings) -> list[str]:
    """How good the predictions were where they were used: on what each search proposed."""
    rows = []
    for subnet in found.selected:
        quality = subnet.record.predicted_candidates
        if quality is None or quality.coverage is None:
            continue
        hopeful = "–" if quality.hopeful is None else f"{100 * quality.hopeful:+z.2f}"
        row = [
            html_cell(subnet.name),
            html_cell(str(quality.predictions)),
            html_cell("–" if quality.tau is None else _number(quality.tau)),
            html_cell(hopeful),
            html_cell(f"{quality.coverage:.0%}"),
        ]
        rows.append(row)
    if not rows:
        return []
    return [
        "<h3>On what each search proposed</h3>",
        html_table(["search for", "subnets", "tau", "too hopeful by", "inside 90%"], rows),
        small_print(
            "Such subnets are better than collected ones and much alike, so the predictor ranks them worse. "
            "Too hopeful by: the mean of predicted − measured, in points of accuracy."
        ),
    ]


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


def _class_section(table: Sequence[str], confusions: Sequence[str]) -> list[str]:
    """Accuracy by class, and which classes are mixed up: a single picture stands beside the table."""
    if len(confusions) == 1:
        return [html_grid(["<div>" + "\n".join(table) + "</div>", *confusions])]
    return [*table, html_grid(confusions)]


def _architectures(found: Findings) -> list[str]:
    keys = []
    for kernel, shade in shades(found.space).items():
        swatch = f'<svg class="key" viewBox="0 0 11 9"><path class="f-{shade}" d="M0 0H11V9H0Z"/></svg>'
        text = f"{kernel}×{kernel}" if kernel else "no elastic kernel"
        keys.append(f"{swatch}{text}")
    diagrams = [_architecture(found, arch, same) for arch, same in by_arch(found.selected).items()]
    legend = (
        "From the image above to the classes below, one row for each stage; blocks from left to right. A "
        "block says its kernel and its expansion (e4: four times the channels inside). Taller: more "
        "channels; dashed: what the supernet has and this subnet leaves out. ch: output channels; then "
        "the size of the map that leaves the stage; SE: squeeze-and-excitation. "
        f"Kernel:{''.join(keys)}"
    )
    if len(diagrams) == 1:
        return [html_grid([*diagrams, f"<div>{small_print(legend)}</div>"])]
    return [notes(legend), html_grid(diagrams)]


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
        measured_cell(record.val_accuracy, images),
    ]


def _number(value: float) -> str:
    """Two digits, or a dash for what is not a number."""
    return "–" if value != value else f"{value:z.2f}"


def _figure(picture: Picture) -> str:
    title, caption = safe(picture.drawing.title), safe(picture.caption)
    return f"<figure><h3>{title}</h3>{to_svg(picture.drawing)}<figcaption>{caption}</figcaption></figure>"
