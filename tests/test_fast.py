"Every engine gives the plain one's numbers: fewer products, classes side by side or in one function, reduced precision."

import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import hmdc
from hmdc.engine import Batched, Loop, dependence
from hmdc.ensemble import Ensemble
from hmdc.fast_cpu import FastBlock, FastConv2d, plain, quicken, winograd
from hmdc.matching import Gradients, labelled, respond, target_values
from hmdc.md import Distillation
from hmdc.models import Member
from hmdc.pixels import Pixels, balanced, image_update, magnitudes, pull_back, see
from hmdc.provenance import Streams
from hmdc.real import Pool, initial_images
from hmdc.recipes import recipe
from hmdc.threads import Threads
from hmdc.trainer import balance_for, condense
from hmdc.training import Precision, training_pass

CPU = torch.device("cpu")
FULL = Precision(CPU, bf16=False)
CONVNET, VIT = Member("convnet3", kwargs={"width": 8}), Member("vit_nano_patch4", kwargs={"depth": 2, "embed_dim": 16})
NARROW, RESNET = Member("convnet3", kwargs={"width": 4}), Member("test_resnet")


class Three(Loop):
    "Three classes side by side."

    at_once = 3


class One(Loop):
    "One class after the other."

    at_once = 1


@pytest.fixture(scope="module")
def digits():
    return hmdc.load_dataset("digits")


def small(method, **changes):
    made = recipe(method, ipc=2, preset="smoke")
    changes = {"members": (CONVNET,) if len(made.members) == 1 else (CONVNET, VIT), "outer": 1} | changes
    return made.replace(**changes)


def stage(digits, made, engine=One, dtype=torch.float32):
    "All that an image step is given; fresh networks, a real batch of every class, a momentum."
    streams = Streams(0)
    pool = Pool(digits, made.real, streams["pool"], CPU)
    pixels = Pixels(initial_images(made.store, pool, streams["initial"]), made, digits)
    pixels.moved.momentum = torch.randn(pixels.moved.momentum.shape, generator=torch.Generator().manual_seed(1))
    ensemble = Ensemble(made, digits, CPU)
    ensemble.refresh(streams["members"])
    targets = [target for wish in made.targets for target in wish.bind(ensemble)]
    engine = engine(CPU, made, ensemble, targets)
    real = [images.to(dtype) for images in pool.choose(0, ensemble, engine, streams)]
    for module in (*ensemble.networks, *ensemble.pairs.values()):
        module.to(dtype)  # changes the tensors that the engine has
    balance = balance_for(made, targets, digits.num_classes, CPU)
    return SimpleNamespace(recipe=made, statistics=digits.statistics, streams=streams, pool=pool, pixels=pixels, real=real,
                           ensemble=ensemble, targets=targets, engine=engine, balance=balance)


def through(networks, images, label, create_graph):
    return respond(networks, images, torch.full((len(images),), label), create_graph)


def difference(ours, theirs):
    "Largest difference over largest value."
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


# --- classes side by side --------------------------------------------------------------------------------------------


def class_gradient(at, label, stored, sample):
    "The balanced gradient of one class on its stored images [ipc,3,H,W]."
    real, synthetic = see(stored, at.real[label], at.recipe, at.statistics, at.streams["matching"])
    leaf, networks = synthetic.detach().requires_grad_(), at.ensemble.networks
    values = target_values(at.targets, through(networks, real, label, False), through(networks, leaf, label, True))
    slopes = torch.stack([torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in values])
    parts, of_set = pull_back(slopes, synthetic, stored).unsqueeze(0), torch.zeros(len(values), dtype=torch.bool)
    if sample:
        at.balance.observe(label, magnitudes(parts, of_set)[0])
    return balanced(parts, at.balance.weights(label).unsqueeze(0), of_set)[0]


def one_after_the_other(at, sample):
    "An image step as the algorithm is written: class after class, each seeing what the earlier ones did."
    moved = at.pixels.moved
    gradient = torch.zeros_like(moved.images)
    for label in range(len(moved.images)):
        gradient[label] = class_gradient(at, label, moved.images[label].clone().requires_grad_(), sample)
        if at.recipe.motion.turn == "class" or label == len(moved.images) - 1:
            moved.images, moved.momentum = image_update(
                moved.images, gradient, moved.momentum, at.recipe.motion, at.statistics
            )
            gradient = torch.zeros_like(gradient)


@pytest.mark.parametrize("method", ["idc", "dream", "two_models", "hmdc", "dm"])
@pytest.mark.parametrize("sample", [True, False])
def test_side_by_side_is_one_after_the_other(digits, method, sample):
    made = small(method)
    plainly, beside = stage(digits, made), stage(digits, made, Three)
    one_after_the_other(plainly, sample)
    beside.pixels.step(beside.real, beside.engine, beside.balance, sample, beside.streams["matching"])
    ours, theirs = beside.pixels.moved, plainly.pixels.moved
    torch.testing.assert_close(ours.images, theirs.images, rtol=1e-5, atol=1e-6)
    assert max(map(difference, ours.momentum, theirs.momentum)) < 1e-5  # of each class
    torch.testing.assert_close(beside.balance.accumulator, plainly.balance.accumulator, rtol=1e-4, atol=1e-9)


def test_a_run_in_threads_is_the_run_without(digits):
    made = small("hmdc", outer=2, normalise_gradient=False)
    sets = [condense(made, digits, device="cpu", progress=False, engine=engine) for engine in (One, Three)]
    torch.testing.assert_close(sets[1].images, sets[0].images, rtol=1e-5, atol=1e-6)


def test_at_least_one_class_at_once(digits, tmp_path):
    class Nothing(Loop):
        at_once = 0

    with pytest.raises(ValueError, match="classes at once are 0: at least one is needed, or None"):
        condense(small("dream"), digits, device="cpu", progress=False, engine=Nothing)


def test_threads_go_on_with_fewer_parts_where_memory_does_not_suffice():
    refused = []

    def work(part):
        if len(refused) < 3:
            refused.append(part)
            raise MemoryError
        return 10 * part

    threads = Threads(4)
    with pytest.warns(UserWarning, match="out of memory: going on with 2 classes at once"):
        assert threads.each(work, 6) == [0, 10, 20, 30, 40, 50]
    assert threads.at_once == 2


def test_an_error_in_a_thread_is_raised():
    def work(part):
        raise KeyError(part)

    with pytest.raises(KeyError):
        Threads(2).each(work, 3)


# --- fewer products --------------------------------------------------------------------------------------------------


WIDE = small("hmdc", members=(Member("convnet3", kwargs={"width": 64}), VIT))  # for Winograd's algorithm


def test_quickened_layers_take_other_ways(digits):
    convnet = stage(digits, WIDE).ensemble.networks[0]
    ways = [m.way(torch.zeros(1, m.in_channels, 8, 8)) for m in convnet.modules() if isinstance(m, FastConv2d)]
    assert ways.count(winograd) == 2
    assert not any(isinstance(m, (FastConv2d, FastBlock)) for m in plain(convnet).modules())


def test_fewer_products_give_the_same_gradients(digits):
    "Gradient of every target on the images of a class, in float64: in float32 units at the kink of a ReLU differ."
    at = stage(digits, WIDE, dtype=torch.float64)
    stored, networks, found = at.pixels.moved.images[3].double().requires_grad_(), at.ensemble.networks, []
    real, synthetic = see(stored, at.real[3], WIDE, at.statistics, torch.Generator())
    for kind in (quicken, plain):
        for network in networks:
            kind(network)
        values = target_values(at.targets, through(networks, real, 3, False), through(networks, synthetic, 3, True))
        found.append([torch.autograd.grad(value, stored, retain_graph=True)[0] for value in values])
    differences = [difference(fast, slow) for fast, slow in zip(*found)]
    assert 0 < differences[0] < 1e-9 and max(differences) < 1e-9


def trained(at, kind=quicken, precision=FULL):
    "By how much a training pass moves the first member's parameters."
    for network in at.ensemble.networks:
        kind(network)
    start = [p.detach().clone() for p in at.ensemble.networks[0].parameters()]
    training_pass(at.ensemble, at.pool.batches(at.recipe.training, torch.Generator().manual_seed(5)), precision)
    return torch.cat([(p.detach() - q).flatten() for p, q in zip(at.ensemble.networks[0].parameters(), start)])


def test_fewer_products_train_the_members_alike(digits):
    fast, slow = (trained(stage(digits, WIDE), kind) for kind in (quicken, plain))
    assert 0 < difference(fast, slow) < 1e-4


# --- all classes in one function -------------------------------------------------------------------------------------


def compare_engines(digits, made):
    "All slopes and values of three classes, apart and weighted, of both engines in float64."
    at = stage(digits, made, Loop, torch.float64)
    batched = Batched(CPU, made, at.ensemble, at.targets)
    seen = [see(images.double(), real, made, at.statistics, at.streams["matching"])
            for images, real in zip(at.pixels.moved.images[:3], at.real)]
    real, synthetic = ([side.detach() for side in sides] for sides in zip(*seen))
    shape = (3 + bool(at.engine.of_set.any()), len(at.targets))  # a row for each class, and one for the set
    weights, found = torch.linspace(1, 0.1, shape[0] * shape[1], dtype=torch.float64).view(shape), []
    for given in (None, weights):
        (ours, our_values), (theirs, their_values) = (e.match(real, synthetic, given) for e in (batched, at.engine))
        assert len(ours) == len(theirs) == 3 and our_values.shape == shape
        torch.testing.assert_close(our_values, their_values, rtol=1e-9, atol=1e-12, equal_nan=True)
        assert max(difference(mine, plainly) for mine, plainly in zip(ours, theirs, strict=True)) < 1e-7
        found.append(theirs)
    factors = torch.where(at.engine.of_set, weights[-1], weights[2])
    assert difference(torch.einsum("t,t...->...", factors, found[0][2]), found[1][2]) < 1e-7


@pytest.mark.parametrize("members", [(CONVNET,), (CONVNET, VIT), (CONVNET, VIT, NARROW), (CONVNET, VIT, NARROW, RESNET)],
                         ids=["one", "two", "three", "four"])
def test_batched_is_plain_for_any_number_of_members(digits, members):
    compare_engines(digits, small("hmdc", members=members, batch=4))


@pytest.mark.parametrize("distance", ["squared", "l1", "cosine", "channel", "overall"])
def test_batched_is_plain_for_every_distance(digits, distance):
    matched = "conv" if distance == "cosine" else "all"  # of a bias before a norm, the angle is rounding alone
    wishes = (Gradients(distance, matched), Distillation(distance, matched))
    members = (CONVNET, NARROW) if distance == "cosine" else (CONVNET, VIT)
    compare_engines(digits, small("hmdc", members=members, targets=wishes, ssd_mix="target", batch=4))


@pytest.mark.parametrize("method", ["dc", "dream", "dm", "idm", "cafe"])
def test_batched_is_plain_for_every_target(digits, method):
    made = recipe(method, ipc=2, preset="smoke")
    (member,) = made.members
    compare_engines(digits, made.replace(members=(replace(member, kwargs=dict(member.kwargs) | {"width": 8}),), batch=4))


def test_what_no_loss_depends_on_is_left_out(digits):
    "The classifiers take no part in mutual distillation: no gradient, where a function of torch.func gives zeros."
    at = stage(digits, small("hmdc"))
    depends = dependence(at.ensemble.networks, at.targets, labelled(at.real, [0]))
    (loss, members, matched), = [key for key in depends if key[1] == (0, 1)]
    names = [f"{i}.{name}" for i in members for name, _ in at.ensemble.networks[i].named_parameters()]
    assert {name for name, there in zip(names, depends[loss, members, matched]) if not there} >= {
        "0.model.classifier.weight", "0.model.classifier.bias", "1.model.head.weight", "1.model.head.bias"
    }


def test_a_batched_run_follows_the_members(digits):
    "Two outer iterations: fresh members reach the function, and training between its steps does."
    made, used = small("hmdc", outer=2, sample_every=2, normalise_gradient=False), []

    class Counted(Batched):
        def classes(self, *given):
            used.append(given)
            return super().classes(*given)

    slow = condense(made, digits, device="cpu", progress=False, engine=Loop)
    fast = condense(made, digits, device="cpu", progress=False, engine=Counted)
    assert len(used) == 4
    torch.testing.assert_close(fast.images, slow.images, rtol=1e-4, atol=1e-5)


class Compiled(Batched):
    compiled = True


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_compiled_run_is_the_plain_run(digits, tmp_path):
    "With code generated and run."
    made = small("two_models", members=(CONVNET,), normalise_gradient=False)
    slow = condense(made, digits, tmp_path / "Loop", device="cpu", progress=False, engine=Loop)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = condense(made, digits, tmp_path / "Compiled", device="cpu", progress=False, engine=Compiled)
    torch.testing.assert_close(fast.images, slow.images, rtol=1e-4, atol=1e-5)
    losses = [pd.read_csv(tmp_path / run / "history.csv").loss for run in ("Loop", "Compiled")]
    torch.testing.assert_close(*(torch.tensor(loss.values) for loss in losses), rtol=1e-4, atol=1e-6)


# --- reduced precision -----------------------------------------------------------------------------------------------


bf16 = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bf16")


def moved(digits, made, engine=One):
    "By how much a step moves the images."
    at = stage(digits, made, engine)
    before = at.pixels.moved.images
    at.pixels.moved.momentum.zero_()
    at.pixels.step(at.real, at.engine, at.balance, True, at.streams["matching"])
    return (at.pixels.moved.images - before).flatten()


@bf16
def test_bf16_is_near_fp32(digits):
    full, half = (moved(digits, small("hmdc", precision=p, normalise_gradient=False)) for p in ("fp32", "bf16"))
    assert torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.95
    assert not torch.equal(full, half), "nothing was reduced"


@bf16
def test_bf16_trains_the_members(digits):
    "Converted weights must not outlive the step that changes them."
    made = small("hmdc", members=(CONVNET,), train_images=320)
    full, half = (trained(stage(digits, made), precision=Precision(CPU, bf16=reduced)) for reduced in (False, True))
    assert torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.98
    assert not torch.equal(full, half), "nothing was reduced"


@bf16
def test_bf16_side_by_side_is_one_after_the_other(digits):
    "A thread's precision is its own: some are within a norm, in fp32, while others multiply in bf16."
    made = WIDE.replace(precision="bf16", normalise_gradient=False)
    assert torch.nn.functional.cosine_similarity(*(moved(digits, made, engine) for engine in (One, Three)), dim=0) > 0.999


def test_bf16_where_there_is_none(digits, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(ValueError, match="has no bf16: pass precision='fp32'"):
        condense(small("dream", precision="bf16"), digits, device="cpu", progress=False)
