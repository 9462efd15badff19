"""POST /generate: what it gives, in JSON and as PNG."""

import base64
import io

import httpx
from PIL import Image

BODY = {"prompt": "a red circle", "seed": 7}


async def test_json_has_pictures_seeds_and_attribution(http: httpx.AsyncClient) -> None:
    response = await http.post("/generate", json=BODY | {"n": 2, "num_inference_steps": 3})
    print(response.text[:300])
    assert response.status_code == 200
