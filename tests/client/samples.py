"""Answers of a service, as Python data."""

import base64
import io
import json
from typing import Any

from PIL import Image

ACTION = {
    "remask_ratio": 0.5,
    "sample_temperature": 1.0,
    "remask_temperature": 2.0,
    "guidance_scale": 9.0,
}
ATTRIBUTION = {
    "model": "m",
    "policy_version": "p",
    "schedule": "s",
    "steps_planned": 2,
    "steps_used": 2,
    "queue_ms": 0.5,
    "inference_ms": 2.0,
}


def png(colour: str = "red") -> str:
    file = io.BytesIO()
    Image.new("RGB", (4, 2), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


GENERATION: dict[str, Any] = {
    "id": "gen_1",
    "request_id": "req_1",
    "created": 1,
    "stored": True,
    "images": [{"b64_png": png(), "seed": 1, "trajectory_id": "gen_1-0"}],
    "attribution": ATTRIBUTION,
}


def problem(status: int, code: str = "code", **more: Any) -> dict[str, Any]:
    base = {"title": "Title", "status": status, "detail": "What to do.", "code": code}
    return base | {"request_id": "req_body", "retryable": False} | more


def record(status: str, **more: Any) -> dict[str, Any]:
    base = {"id": "gen_1", "request_id": "req_1", "status": status, "created": 1, "n": 1}
    return base | {"stored": True} | more


EVENTS: list[dict[str, Any]] = [
    {
        "type": "start",
        "id": "gen_1",
        "request_id": "req_1",
        "policy_version": "p",
        "schedule": "s",
        "steps": 2,
        "grid": [2, 2],
        "seeds": [1],
    },
    {
        "type": "step",
        "image": 0,
        "step": 1,
        "steps": 2,
        "filled": [0, 3],
        "remasked": 2,
        "action": ACTION,
    },
    {"type": "preview", "image": 0, "step": 1, "b64_png": png("blue")},
    {
        "type": "step",
        "image": 0,
        "step": 2,
        "steps": 2,
        "filled": [1, 2],
        "remasked": 0,
        "action": ACTION,
    },
    {"type": "completed", "generation": GENERATION},
]


def wire(events: list[dict[str, Any]], first: int = 1) -> list[bytes]:
    """Events as a service writes them, a comment among them."""
    written = [
        f"id: {number}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        for number, event in enumerate(events, first)
    ]
    return [b": here\n\n", *written]


def cycle(status: str, **more: Any) -> dict[str, Any]:
    return {"id": "cyc_1", "status": status, "created": 1, "parent": "p1"} | more


def cycle_wire(cycles: list[dict[str, Any]]) -> list[bytes]:
    """Records of a cycle as a service writes them; each connection counts from 1."""
    return wire([{"type": "cycle"} | one for one in cycles])
