"""Each published file is recognised, and every tensor in it is in a table or ignored."""

from types import ModuleType

import pytest

from fcn_jax.pretrained.tables import sources

RECOGNISED = {
    "alexnet": "AlexNet, torchvision",
    "vgg16": "VGG16, torchvision",
    "vgg16_bn": "VGG16 with batch normalisation, torchvision",
    "squeezenet1_1": "SqueezeNet 1.1, torchvision",
    "googlenet": "GoogLeNet, torchvision",
    "mobilenet_v3_large": "MobileNetV3-Large, torchvision",
    "resnet18": "ResNet-18, torchvision",
    "resnet34": "ResNet-34, torchvision",
    "resnet50": "ResNet-50, torchvision",
    "resnet101": "ResNet-101, torchvision",
    "resnet152": "ResNet-152, torchvision",
    "fcn_resnet50": "FCN on ResNet-50, torchvision",
    "fcn_resnet101": "FCN on ResNet-101, torchvision",
    "efficientnet_lite0": "EfficientNet-Lite0, timm",
}

RELATIVES = (
    "vgg11",
    "vgg13",
    "vgg19",
    "vgg19_bn",
    "squeezenet1_0",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "densenet121",
    "deeplabv3_resnet50",
    "lraspp_mobilenet_v3_large",
    "timm/efficientnet_b0",
    "timm/efficientnet_lite1",
    "timm/mobilenetv2_100",
    "timm/mnasnet_100",
    "timm/mobilenetv3_large_100",
)


def published_shapes(timm: ModuleType, name: str) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes in the file of this network."""
    import torch
    from torchvision import models

    with torch.device("meta"):  # takes no memory
        if name.startswith("timm/") or name == "efficientnet_lite0":
            network = timm.create_model(name.removeprefix("timm/"))
        else:
            arguments: dict[str, object] = {"weights": None}
            if name == "googlenet":
                arguments["init_weights"] = False
            elif name in models.list_models(models.segmentation):
                arguments["weights_backbone"] = None
                # The published ones have it.
                arguments |= {"aux_loss": True} if "resnet" in name else {}
            network = models.get_model(name, **arguments)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def recognised(names: dict[str, tuple[int, ...]]) -> list[str]:
    return [source.title for source in sources() if source.recognizes(names)]


@pytest.mark.parametrize("name", RECOGNISED)
def test_a_table_and_the_ignored_names_are_all_names_of_a_file(timm: ModuleType, name: str) -> None:
    shapes = published_shapes(timm, name)
    assert recognised(shapes) == [RECOGNISED[name]]
    (source,) = (source for source in sources() if source.title == RECOGNISED[name])
    in_table = [theirs for theirs, _ in source.table.values()]
    ignored = [key for key in shapes if source.ignores(key)]
    assert sorted(in_table + ignored) == sorted(shapes)


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_are_not_recognised(timm: ModuleType, name: str) -> None:
    assert recognised(published_shapes(timm, name)) == []


def test_wide_resnet_has_the_names_of_resnet_and_other_shapes(timm: ModuleType) -> None:
    # Its file is recognised as a ResNet-50, and refused when shapes are compared.
    narrow, wide = (published_shapes(timm, name) for name in ("resnet50", "wide_resnet50_2"))
    assert recognised(wide) == ["ResNet-50, torchvision"]
    assert narrow.keys() == wide.keys()
    assert narrow["layer1.0.conv2.weight"] != wide["layer1.0.conv2.weight"]


@pytest.mark.parametrize("source", list(sources()), ids=lambda source: source.title)
def test_a_source_recognises_its_own_table(source) -> None:
    names = dict.fromkeys((theirs for theirs, _ in source.table.values()), ())
    names |= dict.fromkeys(source.has, ())
    assert recognised(names) == [source.title]
