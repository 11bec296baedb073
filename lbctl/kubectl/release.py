"""Makes of the plugin one file that runs by itself, and of that an archive with a krew manifest.

python -m lbctl.kubectl.release DIRECTORY --url https://HOST/PATH
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "deploy" / "kubectl" / "lbctl.yaml"
PLUGIN = "kubectl-lbctl"
ARCHIVE = f"{PLUGIN}.tar.gz"
_MAIN = "from lbctl.kubectl.run import main\n\nmain()\n"
_TIME = (1980, 1, 1, 0, 0, 0)  # the same bytes for the same sources


def main() -> None:
    """Of the repository it is run in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--url", required=True, help="Where the archive will be, without its name; the homepage."
    )
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    for made in release(options.directory, options.url):
        print(made)


def release(directory: Path, url: str) -> tuple[Path, Path, Path]:
    """The plugin, its archive and the manifest."""
    plugin, archive, manifest = (directory / name for name in (PLUGIN, ARCHIVE, MANIFEST.name))
    plugin.write_bytes(plugin_file())
    plugin.chmod(0o755)
    packed = _archive({PLUGIN: plugin.read_bytes(), "LICENSE": (ROOT / "LICENSE").read_bytes()})
    archive.write_bytes(packed)
    filled_in = {
        "VERSION": f"v{metadata.version('lbctl')}",
        "HOMEPAGE": url,
        "URI": f"{url.rstrip('/')}/{ARCHIVE}",
        "SHA256": hashlib.sha256(packed).hexdigest(),
    }
    text = MANIFEST.read_text()
    text = text[text.index("apiVersion:") :]
    for name, value in filled_in.items():
        text = text.replace(f": {name}\n", f": {value}\n")
    manifest.write_text(text)
    return plugin, archive, manifest


def plugin_file() -> bytes:
    """The modules of this package but this one, as a file that Python runs."""
    files = {"__main__.py": _MAIN, "lbctl/__init__.py": ""}
    for module in sorted(Path(__file__).parent.glob("*.py")):
        if module != Path(__file__):
            files[f"lbctl/kubectl/{module.name}"] = module.read_text()
    made = io.BytesIO(b"#!/usr/bin/env python3\n")
    made.seek(0, io.SEEK_END)
    with zipfile.ZipFile(made, "a", zipfile.ZIP_DEFLATED) as packed:
        for name, text in files.items():
            packed.writestr(zipfile.ZipInfo(name, _TIME), text, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def _archive(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=made, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as packed,
    ):
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if name == PLUGIN else 0o644
            packed.addfile(entry, io.BytesIO(content))
    return made.getvalue()


if __name__ == "__main__":
    main()
