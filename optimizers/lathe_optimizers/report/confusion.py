"""What a run broke: samples that the original has right and the result has wrong."""

from typing import Final

from lathe_optimizers.report import words
from lathe_optimizers.report.markup import Html, h, join
from lathe_optimizers.report.tables import scrolling, table

_WIDEST: Final = 20
"""Largest matrix that is shown whole."""
_LISTED: Final = 12
"""Pairs of classes that are listed where it is not."""
_SHADES: Final = 4


def section(matrix: list[list[int]], samples: int) -> Html:
    """The confusion delta of a target.

    Args:
        matrix: true class x wrong answer.
        samples: of the evaluation set.
    """
    pairs = sorted(
        ((n, true, wrong) for true, row in enumerate(matrix) for wrong, n in enumerate(row) if n), reverse=True
    )
    broken = sum(n for n, _, _ in pairs)
    if not broken:
        return h("p", "The result has every sample right that the original has right.")
    count = f"{words.plural(broken, 'sample')} of {samples:,}" if samples else words.plural(broken, "sample")
    told = h("p", f"{count} that the original has right {'is' if broken == 1 else 'are'} wrong in the result.")
    if len(matrix) <= _WIDEST:
        return join((told, _matrix(matrix)))
    rows = [[f"class {true}", f"class {wrong}", str(n)] for n, true, wrong in pairs[:_LISTED]]
    return join((told, table("Most frequent new errors", ["True class", "Answer", "Samples"], rows)))


def _matrix(matrix: list[list[int]]) -> Html:
    most = max(max(row, default=0) for row in matrix)
    classes = range(len(matrix))
    head = h("tr", h("th", "True class", scope="col"), *(h("th", str(c), scope="col") for c in classes))
    rows = (h("tr", h("th", str(true), scope="row"), *(_cell(n, most) for n in row)) for true, row in enumerate(matrix))
    label = "New errors by true class (rows) and answer (columns)"
    return scrolling(
        h("table", h("caption", h("span", label)), h("thead", head), h("tbody", *rows), class_="confusion"),
        label,
        class_="scroll fitting",
    )


def _cell(count: int, most: int) -> Html:
    if not count:
        return h("td", h("span", "0", class_="quiet"))
    return h("td", str(count), class_=f"heat{-(-count * _SHADES // most)}")
