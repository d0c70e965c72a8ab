"""From a folder of ordinary image files to a condensed set, its evaluation, and back to a folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hmdc import Member, SyntheticSet, condense, evaluate, load_dataset, recipe
from hmdc.experiment import Experiment
from hmdc.parameters import resolve

PIXELS = 16
SMALL = Member("convnet3", kwargs={"width": 8})


def picture(label: int, generator: np.random.Generator) -> Image.Image:
    """A bright bar, whose place and direction tell the class in every kind of file, on coloured noise."""
    pixels = generator.integers(120, size=(PIXELS, PIXELS, 3), dtype=np.uint8)
    bar = slice(label // 2 % 8 * 2, label // 2 % 8 * 2 + 3)
    pixels[(bar, slice(None)) if label % 2 else (slice(None), bar)] = 235 - 20 * (label // 16)
    return Image.fromarray(pixels)


def transparent(image: Image.Image) -> Image.Image:
    """With a corner that cannot be seen."""
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 4, 4))
    image = image.copy()
    image.putalpha(alpha)
    return image


# How people store images: suffix, and what is made of an RGB picture before it is saved.
KINDS = [
    ("png", lambda image: image.convert("L")),
    ("gif", lambda image: image.quantize(32)),
    ("png", lambda image: image.quantize(16)),
    ("png", transparent),
    ("jpg", lambda image: image),
    ("webp", lambda image: image),
]


def make_folder(root: Path, sizes: dict[str, int], test_images: int = 6) -> Path:
    """`sizes` train images per class, all kinds in turn; the test part the same way."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, name in enumerate(sorted(sizes)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(sizes[name] if part == "train" else test_images):
                suffix, convert = KINDS[(i + label) % len(KINDS)]
                convert(picture(label, generator)).save(folder / f"image {i}.{suffix}")
    return root


THREE = {"chien loup": 7, "éléphant": 21, "zèbre d'Afrique": 12}
SEVENTEEN = {f"classe n° {c:02}": 4 + c % 5 for c in range(17)}


def assert_good(syn: SyntheticSet, sizes: dict[str, int], ipc: int) -> None:
    assert syn.classes == tuple(sorted(sizes))
    assert syn.images.shape == (len(sizes), ipc, 3, PIXELS, PIXELS) and syn.images.isfinite().all()
    assert syn.images.min() >= 0 and syn.images.max() <= 1


def assert_round_trip(syn: SyntheticSet, path: Path) -> None:
    """The file holds everything, under a name with spaces and accents too."""
    syn.save(path)
    kept = SyntheticSet.load(path)
    assert kept == syn and kept.meta == syn.meta


def assert_folder(syn: SyntheticSet, source: Path, to: Path) -> None:
    """Written as a train part, beside the real test part, the condensed set is a dataset like any other."""
    syn.to_folder(to / "train")
    shutil.copytree(source / "test", to / "test")
    data, (images, labels) = load_dataset(to), syn.unpack()
    assert data.classes == syn.classes and torch.equal(data.train_labels, labels)
    assert (data.train_images / 255 - images).abs().max() <= 1 / 255


@pytest.mark.parametrize("sizes", [THREE, SEVENTEEN], ids=["3 classes", "17 classes"])
@pytest.mark.parametrize("method", ["hmdc", "dream"])
def test_a_folder_is_condensed_and_evaluated(tmp_path, sizes, method):
    root = make_folder(tmp_path / "mes animaux", sizes)
    data = load_dataset("mes animaux", root=tmp_path)
    assert data.classes == tuple(sorted(sizes)) and data.class_sizes == [sizes[name] for name in data.classes]

    out = tmp_path / "résultats de l'été"
    syn = condense(recipe(method, ipc=1, preset="smoke"), data, out=out, progress=False)
    start = condense(recipe("kmeans_packed", ipc=1, preset="smoke"), data, progress=False)
    assert_good(syn, sizes, ipc=1)
    assert (syn.images - start.images).abs().max() > 1e-4  # the images have moved
    assert torch.equal(SyntheticSet.load(out / "synthetic.safetensors").images, syn.images)

    assert_round_trip(syn, tmp_path / "jeu condensé.safetensors")
    assert_folder(syn, root, tmp_path / "exporté")
    frame = evaluate(syn, data, [SMALL], [0], length=2, progress=False)
    assert len(frame) == 1 and frame.accuracy.between(0, 100).all()


def test_what_a_folder_shows_is_learned(tmp_path):
    data = load_dataset(make_folder(tmp_path / "bars", THREE, test_images=12))
    syn = condense(recipe("hmdc", ipc=1, preset="smoke"), data, progress=False)
    frame = evaluate(syn, data, [SMALL], [0], length=60, progress=False)
    assert frame.accuracy.item() > 60  # chance is 33


def test_a_last_batch_of_one_image_does_not_stop_a_member_with_batch_normalisation(tmp_path):
    data = load_dataset(make_folder(tmp_path / "odd", {"a": 4, "b": 6, "c": 7}))
    members = (SMALL, Member("test_resnet"))
    smoke = recipe("hmdc", ipc=1, preset="smoke", members=members, train_batch=16)  # 17 images: 16 and 1
    assert_good(condense(smoke, data, progress=False), {"a": 4, "b": 6, "c": 7}, ipc=1)


def test_images_of_many_sizes_at_one_image_size(tmp_path):
    root = make_folder(tmp_path / "photos", {"a": 4, "b": 5})
    for i, file in enumerate(sorted(root.rglob("*.jpg"))):
        Image.open(file).resize((20 + i, 30)).save(file)
    data = load_dataset(root, image_size=12)
    syn = condense(recipe("two_models", ipc=1, preset="smoke", inner=1), data, progress=False)
    assert syn.images.shape == (2, 1, 3, 12, 12)
    assert evaluate(syn, data, [SMALL], [0], length=1, progress=False).accuracy.between(0, 100).all()


def test_what_to_folder_writes_load_dataset_reads(tmp_path):
    data = load_dataset(make_folder(tmp_path / "pets", THREE))
    syn = condense(recipe("random", ipc=4), data, progress=False)
    syn.to_folder(tmp_path / "condensed")
    back = load_dataset(tmp_path / "condensed", split=(0.25, 0))
    images, labels = syn.unpack()
    assert back.classes == syn.classes
    assert len(back.train_labels) + len(back.test_labels) == len(labels)
    written = {tuple(image.flatten().tolist()) for image in (255 * images).round().byte()}
    assert {tuple(image.flatten().tolist()) for part in (back.train_images, back.test_images) for image in part} == written


def test_a_notebook_takes_what_its_errors_ask_for(tmp_path):
    """Photographs of any shape in one folder a class: each error names a parameter, and the notebook has it."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "my_photos" / name).mkdir(parents=True)
        for i in range(12):
            picture(label, generator).resize((24 + i, 20)).save(tmp_path / "my_photos" / name / f"{i}.jpg")
    asked = {"preset": "smoke", "dataset": str(tmp_path / "my_photos"), "methods": "hmdc", "ipc": 1, "out_dir": str(tmp_path)}
    with pytest.raises(FileNotFoundError, match=r"split=\(fraction of test images, seed\)"):
        Experiment.of(resolve(asked, ()))
    with pytest.raises(ValueError, match="not square: bring all to squares of one size"):
        Experiment.of(resolve(asked | {"split": 0.25}, ()))
    experiment = Experiment.of(resolve(asked | {"split": 0.25, "image_size": "16"}, ()))
    assert experiment.data.image_size == 16 and len(experiment.data.test_labels) == 6 and experiment.data.class_sizes == [9, 9]
