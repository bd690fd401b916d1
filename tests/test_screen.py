import pytest

from sattrt.screen import _describe
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
