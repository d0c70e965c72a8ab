"""The study as people run it: through papermill, at preset smoke, all parts of it; a second run finds everything."""

import time
from pathlib import Path

import pandas as pd
import papermill
import pytest

ROOT = Path(__file__).resolve().parents[1]


def execute(folder: Path, **parameters) -> None:
    """Run the notebook; what it finishes is kept in folder/kept."""
    asked = {"preset": "smoke", "device": "cpu", "seeds": "0,1", "out_dir": str(folder / "kept")} | parameters
    papermill.execute_notebook(
        ROOT / "nbs/study_generalisation.ipynb", folder / "out.ipynb", asked, kernel_name="python3", language="python", cwd=ROOT,
        progress_bar=False,
    )


def drawn(name: str) -> pd.DataFrame:
    """What the study wrote of a part."""
    return pd.read_csv(ROOT / "figures" / f"study-{name}.csv")


@pytest.mark.slow
def test_every_part_runs_and_is_kept(tmp_path):
    execute(tmp_path, parts="all")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.json")}
    begun = time.time()
    said = drawn("hypotheses-digits-smoke")
    assert len(said) == 4 and set(said.verdict) <= {"confirmed", "contradicted", "not shown"}
    assert said.unseen.unique().tolist() == ["resnet18_cifar(width=8); vit_nano_patch4(depth=2, patch_size=8)"]
    assert drawn("members-digits-smoke").method.nunique() == 6
    assert drawn("imagenet-digits-smoke").method.unique().tolist() == ["random", "random_packed", "kmeans_packed", "hmdc", "hmdc_imagenet"]
    assert sorted(drawn("ipc-digits-smoke").ipc.unique()) == [1, 10]
    assert drawn("steps-digits-smoke").outer.max() == 1
    assert drawn("recipes-digits-smoke-held-out").method.unique().tolist()[0] == "hmdc"
    execute(tmp_path, parts="all")
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.json")}
    assert (ROOT / "figures/study-digits-smoke.csv").stat().st_mtime > begun  # drawn again from what is kept


@pytest.mark.slow
def test_a_part_alone_makes_its_own_runs_and_no_others(tmp_path):
    execute(tmp_path, parts="members")
    made = {path.name.split("-seed")[0] for path in (tmp_path / "kept" / "condensed").iterdir()}
    assert made == {"random_packed", "kmeans_packed", "one_model", "two_models_gbm", "three_models", "four_models"}


REFUSED = {
    "unknown parts recipe: hypotheses": dict(parts="recipe"),
    "the study has no parameter ipc, methods: it has preset": dict(ipc=50, methods="hmdc"),
}


@pytest.mark.slow
@pytest.mark.parametrize("message", REFUSED)
def test_a_wrong_request_is_refused_before_any_work(tmp_path, message):
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        execute(tmp_path, **REFUSED[message])
    assert not (tmp_path / "kept").exists()
