"""Augmentation against outputs of the authors' released code, with the draws that it made."""
import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hmdc.augment import apply, mix, rotate, scale

ORACLE = Path(__file__).resolve().parents[1] / os.environ.get("HMDC_ORACLE", "../shared/oracle")
RELEASED_PAIR = (True, False)  # align_corners of the grid and of the sampling

pytestmark = pytest.mark.skipif(
    not (ORACLE / "augment.safetensors").is_file() or not (ORACLE / "augment.json").is_file(),
    reason="no numbers of the released code: set HMDC_ORACLE to the folder that holds augment.safetensors and .json",
)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def oracle(request) -> dict[str, torch.Tensor]:
    tensors = load_file(ORACLE / "augment.safetensors")
    return {k: v.to(request.param) if v.is_floating_point() else v for k, v in tensors.items()}


def assert_parity(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The largest difference over the largest value."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 1e-5, f"relative error {error:.2e}"


@pytest.mark.parametrize("op", ["rotate", "scale", "crop"])
def test_siamese_with_exact_draws(oracle, op):
    """flip, brightness, a warp and cutout, one draw for the batch."""
    drawn = json.loads((ORACLE / "augment.json").read_text())["siamese"][op]
    dtype = oracle["input"].dtype
    images = apply(oracle["input"], [("flip", torch.tensor([drawn["flip"]])),
                                     ("brightness", torch.tensor([drawn["brightness_add"]], dtype=dtype))])
    if op == "crop":
        images = apply(images, [("crop", torch.tensor([[drawn["tx"], drawn["ty"]]]))])
    elif op == "scale":  # the one pair that the released code writes column first
        images = scale(images, torch.tensor([[drawn["sy"], drawn["sx"]]], dtype=dtype), _align_corners=RELEASED_PAIR)
    else:
        images = rotate(images, torch.tensor([drawn["theta_rad"]], dtype=dtype), _align_corners=RELEASED_PAIR)
    images = apply(images, [("cutout", torch.tensor([[drawn["cutout_x"], drawn["cutout_y"]]]))])
    assert_parity(images, oracle[f"siamese.{op}.output"])


@pytest.mark.parametrize("mode", ["independent", "siamese"])
@pytest.mark.parametrize("op", ["flip", "brightness", "saturation", "contrast", "rotate"])
def test_primitive(oracle, op, mode):
    """Every primitive was run from the same seed, so all share the uniform numbers that brightness shows."""
    images, theirs = oracle["input"], oracle[f"prim.rand_{op}.{mode}"]
    u = (oracle[f"prim.rand_brightness.{mode}"] - images).mean((1, 2, 3)) + 0.5
    values = {
        "flip": u < 0.5,
        "brightness": u - 0.5,
        "saturation": 2 * u,
        "contrast": u + 0.5,
        "rotate": (2 * u - 1) * math.radians(15),
    }[op]
    if op == "rotate":
        assert_parity(rotate(images, values, _align_corners=RELEASED_PAIR), theirs)
    else:
        assert_parity(apply(images, [(op, values)]), theirs)


@pytest.mark.parametrize("mode", ["independent", "siamese"])
@pytest.mark.parametrize("op", ["crop", "cutout"])
def test_primitive_in_pixels(oracle, op, mode):
    """Each image of the released code is ours for a draw in the range that ours are drawn from."""
    images, theirs = oracle["input"], oracle[f"prim.rand_{op}.{mode}"]
    span = range(-4, 5) if op == "crop" else range(33)
    candidates = torch.cartesian_prod(torch.tensor(span), torch.tensor(span))
    for image, expected in zip(images, theirs):
        ours = apply(image.expand(len(candidates), -1, -1, -1), [(op, candidates)])
        assert (ours == expected).flatten(1).all(1).any()


def test_cutmix_with_exact_draws(oracle):
    """The one batch of four that was mixed; box and partners are read off its images."""
    targets = torch.nn.functional.one_hot(oracle["labels"], 10).to(oracle["input"].dtype)
    images, targets = mix(oracle["input"], targets, torch.tensor([2, 3, 5, 4, 1, 0]), (0, 12, 9, 32))
    assert_parity(images, oracle["cutmix.2.images"])
    assert_parity(targets, oracle["cutmix.2.targets"])
