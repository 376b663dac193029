"""The house rules, kept by reading the syntax tree of every first-party file. Each rule is shown to fire on a bad tree.

    launch -> policies -> { vla | sim } -> sensors          (vla and sim never see each other)
    tests  -> everything

Inside a folder a file imports only what stands above it in the README's tree, so that the tree is the reading order.
"""

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sensors", "vla", "sim", "policies")
FOLDERS = (*PACKAGES, "launch", "tests")
MAY_IMPORT = {
    "sensors": {"sensors"},
    "vla": {"vla", "sensors"},
    "sim": {"sim", "sensors"},
    "policies": set(PACKAGES),
    "launch": {*PACKAGES, "launch"},
    "tests": set(FOLDERS),
}
FILE_LINES, FUNCTION_LINES = 400, 60
# Beside the standard library and what the tree imports: names that a sibling run as a script would take over.
LIBRARIES = {
    "nuscenes",
    "transformers",
    "tokenizers",
    "datasets",
    "ray",
    "rclpy",
    "mcap",
    "rerun",
    "moderngl",
    "libsumo",
}
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".j2", ".txt", ".json", ".sh", ".cfg", ".ini", ".xml", ""}
NOT_OURS = {".git", ".venv", "__pycache__", "build", "dist", "runs", ".pytest_cache", ".hypothesis", ".ruff_cache"}
MACHINE_PATH = re.compile(r"(?<!\w)/(?:work|root|home)/")
Function = ast.FunctionDef | ast.AsyncFunctionDef


# Reading the tree --------------------------------------------------------------------------------


def python_files(root: Path) -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))


def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def imported_modules(root: Path, path: Path, node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Dotted names, as tuples, that an import statement below `node` may load; relative ones made absolute."""
    here = path.relative_to(root).parent.parts
    for statement in ast.walk(node):
        if isinstance(statement, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            base = here[: len(here) - statement.level + 1] if statement.level else ()
            base += tuple(statement.module.split(".")) if statement.module else ()
            yield from ((*base, alias.name) for alias in statement.names)
        elif isinstance(statement, ast.Call) and statement.args and isinstance(statement.args[0], ast.Constant):
            called = ast.unparse(statement.func)
            if called in ("__import__", "import_module", "importlib.import_module"):
                yield tuple(str(statement.args[0].value).split("."))


def file_of(root: Path, module: tuple[str, ...]) -> str | None:
    """The first-party file that a dotted name means; `from package import name` may mean a file or a name in one."""
    for parts in (module, module[:-1]):
        path = root.joinpath(*parts)
        for candidate in (path.with_suffix(".py"), path / "__init__.py") if parts else ():
            if candidate.is_file():
                return name_of(root, candidate)
    return None


def import_graph(root: Path) -> dict[str, set[str]]:
    graph = {}
    for path in python_files(root):
        modules = [m for m in imported_modules(root, path, syntax(path)) if m[0] in FOLDERS]
        graph[name_of(root, path)] = {file for module in modules if (file := file_of(root, module))}
    return graph


def readme_tree(root: Path) -> dict[str, str]:
    """Path to caption, in order, of the code block after the line `<!-- tree -->`; two spaces a level, a comma between
    files that share a caption."""
    text = (root / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^<!-- tree -->\n```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    tree, folders = {}, []
    for line in block.group(1).splitlines() if block else ():
        level = (len(line) - len(line.lstrip())) // 2
        names, caption = re.fullmatch(r"((?:\S+, )*\S+)\s*(.*)", line.strip()).groups()
        for name in names.split(", "):
            folders[level:] = [name.rstrip("/")]
            tree["/".join(folders)] = caption
    return tree


# The rules: each yields what breaks it -----------------------------------------------------------


def wrong_direction(root: Path) -> Iterator[str]:
    for path in python_files(root):
        folder = path.relative_to(root).parts[0]
        for module in imported_modules(root, path, syntax(path)):
            if module[0] in FOLDERS and module[0] not in MAY_IMPORT[folder]:
                yield f"{name_of(root, path)} imports {'.'.join(module)}"


def cycles(root: Path) -> Iterator[str]:
    graph, done = import_graph(root), set()

    def visit(file: str, way: list[str]) -> Iterator[str]:
        if file in way:
            yield " -> ".join([*way[way.index(file) :], file])
        elif file not in done:
            for other in sorted(graph.get(file, ())):
                yield from visit(other, [*way, file])
            done.add(file)

    for file in graph:
        yield from visit(file, [])


def first_party_import_inside_function(root: Path) -> Iterator[str]:
    for path in python_files(root):
        for function in ast.walk(syntax(path)):
            if isinstance(function, Function):
                for module in imported_modules(root, path, function):
                    if module[0] in PACKAGES:  # `launch` inside a function is ROS 2's own
                        yield f"{name_of(root, path)}: {function.name} imports {'.'.join(module)}"


def against_reading_order(root: Path) -> Iterator[str]:
    order = {file: k for k, file in enumerate(readme_tree(root))}
    for file, imports in import_graph(root).items():
        for other in imports:
            same_folder = file.split("/")[0] == other.split("/")[0]
            if same_folder and file in order and other in order and order[other] >= order[file]:
                yield f"{file} imports {other}, which stands below it in the README's tree"


def untrue_tree(root: Path) -> Iterator[str]:
    tree = readme_tree(root)
    for name, caption in tree.items():
        if not (root / name).exists():
            yield f"README's tree has {name}, which does not exist"
        if not caption:
            yield f"README's tree has no caption for {name}"
    for path in python_files(root):
        name = name_of(root, path)
        if path.name == "__init__.py":
            if name.split("/")[0] in PACKAGES and syntax(path).body:
                yield f"{name} holds code: an empty one keeps the tree true"
        elif name.split("/")[0] in PACKAGES and name not in tree:  # launch/ and tests/ stand there as folders
            yield f"{name} is not in the README's tree"


def too_long(root: Path) -> Iterator[str]:
    for path in python_files(root):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > FILE_LINES:
            yield f"{name_of(root, path)} has {lines} lines, at most {FILE_LINES}"
        for node in ast.walk(syntax(path)):
            if isinstance(node, Function) and node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                yield f"{name_of(root, path)}: {node.name} has {node.end_lineno - node.lineno + 1} lines"


def misplaced_init(root: Path) -> Iterator[str]:
    """A package called launch would shadow ROS 2's own; one under tests/ would let two test files share a name."""
    for path in [*(root / "tests").rglob("__init__.py"), root / "launch" / "__init__.py"]:
        if path.exists():
            yield name_of(root, path)


def named_like_a_library(root: Path) -> Iterator[str]:
    ours = [path for path in python_files(root) if path.relative_to(root).parts[0] != "tests"]  # tests import helpers
    imported = {module[0] for path in ours for module in imported_modules(root, path, syntax(path))}
    taken = (imported | LIBRARIES | sys.stdlib_module_names) - set(FOLDERS)
    yield from (name_of(root, path) for path in python_files(root) if path.stem in taken - {"__init__"})


def duplicate_test_names(root: Path) -> Iterator[str]:
    names = Counter(path.name for path in (root / "tests").rglob("test_*.py"))
    yield from (f"{count} test files are called {name}" for name, count in names.items() if count > 1)


def machine_paths(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        ours = not NOT_OURS.intersection(parts) and not any(part.endswith(".egg-info") for part in parts)
        if ours and path.is_file() and path.suffix in TEXT:
            for k, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                if MACHINE_PATH.search(line):
                    yield f"{name_of(root, path)}:{k}: {line.strip()[:100]}"


def unlisted_package(root: Path) -> Iterator[str]:
    """Packages are listed by hand; a forgotten one is missing from the wheel, not from a checkout."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(settings["tool"]["setuptools"]["packages"])
    inits = (path.parent.relative_to(root) for package in PACKAGES for path in (root / package).rglob("__init__.py"))
    found = {".".join(path.parts) for path in inits}
    listed -= {name for name in listed if name.startswith("vla_drive_ros")}  # of launch/, under a name of its own
    yield from (f"pyproject.toml and the folders disagree about {name}" for name in sorted(listed ^ found))


RULES = (
    wrong_direction,
    cycles,
    first_party_import_inside_function,
    against_reading_order,
    untrue_tree,
    too_long,
    misplaced_init,
    named_like_a_library,
    duplicate_test_names,
    machine_paths,
    unlisted_package,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house_keeps(rule: Callable[[Path], Iterator[str]]) -> None:
    assert list(rule(ROOT)) == []


def test_readme_is_short_and_has_a_tree() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    assert len(readme_tree(ROOT)) > 20


# Each rule fires ---------------------------------------------------------------------------------

GOOD = {
    "sensors/__init__.py": "",
    "sensors/low.py": "import os\n",
    "sensors/high.py": "from sensors import low\nfrom sensors.low import os\n",
    "vla/__init__.py": "",
    "sim/__init__.py": "",
    "sim/place.py": "import sensors.low\n",
    "policies/__init__.py": "",
    "policies/act.py": "from sim.place import sensors\n",
    "launch/start.py": "import policies.act\n",
    "tests/test_low.py": "from sensors import low\n",
    "README.md": """# x
<!-- tree -->
```text
sensors/       a
  low.py       b
  high.py      c
sim/           d
  place.py     e
policies/      f
  act.py       g
launch/        h
  start.py     i
```
""",
    "pyproject.toml": '[tool.setuptools]\npackages = ["sensors", "vla", "sim", "policies"]\n',
}
SLASH = "/"  # so that this file keeps the rule it tests
BAD = {  # name: (rule, files that break it, part of the complaint)
    "sensors imports sim": (wrong_direction, {"sensors/low.py": "import sim.place\n"}, "sensors/low.py imports sim"),
    "vla imports sim": (wrong_direction, {"vla/x.py": "from sim.place import os\n"}, "vla/x.py imports sim"),
    "sim imports vla": (wrong_direction, {"sim/place.py": "import vla\n"}, "sim/place.py imports vla"),
    "sim imports policies": (wrong_direction, {"sim/place.py": "from policies import act\n"}, "imports policies.act"),
    "anything imports launch": (wrong_direction, {"policies/act.py": "import launch.start\n"}, "imports launch.start"),
    "code imports tests": (wrong_direction, {"policies/act.py": "import tests.test_low\n"}, "imports tests.test_low"),
    "by name": (wrong_direction, {"sim/place.py": "import importlib\nimportlib.import_module('vla')\n"}, "imports vla"),
    "cycle": (cycles, {"sensors/low.py": "from sensors import high\n"}, "sensors/high.py -> sensors/low.py"),
    "relative cycle": (cycles, {"sensors/low.py": "from . import high\n"}, "sensors/high.py -> sensors/low.py"),
    "inside a function": (
        first_party_import_inside_function,
        {"policies/act.py": "def act():\n    from sim import place\n    return place\n"},
        "policies/act.py: act imports sim.place",
    ),
    "inside a method": (
        first_party_import_inside_function,
        {"sim/place.py": "class A:\n    async def act(self):\n        import sensors.low\n"},
        "sim/place.py: act imports sensors.low",
    ),
    "upwards": (
        against_reading_order,
        {"sensors/low.py": "from sensors.high import x\n", "sensors/high.py": ""},
        "sensors/low.py imports sensors/high.py",
    ),
    "not in the tree": (untrue_tree, {"vla/extra.py": ""}, "vla/extra.py is not in"),
    "not on the disk": (untrue_tree, {"sim/place.py": None}, "sim/place.py, which does not exist"),
    "no caption": (untrue_tree, {"README.md": GOOD["README.md"].replace("low.py       b", "low.py")}, "no caption"),
    "code in __init__": (untrue_tree, {"sim/__init__.py": "x = 1\n"}, "sim/__init__.py holds code"),
    "long file": (too_long, {"sim/place.py": "x = 1\n" * 401}, "has 401 lines"),
    "long function": (too_long, {"sim/place.py": "def f():\n" + "    x = 1\n" * 60}, "f has 61 lines"),
    "__init__ in tests": (misplaced_init, {"tests/sim/__init__.py": ""}, "tests/sim/__init__.py"),
    "__init__ in launch": (misplaced_init, {"launch/__init__.py": ""}, "launch/__init__.py"),
    "like the standard library": (named_like_a_library, {"sim/types.py": ""}, "sim/types.py"),
    "like a dependency": (named_like_a_library, {"sim/cv2.py": "", "sim/place.py": "import cv2\n"}, "sim/cv2.py"),
    "like a known library": (named_like_a_library, {"sensors/nuscenes.py": ""}, "sensors/nuscenes.py"),
    "two tests of one name": (duplicate_test_names, {"tests/sim/test_low.py": ""}, "2 test files"),
    "machine path": (machine_paths, {"vla/x.py": f"p = '{SLASH}root{SLASH}x'\n"}, "vla/x.py:1"),
    "machine path in a text": (machine_paths, {"docs/x.md": f"a\nsee {SLASH}home{SLASH}me\n"}, "docs/x.md:2"),
    "machine path without suffix": (machine_paths, {".ci/run": f"cd {SLASH}work{SLASH}x\n"}, ".ci/run:1"),
    "package not listed": (unlisted_package, {"sim/deep/__init__.py": ""}, "sim.deep"),
}


def write_tree(root: Path, files: dict[str, str | None]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.unlink()
        else:
            path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_is_silent_on_a_good_tree(rule: Callable[[Path], Iterator[str]], tmp_path: Path) -> None:
    assert list(rule(write_tree(tmp_path, GOOD))) == []


@pytest.mark.parametrize("name", BAD)
def test_rule_fires(name: str, tmp_path: Path) -> None:
    rule, files, complaint = BAD[name]
    write_tree(tmp_path, GOOD)
    assert any(complaint in line for line in rule(write_tree(tmp_path, files)))


def test_every_rule_has_a_bad_tree() -> None:
    assert {rule for rule, _, _ in BAD.values()} == set(RULES)


def test_limits_are_inclusive(tmp_path: Path) -> None:
    write_tree(tmp_path, GOOD)
    write_tree(tmp_path, {"sim/place.py": "x = 1\n" * 400, "vla/x.py": "def f():\n" + "    x = 1\n" * 59})
    assert list(too_long(tmp_path)) == []
