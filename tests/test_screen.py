import os
import pty
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from sattrt.data.dataset import Dataset, Tile
from sattrt.errors import InputError
from sattrt.screen import _describe, print_dataset
from sattrt.training.observer import Plan


@pytest.mark.parametrize(
    ("steps", "tiles", "said"),
    [
        (4, 64, "1 epoch of all 64 train tiles, bf16 on cpu, decoded by DALI"),
        (7, 64, "1.8 epochs of all 64 train tiles, bf16 on cpu, decoded by DALI"),
        (600, 64, "150 epochs of all 64 train tiles, bf16 on cpu, decoded by DALI"),
        (4_000_000, 64, "1000000 epochs of all 64 train tiles, bf16 on cpu, decoded by DALI"),
        (4, 60, "1 epoch of a class-balanced share, 60 of 64 train tiles, bf16 on cpu, decoded by DALI"),
    ],
)
def test_what_a_run_is_about_to_do_is_one_line(steps: int, tiles: int, said: str) -> None:
    plan = Plan(
        epochs=-(-steps // 4),
        tiles=tiles,
        of_tiles=64,
        steps_per_epoch=4,
        steps=steps,
        precision="bf16",
        device="cpu",
        world=1,
        first_step=0,
        decoder="DALI",
    )
    assert _describe(plan) == said


@pytest.mark.parametrize(
    ("tests", "others", "split", "said"),
    [
        (10, 990, "94:5:1", "note: 10 test tiles: an accuracy near 95 % would be known to ±17 points; --split 80:10:10 gives about 100"),
        (1, 99, "94:5:1", "note: 1 test tile: an accuracy near 95 % would be known to ±41 points; --split 80:10:10 gives about 10"),
        (40, 960, "spatial:94:5:1", "known to ±8 points; --split spatial:80:10:10 gives about 100"),
        (40, 360, "80:10:10", "known to ±8 points; more tiles would narrow it"),
        (40, 960, "80:10:10", "known to ±8 points; more tiles would narrow it"),
        (99, 9901, "94:5:1", "known to ±5 points; --split 80:10:10 gives about 1000"),
        (100, 9900, "94:5:1", ""),
        (10, 990, "folders", ""),
        (0, 100, "94:5:1", ""),
    ],
)
def test_few_test_tiles_are_said_with_what_they_are_worth(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], tests: int, others: int, split: str, said: str
) -> None:
    tiles = [Tile(str(i), i % 3, "test" if i < tests else "train", str(i), 1) for i in range(tests + others)]
    print_dataset(replace(dataset, all_tiles=tuple(tiles), split=split))
    out = capsys.readouterr().out
    assert said in out
    assert ("an accuracy near" in out) == bool(said)


@pytest.mark.parametrize(
    ("split", "part", "said"),
    [
        (
            "94:5:1",
            "valid",
            "valid tile of Forest, Water, and sattrt train needs one of each class. Try another --seed, a larger share (valid) or",
        ),
        ("folders", "valid", "valid tile of Forest, Water, and sattrt train needs one of each class. Add some to its valid/ folder"),
        ("94:5:1", "test", "no test tile of Forest, Water. Try another --seed, a larger share (test) or more tiles"),
    ],
)
def test_a_class_that_a_split_lacks_is_said_with_what_it_means(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], split: str, part: str, said: str
) -> None:
    tiles = [
        Tile(f"{other}{i}", i % 3, other, f"{other}{i}", 1)
        for other in ("train", "valid", "test")
        for i in range(1 if other == part else 3)
    ]
    lacking = replace(dataset, all_tiles=tuple(tiles), split=split)
    print_dataset(lacking)
    assert said in capsys.readouterr().out
    with pytest.raises(InputError, match=re.escape(lacking.way_to_more(part))):
        lacking.require_classes(part)


def test_a_name_that_looks_like_markup_is_shown_as_it_is() -> None:
    script = (
        "from sattrt.screen import progress_bar, updater\n"
        "with progress_bar('windows') as bar:\n"
        "    updater(bar, 'Mapping [b]a[/x]\\x1b[2J.tif')(1, 2)\n"
    )
    main, side = pty.openpty()
    done = subprocess.run([sys.executable, "-c", script], stderr=side, capture_output=False, check=False)
    os.close(side)
    shown = os.read(main, 65536).decode()
    os.close(main)
    assert done.returncode == 0, shown
    assert "Mapping [b]a[/x]\\x1b[2J.tif" in shown
