"""Watching a run: the arithmetic of a step, what metrics say, probes and the best checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gridrad_cube.models.dino import DINOHead, ProjectionHead
from gridrad_cube.models.vit import build
from gridrad_cube.train.flops import backbone_flops, head_flops, peak_flops, training_flops

# arithmetic of a step


def test_flops_of_the_reference_network_are_those_published():
    backbone, head = build("vit_small"), DINOHead(384, 65_536)
    views = [(224, 224)] * 2 + [(96, 96)] * 8
    assert backbone_flops(backbone, (224, 224)) == pytest.approx(9.12e9, rel=0.002)
    assert backbone_flops(backbone, (96, 96)) == pytest.approx(1.60e9, rel=0.005)
    assert training_flops(backbone, head, views) == pytest.approx(112.9e9, rel=0.001)


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("vit_demo", {"in_channels": 3}, (48, 32)),
        ("vit_tiny", {"patch_size": 8, "image_size": 32, "depth": 2}, (32, 24)),
        ("vit2k_xs", {"in_channels": 12, "image_size": 5}, (4, 5)),
    ],
)
@pytest.mark.parametrize("head", [DINOHead(192, 50), ProjectionHead(192, 64, hidden_dim=32, use_bn=True)])
def test_flops_are_what_torch_counts(name, sizes, shape, head):
    backbone, head = build(name, **sizes), head.eval()
    x = torch.zeros(2, backbone.architecture.in_channels, *shape)
    # The math kernel: torch's counter does not know the fused attention of CPUs.
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as forward,
    ):
        features = backbone(x)
        head(features)
    assert forward.get_total_flops() == 2 * (backbone_flops(backbone, shape) + head_flops(head))


def test_flops_of_training_count_the_student_three_times_and_the_teacher_once():
    backbone, head = build("vit_demo"), DINOHead(192, 32)
    large, small = ((backbone_flops(backbone, s) + head_flops(head)) for s in ((64, 64), (16, 16)))
    counted = training_flops(backbone, head, [(64, 64), (64, 64), (16, 16)])
    assert counted == pytest.approx(4 * 2 * large + 3 * small)


@pytest.mark.parametrize(
    ("name", "bf16", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", True, 989.4),
        ("NVIDIA H100 PCIe", True, 756),
        ("NVIDIA H200", True, 989.4),
        ("NVIDIA H200 NVL", True, 835.5),
        ("NVIDIA GH200 480GB", True, 989.4),
        ("NVIDIA A100-SXM4-40GB", True, 312),
        ("NVIDIA A100-SXM4-40GB", False, 19.5),
        ("Tesla V100-SXM2-32GB", False, 15.7),
        ("Tesla V100-SXM2-32GB", True, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", True, None),
        ("NVIDIA GeForce GTX 1080", True, None),
    ],
)
def test_peak_is_that_of_the_gpu_and_its_arithmetic(name, bf16, tflops):
    assert peak_flops(name, bf16=bf16) == (tflops and pytest.approx(tflops * 1e12))


def test_peak_follows_tf32_and_is_unknown_for_cpus():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert peak_flops("NVIDIA A100-SXM4-40GB", bf16=False) == 156e12
    finally:
        torch.set_float32_matmul_precision(before)
    assert peak_flops(torch.device("cpu"), bf16=True) is None
