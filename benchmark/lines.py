"""Lines of a Python file, and of all files of its own repository that it imports, directly or not.

python benchmark/lines.py REPOSITORY FILE...    such as a checkout of CleanRL and cleanrl/dqn.py
"""

import ast
import sys
from pathlib import Path


def imported(path, root):
    """The files below root that a file imports; a package's __init__.py counts only where it is named itself."""
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [base] + [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            for folder in (root, path.parent):
                file = folder.joinpath(*name).with_suffix(".py") if name else folder
                if file.is_file():
                    yield file


def main():
    """One line a file."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    root = Path(sys.argv[1]).resolve()
    for name in sys.argv[2:]:
        todo, seen = [root / name], set()
        while todo:
            if (path := todo.pop()) not in seen:
                seen.add(path)
                todo += imported(path, root)
        lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in seen}
        print(f"{name}  {lines[root / name]} lines, with what it imports {sum(lines.values())} in {len(seen)} files")


if __name__ == "__main__":
    main()
