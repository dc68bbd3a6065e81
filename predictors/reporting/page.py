"""The report as one HTML page that needs nothing else: no script, no font, no picture, no style from
elsewhere. It is XML, too."""

from collections.abc import Iterable, Mapping, Sequence

from engine.config import format_count
from engine.plot.canvas import colors_css, safe, to_svg
from ofa.space.arch import Arch
from predictors.accuracy.cross_validation import Trust, bands, trust
from predictors.accuracy.validation import near, tau_in_bands
from predictors.reporting.architecture import draw_architecture, shades
from predictors.reporting.figures import Picture, describe_limits, describe_prediction
from predictors.reporting.findings import Chosen, Comparison, Facts, Findings, by_arch, wilson
from predictors.search.constraints import format_cost

MOST_CANDIDATES, MOST_CLASSES = 10, 20
CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .4rem}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--grid)}
h3{font-size:1rem;margin:0 0 .3rem;overflow-wrap:anywhere}
p{max-width:75ch;margin:.5rem 0}
.lead{font-size:1.08rem}
.quiet,figcaption{color:var(--quiet);font-size:.9rem}
figcaption{margin-top:.4rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:28px 32px;
align-items:start}
.grid>*{min-width:0;max-width:560px}
figure{margin:0}
svg{display:block;width:100%;height:auto;font-family:inherit}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.38rem .8rem .38rem 0;text-align:right;white-space:nowrap;
border-bottom:1px solid var(--grid);vertical-align:top}
th{color:var(--quiet);font-weight:500}
th[scope=row]{text-align:left;color:var(--ink);font-weight:600;position:sticky;left:0;background:var(--paper)}
thead th:first-child{text-align:left}
th small{white-space:normal;min-width:8.5em}
small{display:block;font-weight:400;color:var(--quiet);font-size:.84em}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
.key{display:inline-block;width:1.1em;height:.9em;margin:0 .35em 0 .9em;vertical-align:-.08em}
summary{cursor:pointer;color:var(--quiet);font-size:.9rem;margin-top:.4rem}
@media(max-width:520px){main{padding:16px 14px 48px}h1{font-size:1.4rem}table{font-size:.84rem}
th,td{padding-right:.55rem}}
@media print{main{max-width:none;padding:0}figure,article,tr{break-inside:avoid}.wide{overflow:visible}
table{font-size:.75rem}
th,td{white-space:normal}}
"""


def render(found: Findings, drawn: Mapping[str, Picture]) -> str:
    """The page."""
    title = f"Subnets of {found.run}"
    fronts = [name for name in drawn if name.startswith(("front", "validation"))]
    parts = [
        f"<h1>{safe(title)}</h1>",
        *_lead(found),
        "<h2>Chosen subnets</h2>",
        *_chosen_table(found),
        "<h2>The front</h2>",
        _grid(_figure(drawn[name]) for name in fronts),
        "<h2>How far the predictor can be trusted</h2>",
        *_trust(found, drawn.get("predictor")),
        "<h2>Architectures</h2>",
        *_architectures(found),
        f'<p class="quiet">The same as pictures and tables, beside this page: {", ".join(drawn)}, each as '
        ".png and .csv; report.json.</p>",
    ]
    head = (
        '<meta charset="utf-8"/><meta name="viewport" content="width=device-width,initial-scale=1"/><title>'
        f"{safe(title)}</title>"
    )
    style = f"<style>{colors_css()}{CSS}</style>"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}{style}</head>\n<body><main>\n'
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _lead(found: Findings) -> list[str]:
    classes = ", ".join(found.classes[:MOST_CLASSES]) + (", …" if len(found.classes) > MOST_CLASSES else "")
    gains = [100 * (c.test_accuracy - c.random_median) for c in found.comparisons]
    beaten, count = (
        sum(c.random_beaten for c in found.comparisons),
        sum(c.random_count for c in found.comparisons),
    )
    one, gain, size = len(gains) == 1, sum(gains) / len(gains), found.space.size()
    many = f"{size:,}" if size < 10**9 else f"about 10<sup>{len(str(size)) - 1}</sup>"
    return [
        '<p class="lead">On test images, '
        f"{'the chosen subnet is' if one else f'the {len(gains)} chosen subnets are on average'} "
        f"{abs(gain):.1f} points {'above' if gain >= 0 else 'below'} the median random subnet of the same "
        f"size, and better than {beaten} "
        f"of {count}.</p>",
        f'<p class="quiet">One supernet holds {many} architectures (space “{safe(found.space.name)}”). '
        "Accuracy is top-1, for "
        f"{len(found.classes)} classes ({safe(classes)}). {found.images['val']} validation images decided "
        "what was chosen; "
        f"{found.images['test']} test images were looked at for this report only. FLOPs here means "
        "multiply-accumulates (MACs) of one "
        "image: 600M is 600 million.</p>",
    ]


def _chosen_table(found: Findings) -> list[str]:
    timed = any(c.choice.latency_ms is not None for c in found.chosen)
    heads = [
        "chosen",
        "MACs",
        "params",
        *(["latency"] if timed else []),
        "predicted",
        "validation",
        "test",
        "random (test)",
        "beats",
    ]
    rows = [
        _chosen_row(c, comparison, found.images, timed)
        for c, comparison in zip(found.chosen, found.comparisons, strict=True)
    ]
    return [
        _table(heads, rows),
        '<p class="quiet">In order of budget. In small print: the limits, the search and when the file was '
        "written; 90% intervals. That "
        "of a prediction is what the predictor said before the subnet was measured; a dash means that it was "
        "known without a predictor: "
        "collected, or measured by an earlier search. That of a measurement comes from the number of images "
        "alone. Random: the median of "
        "random subnets whose MACs differ by no more than it says.</p>",
    ]


def _chosen_row(c: Chosen, comparison: Comparison, images: Mapping[str, int], timed: bool) -> list[str]:
    choice = c.choice
    how = [f"{choice.explore} from {choice.pairs} pairs, seed {choice.seed}"] if choice.explore else []
    interval = choice.predicted_interval()
    predicted = [describe_prediction(choice.predicted_accuracy, None)]
    predicted += [f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"] if interval else []
    return [
        _cell(
            c.name,
            *([describe_limits(c)] if choice.constraints else []),
            " · ".join([*how, f"{c.written:%Y-%m-%d %H:%M}"]),
        ),
        _cell(format_count(choice.macs)),
        _cell("–" if choice.params is None else format_count(choice.params)),
        *(
            [_cell("–" if choice.latency_ms is None else format_cost("latency", choice.latency_ms))]
            if timed
            else []
        ),
        _cell(*predicted),
        _measured(choice.val_accuracy, images["val"]),
        _measured(comparison.test_accuracy, images["test"]),
        _cell(f"{100 * comparison.random_median:.1f}%", f"within {comparison.random_macs_apart:.0%}"),
        _cell(f"{comparison.random_beaten} of {comparison.random_count}"),
    ]


def _measured(accuracy: float, images: int) -> str:
    low, high = wilson(accuracy, images)
    return _cell(f"{100 * accuracy:.1f}%", f"{100 * low:.1f} to {100 * high:.1f}")


def _trust(found: Findings, picture: Picture | None) -> list[str]:
    judged = found.judged
    if judged is None or picture is None:
        return [
            f"<p>{found.pairs} subnets are collected; from 20 on, this report predicts each of them from the "
            "others.</p>"
        ]
    whole, plain = trust(judged), judged._replace(predicted=judged.macs.astype(float))
    everywhere = [
        tau_in_bands(*x)
        for x in (
            (judged.measured, judged.predicted, judged.macs),
            (plain.measured, plain.predicted, plain.macs),
        )
    ]
    gap = format_count(near(judged.macs), 2)
    rows = [
        [_cell("predictor"), _cell(_number(whole.tau)), _cell(_number(everywhere[0]))],
        [_cell("MACs alone"), _cell(_number(trust(plain).tau)), _cell(_number(everywhere[1]))],
    ]
    parts = [
        "<h3>Kendall’s tau: does it rank as measurements do?</h3>",
        _table(["", "overall", f"at similar MACs (±{gap})"], rows),
        '<p class="quiet">1: the same order; 0: no relation. Overall flatters, since larger subnets are '
        "better anyway: that is what “MACs "
        "alone” scores by itself. The second column compares only subnets of similar size, as a choice under "
        "a budget does. Measurements "
        f"are uncertain by themselves ({found.images['val']} images), so 1 cannot be reached.</p>",
    ]
    if split := bands(judged):
        parts += [
            "<h3>In bands of MACs</h3>",
            _table(["MACs", "subnets", "tau", "typical miss", "inside 90%"], map(_band, split)),
        ]
        parts.append(
            '<p class="quiet">Typical miss: the median of |predicted − measured|, in points of accuracy.</p>'
        )
    return [_grid([_figure(picture), "<div>" + "\n".join(parts) + "</div>"])]


def _band(band: tuple[int, int, Trust]) -> list[str]:
    low, high, t = band
    name = f"{format_count(low)} to {format_count(high)}"
    return [
        _cell(name),
        _cell(str(t.pairs)),
        _cell(_number(t.tau)),
        _cell(f"{100 * t.miss:.2f}"),
        _cell(f"{t.coverage:.0%}"),
    ]


def _architectures(found: Findings) -> list[str]:
    keys = "".join(
        f'<svg class="key" viewBox="0 0 11 9"><path class="f-{shade}" d="M0 '
        f'0H11V9H0Z"/></svg>{kernel}×{kernel}'
        for kernel, shade in shades(found.space).items()
    )
    return [
        '<p class="quiet">From the image above to the classes below, one row for each stage; blocks from '
        "left to right. A block says its "
        "kernel and its expansion (e4: four times the channels inside). Taller: more channels; dashed: what "
        "the supernet has and this "
        "subnet leaves out. ch: output channels; then the size of the map that leaves the stage; SE: "
        "squeeze-and-excitation. "
        f"Kernel:{keys}</p>",
        _grid(_architecture(found, arch, same) for arch, same in by_arch(found.chosen).items()),
    ]


def _architecture(found: Findings, arch: Arch, same: Sequence[Chosen]) -> str:
    names = ", ".join(c.name for c in same)
    facts = [f"{format_count(same[0].choice.macs)} MACs", f"image {arch.resolution} × {arch.resolution}"]
    drawing = to_svg(draw_architecture(f"architecture of {names}", found.space, arch))
    lists = "".join(_candidates(c, found.images["val"]) for c in same)
    return (
        f'<article><h3>{safe(names)}</h3><p class="quiet">{safe(", ".join(facts))}</p>'
        f"{drawing}{lists}</article>"
    )


def _candidates(c: Chosen, images: int) -> str:
    others = c.choice.candidates[:MOST_CANDIDATES]
    if not others:
        return ""
    rows = [[_cell(str(i)), *_candidate(facts, images)] for i, facts in enumerate(others, start=1)]
    count = (
        f"{len(others)} of {len(c.choice.candidates)}"
        if len(others) < len(c.choice.candidates)
        else str(len(others))
    )
    table = _table(["rank", "MACs", "predicted (90%)", "validation"], rows)
    return (
        f"<details><summary>Other candidates for {safe(c.name)}, by measured accuracy ({count})</summary>"
        f"{table}</details>"
    )


def _candidate(facts: Facts, images: int) -> list[str]:
    predicted = describe_prediction(facts.predicted_accuracy, facts.predicted_interval())
    return [_cell(format_count(facts.macs)), _cell(predicted), _measured(facts.val_accuracy, images)]


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.2f}"


def _figure(picture: Picture) -> str:
    svg = to_svg(picture.drawing)
    return (
        f"<figure><h3>{safe(picture.drawing.title)}</h3>{svg}<figcaption>"
        f"{safe(picture.caption)}</figcaption></figure>"
    )


def _grid(parts: Iterable[str]) -> str:
    return '<div class="grid">' + "\n".join(parts) + "</div>"


def _cell(text: str, *small: str) -> str:
    return safe(text) + "".join(f"<small>{safe(line)}</small>" for line in small)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; the first of each row is its name."""
    head = "".join(f'<th scope="col">{safe(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
