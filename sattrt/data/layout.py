"""Which class, and which split where folders say so, each file of a source belongs to.

layout = Layout.of(source)
layout.class_of["Forest/Forest_1.jpg"]
"""

from __future__ import annotations

import posixpath
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import InputError
from .decode import EXTENSIONS
from .sources import Source

SPLIT_FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
_UNSHOWN = {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories of control characters, bytes that are no UTF-8, line ends and such
_MOST_ELSEWHERE = 0.1  # share of the images in folders at another depth than most


@dataclass(frozen=True)
class Layout:
    """names: of the files that may be tiles. class_of, split_folders: by name; no split where the folders name none. left_out: with the reason."""

    path: Path
    names: list[str]
    classes: tuple[str, ...]
    class_of: dict[str, str]
    split_folders: dict[str, str]
    left_out: dict[str, str]

    @classmethod
    def of(cls, source: Source) -> Layout:
        """InputError for a source without tiles in class folders, or of fewer than two classes."""
        files = source.names()
        for name in (*files, *source.folders(), *source.irregular):
            if any(unicodedata.category(character) in _UNSHOWN for character in name):
                raise InputError(f"{source.path} holds the name {name!a}, which is not text that can be shown. Rename it.")
        images = [name for name in files if posixpath.splitext(name)[1].lower() in EXTENSIONS]
        if not images:
            raise InputError(f"{source.path} holds no image ({', '.join(sorted(EXTENSIONS))}). Give a folder of class folders.")
        depths = Counter(name.count("/") + 1 for name in images)
        depth = depths.most_common(1)[0][0]
        if depth < 2:
            raise InputError(f"{source.path} has its images in no class folder. Put those of each class in a folder of its own.")
        elsewhere = [name for name in images if name.count("/") + 1 not in (1, depth)]
        if len(elsewhere) > _MOST_ELSEWHERE * len(images):  # classes would be missing, or called as what divides them further
            raise InputError(
                f"{source.path} has class folders at several depths ({len(elsewhere)} of {len(images)} images lie as {elsewhere[0]}). "
                "Put all classes side by side, their images directly in them."
            )
        left_out = dict(source.irregular)
        left_out |= dict.fromkeys(set(files).difference(images), "not an image file")
        left_out |= {name: "not in a class folder" for name in images if name.count("/") + 1 != depth}
        names = [name for name in images if name not in left_out]
        class_folders = {folder for folder in source.folders() if len(PurePosixPath(folder).parts) == depth - 1}
        roots = {PurePosixPath(folder).parent for folder in class_folders}
        named = {root: SPLIT_FOLDERS.get(root.name.lower()) for root in roots}
        split_folders: dict[str, str] = {}
        if all(named.values()):
            split_folders = {name: str(named[PurePosixPath(name).parent.parent]) for name in names}
        elif len(roots) > 1:
            first, second = sorted(str(root) for root in roots)[:2]
            raise InputError(
                f"{source.path} has class folders in several places ({first}, {second}). "
                "Give one folder of class folders, or train/, valid/ and test/ of them."
            )
        classes = tuple(sorted({PurePosixPath(folder).name for folder in class_folders}))
        class_of = {name: PurePosixPath(name).parent.name for name in names}
        if len(classes) < 2:
            raise InputError(f"{source.path} has only the class {classes[0]!r}. A classifier needs at least two class folders.")
        return cls(source.path, names, classes, class_of, split_folders, left_out)
