"""The targets of other methods against outputs of their authors' released code, in float64.

Inputs and outputs are read from the folder HMDC_ORACLE: ten classes of real and synthetic images, and a ConvNet-3.
"""
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from hmdc.matching import Gradients, labelled, respond, target_values
from hmdc.models import Network, create_model
from hmdc.paradigms import Goal, student_steps
from hmdc.recipes import recipe
from hmdc.synthetic import unpack

FILE = Path(__file__).resolve().parents[1] / os.environ.get("HMDC_ORACLE", "../shared/oracle") / "paradigms.safetensors"
TOLERANCE = 1e-5
CLASS = 3  # where a method sees one class alone
IDM_ACCURACY = 40.0  # percent

pytestmark = pytest.mark.skipif(
    not FILE.is_file(), reason="no numbers of the released code: set HMDC_ORACLE to the folder that holds " + FILE.name
)


# --- reading and comparing -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in load_file(FILE).items()}


def assert_parity(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The largest difference over the largest value."""
    ours = ours.detach().view(theirs.shape)
    assert ours.dtype == theirs.dtype
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < TOLERANCE, f"relative error {error:.2e}"


# --- what a method is given ------------------------------------------------------------------------------------------


def their_name(name: str) -> str:
    """blocks.1.0.weight -> in.net.conv_weight.1."""
    *place, kind = name.split(".")
    if place == ["classifier"]:
        return f"in.net.classifier_{kind}"
    return f"in.net.{'norm' if int(place[2]) else 'conv'}_{kind}.{place[1]}"


def build_network(tensors: dict[str, torch.Tensor], **kwargs) -> Network:
    classes, width = len(tensors["in.net.classifier_bias"]), len(tensors["in.net.conv_bias.0"])
    network = create_model("convnet3", classes, tensors["in.real"].shape[-1], width=width, **kwargs).double().eval()
    network.model.load_state_dict({name: tensors[their_name(name)] for name in network.model.state_dict()})
    return network


def bind(wishes: tuple, **ensemble) -> list:
    """The targets of a recipe's wishes for one network."""
    ensemble = SimpleNamespace(names=["convnet3"], **ensemble)
    return [target for wish in wishes for target in wish.bind(ensemble)]


def match(targets: list, network: Network, real: torch.Tensor, synthetic: torch.Tensor, classes: list[int]) -> dict:
    """Values of some targets, and the gradient of their sum on the synthetic images, of some classes in one batch.

    real, synthetic: [classes,n,3,H,W]. The gradient is [len(classes)·n,3,H,W].
    """
    images, labels = labelled(synthetic, classes)
    images.requires_grad_()
    values = target_values(
        targets, respond([network], *labelled(real, classes), False), respond([network], images, labels, True)
    )
    return {"values": values, "gradient": torch.autograd.grad(sum(values), images)[0]}


def match_classes(targets: list, network: Network, real: torch.Tensor, synthetic: torch.Tensor) -> dict:
    """The same with one class after the other: values summed, gradients joined."""
    found = [match(targets, network, real, synthetic, [c]) for c in range(len(real))]
    values = [sum(of_classes) for of_classes in zip(*(f["values"] for f in found))]
    return {"values": values, "gradient": torch.cat([f["gradient"] for f in found])}


# --- gradients of networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs, metric", [("ours", "channel"), ("cos", "overall"), ("mse", "squared")])
def test_dc(tensors, theirs, metric):
    network = build_network(tensors)
    found = match(bind((Gradients(metric),)), network, tensors["in.real"], tensors["in.synthetic"], [CLASS])
    assert_parity(found["values"][0], tensors[f"out.dc.{theirs}.loss"])
    assert_parity(found["gradient"], tensors[f"out.dc.{theirs}.gradient"])


@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_recipes_of_dc_take_its_distance(method):
    assert recipe(method).targets == (Gradients("channel"),)


# --- mean features ---------------------------------------------------------------------------------------------------


def test_dm(tensors):
    targets = bind(recipe("dm").targets)
    found = match_classes(targets, build_network(tensors), tensors["in.real"], tensors["in.synthetic"])
    assert_parity(found["values"][0], tensors["out.dm.loss"])
    assert_parity(found["gradient"], tensors["out.dm.gradient"])


@pytest.fixture(scope="module")
def cafe(tensors) -> dict:
    """CAFE's three terms: features of each class, and the discrimination of all at once."""
    made = recipe("cafe")
    targets, network = bind(made.targets), build_network(tensors, unpooled=dict(made.members[0].kwargs)["unpooled"])
    batches = network, tensors["in.real"], tensors["in.synthetic"]
    by_class = match_classes([t for t in targets if t.scope == "class"], *batches)
    of_set = match([t for t in targets if t.scope == "set"], *batches, list(range(len(tensors["in.real"]))))
    return {"targets": targets, "network": network, "by_class": by_class, "of_set": of_set}


@pytest.mark.parametrize("kind", ["real", "synthetic"])
def test_features_of_cafe(tensors, cafe, kind):
    """The mean maps that the file holds: of blocks 2 and 3 before their pooling, and of the last one after it, twice."""
    (target,) = [t for t in cafe["targets"] if t.scope == "class"]
    batches = [labelled(tensors[f"in.{kind}"], [c]) for c in range(len(tensors[f"in.{kind}"]))]
    means = zip(*(target.statistic(respond([cafe["network"]], *batch, False)) for batch in batches))
    means = [torch.stack(of_classes) for of_classes in means]
    for number, layer in enumerate((1, 2, 3, 3), start=1):
        assert_parity(means[layer], tensors[f"out.cafe.{kind}_mean.{number}"])


def test_values_of_cafe(tensors, cafe):
    """Its middle and its last term are one target here, whose last map has both weights."""
    assert_parity(cafe["by_class"]["values"][0], tensors["out.cafe.middle"] + tensors["out.cafe.last"])
    (discrimination,) = [t for t in cafe["targets"] if t.scope == "set"]
    assert_parity(cafe["of_set"]["values"][0] / discrimination.weight, tensors["out.cafe.discrimination"])
    assert_parity(sum(cafe["by_class"]["values"] + cafe["of_set"]["values"]), tensors["out.cafe.total"])


def test_gradient_of_cafe(tensors, cafe):
    assert_parity(cafe["by_class"]["gradient"] + cafe["of_set"]["gradient"], tensors["out.cafe.gradient"])


# --- mean features and recognition -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def idm(tensors) -> dict:
    """IDM's two terms on the images that four to one stored image are unpacked to."""
    made = recipe("idm")
    stored = tensors["in.synthetic"][CLASS].clone().requires_grad_()
    unpacked = unpack(stored, made.store.factor, made.store.align_corners)
    network, (real, _) = build_network(tensors), labelled(tensors["in.real"], [CLASS])
    batches = [(images, torch.full((len(images),), CLASS)) for images in (real, unpacked)]
    targets = bind(made.targets, accuracy=[IDM_ACCURACY])
    values = target_values(targets, respond([network], *batches[0], False), respond([network], *batches[1], True))
    gradient = torch.autograd.grad(sum(values), stored)[0]
    return {"unpacked": unpacked, "targets": targets, "values": values, "gradient": gradient}


def test_idm_unpacks_without_aligned_corners(tensors, idm):
    assert_parity(idm["unpacked"], tensors["out.idm.unpacked"])


def test_values_of_idm(tensors, idm):
    mean, recognition = idm["values"]
    assert_parity(mean, tensors["out.idm.mean"])
    assert_parity(recognition / (idm["targets"][1].weight * IDM_ACCURACY), tensors["out.idm.cross_entropy"])
    assert_parity(mean + recognition, tensors["out.idm.total"])


def test_gradient_of_idm(tensors, idm):
    assert_parity(idm["gradient"], tensors["out.idm.gradient"])


# --- parameters after some steps -------------------------------------------------------------------------------------


def flat(theta: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in theta.values()])


@pytest.fixture(scope="module")
def mtt(tensors) -> dict:
    """MTT's student: three steps on the synthetic images from the network's own parameters."""
    network = build_network(tensors)
    start = {name: p.detach() for name, p in network.named_parameters()}
    parts = tensors["in.mtt.target"].split([p.numel() for p in start.values()])
    end = {name: part.view_as(start[name]) for name, part in zip(start, parts)}
    goal = Goal(start, end, [(indices, []) for indices in tensors["in.mtt.batches"]])
    rate = tensors["in.mtt.rate"].squeeze().requires_grad_()
    ensemble = {"networks": [network], "lifecycle": SimpleNamespace(goals=[goal], rates=[rate])}
    (target,) = bind(recipe("mtt").targets, **ensemble)

    images, labels = labelled(tensors["in.synthetic"], range(len(tensors["in.synthetic"])))
    images.requires_grad_()
    real = respond([network], *labelled(tensors["in.real"], [CLASS]), False)  # nothing of it is compared
    (value,) = target_values([target], real, respond([network], images, labels, True))
    on_images, on_rate = torch.autograd.grad(value, [images, *target.learned])
    final = flat(student_steps(network, goal, images, labels, rate))
    return {"final": final, "loss": value, "image_gradient": on_images, "rate_gradient": on_rate}


@pytest.mark.parametrize("name", ["final", "loss", "image_gradient", "rate_gradient"])
def test_mtt(tensors, mtt, name):
    assert_parity(mtt[name], tensors[f"out.mtt.{name}"])
