"""How work is cut to fit: blocks of examples, and chunks of points within a block."""

from __future__ import annotations


def cut(examples: int, points: int, rows: int) -> tuple[int, int]:
    """Examples a block and points a chunk, so that their product is at most rows and the pieces are of like size."""
    if examples * points <= rows:
        return examples, points
    block = max(1, rows // points)
    if block > 1:
        return even(examples, block), points
    return 1, even(points, rows)


def even(total: int, most: int) -> int:
    """The size of the pieces when total is cut into as few as pieces of at most `most` allow."""
    pieces = -(-total // most)
    return -(-total // pieces)


def halve(examples: int, points: int) -> tuple[int, int] | None:
    """The next smaller cut after running out of memory, or None where one row is left."""
    if points > 1:
        return examples, -(-points // 2)
    return (-(-examples // 2), 1) if examples > 1 else None
