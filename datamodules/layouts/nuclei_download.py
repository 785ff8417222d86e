"""Naylor's TNBC images, fetched from the public archive."""

import os
import stat
import tempfile
import zipfile
from pathlib import Path, PureWindowsPath

from datamodules.images.image_folder import DamagedFileError
from datamodules.layouts.nuclei import TNBC_FOLDER

ARCHIVE_URL = "https://zenodo.org/records/2579118/files/TNBC_NucleiSegmentation.zip?download=1"
"""Version 1.1 of the data set (DOI 10.5281/zenodo.2579118, CC BY 4.0): 25 MB."""
ARCHIVE_MD5 = "1605712a752b201b57eacc8f866adb4f"
"""As public code that fetches this archive quotes it; another one would be an error, not taken silently."""


def download_tnbc(root: Path) -> None:
    """Put `TNBC_NucleiSegmentation/` into `root`, whole and verified, or leave nothing.

    Raises:
        OSError: The download failed, the archive is not what was published, or the folder cannot be written.
        RuntimeError: The archive has another checksum.
    """
    from torchvision.datasets.utils import download_url

    # On the file system of `root`, which is not made before there is something to put in it.
    home = next(path for path in (root.absolute(), *root.absolute().parents) if path.is_dir())
    with tempfile.TemporaryDirectory(prefix=".download-", dir=home) as unfinished:
        download_url(ARCHIVE_URL, unfinished, "archive.zip", ARCHIVE_MD5)
        unpack(Path(unfinished) / "archive.zip", Path(unfinished) / "unpacked")
        root.mkdir(parents=True, exist_ok=True)
        os.replace(Path(unfinished) / "unpacked" / TNBC_FOLDER, root / TNBC_FOLDER)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip archive into `folder`, after all its members were looked at.

    Raises:
        DamagedFileError: A member is a link or would lie outside of `folder`; nothing is unpacked.
        zipfile.BadZipFile: It is no zip archive, or damaged.
    """
    with zipfile.ZipFile(archive) as content:
        for member in content.infolist():
            # A path of Windows splits at both kinds of slash, and knows drives.
            path = PureWindowsPath(member.filename)
            if path.anchor or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
                raise DamagedFileError(
                    f"{archive.name} holds {member.filename!r}, which is a link or lies outside of its folder: nothing "
                    "was unpacked."
                )
        content.extractall(folder)
