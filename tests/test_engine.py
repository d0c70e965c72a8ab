"""The engine that takes all classes in one function, held to the plain one: every recipe, any number of classes at a time."""

import dataclasses

import pytest
import torch

from hmdc.data import ImageData
from hmdc.engine import Batched, Loop
from hmdc.ensemble import Ensemble
from hmdc.experts import train_experts
from hmdc.paradigms import CharacteristicMatching
from hmdc.pixels import Pixels
from hmdc.provenance import Streams, stream
from hmdc.real import Pool, initial_images
from hmdc.recipes import METHODS, recipe
from hmdc.settings import Experts
from hmdc.trainer import balance_for

CPU = torch.device("cpu")
SMOKE = {name: recipe(name, ipc=1, preset="smoke", weights="scratch") for name in METHODS}
SEEN = {}  # recipes that differ in what an engine sees, by that
for name, made in SMOKE.items():
    if made.length.outer and made.precision == "fp32":
        SEEN.setdefault((made.members, made.targets, made.real.augment, made.store.factor, type(made.length.fresh)), name)
# contenders are targets and members that others have, in other company; one has a test of its own
KINDS = [pytest.param(name, marks=[pytest.mark.slow] * (METHODS[name].__module__ == "hmdc.contenders" and name != "hmdc_characteristic"))
         for name in SEEN.values() if name != "hmdc_imagenet"]


def noise(n_classes: int) -> ImageData:
    images = torch.randint(256, (20 * n_classes, 3, 16, 16), dtype=torch.uint8, generator=stream(0, "engine test"))
    labels = torch.arange(n_classes).repeat(20)
    names = tuple(map(str, range(n_classes)))
    return ImageData("noise", names, images, labels, images[:n_classes], labels[:n_classes])


class Stage:
    """Networks, targets, images and batches of a recipe, as a run has them at its first step."""

    def __init__(self, name: str, n_classes: int, folder, device: torch.device = CPU):
        self.recipe, self.data, self.streams = SMOKE[name], noise(n_classes), Streams(0)
        if isinstance(self.recipe.length.fresh, Experts):
            fresh = dataclasses.replace(self.recipe.length.fresh, folder=str(folder))
            self.recipe = self.recipe.replace(fresh=fresh, pool_per_class=20)
            train_experts(self.recipe, self.data, "cpu", lambda line: None)
        self.pool = Pool(self.data, self.recipe.real, self.streams["pool"], device)
        self.pixels = Pixels(initial_images(self.recipe.store, self.pool, self.streams["initial"]), self.recipe, self.data)
        self.ensemble = Ensemble(self.recipe, self.data, device)
        self.ensemble.refresh(self.streams["members"])
        self.ensemble.accuracy.fill_(40)
        self.targets = [target for wish in self.recipe.targets for target in wish.bind(self.ensemble)]
        self.balance = balance_for(self.recipe, self.targets, n_classes, device)
        images = self.data.statistics.normalise(self.data.train_images).to(device)
        classes = [images[self.data.train_labels == c] for c in range(n_classes)]
        self.real, self.synthetic = [x[:6] for x in classes], [x[6:9] for x in classes]

    def engine(self, kind):
        return kind(self.pool.device, self.recipe, self.ensemble, self.targets)

    def inner_step(self, engine, inner: int) -> None:
        """As `condense` takes it."""
        real = self.pool.choose(inner, self.ensemble, engine, self.streams)
        self.pixels.step(real, engine, self.balance, inner == 0, self.streams["matching"])
        source = self.pixels if self.recipe.training.on == "synthetic" else self.pool
        engine.train(self.ensemble, source.batches(self.recipe.training, self.streams["training"]))


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


@pytest.mark.parametrize("n_classes", [3, 7])
@pytest.mark.parametrize("name", KINDS)
def test_all_classes_at_once_give_what_each_gives(name, n_classes, tmp_path):
    stage = Stage(name, n_classes, tmp_path)
    loop, batched = stage.engine(Loop), stage.engine(Batched)
    n_rows = len(loop.match(stage.real, stage.synthetic)[1])
    weights = torch.rand(n_rows, len(stage.targets), generator=stream(0, "weights"))
    for asked in (None, weights)[n_classes == 7 :]:  # every target apart, which takes longer, of three classes
        slopes, values = loop.match(stage.real, stage.synthetic, asked)
        for chunk in (1, 2, None):
            batched.chunk = chunk
            found, found_values = batched.match(stage.real, stage.synthetic, asked)
            ours, theirs = (torch.stack(list(each)).unbind(1 if asked is None else 0) for each in (found, slopes))
            assert max(map(apart, ours, theirs)) < 1e-5  # of every target, or of every class
            assert apart(found_values.nan_to_num(), values.nan_to_num()) < 1e-5


@pytest.mark.filterwarnings("error:going on without the quick way")
def test_a_deep_network_with_batch_norm_gives_the_same_in_double(tmp_path, monkeypatch):
    """Slopes of a fresh EfficientNet are some 10^8, and float32 rounds them by up to a percent, in either engine."""
    monkeypatch.setattr("hmdc.engine.quicken", lambda network: network)  # whose matrices are of float32
    stage = Stage("hmdc_imagenet", 3, tmp_path)
    for module in (*stage.ensemble.networks, *stage.ensemble.alignment.pairs.values()):
        module.double()
    images = [[x.double() for x in side] for side in (stage.real, stage.synthetic)]
    found, slopes = (torch.stack(list(stage.engine(kind).match(*images, None)[0])).unbind(1) for kind in (Batched, Loop))
    assert max(map(apart, found, slopes)) < 1e-10


@pytest.mark.filterwarnings("error:going on without the quick way")
def test_what_a_target_draws_is_drawn_before_classes_go_side_by_side(tmp_path):
    stage = Stage("hmdc_characteristic", 3, tmp_path)
    stage.targets = [dataclasses.replace(t, number=77) if isinstance(t, CharacteristicMatching) else t for t in stage.targets]  # none is kept yet
    assert len(stage.engine(Batched).match(stage.real, stage.synthetic, None)[1]) == 3


# A network that is made anew is copied onto the device, where `meta` has no place for values.
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("name", ["hmdc", "dsa", "cafe", "idm", "mtt"])
def test_no_step_waits_for_the_device(name, tmp_path):
    """Tensors on the device `meta` have no values, so whatever asks for one, and would wait for a GPU, fails."""
    stage = Stage(name, 3, tmp_path, torch.device("meta"))
    for inner, kind in enumerate((Loop, Batched)):  # a step that samples, a step that does not
        stage.inner_step(stage.engine(kind), inner)


def operators(stage: Stage, sample: bool) -> int:
    """Calls of operators in an image step."""
    engine = stage.engine(Batched)
    real = [x.clone() for x in stage.real]
    stage.pixels.step(real, engine, stage.balance, sample, stage.streams["matching"])
    with torch.profiler.profile() as seen:
        stage.pixels.step(real, engine, stage.balance, sample, stage.streams["matching"])
    return sum(event.count for event in seen.key_averages() if event.key.startswith("aten::"))


@pytest.mark.parametrize("sample", [False, True])
def test_ten_classes_need_hardly_more_calls_than_one(sample, tmp_path):
    one, ten = (operators(Stage("hmdc", n, tmp_path), sample) for n in (1, 10))
    print(f"{one} calls for one class, {ten} for ten")
    assert ten <= 1.5 * one
