"""Networks of every family: taps, double backward, the weights they start from, where their randomness comes from."""

import hashlib
import json
import os
import random
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from hmdc import Member, condense, create_model, evaluate, models, recipe, tap
from hmdc.data import ImageData, Statistics
from hmdc.image_files import resize
from hmdc.matching import Gradients, respond, target_values
from hmdc.md import Distillation
from hmdc.models import check_weights, weights_key
from hmdc.package_weights import packaged_file, packaged_state
from hmdc.provenance import seeded
from hmdc.ssd import SpatialSemanticDecomposition, shapes

WEIGHTS = Path(__file__).resolve().parents[1] / os.environ.get("HMDC_WEIGHTS", "../shared/weights")
STAND_INS = {name: WEIGHTS / f"{name}.cifar100_32px.safetensors" for name in ("resnet18", "vit_tiny_patch16_224")}
needs_stand_ins = pytest.mark.skipif(
    not all(file.is_file() for file in STAND_INS.values()),
    reason="no stand-in weights: set HMDC_WEIGHTS to the folder that holds those of resnet18 and vit_tiny_patch16_224",
)

ARCHITECTURES = [
    "convnet3", "resnet18", "resnet50", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224",
    "mixer_s16_224", "efficientnet_b0", "mobilenetv4_conv_small", "pvt_v2_b0", "poolformer_s12", "densenet121",
]
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
both_sizes = pytest.mark.parametrize("size", [32, pytest.param(224, marks=pytest.mark.slow)], ids="{}px".format)


def seed(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def build(name: str, size: int) -> models.Network:
    """A network in eval mode whose logits say something about the images: some heads start at zero."""
    network = create_model(name, 5, size, generator=seed(), **({"width": 16} if name == "convnet3" else {})).eval()
    torch.nn.init.normal_(network.classifier_parameters()[0], generator=seed(1))
    return network


def noise(size: int, n: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=seed(n))


@pytest.fixture
def small_data() -> ImageData:
    """Three classes of six noise images, 16 px."""
    images = torch.randint(256, (18, 3, 16, 16), dtype=torch.uint8, generator=seed())
    labels = torch.arange(18) % 3
    return ImageData("noise", ("a", "b", "c"), images, labels, images, labels)


# --- taps ------------------------------------------------------------------------------------------------------------

@both_sizes
@every_architecture
def test_tap_gives_the_logits_and_a_split_feature_of_every_layer(name, size):
    network, images = build(name, size), noise(size, 2)
    with torch.no_grad():
        logits, features = tap(network, images)
        torch.testing.assert_close(logits, network(images))
    assert logits.shape == (2, 5)
    assert (logits[0] - logits[1]).abs().max() > 1e-3 * logits.abs().max()
    assert len(features) >= 3
    for feature in features:
        channels = feature.spatial.shape[1]
        assert feature.semantic.shape == (2, channels)
        assert feature.spatial.ndim == 4 and feature.spatial.shape[0] == 2
        assert not torch.equal(feature.semantic[0], feature.semantic[1])


@both_sizes
@every_architecture
def test_the_targets_have_a_gradient_on_the_images(name, size):
    """Double backward, through cross-entropy and, beside a ConvNet, through SSD and mutual distillation."""
    networks, labels = [build("convnet3", size), build(name, size)], torch.tensor([3, 3])
    real = respond(networks, noise(size, 2), labels, create_graph=False)
    synthetic = respond(networks, noise(size, 3).requires_grad_(), labels, create_graph=True)
    with seeded(seed(4)):
        ssd = SpatialSemanticDecomposition(*(shapes(features) for _, features in real.taps))
    ensemble = SimpleNamespace(names=["convnet3", name], pairs={(0, 1): ssd})
    targets = [Gradients().bind(ensemble)[1], *Distillation().bind(ensemble)]
    for target, value in zip(targets, target_values(targets, real, synthetic)):
        gradient = torch.autograd.grad(value, synthetic.images, retain_graph=True)[0]
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).abs().amax(1) > 0).all(), target.name


# Vision transformers of timm that lay out their patches, or their prefix tokens, in ways of their own.
@pytest.mark.parametrize("name, kwargs", [
    ("test_vit", {}), ("test_vit_relpos", {}), ("mvitv2_tiny", {}), ("tnt_s_legacy_patch16_224", {}),
    ("xcit_nano_12_p16_224", {}), ("naflexvit_base_patch16_gap", {"embed_dim": 48, "depth": 2, "num_heads": 3}),
])
def test_other_vision_transformers_are_served_too(name, kwargs):
    network = create_model(name, 5, 32, generator=seed(), **kwargs).eval()
    with torch.no_grad():
        logits, features = tap(network, noise(32, 2))
    assert logits.shape == (2, 5)
    assert all(f.semantic.shape == f.spatial.shape[:2] for f in features)


@pytest.mark.parametrize("training", [False, True], ids=["evaluated", "training"])
@pytest.mark.parametrize("name, kwargs", [
    ("vit_small_patch14_reg4_dinov2", {"depth": 2}),  # register tokens beside the class token
    ("deit_tiny_distilled_patch16_224", {"depth": 2}), ("levit_128s", {}), ("pit_ti_distilled_224", {}),  # two heads
    ("vit_relpos_small_patch16_rpn_224", {"depth": 2}), ("vit_base_patch16_siglip_gap_224", {"depth": 2}),  # no class token
])
def test_the_logits_of_a_tap_are_the_models_own(name, kwargs, training):
    network = create_model(name, 5, 32, generator=seed(), **kwargs).train(training)
    images = noise(32, 4)
    with torch.no_grad():
        if training:  # the same draws of dropout for both, and running statistics play no part
            torch.manual_seed(0)
        logits, features = tap(network, images)
        if training:
            torch.manual_seed(0)
        own = network(images)
    assert isinstance(own, torch.Tensor), "two outputs"
    torch.testing.assert_close(logits, own)
    assert all(f.semantic.isfinite().all() and f.spatial.ndim == 4 for f in features)


@pytest.mark.parametrize("header, expected", [(None, 176), ({}, 176), ({"timm_kwargs": "{}"}, 32)])
def test_a_file_of_the_hubs_weights_takes_images_at_the_hubs_size(tmp_path, header, expected):
    """A file that says nothing of its arguments is the hub's own; one that does was made elsewhere, and decides itself."""
    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    save_file(state, tmp_path / "resnet10t.safetensors", metadata=header)
    assert create_model("resnet10t", 3, 32, str(tmp_path)).input_size == expected
    assert create_model("resnet10t", 3, 32, str(tmp_path), input_size=64).input_size == 64


# --- architectures without taps --------------------------------------------------------------------------------------

@pytest.fixture
def untappable(monkeypatch) -> Member:
    """Every architecture of timm 1.0.31 can be tapped; DenseNet as it was before."""
    monkeypatch.delattr(timm.models.densenet.DenseNet, "forward_intermediates", raising=False)
    return Member("densenet121", kwargs={"growth_rate": 4, "block_config": (1, 1)})


def test_an_architecture_without_taps_says_so(untappable, small_data, tmp_path):
    clear = "DenseNet has no forward_intermediates in timm .*can be evaluated, but not condense"
    with pytest.raises(TypeError, match=clear):
        tap(untappable.build(3, 16), noise(16, 0))
    members = (*recipe("dream", preset="smoke").members, untappable)
    with pytest.raises(TypeError, match=clear):
        condense(recipe("two_models", ipc=1, preset="smoke", members=members), small_data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_architecture_without_taps_is_evaluated(untappable, small_data):
    syn = condense(recipe("random", ipc=1), small_data, progress=False)
    frame = evaluate(syn, small_data, [untappable], [0], length=1, progress=False)
    assert frame.weights.tolist() == ["scratch"] and frame.accuracy.between(0, 100).all()


# --- weights from files ----------------------------------------------------------------------------------------------

def assert_backbone(network: models.Network, file: Path) -> None:
    """The network holds the file's values as float32, and nothing but its classifier beside them."""
    state, classifier = network.model.state_dict(), {id(p) for p in network.classifier_parameters()}
    with safe_open(file, framework="pt") as stored:
        for key in stored.keys():
            kept = stored.get_tensor(key)
            if kept.is_floating_point():
                assert state[key].dtype == torch.float32
                kept = kept.float()
            assert torch.equal(state[key], kept), key
        fresh = [name for name, p in network.model.named_parameters() if name not in set(stored.keys())]
    assert {id(p) for name, p in network.model.named_parameters() if name in fresh} == classifier


def assert_fresh_classifier(name: str, weights: Path) -> None:
    """It follows the generator, and the backbone does not."""
    one, same, other = (create_model(name, 7, 32, str(weights), generator=seed(n)) for n in (0, 0, 1))
    head, again, different = (network.classifier_parameters()[0] for network in (one, same, other))
    assert len(head) == 7 and torch.equal(head, again) and not torch.equal(head, different)


@needs_stand_ins
def test_stand_in_resnet18():
    network = create_model("resnet18", 10, 16, str(WEIGHTS), generator=seed())
    assert_backbone(network, STAND_INS["resnet18"])
    assert_fresh_classifier("resnet18", WEIGHTS)
    assert network.weights == STAND_INS["resnet18"].name and network.input_size == 16  # the data's


@needs_stand_ins
def test_stand_in_vit_tiny_has_the_input_size_and_patch_of_its_header():
    network = create_model("vit_tiny_patch16_224", 10, 16, str(WEIGHTS), generator=seed())
    assert_backbone(network, STAND_INS["vit_tiny_patch16_224"])
    assert_fresh_classifier("vit_tiny_patch16_224", WEIGHTS)
    assert network.weights == STAND_INS["vit_tiny_patch16_224"].name
    assert network.input_size == 32 and network.model.patch_embed.patch_size == (8, 8)
    assert network(noise(16, 0)).shape == (2, 10)


@needs_stand_ins
def test_convnet3_starts_from_scratch_whatever_is_asked_and_says_so(small_data):
    asked = (str(WEIGHTS), "scratch")
    with_folder, from_scratch = (create_model("convnet3", 3, 16, weights, generator=seed()) for weights in asked)
    assert with_folder.weights == "scratch"
    assert all(map(torch.equal, with_folder.parameters(), from_scratch.parameters()))
    syn = condense(recipe("random", ipc=1), small_data, progress=False)
    frame = evaluate(syn, small_data, ["convnet3", "resnet18"], [0], weights=str(WEIGHTS), length=1, progress=False)
    assert frame.weights.tolist() == ["scratch", STAND_INS["resnet18"].name]


@needs_stand_ins
def test_a_model_that_the_stand_ins_lack():
    with pytest.raises(FileNotFoundError, match=r"no weights of resnet50 in .*it holds resnet18\.cifar100.*expected "
                                                r"resnet50\[\.tag\]\.safetensors"):
        create_model("resnet50", 10, 32, str(WEIGHTS))


@pytest.fixture
def own_weights(tmp_path) -> Path:
    """A folder as somebody might make it: float16, with the old classifier, the arguments in the header."""
    for name, kwargs in {"test_resnet": {}, "test_vit": {"img_size": 32, "patch_size": 8}}.items():
        state = create_model(name, 10, 32, generator=seed(9), **kwargs).model.state_dict()
        half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        save_file(half, tmp_path / f"{name}.mine.safetensors", metadata={"timm_kwargs": json.dumps(kwargs)})
    return tmp_path


@pytest.mark.parametrize("name, input_size", [("test_resnet", 16), ("test_vit", 32)])
def test_weights_of_ones_own_lose_their_classifier(own_weights, name, input_size):
    file = own_weights / f"{name}.mine.safetensors"
    for weights in (own_weights, file):
        network = create_model(name, 7, 16, str(weights), generator=seed())
        assert (network.weights, network.input_size) == (file.name, input_size)
        with safe_open(file, framework="pt") as stored:
            for key, value in network.model.state_dict().items():
                if value.shape[:1] == (7,):  # the classifier: the file has ten classes
                    continue
                assert torch.equal(value, stored.get_tensor(key).to(value.dtype)), key
    assert_fresh_classifier(name, own_weights)


def test_weights_of_another_architecture_are_refused(own_weights):
    with pytest.raises(ValueError, match="weights test_resnet.mine.safetensors do not fit test_vit"):
        create_model("test_vit", 7, 32, str(own_weights / "test_resnet.mine.safetensors"))


def test_weights_of_another_width_are_refused(own_weights):
    with pytest.raises(ValueError, match="weights test_vit.mine.safetensors do not fit test_vit"):
        create_model("test_vit", 7, 32, str(own_weights), embed_dim=32, num_heads=1)


# --- ImageNet weights ------------------------------------------------------------------------------------------------

def forget() -> None:
    """Architectures, weights and what was found within reach are remembered for the process."""
    for function in vars(models).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture
def fresh_checks():
    forget()
    yield
    forget()


@pytest.fixture
def not_cached(fresh_checks, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)


def out_of_reach(*_, **__):
    raise ConnectionError("no route to host")


def forbidden(*_, **__):
    raise AssertionError("this should not have been called")


OUT_OF_REACH = (r"ImageNet weights of {} are neither cached nor within reach .*pass weights='scratch', or a folder "
                r"that holds {}\.safetensors")


def test_imagenet_weights_out_of_reach_are_said_at_once(not_cached, monkeypatch, small_data, tmp_path):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", out_of_reach)
    syn = condense(recipe("random", ipc=1), small_data, progress=False)
    monkeypatch.setattr(models, "create_model", forbidden)
    start = time.perf_counter()
    with pytest.raises(OSError, match=OUT_OF_REACH.format("vit_tiny_patch16_224", "vit_tiny_patch16_224")):
        condense(recipe("hmdc", ipc=1), small_data, out=tmp_path / "run")
    with pytest.raises(OSError, match=OUT_OF_REACH.format("resnet18", "resnet18")):
        evaluate(syn, small_data, ["convnet3", "resnet18"], [0], weights="imagenet")
    assert time.perf_counter() - start < 5
    assert not (tmp_path / "run").exists()


def test_a_silent_server_is_given_up_within_seconds(not_cached, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_: f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        start = time.perf_counter()
        with pytest.raises(OSError, match="neither cached nor within reach"):
            check_weights("test_resnet", "imagenet")
    assert time.perf_counter() - start < 15


def test_cached_imagenet_weights_need_no_network(fresh_checks, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "cache/model.safetensors")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", forbidden)
    assert check_weights("resnet18", "imagenet") == "imagenet"


def test_a_model_without_published_weights_is_not_looked_for(fresh_checks, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", forbidden)
    assert check_weights("convnet3", "imagenet") == check_weights("vit_nano_patch4", "imagenet") == "scratch"


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_imagenet_weights_keep_their_input_size(fresh_checks, monkeypatch, name):
    """With timm's download replaced by a network of known values."""
    real, published = timm.create_model, timm.create_model(name, num_classes=0).state_dict()

    def download(name, pretrained=False, **kwargs):
        model = real(name, **kwargs)
        if pretrained:
            model.load_state_dict(published)
        return model

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "cache/model.safetensors")
    monkeypatch.setattr(timm, "create_model", download)
    before = global_states()
    network = create_model(name, 5, 32, "imagenet", generator=seed())
    assert_untouched(before)
    assert network.weights == "imagenet" and network.input_size == network.model.pretrained_cfg["input_size"][-1] == 160
    state = network.model.state_dict()
    assert published and all(torch.equal(state[key], value) for key, value in published.items())
    assert network(noise(32, 0)).shape == (2, 5)


# --- ImageNet weights that are packages ------------------------------------------------------------------------------

LITE = "tf_efficientnet_lite0", "tf_efficientnet_lite1"
needs_packages = pytest.mark.skipif(not all(map(packaged_file, LITE)), reason="no packages of weights: pip install '.[imagenet-lite]'")


def counted(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The tensors without the counters of batch norm, in their order."""
    return [value for key, value in state.items() if not key.endswith("num_batches_tracked")]


@needs_packages
@pytest.mark.parametrize("name, tensors, size", [(LITE[0], 247, 224), (LITE[1], 322, 240)])
def test_a_network_starts_from_the_numbers_of_a_package_without_a_hub(fresh_checks, monkeypatch, name, tensors, size):
    for function in ("try_to_load_from_cache", "get_hf_file_metadata"):
        monkeypatch.setattr(huggingface_hub, function, forbidden)
    file, before = packaged_file(name), global_states()
    assert check_weights(name, "imagenet") == file.name
    network = create_model(name, 10, 32, "imagenet", generator=seed())
    assert_untouched(before)
    held, own = counted(torch.load(file, weights_only=True)), counted(network.model.state_dict())
    assert len(held) == len(own) == tensors
    assert all(map(torch.equal, held[:-2], own[:-2])) and [len(value) for value in own[-2:]] == [10, 10]  # the classifier is new
    assert (network.weights, network.input_size, network.statistics) == (file.name, size, Statistics([0.5] * 3, [0.5] * 3))


@needs_packages
def test_the_name_of_a_result_tells_which_package_it_started_from(tmp_path, monkeypatch):
    ours = weights_key(LITE[0], "imagenet")
    assert ours["weights"] == hashlib.sha256(packaged_file(LITE[0]).read_bytes()).hexdigest()
    (tmp_path / "other.pth").write_bytes(b"other numbers")
    monkeypatch.setattr(models, "packaged_file", lambda name: tmp_path / "other.pth")
    assert weights_key(LITE[0], "imagenet") != ours
    monkeypatch.setattr(models, "packaged_file", lambda name: None)  # the hub's
    assert weights_key(LITE[0], "imagenet") == {}


@needs_packages
@pytest.mark.parametrize("name", LITE)
def test_the_numbers_of_a_package_recognise_a_photograph(name):
    """So tensors that agree in shape are not in each other's places."""
    model = timm.create_model(name).eval()
    model.load_state_dict(packaged_state(name))
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        scores = model(Statistics([0.5] * 3, [0.5] * 3).normalise(resize(photograph, 224)))
    assert 698 in scores.topk(3).indices  # palace


@needs_packages
def test_hmdc_takes_a_step_with_a_network_of_a_package(small_data):
    members = Member("convnet3", kwargs={"width": 4}), Member(LITE[0], "imagenet", input_size=64)
    syn = condense(recipe("hmdc", ipc=1, preset="smoke", inner=1, members=members), small_data, progress=False)
    assert syn.images.isfinite().all()

    networks, labels = [member.build(3, 16, seed()).eval() for member in members], torch.tensor([1, 1])
    torch.nn.init.normal_(networks[1].classifier_parameters()[0], generator=seed(1))
    real = respond(networks, noise(16, 2), labels, create_graph=False)
    synthetic = respond(networks, noise(16, 3).requires_grad_(), labels, create_graph=True)
    ensemble = SimpleNamespace(names=["convnet3", LITE[0]], pairs={
        (0, 1): SpatialSemanticDecomposition(*(shapes(features) for _, features in real.taps))})
    targets = [*Gradients().bind(ensemble), *Distillation().bind(ensemble)]
    for target, value in zip(targets, target_values(targets, real, synthetic)):
        gradient = torch.autograd.grad(value, synthetic.images, retain_graph=True)[0]
        assert gradient.isfinite().all() and gradient.any(), target.name


# --- randomness ------------------------------------------------------------------------------------------------------

def global_states() -> tuple:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()


def assert_untouched(before: tuple) -> None:
    now = global_states()
    assert torch.equal(now[0], before[0]) and now[1:] == before[1:]


@pytest.mark.parametrize("name", ["convnet3", "vit_nano_patch4", "resnet18", "swin_tiny_patch4_window7_224"])
def test_a_network_follows_its_generator_and_nothing_else(name):
    forget()  # looking at an architecture for the first time must leave no trace either
    before = global_states()
    one = create_model(name, 5, 32, generator=seed(0)).state_dict()
    assert_untouched(before)
    torch.rand(7)  # the global state moves on
    same, other = (create_model(name, 5, 32, generator=seed(n)).state_dict() for n in (0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_one_generator_gives_one_network_after_another():
    generator = seed()
    first, second = (create_model("convnet3", 5, 32, generator=generator, width=8) for _ in range(2))
    assert not torch.equal(first.model.classifier.weight, second.model.classifier.weight)


def test_condense_and_evaluate_leave_the_global_generators_alone(small_data):
    before = global_states()
    syn = condense(recipe("hmdc", ipc=1, preset="smoke"), small_data, progress=False)
    assert_untouched(before)
    # Dropout draws from the global generator, which is why it is lent a seed of ours.
    evaluated = [Member("convnet3", kwargs={"width": 8}), Member("test_vit", kwargs={"proj_drop_rate": 0.5})]
    frames = []
    for _ in range(2):
        before = global_states()
        frames.append(evaluate(syn, small_data, evaluated, [0, 1], length=2, progress=False))
        assert_untouched(before)
        torch.rand(7)
    assert frames[0].drop(columns="seconds").equals(frames[1].drop(columns="seconds"))


def test_condense_follows_its_seed_and_nothing_else(small_data):
    tiny = recipe("hmdc", ipc=1, preset="smoke", inner=1)
    one = condense(tiny, small_data, seed=0, progress=False).images
    torch.rand(7)
    assert torch.equal(one, condense(tiny, small_data, seed=0, progress=False).images)
    assert not torch.equal(one, condense(tiny, small_data, seed=1, progress=False).images)
