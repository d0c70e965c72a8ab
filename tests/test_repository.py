"""What this repository promises about itself: its files agree with each other. The notebooks' form: test_notebooks.py."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pandas as pd
import pytest
import yaml

import hmdc
from hmdc import hypotheses
from hmdc.matching import Gradients
from hmdc.md import Distillation
from hmdc.paradigms import Characteristic, CrossEntropy, Discrimination, Features
from hmdc.protocols import Protocol
from hmdc.real import Real, Store
from hmdc.recipes import recipe
from hmdc.report import AVERAGE, runs, table
from hmdc.settings import Ages, Experts, Length, Motion, Training
from hmdc.verdicts import as_text, by_model, differences, holm, verdict_table

ROOT = Path(__file__).parent.parent
COMPONENTS = sorted((ROOT / "nbs").glob("[0-9][0-9]*_*.ipynb"))
NOTEBOOKS = sorted((ROOT / "nbs").glob("[!._]*.ipynb"))
MODULES = sorted(path for path in (ROOT / "hmdc").glob("*.py") if path.name not in ("__init__.py", "_modidx.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
PUBLISHED = ROOT / "figures" / "published"
README, NUMBERS = ROOT / "README.md", PUBLISHED / "README.md"

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
    lists = [name for name in settings() if name.endswith("requirements") and name != "dev_requirements"]  # extras are loaded within functions
    required = {re.split(r"[<>=!~\[]", item)[0].lower() for name in lists for item in settings()[name].split()}
    distributions = packages_distributions()
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    third_party = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"hmdc"}
    for name in sorted(third_party):
        providers = {distribution.lower() for distribution in distributions.get(name, [name])}
        assert providers & required, f"{path.name} imports {name}, which settings.ini does not require"


def private(name: str | None) -> bool:
    return bool(name) and name.startswith("_") and not name.startswith("__")


def private_names_of_others(tree: ast.AST) -> list[str]:
    """What a piece of code takes of modules of hmdc that begins with an underscore: imported, read, replaced."""
    modules, found = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").partition(".")[0] == "hmdc"):
            found += [alias.name for alias in node.names if private(alias.name)]
            stems = {path.stem for path in MODULES}
            modules |= {alias.asname or alias.name for alias in node.names if alias.name in stems}
        if isinstance(node, ast.Import):
            names = [alias for alias in node.names if alias.name.partition(".")[0] == "hmdc"]
            modules |= {alias.asname or alias.name for alias in names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            owner = ast.unparse(node.value)
            if owner in modules or owner.startswith("hmdc."):
                found.append(f"{owner}.{node.attr}")
        if isinstance(node, ast.Call) and node.args:  # monkeypatch.setattr(module, "_name", …), getattr(module, "_name")
            owner, *others = node.args
            names = [each.value for each in others if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            if ast.unparse(owner) in modules:
                found += [f"{ast.unparse(owner)}.{name}" for name in names if private(name)]
            if isinstance(owner, ast.Constant) and re.fullmatch(r"hmdc\.[\w.]*\._\w+", str(owner.value)):
                found.append(owner.value)
    return found


def test_what_is_private_is_found():
    code = """
import hmdc.run, hmdc.data as d
from hmdc import trainer
from hmdc.models import _start, tap
from . import engine
trainer._begin(); d._folder; hmdc.run._note_in; engine._x; tap.__wrapped__; self._living; torch._C
monkeypatch.setattr(trainer, "_begin", work); monkeypatch.setattr("hmdc.run._note_in", work)
"""
    assert sorted(private_names_of_others(ast.parse(code))) == sorted(
        ["_start", "trainer._begin", "d._folder", "hmdc.run._note_in", "engine._x", "trainer._begin", "hmdc.run._note_in"]
    )


def python(source: str) -> str:
    """A cell's source without the lines that only IPython reads."""
    return "" if source.startswith("%%") else re.sub(r"^\s*[%!].*$", "", source, flags=re.M)


@each([*MODULES, *NOTEBOOKS, *TESTS])
def test_private_names_stay_in_their_module(path: Path):
    """A notebook may use those of the module that it exports."""
    if path.suffix == ".py":
        sources = [path.read_text(encoding="utf-8")]
    else:
        sources = ["\n".join(python(cell["source"]) for cell in cells(path, "code"))]
    found = [name for source in sources for name in private_names_of_others(ast.parse(source))]
    assert not found, f"{path.name} reaches for {', '.join(sorted(set(found)))}: private names of other modules"


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


# --- words

FOREIGN = {"RAY_ADDRESS", "GLIBC_TUNABLES", "fp32_precision", "nbdev_update"}  # names of other projects
TO_BE = {"hmdc_plus"}  # a recipe that the study looks for


def prose(path: Path) -> str:
    """What is written for people: a page, or the text cells of a notebook; without blocks of code."""
    text = path.read_text(encoding="utf-8") if path.suffix == ".md" else "\n".join(cell["source"] for cell in cells(path, "markdown"))
    return re.sub(r"```.*?```", "", text, flags=re.S)


@each([*NOTEBOOKS, README, NUMBERS, ROOT / "CONTRIBUTING.md"])
def test_names_in_the_text_are_names_in_the_code(path: Path):
    """Of every name in backticks that has an underscore, some code or some file is called so."""
    sources = [file.read_text(encoding="utf-8") for file in (*MODULES, *TESTS, ROOT / "Makefile", ROOT / "settings.ini")]
    sources += [cell["source"] for notebook in NOTEBOOKS for cell in cells(notebook, "code")]
    known = set(re.findall(r"\w+", "\n".join(sources))) | {file.stem for file in (*NOTEBOOKS, *TESTS)} | FOREIGN | TO_BE
    named = {word for span in re.findall(r"`([^`\n]+)`", prose(path)) for word in re.findall(r"\w*[a-zA-Z]\w*", span) if "_" in word}
    assert not named - known, f"{path.name} names what is not there: {', '.join(sorted(named - known))}"


def test_nobody_is_told_to_install_another_project():
    """On the index of packages, `hmdc` is a program of somebody else."""
    written = {path.name: path.read_text(encoding="utf-8") for path in (*NOTEBOOKS, *MODULES, *ROOT.glob("*.md"), ROOT / "Makefile")}
    assert not [name for name, text in written.items() if re.search(r"pip install ['\"\\]*hmdc\b", text)]


# --- help

GROUPS = (Store, Real, Motion, Training, Ages, Experts, Length, Protocol)
TARGETS = (Gradients, Distillation, Features, Characteristic, Discrimination, CrossEntropy)


def methods(what: type) -> list[Callable]:
    """What a class defines to be called, by public names; functions that are its fields' defaults are defined elsewhere."""
    found = [getattr(what, name) for name in vars(what) if not name.startswith("_") and inspect.isroutine(getattr(what, name))]
    return [each for each in found if getattr(each, "__qualname__", "").startswith(f"{what.__name__}.")]


def used_on_pages() -> list[Callable]:
    """Functions and classes that the pages, the notebooks which export nothing, import from a module of the package."""
    lines = {line for path in NOTEBOOKS if path not in COMPONENTS for cell in cells(path, "code") for line in cell["source"].splitlines()
             if line.startswith("from hmdc.")}
    named = {(found.module, alias.name) for line in lines for found in ast.parse(line).body for alias in found.names}
    found = [getattr(importlib.import_module(module), name) for module, name in sorted(named)]
    return [each for each in found if callable(each) and getattr(hmdc, each.__name__, None) is not each]


def unexplained(what: Callable) -> list[str]:
    """Parameters that help() does not explain: by `name: …`, or in a short one by its name in backticks."""
    text = inspect.getdoc(what) or ""
    return [name for name in inspect.signature(what).parameters
            if name != "self" and not re.search(rf"`{name}`|(?<![\w.]){name}(, \w+)*:", text)]


@pytest.mark.parametrize("what", [*(getattr(hmdc, name) for name in hmdc.__all__), *GROUPS, *used_on_pages()], ids=lambda what: what.__name__)
def test_help_explains_every_parameter(what):
    public = [what, *(methods(what) if inspect.isclass(what) else ())]
    assert not {each.__qualname__: unexplained(each) for each in public if unexplained(each) or not inspect.getdoc(each)}


@pytest.mark.parametrize("what", TARGETS, ids=lambda what: what.__name__)
def test_help_explains_what_a_target_asks_for(what):
    assert not unexplained(what)


# --- examples


def test_readme_examples_run(tmp_path, monkeypatch):
    """Its blocks of Python one after the other, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
    fewer = "\n".join(blocks).replace("outer=1)", "outer=1, inner=1)").replace("length=200", "length=2")
    assert fewer.count("inner=1") == 1 and fewer.count("length=2)") == 2 and "length=200" not in fewer
    names = {}
    exec(compile(fewer, README.name, "exec"), names)
    assert names["recipe"].name == "hmdc_convnext" and len(names["images"]) == len(names["labels"]) == 40
    assert len(names["frame"]) == 2


# --- numbers



def published(path: Path) -> pd.DataFrame:
    """The rows of a published file, which come from a clean commit."""
    frame = pd.read_csv(path)
    assert frame["commit"].str.fullmatch(r"[0-9a-f]{7,40}").all(), "published results come from a clean commit"
    return frame


def assert_shown(page: Path, path: Path, lines: list[str]) -> None:
    text = page.read_text(encoding="utf-8")
    for line in [path.name, *lines]:
        assert line in text, f"{page.relative_to(ROOT)} cites {path.name}, which says: {line}"


def table_lines(title: str, cells: pd.DataFrame) -> list[str]:
    return [f"| {title} | {' | '.join(cells.columns)} |", *(f"| {name} | {' | '.join(row)} |" for name, row in cells.iterrows())]


@each(sorted(PUBLISHED.glob("table1-*.csv")))
def test_readme_shows_the_published_results(path: Path):
    frame = published(path)
    if path.name in README.read_text(encoding="utf-8") and "budget" not in path.stem:  # whose accuracies stand beside their cost
        assert_shown(README, path, table_lines("method", table(frame)))


OPTIMISED, MEMBERS = ("dream", "two_models", "hmdc"), ("one_model", "two_models_gbm", "three_models", "four_models")
PACKED, ONE_CONVNET = ("random_packed", "kmeans_packed"), {"two_models": "dream", "hmdc": "dream"}


def of_judges(frame: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    """What the study says of its hypotheses' runs judge by judge: the four, gains over initial images, two models against one ConvNet."""
    judged = frame[frame["model"].isin(models)]
    others = dict.fromkeys(("dream_vit", *OPTIMISED), "kmeans_packed"), ONE_CONVNET
    return pd.concat([hypotheses.pairs(frame, models), *(differences(judged, asked) for asked in others)])


@each(sorted(PUBLISHED.glob("study-hypotheses-*.csv")))
def test_readme_shows_the_published_study(path: Path):
    """Accuracy by model, with the average over unseen ones; what was found of each hypothesis; the time. By judge, on the page of numbers."""
    verdicts, frame = published(path), published(path.with_name(path.name.replace("-hypotheses", "")))
    unseen = verdicts["unseen"][0].split("; ")
    pd.testing.assert_frame_equal(verdicts[list(again := hypotheses.tested(frame, unseen))], again, rtol=1e-6)
    rows = table(frame).drop(columns="Average").assign(unseen=table(frame[frame["model"].isin(unseen)])["Average"])
    lines = table_lines("method", rows.rename(columns={"unseen": "unseen, average"}))
    lines += ["| hypothesis | difference | 95 % interval | minimum detectable | p (Holm) | verdict |"]
    for row in verdicts.itertuples():
        interval = f"{row.low:+.2f} to {row.high:+.2f}"
        lines.append(f"| {row.hypothesis} | {row.difference:+.2f} | {interval} | {row.smallest:.2f} | {row.p_holm:.4f} | {row.verdict} |")
    condensing = frame.drop_duplicates(["method", "seed"])["condense_seconds"].sum() / 3600
    lines += [f"{condensing:.1f} hours of condensing and {frame['seconds'].sum() / 3600:.1f} of judging"]
    assert_shown(README, path, lines)
    all_but = {judge: of_judges(frame, [model for model in unseen if model != judge]).query("model == @AVERAGE") for judge in unseen}
    tables = [by_model(of_judges(frame, unseen)), by_model(pd.concat([found.assign(model=f"all but {judge}") for judge, found in all_but.items()]))]
    told = "\n\n".join(each.to_string() for each in (again.round(4).set_index("hypothesis"), *tables))
    assert path.with_suffix(".txt").read_text(encoding="utf-8") == told + "\n"
    assert_shown(NUMBERS, path, [line for each in tables for line in table_lines("difference", each)])


LITE0 = "tf_efficientnet_lite0, head"


def test_the_page_of_numbers_shows_what_a_repetition_moves():
    """Three condensations of the hypotheses were made again for the steps: the same differences from both, with and without one judge."""
    first, again = (published(PUBLISHED / f"study-{part}cifar10-laptop-standins.csv") for part in ("", "steps-"))
    again = again[again["outer"].isin((0, again["outer"].max()))]
    same = first[first["seed"].isin(again["seed"]) & first["model"].isin(again["model"])].sort_values("evaluation")
    runs_of = {"first run": same.drop_duplicates(["method", "seed", "model"]), "repetition": again}
    asked = (dict.fromkeys(OPTIMISED, "kmeans_packed"), {"hmdc": "two_models"}, ONE_CONVNET)
    found = []
    for name, frame in runs_of.items():
        for judges, part in (("", frame), (", without Lite0", frame[frame["model"] != LITE0])):
            found += [differences(part, each).query("model == @AVERAGE").assign(model=f"{name}{judges}") for each in asked]
    assert_shown(NUMBERS, PUBLISHED / "study-steps-cifar10-laptop-standins.csv", table_lines("difference", by_model(pd.concat(found))))


CANDIDATES = ("hmdc_last", "hmdc_ema", "hmdc_both", "hmdc_characteristic", "hmdc_ages", "hmdc_longer")
ON_FEATURES = "on ImageNet features, two unseen networks: with `random`"
# Part of the study -> the column that grows there, and its questions: what README calls each, and which row is compared with which.
ASKED = {
    "recipes": ("", {"six recipes that might be better, on held-out train images, with `hmdc`": dict.fromkeys(CANDIDATES, "hmdc")}),
    "ipc": ("ipc", {
        "1, 10 and 50 images a class: with `random_packed`": dict.fromkeys(("kmeans_packed", *OPTIMISED), "random_packed"),
        "1, 10 and 50 images a class: with initial images": dict.fromkeys(OPTIMISED, "kmeans_packed"),
        "1, 10 and 50 images a class: with one ConvNet (`dream`)": ONE_CONVNET}),
    "steps": ("outer", {
        "30 to 300 steps: with initial images": dict.fromkeys(OPTIMISED, "kmeans_packed"),
        "30 to 300 steps: with one ConvNet (`dream`)": ONE_CONVNET}),
    "members": ("", {
        "one member to four: with `random_packed`": dict.fromkeys(("kmeans_packed", *MEMBERS), "random_packed"),
        "one member to four: with initial images": dict.fromkeys(MEMBERS, "kmeans_packed"),
        "one member to four: with one member fewer": dict(zip(MEMBERS[1:], MEMBERS))}),
    "imagenet": ("", {
        ON_FEATURES: dict.fromkeys((*PACKED, "hmdc", "hmdc_imagenet"), "random"),
        "there, a member with ImageNet weights: with its initial images": {"hmdc_imagenet": "kmeans_packed"},
        "there, a member with ImageNet weights: with `hmdc`": {"hmdc_imagenet": "hmdc"}}),
}
OF_PARTS = sorted(path for part in ASKED for path in PUBLISHED.glob(f"study-{part}-*.csv"))


def at_every_value(frame: pd.DataFrame, along: str) -> dict[object, pd.DataFrame]:
    """What is compared with each other: all rows, or those at every value of a column; what is not optimised (0) is among them all."""
    return {value: frame[frame[along].isin((0, value))] for value in sorted(frame[along].unique()) if value} if along else {"": frame}


def average_differences(path: Path) -> dict[str, pd.DataFrame]:
    """The questions of a part, each with its differences on the average over unseen models, at every value of what grows there."""
    frame, (along, questions) = published(path), ASKED[path.stem.split("-")[1]]
    at = at_every_value(frame, along).values()
    return {title: pd.concat([differences(there, asked).query("model == @AVERAGE") for there in at]) for title, asked in questions.items()}


@each(OF_PARTS)
def test_readme_sums_up_what_else_the_study_asked(path: Path):
    """Least and largest difference of a question, what was detectable, and how many differ; p over all values where one alone does."""
    for title, found in average_differences(path).items():
        (least, most), (low, high) = (found[column].agg(["min", "max"]) for column in ("difference", "smallest"))
        apart = found["verdict"].isin(("better", "worse")).sum()
        over_all = [f"(p {holm(found['p']).min():.3f})"] if apart and ASKED[path.stem.split("-")[1]][0] else []
        ranges = f"{least:+.2f} to {most:+.2f} | {low:.2f} to {high:.2f}" if len(found) > 1 else f"{least:+.2f} | {low:.2f}"
        line = f"| {title} | {ranges} | {apart or 'none'} of {len(found)} |"
        assert_shown(NUMBERS, path, over_all)
        text = README.read_text(encoding="utf-8")
        assert all(each in text for each in (line, *over_all)), f"README.md does not say of {path.name}: {line} {over_all}"


def test_readme_counts_the_differences_that_chance_would_give():
    """Of all but those of packed images with plain ones on ImageNet features, which differ by fifteen points."""
    found = pd.concat([found for path in OF_PARTS for title, found in average_differences(path).items() if title != ON_FEATURES])
    found = found.drop_duplicates(["method", "reference", "difference", "low"])  # ten images and ten iterations are the same runs
    over_all = holm(found["p"]).min()
    said = f"{(found['p'] < 0.05).sum()} of the other {len(found)} comparisons have p < .05 uncorrected; over all of them the least is p {over_all:.2f}"
    assert said in " ".join(README.read_text(encoding="utf-8").split()), said


@each([path for path in OF_PARTS if "-recipes-" in path.name])
def test_the_page_of_numbers_shows_the_candidates(path: Path):
    frame = published(path)
    seconds = frame.groupby("method", sort=False)["condense_seconds"].median()
    found = verdict_table(frame, dict.fromkeys(CANDIDATES, "hmdc"))
    found["seconds to condense"] = [f"{seconds[name.split(' - ')[0]]:.0f}" for name in found.index]
    assert_shown(NUMBERS, path, table_lines("candidate", found))


@each([path for path in OF_PARTS if ASKED[path.stem.split("-")[1]][0]])
def test_the_page_of_numbers_shows_how_it_grows(path: Path):
    """Averages over unseen models against what grows, and the figure; the verdicts beside it are those of its rows."""
    frame, (along, questions) = published(path), ASKED[path.stem.split("-")[1]]
    told = {value: pd.concat([verdict_table(there, asked) for asked in questions.values()]) for value, there in at_every_value(frame, along).items()}
    assert path.with_suffix(".txt").read_text(encoding="utf-8") == pd.concat(told, names=[along]).to_string() + "\n"
    averages = runs(frame, (along,)).query("model == @AVERAGE")
    cells = averages.groupby([along, "method"], sort=False)["accuracy"].agg(lambda found: f"{found.mean():.2f} ± {found.std():.2f}").unstack()
    lines = table_lines({"ipc": "images per class", "outer": "outer iterations"}[along], cells[frame["method"].unique()].fillna("–"))
    assert_shown(NUMBERS, path, [*lines, f"({path.stem}.png)", f"({path.stem}.txt)"])


@each([path for path in OF_PARTS if path.stem.split("-")[1] in ("members", "imagenet")])
def test_the_page_of_numbers_shows_what_is_compared(path: Path):
    """Accuracies on unseen models, and verdicts; the text beside them says the same."""
    frame, (_, questions) = published(path), ASKED[path.stem.split("-")[1]]
    compared = [verdict_table(frame, asked) for asked in questions.values()]
    assert path.with_suffix(".txt").read_text(encoding="utf-8") == "\n\n".join(each.to_string() for each in (table(frame), *compared)) + "\n"
    lines = table_lines("row", table(frame).rename(columns={"Average": "unseen, average"})) + table_lines("comparison", pd.concat(compared))
    assert_shown(NUMBERS, path, [*lines, f"({path.stem}.png)", f"({path.stem}.txt)"])


# What a notebook compares all rows with, and whether it also compares each with its own initial images.
COMPARED = {"table1-cifar10-quick": ("random_packed", True), "table1-digits-quick": ("random_packed", True),
            "table2-digits-quick": ("kmeans_packed", True), "study-cifar10-laptop-standins": ("random_packed", True),
            "study-recipes-cifar10-laptop-standins-held-out": ("hmdc", False)}


@each([PUBLISHED / f"{name}.csv" for name in COMPARED])
def test_a_published_text_is_what_its_rows_say(path: Path):
    frame, (reference, with_initial) = pd.read_csv(path), COMPARED[path.stem]
    recipes = [recipe(method, preset=frame.preset.iloc[0]) for method in frame.method.unique() if with_initial]
    initial = {made.name: made.initial for made in recipes if made.length.outer}
    assert path.with_suffix(".txt").read_text(encoding="utf-8") == as_text(frame, initial, reference)


def budget_table(frame: pd.DataFrame) -> list[str]:
    """Our accuracy and budget beside the published ones, and the gain over a row's own initial images."""
    published = pd.read_csv(ROOT / "data" / "paper" / "convnet3.csv").set_index("method")
    accuracy = frame.pivot(index="seed", columns="method", values="accuracy")
    lines = ["| method | ours | gain over its own initial images | updates | core-seconds | published | updates there |"]
    for method, rows in frame.groupby("method", sort=False):
        initial, optimised = recipe(method, weights="scratch").initial, rows.iterations.iloc[0] > 0
        gain = (accuracy[method] - accuracy[initial]) if optimised and initial in accuracy else None
        there = published.loc[method] if method in published.index else None
        cells = [
            f"{accuracy[method].mean():.2f} ± {accuracy[method].std():.2f}",
            "–" if gain is None else f"{gain.mean():+.2f} ± {gain.std():.2f}",
            f"{rows.iterations.iloc[0]:,}" if optimised else "–",
            f"{rows.condense_seconds.mean():.0f}" if optimised else "–",
            "–" if there is None else f"{there.accuracy:g}",
            "–" if there is None or not there.updates else f"{int(there.updates):,}",
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def speed_table(frame: pd.DataFrame) -> list[str]:
    paths, lines = list(frame["path"].unique()), []
    for part, rows in frame.groupby("part", sort=False):
        rows = rows.set_index("path")
        cells = [f"{rows.seconds[p]:.2g} s" + f" ({rows.times_plain[p]:.1f}×)" * (p != "plain") for p in paths]
        lines.append(f"| {part} | {' | '.join(cells)} | {' / '.join(f'{rows.floor_seconds[p]:.2g}' for p in paths)} s |")
    return [f"| | {' | '.join(paths)} | floor, {' / '.join(paths)} |", *lines]


def older_processor(frame: pd.DataFrame) -> list[str]:
    rows = frame.set_index(["part", "path"])
    image, whole = (rows.loc[part] for part in ("image step", "inner step"))
    return [
        f"the image step takes {image.seconds['plain']:.2g} s plain and {image.seconds['fast']:.2g} s fast "
        f"({image.times_plain['fast']:.1f}×),",
        f"an inner step {whole.seconds['plain']:.2g} s and {whole.seconds['fast']:.2g} s ({whole.times_plain['fast']:.1f}×)",
    ]


def precision_table(frame: pd.DataFrame) -> list[str]:
    models, lines = list(frame["model"].unique()), []
    for precision, rows in frame.groupby("precision", sort=False):
        by_seed = rows.groupby(["seed", "model"]).accuracy.mean().unstack()[models].assign(Average=lambda f: f.mean(axis=1))
        cells = [f"{by_seed[c].mean():.2f} ± {by_seed[c].std():.2f}" for c in by_seed]
        lines.append(f"| {precision} | {' | '.join(cells)} |")
    return [f"| | {' | '.join(models)} | Average |", *lines]


@each(sorted(PUBLISHED.glob("precision-*.csv")))
def test_precision_is_told_of_the_runs_of_table_1(path: Path):
    """One run feeds both tables: the rows of a recipe, its seeds and a preset are the same numbers in each."""
    ours = pd.read_csv(path)
    table1 = pd.read_csv(path.with_name(path.name.replace("precision", "table1")))
    if "earlier" in {*ours.protocol, *table1.protocol}:
        pytest.skip("made apart, under the protocol of before")
    keys = ["method", "seed", "evaluation", "model"]
    both = ours[ours.precision == "fp32"].merge(table1, on=keys, how="left")
    assert len(both) and (both.accuracy_x == both.accuracy_y).all()


def cost_table(frame: pd.DataFrame) -> list[str]:
    lines = []
    for method, rows in frame.groupby("method", sort=False):
        seconds, hours, memory = (
            " / ".join(form.format(value) for value in rows[column])
            for column, form in (("seconds_per_inner_step", "{:.2g}"), ("device_hours_per_set", "{:.0f}"), ("memory_gb", "{:.2g}"))
        )
        lines.append(f"| {method} | {seconds} s | {rows.inner_steps.iloc[0]:,} | {hours} h | {memory} GB |")
    precisions = " / ".join(frame["precision"].unique())
    return [f"| method, {precisions} | per inner step | inner steps | per condensed set | memory on top |", *lines]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("bench-cpu-small", speed_table),
        ("bench-cpu-small-avx2", older_processor),
        ("precision-digits-quick", precision_table),
        ("precision-cifar10-quick", precision_table),
        ("cost-cpu-small", cost_table),
        ("table1-cifar10-budget", budget_table),
    ],
)
def test_readme_shows_the_published_measurements(name: str, lines):
    path = PUBLISHED / f"{name}.csv"
    assert_shown(README, path, lines(published(path)))
