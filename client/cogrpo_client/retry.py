"""When the SDK tries again, and how long it waits first."""

import random

import httpx

FIRST_DELAY_SECONDS = 0.5
LAST_DELAY_SECONDS = 8.0
LONGEST_RETRY_AFTER_SECONDS = 120.0

_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


def is_retried(response: httpx.Response) -> bool:
    """Whether a response is worth another try; `x-should-retry` overrides its status."""
    advice = response.headers.get("x-should-retry")
    if advice in ("true", "false"):
        return bool(advice == "true")
    return response.status_code in _RETRIED_STATUSES


def retry_delay(attempt: int, response: httpx.Response | None) -> float:
    """Seconds to wait after try `attempt` (from 0): Retry-After, else 0.5 to 8 s with jitter."""
    if response is not None:
        try:
            asked = float(response.headers["retry-after"])
        except (KeyError, ValueError):
            asked = -1.0
        if 0.0 <= asked <= LONGEST_RETRY_AFTER_SECONDS:
            return asked
    delay = min(FIRST_DELAY_SECONDS * 2.0**attempt, LAST_DELAY_SECONDS)
    return max(FIRST_DELAY_SECONDS, delay * random.uniform(0.75, 1.0))
