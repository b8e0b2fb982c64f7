"""Scenes: TIFFs read and written by window, against Pillow and rasterio themselves."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.images import is_tiff, read_image
from fcn_jax.data.labels import IGNORE_INDEX
from fcn_jax.data.masks import read_mask
from fcn_jax.data.palettes import voc_palette
from fcn_jax.errors import UserError
from fcn_jax.inference import scenes
from fcn_jax.inference.output_digest import read_digest
from fcn_jax.inference.scenes import Picture, open_tiff, reduced_label, reduced_size
from tests.full_disk import files_of_at_most

DIGEST = "5" * 64
WINDOW = slice(5, 40), slice(11, 30)


@pytest.fixture
def rasterio() -> ModuleType:
    return pytest.importorskip("rasterio", reason="rasterio is not installed")


def pixels(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def write_tiff(path: Path, values: np.ndarray, **profile: Any) -> Path:
    """values: (c, h, w)."""
    import rasterio

    count, height, width = values.shape
    # Without a place on Earth rasterio warns.
    profile = {"transform": rasterio.Affine(2, 0, 500, 0, -2, 900), "crs": "EPSG:32633"} | profile
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width,
        dtype=values.dtype, **profile,
    ) as file:  # fmt: skip
        file.write(values)
    return path


def pieces_of(label: np.ndarray, tile: int = 16) -> Iterator[tuple[slice, slice, np.ndarray]]:
    for top in range(0, label.shape[0], tile):
        for left in range(0, label.shape[1], tile):
            rows = slice(top, min(top + tile, label.shape[0]))
            columns = slice(left, min(left + tile, label.shape[1]))
            yield rows, columns, label[rows, columns]


# Reading

FOUR_BANDS = {"photometric": "rgb", "alpha": "no"}


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_window_is_that_of_the_whole_image(
    rasterio: ModuleType, tmp_path: Path, mode: str, compression: str
) -> None:
    channels = {"L": 1, "LA": 2, "P": 1, "RGB": 3, "RGBA": 4, "I;16": 1}[mode]
    values = pixels(50, 60, channels, dtype="uint16" if mode == "I;16" else "uint8")
    picture = Image.fromarray(values[..., 0] if channels == 1 else values)
    if mode == "P":
        picture.putpalette(voc_palette().tobytes())
    assert picture.mode == mode
    picture.save(tmp_path / "a.tif", compression=compression)
    with open_tiff(tmp_path / "a.tif", 3) as scene:
        assert scene.size == (50, 60)
        np.testing.assert_array_equal(scene.read(*WINDOW), read_image(tmp_path / "a.tif")[WINDOW])


def test_extra_channels_are_extra_bands(rasterio: ModuleType, tmp_path: Path) -> None:
    values = pixels(5, 50, 60)
    path = write_tiff(tmp_path / "a.tif", values, **FOUR_BANDS)
    with open_tiff(path, 5) as scene:
        np.testing.assert_array_equal(scene.read(*WINDOW), np.moveaxis(values, 0, -1)[WINDOW])
        assert scene.reduced((25, 30)).shape == (25, 30, 3)


@pytest.mark.parametrize(
    ("values", "profile", "message"),
    [
        (pixels(4, 20, 20), FOUR_BANDS, "4 bands .* trained on 3; .* -b 3"),
        (pixels(3, 20, 20).astype("float32"), {}, "type float32; .*-ot Byte -scale"),
        (pixels(3, 20, 20).astype("int16"), {}, "type int16"),
        (pixels(1, 20, 20) % 2, {"nbits": 1}, "pixels of 1 bits"),
        (pixels(1, 20, 20), {"photometric": "miniswhite"}, "white as 0"),
    ],
)  # fmt: skip
def test_bands_that_do_not_fit_the_network_are_refused(
    rasterio: ModuleType, tmp_path: Path, values: np.ndarray, profile: dict[str, Any], message: str
) -> None:
    path = write_tiff(tmp_path / "a.tif", values, **profile)
    with pytest.raises(UserError, match=f"a.tif: .*{message}"), open_tiff(path, 3):
        pass


@pytest.mark.parametrize(
    ("values", "profile", "note"),
    [
        (pixels(3, 20, 20), {}, ""),
        (pixels(1, 20, 20), {}, "band 1 is used as grey"),
        (
            pixels(4, 20, 20),
            {"photometric": "rgb", "alpha": "yes"},
            "band 4 is alpha and is not used",
        ),
        (
            pixels(3, 700, 300, dtype="uint16") % 2047 + 1,
            {},
            "of its 16 bits the upper 8 are used, and the largest value in a sample is 2047 of "
            "65535: every pixel of the network's input is below 8 of 255; to scale it, "
            "gdal_translate -co TILED=YES -ot Byte -scale -b 1 -b 2 -b 3 a.tif scaled.tif",
        ),
        (
            pixels(3, 300, 300, dtype="uint16") | 0x8000,
            {},
            "of its 16 bits the upper 8 are used, and the largest value in a sample is 65535 of "
            "65535; to scale it, gdal_translate -co TILED=YES -ot Byte -scale -b 1 -b 2 -b 3 a.tif "
            "scaled.tif",
        ),
        # Pixels without data are not counted.
        (
            np.where(pixels(1, 200, 200, dtype="uint16") % 2, np.uint16(65535), np.uint16(1023)),
            {"nodata": 65535},
            "band 1 is used as grey; of its 16 bits the upper 8 are used, and the "
            "largest value in a sample is 1023 of 65535: every pixel of the network's input is "
            "below 4 of 255; to scale it, gdal_translate -co TILED=YES -ot Byte -scale -b 1 a.tif "
            "scaled.tif",
        ),
        (
            np.full((3, 20, 20), 7, np.uint16),
            {"nodata": 7},
            "of its 16 bits the upper 8 are used; to scale it, gdal_translate -co TILED=YES "
            "-ot Byte -scale -b 1 -b 2 -b 3 a.tif scaled.tif",
        ),
    ],
    ids=[
        "rgb",
        "grey",
        "alpha",
        "11 bits",
        "16 bits",
        "10 bits and no data",
        "nothing but no data",
    ],
)
def test_how_other_scenes_are_used_is_noted_in_one_line(
    rasterio: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    values: np.ndarray,
    profile: dict[str, Any],
    note: str,
) -> None:
    path = write_tiff(tmp_path / "a.tif", values, **profile)
    with open_tiff(path, 3):
        assert capsys.readouterr().out == (f"note: {path}: {note}\n" if note else "")


def test_files_that_are_stored_in_whole_rows_are_noted(
    rasterio: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scenes, "CACHE_MB", 0.05)
    for name, profile in {"rows": {}, "tiles": {"tiled": True, "blockxsize": 64}}.items():
        path = write_tiff(tmp_path / f"{name}.tif", pixels(3, 200, 200), **profile)
        with open_tiff(path, 3):
            noted = "rows.tif is stored in whole rows" in capsys.readouterr().out
        assert noted == (name == "rows")


def test_a_damaged_file_is_named(rasterio: ModuleType, tmp_path: Path) -> None:
    path = write_tiff(
        tmp_path / "a.tif", pixels(3, 300, 300), tiled=True, blockxsize=64, blockysize=64
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with (
        pytest.raises(UserError, match=r"a\.tif: the image is damaged \(.+\)"),
        open_tiff(path, 3) as scene,
    ):
        scene.read(slice(200, 300), slice(200, 300))
    path.write_bytes(data[:6])
    assert is_tiff(path)
    with pytest.raises(UserError, match=r"a\.tif: the image is damaged"), open_tiff(path, 3):
        pass
    assert not is_tiff(tmp_path / "b.tif")


def test_without_rasterio_the_error_has_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(UserError, match="pip install rasterio"), open_tiff(tmp_path / "a.tif", 3):
        pass


# Writing


def test_a_label_map_has_its_scenes_georeference(rasterio: ModuleType, tmp_path: Path) -> None:
    label = pixels(70, 90) % 21
    with open_tiff(write_tiff(tmp_path / "a.tif", pixels(3, 70, 90)), 3) as scene:
        scene.write(tmp_path / "out/a.tif", 32, partial(pieces_of, label, 32), DIGEST)
    with rasterio.open(tmp_path / "a.tif") as image, rasterio.open(tmp_path / "out/a.tif") as file:
        assert file.transform == image.transform == rasterio.Affine(2, 0, 500, 0, -2, 900)
        assert file.crs == image.crs
        assert file.block_shapes == [(32, 32)]
        assert read_digest(tmp_path / "out/a.tif") == DIGEST
        assert file.compression.value == "DEFLATE"
        assert file.nodata is None
        assert file.colormap(1)[15] == (*voc_palette()[15], 255)
    # A palette file of class indices to everyone else.
    np.testing.assert_array_equal(read_mask(tmp_path / "out/a.tif"), label)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.tif"]


def test_control_points_and_plain_pictures_stay_what_they_are(
    rasterio: ModuleType, tmp_path: Path
) -> None:
    points = [
        rasterio.control.GroundControlPoint(row, column, 10 + column, 50 - row)
        for row, column in [(0, 0), (0, 9), (9, 0)]
    ]
    Image.fromarray(pixels(20, 20, 3)).save(tmp_path / "plain.tif")
    write_tiff(
        tmp_path / "points.tif", pixels(3, 20, 20), transform=None, gcps=points, crs="EPSG:4326"
    )
    for name in ("plain", "points"):
        with open_tiff(tmp_path / f"{name}.tif", 3) as scene:
            scene.write(
                tmp_path / f"out/{name}.tif", 16, partial(pieces_of, pixels(20, 20)), DIGEST
            )
    with Image.open(tmp_path / "out/plain.tif") as picture:
        assert picture.size == (20, 20)
    with rasterio.open(tmp_path / "out/points.tif") as file:
        held, system = file.gcps
    assert [(p.row, p.col, p.x, p.y) for p in held] == [(p.row, p.col, p.x, p.y) for p in points]
    assert system.to_epsg() == 4326


def test_where_a_scene_holds_no_data(rasterio: ModuleType, tmp_path: Path) -> None:
    values = pixels(3, 40, 50) | 1
    values[:, :7] = 0
    path = write_tiff(tmp_path / "a.tif", values, nodata=0)
    with open_tiff(path, 3) as scene:
        nothing = scene.no_data(slice(5, 10), slice(0, 50))
        assert nothing is not None
        assert nothing.tolist() == [[True] * 50] * 2 + [[False] * 50] * 3
        scene.write(tmp_path / "out.tif", 16, partial(pieces_of, pixels(40, 50)), DIGEST)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.nodata == IGNORE_INDEX
    with open_tiff(write_tiff(tmp_path / "b.tif", values), 3) as scene:
        assert scene.no_data(slice(5, 10), slice(0, 50)) is None


def test_a_full_disk_leaves_no_half_written_label_map(rasterio: ModuleType, tmp_path: Path) -> None:
    label = pixels(400, 400)  # noise, that does not compress
    with open_tiff(write_tiff(tmp_path / "a.tif", pixels(3, 400, 400)), 3) as scene:
        for room in (2000, 100_000, 150_000):
            with (
                files_of_at_most(room),
                pytest.raises(UserError, match=r"cannot write .*out/a.tif"),
            ):
                scene.write(tmp_path / "out/a.tif", 64, partial(pieces_of, label, 64), DIGEST)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_picture_is_one_piece_or_many(tmp_path: Path) -> None:
    image, label = pixels(50, 70, 3), pixels(50, 70)
    scene = Picture(image)
    np.testing.assert_array_equal(scene.read(*WINDOW), image[WINDOW])
    scene.write(tmp_path / "out/a.png", 16, partial(pieces_of, label), DIGEST)
    np.testing.assert_array_equal(read_mask(tmp_path / "out/a.png"), label)
    assert read_digest(tmp_path / "out/a.png") == DIGEST
    np.testing.assert_allclose(
        scene.reduced((25, 35)), image.reshape(25, 2, 35, 2, 3).mean((1, 3)), atol=1
    )


@pytest.mark.parametrize("longest", [10, 13, 33, 70, 100])
def test_a_reduced_label_map_is_every_kth_pixel(longest: int) -> None:
    label = pixels(50, 70)
    size, step = reduced_size(label.shape, longest)
    assert max(size) <= longest
    reduced = reduced_label(label.shape, partial(pieces_of, label), longest)
    assert reduced.shape == size
    np.testing.assert_array_equal(reduced, label[::step, ::step])
