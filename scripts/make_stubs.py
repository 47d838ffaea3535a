"""Writes loom_gguf/_core.pyi, the types of the extension, from the extension that is installed.

    python scripts/make_stubs.py            # writes the file
    python scripts/make_stubs.py --check    # exit status 1 where it would change

pybind11-stubgen says what there is; what it cannot know, or says differently from one version to the next, is put
right here: so the same extension always gives the same file, and mypy's strict mode understands it.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import enum
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

MODULE = "loom_gguf._core"
STUB = Path(__file__).parents[1] / "loom_gguf" / "_core.pyi"
HEADER = '"""Made by scripts/make_stubs.py from the extension: change csrc/bindings and run `make stubs`."""'

# Types that C++ cannot say. Key: function or Class.method.
RETURNS = {
    "Tapper.finish": "tuple[Status, str, builtins.list[tuple[numpy.typing.NDArray[typing.Any], "
    "numpy.typing.NDArray[numpy.float32] | None, int]]]",
    "compress_float16": "tuple[numpy.typing.NDArray[numpy.float16], int]",
    "compress_int8": "tuple[numpy.typing.NDArray[numpy.int8], numpy.typing.NDArray[numpy.float32]]",
    "read_gguf": "tuple[int, dict[str, typing.Any], list[tuple[str, list[int], str, int, int]]]",
    "read_weights": "numpy.typing.NDArray[numpy.float32]",
}


def generate() -> str:
    enums = {
        name: [f"{member.name} = {member.value!r}" for member in kind]
        for name, kind in vars(importlib.import_module(MODULE)).items()
        if isinstance(kind, type) and issubclass(kind, enum.Enum)
    }
    # Defaults like <InPlace.HOST: 1> do not say which module's InPlace they mean.
    places = [f"--enum-class-locations=^{name}$:{MODULE}.{name}" for name in enums]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", MODULE, "--output-dir", folder, "--exit-code", *places]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"pybind11-stubgen failed:\n{done.stdout}{done.stderr}")
        raw = Path(folder, *MODULE.split(".")).with_suffix(".pyi").read_text()
    return ruff_format(tidy(raw, enums))


def tidy(raw: str, enums: dict[str, list[str]]) -> str:
    tree = Tidy(enums).visit(ast.parse(raw))
    body = [ast.unparse(ast.fix_missing_locations(node)) for node in tree.body]
    # Order has no meaning in a stub: constants, classes, functions, each by name.
    ranks = [(ast.AnnAssign, ast.ClassDef, ast.FunctionDef).index(type(node)) for node in tree.body]
    text = "\n".join(part for _, part in sorted(zip(ranks, body, strict=True)))
    imports = [
        "\n".join(f"import {name}" for name in group if f"{name}." in text)
        for group in (("builtins", "collections.abc", "enum", "typing"), ("numpy.typing",))
    ]
    return "\n\n".join([HEADER, *imports, text])


def ruff_format(source: str) -> str:
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(STUB), "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


class Tidy(ast.NodeTransformer):
    """Makes pybind11-stubgen's tree one that does not depend on its version."""

    def __init__(self, enums: dict[str, list[str]]) -> None:
        self.enums = enums
        self.scope: list[str] = []

    def visit_Module(self, node: ast.Module) -> ast.Module:
        body = [self.visit(each) for each in node.body if not isinstance(each, ast.Import | ast.ImportFrom | ast.Expr)]
        return ast.Module([each for each in body if each is not None], [])

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if ast.unparse(node.target) == "__all__":
            return None
        node.value = None  # a version number in the file would make every update look like a change of types
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        if node.name in self.enums:
            # Members with annotations are no members to a type checker.
            node.body = ast.parse("\n".join(self.enums[node.name])).body
            return node
        self.scope.append(node.name)
        node.body = [self.visit(each) for each in node.body if not isinstance(each, ast.Expr)] or ast.parse("...").body
        self.scope.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        # Docstrings can be read with help(); types are what is wanted here.
        node.body = ast.parse("...").body
        returns = RETURNS.get(".".join([*self.scope, node.name]))
        if returns is not None:
            node.returns = ast.parse(returns, mode="eval").body
        # That there is a default is part of the type; its value is not.
        node.args.defaults = [ast.Constant(...) for _ in node.args.defaults]
        node.args.kw_defaults = [each and ast.Constant(...) for each in node.args.kw_defaults]
        self.generic_visit(node)
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        # pybind11 takes whatever converts to an int, and names that in a way of its own in each version.
        if "typing.SupportsInt" in ast.unparse(node):
            return ast.Name("int", ast.Load())
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        text = ast.unparse(node)
        if text == "typing.SupportsInt":
            return ast.Name("int", ast.Load())
        if text == "numpy.ndarray":
            return ast.parse("numpy.typing.NDArray[typing.Any]", mode="eval").body
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        # Annotated[list[int], "FixedSize(4)"]: what is annotated is what a type checker looks at.
        if ast.unparse(node.value) == "typing.Annotated" and isinstance(node.slice, ast.Tuple):
            return self.visit(node.slice.elts[0])
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        # Tapper.list() hides the built-in type within its class.
        if node.id == "list" and self.scope:
            return ast.parse("builtins.list", mode="eval").body
        return node


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the file is out of date")
    check = parser.parse_args().check
    made = generate()
    present = STUB.read_text() if STUB.exists() else ""
    if made == present:
        return 0
    if not check:
        STUB.write_text(made)
        print(f"wrote {STUB}")
        return 0
    sys.stdout.writelines(difflib.unified_diff(present.splitlines(True), made.splitlines(True), str(STUB), "extension"))
    print("loom_gguf/_core.pyi is out of date: run `make stubs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
