"""What is refused, in one table: the input, and the message that it gets. `python tests/test_refusals.py` prints it.

Every input is tried in a folder full of other things, and each file and folder is there afterwards as it was, to the byte.
More values of every setting, one by one: test_bad_input.py.
"""

import functools
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hmdc import Member, SyntheticSet, condense, evaluate, load_dataset, recipe
from hmdc.bench import save_cost
from hmdc.bounds import bounds
from hmdc.cli import main
from hmdc.data import ImageData, Statistics
from hmdc.exchange import read_set
from hmdc.experiment import Experiment, condensed_folder, history, judgements, result_file, results, run
from hmdc.experts import train_experts
from hmdc.exports import to_datasets, to_hmdc, to_idc
from hmdc.figures import save as save_figure
from hmdc.history import COLUMNS
from hmdc.image_files import read_images
from hmdc.lifecycles import expert_files
from hmdc.md import Distillation
from hmdc.paradigms import Features
from hmdc.parameters import resolve
from hmdc.recipes import recipe_from
from hmdc.run import Progress, RunFolder, run_settings
from hmdc.saves import write_state
from hmdc.scores import label_robust, robust_scores, score
from hmdc.settings import Ages, Length
from hmdc.synthetic import unpack
from hmdc.tuning import tune

pytestmark = pytest.mark.skipif(os.name != "posix", reason="disks, locks and rights are those of POSIX")

MISSING_GPU = f"cuda:{torch.cuda.device_count()}" if torch.cuda.is_available() else "cuda"  # the first that is not there


# --- good input, of which the bad differs in one thing -----------------------------------------------------------------

def noise(classes: tuple[str, ...] = ("cat", "dog", "bird"), per_class: int = 8) -> ImageData:
    n = per_class * len(classes)
    images = torch.randint(256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) % len(classes)
    return ImageData("noise", classes, images, labels, images, labels)


DATA = noise()
PARTS = {name: getattr(DATA, name) for name in ("name", "classes", "train_images", "train_labels", "test_images", "test_labels")}
RANDOM = recipe("random", ipc=1)
SMOKE = recipe("hmdc", ipc=1, preset="smoke")
CONVNET, VIT = SMOKE.members
EXPERTS = recipe("mtt", ipc=1, preset="smoke")
SYN = condense(RANDOM, DATA, device="cpu", progress=False)
HALF = ((0.5,) * 3, (0.25,) * 3)  # mean and standard deviation
FLOATS, LABELS = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3).repeat(2)
PEERS = torch.tensor(0.5).expand(20, 3, 32, 32), torch.arange(10).repeat_interleave(2)  # its file holds one number
ROWS = [(0, inner, "md", 1.0, 1.0, 1.0, 1.0) for inner in range(900)]  # of a history
HISTORIES = {"words": b"epoch,loss\n1,0.5\n", "noise": b"\x00\xff\xfe" * 99, "empty": b"",  # and none of a run
             "letters": (",".join(COLUMNS) + "\n0,a,md,1,1,1,1\n").encode(), "short": (",".join(COLUMNS) + "\n0,0\n").encode()}


def data(**changes) -> ImageData:
    return ImageData(**PARTS | changes)


def with_member(**changes):
    """Condense with one member that is not as it should be."""
    return condense(SMOKE.replace(members=(replace(CONVNET, **changes), VIT)), DATA, "run", device="cpu", progress=False)


def judged(**changes):
    return evaluate(**{"syn": SYN, "data": DATA, "models": ["convnet3"], "seeds": [0], "length": 1, "progress": False} | changes)


def named(*classes: str) -> SyntheticSet:
    return replace(SYN, classes=classes)


def parameters(**given) -> Experiment:
    """What a reproduce notebook does with its parameters before it plans anything."""
    small = {"preset": "smoke", "device": "cpu", "methods": "random", "models": "convnet3"}
    return Experiment.of(resolve(small | given, ("random",)))


def kept() -> Experiment:
    """One that works in this process: only on the device that is called plainly cpu are there others."""
    return parameters(device="cpu:0", out_dir="kept")


def going_on(folder: str) -> Callable:
    """To condense where a run has begun."""
    return lambda: condense(SMOKE, DATA, folder, device="cpu", progress=False)


# --- bad input that lies in files --------------------------------------------------------------------------------------

def write_images(root: Path, parts: tuple[str, ...] = ("train", "test"), n: int = 2) -> None:
    generator = np.random.default_rng(0)
    for folder in (root / part / name for part in parts for name in ("cat", "dog")):
        folder.mkdir(parents=True)
        for i in range(n):
            Image.fromarray(generator.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def write_photos(here: Path) -> None:
    """Folders of images, each wrong in its own way."""
    for name in ("whole", "damaged", "heic", "float", "shapes"):
        write_images(here / name)
    write_images(here / "unsplit", parts=("",))
    write_images(here / "single", parts=("",), n=1)
    write_images(here / "val", parts=("train", "val"))
    (here / "damaged/train/cat/1.png").write_bytes(b"no image at all")
    for file in (here / "heic/train/cat").iterdir():
        file.rename(file.with_suffix(".heic"))
    Image.fromarray(np.zeros((16, 16), np.float32)).save(here / "float/train/cat/2.tif")
    Image.new("RGB", (20, 16)).save(here / "shapes/train/cat/2.png")


def write_sets(here: Path) -> None:
    """Our own files, some with a header that `SyntheticSet.save` would not write."""
    SYN.save(here / "noise.safetensors")
    condense(recipe("random_packed", ipc=1), DATA, device="cpu", progress=False).save(here / "packed.safetensors")
    condense(RANDOM, load_dataset("digits"), device="cpu", progress=False).save(here / "digits.safetensors")
    whole = (here / "noise.safetensors").read_bytes()
    (here / "cut.safetensors").write_bytes(whole[:-100])
    (here / "changed.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    tensors = {"images": SYN.images, "mean": SYN.statistics.mean, "std": SYN.statistics.std}
    header = {"format": 3, "classes": list(SYN.classes), "decoding": {"factor": 1}, "meta": {}}
    headers = {"later": header | {"format": 99}, "formless": header | {"format": None}, "classless": header | {"classes": 3},
               "listed": [], "bare": {}}
    for name, written in headers.items():
        save_file(tensors, here / f"{name}.safetensors", metadata={"hmdc": json.dumps(written)})
    save_file(tensors | {"images": 2 * SYN.images}, here / "beyond.safetensors", metadata={"hmdc": json.dumps(header)})
    save_file(tensors, here / "foreign.safetensors")


def write_peers(here: Path) -> None:
    """Files of other code, and of none."""
    here.mkdir()
    images, labels = PEERS
    rows = images.unflatten(0, (10, 2))
    held = {
        "data.pt": [images, labels], "three.pt": [images, labels, labels], "model.pt": {"weight": images}, "number.pt": 3,
        "ones.pt": [images, labels + 1], "halves.pt": [images, labels + 0.5], "none.pt": [images[:0], labels[:0]],
        "bytes.pt": [(255 * images).byte(), labels], "grey.pt": [images[:, 0], labels],
        "last.pt": [images.permute(0, 2, 3, 1), labels], "low.pt": [images[:, :, 1:], labels],
        "images_best.pt": images, "few_images_best.pt": images, "few_labels_best.pt": {"labels": labels},
        "res_DC_none.pt": {"data": []}, "res_DC_three.pt": {"data": [[images, labels, labels]]},
        "res_DC_one.pt": {"data": [[images, labels]]},
        "text.pth": {"synthetic_images": "cat"}, "flat.pth": {"synthetic_images": images},
        "factorless.pth": {"synthetic_images": rows, "init": "aug"},
    }
    for name, value in held.items():
        torch.save(value, here / name)
    np.savez(here / "kip_flat.npz", images=np.zeros((5, 3)), labels=np.zeros((5, 2)))
    np.savez(here / "other.npz", x=np.zeros(3))
    contents = {"empty.pt": b"", "page.pt": b"<!DOCTYPE html>", "pointer.pt": b"version https://git-lfs.github.com/spec/v1",
                "cut.pt": b"PK\x03\x04", "notes.txt": b"my notes", "huge.safetensors": struct.pack("<Q", 1 << 60) + b"{}"}
    for name, content in contents.items():
        (here / name).write_bytes(content)


def write_runs(here: Path) -> None:
    """Results folders that cannot go on, and one that can."""
    for name in ("held", "old", "going", "taken.run", *HISTORIES):
        RunFolder(here / name, run_settings(RANDOM if name == "held" else SMOKE, DATA, 0))
    for name, content in HISTORIES.items():
        (here / name / "history.csv").write_bytes(content)
    (here / "held/.lock").touch()
    state = io.BytesIO()
    torch.save({"versions": {"torch": "1.0"}, "state": {}}, state)
    content = state.getvalue()
    (here / "old/checkpoint.pt").write_bytes(b"hmdc run\n" + hashlib.sha256(content).digest() + content)
    for file in expert_files(EXPERTS.members[0], EXPERTS, DATA.fingerprint):
        (here / file).parent.mkdir(parents=True, exist_ok=True)
        (here / file).write_bytes(b"cut off")
    experiment = kept()
    (only,) = experiment.runs
    condense(experiment.recipe(only), experiment.data, here / condensed_folder(experiment, only), device="cpu", progress=False)
    spoilt = replace(experiment, settings=replace(experiment.settings, out_dir="spoilt"))
    result = here / result_file(spoilt, only, judgements(spoilt, only, False)[0])
    result.parent.mkdir(parents=True)
    result.write_text('{"accuracy": 9')
    course = parameters(methods="hmdc", out_dir=here / "spoilt")
    (folder := condensed_folder(course, course.runs[0])).mkdir(parents=True)
    (folder / "history.csv").write_bytes(HISTORIES["words"])
    bounds(replace(spoilt, settings=replace(spoilt.settings, out_dir=here / "spoilt")), 1, say=str)
    for bound in (here / "spoilt/bounds").iterdir():
        bound.write_text("[]")


def furnish(here: Path) -> None:
    here.mkdir(exist_ok=True)
    (here / "theirs.txt").write_text("years of work")
    (here / "nothing").mkdir()
    for write in (write_photos, write_sets, write_runs):
        write(here)
    write_peers(here / "peers")
    (here / "weights").mkdir()
    save_file({"conv1.weight": torch.zeros(3)}, here / "weights/resnet18.safetensors")


# --- places that cannot be written to ----------------------------------------------------------------------------------

@functools.cache
def can_mount() -> bool:
    """Whether disks can be put into folders here, which takes root's rights, and more than those in many containers."""
    if shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def copied(furniture: Path, folder: Path) -> Path:
    return shutil.copytree(furniture, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)


# Each of these places is the working folder while it is entered: all paths of the table are relative.

@contextmanager
def inside(folder: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


def plain_folder(furniture: Path, folder: Path):
    """The furniture itself: copies would take longer than all refusals."""
    return inside(furniture)


@contextmanager
def disk(furniture: Path, folder: Path) -> Iterator[Path]:
    """A small file system, in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    try:
        with inside(copied(furniture, folder)):
            yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # also where a file is still open


@contextmanager
def read_only_disk(furniture: Path, folder: Path) -> Iterator[Path]:
    if not can_mount():
        pytest.skip("no disk can be mounted here")
    with disk(furniture, folder):
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder


@contextmanager
def locked_folder(furniture: Path, folder: Path) -> Iterator[Path]:
    if os.geteuid() == 0:
        pytest.skip("root may write into any folder")
    with inside(copied(furniture, folder)):
        folder.chmod(0o555)
        try:
            yield folder
        finally:
            folder.chmod(0o755)


@contextmanager
def disk_with(room: int, furniture: Path, folder: Path) -> Iterator[Callable[[], None]]:
    """A disk with room for so many bytes more; yields what makes room. Where none can be mounted, no file may be larger."""
    if can_mount():
        with disk(furniture, folder):
            ballast = Path("ballast")
            with ballast.open("wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(bytes(4096))
            os.truncate(ballast, ballast.stat().st_size - room)
            yield ballast.unlink
    else:
        import resource  # POSIX alone has it
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with inside(copied(furniture, folder)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            try:
                yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_disk(furniture: Path, folder: Path) -> Iterator[Path]:
    with disk_with(0, furniture, folder):
        yield folder


NO_ROOM = "No space left on device" if can_mount() else "File too large"
READ_ONLY = "Read-only file system"
LINED_UP = [Path("damaged/train/cat/1.png"), Path("shapes/train/cat/0.png"), Path("shapes/train/cat/2.png")]


# --- circumstances -----------------------------------------------------------------------------------------------------

def without_network(call: Callable) -> Callable:
    """The call where no server answers, and nothing that was downloaded before is found."""
    def alone() -> None:
        reason = urllib.error.URLError("Network is unreachable")
        with (mock.patch("urllib.request.urlopen", side_effect=reason),
              mock.patch.object(huggingface_hub, "try_to_load_from_cache", return_value=None),
              mock.patch.object(huggingface_hub, "get_hf_file_metadata", side_effect=reason)):
            call()
    return alone


def beside_another_process() -> None:
    """Condense into a folder whose lock is held: a lock belongs to who opened the file, so that we can be the other too."""
    import fcntl  # POSIX alone has it
    with open("held/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        condense(RANDOM, DATA, "held", device="cpu", progress=False)


# --- the table ---------------------------------------------------------------------------------------------------------

SMALL = "--preset smoke --test-images 20"  # for commands: quick, where they should go too far

# A row: what is asked, and the call, or a command; what is raised, or the exit status; a part of the message; the place, if any.
DATA_ROWS = [
    ("a name that is no dataset", lambda: load_dataset("cats"), ValueError, "unknown dataset 'cats': known are digits, cifar10"),
    ("a file in a folder's place", lambda: load_dataset("theirs.txt"),
     ValueError, "there is no folder data/theirs.txt or theirs.txt"),
    ("a number for a name", lambda: load_dataset(10), TypeError, "the name of a dataset is 10: pass one of digits, cifar10"),
    ("an empty name", lambda: load_dataset(""), TypeError, "the name of a dataset is ''"),
    ("a home that nobody has", lambda: load_dataset("~nobody-at-all/cats"), ValueError, "there is no such home folder"),
    ("an empty folder", lambda: load_dataset("nothing"), FileNotFoundError, "nothing holds nothing: expected train/<class>/*"),
    ("a folder without parts, and no split", lambda: load_dataset("unsplit"),
     FileNotFoundError, "unsplit holds cat, dog: expected train/"),
    ("a folder with parts, and a split", lambda: load_dataset("whole", split=(0.2, 0)),
     ValueError, "split is for a folder without train/"),
    ("val/ in the place of test/", lambda: load_dataset("val"),
     FileNotFoundError, "val holds train, val: expected train/<class>/*"),
    ("a split in percent", lambda: load_dataset("unsplit", split=(20.0, 0)), ValueError, "must lie between 0 and 1, not 20.0"),
    ("a split without a seed", lambda: load_dataset("unsplit", split=0.2),
     ValueError, "a fraction of test images and a seed, e.g. (0.2, 0)"),
    ("a class of one image, split", lambda: load_dataset("single", split=(0.2, 0)),
     ValueError, "cat, dog have one image each, and need two"),
    ("a split of what has a test part", lambda: load_dataset("digits", split=(0.2, 0)),
     ValueError, "digits has a test part of its own"),
    ("a damaged image", lambda: load_dataset("damaged"), OSError, "1 of 8 images cannot be read"),
    ("images that are not read, of one class", lambda: load_dataset("heic"),
     ValueError, "heic: no images in train/cat (an image ends in .avif"),
    ("floating-point pixels", lambda: load_dataset("float"), OSError, "1 of 9 images cannot be read"),
    ("images of two shapes", lambda: load_dataset("shapes"), ValueError,
     "2.png is 20x16 pixels: bring all to squares of one size, as image_size does"),
    ("images of two shapes, after a damaged one", lambda: read_images(LINED_UP), ValueError,
     "shapes/train/cat/0.png is 16x16 and shapes/train/cat/2.png is 20x16 pixels"),
    ("a fit that is not served", lambda: load_dataset("whole", fit="stretch"),
     ValueError, "fit must be 'crop' or 'squash', not 'stretch'"),
    ("an array for images", lambda: data(train_images=DATA.train_images.numpy()),
     TypeError, "train images must be a tensor, not ndarray"),
    ("a list for labels", lambda: data(test_labels=[0, 1, 2] * 8), TypeError, "test labels must be a tensor, not list"),
    ("images in floats", lambda: data(train_images=DATA.train_images / 255),
     ValueError, "must be square, uint8 and [N,3,H,H], not torch.float32"),
    ("grey images", lambda: data(test_images=DATA.test_images[:, :1]), ValueError, "not torch.uint8 and [24, 1, 16, 16]"),
    ("labels from 1", lambda: data(train_labels=DATA.train_labels + 1),
     ValueError, "train labels must lie in 0 … 2, not in 1 … 3"),
    ("fewer labels than images", lambda: data(train_labels=DATA.train_labels[:5]),
     ValueError, "must be int64 and [24], one for each image"),
    ("a class without images", lambda: data(classes=(*DATA.classes, "emu")), ValueError, "no train images in the class emu"),
    ("a class that stands twice", lambda: data(classes=("cat", "dog", "cat")), ValueError, "classes hold cat more than once"),
    ("a string for classes", lambda: data(classes="cat"), TypeError, "classes is 'cat': pass the names of the classes"),
    ("test images of another size", lambda: data(test_images=DATA.test_images[..., :8, :8]),
     ValueError, "train 16 px, test 8 px"),
    ("validation images without labels", lambda: data(validation_images=DATA.test_images),
     TypeError, "validation labels must be a tensor"),
    ("statistics of two channels", lambda: Statistics((0.5, 0.5), (1, 1, 1)),
     ValueError, "mean is [0.5, 0.5]: it must be three finite numbers"),
    ("statistics in words", lambda: Statistics("cifar10", (1, 1, 1)), ValueError, "mean is 'cifar10': it must be three numbers"),
    ("to hold out all", lambda: DATA.holdout(1.0, seed=0), ValueError, "fraction must lie between 0 and 1, not 1.0"),
    ("to hold out none of a class", lambda: DATA.holdout(0.01, seed=0),
     ValueError, "leaves none to validate: choose another fraction"),
    ("to hold out twice", lambda: DATA.holdout(0.5, 0).holdout(0.5, 0), ValueError, "noise has validation images already"),
    ("no test images at all", lambda: DATA.balanced_test(0), ValueError, "must be a positive whole number, not 0"),
    ("to evaluate without test images",
     lambda: judged(data=data(test_images=DATA.test_images[:0], test_labels=DATA.test_labels[:0])),
     ValueError, "noise has no test images"),
    ("class names for labels", lambda: SyntheticSet.of(FLOATS, ["cat"] * 6, HALF),
     TypeError, "labels must be a tensor, an array or a list of numbers"),
    ("labels below 0", lambda: SyntheticSet.of(FLOATS, LABELS - 1, HALF), ValueError, "labels go from -1 to 1"),
    ("more labels than classes", lambda: SyntheticSet.of(FLOATS, LABELS, HALF, ("cat", "dog")),
     ValueError, "2 classes have labels from 0 to 1"),
    ("fewer labels than condensed images", lambda: SyntheticSet.of(FLOATS, LABELS[:3], HALF),
     ValueError, "there are 6 images and 3 labels"),
    ("no image at all", lambda: SyntheticSet.of(FLOATS[:0], LABELS[:0], HALF), ValueError, "there are no labels"),
    ("pixels that are said to be normalised", lambda: SyntheticSet.of(FLOATS, LABELS, HALF, normalised=True),
     ValueError, "none is below 0"),
    ("pixels up to 255 in floats", lambda: SyntheticSet.of(255 * FLOATS, LABELS, HALF), ValueError, "far outside [0,1]"),
    ("oblong condensed images", lambda: SyntheticSet.of(FLOATS[..., :4], LABELS, HALF),
     ValueError, "must be square and [N,3,H,H]"),
    ("no statistics", lambda: SyntheticSet.of(FLOATS, LABELS, None),
     TypeError, "statistics is None: pass hmdc.data.Statistics(mean, std)"),
    ("a factor that does not divide the side", lambda: replace(SYN, factor=3),
     ValueError, "factor 3 does not divide the image size 16"),
    ("a factor of 2.0", lambda: replace(SYN, factor=2.0),
     TypeError, "factor is 2.0: it must be a whole number of tiles per side"),
    ("an order of tiles that is not served", lambda: replace(SYN, order="spiral"), ValueError, "unknown order 'spiral'"),
    ("None for what is known about a set", lambda: replace(SYN, meta=None), TypeError, "meta is None: pass a dict"),
    ("to unpack by 5", lambda: unpack(FLOATS, 5), ValueError, "factor 5 does not divide the image size 8"),
]

RECIPE_ROWS = [
    ("a list for a method", lambda: recipe(["hmdc"]), ValueError, "unknown method ['hmdc']: random, random_packed"),
    ("a method in capitals", lambda: recipe("DREAM"), ValueError, "unknown method 'DREAM'"),
    ("a number in words", lambda: recipe("hmdc", ipc="ten"),
     ValueError, "ipc is 'ten': it must be at least 1, and a whole number"),
    ("weights that are no name", lambda: recipe("hmdc", weights=3), ValueError, "weights is 3: it must be a string"),
    ("a member that is a number", lambda: Member(18), ValueError, "model is 18: it must be a string"),
    ("a member's argument in a pair", lambda: Member("convnet3", kwargs=("width", 8)),
     ValueError, "pass a dict of arguments of convnet3"),
    ("an argument that the model lacks", lambda: with_member(kwargs={"widht": 8}),
     ValueError, "convnet3 does not take {'widht': 8}"),
    ("an argument that the data decide", lambda: with_member(kwargs={"num_classes": 3}),
     ValueError, "num_classes cannot be given in kwargs"),
    ("a width of 0", lambda: with_member(kwargs={"width": 0}), ValueError, "convnet3 does not take {'width': 0}"),
    ("a width below 0", lambda: with_member(kwargs={"width": -8}), ValueError, "convnet3 does not take {'width': -8}"),
    ("a width in words", lambda: with_member(kwargs={"width": "wide"}), ValueError, "convnet3 does not take {'width': 'wide'}"),
    ("images too small for a member", lambda: with_member(input_size=4),
     ValueError, "convnet3(width=8) cannot be used with 4 images of 4 px"),
    ("distillation among one", lambda: condense(SMOKE.replace(members=(CONVNET,), targets=(Distillation(),)), DATA, "run"),
     ValueError, "Distillation() compares pairs of members, and there is one"),
    ("a target that is a number", lambda: condense(SMOKE.replace(targets=(3,)), DATA, "run"), TypeError, "targets hold 3"),
    ("a target that was not called", lambda: condense(SMOKE.replace(targets=(Features,)), DATA, "run"),
     TypeError, "targets hold <class"),
    ("targets in a list", lambda: SMOKE.replace(targets=[Features()]), ValueError, "it must be a tuple"),
    ("features of a layer that is not there", lambda: condense(SMOKE.replace(targets=(Features((9,)),)), DATA, "run"),
     ValueError, "convnet3(width=8) (features) cannot be matched with"),
    ("a pool of no networks", lambda: Length(fresh=Ages(pool=0)), ValueError, "pool is 0: it must be at least 1"),
    ("snapshots in words", lambda: SMOKE.replace(snapshots=(1, "last")), ValueError, "snapshots is (1, 'last')"),
    ("a field of another library", lambda: SMOKE.replace(iterations=3),
     ValueError, "a recipe has no field iterations; its fields: name"),
    ("a precision in bits", lambda: SMOKE.replace(precision=16), ValueError, "precision is 16: 'fp32', 'bf16' are served"),
    ("a recipe of a later version", lambda: recipe_from({"is": "Spell"}), ValueError, "of another version of hmdc: 'Spell'"),
    ("a recipe that is a part of one", lambda: recipe_from({"is": "Store"}),
     ValueError, "it must be what `plain_settings` makes of a Recipe"),
    ("a recipe that is none", lambda: recipe_from(None), ValueError, "the recipe is None"),
    ("experts for a recipe without", lambda: train_experts(SMOKE, DATA, "cpu"), ValueError, "the recipe hmdc follows no experts"),
    ("to score a model by its name alone", lambda: score({"mine": SYN}, DATA, "convnet3", [0]),
     TypeError, "pass a list, ['convnet3']"),
    ("to score with a seed alone", lambda: score({"mine": SYN}, DATA, ["convnet3"], 0),
     TypeError, "seeds is 0: pass a list, [0]"),
    ("to score a list", lambda: score([SYN], DATA, ["convnet3"], [0]),
     TypeError, "the sets are a list: pass a dict of sets by their names"),
    ("to score nothing", lambda: score({}, DATA, ["convnet3"], [0]), ValueError, "there is no set to score"),
    ("robust scores on other classes", lambda: robust_scores({"mine": SYN}, noise(("cat", "dog")), ["convnet3"]),
     ValueError, "has the classes cat, dog, bird"),
    ("accuracies in percent", lambda: label_robust(50, 40, 30),
     ValueError, "50 is not between 0 and 1: accuracies are shares here"),
]

FILE_ROWS = [
    ("a set that is not there", lambda: SyntheticSet.load("absent.safetensors"),
     FileNotFoundError, "no condensed set at absent.safetensors"),
    ("a folder for a set", lambda: SyntheticSet.load("nothing"), FileNotFoundError, "no condensed set at nothing"),
    ("a set that is cut off", lambda: SyntheticSet.load("cut.safetensors"), ValueError, "cut.safetensors is not a condensed set"),
    ("a set with a changed bit", lambda: SyntheticSet.load("changed.safetensors"),
     ValueError, "changed.safetensors is damaged: its content"),
    ("a set of a later version", lambda: SyntheticSet.load("later.safetensors"), ValueError, "later.safetensors is of format 99"),
    ("a set of no version", lambda: SyntheticSet.load("formless.safetensors"),
     ValueError, "formless.safetensors is not a condensed set"),
    ("a set whose header is a list", lambda: SyntheticSet.load("listed.safetensors"),
     ValueError, "listed.safetensors is not a condensed set"),
    ("a set whose classes are a number", lambda: SyntheticSet.load("classless.safetensors"),
     ValueError, "classless.safetensors holds no set that can be used"),
    ("a set with pixels up to 2", lambda: SyntheticSet.load("beyond.safetensors"),
     ValueError, "beyond.safetensors holds no set that can be used (images must lie in [0,1]"),
    ("safetensors of something else", lambda: SyntheticSet.load("foreign.safetensors"),
     ValueError, "foreign.safetensors is not a condensed set"),
    ("safetensors of absurd length", lambda: read_set("peers/huge.safetensors"),
     ValueError, "huge.safetensors is not a condensed set"),
    ("to save over a folder", lambda: SYN.save("nothing"), IsADirectoryError, "Is a directory"),
    ("to save below a file", lambda: SYN.save("theirs.txt/x.safetensors"), NotADirectoryError, "Not a directory: 'theirs.txt'"),
    ("to save by too long a name", lambda: SYN.save("x" * 300), OSError, "File name too long"),
    ("to save what JSON cannot hold", lambda: replace(SYN, meta={"by": object()}).save("x"),
     TypeError, "meta cannot be saved: Object of type object"),
    ("a class that is called ..", lambda: named("cat", "..", "bird").to_folder("pictures"),
     ValueError, "a class is called '..', and no folder can be"),
    ("two classes for one folder", lambda: named("a/b", "a-b", "c").to_folder("pictures"),
     ValueError, "two classes would be in one folder, 'a-b'"),
    ("a class with too long a name", lambda: named("cat", "x" * 300, "bird").to_folder("pictures"),
     OSError, "File name too long"),
    ("pictures below a file", lambda: SYN.to_folder("theirs.txt/pictures"), NotADirectoryError, "Not a directory: 'theirs.txt'"),
    ("pictures into a folder that is there", lambda: SYN.to_folder("nothing"),
     FileExistsError, "nothing exists: name a folder that does not"),
    ("IDC's file over another", lambda: to_idc(SYN, "theirs.txt"),
     FileExistsError, "theirs.txt exists: name another, nothing is overwritten"),
    ("HMDC's file of no set", lambda: to_hmdc("noise.safetensors", "x.pth"),
     TypeError, "the condensed set is 'noise.safetensors': pass a SyntheticSet"),
    ("parquet below a file", lambda: to_datasets(SYN, "theirs.txt/x"), NotADirectoryError, "Not a directory: 'theirs.txt'"),
    ("to condense below a file", lambda: condense(RANDOM, DATA, "theirs.txt/run"),
     NotADirectoryError, "Not a directory: 'theirs.txt"),
    ("to condense where another process does", beside_another_process,
     FileExistsError, "held is being worked on by another process"),
    ("to go on from other versions", lambda: condense(SMOKE, DATA, "old", device="cpu"),
     ValueError, "checkpoint.pt was saved with torch 1.0"),
    ("damaged expert trajectories", lambda: condense(EXPERTS, DATA, "run", device="cpu"),
     ValueError, "000.safetensors is damaged, or no trajectory"),
    ("weights of another shape", lambda: with_member(model="resnet18", kwargs=(), weights="weights"), ValueError,
     "the weights resnet18.safetensors do not fit resnet18"),
    ("a damaged result", lambda: results(parameters(device="cpu:0", out_dir="spoilt")),
     ValueError, "is damaged, or no result: remove it"),
    ("a bound that is a list", lambda: bounds(parameters(device="cpu:0", out_dir="spoilt"), 1, say=str),
     ValueError, ".json is damaged, or no result: remove it"),
    ("to draw a foreign history", lambda: history(parameters(methods="hmdc", out_dir="spoilt")),
     ValueError, "history.csv is damaged, or no history of a run: remove its folder"),
    ("to tune into a file of something else", lambda: tune(DATA.holdout(0.25, 0), [CONVNET], "theirs.txt"),
     ValueError, "theirs.txt is damaged, or no curve of rates: name another file"),
    ("to go on in a folder with a foreign history", going_on("words"), ValueError, "words/history.csv is damaged, or no history "
     "of a run: move it away, and the same call goes on (its columns are epoch, loss)"),
    ("to go on with a history of noise", going_on("noise"), ValueError, "noise/history.csv is damaged, or no history of a run"),
    ("to go on with an empty history", going_on("empty"), ValueError, "empty/history.csv is damaged, or no history of a run"),
    ("to go on with a history of letters", going_on("letters"), ValueError, "letters/history.csv is damaged, or no history"),
    ("to go on with a history that is cut off", going_on("short"), ValueError, "short/history.csv is damaged, or no history"),
    ("a peer's file that is not there", lambda: read_set("peers/absent.pt"), FileNotFoundError, "there is no peers/absent.pt"),
    ("an empty file", lambda: read_set("peers/empty.pt"), ValueError, "peers/empty.pt is empty: copy or download it again"),
    ("a web page", lambda: read_set("peers/page.pt"), ValueError, "peers/page.pt is a web page, which a server sent instead"),
    ("a pointer of git-lfs", lambda: read_set("peers/pointer.pt"), ValueError, "peers/pointer.pt is a pointer of git-lfs"),
    ("an archive that is cut off", lambda: read_set("peers/cut.pt"), ValueError, "peers/cut.pt is cut off"),
    ("notes", lambda: read_set("peers/notes.txt"), ValueError, "peers/notes.txt is none of the formats that are read"),
    ("arrays of something else", lambda: read_set("peers/other.npz"), ValueError, "peers/other.npz holds a dictionary of x"),
    ("a network's parameters", lambda: read_set("peers/model.pt"), ValueError, "peers/model.pt holds a dictionary of weight"),
    ("a number", lambda: read_set("peers/number.pt"), ValueError, "peers/number.pt holds int"),
    ("three tensors", lambda: read_set("peers/three.pt"), ValueError, "peers/three.pt holds list"),
    ("our own file, and a dataset", lambda: read_set("digits.safetensors", "mnist"),
     ValueError, "digits.safetensors is hmdc's own and says all of itself: leave out the dataset's name"),
    ("a folder without classes", lambda: read_set("nothing"),
     ValueError, "nothing holds nothing: a folder of images for each class"),
    ("pictures of another size", lambda: read_set("whole/train", "cifar10"),
     ValueError, "holds images of 16 px, but cifar10 has 32"),
    ("pictures, one of them damaged", lambda: read_set("damaged/train", "imagenet"), OSError, "1 of 4 images cannot be read"),
    ("no factor", lambda: read_set("peers/data.pt", "cifar10"), ValueError, "peers/data.pt does not say how many small images"),
    ("a factor of 0", lambda: read_set("peers/data.pt", "cifar10", factor=0),
     ValueError, "factor is 0: it must be a whole number from 1 to"),
    ("a factor in words", lambda: read_set("peers/data.pt", "cifar10", factor="2"),
     ValueError, "factor is '2': it must be a whole number"),
    ("a factor above the side", lambda: read_set("peers/data.pt", "cifar10", factor=33),
     ValueError, "factor is 33: it must be a whole number"),
    ("no dataset", lambda: read_set("peers/data.pt", factor=1),
     ValueError, "peers/data.pt does not say which dataset it condenses: pass dataset="),
    ("a dataset that is not known", lambda: read_set("peers/data.pt", "cats", factor=1),
     ValueError, "unknown dataset 'cats': cifar10, cifar100"),
    ("another dataset's size", lambda: read_set("peers/data.pt", "mnist", factor=1),
     ValueError, "holds images of 32 px, but mnist has 28"),
    ("pixels that are asked for as normalised", lambda: read_set("peers/data.pt", "cifar10", factor=1, normalised=True),
     ValueError, "none is below 0"),
    ("bytes where floats are", lambda: read_set("peers/bytes.pt", "cifar10", factor=1),
     ValueError, "peers/bytes.pt holds torch.uint8 where IDC"),
    ("images without channels", lambda: read_set("peers/grey.pt", "cifar10", factor=1),
     ValueError, "peers/grey.pt holds images [20, 32, 32]"),
    ("images with channels last", lambda: read_set("peers/last.pt", "cifar10", factor=1), ValueError, "whose channels are last"),
    ("images that are not square", lambda: read_set("peers/low.pt", "cifar10", factor=3),
     ValueError, "peers/low.pt holds images [20, 3, 31, 32]: they must be square"),
    ("labels from 1 to 10", lambda: read_set("peers/ones.pt", "cifar10", factor=1), ValueError, "labels go from 1 to 10"),
    ("labels between whole numbers", lambda: read_set("peers/halves.pt", "cifar10", factor=1),
     ValueError, "must be whole numbers"),
    ("a file of no images", lambda: read_set("peers/none.pt", "cifar10", factor=1),
     ValueError, "peers/none.pt holds images [0, 3, 32, 32]"),
    ("images without their labels", lambda: read_set("peers/images_best.pt", "cifar10", zca=False),
     FileNotFoundError, "labels_best.pt is not beside it"),
    ("labels that are a dictionary", lambda: read_set("peers/few_images_best.pt", "cifar10", zca=False),
     ValueError, "is damaged, or of no format that is known here"),
    ("a file of no sets", lambda: read_set("peers/res_DC_none.pt", "cifar10"),
     ValueError, "peers/res_DC_none.pt is damaged, or of no format"),
    ("a set of three things", lambda: read_set("peers/res_DC_three.pt", "cifar10"),
     ValueError, "peers/res_DC_three.pt is damaged, or of no format"),
    ("the sixth set of one", lambda: read_set("peers/res_DC_one.pt", "cifar10", which=5),
     ValueError, "holds 1 sets: which=5 is none of them"),
    ("a word for images", lambda: read_set("peers/text.pth", "cifar10"),
     ValueError, "peers/text.pth is damaged, or of no format"),
    ("images without rows of classes", lambda: read_set("peers/flat.pth", "cifar10"),
     ValueError, "HMDC's images are [classes,ipc,3,H,W]"),
    ("packed images that do not say how", lambda: read_set("peers/factorless.pth", "cifar10"),
     ValueError, "is damaged, or of no format that is known here"),
    ("flat arrays for images", lambda: read_set("peers/kip_flat.npz", "cifar10", zca=False),
     ValueError, "is damaged, or of no format that is known here"),
]

COMMAND_ROWS = [
    ("hmdc", 2, "Missing subcommand"),
    ("hmdc brew", 2, "Unrecognized options: brew"),
    ("hmdc condense", 2, "-o PATH, --output PATH"),
    ("hmdc condense -o x --colour red", 2, "Unrecognized options: --colour"),
    ("hmdc condense -o x --ipc ten", 2, "Error parsing --ipc"),
    ("hmdc condense -o x --preset fast", 2, "invalid choice 'fast' for argument '--preset'"),
    ("hmdc condense -o theirs.txt", 2, "hmdc: theirs.txt exists: name another"),
    ("hmdc condense -o nothing", 2, "hmdc: nothing exists: name another"),
    (f"hmdc condense -o theirs.txt/x --recipe random {SMALL}", 2, "hmdc: [Errno 20] Not a directory: 'theirs.txt"),
    (f"hmdc condense -o x --recipe potion {SMALL}", 2, "hmdc: unknown method 'potion': random, random_packed"),
    (f"hmdc condense -o x --ipc 0 {SMALL}", 2, "hmdc: ipc is 0: it must be at least 1"),
    (f"hmdc condense -o x --recipe random --ipc 5000 {SMALL}",
     2, "hmdc: ipc 5000 needs 5000 distinct images of every class, but '8' has 140"),
    (f"hmdc condense -o x --recipe random --seed -1 {SMALL}", 2, "hmdc: seed is -1: it must be a whole number from 0"),
    ("hmdc condense -o x --dataset cats", 2, "hmdc: unknown dataset 'cats'"),
    ("hmdc condense -o x --dataset nothing", 2, "hmdc: nothing holds nothing: expected train/<class>/*"),
    ("hmdc condense -o x --dataset unsplit", 2, "or <class>/* alone, with a share of test images, e.g. --split 0.2"),
    ("hmdc condense -o x --dataset shapes", 2, "2.png is 20x16 pixels: bring all to squares of one size, as --image-size does"),
    (f"hmdc condense -o taken {SMALL}", 2, "(hmdc, seed 0), not this one"),
    (f"hmdc condense -o taken --recipe mtt {SMALL}", 2, "name another --output; nothing there is overwritten"),
    (f"hmdc condense -o x --recipe mtt --ipc 5000 {SMALL}", 2, "hmdc: ipc 5000 needs 5000 distinct images of every class"),
    (f"hmdc condense -o x --recipe mtt --seed -1 {SMALL}", 2, "hmdc: seed is -1: it must be a whole number from 0"),
    ("hmdc condense -o x --split 0.2", 2, "hmdc: digits has a test part of its own"),
    ("hmdc condense -o x --image-size 0", 2, "hmdc: image_size must be a positive whole number of pixels"),
    (f"hmdc condense -o x --image-size 7 {SMALL}", 2, "hmdc: factor 2 does not divide the image size 7"),
    ("hmdc condense -o x --test-images 0", 2, "hmdc: the number of test images must be a positive whole number, not 0"),
    ("hmdc evaluate absent.safetensors", 2, "hmdc: there is no absent.safetensors"),
    ("hmdc evaluate theirs.txt", 2, "hmdc: theirs.txt is none of the formats that are read"),
    ("hmdc evaluate noise.safetensors", 2, "hmdc: the condensed set has the classes cat, dog, bird, but digits has 0, 1, 2"),
    (f"hmdc evaluate digits.safetensors --models resnet81 {SMALL}", 2, "hmdc: unknown model 'resnet81'; near names: resnet18"),
    (f"hmdc evaluate digits.safetensors --length 0 {SMALL}", 2, "hmdc: updates is 0: it must be at least 1"),
    (f"hmdc evaluate digits.safetensors --seeds {SMALL}", 2, "hmdc: nothing to evaluate: at least one model and one seed"),
    ("hmdc evaluate digits.safetensors --image-size 8", 2, "hmdc: the condensed images have 16 px, those of digits 8 px: pass --image-size 16"),
    ("hmdc evaluate digits.safetensors --protocol best", 2, "invalid choice 'best' for argument '--protocol'"),
    ("hmdc score", 2, "hmdc: there is no set to score"),
    ("hmdc score digits.safetensors theirs.txt", 2, "hmdc: theirs.txt is none of the formats that are read"),
    (f"hmdc score digits.safetensors --models convnet3 --length 1 {SMALL} -o theirs.txt",
     2, "hmdc: theirs.txt exists: name another"),
    (f"hmdc score digits.safetensors --models convnet3 --length 1 {SMALL} -o theirs.txt/x",
     2, "hmdc: [Errno 20] Not a directory: 'theirs.txt/x'"),
    ("hmdc info absent.safetensors", 2, "hmdc: there is no file absent.safetensors"),
    ("hmdc info nothing", 2, "hmdc: there is no file nothing"),
    ("hmdc info cut.safetensors", 2, "hmdc: cut.safetensors is not a condensed set of hmdc, or cut off"),
    ("hmdc info bare.safetensors", 2, "hmdc: bare.safetensors is not a condensed set of hmdc, or cut off"),
    ("hmdc info listed.safetensors", 2, "hmdc: listed.safetensors is not a condensed set of hmdc, or cut off"),
    ("hmdc show digits.safetensors -o theirs.txt", 2, "hmdc: theirs.txt exists: name another"),
    ("hmdc show digits.safetensors -o x.xyz", 2, "hmdc: x.xyz does not end like a picture"),
    ("hmdc convert peers/notes.txt -o x", 2, "hmdc: peers/notes.txt is none of the formats that are read"),
    ("hmdc convert peers/data.pt -o theirs.txt", 2, "hmdc: theirs.txt exists: name another"),
    ("hmdc evaluate peers/data.pt --dataset digits", 2, "hmdc convert it first, with --factor, 2 for"),
    ("hmdc convert shapes/train -o x --dataset digits", 2, "bring all to squares of one size, as image_size does with a dataset's"),
    ("hmdc convert peers/data.pt -o x", 2, "does not say how many small images a stored one holds: pass --factor, 2 for"),
    ("hmdc convert peers/data.pt --factor 1 -o x", 2, "hmdc: peers/data.pt does not say which dataset it condenses: pass --dataset, one"),
    ("hmdc convert digits.safetensors --dataset digits -o x", 2, "says all of itself: leave out the dataset's name, factor, zca"),
    ("hmdc convert peers/data.pt --factor 0 --dataset cifar10 -o x", 2, "hmdc: factor is 0: it must be a whole number from 1 to"),
    ("hmdc convert peers/data.pt --factor 2 --dataset cifar10 -o theirs.txt/x",
     2, "hmdc: [Errno 20] Not a directory: 'theirs.txt/x'"),
    ("hmdc export noise.safetensors -o nothing", 2, "hmdc: nothing exists: name a folder that does not"),
    ("hmdc export packed.safetensors --to idc -o x", 2, "pass --anyway to write its images all the same"),
    ("hmdc export noise.safetensors --to zip -o x", 2, "invalid choice 'zip' for argument '--to'"),
    ("hmdc export noise.safetensors -o theirs.txt/x", 2, "hmdc: [Errno 20] Not a directory: 'theirs.txt'"),
    ("hmdc table --methods hmdcc", 2, "hmdc: unknown method 'hmdcc'"),
    ("hmdc table --methods", 2, "hmdc: methods is empty: name at least one"),
    ("hmdc table --seeds x", 2, "hmdc: seeds is 'x': condensations, and how often each is evaluated"),
    ("hmdc table --preset smoke --dataset cats", 2, "hmdc: unknown dataset 'cats'"),
    ("hmdc table --preset smoke --dataset unsplit", 2, "or <class>/* alone, with a share of test images, e.g. --split 0.2"),
    ("hmdc table --preset smoke --dataset unsplit --split 20", 2, "must lie between 0 and 1, not 20.0"),
    ("hmdc table --preset smoke --dataset shapes", 2, "2.png is 20x16 pixels: bring all to squares of one size, as --image-size does"),
    ("hmdc table --preset smoke --dataset shapes --image-size 0", 2, "hmdc: image_size must be a positive whole number of pixels"),
    ("hmdc table --preset smoke --ipc 500 --methods random", 2, "hmdc: ipc 500 needs 500 distinct images of every class"),
]

PARAMETER_ROWS = [
    ("epoch: 3", lambda: parameters(epoch=3), ValueError, "unknown parameter epoch: the notebook has preset, dataset"),
    ("preset: fast", lambda: parameters(preset="fast"),
     ValueError, "unknown preset 'fast': paper, gpu, laptop, budget, quick, smoke are served"),
    ("dataset: cats", lambda: parameters(dataset="cats"), ValueError, "unknown dataset 'cats'"),
    ("dataset: unsplit", lambda: parameters(dataset="unsplit"), FileNotFoundError, "with split=(fraction of test images, seed)"),
    ("image_size: big", lambda: parameters(image_size="big"), ValueError, "image_size is 'big': a whole number is needed"),
    ("image_size: 0", lambda: parameters(image_size=0),
     ValueError, "image_size must be a positive whole number of pixels or None, not 0"),
    ("image_size: 4", lambda: parameters(image_size=4), ValueError, "convnet3 cannot be used with 4 images of 4 px"),
    ("split: half", lambda: parameters(split="half"), ValueError, "split is 'half': a fraction of test images is needed"),
    ("split: 0.2,0,1", lambda: parameters(split="0.2,0,1"),
     ValueError, "split is '0.2,0,1': a fraction of test images is needed"),
    ("split: 20", lambda: parameters(split=20, dataset="unsplit"), ValueError, "must lie between 0 and 1, not 20.0"),
    ("ipc: ten", lambda: parameters(ipc="ten"), ValueError, "ipc is 'ten': a whole number is needed"),
    ("ipc: 1.5", lambda: parameters(ipc=1.5), ValueError, "ipc is '1.5': a whole number is needed"),
    ("ipc: 0", lambda: parameters(ipc=0), ValueError, "ipc is 0: it must be at least 1"),
    ("ipc: 1,10", lambda: parameters(ipc="1,10"), ValueError, "a table has one number of images per class"),
    ("ipc: 500", lambda: parameters(ipc=500), ValueError, "ipc 500 needs 500 distinct images of every class, but '8' has 140"),
    ("methods: hmdcc", lambda: parameters(methods="random,hmdcc"), ValueError, "unknown method 'hmdcc'"),
    ("methods: random,random", lambda: parameters(methods="random,random"), ValueError, "methods holds random more than once"),
    ("methods: ,", lambda: parameters(methods=","), ValueError, "methods is empty: name at least one"),
    ("models: resnet81", lambda: parameters(models="resnet81"), ValueError, "unknown model 'resnet81'; near names: resnet18"),
    ("models: convnet3,convnet3", lambda: parameters(models="convnet3,convnet3"), ValueError, "more than once"),
    ("weights: nowhere", lambda: parameters(weights="nowhere"), FileNotFoundError, "weights 'nowhere': no such folder or file"),
    ("protocol: best", lambda: parameters(protocol="best"),
     ValueError, "unknown protocol 'best': corrected, released, idc, plain are served"),
    ("seeds: a", lambda: parameters(seeds="a"), ValueError, "seeds is 'a': a whole number is needed"),
    ("seeds: -1", lambda: parameters(seeds=-1), ValueError, "seed is -1: it must be a whole number from 0 to 2**63 - 1"),
    ("seeds: 0x0", lambda: parameters(seeds="0x0"), ValueError, "seeds is '0x0': condensations, and how often each is evaluated"),
    ("seeds: 0,1,0", lambda: parameters(seeds="0,1,0"), ValueError, "seeds holds 0 more than once"),
    ("device: tpu", lambda: parameters(device="tpu"), ValueError, "device 'tpu' cannot be used here: pass 'cpu'"),
    ("a table of what has not run", lambda: results(parameters(out_dir="runs")),
     FileNotFoundError, "1 of 1 results are not there yet"),
]

ENVIRONMENT_ROWS = [
    ("a GPU where there is none: condense", lambda: condense(RANDOM, DATA, "run", device=MISSING_GPU), ValueError,
     f"device '{MISSING_GPU}' cannot be used here: pass 'cpu'"),
    ("a GPU where there is none: evaluate", lambda: judged(device=MISSING_GPU),
     ValueError, f"device '{MISSING_GPU}' cannot be used here"),
    ("a GPU where there is none: robust scores", lambda: robust_scores({"mine": SYN}, DATA, ["convnet3"], device=MISSING_GPU),
     ValueError, f"device '{MISSING_GPU}' cannot be used here"),
    ("a GPU where there is none: a notebook", lambda: parameters(device=MISSING_GPU),
     ValueError, f"device '{MISSING_GPU}' cannot be used here"),
    (f"hmdc condense -o x --recipe random --device {MISSING_GPU} {SMALL}",
     2, f"hmdc: device '{MISSING_GPU}' cannot be used here"),
    (f"hmdc table --preset smoke --device {MISSING_GPU}", 2, f"hmdc: device '{MISSING_GPU}' cannot be used here"),
    ("a device without numbers", lambda: condense(RANDOM, DATA, "run", device="meta"),
     ValueError, "device 'meta' cannot be used here"),
    ("a device whose library is not installed", lambda: condense(RANDOM, DATA, "run", device="hpu"),
     ValueError, "device 'hpu' cannot be used here"),
    ("no network: CIFAR-10", without_network(lambda: load_dataset("cifar10")),
     OSError, "cannot be downloaded (Network is unreachable): put its images"),
    ("no network: SVHN", without_network(lambda: load_dataset("svhn")), OSError, "svhn is not in data, and cannot be downloaded"),
    ("no network: MNIST", without_network(lambda: load_dataset("mnist")),
     OSError, "mnist is not in data, and cannot be downloaded"),
    ("no download allowed", lambda: load_dataset("cifar100", download=False),
     FileNotFoundError, "cifar100 is not in data, or not complete: pass download=True"),
    ("no network: ImageNet weights to condense with",
     without_network(lambda: with_member(model="resnet26", kwargs=(), weights="imagenet")),
     OSError, "the ImageNet weights of resnet26 are neither cached nor within reach (URLError)"),
    ("no network: ImageNet weights to evaluate on", without_network(lambda: judged(models=["resnet26"], weights="imagenet")),
     OSError, "pass weights='scratch', or a folder that holds resnet26.safetensors"),
    ("no network: ImageNet weights in a notebook", without_network(lambda: parameters(models="resnet26", weights="imagenet")),
     OSError, "the ImageNet weights of resnet26 are neither cached nor within reach"),
    ("weights of another model alone", lambda: judged(models=["resnet26"], weights="weights"),
     FileNotFoundError, "no weights of resnet26 in weights"),
    ("to condense", lambda: condense(RANDOM, DATA, "run", progress=False), OSError, f"{READ_ONLY}: 'run", read_only_disk),
    ("to save a set", lambda: SYN.save("x.safetensors"), OSError, f"{READ_ONLY}: 'x.safetensors'", read_only_disk),
    ("to export pictures", lambda: SYN.to_folder("pictures"), OSError, f"{READ_ONLY}: 'pictures", read_only_disk),
    ("to export IDC's file", lambda: to_idc(SYN, "data.pt"), OSError, f"{READ_ONLY}: 'data.pt'", read_only_disk),
    ("to keep a result", lambda: run(kept(), say=str), RuntimeError, READ_ONLY, read_only_disk),
    ("to keep a figure", lambda: save_figure("figures/table", pd.DataFrame({"a": [1]})),
     OSError, f"{READ_ONLY}: 'figures", read_only_disk),
    (f"hmdc condense -o x --recipe random {SMALL}", 1, f"{READ_ONLY}: 'x'", read_only_disk),
    ("hmdc show digits.safetensors -o x.png", 1, f"{READ_ONLY}: 'x.png'", read_only_disk),
    ("to condense", lambda: condense(RANDOM, DATA, "run", progress=False),
     PermissionError, "Permission denied: 'run", locked_folder),
    ("to save a set", lambda: SYN.save("x.safetensors"), PermissionError, "Permission denied: 'x.safetensors'", locked_folder),
    ("to export pictures", lambda: SYN.to_folder("pictures"), PermissionError, "Permission denied: 'pictures", locked_folder),
    (f"hmdc condense -o x --recipe random {SMALL}", 2, "Permission denied: 'x'", locked_folder),
    ("to condense", lambda: condense(RANDOM, DATA, "run", progress=False), OSError, f"{NO_ROOM}: 'run/run.json'", full_disk),
    ("to save a set", lambda: SYN.save("x.safetensors"), OSError, f"{NO_ROOM}: 'x.safetensors'", full_disk),
    ("to save a set over another", lambda: SYN.save("digits.safetensors"),
     OSError, f"{NO_ROOM}: 'digits.safetensors'", full_disk),
    ("to export pictures", lambda: SYN.to_folder("pictures"), OSError, f"{NO_ROOM}: 'pictures'", full_disk),
    ("to export IDC's file", lambda: to_idc(SYN, "data.pt"), OSError, f"{NO_ROOM}: 'data.pt'", full_disk),
    ("to export HMDC's file", lambda: to_hmdc(SYN, "synthetic_images.pth"),
     OSError, f"{NO_ROOM}: 'synthetic_images.pth'", full_disk),
    ("to export parquet", lambda: to_datasets(SYN, "parquet"), OSError, f"{NO_ROOM}: 'parquet'", full_disk),
    ("to keep a run's history", lambda: RunFolder("going", run_settings(SMOKE, DATA, 0)).keep_state({}, ROWS, (0, 0)), OSError,
     f"{NO_ROOM}: 'going/history.csv'", full_disk),
    ("to keep what lives of a run", lambda: write_state(Path("old/checkpoint.pt"), {"images": SYN.images}), OSError,
     f"{NO_ROOM}: 'old/checkpoint.pt'", full_disk),
    ("to keep a result", lambda: run(kept(), say=str), RuntimeError, f"{NO_ROOM}: 'kept/results/", full_disk),
    ("to keep a figure", lambda: save_figure("figures/table", pd.DataFrame({"a": range(99)})),
     OSError, f"{NO_ROOM}: 'figures/table.csv'", full_disk),
    ("to keep a measurement", lambda: save_cost(pd.DataFrame({"setting": ["x"] * 99}), "figures"),
     OSError, f"{NO_ROOM}: 'figures/cost-x.csv'", full_disk),
    (f"hmdc condense -o x.safetensors --recipe random --ipc 1 {SMALL}", 1, f"{NO_ROOM}: 'x.safetensors.run/run.json'", full_disk),
    ("hmdc show digits.safetensors -o x.png", 1, f"{NO_ROOM}: 'x.png'", full_disk),
    ("hmdc convert peers/data.pt --factor 1 --dataset cifar10 -o x", 1, f"{NO_ROOM}: 'x'", full_disk),
    ("hmdc export digits.safetensors -o pictures", 1, f"{NO_ROOM}: 'pictures'", full_disk),
    (f"hmdc score digits.safetensors --models convnet3 --length 1 {SMALL} -o x.csv", 1, f"{NO_ROOM}: 'x.csv'", full_disk),
]


# --- how a row is tried ------------------------------------------------------------------------------------------------

def command(line: str) -> int:
    return main(shlex.split(line)[1:])


@functools.cache
def help_of(name: str) -> str:
    """What `hmdc <name> --help` says; of no command, what `hmdc --help` does."""
    with pytest.raises(SystemExit), redirect_stdout(io.StringIO()) as said:
        main([name, "--help"])
    return said.getvalue()


ARGUMENT = re.compile(r"(pass|with|and|or|leave out) [a-z_]+=|pass [a-z]+_[a-z]+|`out`|hmdc\.\w+\.")  # of the library


class Case(NamedTuple):
    area: str
    asked: str
    call: Callable
    error: type[Exception] | int  # what is raised, or for a command its exit status
    says: str
    place: Callable = plain_folder

    def __str__(self) -> str:
        return f"{self.area}: {self.asked} {WHERE[self.place]}".strip()


def as_case(area: str, row: tuple) -> Case:
    asked, *others = row
    if asked.startswith("hmdc"):
        others.insert(0, functools.partial(command, asked))
    return Case(area, asked, *others)


WHERE = {plain_folder: "", read_only_disk: "on a read-only disk", locked_folder: "in a folder that may not be written to",
         full_disk: "on a full disk"}
TABLE = {"data": DATA_ROWS, "recipes": RECIPE_ROWS, "files": FILE_ROWS, "command line": COMMAND_ROWS,
         "notebooks' parameters": PARAMETER_ROWS, "environment": ENVIRONMENT_ROWS}
CASES = [as_case(area, row) for area, rows in TABLE.items() for row in rows]


class Told(NamedTuple):
    error: type[BaseException] | int | None  # as in a Case; None: nothing was wrong
    message: str
    output: str = ""  # of a command


def told(call: Callable) -> Told:
    """What a call raises, or with what a command ends."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = call()
        except SystemExit as end:
            status = end.code
        except Exception as error:
            return Told(type(error), str(error))
    is_command = isinstance(call, functools.partial)
    return Told(status, plain(err.getvalue()), out.getvalue()) if is_command else Told(None, "")


def plain(text: str) -> str:
    """A message without the frame that is drawn around it on a terminal."""
    return " ".join(re.sub(r"[─│╭╮╰╯├┤]|-{3,}", " ", text).split())


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, every folder with None."""
    found: dict[str, bytes | None] = {}
    for below, folders, files in os.walk(folder):
        found |= {os.path.join(below, name): None for name in folders}
        found |= {path: Path(path).read_bytes() for path in (os.path.join(below, name) for name in files)}
    return found


@pytest.fixture(scope="module")
def furniture(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("furniture")
    furnish(folder)
    return folder


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # of a width of 0
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_refused_and_nothing_is_touched(case: Case, furniture, tmp_path):
    with case.place(furniture, tmp_path / "here") as here:
        before = contents(here)
        found, after = told(case.call), contents(here)
    if here == furniture and after != before:  # or what this case left would trouble the next
        shutil.rmtree(furniture)
        furnish(furniture)
    assert found.error == case.error, found
    assert case.says in found.message
    assert "\n" not in found.message or "\ncannot read the image" in found.message, "one sentence says it; or one for each image"
    assert not found.output
    if isinstance(case.error, int):
        assert not ARGUMENT.search(found.message), "a command is told of its options"
    if isinstance(case.error, int) and found.message.startswith("hmdc: "):  # ours, and not the parser's
        asked = "convert" if "hmdc convert it first" in found.message else case.asked.split()[1]
        options = re.findall(r"(?:pass|another|first, with|e\.g\.|as) (--[a-z-]+)", found.message)
        assert all(option in help_of(asked) for option in options), "it has what it is told to use"
    assert sorted(after) == sorted(before)
    assert [path for path in before if after[path] != before[path]] == []


# --- when there is room again ------------------------------------------------------------------------------------------

def lasting(path: Path) -> object:
    """Of a file, what is the same whenever it is made: without times."""
    if path.suffix == ".safetensors" and path.parts[0] in ("run", "x.safetensors", "x.safetensors.run"):
        return SyntheticSet.load(path)
    if path.parent == Path("kept/results"):
        return json.loads(path.read_text())["accuracy"]
    return pd.read_csv(path).drop(columns="seconds").to_csv() if path.name == "x.csv" else path.read_bytes()


def made() -> dict[Path, object]:
    """All files of a run or an export, and those around."""
    files = (path for path in Path().rglob("*") if path.is_file() and path.name != "ballast" and "tensorboard" not in path.parts)
    return {path: lasting(path) for path in files}


@pytest.mark.parametrize("case", [each for each in CASES if each.place is full_disk], ids=str)
def test_with_room_again_the_same_call_does_what_it_would_have_done(case: Case, furniture, tmp_path):
    with disk_with(0, furniture, tmp_path / "full") as make_room:
        assert told(case.call).error == case.error
        make_room()
        assert not told(case.call).error
        ours = made()
    with inside(copied(furniture, tmp_path / "calm")):
        assert not told(case.call).error
        assert ours == made()


def test_a_run_during_which_the_disk_fills_goes_on_to_the_same_bits(furniture, tmp_path, monkeypatch):
    monkeypatch.setattr(Progress, "save_every", 0.0)
    call = functools.partial(condense, SMOKE, DATA, "run", device="cpu", progress=False)
    with disk_with(64 << 10, furniture, tmp_path / "full") as make_room:
        before = made()
        with pytest.raises(OSError, match=f"{NO_ROOM}: 'run/checkpoint.pt'"):
            call()
        after = made()
        assert {path: after[path] for path in before} == before and not [path for path in after if path.suffix == ".partial"]
        make_room()
        call()
        ours = made()
    with inside(copied(furniture, tmp_path / "calm")):
        call()
        assert ours == made()


@pytest.mark.skipif(not find_spec("tensorboard"), reason="TensorBoard is not installed")
def test_a_run_goes_on_where_tensorboard_finds_no_room(furniture, tmp_path, capfd):
    """The disk of its folder alone is full; the run's has room."""
    if not can_mount():
        pytest.skip("no disk can be mounted here")
    run = tmp_path / "run"
    RunFolder(run, run_settings(SMOKE, DATA, 0))
    with disk_with(0, furniture / "nothing", run / "tensorboard"):
        with pytest.warns(UserWarning, match=f"{NO_ROOM}: .*from here the run goes on without TensorBoard") as told:
            syn = condense(SMOKE, DATA, run, device="cpu", progress=False)
    assert len(told) == 1 and capfd.readouterr().err == ""  # no thread dies aloud
    assert syn == condense(SMOKE, DATA, device="cpu", progress=False)
    assert {path.name for path in run.iterdir()} >= {"history.csv", "snapshots", "synthetic.safetensors"}


# --- printed -----------------------------------------------------------------------------------------------------------

def printed(case: Case, furniture: Path, elsewhere: Path) -> str:
    """A row of the table in Markdown, tried anew."""
    try:
        with case.place(furniture, elsewhere):
            found = told(case.call)
        kind = found.error.__name__ if isinstance(found.error, type) else f"exit status {found.error}"
        said = f"{kind}: {plain(found.message)}"
    except pytest.skip.Exception as skipped:
        said = f"not tried here: {skipped}"
    asked = f"`{case.asked}`" if isinstance(case.error, int) else case.asked
    return f"| {case.area} | {asked} {WHERE[case.place]} | {said} |".replace("<", "&lt;")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        everything = Path(scratch, "furniture")
        furnish(everything)
        print("| area | input | message it gets |\n|---|---|---|")
        for number, each in enumerate(CASES):
            print(printed(each, everything, Path(scratch, str(number))))
