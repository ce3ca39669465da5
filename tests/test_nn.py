import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, pixel_shuffle, silu

from drifting import nn as layers
from drifting.errors import InputError
from drifting.nn import Attention, Condition, Decoder, RMSNorm, SwiGLU, double, smoothed


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def _randomized(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.3, std=0.5)
    return module.double()


def _condition(**settings) -> Condition:
    torch.manual_seed(0)
    return Condition(6, **{"num_classes": 3, "guided": True, "num_styles": 2, "style_classes": 4, **settings})


def test_norm_is_that_of_the_formula():
    norm, x = _randomized(RMSNorm(5)), _random(2, 3, 5)
    expected = [[row / math.sqrt(float((row**2).mean()) + 1e-6) for row in rows] for rows in x.numpy()]
    np.testing.assert_allclose(norm(x).detach().numpy(), np.array(expected) * norm.weight.detach().numpy(), rtol=1e-12)
    assert RMSNorm(5)(x.bfloat16()).dtype == torch.float32


def test_norm_of_nothing_is_nothing_with_a_finite_gradient():
    x = torch.zeros(2, 5, requires_grad=True)
    RMSNorm(5)(x).sum().backward()
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize(
    ("width", "ratio", "hidden"), [(768, 4.0, 2048), (64, 4.0, 192), (32, 4.0, 96), (1024, 4.0, 2752), (6, 1.0, 32)]
)
def test_gated_perceptron_has_the_hidden_width_of_the_release(width, ratio, hidden):
    with torch.device("meta"):
        assert SwiGLU(width, ratio).gate.out_features == hidden


def test_gated_perceptron_is_that_of_the_formula():
    layer, x = _randomized(SwiGLU(6, 4.0)), _random(2, 3, 6)
    gate, value = (x @ part.weight.T + part.bias for part in (layer.gate, layer.value))
    expected = (gate / (1 + torch.exp(-gate)) * value) @ layer.output.weight.T + layer.output.bias
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("shift", [1, 7])
def test_rotation_keeps_lengths_and_sees_distances_only(shift):
    angles = layers.rotary_angles(20, 8)
    cosines, sines = angles.cos(), angles.sin()
    query, key = _random(2, 3, 1, 8).expand(-1, -1, 20, -1), _random(3, 3, 1, 8)[:2].expand(-1, -1, 20, -1)
    queries, keys = layers.rotate(query, cosines, sines), layers.rotate(key, cosines, sines)
    torch.testing.assert_close(queries.norm(dim=-1), query.norm(dim=-1))
    torch.testing.assert_close(queries[:, :, 0], query[:, :, 0])
    products = (queries[:, :, : 20 - shift] * keys[:, :, shift:]).sum(-1)
    torch.testing.assert_close(products, products[:, :, :1].expand_as(products))
    assert not torch.allclose(products[:, :, 0], (query * key).sum(-1)[:, :, 0])


def test_rotation_turns_planes_by_falling_frequencies():
    angles = layers.rotary_angles(4, 6)
    vectors = _random(1, 1, 4, 6)
    planes = torch.complex(vectors[..., :3], vectors[..., 3:])
    frequencies = torch.tensor([10000 ** (-2 * i / 6) for i in range(3)], dtype=torch.float64)
    turned = planes * torch.exp(1j * torch.outer(torch.arange(4), frequencies))
    torch.testing.assert_close(layers.rotate(vectors, angles.cos(), angles.sin()), torch.cat([turned.real, turned.imag], -1))


def test_attention_is_that_of_the_loops():
    width, heads, length = 12, 3, 5
    attention, tokens = _randomized(Attention(width, heads, length)), _random(2, length, width)
    qkv = tokens @ attention.qkv.weight.T + attention.qkv.bias
    frequencies = torch.tensor([1.0, 10000**-0.5], dtype=torch.float64)
    expected = torch.zeros(2, length, width, dtype=torch.float64)
    for sample in range(2):
        for head in range(heads):
            queries, keys, values = (qkv[sample, :, part * width + 4 * head :][:, :4] for part in range(3))
            turned = []
            for norm, vectors in ((attention.norm_queries, queries), (attention.norm_keys, keys)):
                scaled = vectors / (vectors.square().mean(1, keepdim=True) + 1e-6).sqrt() * norm.weight
                turned.append(
                    torch.complex(scaled[:, :2], scaled[:, 2:]) * torch.exp(1j * torch.outer(torch.arange(5), frequencies))
                )
            for row in range(length):
                logits = torch.stack([(turned[0][row] * turned[1][column].conj()).real.sum() for column in range(length)]) / 2
                shares = logits.exp() / logits.exp().sum()
                expected[sample, row, 4 * head : 4 * head + 4] = shares @ values
    expected = expected @ attention.output.weight.T + attention.output.bias
    # Sines and cosines are kept in float32.
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-6, atol=1e-6)


def test_plain_attention_is_that_of_torch():
    attention, tokens = _randomized(Attention(12, 3, 5, normalized=False, rotary=False)), _random(2, 5, 12)
    plain = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    weights = {"in_proj_weight": attention.qkv.weight, "in_proj_bias": attention.qkv.bias}
    output = {f"out_proj.{name}": value for name, value in attention.output.state_dict().items()}
    plain.load_state_dict({**weights, **output})
    torch.testing.assert_close(attention(tokens), plain(tokens, tokens, tokens)[0])
    assert attention.state_dict().keys() == {f"{layer}.{leaf}" for layer in ("qkv", "output") for leaf in ("weight", "bias")}


@pytest.mark.parametrize("heads", [0, 4, 5])
def test_heads_that_do_not_split_the_width_are_refused(heads):
    with pytest.raises(InputError, match=f"heads is {heads}"):
        Attention(12, heads, 3)


def test_positions_tell_columns_then_rows():
    rows, columns, width = 3, 5, 8
    positions = layers.grid_positions(rows, columns, width)
    assert positions.shape == (15, 8)
    for row in range(rows):
        for column in range(columns):
            parts = [
                [turn(place * 10000 ** (-i / 2)) for turn in (math.sin, math.cos) for i in range(2)] for place in (column, row)
            ]
            np.testing.assert_allclose(positions[row * columns + column].numpy(), np.concatenate(parts), atol=1e-6)


def test_patches_are_those_of_the_loops_and_go_back():
    images, patch = _random(2, 3, 4, 6), 2
    patches = layers.patchify(images, patch)
    for place in range(6):
        top, left = patch * (place // 3), patch * (place % 3)
        entries = [images[:, c, top + i, left + j] for i in range(patch) for j in range(patch) for c in range(3)]
        assert torch.equal(patches[:, place], torch.stack(entries, 1))
    assert torch.equal(layers.unpatchify(patches, patch, (3, 4, 6)), images)


def test_guidance_is_embedded_as_in_the_formula():
    scales = torch.tensor([1.0, 1.7, 4.0], dtype=torch.float64)
    expected = [
        [turn(scale * 10000 ** (-i / 128)) for turn in (math.cos, math.sin) for i in range(128)] for scale in scales.tolist()
    ]
    np.testing.assert_allclose(layers.guidance_embedding(scales).numpy(), np.array(expected), rtol=1e-12, atol=1e-12)


def test_condition_is_the_sum_of_its_parts():
    condition, noise = _randomized(_condition()), _random(2, 1, 2, 2)
    labels, scales, codes = torch.tensor([2, 0]), torch.tensor([1.5, 3.0]).double(), torch.tensor([[3, 0], [1, 2]])
    first, last = condition.guidance[0], condition.guidance[2]
    hidden = layers.guidance_embedding(scales) @ first.weight.T + first.bias
    told = (hidden / (1 + torch.exp(-hidden))) @ last.weight.T + last.bias
    told = told / (told.square().mean(1, keepdim=True) + 1e-6).sqrt() * condition.norm.weight
    tables = condition.styles.weight.unflatten(0, (2, 4))
    styles = torch.stack([tables[0, 3] + tables[1, 0], tables[0, 1] + tables[1, 2]])
    torch.testing.assert_close(condition(noise, labels, scales, codes), 0.02 * told + condition.classes.weight[labels] + styles)


def test_condition_has_no_parts_that_were_not_asked_for():
    empty = _condition(num_classes=None, guided=False, num_styles=0)
    assert list(empty.parameters()) == []
    noise = torch.zeros(2, 1, 2, 2)
    assert torch.equal(empty(noise, torch.tensor([0, 1]), torch.tensor([1.0, 2.0])), torch.zeros(2, 6))


def test_parts_of_the_condition_spread_as_asked():
    wide = Condition(64, num_classes=50, guided=True, num_styles=9, style_classes=16, std=0.3)
    for table in (wide.classes, wide.styles):
        assert float(table.weight.detach().std()) == pytest.approx(0.3, rel=0.1)
    labels, codes = torch.zeros(200, dtype=torch.long), torch.randint(16, (200, 9))
    condition = wide(torch.zeros(200, 1, 2, 2), labels, 1 + 3 * torch.rand(200), codes).detach()
    told = condition - wide.classes(labels) - wide.styles(codes + 16 * torch.arange(9))
    torch.testing.assert_close(told.square().mean(1).sqrt(), torch.full((200,), 0.3), rtol=0.01, atol=0)
    assert float(wide.guidance[0].weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_missing_codes_are_uniform_and_come_from_the_global_stream():
    condition = _condition(num_classes=None, guided=False)
    with torch.no_grad():
        condition.styles.weight.copy_(10.0 ** torch.arange(8)[:, None].expand(8, 6))
    torch.manual_seed(3)
    first = condition(torch.zeros(4000, 1, 2, 2))
    digits = first[:, 0].detach().long()
    counts = torch.stack([(digits // 10**place % 10).sum() for place in range(8)])
    assert counts.unflatten(0, (2, 4)).sum(1).tolist() == [4000, 4000]
    assert bool(((counts - 1000).abs() < 120).all())
    torch.manual_seed(3)
    assert torch.equal(condition(torch.zeros(4000, 1, 2, 2)), first)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": None}, "labels is None: pass one for each sample, from 0 to 2"),
        ({"style_indices": torch.zeros(2, 3, dtype=torch.long)}, r"style_indices has shape \(2, 3\): pass \(2, 2\)"),
        ({"style_indices": torch.zeros(1, 2, dtype=torch.long)}, r"style_indices has shape \(1, 2\): pass \(2, 2\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        _condition()(torch.zeros(2, 1, 2, 2), **{"labels": torch.tensor([0, 1]), **given})


@pytest.mark.parametrize("shape", [(3, 4, 7), (3, 7, 4), (4, 4), (0, 4, 4), (3, 0, 4)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(InputError, match=f"sample_shape is .*{shape[-1]}.*divisible by 2"):
        layers.check_sides(shape, 2)
    with pytest.raises(InputError, match="patch is 0"):
        layers.check_sides(shape, 0)


def test_precise_layers_know_no_autocast():
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        precise = layers.precise(layer, x)
    assert torch.equal(precise, layer(x))
    assert layers.precise(layer, x.bfloat16()).dtype == torch.float32
    assert layers.precise(layer.double(), x.double()).dtype == torch.float64


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_checkpointed_block_runs_again_in_the_backward_pass(gradient_checkpointing):
    block, x, runs = nn.Linear(4, 4), torch.randn(3, 4), []
    block.register_forward_pre_hook(lambda *given: runs.append(1))
    layers.run(block, x, gradient_checkpointing=gradient_checkpointing).sum().backward()
    assert len(runs) == 1 + gradient_checkpointing
    with torch.no_grad():
        layers.run(block, x, gradient_checkpointing=gradient_checkpointing)
    assert len(runs) == 2 + gradient_checkpointing


def test_every_place_makes_the_four_that_it_stands_for():
    maps = torch.randn(2, 3, 3, 8, generator=torch.Generator().manual_seed(0))
    doubled = double(maps)
    assert doubled.shape == (2, 6, 6, 2)
    for row in range(6):
        for column in range(6):
            part = 2 * (row % 2) + column % 2
            assert torch.equal(doubled[:, row, column], maps[:, row // 2, column // 2, 2 * part : 2 * part + 2])


def _shuffled(maps: torch.Tensor) -> torch.Tensor:
    # pixel_shuffle has the four parts innermost, here they are outermost.
    return pixel_shuffle(maps.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)


def _through(blocks: torch.nn.ModuleList, maps: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        maps = maps + conv2d(silu(maps), block.weight, block.bias, padding=1)
    return silu(maps)


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("smoothing", [False, True])
@pytest.mark.parametrize("doublings", [2, 3])
def test_decoder_is_blocks_then_a_convolution_of_single_places_then_one_of_three_by_three(smoothing, blocks, doublings):
    torch.manual_seed(0)
    options = {"smoothing": smoothing, "blocks": blocks, "doublings": doublings}
    decoder, features = Decoder(5, (2, 8, 8), 3, **options), torch.randn(4, 5)
    side, channels = (2, 6) if doublings == 2 else (1, 12)
    quarter = decoder.spread(features).reshape(4, side, side, channels).movedim(-1, 1)
    if doublings == 3:
        assert len(decoder.early_blocks) == blocks
        eighth = _through(decoder.early_blocks, quarter)
        quarter = _shuffled(conv2d(eighth, decoder.early.weight[:, :, None, None], decoder.early.bias))
    assert len(decoder.blocks) == blocks
    quarter = _through(decoder.blocks, quarter)
    half = _shuffled(conv2d(quarter, decoder.first.weight[:, :, None, None], decoder.first.bias))
    expected = _shuffled(conv2d(silu(half), decoder.second.weight, decoder.second.bias, padding=1))
    torch.testing.assert_close(decoder(features), smoothed(expected) if smoothing else expected)


@pytest.mark.parametrize("shape", [(1, 8, 12), (1, 6, 6), (1, 0, 0)])
def test_images_must_be_squares_of_a_side_divisible_by_four(shape):
    with pytest.raises(InputError, match="divisible by 4"):
        Decoder(5, shape, 3)


def test_three_doublings_need_a_side_divisible_by_eight_and_there_are_no_others():
    with pytest.raises(InputError, match=r"image_shape is \(1, 12, 12\).*divisible by 8"):
        Decoder(5, (1, 12, 12), 3, doublings=3)
    with pytest.raises(InputError, match="doublings is 4: pass 2 or 3"):
        Decoder(5, (1, 16, 16), 3, doublings=4)


def test_smoothing_stops_alternating_pixels_and_leaves_even_surfaces_alone():
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    for pattern in (rows, columns, rows + columns):
        alternating = 1.0 - 2.0 * (pattern % 2)
        assert float(smoothed(alternating.expand(2, 3, 8, 8))[:, :, 1:-1, 1:-1].abs().max()) < 1e-6
    even = torch.tensor([0.3, -0.7, 0.0])[None, :, None, None].expand(2, 3, 8, 8)
    torch.testing.assert_close(smoothed(even), even)
    image = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    window = image[0, 0, 1:4, 1:4]
    expected = (window * torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])).sum() / 16
    torch.testing.assert_close(smoothed(image)[0, 0, 2, 2], expected)


def test_smoothing_compiles_without_the_padding_whose_gradient_torch_compiles_wrongly():
    """The same as without compilation, but torch's compiler stops at the gradient of a replicated padding with channels last."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph.code)
        return graph.forward

    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    images.requires_grad_()
    found, plain = torch.compile(smoothed, backend=keep)(images), smoothed(images)
    assert torch.equal(found, plain)
    (gradient,), (expected,) = (torch.autograd.grad(one.square().sum(), images) for one in (found, plain))
    torch.testing.assert_close(gradient, expected)
    assert len(graphs) == 1
    assert "conv2d" in graphs[0]
    assert "pad(" not in graphs[0]
