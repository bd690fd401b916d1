"""What Keras' operations do to pixels before the network: taken in where it is a shift of channels, else refused by name."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import keras_by_torch

from sattrt.errors import ContractError
from sattrt.rmldnn.keras import read_network
from sattrt.rmldnn.layers import read_layers
from sattrt.rmldnn.preprocessing import preprocessing

Operation = Callable[[Any, Any, Any], Any]  # of Keras' operations, pixels, and a constant of 10, 20, 30


def model(operation: Operation) -> dict[str, Any]:
    """What Keras writes of a model that does this to its input."""
    keras = keras_by_torch()
    pixels = keras.Input((64, 64, 3), name="pixels")
    constant = keras.ops.convert_to_tensor([10.0, 20.0, 30.0])
    return json.loads(keras.Model(pixels, operation(keras.ops, pixels, constant)).to_json())  # type: ignore[no-any-return]


TAKEN_IN: dict[str, tuple[Operation, int]] = {
    "pixels - constant": (lambda ops, pixels, constant: ops.subtract(pixels, constant), 1),
    "pixels + constant": (lambda ops, pixels, constant: ops.add(pixels, constant), -1),
    "constant + pixels": (lambda ops, pixels, constant: ops.add(constant, pixels), -1),
}


@pytest.mark.parametrize("case", TAKEN_IN)
def test_a_shift_of_channels(case: str) -> None:
    operation, sign = TAKEN_IN[case]
    graph = read_layers(model(operation), "layers.json")
    start, pixels, used = preprocessing(graph, graph["pixels"])
    assert (start, used) == (list(graph)[-1], set(graph))
    assert pixels is not None
    assert pixels.mean == pytest.approx([sign * each / 255 for each in (10, 20, 30)])
    assert pixels.std == pytest.approx((1 / 255,) * 3)


REFUSED: dict[str, Operation] = {
    "constant - pixels": lambda ops, pixels, constant: ops.subtract(constant, pixels),
    "pixels - pixels": lambda ops, pixels, constant: ops.subtract(pixels, pixels),
    "pixels * constant": lambda ops, pixels, constant: ops.multiply(pixels, constant),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_operation_is_refused_by_name(case: str) -> None:
    document = model(REFUSED[case])
    name = document["config"]["layers"][-1]["name"]
    with pytest.raises(ContractError, match=rf"after 'pixels' a ZeroPadding2D .* was expected, '{name}', (Subtract|Multiply) was found"):
        read_network(document, "c.json")
