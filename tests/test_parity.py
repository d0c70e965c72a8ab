"""The maths of `hmdc` against outputs of the authors' released code, and against a small fixture of our own.

Inputs, and what the released code made of them, are read from the folder HMDC_ORACLE where there is one. The fixture
keeps the same checks on every clone; make_parity_fixture.py wrote it without `hmdc`, and says what each name means.
"""
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from make_parity_fixture import FIXTURE, HEADS, MEAN, NET_RATES, STD, STEPS
from safetensors.torch import load_file

from hmdc.clustering import kmeans, nearest_distinct
from hmdc.data import Statistics
from hmdc.ensemble import ssd_step, train_step
from hmdc.gbm import GradientBalance
from hmdc.matching import GradientMatching, respond, target_values
from hmdc.md import mutual_distillation_loss
from hmdc.models import Feature, Network, create_model, tap
from hmdc.pixels import balanced, image_update, magnitudes, pull_back, see
from hmdc.recipes import recipe
from hmdc.ssd import SpatialSemanticDecomposition, shapes
from hmdc.synthetic import unpack
from hmdc.trainer import balance_for

ORACLE = Path(__file__).resolve().parents[1] / os.environ.get("HMDC_ORACLE", "../shared/oracle")
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
# The files hold values before and after a step in float32, so that their difference has few digits.
CHANGE_TOLERANCE = 1e-3
RECIPE = recipe("hmdc_released", ipc=2, weights="scratch", augment="none", match_cutmix=0.0)


# --- reading and comparing ------------------------------------------------------------------------------------------


def read(source: str, step: str, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Inputs and outputs of one step."""
    path = FIXTURE if source == "own" else ORACLE / f"{step}.safetensors"
    if not path.is_file() and source == "oracle":
        pytest.skip(f"no numbers of the released code: set HMDC_ORACLE to the folder that holds {path.name}")
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(path).items()}
    if source == "oracle":
        return tensors
    return {k.split("/")[1]: v for k, v in tensors.items() if k.split("/")[0] in (step, "shared")}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def assert_parity(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float | None = None) -> None:
    """Within the tolerance of the type, where no other is given; whole numbers are equal."""
    if not theirs.is_floating_point():
        assert torch.equal(ours, theirs)
        return
    error = relative_error(ours.detach(), theirs)
    assert error < (tolerance or TOLERANCE[theirs.dtype]), f"relative error {error:.2e}"


@dataclass
class Result:
    """What a step made of its inputs, and what it should have made."""

    ours: dict[str, torch.Tensor]
    tensors: dict[str, torch.Tensor]  # as read

    def check(self, name: str) -> None:
        assert_parity(self.ours[name], self.tensors.get(f"out.{name}", self.tensors.get(name)))


@pytest.fixture(
    scope="module",
    params=[(source, dtype) for source in ("oracle", "own") for dtype in TOLERANCE],
    ids=lambda p: f"{p[0]}-{str(p[1]).removeprefix('torch.')}",
)
def case(request) -> tuple[str, torch.dtype]:
    return request.param


# --- models from the files ------------------------------------------------------------------------------------------


def convnet_name(name: str) -> str:
    """layer_5.weight -> blocks.1.1.weight: the released code numbers all layers of all blocks."""
    layer, kind = name.split(".")
    if layer == "classifier":
        return name
    block, place = divmod(int(layer.removeprefix("layer_")), 4)
    return f"blocks.{block}.{place}.{kind}"


def network_states(tensors: dict[str, torch.Tensor], prefix: str) -> list[dict[str, torch.Tensor]]:
    """Parameters of both networks under the names that they have here."""
    first, second = f"{prefix}net1.", f"{prefix}net2.model."
    return [
        {convnet_name(k.removeprefix(first)): v for k, v in tensors.items() if k.startswith(first)},
        {k.removeprefix(second): v for k, v in tensors.items() if k.startswith(second)},
    ]


def build_networks(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> list[Network]:
    """ConvNet and ViT with the parameters of a file."""
    states = network_states(tensors, "in.")
    patch = states[1]["patch_embed.proj.weight"].shape[-1]
    image_size = patch * round((states[1]["pos_embed"].shape[1] - 1) ** 0.5)
    classes, width = states[1]["head.weight"].shape
    depth = sum(name.endswith("norm1.weight") for name in states[1])
    blocks = [v for v in states[0].values() if v.ndim == 4]
    networks = [
        create_model("convnet3", classes, image_size, width=len(blocks[0]), depth=len(blocks), repeat_last=True),
        create_model("vit_tiny_patch16_224", classes, image_size, patch_size=patch, embed_dim=width, depth=depth,
                     num_heads=HEADS),
    ]
    for network, state in zip(networks, states):
        network.to(dtype).model.load_state_dict(state)
    return networks


def ssd_state(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Parameters of SSD, or their gradients, under the names that they have here."""
    names = {"match_layers_1": "maps_a", "match_layers_2": "maps_b", "match_scale": "mixing"}
    state = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}match_"):
            first, *rest = name.removeprefix(prefix).split(".")
            state[".".join([names[first], *rest])] = value
    return state


def build_ssd(tensors: dict[str, torch.Tensor], features: list[list[Feature]]) -> SpatialSemanticDecomposition:
    ssd = SpatialSemanticDecomposition(*map(shapes, features), RECIPE.training.ssd_mix).to(features[0][0].spatial.dtype)
    ssd.load_state_dict(ssd_state(tensors, "in."))
    return ssd


# --- the image step -------------------------------------------------------------------------------------------------


def bound_targets(networks: list[Network], ssd: SpatialSemanticDecomposition) -> list[GradientMatching]:
    """What the recipe matches: a target for each network, and one for the pair."""
    ensemble = SimpleNamespace(names=["convnet", "vit"], networks=networks, pairs={(0, 1): ssd})
    return [target for wish in RECIPE.targets for target in wish.bind(ensemble)]


def balance_step(parts: torch.Tensor, gbm: GradientBalance, label: int) -> dict[str, torch.Tensor]:
    """A sample of one class, and what the balance makes of it; parts: [targets,ipc,3,H,W]."""
    of_set = torch.zeros(len(parts), dtype=torch.bool)
    (found,) = magnitudes(parts[None], of_set)
    gbm.observe(label, found)
    (gradient,) = balanced(parts[None], gbm.weights(label)[None], of_set)
    ours = {"image_grad_before_norm": gradient, "grad_max": found}
    return ours | {"grad_accumulator": gbm.accumulator[label].clone(), "grad_scaler": gbm.weights(label)}


@pytest.fixture(scope="module")
def image_step(case) -> Result:
    """Both networks, all targets, balance and update, for the images of one class."""
    tensors, dtype = read(case[0], "image_step", case[1]), case[1]
    real, label = tensors["in.real_images"], int(tensors["in.real_labels"][0])
    images = tensors["in.synthetic_images"]
    stored = images[label].clone().requires_grad_()
    unpacked = unpack(stored, RECIPE.store.factor)
    ours = {"unpacked_synthetic": unpacked}

    networks = build_networks(tensors, dtype)
    ssd = build_ssd(tensors, [tap(network, real)[1] for network in networks])

    def through(x: torch.Tensor, create_graph: bool):
        return respond(networks, x, torch.full((len(x),), label), create_graph)

    for kind, x in (("real", real), ("syn", unpacked[tensors["in.syn_permutation"]])):
        (logits_1, features_a), (logits_2, features_b) = through(x, False).taps
        z_a, z_b = ssd(features_a, features_b)
        ours |= {f"{kind}_logits_1": logits_1, f"{kind}_logits_2": logits_2}
        ours |= {f"{kind}_feature_1": z_a, f"{kind}_feature_2": z_b}
        ours[f"{kind}_feature_loss"] = mutual_distillation_loss(z_a, z_b).view(1)

    statistics = Statistics(*(torch.tensor(values, dtype=dtype) for values in (MEAN, STD)))
    targets = bound_targets(networks, ssd)
    seen_real, synthetic = see(stored, real, RECIPE, statistics, torch.Generator())
    leaf = synthetic.detach().requires_grad_()
    losses = target_values(targets, through(seen_real, False), through(leaf, True))
    for name, loss in zip(("loss_1", "loss_2", "feature_loss"), losses, strict=True):
        ours[name] = loss.view(1)
    slopes = torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses])
    parts = pull_back(slopes, synthetic, stored)
    ours |= {f"grad{i + 1}": part for i, part in enumerate(parts)}

    gbm = balance_for(RECIPE, targets, len(images), torch.device("cpu")).to(dtype)
    gbm.accumulator[label] = tensors["in.grad_accumulator_before"]
    ours |= balance_step(parts, gbm, label)
    summed = torch.autograd.grad((gbm.weights(label) * torch.stack(losses)).sum(), leaf)[0]
    ours["unsampled"] = pull_back(summed, synthetic, stored)

    gradient = torch.zeros_like(images)
    gradient[label] = ours["image_grad_before_norm"]
    _, first = image_update(images, gradient, torch.zeros_like(images), RECIPE.motion, statistics)
    ours["image_grad_after_norm"] = first[label]  # without history the momentum is the gradient of this step
    ours["synthetic_images_after_step"], ours["momentum_buffer_after"] = image_update(
        images, gradient, tensors["in.momentum_buffer"], RECIPE.motion, statistics
    )
    return Result(ours, tensors)


def test_multi_formation(image_step):
    image_step.check("unpacked_synthetic")


@pytest.mark.parametrize("name", ["real_logits_1", "real_logits_2", "syn_logits_1", "syn_logits_2"])
def test_logits(image_step, name):
    image_step.check(name)


@pytest.mark.parametrize("name", ["real_feature_1", "real_feature_2", "syn_feature_1", "syn_feature_2"])
def test_aligned_features(image_step, name):
    image_step.check(name)


@pytest.mark.parametrize("name", ["real_feature_loss", "syn_feature_loss"])
def test_semantic_distance(image_step, name):
    image_step.check(name)


@pytest.mark.parametrize("name", ["loss_1", "loss_2", "feature_loss"])
def test_targets(image_step, name):
    image_step.check(name)


@pytest.mark.parametrize("name", ["grad1", "grad2", "grad3"])
def test_gradient_of_each_target_on_the_stored_images(image_step, name):
    image_step.check(name)


@pytest.mark.parametrize("name", ["grad_max", "grad_accumulator", "grad_scaler"])
def test_balance(image_step, name):
    """Target by target: they lie orders of magnitude apart."""
    for ours, theirs in zip(image_step.ours[name], image_step.tensors[f"out.{name}"], strict=True):
        assert_parity(ours, theirs)


@pytest.mark.parametrize("name", ["image_grad_before_norm", "image_grad_after_norm"])
def test_image_gradient(image_step, name):
    image_step.check(name)


def test_image_gradient_without_sampling(image_step):
    """The same weights give the same gradient when the targets are summed first."""
    assert_parity(image_step.ours["unsampled"], image_step.tensors["out.image_grad_before_norm"])


@pytest.mark.parametrize("name", ["momentum_buffer_after", "synthetic_images_after_step"])
def test_image_update(image_step, name):
    image_step.check(name)


def test_change_of_images(image_step):
    """Images barely move in one step, so what is to be compared is by how much."""
    before, after = image_step.tensors["in.synthetic_images"], image_step.tensors["out.synthetic_images_after_step"]
    ours = image_step.ours["synthetic_images_after_step"]
    assert_parity(ours - before, after - before, CHANGE_TOLERANCE)


# --- training the members -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training_step(case) -> Result:
    """Logits and features before one step of both networks, and their parameters after it."""
    tensors = read(case[0], "train_step", case[1])
    images, networks = tensors["in.images_1"], build_networks(tensors, case[1])
    taps = [tap(network, images) for network in networks]
    ssd = build_ssd(tensors, [t[1] for t in taps])
    optimizers = [torch.optim.SGD(n.parameters(), rate) for n, rate in zip(networks, NET_RATES)]
    loss, _ = train_step(networks, optimizers, {(0, 1): ssd}, images, tensors["in.targets"])
    ours = {"output_1": taps[0][0], "output_2": taps[1][0], "total_loss": loss.view(1)}
    for network, prefix in zip(networks, ("net1.", "net2.")):
        ours |= {prefix + k: v.detach() for k, v in network.model.named_parameters()}
    return Result(ours, tensors)


@pytest.mark.parametrize("name", ["output_1", "output_2", "total_loss"])
def test_training_loss(training_step, name):
    training_step.check(name)


@pytest.mark.parametrize("network", [0, 1], ids=["convnet", "vit"])
def test_networks_after_a_training_step(training_step, network):
    after = network_states(training_step.tensors, "out.intended_after.")[network]
    ours = {k: v for k, v in training_step.ours.items() if k.startswith(f"net{network + 1}.")}
    assert len(ours) == len(after)
    for name, expected in after.items():
        assert_parity(ours[f"net{network + 1}.{name}"], expected)


@pytest.mark.parametrize("network", [0, 1], ids=["convnet", "vit"])
def test_change_of_networks(training_step, network):
    """Over all parameters: a convolution's bias ahead of instance normalisation has no gradient but rounding."""
    before, after = (network_states(training_step.tensors, p)[network] for p in ("in.", "out.intended_after."))
    ours = torch.cat([(training_step.ours[f"net{network + 1}.{k}"] - v).flatten() for k, v in before.items()])
    assert_parity(ours, torch.cat([(after[k] - v).flatten() for k, v in before.items()]), CHANGE_TOLERANCE)


# --- training SSD ---------------------------------------------------------------------------------------------------


def split_features(tensors: dict[str, torch.Tensor]) -> list[list[Feature]]:
    """The ConvNet's maps and the ViT's tokens of the files as features."""
    maps, tokens = ([v for k, v in tensors.items() if k.startswith(f"in.features_{i}.")] for i in (1, 2))
    side = round((tokens[0].shape[1] - 1) ** 0.5)
    return [
        [Feature(m.mean((2, 3)), m) for m in maps],
        [Feature(t[:, 0], t[:, 1:].transpose(1, 2).unflatten(2, (side, side))) for t in tokens],
    ]


@pytest.fixture(scope="module")
def ssd_training(case) -> Result:
    """Aligned features, the gradients of one step, and the parameters after it."""
    tensors = read(case[0], "ssd_step", case[1])
    features = split_features(tensors)
    ssd = build_ssd(tensors, features)
    ours = dict(zip(("feature_1", "feature_2"), ssd(*features)))
    ours["loss"] = ssd_step(ssd, torch.optim.Adam(ssd.parameters(), RECIPE.training.ssd_lr), *features).view(1)
    for name, parameter in ssd.named_parameters():
        ours |= {f"grad.{name}": parameter.grad, f"after.{name}": parameter.detach()}
    return Result(ours, tensors)


@pytest.mark.parametrize("name", ["feature_1", "feature_2", "loss"])
def test_ssd(ssd_training, name):
    ssd_training.check(name)


@pytest.mark.parametrize("kind", ["grad", "after"])
def test_ssd_step(ssd_training, kind):
    expected = ssd_state(ssd_training.tensors, f"out.{kind}.")
    assert len(expected) == len(ssd_state(ssd_training.tensors, "in."))
    for name, theirs in expected.items():
        assert_parity(ssd_training.ours[f"{kind}.{name}"], theirs)


# --- clustering -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clustering(case) -> Result:
    """k-means from the start that a file gives."""
    tensors = read(case[0], "kmeans", case[1])
    rows, start = tensors["embedding"], tensors["init_centroids"]
    labels, centroids = kmeans(rows, len(start), start=start)
    first = kmeans(rows, len(start), start=start, iterations=1)[1]
    nearest = nearest_distinct(rows, centroids)
    ours = {"centroids_after_iter1": first, "final_labels": labels, "final_centroids": centroids}
    return Result(ours | {"query_indices": nearest}, tensors)


@pytest.mark.parametrize("name", ["centroids_after_iter1", "final_labels", "final_centroids", "query_indices"])
def test_kmeans(clustering, name):
    clustering.check(name)


# --- the fixture ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("source", ["oracle", "own"])
def test_plain_implementation(source, step):
    """What writes the fixture agrees with the released code, and with the fixture that is there."""
    tensors = read(source, step)
    for name, value in STEPS[step](tensors).items():
        assert_parity(value, tensors[name if step == "kmeans" else f"out.{name}"])
