"""The plot of the benchmarks: a cloud with its mean, or a series with a line."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

drawing = pytest.importorskip("scatter", reason="the benchmarks are not in this copy", exc_type=ImportError)
SVG = "{http://www.w3.org/2000/svg}"


def test_a_series_is_a_line_through_its_points_with_their_labels() -> None:
    series = drawing.Group("a < b", [(0, 0), (1, 2), (2, 1)], ordered=True, labels=["0%", "", "5%"])
    root = ET.fromstring(drawing.scatter([series], title="t", x="x", y="y"))
    (line,) = root.iter(f"{SVG}polyline")
    spots = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert spots[0][0] < spots[1][0] < spots[2][0] and spots[1][1] < spots[2][1] < spots[0][1]
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter(f"{SVG}circle")]
    assert set(spots) < set(dots) and len(dots) == 4, "a dot at each point, one in the legend, none at the mean"
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert "a < b" in words and "5%" in words and "" not in words


def test_a_cloud_has_a_dot_at_its_mean_and_no_line() -> None:
    root = ET.fromstring(drawing.scatter([drawing.Group("a", [(0, 0), (2, 2)])], title="t", x="x", y="y"))
    assert not list(root.iter(f"{SVG}polyline"))
    assert len(list(root.iter(f"{SVG}circle"))) == 4, "two points, their mean, and the legend"


@pytest.mark.parametrize(("ordered", "labels"), [(True, ["1"]), (False, ["1", "2"])])
def test_labels_belong_to_the_points_of_a_series(ordered: bool, labels: list[str]) -> None:
    group = drawing.Group("a", [(0, 0), (1, 1)], ordered=ordered, labels=labels)
    with pytest.raises(ValueError, match="one for each of its points"):
        drawing.scatter([group], title="t", x="x", y="y")
