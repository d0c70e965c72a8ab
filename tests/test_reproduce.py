"""The reproduce notebook as people run it: through papermill, at preset smoke."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import papermill
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "nbs" / "reproduce_table1.ipynb"


def execute(tmp_path: Path, **parameters) -> None:
    papermill.execute_notebook(
        NOTEBOOK, tmp_path / "out.ipynb", {"preset": "smoke", "device": "cpu", "out_dir": str(tmp_path / "kept")} | parameters,
        kernel_name="python3", language="python", cwd=ROOT, progress_bar=False,
    )


def test_smoke_makes_every_row_and_finds_it_again(tmp_path):
    execute(tmp_path)
    frame = pd.read_csv(ROOT / "figures" / "table1-digits-smoke.csv")
    assert frame.method.unique().tolist() == [
        "random", "random_packed", "kmeans_packed", "idc", "dream", "two_models", "hmdc"
    ]
    assert len(frame) == 14 and frame.accuracy.between(0, 100).all()
    assert {"commit", "torch", "weights", "condense_seconds"} <= set(frame.columns)
    for suffix in ("txt", "png", "svg"):
        assert (ROOT / "figures" / f"table1-digits-smoke.{suffix}").stat().st_size > 0

    kept = sorted((tmp_path / "kept").rglob("*.*"))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept if path.is_file()}
    execute(tmp_path)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before, "something was done again"


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"epoch": 3}, "unknown parameter epoch: the notebook has preset"),
        ({"preset": "fast"}, "unknown preset 'fast'"),
        ({"methods": "hdmc"}, "unknown method 'hdmc'"),
        ({"protocol": "best"}, "unknown protocol 'best'"),
        ({"dataset": "cats"}, "unknown dataset 'cats'"),
        ({"models": "resnet81"}, "unknown model 'resnet81'"),
        ({"ipc": 0}, "ipc is 0"),
    ],
)
def test_bad_parameter_raises_before_any_work(tmp_path, parameters, message):
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        execute(tmp_path, **parameters)
    assert not (tmp_path / "kept").exists()


def test_cells_can_be_run_again_with_other_parameters(monkeypatch):
    monkeypatch.chdir(ROOT / "nbs")
    cells = {cell["id"]: "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]}
    names = {}
    for preset in ("quick", "smoke"):
        for cell in ("imports", "parameters", "resolve"):
            exec(cells[cell].replace('preset: str = "quick"', f'preset: str = "{preset}"'), names)
        assert names["settings"].preset == preset


def test_help_reads_as_a_manual():
    shown = subprocess.run(
        [sys.executable, "-m", "papermill", "--help-notebook", str(NOTEBOOK)], capture_output=True, text=True, check=True
    ).stdout
    for name in "preset dataset ipc methods models weights protocol seeds device out_dir".split():
        assert f"{name}: " in shown
