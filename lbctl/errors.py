"""Errors of the control plane, beside those of `ebpf.errors`."""

from __future__ import annotations

from ebpf.errors import LbError

__all__ = ["ConfigError", "LbError", "NotFound", "ObjectError", "SourceError", "UsageError"]


class UsageError(LbError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class NotFound(LbError):
    """The named instance, service or backend does not exist."""

    exit_code = 3


class ConfigError(LbError):
    """A configuration file does not say what it should; the message names the field."""


class SourceError(LbError):
    """A file or the Kubernetes API did not give what was asked of it."""


class ObjectError(LbError):
    """One API object is malformed; the message names kind, namespace/name and field.

    `key` is the object's own, as far as it could be read: namespace (may be empty) and name.
    """

    def __init__(self, message: str, key: tuple[str, str], hint: str = "") -> None:
        super().__init__(message, hint)
        self.key = key
