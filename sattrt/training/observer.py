"""What a run tells of itself, before it begins and while it goes on.

class Watch(Observer):
    def epoch_ended(self, row, best):
        print(row.epoch, row.valid_accuracy)

train(dataset, Path("run"), TrainConfig(), Watch())
"""

from __future__ import annotations

from dataclasses import dataclass

from .log import Row


@dataclass(frozen=True)
class Plan:
    """What will be run, and on what.

    tiles: of an epoch, out of `of_tiles` of the train split. steps: optimizer steps of the whole run; of the last epoch they may be a part.
    first_step: where it begins. world: processes. slower: why it is slower than it could be. differs: what is other than when the run was
    begun, so that it need not go on bit for bit as it would have.
    """

    epochs: int
    tiles: int
    of_tiles: int
    steps_per_epoch: int
    steps: int
    precision: str
    device: str
    world: int
    first_step: int
    decoder: str
    slower: str = ""
    differs: str = ""


class Observer:
    """What a run tells while it goes on; the command line draws it. Called on the first rank only."""

    def reached(self, what: str) -> None:
        """What comes before the first step has come so far: "network" (on its device), "recorded", "samples" (written), "first tiles" (decoded)."""

    def started(self, plan: Plan) -> None:
        """The plan is made; training begins."""

    def stepped(self, row: Row, plan: Plan) -> None:
        """An optimizer step was made."""

    def epoch_ended(self, row: Row, best: bool) -> None:
        """An epoch was validated."""

    def finishing(self) -> None:
        """All epochs are over; the best network is examined."""

    def noted(self, what: str) -> None:
        """A line that people should read."""
