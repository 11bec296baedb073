"""What follows from the declaration of an option, shown on some that the agent does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import click
import msgspec
import pytest
from click.testing import CliRunner

from lbctl.addresses import Prefix, parse_prefix
from lbctl.cli import options
from lbctl.config import agentconfig, document, settings, settle
from lbctl.config.file import ConfigFile
from lbctl.config.options import Option, declared
from lbctl.config.settings import Settings
from lbctl.errors import ConfigError, UsageError

_Level = Annotated[int, msgspec.Meta(ge=3)]
_Part = Annotated[int, msgspec.Meta(ge=1, le=8)]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    way: Annotated[
        Literal["slow", "fast"],
        Option(flag="--way", field="way", example="fast", help="Which way."),
    ] = "slow"
    level: Annotated[_Level, Option(flag="--level", short="-l", metavar="N", help="How high.")] = 5
    part: Annotated[_Part, Option(flag="--part", metavar="N", help="Which part.")] = 1
    count: Annotated[int | None, Option(flag="--count", metavar="N", help="How many.")] = None
    path: Annotated[
        Path | None, Option(flag="--path", env="SAMPLE_PATH", default="none", help="Where.")
    ] = None
    ranges: Annotated[
        tuple[Prefix, ...],
        Option(
            flag="--range",
            metavar="CIDR",
            field="rangeCIDRs",
            parse=parse_prefix,
            commas=True,
            example=("10.0.0.0/8",),
            help="Which ones.",
        ),
    ] = ()
    quick: Annotated[bool, Option(flag="--quick/--no-quick", field="quick", help="Hurry.")] = True
    silent: Annotated[bool, Option(kube_proxy="silent", live=True, help="Say nothing.")] = False


OPTIONS = declared(Sample)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> click.Command:
    """One that has the sample's options and returns what was given."""
    monkeypatch.setattr(settings, "OPTIONS", OPTIONS)

    @click.command()
    @options.of_settings
    def made(**given: Any) -> dict[str, Any]:
        return {name: value for name, value in given.items() if value not in (None, ())}

    return made


def _given(command: click.Command, *args: str, **env: str) -> dict[str, Any]:
    result = CliRunner().invoke(command, args, env=env, standalone_mode=False)
    assert result.exception is None, result.output
    found = result.return_value
    assert isinstance(found, dict)
    return found


def test_what_was_not_given_is_not_said(command: click.Command) -> None:
    assert _given(command) == {}


def test_values_have_their_types(command: click.Command) -> None:
    args = ("--way=fast", "-l", "3", "--count", "-1", "--range", "a", "--range", "b", "--no-quick")
    assert _given(command, *args, SAMPLE_PATH="/x") == {
        "way": "fast",
        "level": 3,
        "count": -1,
        "path": Path("/x"),
        "ranges": ("a", "b"),
        "quick": False,
    }


@pytest.mark.parametrize(
    "args", [("--way", "odd"), ("--level", "2"), ("--part", "0"), ("--part", "9"), ("--silent",)]
)
def test_what_cannot_be_is_refused(command: click.Command, args: tuple[str, ...]) -> None:
    assert CliRunner().invoke(command, args).exit_code == 2


def test_the_help_has_values_defaults_and_variables(command: click.Command) -> None:
    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "--way [slow|fast] Which way. [default: slow]" in text
    assert "-l, --level N How high. [default: 5] [x>=3]" in text
    assert "Where. [default: none] [env var: SAMPLE_PATH]" in text
    assert "--range CIDR Which ones. Repeatable." in text
    assert "--quick / --no-quick Hurry. [default: true]" in text
    assert "silent" not in text


def test_text_becomes_a_value_and_faults_name_their_place() -> None:
    ranges = OPTIONS["ranges"]
    assert ranges.value(["10.0.0.0/8"], str) == (parse_prefix("10.0.0.0/8"),)
    with pytest.raises(ValueError, match=r"^at 1: '10.0.0.0' is not a network"):
        ranges.value(["10.0.0.0/8", "10.0.0.0"], lambda index: f"at {index}")
    assert OPTIONS["count"].value(4, str) == 4


def test_commas_are_for_the_command_line_alone() -> None:
    both = "10.0.0.0/8,11.0.0.0/8"
    assert len(settle.from_command_line(service_cidrs=(both,))["service_cidrs"]) == 2
    with pytest.raises(UsageError, match="--service-cidr: ''"):
        settle.from_command_line(service_cidrs=("10.0.0.0/8,",))
    with pytest.raises(ConfigError, match=r"serviceCIDRs\[0\]: '10.0.0.0/8,11"):
        agentconfig.parse({"kind": agentconfig.KIND, "serviceCIDRs": [both]})


def test_false_is_something_said() -> None:
    found = settle.settle(settle.from_command_line(verbose=False), ConfigFile(agent={"flows": 500}))
    assert found == Settings(flows=500)
    assert settle.from_command_line(verbose=False) == {"verbose": False}


def test_values_are_described() -> None:
    described = {name: document._values(option) for name, option in OPTIONS.items()}
    assert described["way"] == "`slow` or `fast`"
    assert described["level"] == "`N`, at least 3"
    assert described["part"] == "`N`, 1 to 8"
    assert described["count"] == "`N`"
    assert described["ranges"] == "list of `CIDR`"
    assert described["quick"] == "`true` or `false`"
    assert document._flag(OPTIONS["quick"]) == "`--quick`, `--no-quick`"
