"""What this repository promises about itself: its files agree with each other, and its notebooks keep their form."""

import ast
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pandas as pd
import papermill
import pytest
import yaml

import hmdc
from hmdc.report import table

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
COMPONENTS = [path for path in NOTEBOOKS if re.match(r"\d\d_", path.name)]
REPRODUCE = [path for path in NOTEBOOKS if path.name.startswith("reproduce_")]
MODULES = sorted((ROOT / "hmdc").glob("[!_]*.py"))

LARGEST_NOTEBOOK = 400_000  # bytes: it is read on the web
MOST_PARAMETERS = 10
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|tmp|work|mnt)/\w|\b[A-Z]:\\Users\\")


def settings() -> dict[str, str]:
    """The values of settings.ini."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def cells(path: Path, kind: str | None = None) -> list[dict]:
    """The cells of a notebook, or those of one kind, each with its source as one string."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found if kind in (None, cell["cell_type"])]


def each(paths: list[Path]):
    """Run a test once for every one of `paths`."""
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


# --- the files agree with each other


def test_version_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert hmdc.__version__ == settings()["version"] == citation["version"]


def test_environment_yml_has_the_requirements_of_settings_ini():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    conda = [item for item in dependencies if isinstance(item, str)]
    (pip,) = [item["pip"] for item in dependencies if isinstance(item, dict)]
    assert pip[0] == "--editable ."
    assert pip[1:] == settings()["requirements"].split() + settings()["dev_requirements"].split()
    assert f"python>={settings()['min_python']},<3.13" in conda


@each(MODULES)
def test_module_imports_only_what_is_required(path: Path):
    required = {re.split(r"[<>=!~\[]", item)[0].lower() for item in settings()["requirements"].split()}
    distributions = packages_distributions()
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    third_party = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"hmdc"}
    for name in sorted(third_party):
        providers = {distribution.lower() for distribution in distributions.get(name, [name])}
        assert providers & required, f"{path.name} imports {name}, which settings.ini does not require"


def test_installing_the_package_pulls_in_no_notebook_tools():
    plain = [item for item in requires("hmdc") if "extra ==" not in item]
    assert plain, "the package states no requirements"
    for tool in ("nbdev", "fastcore", "papermill", "jupyter", "ipykernel", "ipywidgets", "pytest"):
        assert not any(item.startswith(tool) for item in plain), f"pip install hmdc would bring {tool}"


def test_every_module_has_its_notebook():
    exporting = {path.stem.partition("_")[2]: path for path in COMPONENTS}
    for stem, path in exporting.items():
        directives = re.findall(r"^#\|\s*default_exp\s+(\S+)", "\n".join(cell["source"] for cell in cells(path, "code")), re.M)
        assert directives == [stem], f"{path.name} has to export {stem}, its default_exp says {directives}"
    assert sorted(exporting) == [path.stem for path in MODULES]


def test_no_tracked_file_names_a_path_of_one_machine():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file() or b"\0" in (content := path.read_bytes()):  # deleted, or binary
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
            if match := MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: {line[max(0, match.start() - 30):match.end() + 30]}")
    assert not found, "\n".join(found)


# --- the notebooks keep their form


@each(NOTEBOOKS)
def test_notebook_starts_with_title_and_sentence(path: Path):
    first = cells(path)[0]
    assert first["cell_type"] == "markdown"
    title, sentence, *rest = [line for line in first["source"].splitlines() if line.strip()]
    assert re.match(r"# \S", title) and re.match(r"> \S", sentence)
    # more would end up in the module's docstring, or spoil nbdev's front matter; and nbdev_test would run a reproduction
    assert rest == (["- skip_exec: true"] if path in REPRODUCE else [])


@each(NOTEBOOKS)
def test_notebook_cells_have_unique_readable_ids(path: Path):
    ids = [cell.get("id", "") for cell in cells(path)]
    unreadable = [i for i in ids if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", i) or re.match(r"[0-9a-f]{8}(-|$)", i)]
    assert not unreadable
    assert len(set(ids)) == len(ids), sorted(i for i in set(ids) if ids.count(i) > 1)


@each(NOTEBOOKS)
def test_notebook_has_the_plain_kernel_and_is_small(path: Path):
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    assert json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"] == kernel
    assert path.stat().st_size < LARGEST_NOTEBOOK


@each(COMPONENTS)
def test_component_notebook_shows_no_error_or_warning(path: Path):
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@each(REPRODUCE)
def test_reproduce_notebook_is_committed_without_outputs(path: Path):
    assert not [cell["id"] for cell in cells(path, "code") if cell["outputs"] or cell["execution_count"]]


@each(REPRODUCE)
def test_reproduce_notebook_explains_its_parameters(path: Path):
    (tagged,) = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    statements = ast.parse(tagged["source"]).body
    assert all(isinstance(statement, ast.AnnAssign) for statement in statements), "each parameter: name: type = value # help"
    assert len(statements) <= MOST_PARAMETERS
    # what `papermill --help-notebook` shows
    parameters = papermill.inspect_notebook(str(path))
    assert list(parameters) == [statement.target.id for statement in statements]
    assert not [name for name, parameter in parameters.items() if not parameter["help"]], "a parameter without # help"


# --- numbers


@each(sorted((ROOT / "figures" / "published").glob("table1-*.csv")))
def test_readme_shows_the_published_results(path: Path):
    frame = pd.read_csv(path)
    assert frame["commit"].str.fullmatch(r"[0-9a-f]{7,40}").all(), "published results come from a clean commit"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if path.name in readme:
        rows = table(frame)
        for line in [f"| method | {' | '.join(rows.columns)} |", *(f"| {m} | {' | '.join(r)} |" for m, r in rows.iterrows())]:
            assert line in readme, f"README.md cites {path.name}, which says: {line}"
