"""Where an instance is pinned unless it is told otherwise."""

from pathlib import Path

DEFAULT_PIN_DIR = Path("/sys/fs/bpf/lbctl")
