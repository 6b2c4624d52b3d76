"""The files that say what is installed agree with each other, and a built wheel holds what a run needs."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def of_extra(name: str) -> list[str]:
    """What an extra brings; one that names other extras of ours brings theirs."""
    lines = []
    for line in PROJECT["optional-dependencies"][name]:
        wanted = Requirement(line)
        own = wanted.name == PROJECT["name"]
        lines += [needed for extra in sorted(wanted.extras) for needed in of_extra(extra)] if own else [line]
    return lines


REQUIREMENTS = [*PROJECT["dependencies"], *of_extra("dev")]


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_environment_yml_equals_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    assert packages["pip"] == ["-c constraints.txt", *REQUIREMENTS, "-e ."]


def test_plain_installation_brings_no_extra():
    plain = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    for extra in ("eval", "scale"):
        assert not plain & {canonicalize_name(Requirement(line).name) for line in of_extra(extra)}


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_requirement_is_pinned_within_its_range(line):
    wanted = Requirement(line)
    pin = constraints()[canonicalize_name(wanted.name)]
    (exact,) = pin.specifier
    assert exact.operator == "=="
    assert exact.version in wanted.specifier
    assert "+" not in exact.version, "a local build would keep other machines from installing"


def test_every_installed_dependency_is_pinned():
    """Walks from our requirements through what is installed here, so that no transitive package floats."""
    from importlib.metadata import PackageNotFoundError, requires

    pins, seen, waiting = constraints(), set(), [Requirement(line) for line in REQUIREMENTS]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        extras = wanted.extras or {""}
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if (name, frozenset(extras)) in seen:
            continue
        seen.add((name, frozenset(extras)))
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        assert name in pins, f"{name} is installed but not pinned in constraints.txt"
        for line in lines:
            needed = Requirement(line)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(Requirement(line.split(";")[0]))


def test_license_is_the_whole_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert len(text.splitlines()) == 202
    assert "END OF TERMS AND CONDITIONS" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10))


def test_wheel_holds_kernels_assets_and_static_files(tmp_path):
    source = tmp_path / "source"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", "bench")
    for folder in ("dlm_lens", "kernels"):
        shutil.copytree(ROOT / folder, source / folder, ignore=skip)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "-w", tmp_path, source], check=True)
    (built,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(built).namelist())
    for folder in ("dlm_lens", "kernels"):
        for file in (source / folder).rglob("*"):
            if file.is_file() and file.name != ".DS_Store":
                assert file.relative_to(source).as_posix().removeprefix("kernels/") in names


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("target", sorted(makefile_targets()))
def test_make_target_is_well_formed(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$1" in -V) echo "Python 3.9.18";; *) exit 1;; esac\n')
    old.chmod(0o755)
    command = ["make", "demo", f"PYTHON={old}", f"VENV={tmp_path}/venv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stdout
    assert "Python 3.9.18" in done.stdout
    assert "make demo PYTHON=python3.12" in done.stdout
    assert not (tmp_path / "venv").exists()
