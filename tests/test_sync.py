"""The modules are what the notebooks export, and the notebooks are clean.

Both checks work on copies, so they find uncommitted mistakes and never touch a file of the working tree.
"""

import difflib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[!._]*.ipynb"))
MODULES = sorted(path for path in (ROOT / "hmdc").glob("*.py") if path.name not in ("__init__.py", "_modidx.py"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with its notebooks and its one hand-written module, and no exported ones."""
    for path in [ROOT / "settings.ini", ROOT / "hmdc" / "__init__.py", *NOTEBOOKS]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    return tmp_path


def nbdev(command: str, project: Path) -> None:
    """Run an nbdev command in the folder `project`."""
    # nbdev_export does nothing, silently, where nbdev_test has left its mark in the environment
    environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
    command = [str(Path(sys.executable).with_name(command))]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def difference(committed: Path, fresh: Path) -> str:
    """The first lines of the difference of two files."""
    texts = [path.read_text(encoding="utf-8").splitlines() for path in (committed, fresh)]
    lines = list(difflib.unified_diff(*texts, fromfile=str(committed.relative_to(ROOT)), tofile="as nbdev writes it", lineterm=""))
    return "\n".join(lines[:20] or ["(they differ in line ends or in the last line)"])


def test_modules_are_what_the_notebooks_export(project: Path):
    nbdev("nbdev_export", project)
    exported = {path.name: path for path in (project / "hmdc").glob("*.py") if path.name != "_modidx.py"}
    committed = {path.name: path for path in [ROOT / "hmdc" / "__init__.py", *MODULES]}

    without_notebook = sorted(committed.keys() - exported.keys())
    assert not without_notebook, f"modules that no notebook exports: {without_notebook}; delete them"
    missing = sorted(exported.keys() - committed.keys())
    assert not missing, f"modules that were not exported: {missing}; run `make export`"
    changed = [name for name in committed if committed[name].read_bytes() != exported[name].read_bytes()]
    report = "\n".join(difference(committed[name], exported[name]) for name in changed)
    assert not changed, f"{changed} differ from what their notebooks export; run `make export`\n{report}"


def test_notebooks_are_clean(project: Path):
    nbdev("nbdev_clean", project)
    cleaned = {path: project / path.relative_to(ROOT) for path in NOTEBOOKS}
    changed = [path for path in NOTEBOOKS if path.read_bytes() != cleaned[path].read_bytes()]
    names = [path.name for path in changed]
    report = "\n".join(difference(path, cleaned[path]) for path in changed)
    assert not changed, f"{names} are not clean; run `make export`\n{report}"
