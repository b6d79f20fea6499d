"""The local maps of a field, the descriptor made of them, and the stem of a network that reads them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from gridrad_cube.models import build, describe_maps, load_backbone, local_maps, pool_tokens


def smooth_field(size: int = 96, seed: int = 0) -> np.ndarray:
    """A smooth random field with a standard deviation of about a third."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.standard_normal((size, size)))
    wave = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    field = np.fft.irfft2(spectrum * np.exp(-((wave * 12) ** 2)), (size, size))
    return (field / field.std() / 3).astype(np.float32)


def plain_maps(x: np.ndarray) -> np.ndarray:
    """The maps of one complete field by numpy and scipy, written from the description of `local_maps`."""
    offset = np.arange(7) - 3
    y, z = np.meshgrid(offset, offset, indexing="ij")
    out = []
    level = x.astype(np.float64)
    for octave in range(4):
        if octave:
            level = level.reshape(level.shape[0] // 2, 2, -1, 2).mean((1, 3))
        padded = np.pad(level, 3, mode="reflect")
        for direction in range(6):
            angle = np.pi * direction / 6
            along, across = np.cos(angle) * z + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * z
            envelope = np.exp(-(along**2 + (0.5 * across) ** 2) / (2 * 0.8**2))
            envelope /= envelope.sum()
            wave = envelope * np.exp(1j * 0.75 * np.pi * along)
            wave -= envelope * wave.real.sum()
            modulus = np.abs(convolve2d(padded, wave[::-1, ::-1], mode="valid"))
            if octave < 2:
                edge = 4 >> octave
                modulus = modulus.reshape(modulus.shape[0] // edge, edge, -1, edge).mean((1, 3))
            elif octave == 3:
                modulus = modulus.repeat(2, 0).repeat(2, 1)
            out.append(np.log(modulus + 3e-3))
    cells = x.astype(np.float64).reshape(x.shape[0] // 4, 4, -1, 4).transpose(0, 2, 1, 3)
    out += [cells.mean((2, 3)), np.log(cells.var((2, 3)) + 1e-4)]
    place = (cells.clip(-1, 1) + 1) * 3.5
    out += [np.clip(1 - np.abs(place - number), 0, None).mean((2, 3)) for number in range(8)]
    return np.stack(out)


def test_local_maps_and_descriptor_equal_a_plain_version():
    field = smooth_field(64)
    local = local_maps(torch.from_numpy(field)[None, None])
    expected = plain_maps(field)
    np.testing.assert_allclose(local.maps[0], expected, atol=2e-4)
    assert (local.observed == 1).all()
    described = np.concatenate([expected.mean((1, 2)), expected.std((1, 2))])
    np.testing.assert_allclose(describe_maps(local)[0], described, atol=2e-4)


def test_missing_pixels_have_no_influence():
    field = torch.from_numpy(smooth_field())[None, None]
    hole = torch.zeros_like(field, dtype=torch.bool)
    hole[..., 20:50, 30:90] = True
    found = [describe_maps(local_maps(torch.where(hole, other, field))) for other in (torch.nan, -torch.inf)]
    assert torch.equal(*found)
    # The holes of one field say nothing about the others of its batch, and a field without pixels has a descriptor.
    holed = torch.where(hole, torch.nan, field)
    both = torch.cat([holed, torch.full_like(field, torch.nan), field])
    together = describe_maps(local_maps(both))
    torch.testing.assert_close(together[:1], found[0])
    assert (together[1] == 0).all()
    torch.testing.assert_close(together[2:], describe_maps(local_maps(field)))
    # What a field that is half observed says is near to what its observed half says.
    half = field.clone()
    half[..., 48:] = torch.nan
    alone = describe_maps(local_maps(field[..., :48].contiguous()))
    assert (describe_maps(local_maps(half)) - alone).abs().mean() < 0.1


def test_descriptor_changes_little_when_the_window_moves():
    field = torch.from_numpy(smooth_field(128))
    windows = torch.stack(
        [field[8:72, 8:72], field[11:75, 10:74], torch.from_numpy(smooth_field(128, 1))[:64, :64]]
    )
    moved, other = (
        (describe_maps(local_maps(windows[:, None]))[[0, i]].diff(dim=0)).abs().mean().item() for i in (1, 2)
    )
    assert moved < 0.5 * other


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        local_maps(torch.zeros(1, 1, 60, 64))
    with pytest.raises(ValueError, match="multiple of 8"):
        build("vit_mini", stem="scattering", patch_size=12, image_size=96)
    with pytest.raises(ValueError, match="stem"):
        build("vit2k_xs", stem="scattering")


def test_a_network_on_the_stem_reads_fields_or_their_maps_and_ignores_missing_pixels(tmp_path):
    torch.manual_seed(0)
    network = build("vit_mini", 2, stem="scattering", mask_token=True).eval()
    fields = torch.from_numpy(np.stack([[smooth_field(64, s), smooth_field(64, s + 9)] for s in range(3)]))
    local = local_maps(fields)
    network.stem.fit(local)
    standard = network.stem(local)
    torch.testing.assert_close(standard.mean((0, 2, 3)), torch.zeros(68), atol=1e-3, rtol=0)
    torch.testing.assert_close(standard.std((0, 2, 3)), torch.ones(68), atol=2e-2, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(network(fields), network(local))
        holed = fields.clone()
        holed[:, :, :24] = torch.nan
        hidden = torch.zeros(3, 64, dtype=torch.bool)
        hidden[:, :24] = True
        seen = [network(x, hidden) for x in (holed, torch.where(holed.isnan(), torch.inf, holed))]
    assert torch.equal(*seen)
    assert seen[0].isfinite().all()
    again = load_backbone({"teacher": network.state_dict(), "model": network.config()})
    assert torch.equal(again.stem.mean, network.stem.mean)
    bare = load_backbone({"teacher": network.state_dict()})
    assert bare.config()["stem"] == "scattering"


def test_pooling_counts_tokens_that_hold_data():
    tokens = torch.randn(2, 5, 3)
    used = torch.tensor([[True, False, True, False], [False] * 4])
    own = tokens[0, [1, 3]]
    mean = pool_tokens(tokens, used, "mean")
    torch.testing.assert_close(mean[0], own.mean(0))
    torch.testing.assert_close(mean[1], tokens[1, 1:].mean(0))
    both = pool_tokens(tokens, used, "mean+std")
    torch.testing.assert_close(both[:, :3], mean)
    torch.testing.assert_close(both[0, 3:], own.std(0, correction=0), atol=1e-4, rtol=0)
    assert torch.equal(pool_tokens(tokens, used, "class"), tokens[:, 0])
