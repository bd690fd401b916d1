from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sattrt.bands import RGB
from sattrt.errors import ContractError, InputError
from sattrt.model import TileClassifier, check_state, load_weights, set_trainable, set_training_mode, views_of
from sattrt.spec import KERAS_RESNET50, ModelSpec


@pytest.fixture
def model() -> TileClassifier:
    torch.manual_seed(0)
    return TileClassifier(10, (0.3, 0.4, 0.5), (0.2, 0.2, 0.2))


def test_normalisation_is_inside(model: TileClassifier) -> None:
    tiles = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    by_hand = (tiles.permute(0, 3, 1, 2) / 255 - torch.tensor([0.3, 0.4, 0.5]).view(-1, 1, 1)) / 0.2
    model.eval()
    torch.testing.assert_close(model(tiles), model.backbone(by_hand), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("size", "tile", "views"), [(0, (64, 64), 8), (0, (32, 48), 4), (32, (32, 48), 8)])
def test_a_square_has_eight_symmetries_and_so_has_what_is_made_one(size: int, tile: tuple[int, int], views: int) -> None:
    model = TileClassifier(3, (0.3, 0.4, 0.5), (0.2, 0.2, 0.2), size).eval()
    assert views_of(model, *tile) == views
    tiles = torch.randint(0, 256, (2, *tile, 3), dtype=torch.uint8)
    plain = model(tiles)
    model.views = views
    assert not torch.allclose(model(tiles), plain)
    torch.testing.assert_close(model(tiles.flip(2)), model(tiles))


def test_what_each_tune_trains(model: TileClassifier) -> None:
    def trained() -> int:
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    set_trainable(model, "bn")
    assert trained() == 53_120 + 20_490
    set_trainable(model, "head")
    assert trained() == 20_490
    set_trainable(model, "all")
    assert trained() == sum(parameter.numel() for parameter in model.parameters())
    with pytest.raises(InputError, match="tune"):
        set_trainable(model, "tail")


def test_a_frozen_network_keeps_its_statistics(model: TileClassifier) -> None:
    before = model.backbone.bn1.running_mean.clone()
    tiles = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    set_training_mode(model, "head")
    model(tiles)
    torch.testing.assert_close(model.backbone.bn1.running_mean, before)
    set_training_mode(model, "bn")
    model(tiles)
    assert not torch.equal(model.backbone.bn1.running_mean, before)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_another_head_are_taken_but_for_the_head(model: TileClassifier, tmp_path: Path, suffix: str) -> None:
    source = TileClassifier(4, (0, 0, 0), (1, 1, 1)).backbone.state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(source, path) if suffix == ".safetensors" else torch.save(source, path)
    head = model.backbone.fc.weight.clone()
    load_weights(model, str(path))
    torch.testing.assert_close(model.backbone.layer4[0].conv2.weight, source["layer4.0.conv2.weight"])
    torch.testing.assert_close(model.backbone.fc.weight, head)


BLUE_FIRST, THIRTEEN = ("B02", "B03", "B04"), tuple(f"B{number:02}" for number in range(1, 14))


def write_run(folder: Path, bands: tuple[str, ...], **more: str) -> TileClassifier:
    """A network of these bands in a run folder, beside its contract."""
    places = (0.5,) * len(bands)
    network = TileClassifier(3, places, places)
    folder.mkdir()
    save_file(network.state_dict(), folder / "best.safetensors")
    spec = ModelSpec(classes=("a", "b", "c"), height=64, width=64, mean=places, std=places, dataset_digest="", bands=bands, **more)
    spec.write(folder / "spec.json")
    return network


@pytest.mark.parametrize(
    ("of_weights", "of_tiles", "order"),
    [
        (BLUE_FIRST, BLUE_FIRST, [0, 1, 2]),  # its own bands: taken for red, green, blue they would be turned round
        (THIRTEEN, THIRTEEN, list(range(13))),
        (RGB, BLUE_FIRST, [2, 1, 0]),
        (("B04", "B03", "B02"), BLUE_FIRST, [2, 1, 0]),
        (("B04", "B03", "B02"), RGB, [0, 1, 2]),
    ],
)
def test_weights_of_a_run_are_taken_by_their_bands(
    tmp_path: Path, of_weights: tuple[str, ...], of_tiles: tuple[str, ...], order: list[int]
) -> None:
    source = write_run(tmp_path / "run", of_weights)
    network = TileClassifier(3, (0.5,) * len(of_tiles), (0.5,) * len(of_tiles))
    load_weights(network, str(tmp_path / "run" / "best.safetensors"), of_tiles)
    assert torch.equal(network.backbone.conv1.weight, source.backbone.conv1.weight[:, order])


def test_weights_of_other_bands_or_of_keras_network_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "bands", BLUE_FIRST)
    write_run(tmp_path / "more", THIRTEEN)
    write_run(tmp_path / "keras", RGB, architecture=KERAS_RESNET50)
    for name, bands, says in [
        (
            "bands",
            ("B08", "B03", "B02"),
            "is of the bands B02,B03,B04 .* the tiles have B08,B03,B02. Run `sattrt data` with --bands B02,B03,B04",
        ),
        ("bands", RGB, "is of the bands B02,B03,B04 .* the tiles have red,green,blue. Give weights"),
        ("more", THIRTEEN[::-1], "the tiles have B13,B12"),
        ("keras", RGB, "is Keras' ResNet-50 .* Give weights of torchvision's"),
    ]:
        network = TileClassifier(3, (0.5,) * len(bands), (0.5,) * len(bands))
        with pytest.raises(ContractError, match=says) as raised:
            load_weights(network, str(tmp_path / name / "best.safetensors"), bands)
        assert "\n" not in str(raised.value)


def test_the_contract_of_linked_weights_is_known_and_anothers_is_none(tmp_path: Path) -> None:
    source = write_run(tmp_path / "run", BLUE_FIRST)
    (tmp_path / "linked.safetensors").symlink_to(tmp_path / "run" / "best.safetensors")
    (tmp_path / "spec.json").write_text('{"openapi": "3.1.0"}')
    network = TileClassifier(3, (0.5,) * 3, (0.5,) * 3)
    load_weights(network, str(tmp_path / "linked.safetensors"), BLUE_FIRST)
    assert torch.equal(network.backbone.conv1.weight, source.backbone.conv1.weight)


def test_weights_that_do_not_fit_are_named(model: TileClassifier, tmp_path: Path) -> None:
    state = model.backbone.state_dict()

    def refused(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, tmp_path / "w.safetensors")
        with pytest.raises(ContractError) as raised:
            load_weights(model, str(tmp_path / "w.safetensors"))
        return str(raised.value)

    assert "lacks 1 of 265 keys, 'conv1.weight'" in refused({key: value for key, value in state.items() if key != "conv1.weight"})
    assert "'layer1.0.conv1.weight' has the shape (3, 3)" in refused(state | {"layer1.0.conv1.weight": torch.zeros(3, 3)})
    assert "unknown key 'colour'" in refused(state | {"colour": torch.zeros(1)})
    assert "not finite" in refused(state | {"bn1.bias": torch.full((64,), float("nan"))})


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "meta", "sparse"])
def test_tensors_that_hold_no_common_numbers_are_named(model: TileClassifier, tmp_path: Path, kind: str) -> None:
    state = model.backbone.state_dict()
    odd = {"meta": lambda: state["conv1.weight"].to("meta"), "sparse": lambda: state["conv1.weight"].to_sparse()}
    state["conv1.weight"] = odd[kind]() if kind in odd else state["conv1.weight"].to(getattr(torch, kind))
    path = tmp_path / ("w.safetensors" if kind.startswith("float8") else "w.pth")
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(ContractError, match=f"'conv1.weight' is a {kind} tensor. Save all as dense float32"):
        load_weights(model, str(path))
    with pytest.raises(ContractError, match=kind):
        check_state(model.backbone.state_dict(), state, path, "Give others.")


def test_files_that_are_no_weights_are_named(model: TileClassifier, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "was executed",))

    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({1: torch.ones(1)}, tmp_path / "numbered.pth")
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    for name in ("nothing.pth", "text.safetensors", "text.pth", "list.pth", "numbered.pth", "evil.pth"):
        with pytest.raises(InputError, match=name):
            load_weights(model, str(tmp_path / name))
    assert not (tmp_path / "was executed").exists()
