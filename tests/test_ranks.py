"""A condensation that several processes share ends as that of one; where one of them dies, the others end and all go on."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_survival import SERVED, classes

from hmdc.models import Member
from hmdc.recipes import recipe
from hmdc.run import Progress
from hmdc.synthetic import SyntheticSet
from hmdc.trainer import condense

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no distributed part here")

# Twenty steps with fresh networks every five: within one network's training, rounding grows until a real image changes.
SMALL = (Member("convnet3", kwargs={"width": 8}), Member("vit_nano_patch4", kwargs={"depth": 2, "embed_dim": 16}))
HMDC = recipe("hmdc", ipc=1, preset="smoke").replace(members=SMALL, outer=4, inner=5)
RECIPES = {
    "hmdc": HMDC,
    "features": recipe("dm", ipc=1, preset="smoke").replace(outer=20, inner=1),
    "batch norm": HMDC.replace(members=(SMALL[0], Member("resnet18_cifar", kwargs={"width": 4})), outer=1, inner=3),
}


def take_part(rank: int, world: int, group: Path, name: str, out: Path | None, made: Path | None) -> None:
    """One process of a group; the set that it gets goes to `made`."""
    torch.set_num_threads(1)
    Progress.save_every = 0.0
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=world)
    syn = condense(RECIPES[name], classes(3), out, device="cpu", progress=False)
    if made:
        syn.save(made / f"{rank}.safetensors")


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*SERVED, "test_ranks"])
    return context


def start(server, world: int, folder: Path, name: str, out: Path | None = None) -> list:
    folder.mkdir(exist_ok=True)
    group = folder / f"group{time.time_ns()}"
    started = [server.Process(target=take_part, args=(rank, world, group, name, out, folder)) for rank in range(world)]
    for process in started:
        process.start()
    return started


def sets(server, world: int, folder: Path, name: str, out: Path | None = None) -> list[SyntheticSet]:
    """What every process of a group of some size gets."""
    for process in (started := start(server, world, folder, name, out)):
        process.join()
    assert [process.exitcode for process in started] == [0] * world
    return [SyntheticSet.load(folder / f"{rank}.safetensors") for rank in range(world)]


@pytest.mark.parametrize("name", RECIPES)
def test_any_number_of_processes_gives_what_one_gives(name, server, tmp_path):
    """Three classes: two processes have one and two of them, the fourth of four has none."""
    (alone,) = sets(server, 1, tmp_path / "1", name)
    for world in (2, 4) if name == "features" else (2,):
        for syn in sets(server, world, tmp_path / f"{world}", name):
            torch.testing.assert_close(syn.images, alone.images, rtol=0, atol=1e-5)


def test_the_first_process_keeps_the_folder_and_a_group_of_another_size_goes_on(server, tmp_path):
    (alone,) = sets(server, 1, tmp_path / "1", "hmdc")
    out = tmp_path / "run"
    started = start(server, 2, tmp_path / "2", "hmdc", out)
    while not (out / "checkpoint.pt.previous").is_file():
        time.sleep(0.01)
    started[1].kill()
    begun = time.monotonic()
    for process in started:
        process.join(60)
    assert time.monotonic() - begun < 60 and started[0].exitcode not in (None, 0)
    assert (out / "checkpoint.pt").is_file() and not (out / "synthetic.safetensors").exists()
    for syn in sets(server, 3, tmp_path / "3", "hmdc", out):
        torch.testing.assert_close(syn.images, alone.images, rtol=0, atol=1e-5)
    assert len((out / "history.csv").read_text().splitlines()) == 1 + 3 * 20  # every step once
    for syn in sets(server, 2, tmp_path / "2", "hmdc", out):  # finished: read, and sent to those who have no folder
        torch.testing.assert_close(syn.images, alone.images, rtol=0, atol=1e-5)


def test_a_signal_to_any_process_stops_all_after_the_same_step(server, tmp_path):
    out = tmp_path / "run"
    started = start(server, 2, tmp_path / "2", "hmdc", out)
    while not (out / "checkpoint.pt").is_file():
        time.sleep(0.01)
    os.kill(started[1].pid, signal.SIGTERM)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [1, 1] and not (out / "synthetic.safetensors").exists()
    for syn in sets(server, 2, tmp_path / "2", "hmdc", out):
        assert torch.equal(syn.images, SyntheticSet.load(out / "synthetic.safetensors").images)
