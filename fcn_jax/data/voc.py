"""PASCAL VOC 2012 segmentation, and its training set enlarged with SBD's masks (`trainaug`).

The raw files are the official archive or a folder unpacked from it. The complete data sets are

    voc           train 1,464   val 1,449   VOC's own masks
    voc/trainaug  train 10,582  val 1,449   and SBD's masks of images that are not in VOC's lists

SBD (Hariharan et al., 2011) is read from `benchmark.tgz`, from its folder `benchmark_RELEASE`, or
from a folder `SegmentationClassAug` of PNGs next to VOC's `SegmentationClass`.
"""

import contextlib
import functools
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.config import DataConfig
from fcn_jax.data.images import read_bytes
from fcn_jax.data.prepared import prepared_dir
from fcn_jax.data.raw import RawDataset, Sample, SourceFile, check_image_names, data_root
from fcn_jax.errors import UserError
from fcn_jax.terminal.atomic_files import write_whole
from fcn_jax.terminal.progress import progress_bar

ARCHIVE = "VOCtrainval_11-May-2012.tar"
URL = f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{ARCHIVE}"
ARCHIVE_BYTES = 1_999_639_040
ARCHIVE_SHA256 = "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb"
SBD_ARCHIVE = "benchmark.tgz"
LISTS = "ImageSets/Segmentation"
IMAGES = "JPEGImages"
MASKS = "SegmentationClass"
SBD_MASKS = "SegmentationClassAug"
COMPLETE_SIZES = {
    "voc": {"train": 1464, "val": 1449},
    "voc/trainaug": {"train": 10582, "val": 1449},
}
"""Numbers of images in the complete data sets."""

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

FileOf = Callable[[str], SourceFile]  # a file by its path under VOC2012


def raw_dataset(data: DataConfig) -> RawDataset:
    """Describes VOC in `data.root`, or to be downloaded if that is empty.

    Raises:
      UserError: `data.root` holds neither VOC nor its archive.
    """
    root = data_root(data) if data.root else None
    with_sbd = data.name == "voc/trainaug"
    files: list[Path] = []
    if root:
        folder = find_folder(root)
        files = [root / ARCHIVE]
        if folder:
            lists = [folder / LISTS / f"{split}.txt" for split in ("train", "val")]
            files = [*lists, folder / IMAGES, folder / MASKS]
        for place in _sbd_places(root, folder) if with_sbd else ():
            files += [place, place / "cls"]
    return RawDataset(
        VOC_CLASSES,
        _samples(root, prepared_dir(data) / "downloads", with_sbd),
        files=files,
        complete_sizes=COMPLETE_SIZES[data.name],
    )


def _samples(root: Path | None, downloads: Path, with_sbd: bool) -> Iterator[Sample]:
    sbd = sbd_masks(root) if with_sbd else {}
    folder = find_folder(root) if root else None
    if folder:
        place, file_of = folder, functools.partial(_file_in_folder, folder)
    else:
        place = root / ARCHIVE if root else _download(downloads)
        file_of = functools.partial(_file_in_archive, place, _members(place))
    listed = set()
    for split in ("train", "val"):
        path = f"{LISTS}/{split}.txt"
        for name in read_names(file_of(path).load_bytes(), f"{place}/{path}"):
            listed.add(name)
            yield Sample(
                split, file_of(f"{IMAGES}/{name}.jpg"), file_of(f"{MASKS}/{name}.png"), name
            )
    for name in sorted(sbd.keys() - listed):
        yield Sample("train", file_of(f"{IMAGES}/{name}.jpg"), sbd[name], name)


def find_folder(root: Path) -> Path | None:
    """Finds VOC2012's folder at `root` or below it; None if only the archive is there.

    Raises:
      UserError: neither is there.
    """
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / LISTS).is_dir():
            return folder
    if (root / ARCHIVE).is_file():
        return None
    raise UserError(
        f"{root}: holds neither VOCdevkit/VOC2012 with its {LISTS} nor {ARCHIVE}; "
        "set --config.data.root to a folder that does, or leave it empty to download"
    )


def read_names(content: bytes, path: str) -> list[str]:
    """Reads the names of images in the content of a split's list, each once.

    Raises:
      UserError: begins with `path`; no names, or a name that leads out of the folder of images.
    """
    names = content.decode("utf-8", "replace").split()
    if not names:
        raise UserError(f"{path}: lists no image")
    check_image_names(names, path)
    return list(dict.fromkeys(names))


def _file_in_folder(folder: Path, path: str) -> SourceFile:
    return SourceFile(folder / path)


def _file_in_archive(
    archive: Path, members: Mapping[str, tuple[int, int]], path: str
) -> SourceFile:
    """A file in the tar archive, read in place: two gigabytes need no unpacking."""

    def read(_: Path) -> bytes:
        if path not in members:
            raise UserError(f"{archive}: VOC2012/{path} is missing from the archive")
        start, size = members[path]
        with archive.open("rb") as file:
            file.seek(start)
            content = file.read(size)
        if len(content) < size:
            raise UserError(f"{archive}: the archive is cut short; download it again")
        return content

    return SourceFile(archive / path, read)


def _members(archive: Path) -> dict[str, tuple[int, int]]:
    """The first byte and the size of each file in the archive, by its path under VOC2012."""
    with _archive_errors(archive), tarfile.open(archive, "r:") as tar:
        return {
            member.name.partition("VOC2012/")[2]: (member.offset_data, member.size)
            for member in tar
            if member.isfile()
        }


@contextlib.contextmanager
def _archive_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"{archive}: the archive is damaged or cut short ({error}); download it again"
        ) from error


def _download(folder: Path) -> Path:
    """Downloads VOC's archive into a folder, unless it is there."""
    archive = folder / ARCHIVE
    if not archive.is_file():
        write_whole(archive, _fetch)
    return archive


def _fetch(part: Path) -> None:
    import urllib.request

    digest = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(URL, timeout=30) as response,
            part.open("wb") as file,
            progress_bar("downloading VOC 2012", ARCHIVE_BYTES // 1_000_000, unit="MB") as bar,
        ):
            while block := response.read(1_000_000):
                file.write(block)
                digest.update(block)
                bar.advance()
        if digest.hexdigest() != ARCHIVE_SHA256:
            raise OSError("the file is not VOC's archive")
    except OSError as error:  # also urllib's and the network's
        raise UserError(
            f"cannot download {URL} ({error}); get it on a machine with a network and set "
            "--config.data.root to its folder"
        ) from error


def _sbd_places(root: Path, folder: Path | None) -> list[Path]:
    """The places to search for SBD's masks, in order."""
    places = [folder / SBD_MASKS] if folder else []
    for base in (root, root / "VOCdevkit", *([folder] if folder else [])):
        places += [base / "benchmark_RELEASE" / "dataset", base / SBD_ARCHIVE]
    return places


def sbd_masks(root: Path | None) -> dict[str, SourceFile]:
    """Finds SBD's masks, next to VOC in `root`, by the names of their images.

    Raises:
      UserError: there are none.
    """
    places = _sbd_places(root, find_folder(root)) if root else []
    place = next((place for place in places if place.exists()), None)
    if place is None:
        raise UserError(
            f"voc/trainaug needs SBD's masks, but under {root or '(no --config.data.root)'} there "
            f"is no {SBD_ARCHIVE}, no benchmark_RELEASE/dataset, and no {SBD_MASKS} in VOC2012"
        )
    if place.name == SBD_MASKS:
        return {path.stem: SourceFile(path) for path in place.glob("*.png")}
    if place.name == SBD_ARCHIVE:
        contents = _sbd_archive(place)
        lists = [contents.pop(name, b"") for name in ("train.txt", "val.txt")]
        matrices = {
            name: SourceFile(place / "cls" / name, functools.partial(_read_matrix, data=data))
            for name, data in contents.items()
        }
    else:
        lists = [read_bytes(place / name) for name in ("train.txt", "val.txt")]
        matrices = {
            path.name: SourceFile(path, _read_matrix) for path in (place / "cls").glob("*.mat")
        }
    names = b" ".join(lists).decode("utf-8", "replace").split()
    if not names:
        raise UserError(f"{place}: its train.txt and val.txt list no image")
    check_image_names(names, str(place))
    if missing := [name for name in names if f"{name}.mat" not in matrices]:
        raise UserError(f"{place}: cls/{missing[0]}.mat is missing, but the lists name it")
    return {name: matrices[f"{name}.mat"] for name in names}


def _sbd_archive(archive: Path) -> dict[str, bytes]:
    """The lists and class matrices (some 30 MB) by name; gzip allows only one pass."""
    found = {}
    with _archive_errors(archive), tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            folder, name = Path(member.name).parts[-2:] if "/" in member.name else ("", "")
            if (folder == "cls" and name.endswith(".mat")) or (
                folder == "dataset" and name in ("train.txt", "val.txt")
            ):
                file = tar.extractfile(member)
                found[name] = file.read() if file else b""
    return found


def _read_matrix(path: Path, data: bytes | None = None) -> np.ndarray:
    """The class indices in one of SBD's Matlab files, or in its bytes."""
    import scipy.io

    try:
        content: Any = scipy.io.loadmat(
            path if data is None else io.BytesIO(data), struct_as_record=False, squeeze_me=True
        )
        return np.asarray(content["GTcls"].Segmentation, np.uint8)
    except Exception as error:  # scipy has no common error for a damaged file
        raise UserError(f"{path}: not one of SBD's class masks ({error})") from error
