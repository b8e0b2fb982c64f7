"""Heat is where a classifier finds a class, and every mistake is one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_jax import heatmap
from fcn_jax.data.images import read_image
from fcn_jax.data.masks import read_mask
from fcn_jax.errors import UserError
from fcn_jax.models.backbones.squeezenet import SqueezeNet
from fcn_jax.models.geometry import Grid
from tests.backbone_peers import published
from tests.in_process import run_command

SHARED = Path(__file__).parents[2] / "shared" / "data"
CATS = [281, 282, 283, 284, 285]  # ImageNet's five domestic cats


def squeezenet_file(path: Path, *, without: str = "nothing") -> Path:
    """Writes SqueezeNet with Caffe's names, ten classes and random numbers."""
    rng = np.random.default_rng(0)

    def kernel(*shape: int) -> np.ndarray:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    kernels = {"conv1": kernel(64, 3, 3, 3), "conv10": kernel(10, 512, 1, 1)}
    features = 64
    for fire, squeezed in enumerate((16, 16, 32, 32, 48, 48, 64, 64), start=2):
        kernels[f"fire{fire}/squeeze1x1"] = kernel(squeezed, features, 1, 1)
        kernels[f"fire{fire}/expand1x1"] = kernel(4 * squeezed, squeezed, 1, 1)
        kernels[f"fire{fire}/expand3x3"] = kernel(4 * squeezed, squeezed, 3, 3)
        features = 8 * squeezed
    tensors = {f"{name}/w": value for name, value in kernels.items()}
    tensors |= {f"{name}/b": np.zeros(len(value), np.float32) for name, value in kernels.items()}
    np.savez(path, **{name: value for name, value in tensors.items() if without not in name})
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(256, size=(60, 90, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_upsampling_puts_each_value_on_its_grids_pixel():
    values = np.array([[0.0, 8.0], [4.0, 12.0]])
    upsampled = heatmap.upsample(values, Grid(stride=4, offset=2), (8, 10))
    assert upsampled[2, 2] == 0
    assert upsampled[2, 6] == 8
    assert upsampled[6, 2] == 4
    assert upsampled[2, 4] == 4  # halfway
    assert upsampled[0, 0] == 0  # beyond the first centre: the first value
    assert upsampled[7, 9] == 12


def test_windows_are_centred_on_every_part_of_the_photo(tmp_path):
    net = heatmap.load_classifier(str(squeezenet_file(tmp_path / "w.npz")))
    image = np.random.default_rng(0).integers(256, size=(70, 50, 3)).astype(np.uint8)
    heat, grid = heatmap.heat_map(net, image)
    for positions, pixels in zip(heat.shape[:2], image.shape[:2], strict=True):
        assert abs(grid.offset) < grid.stride
        assert grid.offset + grid.stride * (positions - 1) > pixels - 1 - grid.stride
    np.testing.assert_allclose(heat.sum(-1), 1, atol=1e-5)


def test_a_picture_is_written_with_the_names_given(tmp_path, photo):
    weights = squeezenet_file(tmp_path / "w.npz")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"kind {letter}" for letter in "abcdefghij"))
    output = tmp_path / "new" / "heat.png"
    arguments = (f"--weights={weights}", f"--output={output}", f"--names={names}", "--class=3,7")
    result = run_command("heatmap", *arguments, photo)
    assert result.returncode == 0, result.stderr
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["3 kind d", "7 kind h"]
    with Image.open(output) as picture:
        assert picture.width > 2 * picture.height  # the photo and two maps


def test_mistakes_are_one_line(tmp_path, photo):
    weights = squeezenet_file(tmp_path / "w.npz")
    result = run_command("heatmap", f"--weights={weights}", "--output=x.png", "--class=10", photo)
    assert result.returncode == 1
    assert result.stderr == "heatmap: --class (=10) must be in 0…9\n"
    result = run_command("heatmap", f"--weights={weights}", "--output=x.png", tmp_path / "none.jpg")
    assert result.returncode == 1
    assert result.stderr.endswith("none.jpg: No such file or directory\n")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("output", ["photo.png", "w.npz", "link.png"])
def test_its_inputs_are_not_replaced(tmp_path, photo, output):
    weights = squeezenet_file(tmp_path / "w.npz")
    (tmp_path / "link.png").symlink_to(photo)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = run_command("heatmap", f"--weights={weights}", f"--output={tmp_path}/{output}", photo)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert "itself: give another" in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_that_cannot_be_shown_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", some=np.zeros(2))
    squeezenet_file(tmp_path / "headless.npz", without="conv10")
    for name, message in [
        ("none.npz", "there is no file"),
        ("other.npz", "no known source"),
        ("headless.npz", "without the last layer of a classifier"),
        ("", "is a folder"),
    ]:
        with pytest.raises(UserError, match=message):
            heatmap.load_classifier(str(tmp_path / name))


def test_names_must_be_as_many_as_the_classes(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert heatmap.read_names(str(tmp_path / "names.txt"), 2) == ["cat", "dog"]
    with pytest.raises(UserError, match="2 lines; the classifier has 1000 classes"):
        heatmap.read_names(str(tmp_path / "names.txt"), 1000)


def test_the_backbone_is_built_as_it_was_trained(tmp_path):
    net = heatmap.load_classifier(str(squeezenet_file(tmp_path / "w.npz")), window=3)
    assert isinstance(net.backbone, SqueezeNet)
    assert net.backbone.padding == 0
    assert net.backbone.preprocessing.bgr
    assert net.grid == net.backbone.grids[16].after(3, padding=0)


def test_the_heat_of_a_small_photo_is_torchvisions_softmax(timm, torch, tmp_path):
    network = published(timm, "resnet18").eval()
    network.fc.weight.data *= 0.1  # otherwise one class has all the probability
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    net = heatmap.load_classifier(str(tmp_path / "resnet18.pth"))
    photo = np.random.default_rng(0).integers(256, size=(32, 32, 3)).astype(np.uint8)
    heat, grid = heatmap.heat_map(net, photo)
    assert grid == Grid(32, 0)
    # The photo is padded to 224×224 pixels with the mean colour, which is normalised to zero.
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = np.pad((photo / 255 - mean) / std, [(96, 96), (96, 96), (0, 0)])
    pixels = torch.tensor(normalised.transpose(2, 0, 1)[None].astype(np.float32))
    with torch.no_grad():
        expected = network(pixels).softmax(-1).numpy()
    assert heat.shape == (1, 1, 1000)
    np.testing.assert_allclose(heat[0], expected, rtol=1e-3)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real weights and VOC")
def test_the_heat_of_cats_is_on_the_cat():
    net = heatmap.load_classifier(str(SHARED / "weights" / "squeezenet1_1_imagenet.npz"))
    voc = SHARED / "VOCdevkit" / "VOC2012"
    mask = read_mask(voc / "SegmentationClass" / "2007_000528.png")
    heat, grid = heatmap.heat_map(net, read_image(voc / "JPEGImages" / "2007_000528.jpg"))
    cats = heatmap.upsample(heat[..., CATS].sum(-1), grid, mask.shape)
    assert cats[mask == 8].mean() > 3 * cats[mask == 0].mean()
    assert mask[np.unravel_index(cats.argmax(), cats.shape)] == 8
