"""Which of the two representations of a generation the caller wants: JSON or PNG."""

from typing import Literal

from cogrpo_server.problems import ApiError

JSON = "application/json"
PNG = "image/png"


def choose(accept: str | None) -> Literal["json", "png"]:
    """The representation that an Accept header prefers (RFC 9110, section 12.5.1); JSON by default.

    Raises `ApiError` 406 when it allows neither.
    """
    if not accept or not accept.strip():
        return "json"
    weights = {JSON: (0, 0.0), PNG: (0, 0.0)}
    for item in accept.split(",")[:50]:
        media_range, _, parameters = item.strip().partition(";")
        media_range = media_range.strip().lower()
        for media_type, (specificity, _weight) in weights.items():
            matched = _specificity(media_range, media_type)
            if matched > specificity:
                weights[media_type] = (matched, _quality(parameters))
    if weights[PNG][1] > weights[JSON][1]:
        return "png"
    if weights[JSON][1] > 0.0:
        return "json"
    raise ApiError(406, "not_acceptable", f"The service answers with {JSON} or {PNG}.")


def _specificity(media_range: str, media_type: str) -> int:
    """How closely a range names a type: 0 not at all, 3 exactly."""
    if media_range == media_type:
        return 3
    if media_range == media_type.split("/")[0] + "/*":
        return 2
    return 1 if media_range == "*/*" else 0


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.strip().lower() == "q":
            try:
                quality = float(value)
            except ValueError:
                return 0.0
            return quality if 0.0 <= quality <= 1.0 else 0.0
    return 1.0
