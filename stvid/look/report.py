"""``report.html``: an evaluation as one file to look at, without network, scripts or fonts of its own.

What is drawn comes from an `EvaluationResult`; the strips of frames come from reading the videos in question once more,
the same way as the evaluation read them. Everything that is a name is escaped.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvid.data.dataset import EvalDataset
from stvid.data.views import ViewPlan
from stvid.evaluation.evaluate import perturb_time
from stvid.evaluation.metrics import Calibration, video_scores
from stvid.evaluation.record import EvaluationResult
from stvid.files import write_atomically

__all__ = ["Example", "find_examples", "report_html", "write_report"]

MAX_MATRIX_CLASSES = 30
"""A confusion matrix of more classes is shown as its largest entries only."""

_LISTED = 20  # rows of long tables; result.json has them all
_BAR_CLASSES = 30


@dataclass(frozen=True)
class Example:
    """A video that the model got wrong.

    Attributes:
        kind: ``confident`` for a wrong class with a high score, ``hard`` for a label with a low one.
        number: Its place in the result.
        view: The view in which the wrong class scores highest.
        strip: JPEG of frames that the model saw in this view, side by side; empty if they cannot be read any more.
    """

    kind: str
    number: int
    view: int
    strip: bytes


def _own_and_other(result: EvaluationResult) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """The lowest score of a video's own labels, the highest of a class that it does not have, and that class."""
    scores = result.scores
    own = result.labels > 0 if result.task == "multilabel" else np.eye(scores.shape[1], dtype=bool)[result.labels]
    others = np.where(own, -1.0, scores)
    return np.where(own, scores, 2.0).min(axis=1), others.max(axis=1), others.argmax(axis=1)


def find_examples(
    result: EvaluationResult, dataset: EvalDataset, *, seed: int = 0, count: int = 6, frames: int = 8, size: int = 72
) -> list[Example]:
    """Finds the most confident errors and the hardest videos, and reads what the model saw of them.

    Args:
        result: Of the evaluation.
        dataset: The videos, with the views of the result first.
        seed: Of the evaluation, for shuffled frames.
        count: Videos of each kind, at most.
        frames: Frames in a strip, at most.
        size: Side of a frame in the strip, in pixels.
    """
    own, other, wrong_class = _own_and_other(result)
    wrong = np.flatnonzero(other > own)
    confident = wrong[np.argsort(-other[wrong], kind="stable")][:count]
    rest = wrong[~np.isin(wrong, confident)]
    hard = rest[np.argsort(own[rest], kind="stable")][:count]
    found = []
    for kind, numbers in (("confident", confident), ("hard", hard)):
        for number in numbers.tolist():
            per_view = video_scores(result.logits[number][:, None], result.task)
            view = int(per_view[:, wrong_class[number]].argmax())
            index = int(result.indices[number])
            sample = dataset[index]
            strip = b""
            if sample.clips is not None:
                clips = perturb_time(sample.clips[view : view + 1], result.temporal, seed=seed, index=index)
                strip = _strip(clips[0].permute(1, 2, 3, 0).numpy(), frames=frames, size=size)
            found.append(Example(kind, number, view, strip))
    return found


def _strip(clip: NDArray[np.uint8], *, frames: int, size: int) -> bytes:
    """Joins evenly chosen frames of a clip (T, H, W, 3), scaled, to one JPEG."""
    chosen = np.unique(np.linspace(0, len(clip) - 1, min(frames, len(clip))).round().astype(int))
    strip = Image.new("RGB", (len(chosen) * (size + 2) - 2, size), (128, 128, 128))
    for place, number in enumerate(chosen):
        picture = Image.fromarray(np.ascontiguousarray(clip[number])).resize((size, size), Image.Resampling.BILINEAR)
        strip.paste(picture, (place * (size + 2), 0))
    stream = io.BytesIO()
    strip.save(stream, format="JPEG", quality=70)
    return stream.getvalue()


def write_report(
    result: EvaluationResult, folder: str | os.PathLike[str], *, examples: Sequence[Example] = (), title: str = ""
) -> Path:
    """Writes ``report.html`` into a folder.

    Args:
        result: What it shows.
        folder: Made if it is missing.
        examples: From `find_examples`.
        title: Name of the model or run.

    Raises:
        OSError: If it cannot be written; an earlier file is left as it was.
    """
    target = Path(folder) / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    page = report_html(result, examples=examples, title=title)
    write_atomically(target, lambda file: file.write_text(page, encoding="utf-8"))
    return target


def report_html(result: EvaluationResult, *, examples: Sequence[Example] = (), title: str = "") -> str:
    """Returns the page; see `write_report`."""
    name = _text(title or "stvid evaluation")
    narrow = [
        _protocols(result),
        _probe(result),
        _classes(result),
        _calibration(result.calibration),
        _cost(result),
    ]
    wide = [_confusion(result), _examples(result, examples), _failures(result)]
    sections = [_headline(result, name), f'<div class="columns">{"".join(narrow)}</div>', *wide]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: {_text(_main_metric(result)[0])}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


# --- pieces -----------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """Escapes for text and attributes; bytes of a file name that are not text become a sign for that."""
    return escape(str(value).encode(errors="surrogateescape").decode(errors="replace"))


def _words(metric: str) -> str:
    """The name of a metric as a heading that can be broken into lines."""
    return _text(metric.replace("_", " "))


def _percent(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{100 * value:.{digits}f}%"


def _main_metric(result: EvaluationResult) -> tuple[str, float]:
    name = f"{'mAP' if result.task == 'multilabel' else 'top1'}@{result.views}"
    return name, result.metrics[name]


def _section(heading: str, body: str, note: str = "", *, wide: bool = False) -> str:
    explained = f'<p class="note">{note}</p>' if note else ""
    return f"<section{' class=wide' if wide else ''}><h2>{heading}</h2>{explained}{body}</section>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """A table whose cells are HTML already; the first columns are text, the others numbers."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{'' if number < text_columns else ' class=n'}>{cell}</{tag}>" for number, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _headline(result: EvaluationResult, name: str) -> str:
    intervals = result.intervals
    tiles = []
    for key, value in result.metrics.items():
        if not key.endswith(f"@{result.views}"):
            continue
        notes = []
        if key in intervals:
            notes.append("95% interval {:.2f} to {:.2f}%".format(*(100 * end for end in intervals[key])))
        if f"{key}_low" in result.metrics:
            low, high = result.metrics[f"{key}_low"], result.metrics[f"{key}_high"]
            notes.append(f"with the unreadable videos {_percent(low)} to {_percent(high)}")
        tiles.append(
            f'<div class="tile"><div class="label">{_text(key)}</div><div class="value">{_percent(value)}</div>'
            f'<div class="note">{"<br>".join(notes)}</div></div>'
        )
    failed = f", {len(result.failures)} could not be read" if result.failures else ""
    order = "" if result.temporal == "normal" else f"; frames {result.temporal}"
    facts = [
        f"{result.counted} videos counted{failed}; {len(result.class_names)} classes",
        f"{_text(result.protocol.describe())}{order}; scores average {result.average} over the views",
        f"<code>{_text(result.command)}</code>",
        _text(", ".join(f"{package} {version}" for package, version in result.versions.items())),
    ]
    return (
        f'<header><h1>{name}</h1><div class="tiles">{"".join(tiles)}</div>'
        + "".join(f"<p>{fact}</p>" for fact in facts)
        + "</header>"
    )


def _protocols(result: EvaluationResult) -> str:
    names = [name.partition("@")[0] for name in result.metrics if name.endswith(f"@{result.views}")]
    gflops = result.cost.get("gflops")
    rows, points = [], []
    for views in sorted((result.views, *result.also), key=lambda item: (ViewPlan.parse(item).num_views, item)):
        number = ViewPlan.parse(views).num_views
        cost = "" if gflops is None else f'<span class="sum">{gflops:.4g} × {number} = </span>{gflops * number:.4g}'
        values = [result.metrics.get(f"{name}@{views}") for name in names]
        shown = f"<b>{views}</b>" if views == result.views else views
        rows.append([shown, *(_percent(value) for value in values), cost])
        if values[0] is not None:
            points.append((number if gflops is None else gflops * number, values[0], views))
    table = _table(["views", *(_words(name) for name in names), "GFLOPs × views"], rows)
    plot = _scatter(points, x_label="views" if gflops is None else "GFLOPs × views", y_label=names[0])
    note = "Temporal clips × spatial crops, all measured in one pass. Cost is multiply-adds of one video."
    if result.distinct is not None and (result.distinct < result.logits.shape[1]).any():
        few = int((result.distinct < result.logits.shape[1]).sum())
        note += f" {few} short or square videos have equal views, which were computed once."
    return _section("Protocols", table + (plot if len(points) > 1 else ""), note)


def _probe(result: EvaluationResult) -> str:
    probe = result.probe
    if not probe:
        return ""
    names = [name for name in result.metrics if name.endswith(f"@{result.views}")]
    rows = [["normal", *(_percent(result.metrics[name]) for name in names)]]
    for temporal, record in probe.items():
        values = record["metrics"]
        cells = [
            f"{_percent(values[name])} <span class=drop>({100 * (values[name] - result.metrics[name]):+.2f})</span>"
            for name in names
        ]
        rows.append([temporal, *cells])
    key = "ap" if result.task == "multilabel" else "recall"
    changes = []
    for number, normal in enumerate(result.per_class):
        if normal["support"]:
            others = [record["per_class"][number][key] for record in probe.values()]
            changes.append((max(normal[key] - other for other in others), normal, others))
    changes.sort(key=lambda change: -change[0])
    listed = [
        [_text(normal["class"]), str(normal["support"]), _percent(normal[key], 1), *(_percent(v, 1) for v in others)]
        for _, normal, others in changes[:_LISTED]
    ]
    measure = "average precision" if key == "ap" else "recall"
    body = _table(["frames", *(_words(name.partition("@")[0]) for name in names)], rows)
    body += f"<h3>Classes that lose most ({measure})</h3>" + _table(["class", "videos", "normal", *probe], listed)
    note = (
        f"The clips of {result.views} with their frames in another order. A model that does not fall does not use time."
    )
    return _section("Does it use time?", body, note)


def _calibration(calibration: Calibration | None) -> str:
    if calibration is None:
        return ""
    size, left, top = 320, 44, 26
    inner = size - left - 12

    def x(value: float) -> float:
        return left + inner * value

    def y(value: float) -> float:
        return top + inner * (1 - value)

    most = max(record["count"] for record in calibration.bins)
    parts = [_axes(left, top, inner, inner, [0, 0.25, 0.5, 0.75, 1], x, [0, 0.25, 0.5, 0.75, 1], y)]
    parts.append(f'<path class="diagonal" d="M{x(0):.1f} {y(0):.1f}L{x(1):.1f} {y(1):.1f}"/>')
    for record in calibration.bins:
        low, high = x(record["low"]), x(record["high"])
        opacity = 0.35 + 0.65 * record["count"] / most
        parts.append(
            f'<rect class="bar" x="{low + 0.5:.1f}" y="{y(record["accuracy"]):.1f}" width="{high - low - 1:.1f}" '
            f'height="{y(0) - y(record["accuracy"]):.1f}" opacity="{opacity:.2f}"><title>'
            f"confidence {record['confidence']:.3f}, accuracy {record['accuracy']:.3f}, {record['count']:.0f} videos"
            "</title></rect>"
        )
        parts.append(
            f'<circle class="dot" cx="{x(record["confidence"]):.1f}" cy="{y(record["accuracy"]):.1f}" r="2.5"/>'
        )
    parts.append(_axis_names(left, top, inner, inner, "confidence", "accuracy"))
    svg = f'<svg class="small" viewBox="0 0 {size} {top + inner + 38}" role="img">{"".join(parts)}</svg>'
    note = (
        f"Expected calibration error {_percent(calibration.error)} (15 bins). Bars below the diagonal: too confident. "
        "Paler bars hold fewer videos."
    )
    return _section("Reliability", svg, note)


def _classes(result: EvaluationResult) -> str:
    key = "ap" if result.task == "multilabel" else "recall"
    present = [record for record in result.per_class if record["support"]]
    order = sorted(present, key=lambda record: (record[key], record["class"]))
    shown, note = order, "Worst first."
    if len(order) > _BAR_CLASSES:
        half = _BAR_CLASSES // 2
        shown = order[:half] + order[-half:]
        note = f"The {half} worst and the {half} best of {len(order)}."
    bars = []
    for number, record in enumerate(shown):
        if len(order) > len(shown) and number == len(shown) // 2:
            bars.append('<div class="gap">⋯</div>')
        bars.append(
            f'<div class="name" title="{_text(record["class"])}">{_text(record["class"])}</div><div class="track">'
            f'<div class="fill" style="width:{100 * record[key]:.1f}%"></div></div>'
            f'<div class="n">{_percent(record[key], 1)}</div>'
        )
    empty = len(result.per_class) - len(present)
    if empty:
        note += f" {empty} classes have no video."
    columns = ["class", "videos", *(["average precision"] if key == "ap" else ["recall", "precision"])]
    rows = [
        [
            _text(record["class"]),
            str(record["support"]),
            _percent(record[key], 1),
            *([] if key == "ap" else [_percent(record["precision"], 1)]),
        ]
        for record in sorted(result.per_class, key=lambda record: record["class"])
    ]
    everything = f"<details><summary>All {len(rows)} classes</summary>{_table(columns, rows)}</details>"
    heading = "Average precision of each class" if key == "ap" else "Recall of each class"
    return _section(heading, f'<div class="bars">{"".join(bars)}</div>{everything}', note)


def _confusion(result: EvaluationResult) -> str:
    matrix = result.confusion
    if matrix is None:
        return ""
    names = result.class_names
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    pairs = [divmod(int(cell), len(names)) for cell in np.argsort(-off, axis=None, kind="stable")[:_LISTED]]
    support = matrix.sum(axis=1)
    rows = [
        [
            _text(names[true]),
            _text(names[predicted]),
            str(off[true, predicted]),
            _percent(off[true, predicted] / support[true], 1),
        ]
        for true, predicted in pairs
        if off[true, predicted]
    ]
    small = len(names) <= MAX_MATRIX_CLASSES
    header = ["true class", "taken for", "videos", "of its videos"]
    listed = _table(header, rows[: 10 if small else _LISTED], text_columns=2)
    if not rows:
        listed = "<p>No video is taken for one of another class.</p>"
    body = ""
    if small:
        head = "".join(f'<th class="turned"><span>{_text(name)}</span></th>' for name in names)
        lines = []
        for true, name in enumerate(names):
            cells = []
            for predicted in range(len(names)):
                share = matrix[true, predicted] / support[true] if support[true] else 0.0
                kind = "hit" if true == predicted else "miss"
                count = str(matrix[true, predicted]) if matrix[true, predicted] else ""
                cells.append(
                    f'<td class="{kind}" style="--share:{share:.3f}" title="{_text(name)} taken for '
                    f'{_text(names[predicted])}: {matrix[true, predicted]}"><span>{count}</span></td>'
                )
            lines.append(f'<tr><th title="{_text(name)}">{_text(name)}</th>{"".join(cells)}</tr>')
        body = (
            f'<div class="scroll"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div><h3>Most confused</h3>"
        )
    note = "Rows are the true classes, columns what they were taken for; the shade is the share of the row."
    note = note if small else f"The most frequent of the confusions among {len(names)} classes."
    return _section("Confusion", body + listed, note)


def _examples(result: EvaluationResult, examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    own, other, wrong_class = _own_and_other(result)
    plan = ViewPlan.parse(result.views)
    parts = []
    for kind, heading in (("confident", "Most confident errors"), ("hard", "Hardest videos")):
        cards = []
        for example in examples:
            if example.kind != kind:
                continue
            number = example.number
            if result.task == "multilabel":
                labels = ", ".join(result.class_names[k] for k in np.flatnonzero(result.labels[number]))
            else:
                labels = result.class_names[int(result.labels[number])]
            picture = (
                f'<img alt="frames" src="data:image/jpeg;base64,{base64.b64encode(example.strip).decode()}">'
                if example.strip
                else "<p class=note>The video cannot be read any more.</p>"
            )
            cards.append(
                f"<figure>{picture}<figcaption><b>{_text(labels)}</b> ({_percent(own[number], 1)}) taken for "
                f"<b>{_text(result.class_names[wrong_class[number]])}</b> ({_percent(other[number], 1)})<br>"
                f'<span class="note">{_text(plan.names[example.view])}; {_text(result.paths[number])}</span>'
                "</figcaption></figure>"
            )
        if cards:
            parts.append(f'<h3>{heading}</h3><div class="figures">{"".join(cards)}</div>')
    note = "Frames as the model saw them, of the view in which the wrong class scores highest; scores are of all views."
    return _section("Errors", "".join(parts), note)


def _cost(result: EvaluationResult) -> str:
    cost, rows = result.cost, []
    views = result.logits.shape[1] + (0 if result.extra_logits is None else result.extra_logits.shape[1])
    views += result.logits.shape[1] * len(result.probe_logits)
    if "params" in cost:
        rows.append(["parameters", f"{cost['params'] / 1e6:.2f} M"])
    if "gflops" in cost:
        rows.append(["multiply-adds of one view", f"{cost['gflops']:.4g} G"])
        number = result.logits.shape[1]
        rows.append([f"multiply-adds of one video ({result.views})", f"{cost['gflops'] * number:.4g} G"])
    rows.append(["views of each video in this pass", str(views)])
    if result.arithmetic:
        rows.append(["arithmetic", _text("; ".join(result.arithmetic))])
    if "seconds" in cost:
        count = max(result.counted + len(result.failures), 1)
        rows.append(["time, decoding included", f"{cost['seconds']:.1f} s ({cost['seconds'] / count:.3f} s a video)"])
    return _section("Cost", _table(["", ""], rows))


def _failures(result: EvaluationResult) -> str:
    if not result.failures:
        return ""
    rows = [[_text(path), _text(reason)] for path, reason in result.failures[:200]]
    more = len(result.failures) - len(rows)
    note = "They are not counted above; the bounds say what they could change."
    note += f" {more} more are listed in result.json." if more else ""
    return _section("Unreadable videos", _table(["video", "reason"], rows, text_columns=2), note)


# --- drawing ----------------------------------------------------------------------------------------------------------


def _axes(
    left: float,
    top: float,
    width: float,
    height: float,
    x_ticks: Sequence[float],
    x: Callable[[float], float],
    y_ticks: Sequence[float],
    y: Callable[[float], float],
) -> str:
    parts = []
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{left} {y(tick):.1f}H{left + width}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.4g}%</text>')
    for tick in x_ticks:
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {top}V{top + height}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{top + height + 15}" text-anchor="middle">{tick:.4g}</text>')
    return "".join(parts)


def _axis_names(left: float, top: float, width: float, height: float, x_name: str, y_name: str) -> str:
    return (
        f'<text x="{left + width / 2}" y="{top + height + 31}" text-anchor="middle" class="axis">{_text(x_name)}</text>'
        f'<text x="{left}" y="{top - 8}" class="axis">{_text(y_name)}</text>'
    )


def _round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers in a range."""
    raw = (high - low) / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw)
    return [round(step * k, 9) for k in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _scatter(points: Sequence[tuple[float, float, str]], *, x_label: str, y_label: str) -> str:
    """Accuracy against cost, on a logarithmic axis."""
    if len(points) < 2:
        return ""
    width, height, left, top = 400, 260, 52, 26
    inner_width, inner_height = width - left - 24, height - top - 38
    logs = [math.log10(cost) for cost, _, _ in points]
    low_x, high_x = min(logs) - 0.08, max(logs) + 0.08
    values = [value for _, value, _ in points]
    margin = max(0.25 * (max(values) - min(values)), 0.005)
    low_y, high_y = max(min(values) - margin, 0.0), min(max(values) + margin, 1.0)

    def x(cost: float) -> float:
        return left + inner_width * (math.log10(cost) - low_x) / (high_x - low_x)

    def y(value: float) -> float:
        return top + inner_height * (high_y - value) / (high_y - low_y)

    ticks = _round_ticks(low_y, high_y)
    kept: list[float] = []
    for cost in sorted({cost for cost, _, _ in points}):
        if not kept or x(cost) - x(kept[-1]) > 44:
            kept.append(cost)
    parts = [_axes(left, top, inner_width, inner_height, kept, x, ticks, y)]
    placed: list[tuple[float, float]] = []
    for cost, value, name in sorted(points):
        at_x, at_y = x(cost), y(value)
        text_y = at_y - 7
        while any(abs(at_x - other_x) < 30 and abs(text_y - other_y) < 12 for other_x, other_y in placed):
            text_y += 12 if text_y >= at_y else 2 * (at_y - text_y) + 6
        placed.append((at_x, text_y))
        parts.append(f'<circle class="dot" cx="{at_x:.1f}" cy="{at_y:.1f}" r="4"><title>{name}</title></circle>')
        parts.append(f'<text x="{at_x:.1f}" y="{text_y:.1f}" text-anchor="middle" class="mark">{name}</text>')
    parts.append(_axis_names(left, top, inner_width, inner_height, x_label, y_label))
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


_STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --text: #1d1f21; --faint: #66707a; --line: #dcdfe2;
  --hit: 0 114 178; --miss: 213 94 0; }
@media (prefers-color-scheme: dark) { :root { --back: #16181a; --card: #1f2225; --text: #e6e8ea; --faint: #9aa4ae;
  --line: #383d42; --hit: 86 180 233; --miss: 230 130 60; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1240px; background: var(--back); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
.columns { columns: 2 420px; column-gap: 16px; margin-bottom: 16px; }
header, section { break-inside: avoid; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 14px 16px; margin: 0 0 16px; }
h1 { margin: 0 0 10px; font-size: 1.3rem; overflow-wrap: anywhere; }
h2 { margin: 0 0 8px; font-size: 1.05rem; } h3 { margin: 14px 0 6px; font-size: 0.95rem; }
p { margin: 6px 0; overflow-wrap: anywhere; } .note { color: var(--faint); font-size: 0.85rem; }
code { font-size: 0.85rem; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px 32px; } .tile { max-width: 100%; }
.label { color: var(--faint); font-size: 0.85rem; } .value { font-size: 1.9rem; font-weight: 600; line-height: 1.2; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.88rem; }
th, td { padding: 3px 10px 3px 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: break-word; max-width: 40em; } td:not(.n):not(:only-child) { min-width: 6.5em; }
th { font-weight: 600; white-space: nowrap; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.drop { color: var(--faint); }
svg.small { max-width: 26em; }
svg { display: block; width: 100%; height: auto; margin-top: 10px; } svg text { fill: var(--faint); font-size: 11px; }
svg .axis { font-style: italic; } svg .mark { fill: var(--text); }
svg .grid { stroke: var(--line); stroke-width: 1; fill: none; }
svg .diagonal { stroke: var(--faint); stroke-dasharray: 4 4; fill: none; }
svg .dot, svg .bar { fill: rgb(var(--hit)); } svg circle.dot { stroke: var(--card); stroke-width: 1; }
.bars { display: grid; grid-template-columns: minmax(0, 2fr) 3fr auto; gap: 3px 8px; align-items: center;
  font-size: 0.85rem; }
.bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars .gap { grid-column: 1 / -1; color: var(--faint); text-align: center; }
.track { background: var(--line); height: 9px; border-radius: 4px; overflow: hidden; }
.fill { background: rgb(var(--hit)); height: 100%; }
details { margin-top: 10px; } summary { cursor: pointer; font-size: 0.88rem; }
.matrix th, .matrix td { padding: 2px 4px; border: 0; } .matrix tbody th { font-weight: 400; text-align: right;
  max-width: min(18em, 32vw); overflow: hidden; text-overflow: ellipsis; }
@media (max-width: 600px) {
  body { padding: 8px; } header, section { padding: 12px; }
  table { font-size: 0.8rem; } th, td { padding-right: 6px; } th, th.n { white-space: normal; }
  td:not(.n):not(:only-child) { min-width: 3.5em; }
  .sum { display: none; } td:has(.drop) { white-space: normal; } .drop { display: block; }
  table.matrix { font-size: 0.74rem; } .matrix tbody th { white-space: nowrap; max-width: 24vw; }
}
.matrix td.hit, .matrix td.miss { min-width: min(2em, 6.5vw); text-align: center; font-variant-numeric: tabular-nums;
  border: 1px solid var(--card); }
.matrix td.hit { background: rgb(var(--hit) / calc(0.08 + 0.62 * var(--share))); }
.matrix td.miss { background: rgb(var(--miss) / calc(0.04 + 0.76 * var(--share))); }
.matrix .turned { vertical-align: bottom; font-weight: 400; }
.matrix .turned span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 11em; overflow: hidden;
  text-overflow: ellipsis; }
.figures { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; border-radius: 4px; }
figcaption { margin-top: 4px; font-size: 0.88rem; overflow-wrap: anywhere; }
"""
