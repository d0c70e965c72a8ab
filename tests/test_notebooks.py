"""The contract of the notebooks: the form that each of them keeps, read from its file without running anything.

`python tests/test_notebooks.py` prints how long the exported cells are.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import nbformat
import papermill
import pytest
from nbformat import v4

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))

KINDS = {  # a notebook's kind follows from its name
    "component": r"\d\d[a-z]?_\w+",  # exports a module, committed with its outputs
    "reproduce": r"(reproduce|study)_\w+",  # has parameters, committed without outputs
    "document": r"look_inside",  # has parameters, committed with its outputs
}
PLAIN_KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}
LARGEST_NOTEBOOK = 400_000  # bytes: it is read on the web
MOST_PARAMETERS = 13
LONGEST_CELL = 43  # lines of code of an exported cell
LONGER_CELLS = {("15_run", "run"): 51}  # a class is one cell
MEDIAN_CELL = 10

UNWANTED = {  # in the text of outputs
    "warning": r"\w*Warning\b",
    "absolute path": r"(?<![\w.:/<])/(?:home|root|Users|tmp|work|mnt|opt|usr|var|private)/\w|\b[A-Z]:\\\w",
    "timing": r"\b(?:CPU times|Wall time|per loop)\b|\b\d+(?:\.\d+)? ?(?:[nmµ]?s|sec|seconds?|min|minutes?)\b",
    "progress bar": r"\r(?!\n)|[█▉▊▋▌▍▎▏]|\d%\||\d ?it/s|s/it\b",
    "memory address": r"\b0x[0-9a-f]{6,}",  # another one in every run
}


# --- what a notebook holds


def kind(stem: str) -> str:
    """Component, reproduce or document."""
    fitting = [name for name, pattern in KINDS.items() if re.fullmatch(pattern, stem)]
    assert fitting, f"{stem}.ipynb: a notebook is called NN_module, reproduce_something, study_something or look_inside"
    return fitting[0]


def cells(path: Path, only: str | None = None) -> list[dict]:
    """The cells, or those of one type, each with its source as one string."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found if only in (None, cell["cell_type"])]


def texts(output: dict) -> Iterator[str]:
    """Everything in an output that is text: streams, and results as plain text, HTML, Markdown or SVG."""
    yield "".join(output.get("text", ""))
    for mime, value in output.get("data", {}).items():
        if mime.startswith("text/") or mime == "image/svg+xml":
            yield "".join(value)


def exported(path: Path) -> dict[str, int]:
    """Lines of each exported cell, without nbdev's directives and docstrings: a parameter that is explained makes no code longer."""
    found = {}
    for cell in cells(path, "code"):
        if re.search(r"^#\|\s*export", cell["source"], re.M):
            code = re.sub(r"^#\|.*\n?", "", cell["source"], flags=re.M).strip()
            found[cell["id"]] = len(code.splitlines()) - sum(map(docstring_lines, ast.walk(ast.parse(code))))
    return found


def docstring_lines(node: ast.AST) -> int:
    """Lines of a function's or class's docstring."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or ast.get_docstring(node) is None:
        return 0
    return node.body[0].end_lineno - node.body[0].lineno + 1


def speaks(cell: dict) -> bool:
    """Whether a code cell prints or displays something whatever its values are."""
    calls = [node.value.func for node in ast.parse(cell["source"]).body
             if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    return any(isinstance(call, ast.Name) and call.id in ("print", "display") for call in calls)


# --- the checks: each gives what is wrong, one string a fault


def title(path: Path) -> list[str]:
    """`# Title` and one `> sentence`: more would spoil the module's docstring or nbdev's front matter."""
    first = cells(path)[0]
    lines = [line for line in first["source"].splitlines() if line.strip()]
    form = [r"# \S.*", r"> \S.*"]
    if kind(path.stem) != "component":
        form.append("- skip_exec: true")  # or `nbdev_test` would run a reproduction
    fits = len(lines) == len(form) and all(map(re.fullmatch, form, lines)) and first["cell_type"] == "markdown"
    return [] if fits else [f"the first cell is {lines}, it has to be Markdown like {form}"]


def ids(path: Path) -> list[str]:
    """Words joined by hyphens, every id once: they stand in the exported modules."""
    found = [cell.get("id", "") for cell in cells(path)]
    readable, random = re.compile(r"[a-z]+\d*(-([a-z]+\d*|\d+))*"), re.compile(r"[0-9a-f]{8}(-|$)")
    unreadable = [i for i in found if not readable.fullmatch(i) or random.match(i)]
    twice = sorted({i for i in found if found.count(i) > 1})
    return [f"unreadable id {i!r}" for i in unreadable] + [f"the id {i!r} stands more than once" for i in twice]


def kernel(path: Path) -> list[str]:
    """The plain Python kernel, whatever it was called where the notebook was edited."""
    found = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("kernelspec")
    return [] if found == PLAIN_KERNEL else [f"the kernelspec is {found}"]


def size(path: Path) -> list[str]:
    """Small enough to be shown on the web."""
    found = path.stat().st_size
    return [] if found < LARGEST_NOTEBOOK else [f"{found:,} bytes, it has to stay below {LARGEST_NOTEBOOK:,}"]


def presence(path: Path) -> list[str]:
    """A document has its outputs, all of them; a reproduce notebook has none."""
    code = cells(path, "code")
    if kind(path.stem) == "reproduce":
        return [f"{cell['id']} has outputs" for cell in code if cell["outputs"] or cell["execution_count"]]
    if not any(cell["outputs"] for cell in code):
        return ["no outputs; run `make notebooks`"]
    return [f"{cell['id']} prints, but has no output" for cell in code if speaks(cell) and not cell["outputs"]]


def cleanness(path: Path) -> list[str]:
    """No error, warning, absolute path, timing or progress bar among the outputs."""
    faults = []
    for cell, output in ((cell, output) for cell in cells(path, "code") for output in cell["outputs"]):
        if output["output_type"] == "error" or output.get("name") == "stderr":
            faults.append(f"{cell['id']}: {output.get('ename', 'standard error')}")
        faults += [f"{cell['id']}: progress bar {mime}" for mime in output.get("data", {}) if "jupyter.widget" in mime]
        for text in texts(output):
            found = {what: re.search(pattern, text) for what, pattern in UNWANTED.items()}
            faults += [f"{cell['id']}: {what} in …{text[max(0, match.start() - 30):match.end() + 30]}…"
                       for what, match in found.items() if match]
    return faults


def parameters(path: Path) -> list[str]:
    """One tagged cell, each parameter `name: type = value  # help`: it is what `papermill --help-notebook` shows."""
    tagged = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        return [f"{len(tagged)} cells are tagged `parameters`"]
    statements = ast.parse(tagged[0]["source"]).body
    names = [s.target.id for s in statements if isinstance(s, ast.AnnAssign)]
    others = [s for s in statements if not isinstance(s, ast.AnnAssign)]
    faults = [f"{ast.unparse(s)!r} is no `name: type = value  # help`" for s in others]
    if not 1 <= len(names) <= MOST_PARAMETERS:
        faults.append(f"{len(names)} parameters, 1 to {MOST_PARAMETERS} are allowed")
    shown = papermill.inspect_notebook(str(path))
    if list(shown) != names:
        faults.append(f"papermill sees the parameters {list(shown)}, the cell has {names}")
    return faults + [f"{name} has no # help" for name, parameter in shown.items() if not parameter["help"]]


def short_cells(path: Path) -> list[str]:
    """An exported cell can be taken in at one look."""
    found = {i: (n, LONGER_CELLS.get((path.stem, i), LONGEST_CELL)) for i, n in exported(path).items()}
    return [f"{i} has {n} lines, at most {most} are allowed" for i, (n, most) in found.items() if n > most]


CHECKS: dict[Callable[[Path], list[str]], tuple[str, ...]] = {  # and the kinds that they hold for
    **dict.fromkeys((title, ids, kernel, size, presence, cleanness, short_cells), tuple(KINDS)),
    parameters: ("reproduce", "document"),
}


def each(stems: list[str]) -> pytest.MarkDecorator:
    """Run a test for every one of these notebooks with every check that holds for its kind."""
    pairs = [(check, stem) for stem in stems for check, kinds in CHECKS.items() if kind(stem) in kinds]
    return pytest.mark.parametrize("check, stem", pairs, ids=[f"{stem}-{check.__name__}" for check, stem in pairs])


@each([path.stem for path in NOTEBOOKS])
def test_notebook_keeps_the_form(check, stem: str):
    faults = check(ROOT / "nbs" / f"{stem}.ipynb")
    assert not faults, "\n".join(faults)


# --- every check can fail


def notebook(stem: str) -> nbformat.NotebookNode:
    """A small notebook of the kind that its name says, without a fault."""
    form = "# Balance\n\n> Scales every target to the smallest."
    if kind(stem) != "component":
        form += "\n\n- skip_exec: true"
    parameters = 'preset: str = "quick"  # scales every run\nipc: int = 10  # images per class'
    made = v4.new_notebook(metadata={"kernelspec": dict(PLAIN_KERNEL)})
    made.cells = [
        v4.new_markdown_cell(form, id="title"),
        v4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}),
        v4.new_code_cell("#| export\ndef weights(a):\n    return min(a) / a", id="weights"),
        v4.new_code_cell("print(1)", id="test-weights"),
    ]
    if kind(stem) != "reproduce":
        made.cells[3].outputs = [v4.new_output("stream", text="1\n")]
    return made


def write(folder: Path, stem: str, made: nbformat.NotebookNode) -> Path:
    path = folder / f"{stem}.ipynb"
    path.write_text(json.dumps(made), encoding="utf-8")
    return path


@each(["07_gbm", "reproduce_table1", "look_inside"])
def test_check_accepts_a_sound_notebook(tmp_path: Path, check, stem: str):
    assert check(write(tmp_path, stem, notebook(stem))) == []


def says(text: str, **stream):
    """A fault: an output with this text."""
    return lambda made: made.cells[3].outputs.append(v4.new_output("stream", text=text, **stream))


def shows(mime: str, value):
    return lambda made: made.cells[3].outputs.append(v4.new_output("display_data", {mime: value}))


def source(cell: int, text: str):
    return lambda made: made.cells[cell].update(source=text)


HOME = "/" + "home/ada"  # in two parts: test_repository.py looks for such a path in every file
ERROR = v4.new_output("error", ename="ValueError")
BROKEN = [  # check, notebook, what breaks it, what the check says
    (title, "07_gbm", source(0, "# Balance"), "the first cell is"),
    (title, "07_gbm", source(0, "Balance\n\n> A sentence."), "the first cell is"),
    (title, "07_gbm", source(0, "# Balance\n\n> A sentence.\n\nMore."), "the first cell is"),
    (title, "07_gbm", source(0, "# Balance\n\n> A sentence.\n\n- skip_exec: true"), "the first cell is"),
    (title, "07_gbm", lambda made: made.cells.pop(0), "the first cell is"),
    (title, "reproduce_table1", source(0, "# Table\n\n> A sentence."), "the first cell is"),
    (title, "look_inside", source(0, "# Table\n\n> A sentence.\n\n- skip_exec: true\n- x: y"), "the first cell is"),
    (title, "look_inside", source(0, "# Table\n\n> A sentence.\n\n- skip_exec: trueish"), "the first cell is"),
    (ids, "07_gbm", lambda made: made.cells[2].update(id="3f2a91bc"), "unreadable id '3f2a91bc'"),
    (ids, "07_gbm", lambda made: made.cells[2].update(id="a1b2c3d4"), "unreadable id 'a1b2c3d4'"),
    (ids, "07_gbm", lambda made: made.cells[2].update(id="abcdefab"), "unreadable id 'abcdefab'"),
    (ids, "07_gbm", lambda made: made.cells[2].update(id="Test_balance"), "unreadable id"),
    (ids, "07_gbm", lambda made: made.cells[2].pop("id"), "unreadable id ''"),
    (ids, "07_gbm", lambda made: made.cells[2].update(id="title"), "'title' stands more than once"),
    (kernel, "07_gbm", lambda made: made.metadata.kernelspec.update(name="my-env"), "my-env"),
    (kernel, "07_gbm", lambda made: made.metadata.pop("kernelspec"), "None"),
    (size, "07_gbm", shows("image/png", "A" * LARGEST_NOTEBOOK), "bytes"),
    (presence, "07_gbm", lambda made: made.cells[3].outputs.clear(), "no outputs"),
    (presence, "07_gbm", source(2, "display(2)"), "weights prints"),
    (presence, "look_inside", lambda made: made.cells[3].outputs.clear(), "no outputs"),
    (presence, "reproduce_table1", says("1\n"), "test-weights has outputs"),
    (presence, "reproduce_table1", lambda made: made.cells[3].update(execution_count=1), "test-weights has outputs"),
    (cleanness, "07_gbm", lambda made: made.cells[3].outputs.append(ERROR), "ValueError"),
    (cleanness, "07_gbm", says("downloading", name="stderr"), "standard error"),
    (cleanness, "07_gbm", says("UserWarning: deprecated"), "warning"),
    (cleanness, "07_gbm", says(f"saved to {HOME}/hmdc"), "absolute path"),
    (cleanness, "07_gbm", says("PosixPath('/opt/run')"), "absolute path"),
    (cleanness, "07_gbm", says(r"D:\runs"), "absolute path"),
    (cleanness, "07_gbm", shows("text/html", "<td>/usr/data</td>"), "absolute path"),
    (cleanness, "07_gbm", says("CPU times: user 3 ms"), "timing"),
    (cleanness, "07_gbm", says("condensed in 12.5 s"), "timing"),
    (cleanness, "07_gbm", says(" 40%|████      | 2/5"), "progress bar"),
    (cleanness, "07_gbm", says("step 1\rstep 2"), "progress bar"),
    (cleanness, "07_gbm", shows("application/vnd.jupyter.widget-view+json", {"model_id": "x"}), "progress bar"),
    (cleanness, "07_gbm", says("<Axes at 0x7f3a5c0b1d90>"), "memory address"),
    (parameters, "reproduce_table1", lambda made: made.cells[1].metadata.clear(), "0 cells are tagged"),
    (parameters, "reproduce_table1", lambda made: made.cells.append(made.cells[1]), "2 cells are tagged"),
    (parameters, "reproduce_table1", source(1, "ipc: int = 10"), "ipc has no # help"),
    (parameters, "reproduce_table1", source(1, "ipc = 10  # images"), "'ipc = 10' is no"),
    (parameters, "reproduce_table1", source(1, "import os\nipc: int = 10  # images"), "'import os' is no"),
    (parameters, "reproduce_table1", source(1, ""), "0 parameters"),
    (parameters, "reproduce_table1", source(1, "".join(f"p{i}: int = 1  # p\n" for i in range(14))), "14 parameters"),
    (parameters, "look_inside", source(1, "ipc: int = 10; seed: int = 0  # two in a line"), "papermill sees"),
    (short_cells, "07_gbm", source(2, "#| export\n" + "x = 1\n" * 46), "weights has 46 lines"),
]


@pytest.mark.parametrize("check, stem, damage, message", BROKEN, ids=[f"{b[0].__name__}: {b[3]}" for b in BROKEN])
def test_check_finds_the_fault(tmp_path: Path, check, stem: str, damage, message: str):
    made = notebook(stem)
    damage(made)
    faults = check(write(tmp_path, stem, made))
    assert any(message in fault for fault in faults), faults


def test_every_check_is_seen_to_fail():
    assert {check for check, *_ in BROKEN} == set(CHECKS)


def test_half_of_the_exported_cells_are_short():
    lengths = [n for path in NOTEBOOKS for n in exported(path).values()]
    assert median(lengths) <= MEDIAN_CELL


def test_notebook_of_no_kind_is_refused():
    with pytest.raises(AssertionError, match="scratch.ipynb: a notebook is called"):
        kind("scratch")


def test_directives_docstrings_and_outer_blank_lines_do_not_count(tmp_path: Path):
    made = notebook("07_gbm")
    made.cells[2].source = '#| export\n#| exec_doc\n\ndef f():\n    """One.\n\n    Returns 1.\n    """\n\n    return 1\n\n'
    made.cells[3].source = "# not | export\nprint(1)"
    assert exported(write(tmp_path, "07_gbm", made)) == {"weights": 3}


if __name__ == "__main__":
    lengths = {(path.stem, i): n for path in NOTEBOOKS for i, n in exported(path).items()}
    (stem, cell), most = max(lengths.items(), key=lambda item: item[1])
    half = median(lengths.values())
    print(f"{len(lengths)} exported cells: median {half:g} lines, longest {most} ({cell} in {stem})")
