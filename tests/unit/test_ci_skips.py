"""tests/conftest.py: with CI set, a kernel or lab test that is skipped fails the run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
INI = "[pytest]\nmarkers =\n    kernel: x\n    lab: x\n"


def _run(directory: Path, tests: str, *, ci: bool, where: str = "test_it.py") -> str:
    shutil.copy(CONFTEST, directory / "conftest.py")
    (directory / "pytest.ini").write_text(INI)
    path = directory / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"import pytest\n{tests}\n")
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    if ci:
        environment["CI"] = "true"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(directory)],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


def _counts(output: str) -> dict[str, int]:
    last = output.strip().splitlines()[-1]
    return {word.rstrip("s"): int(count) for count, word in re.findall(r"(\d+) (\w+)", last)}


@pytest.mark.parametrize("mark", ["kernel", "lab"])
def test_a_skipped_privileged_test_fails_in_ci_and_says_why(tmp_path: Path, mark: str) -> None:
    body = f"@pytest.mark.{mark}\ndef test_x():\n    pytest.skip('vxlan is missing')"
    assert _counts(_run(tmp_path, body, ci=False))["skipped"] == 1
    output = _run(tmp_path, body, ci=True)
    assert _counts(output)["failed"] == 1
    assert "vxlan is missing" in output
    assert f"skipped a {mark} test" in output


def test_an_ordinary_skip_stays_a_skip_in_ci(tmp_path: Path) -> None:
    body = "def test_x():\n    pytest.skip('no reason to fail')"
    assert _counts(_run(tmp_path, body, ci=True))["skipped"] == 1


def test_an_expected_failure_is_not_a_skip(tmp_path: Path) -> None:
    body = "@pytest.mark.kernel\n@pytest.mark.xfail\ndef test_x():\n    assert False"
    assert _counts(_run(tmp_path, body, ci=True)) == {"xfailed": 1}


def test_a_module_that_skips_itself_fails_in_ci(tmp_path: Path) -> None:
    body = "pytest.skip('no bcc', allow_module_level=True)"
    output = _run(tmp_path, body, ci=True, where="kernel/test_it.py")
    assert _counts(output)["error"] == 1
    assert "no bcc" in output
