"""The Accept header: which of the offered media types a client prefers (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence


def preferred(header: str | None, offered: Sequence[str]) -> str | None:
    """Return the media type of `offered` that the client likes best, or None when it takes none of them.

    The order of `offered` breaks ties.
    """
    ranges = [_parse(part) for part in (header or "*/*").split(",") if part.strip()]
    best, best_quality = None, 0.0
    for media_type in offered:
        quality = _quality(media_type, ranges)
        if quality > best_quality:
            best, best_quality = media_type, quality
    return best


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return the quality of the most specific range that covers the media type, or 0 when no range covers it."""
    main = media_type.partition("/")[0]
    qualities = dict(ranges)
    for pattern in (media_type, f"{main}/*", "*/*"):
        if pattern in qualities:
            return qualities[pattern]
    return 0.0


def _parse(part: str) -> tuple[str, float]:
    media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media_type, min(max(float(value), 0.0), 1.0)
            except ValueError:
                return media_type, 0.0
    return media_type, 1.0
