"The fast path gives the plain path's numbers: fewer products, classes side by side, compiled, in reduced precision."

import copy
import shutil
import warnings

import pandas as pd
import pytest
import torch

import hmdc
from hmdc import trainer
from hmdc.convolution import Conv2d, plain, winograd
from hmdc.matching import CompiledMatching
from hmdc.models import Member
from hmdc.recipes import recipe
from hmdc.trainer import class_gradient, condense, image_update, match_class, matched_images, recipe_targets

CONVNET, VIT = Member("convnet3", kwargs={"width": 8}), Member("vit_nano_patch4", kwargs={"depth": 2, "embed_dim": 16})


@pytest.fixture(scope="module")
def digits():
    return hmdc.load_dataset("digits")


def small(method, **changes):
    made = recipe(method, ipc=2, preset="smoke")
    members = (CONVNET,) if len(made.members) == 1 else (CONVNET, VIT)
    return made.replace(members=members, outer_steps=1, inner_steps=2, **changes)


def stage(digits, made, at_once=1, compiled=False):
    "All that an image step is given."
    engine = trainer._Engine(at_once, compiled)
    setting, state = trainer._begin(made, digits, 0, torch.device("cpu"), engine)
    live = [trainer.LiveMember.fresh(m, made, digits, state.streams["members"], "cpu") for m in made.members]
    ssd, _ = trainer._fresh_pairs(setting, live, state.streams["members"])
    chosen = trainer._choose_real(setting, live, 0, state.streams, None)
    state.momentum = torch.randn(state.momentum.shape, generator=torch.Generator().manual_seed(1))
    targets = recipe_targets(made, ssd)
    gbm = trainer.GradientBalance(10, len(targets), made.balance) if made.balance else None
    return setting, state, [m.network for m in live], ssd, targets, gbm, chosen


def one_after_the_other(setting, state, networks, ssd, targets, gbm, chosen, sample):
    "An image step as the algorithm is written: class after class, each seeing what the earlier ones did."
    made = setting.recipe
    gradient = torch.zeros_like(state.images)
    for label, indices in enumerate(chosen):
        stored = state.images[label].clone().requires_grad_()
        seen = matched_images(
            stored, setting.real(label, indices), made, setting.mean, setting.std, state.streams["matching"]
        )
        values = match_class(*seen, label, networks, targets)
        gradient[label] = class_gradient(stored, values, gbm, label, sample)[0]
        if made.image_step == "class" or label == len(chosen) - 1:
            state.images, state.momentum = image_update(
                state.images, gradient, state.momentum, made, setting.mean, setting.std
            )
            gradient = torch.zeros_like(gradient)


@pytest.mark.parametrize("method", ["idc", "dream", "two_models", "hmdc"])
@pytest.mark.parametrize("sample", [True, False])
def test_side_by_side_is_one_after_the_other(digits, method, sample):
    made = small(method)
    plain, beside = stage(digits, made), stage(digits, made, at_once=3)
    one_after_the_other(*plain, sample)
    trainer._image_step(*beside, sample)
    torch.testing.assert_close(beside[1].images, plain[1].images, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(beside[1].momentum, plain[1].momentum, rtol=1e-4, atol=1e-6)


def difference(ours, theirs):
    "Largest difference over largest value."
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


WIDE = small("hmdc").replace(members=(Member("convnet3", kwargs={"width": 64}), VIT))  # for Winograd's algorithm


def test_fewer_products_give_the_same_gradients(digits):
    "Gradient of every target on the images of a class, in float64: in float32 units at the kink of a ReLU differ."
    setting, state, networks, ssd, _, _, chosen = stage(digits, WIDE)
    ways = [m._way(torch.zeros(1, m.in_channels, 8, 8)) for m in networks[0].modules() if isinstance(m, Conv2d)]
    assert ways.count(winograd) == 2
    networks, ssd = [n.double().eval() for n in networks], {key: pair.double() for key, pair in ssd.items()}
    stored = state.images[3].double().requires_grad_()
    seen = matched_images(
        stored, setting.real(3, chosen[3]).double(), WIDE, setting.mean.double(), setting.std.double(), torch.Generator()
    )
    targets, found = recipe_targets(WIDE, ssd), []
    for kind in (lambda network: network, plain):
        values = match_class(*seen, 3, [kind(n) for n in networks], targets)
        found.append([torch.autograd.grad(value, stored, retain_graph=True)[0] for value in values])
    differences = [difference(fast, slow) for fast, slow in zip(*found)]
    assert 0 < differences[0] < 1e-9 and max(differences) < 1e-9


def test_fewer_products_train_the_members_alike(digits):
    trained = []
    for kind in (lambda network: network, plain):
        setting, _, networks, *_ = stage(digits, WIDE)
        live = [trainer.LiveMember(kind(n), torch.optim.SGD(n.parameters(), 0.01)) for n in networks]
        start = [p.detach().clone() for p in networks[0].parameters()]
        trainer._train_members(setting, live, {}, {}, torch.Generator().manual_seed(5))
        trained.append(torch.cat([(p - q).flatten() for p, q in zip(networks[0].parameters(), start)]))
    assert 0 < difference(*trained) < 1e-4


@pytest.mark.parametrize(
    "made",
    [
        small("dream"),
        small("hmdc"),
        small("hmdc", distance="l1", ssd_mix="target"),
        small("hmdc", distance="cosine", matched="conv"),  # of a bias before a norm, the angle is rounding alone
        small("hmdc").replace(members=(CONVNET, VIT, Member("convnet3", kwargs={"width": 4}))),
    ],
    ids=["one model", "two models", "l1", "cosine", "three models"],
)
def test_compiled_is_plain(digits, made, monkeypatch):
    "The function that is compiled, run as it is; compiling it takes minutes and stands in the slow tests."
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    setting, state, networks, ssd, targets, gbm, chosen = stage(digits, made)
    stored = state.images[3].clone().requires_grad_()
    real, synthetic = matched_images(
        stored, setting.real(3, chosen[3]), made, setting.mean, setting.std, state.streams["matching"]
    )
    for network in networks:
        network.eval()
    leaf = synthetic.detach().requires_grad_()
    values = match_class(real, leaf, 3, networks, targets)
    apart = torch.stack([torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in values])
    weights = torch.linspace(1, 0.1, len(targets))
    matching = CompiledMatching(copy.deepcopy(networks), targets, real[:2])
    for ours, theirs in zip(matching(real, leaf.detach(), 3), (apart, torch.stack(values))):
        assert difference(ours, theirs) < 1e-4
    ours, found = matching(real, leaf.detach(), 3, weights)
    assert difference(ours, torch.einsum("t,t...->...", weights, apart)) < 1e-4
    assert difference(found, torch.stack(values)) < 1e-4


def test_a_compiled_run_follows_the_members(digits, monkeypatch):
    "Two outer iterations: fresh members reach the compiled function, and training between its steps does."
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    made = small("hmdc").replace(outer_steps=2, sample_every=2, normalise_gradient=False)
    plain = condense(made, digits, device="cpu", progress=False)
    used = []
    monkeypatch.setattr(trainer, "match_class", lambda *given: used.append(given))
    # one at a time: before it is compiled, the function lends its parameters to modules that threads would share
    fast = condense(made, digits, device="cpu", progress=False, compiled=True, classes_at_once=1)
    assert not used, "the plain path was taken"
    torch.testing.assert_close(fast.images, plain.images, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_compiled_says_so(digits, monkeypatch):
    def fails(*given):
        raise RuntimeError("not traceable")

    monkeypatch.setattr(trainer, "CompiledMatching", fails)
    made = small("dream").replace(inner_steps=1)
    with pytest.warns(UserWarning, match="cannot be compiled .RuntimeError.: the plain path is taken"):
        condense(made, digits, device="cpu", progress=False, compiled=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match="no C.. compiler: the plain path is taken"):
        condense(made, digits, device="cpu", progress=False, compiled=True)


bf16 = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bf16")


@bf16
def test_bf16_is_near_fp32(digits):
    images = {}
    for precision in ("fp32", "bf16"):
        set_up = stage(digits, small("hmdc", precision=precision, normalise_gradient=False))
        before = set_up[1].images
        set_up[1].momentum.zero_()
        trainer._image_step(*set_up, True)
        images[precision] = set_up[1].images - before
    alike = torch.nn.functional.cosine_similarity(images["bf16"].flatten(), images["fp32"].flatten(), dim=0)
    assert alike > 0.95
    assert not torch.equal(images["bf16"], images["fp32"]), "nothing was reduced"


@bf16
def test_bf16_trains_the_members(digits):
    "Converted weights must not outlive the step that changes them."
    made = small("hmdc", precision="bf16", train_images=320)
    setting, state, networks, ssd, targets, gbm, chosen = stage(digits, made)
    live = [trainer.LiveMember.fresh(m, made, digits, state.streams["members"], "cpu") for m in made.members]
    reference, start = (copy.deepcopy(live[0].network) for _ in range(2))
    start = dict(start.named_parameters())
    fp32 = copy.deepcopy(setting)
    fp32.recipe = made.replace(precision="fp32")
    other = [trainer.LiveMember(n, torch.optim.SGD(n.parameters(), 0.01)) for n in (reference,)]
    streams = [torch.Generator().manual_seed(5) for _ in range(2)]
    trainer._train_members(setting, live[:1], {}, {}, streams[0])
    trainer._train_members(fp32, other, {}, {}, streams[1])
    moved, should = (
        torch.cat([(p - start[n]).flatten() for n, p in network.named_parameters()])
        for network in (live[0].network, reference)
    )
    assert torch.nn.functional.cosine_similarity(moved, should, dim=0) > 0.98


@bf16
def test_bf16_side_by_side_is_one_after_the_other(digits):
    "A thread's precision is its own: some are within a norm, in fp32, while others multiply in bf16."
    moved = []
    for at_once in (1, 3):
        set_up = stage(digits, WIDE.replace(precision="bf16", normalise_gradient=False), at_once)
        before = set_up[1].images
        set_up[1].momentum.zero_()
        trainer._image_step(*set_up, True)
        moved.append((set_up[1].images - before).flatten())
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.999


def test_bf16_where_there_is_none(digits, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(ValueError, match="has no bf16: pass precision='fp32'"):
        condense(small("dream", precision="bf16"), digits, device="cpu", progress=False)


def test_classes_at_once_is_checked(digits):
    with pytest.raises(ValueError, match="classes_at_once is 0: at least one"):
        condense(small("dream"), digits, device="cpu", classes_at_once=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_compiled_run_is_the_plain_run(digits, tmp_path):
    "With code generated and run, two classes at once."
    made = small("two_models").replace(members=(CONVNET,), normalise_gradient=False)
    plain = condense(made, digits, tmp_path / "plain", device="cpu", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = condense(made, digits, tmp_path / "fast", device="cpu", progress=False, compiled=True, classes_at_once=2)
    torch.testing.assert_close(fast.images, plain.images, rtol=1e-4, atol=1e-5)
    losses = [pd.read_csv(tmp_path / run / "history.csv").loss for run in ("plain", "fast")]
    torch.testing.assert_close(*(torch.tensor(loss.values) for loss in losses), rtol=1e-4, atol=1e-6)
