"""POST /generate: what it gives, in JSON and as PNG."""

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from cogrpo_client.types import Generation, Info

BODY: dict[str, Any] = {"prompt": "a red circle", "seed": 7}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


async def generate(http: httpx.AsyncClient, **body: Any) -> Generation:
    response = await http.post("/generate", json=BODY | body)
    assert response.status_code == 200, response.text
    return Generation.model_validate_json(response.content)


async def test_json_has_pictures_seeds_and_attribution(http: httpx.AsyncClient) -> None:
    generation = await generate(http, n=2, num_inference_steps=3)
    assert [image.seed for image in generation.images] == [7, 8]
    assert [image.image.size for image in generation.images] == [(16, 16), (16, 16)]
    assert [image.trajectory_id for image in generation.images] == [
        f"{generation.id}-0",
        f"{generation.id}-1",
    ]
    attribution = generation.attribution
    assert (attribution.steps_planned, attribution.steps_used) == (3, 3)
    assert (attribution.model, attribution.schedule) == ("tiny", "meissonic")
    assert attribution.policy_version
    assert attribution.inference_ms > 0
    assert attribution.queue_ms >= 0
    assert not generation.stored  # this engine has no log


async def test_png_has_the_same_facts_in_headers_and_text_chunks(http: httpx.AsyncClient) -> None:
    response = await http.post("/generate", json=BODY, headers={"Accept": "image/png"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(response.content))
    image.load()
    text = image.text  # type: ignore[attr-defined]
    assert response.headers["x-cogrpo-seed"] == text["seed"] == "7"
    assert response.headers["x-cogrpo-model"] == text["model"] == "tiny"
    assert response.headers["x-cogrpo-steps-used"] == text["steps"] == "4"
    assert response.headers["x-cogrpo-policy-version"] == text["policy_version"]
    assert text["prompt"] == "a red circle"
    same = await generate(http)
    np.testing.assert_array_equal(pixels(response.content), pixels(same.images[0].png))


async def test_same_seed_same_picture_and_a_random_one_without(http: httpx.AsyncClient) -> None:
    pair = await generate(http, n=2, seed=2**32 - 1)
    assert [image.seed for image in pair.images] == [2**32 - 1, 0]
    alone = await generate(http, seed=0)
    np.testing.assert_array_equal(pixels(pair.images[1].png), pixels(alone.images[0].png))
    drawn = {(await generate(http, seed=None)).images[0].seed for _ in range(3)}
    assert len(drawn) == 3


async def test_size_in_both_forms(http: httpx.AsyncClient) -> None:
    by_name = await generate(http, size="24x16")
    by_sides = await generate(http, height=16, width=24)
    assert by_name.images[0].image.size == by_sides.images[0].image.size == (24, 16)


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        ("cosine-power:2", "cosine-power:2"),
        ({"remask_temperature": 1.0, "guidance_scale": [1.0, 2.0, 3.0, 4.0]}, "given"),
        ({"base": "paper-table-1", "sample_temperature": 0.7}, "given"),
    ],
)
async def test_schedules_given_and_named(
    http: httpx.AsyncClient, schedule: str | dict[str, Any], name: str
) -> None:
    generation = await generate(http, schedule=schedule)
    assert generation.attribution.schedule == name


async def test_info_tells_every_limit(http: httpx.AsyncClient) -> None:
    info = Info.model_validate_json((await http.get("/v1/info")).content)
    assert info.model.name == "tiny"
    assert info.model.sizes == [(16, 16), (16, 24)]
    assert len(info.model.fingerprint) == 64
    assert (info.limits.body_bytes, info.limits.images_per_request) == (65536, 8)
    assert info.limits.prompt_tokens == 64


async def test_idempotency_key_replays_the_result(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "abc"}
    body = {"prompt": "a red circle"}  # no seed: a second run would give another picture
    first = await http.post("/generate", json=body, headers=headers)
    again = await http.post("/generate", json=body, headers=headers)
    other = await http.post("/generate", json=body, headers={"Idempotency-Key": "abd"})
    assert first.json()["images"] == again.json()["images"] != other.json()["images"]
    assert first.json()["id"] == again.json()["id"]
    changed = await http.post("/generate", json=body | {"n": 2}, headers=headers)
    assert changed.status_code == 422
    assert changed.json()["code"] == "idempotency_key_reused"
    assert changed.headers["x-should-retry"] == "false"


async def test_base64_is_the_file_that_png_gives(http: httpx.AsyncClient) -> None:
    generation = await generate(http)
    png = base64.b64decode(generation.images[0].b64_png)
    assert png.startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("image/png;q=0.5, application/json;q=0.4", "image/png"),
        ("image/*", "image/png"),
        ("*/*", "application/json"),
        ("image/png;q=0.5, */*", "application/json"),
        ("text/html", 406),
        ("image/png;q=0", 406),
    ],
)
async def test_accept_chooses(http: httpx.AsyncClient, accept: str, status: str | int) -> None:
    response = await http.post("/generate", json=BODY, headers={"Accept": accept})
    if isinstance(status, int):
        assert response.status_code == status
    else:
        assert response.headers["content-type"] == status
