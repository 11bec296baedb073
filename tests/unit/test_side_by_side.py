"""tests/conftest.py: where several processes share the tests, one that is to be alone is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[1] / "conftest.py"
INI = "[pytest]\nmarkers =\n    alone: x\n"
TESTS = """
import json, time
from pathlib import Path
import pytest

def runs(name):
    began = time.monotonic()
    time.sleep(0.1)
    with open({log!r}, "a") as log:
        log.write(json.dumps([name, began, time.monotonic()]) + "\\n")

def test_both_begin_together():
    path = Path({log!r})
    path.with_name(__name__).touch()
    limit = time.monotonic() + 30
    while not (path.with_name("test_a").exists() and path.with_name("test_b").exists()):
        assert time.monotonic() < limit
        time.sleep(0.01)

@pytest.mark.parametrize("number", range(4))
def test_one_of_many(number):
    runs("many")

{mark}
def test_another():
    runs("alone")
"""


def test_nothing_runs_beside_a_test_that_is_to_be_alone(tmp_path: Path) -> None:
    shutil.copy(CONFTEST, tmp_path / "conftest.py")
    (tmp_path / "pytest.ini").write_text(INI)
    log = tmp_path / "log"
    for name in ("test_a.py", "test_b.py"):
        text = TESTS.format(log=str(log), mark="@pytest.mark.alone")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist=loadfile", str(tmp_path)],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    ran = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(ran) == 10
    for began, ended in [(began, ended) for name, began, ended in ran if name == "alone"]:
        beside = [name for name, start, end in ran if start < ended and end > began]
        assert beside == ["alone"]
