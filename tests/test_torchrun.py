"""A condensation that `torchrun` starts: any number of processes ends as one, and one that is killed ends the job."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hmdc.saves import read_state
from hmdc.synthetic import SyntheticSet

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(os.name != "posix" or not dist.is_available(), reason="torch has no distributed part here")]

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
CONDENSE = "-m hmdc condense --dataset digits --recipe hmdc --preset smoke --ipc 1 --device cpu --output".split()

# The command has no option for the number of steps. Every process of this program says who it is, and saves after every step.
LONGER = """
import os, sys
from pathlib import Path

from hmdc.ranks import joined
from hmdc.run import Progress
from hmdc.trainer import condense
from test_ranks import HMDC
from test_survival import classes

folder = Path(sys.argv[1])
Progress.save_every = 0.0
with joined():
    (folder / f"process{os.environ['RANK']}").write_text(str(os.getpid()))
    condense(HMDC.replace(outer=12), classes(3), folder / "run", device="cpu", progress=False)
"""


def torchrun(n: int, *asked: str | Path, **more) -> subprocess.Popen:
    """Start n processes; they find what this file's tests find."""
    paths = [str(path) for path in (Path(__file__).parent, Path(__file__).parent.parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen([*TORCHRUN, str(n), *map(str, asked)], env=environment, **more)


def images(path: Path) -> torch.Tensor:
    return SyntheticSet.load(path).images


def test_the_command_gives_the_same_images_with_one_two_and_three_processes(tmp_path):
    for n in (1, 2, 3):
        assert torchrun(n, *CONDENSE, tmp_path / f"{n}.safetensors").wait(600) == 0
        torch.testing.assert_close(images(tmp_path / f"{n}.safetensors"), images(tmp_path / "1.safetensors"), rtol=0, atol=1e-5)


def test_of_several_processes_one_trains_an_expert(tmp_path, monkeypatch):
    asked = " ".join(CONDENSE).replace("--recipe hmdc", "--recipe mtt").split()
    for n in (1, 2):
        (tmp_path / f"{n}").mkdir()
        monkeypatch.chdir(tmp_path / f"{n}")  # below which experts are kept
        job = torchrun(n, *asked, "set.safetensors", stderr=subprocess.PIPE)
        told = job.communicate(timeout=600)[1].decode()
        assert job.returncode == 0 and told.count("expert 1 of 1") == 1, told
    torch.testing.assert_close(images(tmp_path / "2/set.safetensors"), images(tmp_path / "1/set.safetensors"), rtol=0, atol=1e-5)


def longer(n: int, folder: Path) -> subprocess.Popen:
    """Start a run of sixty steps, in a folder."""
    folder.mkdir(exist_ok=True)
    (program := folder / "longer.py").write_text(LONGER)
    return torchrun(n, program, folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> torch.Tensor:
    """What one process makes that is left alone."""
    assert longer(1, folder := tmp_path_factory.mktemp("alone")).wait(600) == 0
    return images(folder / "run/synthetic.safetensors")


@pytest.mark.parametrize("victim", [0, 1], ids=["first", "second"])
def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(victim, alone, tmp_path):
    job, run = longer(2, tmp_path), tmp_path / "run"
    while not (run / "checkpoint.pt.previous").is_file():
        assert job.poll() is None
        time.sleep(0.02)
    members = [int((tmp_path / f"process{rank}").read_text()) for rank in (0, 1)]
    os.kill(members[victim], signal.SIGKILL)
    assert job.wait(60) != 0  # within a minute
    for member in members:
        with pytest.raises(ProcessLookupError):  # nobody is left
            os.kill(member, 0)
    # Killed between the two renames of a save, it leaves the save before alone.
    assert read_state(run / "checkpoint.pt", torch.device("cpu")) and not (run / "synthetic.safetensors").exists()
    assert longer(2, tmp_path).wait(600) == 0
    torch.testing.assert_close(images(run / "synthetic.safetensors"), alone, rtol=0, atol=1e-5)
    assert len((run / "history.csv").read_text().splitlines()) == 1 + 3 * 60  # every step once
