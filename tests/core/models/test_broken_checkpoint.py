"""Each kind of broken checkpoint folder says in one line what is wrong, and where."""

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cogrpo_core.models.checkpoint import CheckpointError, load_checkpoint
from cogrpo_core.models.schedule_policy import SchedulePolicy, SchedulePolicyConfig
from tests.core.models.conftest import make_text_encoder
from tests.core.models.folders import (
    POLICY,
    TEXT,
    TRANSFORMER,
    VQVAE,
    Break,
    drop_key,
    edit_json,
    edit_weights,
    keep_bytes,
    pickled,
    poison,
    remove,
    set_key,
    write,
)

BROKEN: dict[str, tuple[Break, str, str]] = {
    "unknown field": (
        edit_json("transformer/config.json", qk_norm=True),
        "transformer/config.json",
        r"unknown field 'qk_norm'; remove it",
    ),
    "missing field": (
        edit_json("transformer/config.json", num_layers=...),
        "transformer/config.json",
        r"field 'num_layers' is missing; add it",
    ),
    "text where a number belongs": (
        edit_json("transformer/config.json", num_layers="2"),
        "transformer/config.json",
        r"field 'num_layers': Input should be a valid integer",
    ),
    "number where a flag belongs": (
        edit_json("transformer/config.json", downsample=1),
        "transformer/config.json",
        r"field 'downsample': Input should be a valid boolean",
    ),
    "size without bounds": (
        edit_json("transformer/config.json", num_single_layers=10**9),
        "transformer/config.json",
        r"field 'num_single_layers': Input should be less than",
    ),
    "rope axes of another head": (
        edit_json("transformer/config.json", axes_dims_rope=[4, 6, 8]),
        "transformer/config.json",
        r"axes_dims_rope \(4, 6, 8\) must sum to attention_head_dim 16",
    ),
    "odd rope axis": (
        edit_json("transformer/config.json", axes_dims_rope=[3, 7, 6]),
        "transformer/config.json",
        r"must be even",
    ),
    "pooled width": (
        edit_json("transformer/config.json", pooled_projection_dim=64),
        "transformer/config.json",
        r"pooled_projection_dim 64 must equal .* 48",
    ),
    "no room for the mask": (
        edit_json("transformer/config.json", vocab_size=64),
        "transformer/config.json",
        r"vocab_size 64 must exceed codebook_size 64",
    ),
    "downsample without upsample": (
        edit_json("transformer/config.json", upsample=False),
        "transformer/config.json",
        r"downsample and upsample must be both",
    ),
    "guidance embeds": (
        edit_json("transformer/config.json", guidance_embeds=True),
        "transformer/config.json",
        r"field 'guidance_embeds': Input should be False",
    ),
    "invalid JSON": (
        write("transformer/config.json", b'{"num_layers": 2,'),
        "transformer/config.json",
        r"not valid JSON",
    ),
    "JSON that is nested too deep": (
        write("transformer/config.json", b"[" * 100_000),
        "transformer/config.json",
        r"not valid JSON",
    ),
    "binary in place of JSON": (
        write("vqvae/config.json", b"\xff\xfe\x00"),
        "vqvae/config.json",
        r"not valid JSON",
    ),
    "JSON list": (
        write("model_index.json", b"[]"),
        "model_index.json",
        r"holds a JSON list, not an object",
    ),
    "missing config": (
        remove("vqvae/config.json"),
        "vqvae/config.json",
        r"the file is missing; is this a whole checkpoint folder\?",
    ),
    "missing index": (
        remove("model_index.json"),
        "model_index.json",
        r"the file is missing",
    ),
    "a part of another pipeline": (
        edit_json("model_index.json", unet=["diffusers", "UNet2DConditionModel"]),
        "model_index.json",
        r"unknown part 'unet'",
    ),
    "missing weights": (
        remove(VQVAE),
        VQVAE,
        r"the file is missing",
    ),
    "pickled transformer": (
        pickled(TRANSFORMER, "diffusion_pytorch_model.bin"),
        TRANSFORMER,
        r"pickled weights such as diffusion_pytorch_model.bin are not loaded.*convert them to",
    ),
    "pickled text encoder": (
        pickled(TEXT, "model.ckpt"),
        TEXT,
        r"pickled weights such as model.ckpt are not loaded",
    ),
    "pickled policy": (
        pickled(POLICY, "model.pt"),
        POLICY,
        r"pickled weights such as model.pt are not loaded",
    ),
    "pickle under the name of safetensors": (
        write(TRANSFORMER, pickle.dumps({"a": 1})),
        TRANSFORMER,
        r"not a whole safetensors file .*; copy or download it again",
    ),
    "empty weights": (
        write(TRANSFORMER, b""),
        TRANSFORMER,
        r"not a whole safetensors file",
    ),
    "half of the weights": (
        keep_bytes(TRANSFORMER, 0.5),
        TRANSFORMER,
        r"not a whole safetensors file",
    ),
    "half of the text encoder's": (
        keep_bytes(TEXT, 0.5),
        TEXT,
        r"not a whole safetensors file",
    ),
    "missing key": (
        edit_weights(TRANSFORMER, drop_key("mlm_layer.conv2.weight")),
        TRANSFORMER,
        r"1 missing \('mlm_layer.conv2.weight'\)",
    ),
    "extra key": (
        edit_weights(TRANSFORMER, set_key("pos_embed.weight", torch.zeros(2))),
        TRANSFORMER,
        r"1 unknown \('pos_embed.weight'\)",
    ),
    "many missing keys": (
        edit_json("transformer/config.json", num_layers=3),
        TRANSFORMER,
        r"\d\d missing \('transformer_blocks.2[^)]*, \.\.\.\)",
    ),
    "missing key of the VQ model": (
        edit_weights(VQVAE, drop_key("quantize.embedding.weight")),
        VQVAE,
        r"1 missing \('quantize.embedding.weight'\)",
    ),
    "extra key of the text encoder": (
        edit_weights(TEXT, set_key("logit_scale", torch.zeros(1))),
        TEXT,
        r"1 unknown \('logit_scale'\)",
    ),
    "wrong shape": (
        edit_weights(TRANSFORMER, set_key("embed.layer_norm.weight", torch.zeros(47))),
        TRANSFORMER,
        r"'embed.layer_norm.weight' has shape \(47,\), but config.json says \(48,\)",
    ),
    "integers": (
        edit_weights(
            TRANSFORMER, set_key("embed.layer_norm.weight", torch.zeros(48, dtype=torch.int32))
        ),
        TRANSFORMER,
        r"'embed.layer_norm.weight' is stored as int32; weights must be float16",
    ),
    "float8": (
        edit_weights(POLICY, set_key("last.bias", torch.zeros(4).to(torch.float8_e4m3fn))),
        POLICY,
        r"'last.bias' is stored as float8_e4m3fn",
    ),
    "NaN": (
        edit_weights(TRANSFORMER, poison("embed.layer_norm.weight", float("nan"))),
        TRANSFORMER,
        r"'embed.layer_norm.weight' has NaN or infinite values",
    ),
    "infinity": (
        edit_weights(VQVAE, poison("quantize.embedding.weight", float("inf"))),
        VQVAE,
        r"'quantize.embedding.weight' has NaN or infinite values",
    ),
    "both prefixes": (
        edit_weights(TRANSFORMER, set_key("_orig_mod.embed.layer_norm.weight", torch.ones(48))),
        TRANSFORMER,
        r"both with and without the prefix '_orig_mod.'",
    ),
    "VQ field unknown": (
        edit_json("vqvae/config.json", use_quant_conv=True),
        "vqvae/config.json",
        r"unknown field 'use_quant_conv'",
    ),
    "VQ block unknown": (
        edit_json("vqvae/config.json", down_block_types=["UNetMidBlock2D"] * 3),
        "vqvae/config.json",
        r"field 'down_block_types.0': Input should be 'DownEncoderBlock2D'",
    ),
    "VQ blocks of two lengths": (
        edit_json("vqvae/config.json", block_out_channels=[8, 16]),
        "vqvae/config.json",
        r"must be equally long",
    ),
    "VQ that diffusers refuses": (
        edit_json("vqvae/config.json", norm_num_groups=5),
        "vqvae/config.json",
        r"no VQModel can be made",
    ),
    "VQ without its codes' look-up": (
        edit_json("vqvae/config.json", lookup_from_codebook=False),
        "vqvae/config.json",
        r"field 'lookup_from_codebook' is False, but the transformer needs True",
    ),
    "text field unknown": (
        edit_json("text_encoder/config.json", rope_theta=1e4),
        "text_encoder/config.json",
        r"unknown field 'rope_theta'",
    ),
    "text field missing": (
        edit_json("text_encoder/config.json", projection_dim=...),
        "text_encoder/config.json",
        r"field 'projection_dim' is missing",
    ),
    "text heads": (
        edit_json("text_encoder/config.json", num_attention_heads=7),
        "text_encoder/config.json",
        r"no CLIP text model can be made",
    ),
    "tokenizer missing": (
        remove("tokenizer/tokenizer.json"),
        "tokenizer",
        r"neither tokenizer.json nor vocab.json and merges.txt are there",
    ),
    "tokenizer broken": (
        write("tokenizer/tokenizer.json", b"{}"),
        "tokenizer",
        r"no CLIP tokenizer",
    ),
    "tokenizer without a length": (
        edit_json("tokenizer/tokenizer_config.json", model_max_length=...),
        "tokenizer/tokenizer_config.json",
        r"model_max_length .* exceeds the text encoder's max_position_embeddings 12",
    ),
    "scheduler missing": (
        remove("scheduler/scheduler_config.json"),
        "scheduler/scheduler_config.json",
        r"the file is missing",
    ),
    "scheduler of another vocabulary": (
        edit_json("scheduler/scheduler_config.json", mask_token_id=70),
        "scheduler/scheduler_config.json",
        r"field 'mask_token_id' is 70, but the transformer needs 71",
    ),
    "masking schedule": (
        edit_json("scheduler/scheduler_config.json", masking_schedule="linear"),
        "scheduler/scheduler_config.json",
        r"field 'masking_schedule': Input should be 'cosine'",
    ),
    "generation field unknown": (
        edit_json("generation_config.json", steps=8),
        "generation_config.json",
        r"unknown field 'steps'",
    ),
    "generation value": (
        edit_json("generation_config.json", num_inference_steps=0),
        "generation_config.json",
        r"field 'num_inference_steps': Input should be greater than 0",
    ),
    "a size that the grid does not divide": (
        edit_json("generation_config.json", sizes=[[64, 64], [64, 60]]),
        "generation_config.json",
        r"field 'sizes' holds \[64, 60\], but this model makes multiples of 8 pixels",
    ),
    "default size not among the sizes": (
        edit_json("generation_config.json", sizes=[[128, 128]]),
        "generation_config.json",
        r"sizes must hold \[64, 64\]",
    ),
    "policy field unknown": (
        edit_json("schedule_policy/config.json", layers=3),
        "schedule_policy/config.json",
        r"unknown field 'layers'",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_each_broken_folder_is_one_clear_line(kind: str, checkpoint_folder: Path) -> None:
    break_it, file, message = BROKEN[kind]
    break_it(checkpoint_folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(checkpoint_folder)
    text = str(caught.value)
    assert text.startswith(str(checkpoint_folder / file))
    assert "\n" not in text
    assert len(text) < 600


def test_parts_of_different_models(checkpoint_folder: Path) -> None:
    """A text encoder and a policy that are whole, but of another width."""
    policy = SchedulePolicy(SchedulePolicyConfig.for_width(32))
    policy.save_pretrained(checkpoint_folder / "schedule_policy")
    with pytest.raises(CheckpointError, match="'feature_dim' is 32, but the transformer needs 48"):
        load_checkpoint(checkpoint_folder)
    make_text_encoder(hidden=24, projection=48).save_pretrained(checkpoint_folder)
    with pytest.raises(CheckpointError, match="'hidden_size' is 24, but the transformer needs 40"):
        load_checkpoint(checkpoint_folder)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_to_the_weights_is_a_checkpoint_error_or_harmless(
    data: st.DataObject, checkpoint_folder: Path
) -> None:
    """Truncation anywhere, and one changed byte of the header: never another exception."""
    path = checkpoint_folder / POLICY
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        header = 8 + int.from_bytes(whole[:8], "little")
        at = data.draw(st.integers(0, header - 1))
        damaged = whole[:at] + data.draw(st.binary(min_size=1, max_size=1)) + whole[at + 1 :]
    try:
        path.write_bytes(damaged)
        SchedulePolicy.from_pretrained(path.parent)
        assert len(damaged) == len(whole)
    except CheckpointError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(whole)
