"""Checks the distributions in a folder: `python .ci/check_package.py dist`. Needs nothing but Python and pip.

The wheel has every file of the package; installed alone in a bare environment it has its commands and their help.
Whether it trains is tested with all that it needs, elsewhere: that takes minutes to install.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What a test reads, or a reader of the sdist looks for.
IN_THE_SDIST = ("LICENSE", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "RELEASING.md", ".ci/run")
IN_THE_SDIST += (
    "tests/conftest.py",
    "docs/metrics.md",
    "recipes/README.md",
    "examples/sqlite_agent.py",
    "benchmarks/cost.py",
    "constraints.txt",
    "mkdocs.yml",
)


def files_of_the_package() -> set[str]:
    files = (path for path in (ROOT / "src" / "p2o").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT / "src")) for path in files}


def check(folder: Path) -> None:
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        missing = files_of_the_package() - {*archive.namelist()}
    assert not missing, f"{wheel.name} lacks {sorted(missing)}"
    assert {"p2o/py.typed", "p2o/pico/recipe.yaml"} <= files_of_the_package()
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {*IN_THE_SDIST}, f"{sdist.name} lacks {sorted({*IN_THE_SDIST} - names)}"
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB; {sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory() as bare:
        venv.create(bare)
        pip = [sys.executable, "-m", "pip", "--python", f"{bare}/bin/python", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, str(wheel.resolve())], check=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        for words in (["--version"], ["--help"], ["train", "--help"], ["evolve", "--help"]):
            command = [f"{bare}/bin/p2o", *words]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=bare, env=environment)
            assert done.stdout.strip() in wheel.name if words == ["--version"] else "usage: p2o" in done.stdout, words
    print("Installed alone in a bare environment, the commands and their help are there.")


if __name__ == "__main__":
    check(Path(sys.argv[1]))
