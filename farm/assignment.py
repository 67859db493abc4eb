"""The cheapest way to give each of some rows a column of its own. Pure, exact on whole numbers."""

from __future__ import annotations

from collections.abc import Sequence


def cheapest_columns(costs: Sequence[Sequence[int]]) -> list[int]:
    """The column of each row in the cheapest assignment; there are at least as many columns as rows.

    The Hungarian method with prices on rows and columns, rows added one by one: O(rows² × columns). Source: Kuhn 1955,
    in the form of Jonker and Volgenant 1987. A library for it comes with all of numerical Python.
    """
    if not costs:
        return []
    rows, columns = len(costs), len(costs[0])
    row_price, column_price = [0] * (rows + 1), [0] * (columns + 1)
    # Column 0 stands for the row that has none yet; rows and columns count from 1.
    row_of = [0] * (columns + 1)
    for row in range(1, rows + 1):
        row_of[0], column = row, 0
        least: list[int | None] = [None] * (columns + 1)
        came_from, seen = [0] * (columns + 1), [False] * (columns + 1)
        while row_of[column]:
            seen[column] = True
            here, best, following = row_of[column], None, 0
            for other in range(1, columns + 1):
                if seen[other]:
                    continue
                price = costs[here - 1][other - 1] - row_price[here] - column_price[other]
                known = least[other]
                if known is None or price < known:
                    least[other], came_from[other], known = price, column, price
                if best is None or known < best:
                    best, following = known, other
            if best is None:
                raise ValueError("fewer columns than rows")
            for other in range(columns + 1):
                if seen[other]:
                    row_price[row_of[other]] += best
                    column_price[other] -= best
                elif (known := least[other]) is not None:
                    least[other] = known - best
            column = following
        while column:
            row_of[column] = row_of[came_from[column]]
            column = came_from[column]
    chosen = [0] * rows
    for column in range(1, columns + 1):
        if row_of[column]:
            chosen[row_of[column] - 1] = column - 1
    return chosen
