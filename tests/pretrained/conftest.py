import pytest

from fcn_jax.models.backbones import vgg
from fcn_jax.models.backbones.alexnet import AlexNet
from tests.peers import FC_FEATURES


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes VGG16 an eighth as wide, and fc6 and fc7 of VGG16 and AlexNet 16 features wide.

    All paths through the networks stay the same, in a small part of the time and memory.
    """
    blocks = tuple((features // 8, depth) for features, depth in vgg.BLOCKS)
    monkeypatch.setattr(vgg, "BLOCKS", blocks)
    for network in (vgg.VGG16, AlexNet):
        defaults = network.__init__.__kwdefaults__
        assert defaults["fc_features"] == 4096
        monkeypatch.setitem(defaults, "fc_features", FC_FEATURES)
