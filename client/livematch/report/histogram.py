"""The distances of all matches as inline SVG: one bar a bin, right and wrong items apart where the truth is known."""

from collections.abc import Mapping, Sequence

from livematch.evaluation.scores import Score

NUM_BINS = 28
HEIGHT_PX = 110
_AXIS_Y_PX = 90
_TOP_PX = 18
_LARGEST = 4.0  # squared distance of unit vectors


def draw_histogram(distances: Mapping[str, float], score: Score | None, limit: float) -> str:
    """HTML of the histogram, nothing if there are no distances.

    Args:
        distances: video id to distance.
        score: tells right from wrong items.
        limit: marked by a line, at the end if it is above 4, where squared distances of unit vectors end.
    """
    if not distances:
        return ""
    marked = min(limit, _LARGEST)
    widest = 1.05 * max(marked, *distances.values()) or 1.0
    kinds: dict[str, list[float]] = {"good": [], "bad": []} if score is not None else {"": []}
    for video_id, distance in distances.items():
        kinds["" if score is None else "good" if score.levels[video_id] else "bad"].append(distance)
    counts = {kind: _counts(values, widest) for kind, values in kinds.items()}
    highest = max(map(sum, zip(*counts.values(), strict=True)))
    marks = []
    for number in range(NUM_BINS):
        y = float(_AXIS_Y_PX)
        numbers = [counts[kind][number] for kind in counts]
        for kind, count in zip(counts, numbers, strict=True):
            height = (_AXIS_Y_PX - _TOP_PX) * count / highest
            y -= height
            if count:
                low, high = (widest * edge / NUM_BINS for edge in (number, number + 1))
                name = {"good": "right, ", "bad": "wrong, ", "": ""}[kind]
                marks.append(
                    f'<rect class="{kind}" x="{_percent(low / widest)}" width="{96 / NUM_BINS:.3f}%" y="{y:.2f}" '
                    f'height="{height:.2f}"><title>{count} {name}{low:.2f} to {high:.2f}</title></rect>'
                )
    marks.append(f'<line x1="0" x2="100%" y1="{_AXIS_Y_PX}" y2="{_AXIS_Y_PX}"/>')
    for tenth in range(0, int(marked * 10) + 1, 2):
        x = _percent(tenth / 10 / widest)
        marks.append(f'<text x="{x}" y="{_AXIS_Y_PX + 15}" text-anchor="middle">{tenth / 10:.1f}</text>')
    x = _percent(marked / widest)
    marks.append(f'<line class="limit" x1="{x}" x2="{x}" y1="2" y2="{_AXIS_Y_PX}"/>')
    marks.append(f'<text x="{x}" dx="-5" y="11" text-anchor="end">limit {limit:g}</text>')
    caption = f"Distances of {len(distances)} matches, at most {highest} a bar"
    key = ""
    if score is not None:
        key = "".join(
            f'<span class="legend"><span class="key {kind}"></span>{name} item</span> '
            for kind, name in (("good", "right"), ("bad", "wrong"))
        )
    return (
        f'<div class="strip"><span class="faint">{caption} {key}</span>'
        f'<svg role="img" aria-label="{caption}" height="{HEIGHT_PX}">{"".join(marks)}</svg></div>'
    )


def _counts(values: Sequence[float], widest: float) -> list[int]:
    counts = [0] * NUM_BINS
    for value in values:
        counts[min(int(value / widest * NUM_BINS), NUM_BINS - 1)] += 1
    return counts


def _percent(share: float) -> str:
    return f"{1 + 98 * share:.2f}%"  # of the width, so that text keeps its size
