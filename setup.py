"""Puts what runs are started from, scripts, configurations and registries, into the built package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("shell", "configs", "anno_data")


class BuildWithFolders(build_py):
    """Copies `FOLDERS` into `videochat_online/project`; an editable installation has them beside the package."""

    def run(self) -> None:
        """As in setuptools, and copy."""
        super().run()
        if not self.editable_mode:
            for folder in FOLDERS:
                ignored = shutil.ignore_patterns("__pycache__")
                target = Path(self.build_lib) / "videochat_online" / "project" / folder
                shutil.copytree(Path(__file__).parent / folder, target, dirs_exist_ok=True, ignore=ignored)


setup(cmdclass={"build_py": BuildWithFolders})
