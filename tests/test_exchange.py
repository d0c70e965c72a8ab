"""Sets in the files of other people's code: samples with known pixels, good and bad, of every producer."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hmdc.data import ImageData
from hmdc.evaluation import evaluate
from hmdc.exchange import read_set
from hmdc.models import Member
from hmdc.provenance import stream

SCRIPT = Path(__file__).parents[2] / "shared/formats/make_samples.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the script that writes samples is not beside this repository")

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
GOOD = {  # file -> what has to be said beside it; tiles per side
    "hmdc/synthetic_images.pth": ({}, 2),
    "hmdc_noaug/synthetic_images.pth": ({}, 1),
    "idc/data.pt": ({"factor": 2}, 2),
    "dream/data1200.pt": ({"factor": 2}, 2),
    "ncfm/data_20000.pt": ({"factor": 2}, 2),
    "dc/res_DSA_CIFAR10_ConvNet_2ipc.pt": ({}, 1),
    "cafe/res_DC_CIFAR10_ConvNet_2ipc.pt": ({}, 1),
    "idm/res_DM_CIFAR10_ConvNet_2ipc.pt": ({"factor": 2}, 2),
    "dc_numpy1/res_DSA_CIFAR10_ConvNet_2ipc.pt": ({}, 1),
    "mtt/images_best.pt": ({"zca": False}, 1),
    "tesla/images_best.pt": ({"zca": False}, 1),
    "ftd/ema_images_best.pt": ({"zca": False}, 1),
    "datm/images_best.pt": ({"zca": False}, 1),
    "mtt_parts/images_best_0.pt": ({"zca": False}, 1),
    "kip/kip_cifar10_ConvNet3_ssize20_zca_nol_noaug_ckpt1000.npz": ({"zca": False}, 1),
    "ddranking/images.pt": ({"zca": False}, 1),
    "dcbench/CIFAR10_IPC2_normalize_images.pt": ({}, 1),
    "rded": ({}, 1),
    "sre2l": ({}, 1),
    "bad/shuffled_data.pt": ({"factor": 1}, 1),  # rows in any order are sorted by their labels
}
RULES = {  # tiles by columns or by rows, and whether corners are aligned when they are enlarged
    "hmdc": ("columns", True), "idm": ("columns", False), **dict.fromkeys(("idc", "dream", "ncfm"), ("rows", False)),
}
BAD = {
    "idm_pkl/acc_0.5860.pkl": "a plain pickle that could run code",
    "sre2l_fkd/epoch_0/batch_0.tar": "a teacher's labels of one batch",
    "bad/code_plain.pkl": "a plain pickle that could run code",
    "bad/code_synthetic_images.pth": "with objects that could run code",
    "bad/empty.pt": "is empty",
    "bad/labelcount_data.pt": "20 images and 19 labels",
    "bad/labels_from_1_data.pt": "labels go from 1 to 10",
    "bad/lfs_pointer_data.pt": "a pointer of git-lfs",
    "bad/nan_data.pt": "values that are not finite",
    "bad/nhwc_data.pt": "channels are last",
    "bad/nolabels_images_best.pt": "nolabels_labels_best.pt is not beside it",
    "bad/notorch_zip.pt": "an archive of hello.txt",
    "bad/numpy_in_pt.pt": "with objects that could run code",
    "bad/objects.npz": "holds objects",
    "bad/parameter_images.pt": "parameter_labels.pt is not beside it",
    "bad/raw_synthetic_images.pth": "none is below 0",
    "bad/text_synthetic_images.pth": "is a web page",
    "bad/truncated_data.pt": "is cut off",
    "bad/uint8_data.pt": "takes bytes",
    "bad/wrongnorm_data.pt": "are the images normalised",
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("formats") / "samples"
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], check=True, capture_output=True)
    return folder


def flat_data() -> ImageData:
    """CIFAR-10's classes, each a grey with a little noise."""
    noise = torch.rand(50, 3, 32, 32, generator=stream(0, "formats"))
    labels = torch.arange(10).repeat(5)
    images = (255 * (0.1 + 0.05 * labels.view(-1, 1, 1, 1) + 0.02 * noise)).byte()
    return ImageData("cifar10", tuple(CLASSES), images, labels, images, labels)


@pytest.mark.parametrize("file", GOOD)
def test_a_good_file_has_the_pixels_that_were_written(file, samples):
    (asked, factor), said = GOOD[file], []
    syn = read_set(samples / file, "cifar10", say=said.append, **asked)
    assert (syn.factor, len(syn.classes)) == (factor, 10) and syn.n_images == 20 * factor**2
    images, targets = syn.unpack()
    hard = targets.argmax(1) if targets.is_floating_point() else targets
    first = images.view(10, factor**2, 2, 3, 32, 32)[:, 0, :, :, 3, 3]  # of the first tile of every image
    wanted = 0.1 + 0.05 * torch.arange(10).view(-1, 1, 1) + 0.02 * torch.arange(2).view(-1, 1) + 0.005 * torch.arange(3)
    if file == "bad/shuffled_data.pt":
        first, wanted = first.sort(1).values, wanted.sort(1).values
    assert (first - wanted).abs().max() < (0.02 if file in ("rded", "sre2l") else 1e-4)
    assert hard.view(10, -1).eq(torch.arange(10).view(-1, 1)).all()
    if factor == 2:  # the second tile: below the first, or beside it
        order, align_corners = RULES[file.partition("/")[0]]
        second = images.view(10, 4, 2, 3, 32, 32)[:, 1, :, :, 3, 3]
        assert (second - wanted - (0.01 if order == "rows" else 0.02)).abs().max() < 1e-4
        assert syn.align_corners == align_corners
    data = flat_data()
    frame = evaluate(read_set(samples / file, data, say=said.append, **asked), data, [Member("convnet3", kwargs={"width": 8}),
                     "vit_nano_patch4"], [0], length=2, device="cpu", progress=False)
    assert len(frame) == 2 and frame.accuracy.between(0, 100).all()


@pytest.mark.parametrize("file", BAD)
def test_a_bad_file_gets_one_clear_error_and_runs_nothing(file, samples):
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        read_set(samples / file, "cifar10", factor=1, zca=False, say=lambda line: None)
    assert BAD[file] in str(raised.value) and file.rsplit("/")[-1] in str(raised.value)
    assert not (samples / "bad/EXECUTED").exists()


@pytest.mark.parametrize("file, name", [("idc/data.pt", "factor"), ("mtt/images_best.pt", "zca"), ("hmdc/synthetic_images.pth", "dataset")])
def test_what_a_file_does_not_say_is_asked_for_by_name(file, name, samples):
    asked = {"factor": 2 if name != "factor" else None, "zca": False if name != "zca" else None, "dataset": "cifar10" if name != "dataset" else None}
    asked["factor"] = None if file.startswith("mtt") else asked["factor"]
    with pytest.raises(ValueError, match=f"pass {name}="):
        read_set(samples / file, say=lambda line: None, **asked)
