"""Runs over a Ray cluster of this machine: the same frame as local ones, also where a worker is killed."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from hmdc.experiment import Experiment, results, run
from hmdc.parameters import resolve

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `cluster`)")

SAME = ["method", "seed", "evaluation", "model", "accuracy", "iterations"]


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def experiment(out_dir: Path, engine: str) -> Experiment:
    settings = resolve({"preset": "smoke", "methods": "random,kmeans_packed,hmdc", "ipc": 1, "device": "cpu", "engine": engine,
                        "out_dir": str(out_dir)}, ())
    return Experiment.of(settings)


def kill_workers(folder: Path, killed: list[int]) -> None:
    """Kill the processes that do tasks, once one of them condenses; their numbers are noted."""
    while not list(folder.glob("condensed/hmdc-*/.lock")):
        time.sleep(0.01)
    for process in Path("/proc").glob("[0-9]*"):
        if _command(process).startswith("ray::_on_machine"):
            os.kill(int(process.name), signal.SIGKILL)
            killed.append(int(process.name))


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="finds processes where Linux lists them")
def test_a_cluster_gives_the_frame_of_this_machine_also_where_a_worker_dies(cluster, tmp_path):
    local, far, lost = experiment(tmp_path / "local", "local"), experiment(tmp_path / "ray", "ray"), experiment(tmp_path / "lost", "ray")
    for each in (local, far):
        run(each)
    killer = threading.Thread(target=kill_workers, args=(tmp_path / "lost", killed := []))
    killer.start()
    run(lost)
    killer.join()
    assert killed
    assert results(far)[SAME].equals(results(local)[SAME])
    assert results(lost)[SAME].equals(results(local)[SAME])
