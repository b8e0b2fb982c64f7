"""PASCAL VOC 2012 segmentation, and its training set enlarged with SBD's masks (`trainaug`).

Reads the official archive or a folder made from it. Whole, the sets are

    voc           train 1,464   val 1,449   VOC's own masks
    voc/trainaug  train 10,582  val 1,449   SBD's masks too, of all that is not in VOC's val

SBD (Hariharan et al., 2011) is read from `benchmark.tgz`, from its folder `benchmark_RELEASE`, or
from a folder `SegmentationClassAug` of PNGs beside VOC's `SegmentationClass`.
"""

import contextlib
import functools
import io
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fcn_jax.data.images import read_bytes
from fcn_jax.data.labels import VOC_CLASSES
from fcn_jax.data.masks import decode_mask, read_mask
from fcn_jax.data.records import RecordSource, SegmentationBuilder, UnreadFile
from fcn_jax.errors import UserError
from fcn_jax.terminal.progress import progress_bar

ARCHIVE = "VOCtrainval_11-May-2012.tar"
URL = f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{ARCHIVE}"
ARCHIVE_BYTES = 1_999_639_040
SBD_ARCHIVE = "benchmark.tgz"
LISTS = "ImageSets/Segmentation"
IMAGES = "JPEGImages"
MASKS = "SegmentationClass"
SBD_MASKS = "SegmentationClassAug"
IMAGES_OF = {
    "voc": {"train": 1464, "val": 1449},
    "voc/trainaug": {"train": 10582, "val": 1449},
}
"""How many images the whole sets have."""

Read = Callable[[str], bytes]  # the contents of a file, by its path under VOC2012


class Voc(SegmentationBuilder, skip_registration=True):  # type: ignore[call-arg]
    """PASCAL VOC 2012 segmentation: 20 classes of objects and background."""

    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS reads it as a list)
        tfds.core.BuilderConfig(name="segmentation", description="VOC's own masks"),
        tfds.core.BuilderConfig(name="trainaug", description="VOC's and SBD's masks to train on"),
    ]
    url_infos = {  # noqa: RUF012
        URL: tfds.download.checksums.UrlInfo(
            size=ARCHIVE_BYTES,
            checksum="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
            filename=ARCHIVE,
        )
    }

    def __init__(self, *, root: str | None = None, **options: Any):
        self._root = Path(root).expanduser() if root else None
        super().__init__(label_maps={"": VOC_CLASSES}, **options)

    def _sources(self, dl_manager: Any) -> dict[str, list[RecordSource]]:
        if self._root:
            place, read = self.open_files.enter_context(open_raw(self._root))
        else:
            place = _download(dl_manager)
            read = self.open_files.enter_context(_open_archive(place))
        train, val = (read_list(read, place, split) for split in ("train", "val"))
        splits = {
            "train": [_source(name, read, place) for name in train],
            "val": [_source(name, read, place) for name in val],
        }
        if self.builder_config.name == "trainaug":
            masks = sbd_masks(self._root)
            splits["train"] += [
                _source(name, read, place, mask)
                for name, mask in sorted(masks.items())
                if name not in {*train, *val}
            ]
        return splits


def find_folder(root: Path) -> Path | None:
    """VOC2012's folder: `root`, or below it; None where only the archive lies there.

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


@contextlib.contextmanager
def open_raw(root: Path) -> Iterator[tuple[Path, Read]]:
    """Where the raw files lie, and what reads them; by one thread at a time. Raises UserError."""
    folder = find_folder(root)
    if folder:
        yield folder, functools.partial(_read_file, folder)
    else:
        with _open_archive(root / ARCHIVE) as read:
            yield root / ARCHIVE, read


def raw_files(root: Path) -> list[Path]:
    """The files by which a change of the raw data is noticed: the lists and the archives."""
    folder = find_folder(root)
    lists = [folder / LISTS / f"{split}.txt" for split in ("train", "val")] if folder else []
    candidates = [*lists, root / ARCHIVE, *_sbd_places(root, folder)]
    return [path for path in candidates if path.exists()]


def _source(
    name: str, read: Read, place: Path, mask: Callable[[], Any] | None = None
) -> RecordSource:
    mask_name = f"{place}/{MASKS}/{name}.png"

    def own_mask() -> np.ndarray:
        return decode_mask(read(f"{MASKS}/{name}.png"), mask_name)

    return RecordSource(
        name=name,
        image=UnreadFile(
            functools.partial(read, f"{IMAGES}/{name}.jpg"), f"{place}/{IMAGES}/{name}.jpg"
        ),
        labels=[UnreadFile(mask or own_mask, f"SBD's mask {name}" if mask else mask_name)],
    )


def read_list(read: Read, place: Path, split: str) -> list[str]:
    """The names in a split's list. Raises UserError where it is missing or empty."""
    names = read(f"{LISTS}/{split}.txt").decode().split()
    if not names:
        raise UserError(f"{place}/{LISTS}/{split}.txt: lists no image")
    return list(dict.fromkeys(names))


def _read_file(folder: Path, path: str) -> bytes:
    return read_bytes(folder / path)


@contextlib.contextmanager
def _open_archive(archive: Path) -> Iterator[Read]:
    """Reads single files out of the tar where it lies; two gigabytes need no unpacking."""
    with contextlib.ExitStack() as open_files:
        with _named_errors(archive):
            tar = open_files.enter_context(tarfile.open(archive))
            members = {member.name.partition("VOC2012/")[2]: member for member in tar}

        def read(path: str) -> bytes:
            with _named_errors(archive):
                file = tar.extractfile(members[path]) if path in members else None
                if file is None:
                    raise UserError(f"{archive}: VOC2012/{path} is missing from the archive")
                return file.read()

        yield read


@contextlib.contextmanager
def _named_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"{archive}: the archive is damaged or cut short ({error}); download it anew"
        ) from error


def _download(dl_manager: Any) -> Path:
    folder = Path(dl_manager.download_dir)
    try:
        if not any(folder.rglob("*.tar")):  # TFDS would retry for minutes where there is no network
            request = urllib.request.Request(URL, method="HEAD")
            urllib.request.urlopen(request, timeout=30).close()
        with _megabytes_in(folder):
            return Path(dl_manager.download(URL))
    except Exception as error:  # requests, urllib3 and TFDS each raise their own
        raise UserError(
            f"cannot download {URL} ({type(error).__name__}: {str(error).splitlines()[0]}); get it "
            "on a machine with a network and set --config.data.root to the folder it lies in"
        ) from error


@contextlib.contextmanager
def _megabytes_in(folder: Path) -> Iterator[None]:
    """Shows a download by the size of its folder."""
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.5):
            size = sum(path.stat().st_size for path in folder.rglob("*.tar*") if path.is_file())
            bar.advance(size // 1_000_000 - bar.completed)

    with progress_bar("downloading VOC 2012", ARCHIVE_BYTES // 1_000_000, unit="MB") as bar:
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()


def _sbd_places(root: Path | None, folder: Path | None) -> list[Path]:
    bases = [base for base in (root, root and root / "VOCdevkit", folder) if base]
    places = [folder / SBD_MASKS] if folder else []
    for base in bases:
        places += [base / "benchmark_RELEASE" / "dataset", base / SBD_ARCHIVE]
    return places


def sbd_masks(root: Path | None) -> dict[str, Callable[[], np.ndarray]]:
    """SBD's masks by the name of their image, each read when called; beside VOC in `root`.

    Raises:
      UserError: there are none.
    """
    folder = find_folder(root) if root else None
    place = next((place for place in _sbd_places(root, folder) if place.exists()), None)
    if place is None:
        raise UserError(
            f"voc/trainaug needs SBD's masks, but under {root or '(no --config.data.root)'} there "
            f"is no {SBD_ARCHIVE}, no benchmark_RELEASE/dataset, and no {SBD_MASKS} in VOC2012"
        )
    if place.name == SBD_MASKS:
        return {path.stem: functools.partial(read_mask, path) for path in place.glob("*.png")}
    matrices: dict[str, Any]
    if place.name == SBD_ARCHIVE:
        matrices = _matrices_of_archive(place)
        lists = [matrices.pop(name, b"").decode() for name in ("train.txt", "val.txt")]
    else:
        matrices = {path.name: path for path in (place / "cls").glob("*.mat")}
        lists = [_read_file(place, name).decode() for name in ("train.txt", "val.txt")]
    masks: dict[str, Callable[[], np.ndarray]] = {}
    for name in " ".join(lists).split():
        if f"{name}.mat" not in matrices:
            raise UserError(f"{place}: cls/{name}.mat is missing, but the lists name it")
        masks[name] = functools.partial(_read_matrix, matrices[f"{name}.mat"], f"{place}/{name}")
    if not masks:
        raise UserError(f"{place}: its train.txt and val.txt list no image")
    return masks


def _matrices_of_archive(archive: Path) -> dict[str, Any]:
    """The lists and class matrices (some 30 MB) by name; gzip allows only one pass."""
    found = {}
    with _named_errors(archive), tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            folder, name = Path(member.name).parts[-2:] if "/" in member.name else ("", "")
            if (folder == "cls" and name.endswith(".mat")) or (
                folder == "dataset" and name in ("train.txt", "val.txt")
            ):
                file = tar.extractfile(member)
                found[name] = file.read() if file else b""
    return found


def _read_matrix(source: bytes | Path, name: str) -> np.ndarray:
    import scipy.io

    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        content = scipy.io.loadmat(file, struct_as_record=False, squeeze_me=True)
        return np.asarray(content["GTcls"].Segmentation, np.uint8)
    except Exception as error:  # scipy has no common error for a damaged file
        raise UserError(f"{name}.mat: not one of SBD's class masks ({error})") from error
