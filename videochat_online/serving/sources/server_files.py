"""Which files of the server may be watched: those below one folder, and none if no folder was named."""

from __future__ import annotations

import os
from pathlib import Path

from videochat_online.errors import InputError
from videochat_online.serving.sources.sandbox import safe_name


def resolve_server_path(text: str, root: Path | None) -> Path:
    """The file or folder of frames of that path, absolute or from the root on, after all symbolic links.

    Raises:
        InputError: no root, or no file below it of that name. It is the same whether there is no such file, one that
            lies elsewhere or one that may not be read: nobody learns what the server's disk holds.
    """
    if root is None:
        raise InputError("files of the server are not opened: whoever runs it can allow a folder with --media_root")
    path = _find(text, root)
    if path is None:
        raise InputError(
            f"{safe_name(text)}: expected a video or a folder of frames below the server's folder of media, found none"
        )
    return path


def _find(text: str, root: Path) -> Path | None:
    inside = os.path.normpath(root.absolute() / text)
    if not Path(inside).is_relative_to(os.path.normpath(root.absolute())):
        return None  # before anything is touched that lies elsewhere
    try:
        real_root = root.resolve(strict=True)
        path = Path(inside).resolve(strict=True)
        if not path.is_relative_to(real_root):
            return None
        if path.is_file():
            return path if os.access(path, os.R_OK) else None
        # Frames are opened by their names later: none of them may lead elsewhere either.
        is_folder = path.is_dir() and path != real_root
        return path if is_folder and all(file.resolve().is_relative_to(real_root) for file in path.iterdir()) else None
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long, a NUL in it
        return None
