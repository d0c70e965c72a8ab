"""Data from end to end: folders as people have them, torchvision's files and downloads, bad input, real CIFAR-10."""

import functools
import gzip
import hashlib
import http.server
import os
import pickle
import socket
import struct
import tarfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from hmdc.data import DATASETS, load_dataset

REPOSITORY = Path(__file__).resolve().parents[1]


# --- folders ---------------------------------------------------------------------------------------------------------

def make_folder(root: Path, sizes: dict[str, int], pixels: int = 16) -> Path:
    """A folder of noise in the ImageFolder layout: `sizes` train images and two test images per class."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, n in sizes.items():
            (root / part / name).mkdir(parents=True)
            for i in range(n if part == "train" else 2):
                noise = generator.integers(256, size=(pixels, pixels, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / part / name / f"{i:03}.png")
    return root


def test_three_unequal_classes_with_spaces_and_accents(tmp_path):
    sizes = {"été indien": 3, "Œuvre d'art": 7, "plain": 1}
    data = load_dataset(make_folder(tmp_path / "mes images", sizes))
    assert data.name == "mes images"
    assert data.classes == tuple(sorted(sizes))
    assert data.class_sizes == [sizes[name] for name in data.classes]
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_seventeen_classes(tmp_path):
    data = load_dataset("letters", root=make_folder(tmp_path / "letters", {f"{c:02}": 2 for c in range(17)}).parent)
    assert data.num_classes == 17 and data.class_sizes == [2] * 17
    assert data.balanced_test(17).test_labels.tolist() == list(range(17))
    assert data.holdout(0.5, seed=3).class_sizes == [1] * 17


def test_all_kinds_of_images_in_one_class(tmp_path):
    root = make_folder(tmp_path / "mixed", {"a": 1, "b": 1})
    grey = Image.new("L", (16, 16), 100)
    palette = grey.convert("P")
    kinds = {"grey.png": grey, "palette.gif": palette, "bits.bmp": Image.new("1", (16, 16)),
             "rgb.webp": grey.convert("RGB"), "alpha.png": grey.convert("RGBA"),
             "grey-alpha.PNG": grey.convert("LA"), "print.JPG": grey.convert("CMYK"),
             "deep.tif": Image.fromarray(np.full((16, 16), 25700, np.uint16)), "photo.jpeg": grey}
    for name, image in kinds.items():
        image.save(root / "train" / "b" / name)
    data = load_dataset(root)
    assert data.class_sizes == [1, 1 + len(kinds)]
    values = data.by_class(1).float().mean((1, 2, 3)).tolist()
    names = sorted(["000.png", *kinds])
    for name, value in zip(names, values):
        if name not in ("000.png", "bits.bmp"):
            assert value == pytest.approx(100, abs=3), name


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_a_photograph_on_its_side_is_turned(tmp_path, suffix):
    root = make_folder(tmp_path / "photos", {"a": 1, "b": 1})
    photo = Image.new("RGB", (16, 16), "white")
    photo.paste("black", (0, 0, 16, 8))  # the upper half
    exif = photo.getexif()
    exif[0x0112] = 6  # to be turned clockwise: what is above comes to the right
    photo.save(root / "train" / "a" / f"turned.{suffix}", exif=exif)
    turned = load_dataset(root).by_class(0)[-1].float()
    assert turned[:, :, :8].mean() > 250 and turned[:, :, 8:].mean() < 5


def test_links_and_subfolders_are_followed_and_hidden_ones_passed_over(tmp_path):
    root = make_folder(tmp_path / "set", {"a": 1, "b": 1})
    (root / "train" / "a" / "more").mkdir()
    (root / "train" / "a" / "more" / "1.png").symlink_to(root / "train" / "a" / "000.png")
    (root / "train" / "a" / ".cache").mkdir()
    (root / "train" / "a" / ".cache" / "2.png").write_bytes(b"litter")
    (root / "train" / ".DS_Store").write_bytes(b"litter")
    assert load_dataset(root).class_sizes == [2, 1]
    (tmp_path / "linked").symlink_to(root)
    assert load_dataset("linked", root=tmp_path).name == "linked"


def test_sizes_that_differ_ask_for_image_size(tmp_path):
    root = make_folder(tmp_path / "set", {"a": 3, "b": 3})
    Image.new("RGB", (20, 10)).save(root / "test" / "b" / "wide.png")
    with pytest.raises(ValueError, match=r"000\.png is 16x16 and .*wide\.png is 20x10 pixels: bring all to squares of one size, as image_size does"):
        load_dataset(root)
    data = load_dataset(root, image_size=8)
    assert data.image_size == 8 and data.test_images.shape == (5, 3, 8, 8)


def test_images_that_are_not_square_ask_for_image_size(tmp_path):
    root = make_folder(tmp_path / "set", {"a": 1, "b": 1})
    for file in root.rglob("*.png"):
        Image.new("RGB", (20, 10)).save(file)
    with pytest.raises(ValueError, match="is 20x10 pixels, not square: bring all to squares of one size"):
        load_dataset(root)
    assert load_dataset(root, image_size=12).train_images.shape == (2, 3, 12, 12)


def test_large_images_are_read_by_several_threads_in_order(tmp_path):
    root = make_folder(tmp_path / "set", {"a": 70, "b": 1}, pixels=80)
    for i, file in enumerate(sorted((root / "train" / "a").iterdir())):
        Image.new("L", (80, 80), i).save(file)
    assert load_dataset(root, image_size=4).by_class(0)[:, 0, 0, 0].tolist() == list(range(70))


def test_an_unreadable_image_is_named(tmp_path):
    root = make_folder(tmp_path / "set", {"a": 2, "b": 2})
    whole = (root / "train" / "b" / "001.png").read_bytes()
    for damage in (b"", b"text", whole[:100], whole[:len(whole) // 2]):
        (root / "train" / "b" / "001.png").write_bytes(damage)
        with pytest.raises(OSError, match=r"cannot read the image .*b.001\.png"):
            load_dataset(root)


def test_bad_layouts_are_named(tmp_path):
    root = make_folder(tmp_path / "set", {"a": 1, "b": 1})
    (root / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="same classes, but only train has empty"):
        load_dataset(root)
    (root / "test" / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*train.empty, .*test.empty"):
        load_dataset(root)
    (root / "test").rename(root / "val")
    with pytest.raises(FileNotFoundError, match="holds train, val: expected"):
        load_dataset(root)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="holds nothing: expected"):
        load_dataset("nothing", root=tmp_path)
    (tmp_path / "one" / "train" / "a").mkdir(parents=True)
    (tmp_path / "one" / "test" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="at least two folders, one for each class, not a$"):
        load_dataset(tmp_path / "one")


# --- names and arguments ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["cifar", "CIFAR10", "no/such/folder", Path("nowhere")])
def test_an_unknown_name_gets_the_known_ones(name):
    with pytest.raises(ValueError, match="unknown dataset .*" + ", ".join(DATASETS) + ".*path to a folder"):
        load_dataset(name)


@pytest.mark.parametrize("size", [0, -1, 16.0, "16", True])
def test_image_size_is_checked_before_anything_is_read(size):
    with pytest.raises(ValueError, match="image_size must be a positive whole number"):
        load_dataset("cifar10", root="nowhere", image_size=size)


def test_digits_are_the_same_everywhere():
    data = load_dataset("digits")
    assert (len(data.train_images), len(data.test_images), data.image_size) == (1442, 355, 16)
    assert data.train_images.dtype == torch.uint8 and data.train_images.max() == 255
    assert load_dataset("digits", image_size=8).fingerprint == "9412a8b9057c10f6"


# --- torchvision's files ---------------------------------------------------------------------------------------------

def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(folder: Path, files: dict[str, int], key: str, meta: dict) -> None:
    """Files in CIFAR's own format, `files` images each: image i has the value i, label i modulo the classes."""
    folder.mkdir(parents=True)
    classes = len(meta[next(iter(meta))])
    for name, n in files.items():
        pixels = np.repeat(np.arange(n, dtype=np.uint8)[:, None], 3072, axis=1)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, key: [i % classes for i in range(n)]}))
    (folder / ("batches.meta" if key == "labels" else "meta")).write_bytes(pickle.dumps(meta))


def trust(monkeypatch, source: type, folder: Path) -> None:
    """Make one of torchvision's CIFAR classes accept the files in `folder` as the real ones."""
    for attribute in ("train_list", "test_list"):
        files = [name for name, _ in getattr(source, attribute)]
        monkeypatch.setattr(source, attribute, [[name, md5(folder / name)] for name in files])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(folder / source.meta["filename"])})


CIFAR10_FILES = {**{f"data_batch_{i}": 20 for i in range(1, 6)}, "test_batch": 10}


@pytest.fixture
def cifar10_files(tmp_path, monkeypatch):
    """A small stand-in for CIFAR-10's files, which torchvision accepts."""
    folder = tmp_path / "made" / "cifar-10-batches-py"
    write_cifar(folder, CIFAR10_FILES, "labels", {"label_names": [f"thing {c}" for c in range(10)]})
    trust(monkeypatch, torchvision.datasets.CIFAR10, folder)
    return folder


def test_cifar10_as_torchvision_stores_it(cifar10_files):
    data = load_dataset("cifar10", root=cifar10_files.parent, download=False)
    assert data.classes[3] == "thing 3" and data.class_sizes == [10] * 10
    assert data.train_images[:, 0, 0, 0].tolist() == list(range(20)) * 5
    assert data.test_labels.tolist() == list(range(10))
    assert load_dataset("cifar10", root=cifar10_files.parent, image_size=16).image_size == 16


def test_cifar100_as_torchvision_stores_it(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    write_cifar(folder, {"train": 200, "test": 100}, "fine_labels", {"fine_label_names": [f"{c}" for c in range(100)]})
    trust(monkeypatch, torchvision.datasets.CIFAR100, folder)
    data = load_dataset("cifar100", root=tmp_path, download=False)
    assert data.num_classes == 100 and data.class_sizes == [2] * 100


@pytest.mark.parametrize("name, folder, first",
                         [("mnist", "MNIST", "0"), ("fashion_mnist", "FashionMNIST", "T-shirt/top")])
def test_mnist_as_torchvision_stores_it(tmp_path, name, folder, first):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 20), ("t10k", 10)):
        pixels = np.repeat(np.arange(n, dtype=np.uint8), 28 * 28).tobytes()
        files = {f"{part}-images-idx3-ubyte": struct.pack(">4i", 2051, n, 28, 28) + pixels,
                 f"{part}-labels-idx1-ubyte": struct.pack(">2i", 2049, n) + bytes(i % 10 for i in range(n))}
        for file, content in files.items():
            (raw / file).write_bytes(content)
            (raw / f"{file}.gz").write_bytes(gzip.compress(content))
    data = load_dataset(name, root=tmp_path, download=False)
    assert data.classes[0] == first and data.train_images.shape == (20, 3, 28, 28)
    assert data.train_images[:, 2, 5, 5].tolist() == list(range(20))
    assert load_dataset(name, root=tmp_path, image_size=32).image_size == 32

    (raw / "t10k-images-idx3-ubyte").write_bytes(b"damaged")
    with pytest.raises(OSError, match=f"{name} .*not complete: pass download=True"):
        load_dataset(name, root=tmp_path, download=False)


def test_svhn_as_torchvision_stores_it(tmp_path, monkeypatch):
    from scipy.io import savemat

    split = {}
    for part, n in (("train", 20), ("test", 10)):
        pixels = np.broadcast_to(np.arange(n, dtype=np.uint8), (32, 32, 3, n))
        labels = np.array([i % 10 or 10 for i in range(n)], np.uint8)[:, None]  # SVHN's files call the digit 0 "10"
        savemat(tmp_path / f"{part}_32x32.mat", {"X": pixels, "y": labels})
        split[part] = ["http://127.0.0.1:9/", f"{part}_32x32.mat", md5(tmp_path / f"{part}_32x32.mat")]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", split)
    data = load_dataset("svhn", root=tmp_path, download=False)
    assert data.classes == tuple("0123456789") and data.train_labels.tolist() == list(range(10)) * 2
    assert data.train_images[:, 1, 3, 4].tolist() == list(range(20))


# --- downloads -------------------------------------------------------------------------------------------------------

@pytest.fixture
def server(tmp_path):
    """A web server over an empty folder: (its address, the folder)."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    (tmp_path / "served").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", tmp_path / "served"
        running.shutdown()


def test_cifar10_is_downloaded_once(cifar10_files, server, tmp_path, monkeypatch):
    address, served = server
    archive = served / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(cifar10_files, cifar10_files.name)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{address}/cifar.tar.gz")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(archive))
    data = load_dataset("cifar10", root=tmp_path / "data")
    assert len(data.train_images) == 100
    archive.unlink()
    assert load_dataset("cifar10", root=tmp_path / "data").fingerprint == data.fingerprint


@pytest.mark.parametrize("content", [None, b"an error page"], ids=["not found", "damaged"])
def test_a_download_that_fails_says_what_to_do(cifar10_files, server, tmp_path, monkeypatch, content):
    address, served = server
    if content:
        (served / "cifar.tar.gz").write_bytes(content)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{address}/cifar.tar.gz")
    with pytest.raises(OSError, match="cifar10 could not be downloaded .*delete its files .*try again"):
        load_dataset("cifar10", root=tmp_path / "data")


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x", "http://no-such-host.invalid/x"])
def test_a_server_out_of_reach_is_said_quickly(tmp_path, monkeypatch, address):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", address)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
    for name in ("cifar10", "mnist"):
        start = time.perf_counter()
        with pytest.raises(OSError, match=f"{name} is not in .*cannot be downloaded .*train/<class>.*digits"):
            load_dataset(name, root=tmp_path)
        assert time.perf_counter() - start < 20
    assert not list(tmp_path.iterdir())


def test_a_silent_server_is_given_up(tmp_path, monkeypatch):
    patient = urllib.request.urlopen
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: patient(request, timeout=timeout / 25))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        with pytest.raises(OSError, match=r"cifar10 is not in .*cannot be downloaded \(timed out\)"):
            load_dataset("cifar10", root=tmp_path)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_nothing_is_downloaded_unless_allowed(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"{name} is not in .*pass download=True"):
        load_dataset(name, root=tmp_path, download=False)


# --- real CIFAR-10 ---------------------------------------------------------------------------------------------------

def cifar10_test_part(folder: Path) -> Path:
    """CIFAR-10's real test images as a folder of files, or a skip."""
    where = REPOSITORY / os.environ.get("HMDC_CIFAR10", "../shared/data")
    archive = where if where.is_file() else where / "cifar10-test.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no cifar10-test.tar.gz in {where}: set HMDC_CIFAR10 to the folder that holds it")
    with tarfile.open(archive) as file:
        file.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 and older have none
        file.extractall(folder)
    return folder / "cifar10"


def test_real_cifar10(tmp_path):
    root = cifar10_test_part(tmp_path)
    (root / "train").symlink_to(root / "test")  # the test part alone is enough, and quick
    data = load_dataset("cifar10", root=tmp_path)
    assert data.classes == tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
    assert data.class_sizes == [1000] * 10 and data.image_size == 32
    # Known statistics of the 10,000 test images.
    assert data.statistics.mean.tolist() == pytest.approx([0.4942, 0.4851, 0.4504], abs=2e-4)
    assert data.statistics.std.tolist() == pytest.approx([0.2467, 0.2429, 0.2616], abs=2e-4)
    assert data.balanced_test(2000).test_labels.bincount().tolist() == [200] * 10
    assert data.holdout(0.1, seed=0).class_sizes == [900] * 10
    assert torch.equal(data.train_images, data.test_images)
