"""The worked example of CONTRIBUTING.md is taken word for word into a copy of the package, and works there."""

import os
import re
import shutil
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_example_is_one_file_one_export_line_and_one_test_file(root, tmp_path):
    page = (root / "CONTRIBUTING.md").read_text()
    policy, test, measure = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (export,) = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("dlm_lens", "kernels/dlm_kernels", "tests"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=skip)
    shutil.copy(root / "pyproject.toml", tmp_path)
    policies = tmp_path / "dlm_lens" / "policies"
    (policies / "dilated_window.py").write_text(policy)
    with (policies / "__init__.py").open("a") as file:
        file.write(export)
    (tmp_path / "tests" / "policies" / "test_dilated_window.py").write_text(test)

    names = "import dlm_lens as dl\nfrom dlm_lens.policies import DilatedWindow\n"
    quick = measure.replace("gen_length=32, steps=16", "gen_length=8, steps=4")
    assert quick != measure
    # In one process: importing takes longer than either.
    tests = ["-q", "-p", "no:cacheprovider", "tests/policies/test_dilated_window.py"]
    both = f"import pytest\nassert pytest.main({tests}) == 0\n{names}{quick}"
    done = subprocess.run(
        [sys.executable, "-c", both],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{tmp_path / 'kernels'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
