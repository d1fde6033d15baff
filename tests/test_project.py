"""The project's own promises: version, layers, docstrings, and that README and CI say the same."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fpgrad
from fpgrad import errors

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "fpgrad"
PACKAGES = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Checks the contracts of pyproject.toml on the copy of the package inside ``folder``.

    -S and an explicit path: an editable install's finder would lead back to the checkout.
    """
    program = "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c())"
    packages = [sysconfig.get_path("purelib"), *site.getsitepackages()]
    return subprocess.run(
        [sys.executable, "-S", "-c", program, "--config", ROOT / "pyproject.toml", "--no-cache"],
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *packages])},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with a copy of the package's Python files."""
    pytest.importorskip("importlinter")
    shutil.copytree(PACKAGE, tmp_path / "fpgrad", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("fpgrad") == fpgrad.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", fpgrad.__version__)


def test_changes_begin_with_the_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGES.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == fpgrad.__version__


def test_import_brings_no_framework_and_no_hdl() -> None:
    program = (
        "import sys, fpgrad, fpgrad.errors;"
        "print({'keras', 'torch', 'tensorflow', 'amaranth', 'numpy'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert ran.stdout.strip() == "set()", ran.stderr


@pytest.mark.parametrize(
    "name",
    ["formats", "graph", "isa", "transform", "codegen", "reference", "emulator", "host", "report"],
)
def test_core_needs_no_extra(name: str) -> None:
    """What neither is a front end nor describes hardware works with NumPy and typer alone."""
    program = (
        f"import sys, fpgrad.{name};"
        "print({'keras', 'torch', 'tensorflow', 'amaranth', 'sklearn'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert ran.stdout.strip() == "set()", ran.stderr


def test_contracts_hold(copied: Path) -> None:
    ran = lint_imports(copied)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("module", "imported", "contract"),
    [
        ("errors", "fpgrad.formats", "Layers"),
        ("formats", "fpgrad.isa", "Layers"),
        ("graph", "fpgrad.isa", "Layers"),
        ("frontend", "fpgrad.transform", "Layers"),
        ("emulator", "fpgrad.reference", "Layers"),
        ("rtl", "fpgrad.host", "Layers"),
        ("report", "fpgrad.flow", "Layers"),
        ("keras", "fpgrad.torch", "Layers"),
        ("host", "fpgrad.codegen", "Waist"),
        ("link", "fpgrad.graph", "Waist"),
        ("cli", "keras", "Frameworks"),
        ("flow", "torch", "Frameworks"),
        ("host", "tensorflow.data", "Frameworks"),
        ("codegen", "amaranth", "Amaranth"),
        ("emulator", "amaranth.hdl", "Amaranth"),
        ("host", "fpgrad", "Root"),
        ("flow", "fpgrad", "Root"),
    ],
)
def test_violation_is_found(copied: Path, module: str, imported: str, contract: str) -> None:
    file = copied / "fpgrad" / f"{module}.py"
    if not file.exists():
        file = copied / "fpgrad" / module / "_violation.py"
    file.write_text(f"import {imported}\n")
    ran = lint_imports(copied)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert re.search(rf"^{contract}: .* BROKEN", ran.stdout, flags=re.MULTILINE), ran.stdout


@pytest.mark.parametrize(
    ("file", "imported"),
    [
        ("frontend/_allowed.py", "keras"),
        ("keras/_allowed.py", "keras"),
        ("torch/_allowed.py", "torch"),
        ("link/example/gateware.py", "amaranth.lib.wiring"),
        ("rtl/_allowed.py", "amaranth"),
        ("target/_allowed.py", "amaranth_boards.ulx3s"),
        ("cli/_allowed.py", "fpgrad"),
    ],
)
def test_allowed_import_is_allowed(copied: Path, file: str, imported: str) -> None:
    path = copied / "fpgrad" / file
    path.parent.mkdir(exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text(f"import {imported}\n")
    ran = lint_imports(copied)
    assert "KEPT" in ran.stdout, ran.stderr
    module = "fpgrad." + file.removesuffix(".py").replace("/", ".")
    assert f"{module} -> " not in ran.stdout


def test_new_package_must_be_given_a_layer(copied: Path) -> None:
    (copied / "fpgrad" / "misc").mkdir()
    (copied / "fpgrad" / "misc" / "__init__.py").touch()
    ran = lint_imports(copied)
    assert ran.returncode == 1
    assert "misc" in ran.stdout + ran.stderr


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_every_module_says_why_it_exists(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert docstring, f"{file.relative_to(ROOT)} must have a docstring that says why it exists"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_package_has_a_page(package: Path) -> None:
    page = ROOT / "docs" / f"{package.name}.md"
    assert page.is_file(), f"docs/{package.name}.md must say what fpgrad.{package.name} owns"
    assert f"({package.name}.md)" in (ROOT / "docs" / "README.md").read_text()


@pytest.mark.parametrize(
    "file",
    sorted([*PACKAGE.glob("gateware/**/*.py"), *PACKAGE.glob("link/*/gateware*/**/*.py")]),
    ids=lambda path: path.stem,
)
def test_gateware_has_no_postponed_annotations(file: Path) -> None:
    """With them Amaranth's components raise, and a ``data.Struct`` silently becomes empty."""
    assert "from __future__ import annotations" not in file.read_text()


def test_ci_installs_with_the_commands_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    installs = re.findall(r"pip install (?:--quiet )?(torch==.*)$", ci, flags=re.MULTILINE)
    assert len(installs) == 1
    documented = re.findall(r"pip install (torch==\S+ -e \S+)", readme)
    assert len(documented) == 2, "the README has two commands"
    assert documented[1] == re.match(r"torch==\S+ -e \S+", installs[0])[0]  # type: ignore[index]


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_errors_have_one_base() -> None:
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type)
        and issubclass(value, BaseException)
        and not issubclass(value, Warning)
    ]
    assert classes
    for cls in classes:
        assert issubclass(cls, errors.FpgradError)
        assert cls.__doc__, f"{cls.__name__} must say when it is raised"


def test_unsupported_things_are_all_listed() -> None:
    error = errors.UnsupportedModelError(
        [
            errors.Problem("conv2d_1", "layer Conv2D is not supported", "use Dense"),
            errors.Problem("adam", "option amsgrad=True is not supported"),
        ],
        model="model 'net'",
    )
    assert str(error) == (
        "model 'net' cannot be compiled, 2 unsupported things:\n"
        "  conv2d_1: layer Conv2D is not supported; use Dense\n"
        "  adam: option amsgrad=True is not supported"
    )


def test_a_model_of_no_known_framework_is_refused() -> None:
    with pytest.raises(
        errors.UnsupportedFrameworkError,
        match=r"^model must be a Keras 3 model, not builtins\.dict$",
    ):
        fpgrad.FPGA({})
