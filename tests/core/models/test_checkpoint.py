"""Whole checkpoint folders: they load and save exactly, in every stored and asked-for type."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cogrpo_core.models.checkpoint import (
    CheckpointError,
    GenerationDefaults,
    load_checkpoint,
    save_checkpoint,
)
from tests.core.models.folders import (
    TEXT,
    TRANSFORMER,
    WEIGHTS,
    edit_json,
    edit_weights,
    poison,
    set_key,
)


def test_whole_folder_loads_and_saves_exactly(checkpoint_folder: Path, tmp_path: Path) -> None:
    first = load_checkpoint(checkpoint_folder)
    assert first.name == str(checkpoint_folder)
    assert first.generation.sizes == ((64, 64),)
    assert first.schedule_policy is not None
    save_checkpoint(
        tmp_path / "again",
        transformer=first.transformer,
        vqvae=first.vqvae,
        text_encoder=first.text_encoder,
        schedule_policy=first.schedule_policy,
        generation=first.generation,
    )
    again = load_checkpoint(str(tmp_path / "again"))
    assert again.fingerprint == first.fingerprint
    assert again.generation == first.generation
    for file in WEIGHTS:
        a, b = load_file(checkpoint_folder / file), load_file(tmp_path / "again" / file)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_fingerprint_follows_every_weight(checkpoint_folder: Path) -> None:
    fingerprint = load_checkpoint(checkpoint_folder).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", fingerprint)
    seen = {fingerprint}

    def halve_one(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values())).mul_(0.5)

    for file in WEIGHTS:
        edit_weights(file, halve_one)(checkpoint_folder)
        seen.add(load_checkpoint(checkpoint_folder).fingerprint)
    assert len(seen) == 1 + len(WEIGHTS)


def test_half_storage_computes_in_float32(checkpoint_folder: Path, tmp_path: Path) -> None:
    first = load_checkpoint(checkpoint_folder)
    for dtype in (torch.float16, torch.bfloat16):
        save_checkpoint(
            tmp_path / "half",
            transformer=first.transformer,
            vqvae=first.vqvae,
            text_encoder=first.text_encoder,
            generation=first.generation,
            dtype=dtype,
        )
        assert {t.dtype for t in load_file(tmp_path / "half" / TRANSFORMER).values()} == {dtype}
        half = load_checkpoint(tmp_path / "half")
        assert half.schedule_policy is None
        for name in ("transformer", "vqvae", "text_encoder"):
            exact, loaded = getattr(first, name).state_dict(), getattr(half, name).state_dict()
            for key, tensor in exact.items():
                assert loaded[key].dtype is torch.float32
                assert torch.equal(loaded[key], tensor.to(dtype).float()), key


def test_requested_type(checkpoint_folder: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_folder, dtype=torch.bfloat16)
    assert checkpoint.schedule_policy is not None
    for name, dtype in (
        ("transformer", torch.bfloat16),
        ("vqvae", torch.bfloat16),
        ("text_encoder", torch.bfloat16),
        ("schedule_policy", torch.float32),
    ):
        assert {p.dtype for p in getattr(checkpoint, name).parameters()} == {dtype}


def test_too_large_for_the_requested_type(checkpoint_folder: Path) -> None:
    edit_weights(TRANSFORMER, poison("embed.layer_norm.weight", 1e6))(checkpoint_folder)
    load_checkpoint(checkpoint_folder)
    with pytest.raises(CheckpointError, match="too large for float16; load it as bfloat16"):
        load_checkpoint(checkpoint_folder, dtype=torch.float16)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e6])
def test_saving_refuses_what_could_not_be_loaded(
    value: float, checkpoint_folder: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(checkpoint_folder)
    with torch.no_grad():
        checkpoint.transformer.embed.conv.weight[0, 0] = value
    with pytest.raises(CheckpointError, match=r"not written, because 'embed.conv.weight'"):
        checkpoint.transformer.save_pretrained(tmp_path / "new", torch.float16)
    assert not (tmp_path / "new").exists()


def test_prefix_of_compiled_models_is_accepted(checkpoint_folder: Path) -> None:
    fine = load_checkpoint(checkpoint_folder).transformer.state_dict()

    def prefix(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[f"_orig_mod.{key}"] = tensors.pop(key)

    edit_weights(TRANSFORMER, prefix)(checkpoint_folder)
    loaded = load_checkpoint(checkpoint_folder).transformer.state_dict()
    assert all(torch.equal(loaded[key], fine[key]) for key in fine)


def test_old_public_text_encoders_load(checkpoint_folder: Path) -> None:
    """What transformers 4 wrote: generic fields, and a stored table of positions."""
    edit_json(
        "text_encoder/config.json",
        _name_or_path="somewhere/else",
        torch_dtype="float32",
        transformers_version="4.30.0",
        dropout=0.0,
        return_dict=True,
    )(checkpoint_folder)
    positions = torch.arange(12).unsqueeze(0)
    edit_weights(TEXT, set_key("text_model.embeddings.position_ids", positions))(checkpoint_folder)
    checkpoint = load_checkpoint(checkpoint_folder)
    assert checkpoint.text_encoder.encode(["a cat"]).pooled_projections.isfinite().all()


def test_without_generation_config_the_defaults_are_the_references(checkpoint_folder: Path) -> None:
    (checkpoint_folder / "generation_config.json").unlink()
    defaults = load_checkpoint(checkpoint_folder).generation
    assert defaults == GenerationDefaults(
        height=1024,
        width=1024,
        num_inference_steps=48,
        guidance_scale=9.0,
        remask_temperature=2.0,
        sizes=((1024, 1024),),
    )
