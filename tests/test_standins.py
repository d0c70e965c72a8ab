"""Stand-in weights: files that networks start from, the bits of a stopped training, what is done once."""

import subprocess
import urllib.error
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors import safe_open

from hmdc.data import ImageData, load_dataset
from hmdc.models import Member
from hmdc.standins import STANDINS, content_hash, found_standins, pretrain, standins

ROOT = Path(__file__).resolve().parents[1]
TINY = tuple(Member(name) for name in ("test_resnet", "test_vit"))  # timm's own for tests, of known weights
EPOCHS = 2


@pytest.fixture(scope="module")
def digits() -> ImageData:
    """Five batches, the last of them smaller, and a hundred test images."""
    full = load_dataset("digits").balanced_test(100)
    return replace(full, train_images=full.train_images[:600], train_labels=full.train_labels[:600])


def tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What a file holds, and its header."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def make(data: ImageData, folder: Path, say=lambda line: None, members=TINY, **other) -> tuple[Member, ...]:
    return standins(data, folder, **{"epochs": EPOCHS, "device": "cpu"} | other, members=members, say=say)


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory) -> Path:
    """A folder of two stand-ins."""
    folder = tmp_path_factory.mktemp("standins") / "new"
    assert make(digits, folder) == found_standins(folder, TINY)
    return folder


@pytest.mark.parametrize("member", TINY, ids=lambda member: member.model)
def test_a_file_holds_what_was_trained(digits, made, member):
    trained = pretrain(digits, member, EPOCHS, device="cpu", say=lambda line: None).model
    started = Member(member.model, str(made)).build(3, 16)
    assert started.weights == f"{member.model}.digits_16px.safetensors" and started.input_size == 16
    own = trained.state_dict()
    for name, found in started.model.state_dict().items():
        if not name.startswith(("fc.", "head.")):
            torch.testing.assert_close(found, own[name], rtol=2**-11, atol=2**-24)  # half a unit in float16's last place


def test_a_header_says_what_the_weights_are(digits, made):
    for member, needs in zip(TINY, ("{}", '{"img_size": 16, "patch_size": 2}')):
        state, said = tensors(made / f"{member.model}.digits_16px.safetensors")
        assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float16}
        assert not any(name.startswith(("fc.", "head.")) for name in state)
        assert said["sha256"] == content_hash(state)
        wanted = {"architecture": member.model, "timm_kwargs": needs, "dataset": "digits", "data": digits.fingerprint, "epochs": "2", "seed": "0"}
        assert wanted.items() <= said.items()
        assert 0 < float(said["accuracy"].split()[0]) <= 100 and {"commit", "torch", "timm", "cpu"} <= said.keys()


def test_a_stopped_training_ends_in_the_same_bits(digits, made, tmp_path):
    """Stopped after the first epoch of each network, by Ctrl-C."""
    def stop(line: str) -> None:
        if "epoch 1 of" in line:
            raise KeyboardInterrupt

    for member in TINY:
        with pytest.raises(KeyboardInterrupt):
            make(digits, tmp_path, stop)
        assert not (tmp_path / f"{member.model}.digits_16px.safetensors").exists()
        assert found_standins(tmp_path, (member,)) == ()  # the state beside is no file of weights
        assert len(list(tmp_path.glob("*.state"))) == 1
    said = []
    make(digits, tmp_path, said.append)
    assert [line for line in said if "epoch 1" in line] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in made.iterdir())
    for path in made.iterdir():
        assert tensors(path)[1]["sha256"] == tensors(tmp_path / path.name)[1]["sha256"]


def test_a_second_call_does_nothing(digits, made):
    before, said = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in made.iterdir()}, []
    assert make(digits, made, said.append) == found_standins(made, TINY)
    assert not said and {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in made.iterdir()} == before


def test_what_a_kill_left_beside_a_finished_file_is_removed(digits, tmp_path):
    """Between the file and the removal of what was kept on the way; the state of another training stays."""
    with mock.patch("hmdc.standins.forget_state"):
        make(digits, tmp_path, members=TINY[:1])
    assert len(list(tmp_path.glob("*.state*"))) == 2
    other = tmp_path / f"{TINY[0].model}.digits_16px.other.state"
    other.touch()
    make(digits, tmp_path, members=TINY[:1])
    assert list(tmp_path.glob("*.state*")) == [other]


@pytest.mark.parametrize("asked, message", [
    ({"epochs": 0}, "epochs is 0: it must be a whole number, at least 1"),
    ({"seed": -1}, "seed is -1"),
    ({"device": "tpu9"}, "device 'tpu9' cannot be used here"),
    ({"members": ()}, "members are none"),
    ({"members": (Member("convnet3"),)}, "convnet3 starts from scratch whatever a folder holds"),
    ({"members": (Member("test_resnet", "imagenet"),)}, "a stand-in is trained from scratch"),
    ({"seed": 1}, r"test_resnet.digits_16px.safetensors was made otherwise \(epochs 2, seed 0"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_made_is_said_before_any_work(digits, made, asked, message):
    with mock.patch("hmdc.standins.pretrain", side_effect=AssertionError("it began")), pytest.raises(ValueError, match=message):
        make(digits, made, **asked)


def test_a_folder_has_one_file_of_an_architecture(digits, made):
    other = replace(digits, name="others")
    with pytest.raises(ValueError, match="holds test_resnet.digits_16px.safetensors already.*pass another folder"):
        make(other, made)


def test_a_name_of_data_stays_within_the_folder(digits, tmp_path):
    make(replace(digits, name="../my photos"), tmp_path / "in", epochs=1, members=TINY[:1])
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["test_resnet.-my-photos_16px.safetensors"]
    assert len(list(tmp_path.iterdir())) == 1


def test_the_four_are_named_and_found_in_order(tmp_path):
    assert [member.model for member in STANDINS] == ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_b0"]
    for name in ("vit_tiny_patch16_224", "efficientnet_b0", "convnext_atto"):
        (tmp_path / f"{name}.cifar100_32px.safetensors").touch()
    assert [member.model for member in found_standins(tmp_path)] == ["vit_tiny_patch16_224", "convnext_atto", "efficientnet_b0"]
    assert {member.weights for member in found_standins(tmp_path)} == {str(tmp_path)}


def test_make_standins_says_that_its_data_are_out_of_reach(tmp_path, monkeypatch):
    """What the target runs, in a folder without data, where no server answers."""
    told = subprocess.run(["make", "--dry-run", "standins"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    line = told.replace("\\\n", "").split("from hmdc.data import")[-1].split("'")[0]
    assert '"cifar100"' in line and '"data/standins"' in line
    monkeypatch.chdir(tmp_path)
    with (mock.patch("urllib.request.urlopen", side_effect=urllib.error.URLError("Network is unreachable")),
          pytest.raises(OSError, match=r"cifar100 is not in data, and cannot be downloaded \(Network is unreachable\): put its images into data/cifar100/train")):
        exec(f"from hmdc.data import{line}", {})
    assert not list(tmp_path.iterdir())
