"""The reproduce notebooks as people run them: through papermill, at preset smoke."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import papermill
import pytest

from hmdc.figures import plot_along
from hmdc.history_figures import plot_distance, plot_magnitudes
from hmdc.recipes import recipe

ROOT = Path(__file__).resolve().parents[1]
TABLE1 = ["random", "random_packed", "kmeans_packed", "idc", "dream", "two_models", "hmdc"]
TABLE2 = ["kmeans_packed", "dream", "two_models", "two_models_gbm", "two_models_md", "hmdc_md_training", "hmdc_md_images", "hmdc"]
PARAMETERS = "preset dataset image_size split ipc methods models weights protocol seeds device out_dir".split()
each_notebook = pytest.mark.parametrize("name", ["table1", "table2", "figures"])


def notebook(name: str) -> Path:
    return ROOT / "nbs" / f"reproduce_{name}.ipynb"


def code(name: str) -> dict[str, str]:
    """The source of each cell, by its id."""
    cells = json.loads(notebook(name).read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in cells}


def execute(name: str, folder: Path, **parameters) -> None:
    """Run a notebook; what it finishes is kept in folder/kept."""
    asked = {"preset": "smoke", "device": "cpu", "out_dir": str(folder / "kept")} | parameters
    papermill.execute_notebook(
        notebook(name), folder / "out.ipynb", asked, kernel_name="python3", language="python", cwd=ROOT, progress_bar=False
    )


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """When each kept file was written, and what it holds."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (folder / "kept").rglob("*") if path.is_file()}


def drawn(stem: str) -> pd.DataFrame:
    """The rows behind a figure of preset smoke, whose images are there too."""
    for ending in ("png", "svg"):
        assert (ROOT / "figures" / f"{stem}-digits-smoke.{ending}").stat().st_size > 0
    return pd.read_csv(ROOT / "figures" / f"{stem}-digits-smoke.csv")


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> dict[str, dict]:
    """All three notebooks, one after the other, as `make reproduce` runs them; the kept files after each."""
    folder, after = tmp_path_factory.mktemp("reproduce"), {}
    for name in ("table1", "table2", "figures", "figures"):
        execute(name, folder, **({"ipc": "1,10"} if name == "figures" else {}))
        after[f"{name} again" if name in after else name] = files(folder)
    return after


def test_table1_has_every_row(kept):
    frame = drawn("table1")
    assert frame.method.unique().tolist() == TABLE1
    assert len(frame) == 14 and frame.accuracy.between(0, 100).all()
    assert {"commit", "torch", "weights", "condense_seconds", "evaluation", "updates", "rate_from"} <= set(frame.columns)
    ends = pd.read_csv(ROOT / "figures" / "bounds-digits-smoke.csv")
    assert ends.bound.unique().tolist() == ["all the data", "chance"] and len(ends) == 4
    assert (ROOT / "figures" / "table1-digits-smoke.txt").stat().st_size > 0


def test_table2_reuses_the_runs_of_table1(kept):
    assert drawn("table2").method.unique().tolist() == TABLE2
    assert "hmdc - kmeans_packed" in (ROOT / "figures" / "table2-digits-smoke.txt").read_text(encoding="utf-8")
    before, after = kept["table1"], kept["table2"]
    assert {path: after[path] for path in before} == before, "something was done again"
    new = {path.parent.name.split("-")[0] for path in set(after) - set(before)}
    assert new - {"tensorboard"} == {"two_models_gbm", "two_models_md", "hmdc_md_training", "hmdc_md_images", "snapshots", "results"}


def test_figures_reuse_the_runs_of_the_tables(kept):
    before, after = kept["table2"], kept["figures"]
    assert {path: after[path] for path in before} == before, "something was done again"
    runs = {path.parent.name for path in set(after) - set(before) if path.name == "run.json"}
    assert sorted(run.split("-")[0] for run in runs) == ["dream", "hmdc", "kmeans_packed", "random"]  # at ipc 1


def test_second_run_redoes_nothing(kept):
    assert kept["figures again"] == kept["figures"]


def test_figures_can_be_drawn_again_from_their_rows(kept):
    assert set(drawn("accuracy").method) == {*TABLE1, *TABLE2}
    assert sorted(drawn("accuracy-by-ipc").ipc.unique()) == [1, 10]
    plot_along(drawn("accuracy-by-ipc"), "ipc")
    assert sorted(drawn("accuracy-by-outer").outer.unique()) == [0, 1]
    plot_along(drawn("accuracy-by-outer"), "outer", {name: recipe(name).initial for name in ("dream", "hmdc")})
    assert set(drawn("gradient-magnitude").target) >= {"md"}
    plot_magnitudes(drawn("gradient-magnitude"))
    plot_distance(drawn("semantic-distance"))
    assert len(drawn("images")) == 11


def test_figures_of_few_methods(tmp_path):
    execute("figures", tmp_path, methods="random_packed", ipc=1, models="convnet3")


@pytest.mark.parametrize(
    "name, parameters, message",
    [
        ("table1", {"epoch": 3}, "unknown parameter epoch: the notebook has preset"),
        ("table1", {"preset": "fast"}, "unknown preset 'fast'"),
        ("table1", {"methods": "hdmc"}, "unknown method 'hdmc'"),
        ("table1", {"protocol": "best"}, "unknown protocol 'best'"),
        ("table1", {"dataset": "cats"}, "unknown dataset 'cats'"),
        ("table1", {"models": "resnet81"}, "unknown model 'resnet81'"),
        ("table1", {"ipc": 0}, "ipc is 0"),
        ("table2", {"ipc": "1,10"}, "a table has one number of images per class"),
        ("figures", {"ipc": "1,500"}, "lower ipc or factor"),
    ],
)
def test_bad_parameter_raises_before_any_work(tmp_path, monkeypatch, name, parameters, message):
    monkeypatch.chdir(ROOT)
    cells, names = code(name), {}
    for cell in ("imports", "parameters"):
        exec(cells[cell], names)
    names |= {"preset": "smoke", "device": "cpu", "out_dir": str(tmp_path / "kept")} | parameters  # as papermill does
    with pytest.raises((ValueError, OSError), match=message):
        for cell in ("resolve", "plan"):
            exec(cells[cell], names)
    assert not (tmp_path / "kept").exists()


def test_papermill_stops_at_a_bad_parameter(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter epoch: the notebook has preset"):
        execute("figures", tmp_path, epoch=3)
    assert not (tmp_path / "kept").exists()


@each_notebook
def test_cells_can_be_run_again_with_other_parameters(monkeypatch, name):
    monkeypatch.chdir(ROOT / "nbs")
    cells, names = code(name), {}
    for preset in ("quick", "smoke"):
        for cell in ("imports", "parameters", "resolve"):
            exec(cells[cell].replace('preset: str = "quick"', f'preset: str = "{preset}"'), names)
        assert names["settings"].preset == preset


@each_notebook
def test_help_reads_as_a_manual(name):
    shown = subprocess.run(
        [sys.executable, "-m", "papermill", "--help-notebook", str(notebook(name))], capture_output=True, text=True, check=True
    ).stdout
    for parameter in PARAMETERS:
        assert f"{parameter}: " in shown
