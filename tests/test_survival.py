"""Runs that are killed, stopped and disturbed end in the bits of one that was left alone. KILLS: how often (5; `make torture`: 30)."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from hmdc.data import ImageData, load_dataset
from hmdc.engine import Loop
from hmdc.experiment import Experiment, results, run
from hmdc.parameters import resolve
from hmdc.recipes import recipe
from hmdc.run import Progress
from hmdc.synthetic import SyntheticSet
from hmdc.trainer import condense

KILLS = int(os.environ.get("KILLS", 5))
RECIPE = recipe("hmdc", ipc=1, preset="smoke").replace(outer=3, inner=4)

SERVED = ("hmdc.trainer", "hmdc.recipes", "hmdc.experiment", "sklearn.datasets")  # modules that processes have when they start

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")


def classes(n: int) -> ImageData:
    """The first digits."""
    digits = load_dataset("digits")
    parts = [part[labels < n] for images, labels in ((digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels))
             for part in (images, labels)]
    return ImageData(f"{n} digits", tuple("0123456789"[:n]), *parts)


def work(folder: Path) -> None:
    """Condense, saving after every step."""
    torch.set_num_threads(1)
    Progress.save_every = 0.0
    condense(RECIPE, classes(3), folder, device="cpu", progress=False)


@pytest.fixture(scope="module")
def server():
    """Processes that have torch and timm loaded when they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*SERVED, "test_survival"])
    return context


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory) -> tuple[Path, float]:
    """The folder of a run that was left alone, and the seconds that it took."""
    folder, times = tmp_path_factory.mktemp("undisturbed"), []
    for name in ("warm", "run"):
        begun = time.perf_counter()
        process = server.Process(target=work, args=(folder / name,))
        process.start()
        process.join()
        times.append(time.perf_counter() - begun)
        assert process.exitcode == 0
    return folder / "run", times[-1]


def same(ours: Path, theirs: Path) -> bool:
    """Images and history to the bit."""
    sets = [SyntheticSet.load(folder / "synthetic.safetensors") for folder in (ours, theirs)]
    histories = [(folder / "history.csv").read_text() for folder in (ours, theirs)]
    return torch.equal(*(syn.images for syn in sets)) and histories[0] == histories[1]


def killed(server, target, folder: Path, seconds: float) -> tuple[Path, int]:
    """Kill some work KILLS times, at any moment of the time that it takes alone; the folder in which it ended then, and how
    often work was taken up that had been saved.

    Work that ended before it was killed often enough begins anew in another folder, and the counting goes on.
    """
    draw, kills, taken_up, here = random.Random(0), 0, 0, folder / "0"
    for attempt in range(10 * KILLS):
        taken_up += bool(list(here.rglob("checkpoint.pt")))
        process = server.Process(target=target, args=(here,))
        process.start()
        process.join(draw.uniform(0.1, 0.9) * seconds if kills < KILLS else None)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        elif kills == KILLS:
            break
        elif process.exitcode == 0:
            here = folder / str(attempt)
    assert kills == KILLS and process.exitcode == 0
    assert not list(here.rglob("*checkpoint*")) and not list(here.rglob("*.partial"))
    return here, taken_up


def test_killed_at_any_moment_it_ends_in_the_same_bits(server, undisturbed, tmp_path):
    folder, seconds = undisturbed
    ours, taken_up = killed(server, work, tmp_path, seconds)
    assert same(ours, folder) and taken_up


def grid(folder: Path) -> Experiment:
    """Two methods, two condensations, two evaluations of each; a device that is named by number works in this process."""
    return Experiment.of(resolve({"preset": "smoke", "methods": "random,hmdc", "models": "convnet3", "seeds": "0,1x2", "ipc": 1,
                                  "device": "cpu:0", "out_dir": str(folder)}, ()))


def judge(folder: Path) -> None:
    """Condense and judge, saving after every step."""
    torch.set_num_threads(1)
    Progress.save_every = 0.0
    run(grid(folder), say=lambda line: None)


def test_a_grid_of_evaluations_that_is_killed_ends_in_the_same_table(server, tmp_path):
    for name in ("warm", "alone"):
        begun = time.perf_counter()
        process = server.Process(target=judge, args=(tmp_path / name,))
        process.start()
        process.join()
    disturbed, _ = killed(server, judge, tmp_path / "killed", time.perf_counter() - begun)
    alone = tmp_path / "alone"
    same_columns = ["method", "model", "seed", "evaluation", "iterations", "updates", "accuracy"]
    assert results(grid(disturbed))[same_columns].equals(results(grid(alone))[same_columns])


class Interrupted(Loop):
    """Breaks down at the third image step."""

    def match(self, *given):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 3:
            raise KeyboardInterrupt
        return super().match(*given)


def test_more_cores_than_classes_are_shared_as_before(monkeypatch, tmp_path):
    """Every class of two has two of four cores, in the first step of a process as in the others."""
    cores = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        monkeypatch.setattr(Progress, "save_every", 0.0)
        two = classes(2)
        with pytest.raises(KeyboardInterrupt):
            condense(RECIPE, two, tmp_path / "stopped", device="cpu", progress=False, engine=Interrupted)
        for name in ("stopped", "alone"):
            condense(RECIPE, two, tmp_path / name, device="cpu", progress=False)
    finally:
        torch.set_num_threads(cores)
    assert same(tmp_path / "stopped", tmp_path / "alone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_after_the_step(number, server, undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = server.Process(target=work, args=(folder,))
    process.start()
    while process.is_alive() and not (folder / "checkpoint.pt").is_file():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 1 and (folder / "checkpoint.pt").is_file() and not (folder / "synthetic.safetensors").exists()
    work(folder)
    assert same(folder, undisturbed[0])


def test_what_is_kept_can_be_read_by_those_who_may_read_the_folder(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)
    condense(RECIPE.replace(outer=1, inner=1), classes(3), tmp_path / "shared/run", device="cpu", progress=False)
    for path in (tmp_path / "shared/run").rglob("*.*"):
        if path.is_file() and "tensorboard" not in path.parts:
            assert path.stat().st_mode & 0o777 == 0o600 | path.parent.stat().st_mode & 0o044, path  # read, not written
