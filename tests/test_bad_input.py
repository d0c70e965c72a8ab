"""Bad input: one clear error, before any work and before anything is written. Folders of images: test_data.py."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hmdc import Member, Recipe, SyntheticSet, condense, evaluate, evaluation, recipe, trainer
from hmdc.data import ImageData, Statistics
from hmdc.matching import Gradients
from hmdc.md import Distillation
from hmdc.paradigms import Discrimination, Features, Trajectories
from hmdc.provenance import checked
from hmdc.settings import Ages, Experts, Length, Motion, Training


def noise(classes: tuple[str, ...] = ("cat", "dog", "éléphant"), per_class: int = 8, pixels: int = 16) -> ImageData:
    n = per_class * len(classes)
    images = torch.randint(256, (n, 3, pixels, pixels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) % len(classes)
    return ImageData("noise", classes, images, labels, images, labels)


DATA = noise()
SMOKE = recipe("hmdc", ipc=1, preset="smoke")
RANDOM = recipe("random", ipc=1)


@pytest.fixture(scope="module")
def syn() -> SyntheticSet:
    return condense(RANDOM, DATA, progress=False)


@pytest.fixture
def idle(monkeypatch):
    """Fails a test in which work begins."""
    def work(*_, **__):
        raise AssertionError("work began")

    monkeypatch.setattr(trainer, "Pool", work)
    monkeypatch.setattr(evaluation, "training_updates", work)


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file under a folder with its bytes, every folder with None."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def assert_refused(error: type[Exception], match: str, call, *args, out: Path, **kwargs) -> None:
    """The call raises exactly this kind of error, and leaves the folder around `out` as it was."""
    before = contents(out.parent)
    with pytest.raises(error, match=match) as caught:
        call(*args, out=out, **kwargs)
    assert caught.type is error
    assert contents(out.parent) == before


# --- recipes ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kwargs, match", [
    ({"name": "hdmc"}, "unknown method 'hdmc': random, .*hmdc.* are served"),
    ({"name": "HMDC"}, "unknown method 'HMDC'"),
    ({"preset": "fast"}, "unknown preset 'fast': paper, gpu, laptop, budget, quick, smoke are served"),
    ({"outer_step": 3}, "a recipe has no field outer_step; its fields: name, members, .*, outer, inner, "),
    ({"speed": 1, "rounds": 2}, "a recipe has no field rounds, speed; its fields"),
    ({"members": ()}, "1 outer steps with 0 members and 2 targets: nothing can be matched"),
    ({"targets": ()}, "1 outer steps with 2 members and 0 targets: nothing can be matched"),
    ({"init": "noise"}, "init is 'noise': 'kmeans', 'real', 'random' are served"),
    ({"space": "pixels"}, "space is 'pixels': 'normalised', 'pixel' are served"),
    ({"turn": "each"}, "turn is 'each': 'all', 'class' are served"),
    ({"clamp": "never"}, "clamp is 'never': 'step', 'outer', None are served"),
    ({"choice": "nearest"}, "choice is 'nearest': 'kmeans', 'random' are served"),
    ({"on": "both"}, "on is 'both': 'real', 'synthetic', None are served"),
    ({"ssd_mix": "both"}, "ssd_mix is 'both': 'source', 'target' are served"),
    ({"precision": "fp16"}, "precision is 'fp16': 'fp32', 'bf16' are served"),
    ({"balance": "mean"}, "balance is 'mean': 'max', 'sum', 'last', 'ema', None are served"),
    ({"augment": "autoaugment"}, "augment is 'autoaugment': .*'dsa'.* are served"),
    ({"train_augment": ["flip"]}, "train_augment is .*: .*'dsa'.* are served"),
    ({"fresh": "inner"}, r"fresh is 'inner': 'outer', Ages\(…\) and Experts\(…\) are served"),
])
def test_recipes(kwargs, match):
    with pytest.raises(ValueError, match=match):
        recipe(**{"name": "hmdc", "preset": "smoke"} | kwargs)


@pytest.mark.parametrize("field, value, wanted", [
    ("ipc", 0, "at least 1"), ("ipc", -1, "at least 1"), ("factor", 0, "at least 1"), ("inner", 0, "at least 1"),
    ("outer", -1, "at least 0"), ("sample_every", 0, "at least 1"), ("refresh_every", 0, "at least 1"),
    ("batch", 0, "at least 1"), ("synthetic_batch", 0, "at least 1"), ("pool_per_class", 0, "at least 1"),
    ("train_images", 0, "at least 1"), ("epochs", 0, "at least 1"), ("train_batch", 0, "at least 1"),
    ("lr", -0.1, "at least 0"), ("momentum", 1.0, "at least 0 and below 1"), ("momentum", -0.5, "at least 0 and below 1"),
    ("net_momentum", 1, "at least 0 and below 1"), ("net_weight_decay", -1e-4, "at least 0"), ("ssd_lr", -1, "at least 0"),
    ("cutmix", 1.5, "at least 0 and at most 1"), ("halve_at", (5, 0), "at least 1"), ("snapshots", (-1, 2), "at least 0"),
])
def test_numbers_keep_within_their_bounds(field, value, wanted):
    with pytest.raises(ValueError, match=f"^{re.escape(f'{field} is {value!r}: it must be {wanted}')}$"):
        recipe("hmdc", preset="smoke", **{field: value})


@pytest.mark.parametrize("field, value, wanted", [
    *((field, value, "a whole number") for field in ("ipc", "factor", "outer") for value in (2.5, 4.0, "10", True, None, [1])),
    ("pool_per_class", 7.5, "a whole number or None"), ("train_images", "all", "a whole number or None"),
    *((field, value, "a finite number") for field in ("lr", "momentum", "cutmix", "ssd_lr")
      for value in ("0.1", False, None, float("nan"), float("inf"))),
    ("packed", 1, "True or False"), ("distil", "yes", "True or False"), ("normalise_gradient", None, "True or False"),
    ("halve_at", [5], "tuple"), ("snapshots", [5], "tuple or None"), ("halve_at", (1.5,), "tuple"),
    ("members", [Member("convnet3")], "tuple"), ("members", (3,), "tuple"), ("name", 3, "a string"),
    ("store", 3, "Store"), ("motion", {"lr": 0.1}, "Motion"),
])
def test_types_are_held_to(field, value, wanted):
    with pytest.raises(ValueError, match=f"^{re.escape(f'{field} is {value!r}: it must be ')}.*{wanted}"):
        SMOKE.replace(**{field: value})


@pytest.mark.parametrize("make, match", [
    (lambda: Motion(lr="fast"), "lr is 'fast': it must be at least 0, and a finite number"),
    (lambda: Training(cutmix=2), "cutmix is 2: it must be at least 0 and at most 1"),
    (lambda: Length(fresh="always"), "fresh is 'always'"),
    (lambda: Ages(every=0), "every is 0: it must be at least 1"),
    (lambda: Experts(rate=0), "rate is 0: it must be above 0"),
    (lambda: Experts(latest=49), "latest 49 and span 2 reach beyond the 50 epochs of an expert"),
    (lambda: Gradients("euclidean"), "distance is 'euclidean': 'squared', 'l1', 'cosine', 'channel', 'overall' are served"),
    (lambda: Gradients(matched="bias"), "matched is 'bias': 'all', 'conv' are served"),
    (lambda: Distillation("euclidean"), "distance is 'euclidean'"),
    (lambda: Features((0, 1), (1.0,)), "one weight for each layer"),
    (lambda: Features((0,), (-1.0,)), r"weights is \(-1.0,\): it must be at least 0"),
    (lambda: Discrimination(-1), "weight is -1: it must be at least 0"),
    (lambda: Member("convnet3", kwargs=3), "kwargs is 3: pass a dict of arguments of convnet3"),
    (lambda: SMOKE.replace(members="convnet3"), "members is 'convnet3': it must be a tuple"),
    (lambda: Member("convnet3", lr=-1), "lr is -1: it must be at least 0"),
    (lambda: Member("convnet3", input_size=0), "input_size is 0: it must be at least 1"),
])
def test_every_group_of_settings_is_checked(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_bound_that_does_not_exist_is_an_error_of_the_programmer():
    with pytest.raises(TypeError, match="no bound is called minimum: least, above, most, below are"):
        checked(1, minimum=0)


def test_a_whole_number_is_a_float_too():
    assert SMOKE.replace(lr=1) == SMOKE.replace(lr=1.0) and isinstance(SMOKE.replace(lr=1).motion.lr, float)


def test_a_name_is_a_member_from_scratch():
    assert SMOKE.replace(members=("convnet3", "vit_nano_patch4")).members == (Member("convnet3"), Member("vit_nano_patch4"))


def test_numbers_of_numpy_are_numbers():
    assert SMOKE.replace(ipc=np.int64(2), lr=np.float32(0.5)) == SMOKE.replace(ipc=2, lr=0.5)
    with pytest.raises(ValueError, match="ipc is"):
        SMOKE.replace(ipc=np.float64(2.0))


def test_a_recipe_is_checked_however_it_is_made():
    with pytest.raises(ValueError, match="100 outer steps with 0 members"):
        Recipe("mine")
    with pytest.raises(ValueError, match="balance is 'mean'"):
        Recipe("mine", SMOKE.members, balance="mean")
    with pytest.raises(ValueError, match="ipc is 0"):
        RANDOM.replace(ipc=0)
    with pytest.raises(ValueError, match="has no field rounds"):
        RANDOM.replace(rounds=3)


# --- condense --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes, match", [
    ({"factor": 3}, "factor 3 does not divide the image size 16: choose a divisor, or another image_size"),
    ({"ipc": 3}, "ipc 3 at factor 2, packed, needs 12 distinct images of every class, but 'cat' has 8: lower ipc"),
    ({"ipc": 9, "factor": 1, "packed": False}, "ipc 9 needs 9 distinct images of every class, but 'cat' has 8"),
    ({"ipc": 2, "pool_per_class": 7}, "needs 8 .*pool_per_class"),
    ({"ipc": 8, "factor": 1, "packed": False, "pool_per_class": 7}, "needs 8 .*pool_per_class"),
])
def test_more_than_the_data_has(idle, tmp_path, changes, match):
    assert_refused(ValueError, match, condense, SMOKE.replace(**changes), DATA, out=tmp_path / "run")


def test_the_smallest_class_decides_and_is_named(idle, tmp_path):
    kept = (DATA.train_labels != 1) | (torch.arange(len(DATA.train_labels)) < 9)
    data = replace(DATA, train_images=DATA.train_images[kept], train_labels=DATA.train_labels[kept])
    assert data.class_sizes == [8, 3, 8]
    assert_refused(ValueError, "needs 4 distinct images of every class, but 'dog' has 3", condense, SMOKE, data,
                   out=tmp_path / "run")


@pytest.mark.parametrize("member, error, match", [
    (Member("resnet81"), ValueError, r"unknown model 'resnet81'; near names: .*Any name of timm.list_models\(\)"),
    (Member("no such thing"), ValueError, r"unknown model 'no such thing'\. Any name"),
    (Member("resnet18", "nowhere"), FileNotFoundError,
     "weights 'nowhere': no such folder or file; 'scratch', 'imagenet', a folder or a file are served"),
    (Member("convnet3", "imagnet"), FileNotFoundError, "weights 'imagnet': no such folder or file"),
])
def test_members(idle, tmp_path, member, error, match):
    broken = SMOKE.replace(members=(*SMOKE.members, member))
    assert_refused(error, match, condense, broken, DATA, out=tmp_path / "run")


@pytest.mark.parametrize("changes", [{"targets": (Trajectories(),)}, {"fresh": Experts()}], ids=["targets", "starts"])
def test_trajectories_and_experts_go_together(idle, tmp_path, changes):
    assert_refused(ValueError, r"pass targets=\(Trajectories\(\),\) and fresh=Experts\(…\) together", condense,
                   SMOKE.replace(**changes), DATA, out=tmp_path / "run")


def test_experts_have_to_be_there(idle, tmp_path):
    made = recipe("mtt", ipc=1, preset="smoke")
    made = made.replace(fresh=replace(made.length.fresh, folder=str(tmp_path / "experts")))
    assert_refused(FileNotFoundError, "1 of 1 expert trajectories are not there yet, .*000.safetensors first: "
                                      r"hmdc.experts.train_experts\(recipe, data\) makes them",
                   condense, made, DATA, out=tmp_path / "run")


def test_a_device_without_bf16(idle, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert_refused(ValueError, "the hardware of device 'cpu' has no bf16: pass precision='fp32' to the recipe", condense,
                   SMOKE.replace(precision="bf16"), DATA, out=tmp_path / "run", device="cpu")


# --- weights ---------------------------------------------------------------------------------------------------------

def refuse_weights(error: type[Exception], match: str, folder: Path, syn: SyntheticSet) -> None:
    """To condense with, and to evaluate on, even after a model that could be evaluated."""
    broken = SMOKE.replace(members=(*SMOKE.members, Member("resnet18", str(folder))))
    assert_refused(error, match, condense, broken, DATA, out=folder.parent / "run")
    with pytest.raises(error, match=match):
        evaluate(syn, DATA, ["convnet3", "resnet18"], [0], weights=str(folder), length=1)


def test_a_weights_folder_without_the_model(idle, tmp_path, syn):
    folder = tmp_path / "weights"
    folder.mkdir()
    refuse_weights(FileNotFoundError, r"no weights of resnet18 in .*weights: it holds no safetensors file; expected "
                                      r"resnet18\[\.tag\]\.safetensors", folder, syn)
    (folder / "resnet18d.safetensors").touch()  # another model, whose name begins alike
    refuse_weights(FileNotFoundError, "no weights of resnet18 in .*it holds resnet18d.safetensors", folder, syn)


def test_two_weights_of_one_model(idle, tmp_path, syn):
    (tmp_path / "weights").mkdir()
    for tag in "ab":
        (tmp_path / "weights" / f"resnet18.{tag}.safetensors").touch()
    refuse_weights(ValueError, r"2 weights of resnet18 in .*\(resnet18\.a.*, resnet18\.b.*\): pass one file",
                   tmp_path / "weights", syn)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"], ids=["empty", "text"])
def test_a_weights_file_that_cannot_be_read(idle, tmp_path, syn, content):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "resnet18.safetensors").write_bytes(content)
    refuse_weights(ValueError, r"resnet18\.safetensors is not a safetensors file", tmp_path / "weights", syn)


# --- evaluate --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes, match", [
    ({"protocol": "fair"}, "unknown protocol 'fair': corrected, released, idc, plain are served"),
    ({"models": ["convnet3", "resnet81"]}, "unknown model 'resnet81'; near names"),
    ({"models": []}, "nothing to evaluate: at least one model and one seed"),
    ({"seeds": []}, "nothing to evaluate: at least one model and one seed"),
    ({"length": 0}, "updates is 0: it must be at least 1"),
    ({"length": "3"}, "updates is '3': it must be at least 1, and a whole number"),
    ({"data": noise(("cat", "dog"))},
     "condensed set has the classes cat, dog, éléphant, but noise has cat, dog: evaluate it on the dataset"),
    ({"data": noise(("cat", "dog", "tiger"))}, "has the classes cat, dog, éléphant, but noise has cat, dog, tiger"),
    ({"data": noise(("dog", "cat", "éléphant"))}, "has the classes cat, dog, éléphant, but noise has dog, cat"),
    ({"data": noise(pixels=8)},
     "condensed images have 16 px, those of noise 8 px: load the dataset with image_size=16"),
])
def test_evaluate(idle, syn, changes, match):
    with pytest.raises(ValueError, match=match):
        evaluate(**{"syn": syn, "data": DATA, "models": ["convnet3"], "seeds": [0], "length": 1} | changes)


@pytest.mark.parametrize("changes, match", [
    ({"models": "resnet18"}, r"models is 'resnet18': pass a list, \['resnet18'\]"),
    ({"models": Member("resnet18")}, r"models is Member\(.*: pass a list"),
    ({"seeds": 3}, r"seeds is 3: pass a list, \[3\]"),
    ({"models": None}, "models is None: pass a list"),
    ({"syn": "mine.safetensors"}, "the condensed set is 'mine.safetensors': pass a SyntheticSet"),
    ({"data": "digits"}, "data is 'digits': pass an ImageData"),
])
def test_something_else_in_a_values_place(idle, syn, changes, match):
    with pytest.raises(TypeError, match=match):
        evaluate(**{"syn": syn, "data": DATA, "models": ["convnet3"], "seeds": [0], "length": 1} | changes)


@pytest.mark.parametrize("seed", ["a", 1.0, True, None, -1, 2**63])
def test_a_seed_is_a_whole_number(idle, tmp_path, syn, seed):
    match = re.escape(f"seed is {seed!r}: it must be a whole number from 0 to 2**63 - 1")
    assert_refused(ValueError, match, condense, RANDOM, DATA, out=tmp_path / "run", seed=seed)
    for call in (lambda: evaluate(syn, DATA, ["convnet3"], [seed], length=1), lambda: DATA.holdout(0.5, seed=seed)):
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.parametrize("model, size", [("ghostnetv3_050", 16), ("crossvit_tiny_240", 16), ("convnext_atto", 8)])
def test_a_model_that_cannot_take_the_size_is_tried_before_any_work(idle, tmp_path, model, size):
    data = noise(pixels=size)
    set_of_size = SyntheticSet(torch.rand(3, 1, 3, size, size), data.classes, 1, data.statistics)
    match = f"{model} cannot be used with . images of {size} px .*input_size="
    small = SMOKE.replace(factor=1, members=("vit_nano_patch4", model))
    assert_refused(ValueError, match, condense, small, data, out=tmp_path / "run")
    with pytest.raises(ValueError, match=match):
        evaluate(set_of_size, data, ["vit_nano_patch4", model], [0], length=1)


@pytest.mark.parametrize("args, match", [
    (("hmdc", DATA), r"recipe is 'hmdc': pass a Recipe, such as hmdc.recipe\('hmdc'\)"),
    ((RANDOM, "my"), r"data is 'my': pass an ImageData, such as hmdc.load_dataset"),
])
def test_names_where_values_are_wanted(idle, tmp_path, args, match):
    assert_refused(TypeError, match, condense, *args, out=tmp_path / "run")


def test_a_name_where_an_engine_is_wanted(idle, tmp_path):
    match = "engine is 'batched': pass what makes one, such as hmdc.engine.Loop"
    assert_refused(TypeError, match, condense, SMOKE, DATA, out=tmp_path / "run", engine="batched")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(idle, tmp_path, syn):
    match = "device 'cuda' cannot be used here: pass 'cpu', or 'cuda' where there is a GPU"
    assert_refused(ValueError, match, condense, RANDOM, DATA, out=tmp_path / "run", device="cuda")
    with pytest.raises(ValueError, match=match):
        evaluate(syn, DATA, ["convnet3"], [0], length=1, device="cuda")


def test_a_run_that_diverges_stops_and_keeps_the_last_good_images(tmp_path):
    wild = SMOKE.replace(members=(replace(SMOKE.members[0], lr=1e20), *SMOKE.members[1:]), inner=3)
    with pytest.raises(FloatingPointError, match=r"the loss of .*convnet3.*, or its gradient, is not finite at outer step 0, "
                                                 r"inner step \d: .*last good images are in .*last-good.safetensors"):
        condense(wild, DATA, out=tmp_path / "run", progress=False)
    assert SyntheticSet.load(tmp_path / "run" / "last-good.safetensors").images.isfinite().all()
    assert not (tmp_path / "run" / "synthetic.safetensors").exists()


def test_a_model_that_diverges_gets_no_accuracy(syn):
    with pytest.raises(FloatingPointError, match="convnet3, seed 0, has diverged"):
        evaluate(syn, DATA, [Member("convnet3", lr=1e30)], [0], length=3, progress=False)


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_a_damaged_checkpoint_is_named(tmp_path):
    class Stop(Exception):
        pass

    folder = tmp_path / "run"
    with pytest.raises(Stop):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hmdc.run.Progress.save_every", 0.0)
            patch.setattr("hmdc.run.Run.snapshot", lambda self, pixels: (_ for _ in ()).throw(Stop) if self.progress.done else None)
            condense(SMOKE, DATA, out=folder, progress=False)
    (folder / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes()[:100])
    with pytest.raises(ValueError, match="checkpoint.pt are damaged: remove them, and the run begins anew"):
        condense(SMOKE, DATA, out=folder, progress=False)


# --- results folders -------------------------------------------------------------------------------------------------

@pytest.fixture
def finished(tmp_path) -> Path:
    """The results folder of a run that ended."""
    condense(RANDOM, DATA, out=tmp_path / "run", progress=False)
    return tmp_path / "run"


@pytest.mark.parametrize("changed", [
    {"recipe": RANDOM.replace(ipc=2)}, {"recipe": recipe("random_packed", ipc=1)}, {"seed": 1},
    {"data": noise(per_class=9)},
], ids=["recipe", "method", "seed", "data"])
def test_the_folder_of_another_run_is_never_overwritten(finished, idle, changed):
    mine = {"recipe": RANDOM, "data": DATA, "seed": 0} | changed
    match = r"run holds the run \w{12} \(random, seed 0\), not this one \(\w{12}\): pass another `out`; nothing there"
    assert_refused(FileExistsError, match, condense, **mine, out=finished)


def test_the_folder_of_the_same_run_is_read_and_left_alone(finished, idle, syn):
    before = contents(finished)
    assert torch.equal(condense(RANDOM, DATA, out=finished).images, syn.images)
    assert contents(finished) == before


@pytest.mark.parametrize("content", ["{}", "[]", "my notes", json.dumps({"hash": 3, "recipe": "dinner"})])
def test_a_folder_with_somebody_elses_run_json(idle, tmp_path, content):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "run.json").write_text(content)
    assert_refused(FileExistsError, "is not a results folder: pass another `out`; nothing is overwritten", condense,
                   RANDOM, DATA, out=tmp_path / "theirs")


def test_a_foreign_folder_or_file_is_left_alone(idle, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years of work")
    for out in (tmp_path / "theirs", tmp_path / "theirs" / "thesis.txt"):
        assert_refused(FileExistsError, "is not a results folder: pass another `out`; nothing is overwritten", condense,
                       RANDOM, DATA, out=out)


def test_an_empty_folder_and_one_left_while_it_was_claimed_are_taken(tmp_path):
    for name in ("empty", "claimed"):
        (tmp_path / name).mkdir()
    (tmp_path / "claimed" / "run.json.partial").write_text('{"hash": "12')
    for name in ("empty", "claimed"):
        condense(RANDOM, DATA, out=tmp_path / name, progress=False)
        assert (tmp_path / name / "synthetic.safetensors").is_file() and (tmp_path / name / "run.json").is_file()


# --- condensed sets --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, error, match", [
    (lambda x: 255 * x, ValueError, r"must lie in \[0,1\], not in .*: divide by 255"),
    (lambda x: 4 * x - 2, ValueError, r"must lie in \[0,1\].*`Statistics.to_pixels`"),
    (lambda x: x / 0, ValueError, "not finite"),
    (lambda x: x.numpy(), TypeError, "not ndarray: `SyntheticSet.of` makes one"),
    (lambda x: (255 * x).byte(), TypeError, "torch.uint8: divide bytes by 255"),
    (lambda x: x.permute(0, 1, 3, 4, 2), ValueError, r"channels are last, `images.permute\(0, 1, 4, 2, 3\)`"),
    (lambda x: x[:, :, :1], ValueError, r"grey images have one channel, `images.expand"),
    (lambda x: x.flatten(0, 1), TypeError, r"need targets, .*`images.unflatten"),
    (lambda x: x[:2], ValueError, "do not fit 3 classes"),
])
def test_other_peoples_arrays(change, error, match):
    images = torch.rand(3, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(0.01)
    with pytest.raises(error, match=match):
        SyntheticSet(change(images), DATA.classes, 1, DATA.statistics)


def test_lists_and_tuples_do_for_classes_and_statistics_and_shared_memory_is_saved(tmp_path):
    one = torch.full((3,), 0.5)
    mine = SyntheticSet(torch.rand(1, 1, 3, 16, 16).expand(3, 2, -1, -1, -1), list(DATA.classes), 1, Statistics(one, one))
    mine.save(tmp_path / "mine.safetensors")
    assert SyntheticSet.load(tmp_path / "mine.safetensors") == mine
    assert mine.classes == DATA.classes and Statistics((0.5, 0.5, 0.5), [0.5, 0.5, 0.5]) == Statistics(one, one)
    for wrong in ((0.5, 0.5), (0.5, 0.5, float("nan")), (0.5, 0.5, 0.0)):
        with pytest.raises(ValueError, match="std is .*three finite numbers, above zero"):
            Statistics(one, wrong)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"], ids=["empty", "text"])
def test_a_file_that_is_no_condensed_set(tmp_path, content):
    with pytest.raises(FileNotFoundError, match="no condensed set at .*absent"):
        SyntheticSet.load(tmp_path / "absent.safetensors")
    (tmp_path / "other.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="other.safetensors is not a condensed set"):
        SyntheticSet.load(tmp_path / "other.safetensors")


def test_to_folder_overwrites_nothing(tmp_path, syn):
    (tmp_path / "theirs").mkdir()
    with pytest.raises(FileExistsError, match="theirs exists: name a folder that does not"):
        syn.to_folder(tmp_path / "theirs")
    assert not any((tmp_path / "theirs").iterdir())


def test_a_class_name_with_a_slash_stays_one_folder(tmp_path, syn):
    """Fashion-MNIST has a class T-shirt/top."""
    named = replace(syn, classes=("T-shirt/top", "../out", "plain"))
    named.to_folder(tmp_path / "set")
    assert len([path for path in (tmp_path / "set").iterdir() if path.is_dir()]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
