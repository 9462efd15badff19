"""MeissonicTransformer against the numbers of the reference, and the properties it must keep."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from cogrpo_core.models import meissonic
from cogrpo_core.models.config import TransformerConfig
from cogrpo_core.models.transformer import Conditioning, MeissonicTransformer
from tests.core.conftest import TRANSFORMER

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
CASES = {"meissonic-tiny": 3, "meissonic-tiny-no-downsample": 2}
FLOOR = 3e-4
"""Of float32 logits, which are up to 2.9: the reference's own are up to 1.5e-4 from float64 in one
case, and how far another processor's are from those depends on its rounding."""
EACH_CASE = [(model, case) for model, count in CASES.items() for case in range(count)]


def golden_case(model: str, case: int) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs of one golden case and the reference's logits."""
    tensors = load_file(GOLDEN / model / "transformer_golden.safetensors")
    prefix = f"case{case}."
    inputs = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return inputs, inputs.pop("logits")


def tiny(dtype: torch.dtype = torch.float32) -> MeissonicTransformer:
    return MeissonicTransformer.from_pretrained(GOLDEN / "meissonic-tiny" / "transformer", dtype)


def conditioned(model: MeissonicTransformer, inputs: dict[str, Tensor]) -> Conditioning:
    names = ("encoder_hidden_states", "pooled_projections", "micro_conds")
    return model.condition(*(inputs[name] for name in names))


@pytest.fixture
def fresh() -> MeissonicTransformer:
    """Untrained, of a shape in which all sizes differ."""
    torch.manual_seed(0)
    sizes = {"num_single_layers": 2, "vocab_size": 72, "codebook_size": 64}
    return MeissonicTransformer(TRANSFORMER.model_copy(update=sizes))


@pytest.mark.parametrize(("model", "case"), EACH_CASE)
def test_golden_logits_eager(model: str, case: int) -> None:
    transformer = MeissonicTransformer.from_pretrained(GOLDEN / model / "transformer")
    inputs, logits = golden_case(model, case)
    with torch.inference_mode():
        output = transformer(**inputs)
    torch.testing.assert_close(output.logits, logits, atol=FLOOR, rtol=0)


@pytest.mark.parametrize(("model", "case"), EACH_CASE)
def test_golden_logits_in_double_precision(model: str, case: int) -> None:
    """Rounding aside the model is the reference's: what is left is that of its float32."""
    transformer = MeissonicTransformer.from_pretrained(GOLDEN / model / "transformer").double()
    inputs, logits = golden_case(model, case)
    exact = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    with torch.inference_mode():
        gap = (transformer(**exact).logits - logits).abs()
    assert gap.max() < 2e-4
    assert gap.mean() < 3e-5


def check_compiled(model: str, case: int, *, dynamic: bool, backend: str = "inductor") -> None:
    transformer = MeissonicTransformer.from_pretrained(GOLDEN / model / "transformer")
    torch._dynamo.reset()
    compiled = torch.compile(transformer, fullgraph=True, dynamic=dynamic, backend=backend)
    inputs, logits = golden_case(model, case)
    with torch.inference_mode():
        output = compiled(**inputs)
    torch.testing.assert_close(output.logits, logits, atol=FLOOR, rtol=0)


@pytest.mark.parametrize(("model", "case"), EACH_CASE)
def test_golden_logits_as_one_graph(model: str, case: int) -> None:
    """The graph that a compiler gets is whole and right; kernels are made in the next tests."""
    check_compiled(model, case, dynamic=False, backend="aot_eager")


def test_golden_logits_as_one_graph_of_any_size() -> None:
    check_compiled("meissonic-tiny", 1, dynamic=True, backend="eager")


@pytest.mark.timeout(900)  # g++ makes about thirty kernels, on a machine that may be busy
def test_golden_logits_compiled() -> None:
    check_compiled("meissonic-tiny-no-downsample", 0, dynamic=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("model", "case"), EACH_CASE)
def test_golden_logits_compiled_each_case(model: str, case: int) -> None:
    check_compiled(model, case, dynamic=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    inputs, logits = golden_case("meissonic-tiny", 0)
    with torch.inference_mode():
        output = tiny(dtype)(**inputs)
    assert output.logits.dtype is dtype
    error = (output.logits.float() - logits).std() / logits.std()
    assert error < 0.03


def test_half_precision_time_neither_overflows_nor_rounds() -> None:
    """66 * 1000 is beyond float16, and 63 * 1000 is not one of its numbers."""
    model, exact = tiny(torch.float16), tiny()
    inputs, _ = golden_case("meissonic-tiny", 0)
    for timestep in (63, 66):
        inputs["timestep"] = torch.tensor([timestep, timestep])
        with torch.inference_mode():
            half, full = model(**inputs).logits.float(), exact(**inputs).logits
        assert half.isfinite().all()
        assert (half - full).std() / full.std() < 0.01


def test_guidance_before_the_head_equals_guidance_after_it() -> None:
    """Guided, normed states of the masked positions alone give the guided logits."""
    model = tiny()
    inputs, _ = golden_case("meissonic-tiny", 0)
    token_ids, timestep, scale = inputs["token_ids"], inputs["timestep"], 9.0
    masked = torch.rand(token_ids.flatten(1).shape, generator=torch.manual_seed(0)) < 0.5
    with torch.inference_mode():
        conditional = conditioned(model, inputs)
        inputs["encoder_hidden_states"] = torch.zeros_like(inputs["encoder_hidden_states"])
        inputs["pooled_projections"] = torch.zeros_like(inputs["pooled_projections"])
        unconditional = conditioned(model, inputs)
        both = Conditioning.cat([conditional, unconditional])
        states = model.states(token_ids.repeat(2, 1, 1), timestep, both)
        c, u = states.hidden.chunk(2)
        before = model.head((u + scale * (c - u))[masked])
        c_logits, u_logits = model.head(states.hidden).chunk(2)
        after = (u_logits + scale * (c_logits - u_logits))[masked]
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-5)


def test_timestep_is_per_sample() -> None:
    model = tiny()
    inputs, _ = golden_case("meissonic-tiny", 0)
    with torch.inference_mode():
        conditioning = conditioned(model, inputs)
        together = model.states(inputs["token_ids"], torch.tensor([5, 47]), conditioning)
        for row, timestep in enumerate((5, 47)):
            alone = model.states(
                inputs["token_ids"][row : row + 1],
                torch.tensor([timestep]),
                conditioning.select([row]),
            )
            torch.testing.assert_close(together.hidden[row], alone.hidden[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(together.features[row], alone.features[0], atol=1e-5, rtol=0)
        same = model.states(inputs["token_ids"], torch.tensor([5, 5]), conditioning)
    assert not torch.allclose(together.hidden[1], same.hidden[1], atol=1e-3)


def test_conditioning_cat_and_select() -> None:
    torch.manual_seed(0)
    a = Conditioning(text=torch.randn(2, 3, 4), pooled=torch.randn(2, 4))
    b = Conditioning(text=torch.randn(1, 3, 4), pooled=torch.randn(1, 4))
    both = Conditioning.cat([a, b])
    assert len(both) == 3
    picked = both.select([2, 0])
    assert torch.equal(picked.text, torch.stack([b.text[0], a.text[0]]))
    assert torch.equal(picked.pooled, torch.stack([b.pooled[0], a.pooled[0]]))
    assert torch.equal(both.select(slice(0, 2)).text, a.text)
    assert torch.equal(both.select(torch.tensor([False, False, True])).pooled, b.pooled)


def test_features_are_the_inner_grid_before_the_last_projection() -> None:
    model = tiny()
    inputs, _ = golden_case("meissonic-tiny", 1)
    with torch.inference_mode():
        states = model.states(inputs["token_ids"], inputs["timestep"], conditioned(model, inputs))
        assert states.features.shape == (1, 48, 4, 6)
        x = model.project_from_hidden(states.features.movedim(1, -1))
        hidden = model.mlm_layer(model.up_block["upsample"](x))
    torch.testing.assert_close(hidden.flatten(1, 2), states.hidden)


@pytest.mark.parametrize(("model", "case"), [("meissonic-tiny", 0), *EACH_CASE[3:]])
@pytest.mark.parametrize("featured", [0, 1, 2])
def test_states_of_some_positions_are_those_of_all(model: str, case: int, featured: int) -> None:
    """Two rows, whatever cells the positions share, and the features of the first rows."""
    transformer = MeissonicTransformer.from_pretrained(GOLDEN / model / "transformer")
    inputs, _ = golden_case(model, case)
    conditioning = conditioned(transformer, inputs).select([0, 0])
    tokens = inputs["token_ids"][:1].repeat(2, 1, 1)
    tokens[1, :2] = 3
    step = (tokens, torch.tensor([5, 2]), conditioning)
    generator = torch.Generator().manual_seed(0)
    positions = torch.randperm(tokens.numel(), generator=generator)
    with torch.no_grad():
        states = transformer.states(*step)
        for some in (positions[:7], positions[positions < 3], positions[:0], positions):
            hidden, features = transformer.hidden_at(*step, some, featured=featured)
            expected = states.hidden.flatten(0, 1)[some]
            torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(features, states.features[:featured], atol=1e-5, rtol=0)


def test_one_billion_parameters_in_the_public_layout() -> None:
    config = TransformerConfig.model_validate(
        {
            "_class_name": "Transformer2DModel",
            "num_layers": 14,
            "num_single_layers": 28,
            "num_attention_heads": 8,
            "attention_head_dim": 128,
            "joint_attention_dim": 1024,
            "pooled_projection_dim": 1024,
            "axes_dims_rope": [16, 56, 56],
            "vocab_size": 8256,
            "codebook_size": 8192,
            "downsample": True,
            "upsample": True,
            "patch_size": 1,
            "in_channels": 64,
            "guidance_embeds": False,
        }
    )
    with torch.device("meta"):
        model = MeissonicTransformer(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == public_shapes()
    assert len(shapes) == 867
    assert sum(math.prod(shape) for shape in shapes.values()) == 1_006_946_304
    assert config.mask_token_id == 8255
    assert config == meissonic.TRANSFORMER


def test_the_model_without_down_sampling_lacks_its_convolutions_alone() -> None:
    with torch.device("meta"):
        model = MeissonicTransformer(meissonic.TRANSFORMER_512)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    inner = ("down_block.", "up_block.")
    assert shapes == {k: v for k, v in public_shapes().items() if not k.startswith(inner)}
    assert len(shapes) == 863


def public_shapes() -> dict[str, tuple[int, ...]]:
    """The state dict of the public 1B checkpoint."""
    d = 1024
    shapes: dict[str, tuple[int, ...]] = {
        "cond_embed.linear_1.weight": (d, 1280 + d),
        "cond_embed.linear_2.weight": (d, d),
        "embed.embeddings.weight": (8256, d),
        "embed.conv.weight": (d, d, 1, 1),
        "mlm_layer.conv1.weight": (d, d, 1, 1),
        "mlm_layer.conv2.weight": (8192, d, 1, 1),
        "project_to_hidden.weight": (d, d),
        "project_from_hidden.weight": (d, d),
        "down_block.downsample.conv.weight": (d, d, 2, 2),
        "up_block.upsample.conv.weight": (d, d, 2, 2),
    }
    for norm in (
        "encoder_proj_layer_norm",
        "project_to_hidden_norm",
        "project_from_hidden_norm",
        "embed.layer_norm",
        "mlm_layer.layer_norm",
        "down_block.downsample.norm",
        "up_block.upsample.norm",
    ):
        shapes[f"{norm}.weight"] = (d,)

    def linear(name: str, out: int, dim: int = d) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, dim), (out,)

    linear("context_embedder", d)
    linear("time_text_embed.timestep_embedder.linear_1", d, 256)
    linear("time_text_embed.timestep_embedder.linear_2", d)
    linear("time_text_embed.text_embedder.linear_1", d)
    linear("time_text_embed.text_embedder.linear_2", d)
    for i in range(14):
        block = f"transformer_blocks.{i}"
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
            linear(f"{block}.attn.{name}", d)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            shapes[f"{block}.attn.{name}.weight"] = (128,)
        linear(f"{block}.attn.to_out.0", d)
        linear(f"{block}.attn.to_add_out", d)
        for name in ("norm1", "norm1_context"):
            linear(f"{block}.{name}.linear", 6 * d)
        for name in ("ff", "ff_context"):
            linear(f"{block}.{name}.net.0.proj", 4 * d)
            linear(f"{block}.{name}.net.2", d, 4 * d)
    for i in range(28):
        block = f"single_transformer_blocks.{i}"
        for name in ("to_q", "to_k", "to_v"):
            linear(f"{block}.attn.{name}", d)
        for name in ("norm_q", "norm_k"):
            shapes[f"{block}.attn.{name}.weight"] = (128,)
        linear(f"{block}.norm.linear", 3 * d)
        linear(f"{block}.proj_mlp", 4 * d)
        linear(f"{block}.proj_out", d, 5 * d)
    return shapes


def masked_loss(model: MeissonicTransformer, text: Tensor, pooled: Tensor) -> Tensor:
    """Cross-entropy of fixed targets on half of the positions, the head on those alone."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 64, (text.shape[0], 8, 8), generator=generator)
    masked = torch.rand(targets.shape, generator=generator) < 0.5
    micro = torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0]]).expand(text.shape[0], -1)
    states = model.states(
        targets.masked_fill(masked, model.config.mask_token_id),
        torch.arange(text.shape[0]),
        model.condition(text, pooled, micro),
    )
    logits = model.head(states.hidden[masked.flatten(1)])
    return F.cross_entropy(logits.float(), targets[masked])


@pytest.mark.parametrize("autocast", [False, True])
def test_fresh_model_trains_with_its_conditions(
    fresh: MeissonicTransformer, autocast: bool
) -> None:
    torch.manual_seed(2)
    text = torch.randn(4, 5, 24, requires_grad=True)
    pooled = torch.randn(4, 32, requires_grad=True)
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = masked_loss(fresh, text, pooled)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(64), rel=0.05)
    assert losses[-1] < 0.9 * losses[0]
    for name, parameter in (*fresh.named_parameters(), ("text", text), ("pooled", pooled)):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_training_after_inference_mode(fresh: MeissonicTransformer) -> None:
    """What inference mode leaves behind (the rotation table) must not break autograd."""
    text, pooled = torch.randn(1, 5, 24), torch.randn(1, 32)
    with torch.inference_mode():
        masked_loss(fresh, text, pooled)
    masked_loss(fresh, text, pooled).backward()


def test_round_trip_is_exact(fresh: MeissonicTransformer, tmp_path: Path) -> None:
    fresh.save_pretrained(tmp_path)
    again = MeissonicTransformer.from_pretrained(tmp_path)
    assert again.config == fresh.config
    assert not again.training
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_inputs_that_do_not_fit(fresh: MeissonicTransformer) -> None:
    text, pooled, micro = torch.randn(2, 5, 24), torch.randn(2, 32), torch.randn(2, 5)
    conditioning = fresh.condition(text, pooled, micro)
    with pytest.raises(ValueError, match=r"grid 7x8 must be even"):
        fresh.states(torch.zeros(2, 7, 8, dtype=torch.long), torch.zeros(2), conditioning)
    with pytest.raises(ValueError, match=r"token_ids is \(2, 64\)"):
        fresh.states(torch.zeros(2, 64, dtype=torch.long), torch.zeros(2), conditioning)
    with pytest.raises(ValueError, match=r"timestep is \(3,\)"):
        fresh.states(torch.zeros(2, 8, 8, dtype=torch.long), torch.zeros(3), conditioning)
    with pytest.raises(ValueError, match="2 rows for 4 token grids"):
        fresh.states(torch.zeros(4, 8, 8, dtype=torch.long), torch.zeros(4), conditioning)
    with pytest.raises(ValueError, match="encoder_hidden_states is"):
        fresh.condition(text[..., :23], pooled, micro)
    with pytest.raises(ValueError, match=r"micro_conds is \(1, 5\), not \(2, 5\)"):
        fresh.condition(text, pooled, micro[:1])
