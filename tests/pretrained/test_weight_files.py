"""Every format of weights is read as its own library reads it, and nothing in it is executed."""

import argparse
import collections
import contextlib
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from safetensors.numpy import save_file

from fcn_jax.errors import UserError
from fcn_jax.pretrained.torch_pickle import ALLOWED
from fcn_jax.pretrained.weight_files import read_weights

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def save(torch, held, path: Path, zipped: bool) -> Path:
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    return path


def refusal(path: Path) -> str:
    """Returns the message about a file that is refused: one line, with its name."""
    with pytest.raises(UserError) as error:
        read_weights(path)
    message = str(error.value)
    assert path.name in message
    assert len(message.splitlines()) == 1
    return message


def cut(path: Path, length: int) -> Path:
    shorter = path.with_name(f"cut{path.suffix}")
    shorter.write_bytes(path.read_bytes()[:length])
    return shorter


@contextlib.contextmanager
def peak_below(limit: int):
    """Asserts that the code inside uses less than `limit` bytes of memory."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


class TestTorch:
    @FORMATS
    def test_a_state_dict_reads_as_torch_reads_it(self, torch, tmp_path, zipped):
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(5, 2)
        )
        path = save(torch, network.state_dict(), tmp_path / "w.pth", zipped)
        read = read_weights(path)
        expected = network.state_dict()
        assert list(read) == list(expected)
        for name, tensor in expected.items():
            np.testing.assert_array_equal(read[name], tensor.numpy(), strict=True)
        assert read["1.num_batches_tracked"].dtype == np.int64

    @FORMATS
    def test_every_view_of_a_storage_comes_out_as_torch_sees_it(self, torch, tmp_path, zipped):
        base = torch.arange(24.0).reshape(4, 6)
        views = {
            "whole": base,
            "offset": base[2:],
            "column": base[:, 3],
            "steps": base[1::2, ::3],
            "transposed": base.T,
            "expanded": base[1:2].expand(3, 6),
            "number": base[3, 5],
            "empty": base[:0],
            "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        }
        read = read_weights(save(torch, views, tmp_path / "w.pth", zipped))
        for name, tensor in views.items():
            np.testing.assert_array_equal(read[name], tensor.numpy(), strict=True)
        read["whole"][:] = -1
        assert read["offset"][0, 0] == 12  # arrays share no memory, though the tensors did

    @FORMATS
    @pytest.mark.parametrize(
        ("name", "becomes"),
        [
            ("float16", "float32"),
            ("bfloat16", "float32"),
            ("float32", "float32"),
            ("float64", "float32"),
            *[(name, name) for name in ("int64", "int32", "int16", "int8", "uint8", "bool")],
        ],
    )
    def test_floats_of_any_width_become_float32_and_others_stay(
        self, torch, tmp_path, zipped, name, becomes
    ):
        tensor = torch.tensor([[0, 1, 2.5], [3, 100, -0.0]]).to(getattr(torch, name))
        read = read_weights(save(torch, {"a": tensor}, tmp_path / "w.pth", zipped))["a"]
        expected = tensor.to(getattr(torch, becomes)).numpy()
        np.testing.assert_array_equal(read, expected, strict=True)

    @FORMATS
    def test_parameters_are_tensors(self, torch, tmp_path, zipped):
        held = collections.OrderedDict(a=torch.nn.Parameter(torch.ones(2, 3)))
        read = read_weights(save(torch, held, tmp_path / "w.pt", zipped))
        np.testing.assert_array_equal(read["a"], np.ones((2, 3), np.float32), strict=True)

    def test_a_big_endian_machine_wrote_the_same_numbers(self, torch, tmp_path):
        held = {"a": torch.tensor([1.5, -2, 3]), "b": torch.tensor([1.5, 7]).bfloat16()}
        path = save(torch, held, tmp_path / "w.pth", zipped=True)
        swapped = tmp_path / "big.pth"
        with zipfile.ZipFile(path) as little, zipfile.ZipFile(swapped, "w") as big:
            for name in little.namelist():
                data = little.read(name)
                if name.endswith("byteorder"):
                    data = b"big"
                elif "/data/" in name:
                    width = 4 if name.endswith("/0") else 2
                    data = np.frombuffer(data, f"u{width}").byteswap().tobytes()
                big.writestr(name, data)
        assert torch.load(swapped, weights_only=True)["a"].tolist() == [1.5, -2, 3]
        read = read_weights(swapped)
        assert read["a"].tolist() == [1.5, -2, 3]
        assert read["b"].tolist() == [1.5, 7]

    @FORMATS
    def test_weights_are_found_in_a_training_scripts_checkpoint(self, torch, tmp_path, zipped):
        network = torch.nn.Linear(3, 2)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
        held = {
            "model": network.state_dict(),
            "model_ema": {"weight": torch.zeros(2, 3)},
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": schedule.state_dict(),
            "epoch": 7,
            "best": np.float64(0.5),
            "history": np.zeros(3),
            "args": argparse.Namespace(
                lr=0.1,
                data=Path("/data"),
                device=torch.device("cpu"),
                dtype=torch.float16,
                seed=None,
            ),
            "shape": torch.Size([1, 2]),
            "seen": {1, 2},
            "counts": collections.defaultdict(list, a=[1]),
        }
        read = read_weights(save(torch, held, tmp_path / "checkpoint.pth.tar", zipped))
        assert list(read) == ["weight", "bias"]
        np.testing.assert_array_equal(read["weight"], network.weight.detach().numpy())

    @pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "model_ema"])
    def test_each_usual_key_is_known(self, torch, tmp_path, key):
        held = {"mean": torch.zeros(3), key: {"a": torch.ones(1)}, "epoch": 3}
        assert list(read_weights(save(torch, held, tmp_path / "w.bin", zipped=True))) == ["a"]

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
    def test_a_prefix_of_all_names_is_removed(self, torch, tmp_path, prefix):
        held = {f"{prefix}a.weight": torch.ones(1), f"{prefix}b": torch.ones(1)}
        path = save(torch, held, tmp_path / "w.pth", zipped=True)
        assert list(read_weights(path)) == ["a.weight", "b"]

    def test_a_prefix_of_some_names_is_kept(self, torch, tmp_path):
        held = {"module.a": torch.ones(1), "b": torch.ones(1)}
        path = save(torch, held, tmp_path / "w.pth", zipped=True)
        assert list(read_weights(path)) == ["module.a", "b"]

    @FORMATS
    def test_a_whole_model_is_refused_with_the_remedy(self, torch, tmp_path, zipped):
        path = save(torch, {"model": torch.nn.Linear(1, 1)}, tmp_path / "w.pth", zipped)
        message = refusal(path)
        assert "'torch.nn.modules.linear.Linear'" in message
        assert "model.state_dict()" in message

    @FORMATS
    @pytest.mark.parametrize("held", [{"epoch": 3}, 3, {}, [1]])
    def test_a_checkpoint_without_tensors_is_refused_with_the_remedy(
        self, torch, tmp_path, zipped, held
    ):
        message = refusal(save(torch, held, tmp_path / "w.pth", zipped))
        assert "holds no state dict" in message
        assert "model.state_dict()" in message

    @FORMATS
    def test_code_in_a_checkpoint_is_refused_and_does_not_run(self, torch, tmp_path, zipped):
        witness = tmp_path / "it-ran"

        class Attack:
            def __reduce__(self):
                return os.system, (f"touch {witness}",)

        path = save(torch, {"a": torch.ones(1), "b": Attack()}, tmp_path / "w.pth", zipped)
        assert f"'{os.system.__module__}.system'" in refusal(path)
        assert not witness.exists()
        torch.load(path, weights_only=False)  # the attack is a real one
        assert witness.exists()

    @FORMATS
    def test_a_truncated_file_is_refused_wherever_it_was_cut(self, torch, tmp_path, zipped):
        held = {"a": torch.arange(50.0), "b": torch.arange(20)}
        path = save(torch, held, tmp_path / "w.pth", zipped)
        for length in range(1, path.stat().st_size, 7):
            assert "fetch it again" in refusal(cut(path, length))
        assert "fetch it again" in refusal(cut(path, path.stat().st_size - 1))

    @FORMATS
    def test_a_damaged_file_raises_nothing_but_the_one_line(self, torch, tmp_path, zipped):
        path = save(torch, {"a": torch.arange(12.0)}, tmp_path / "w.pth", zipped)
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        messages = []
        for _ in range(400):
            damaged = bytearray(whole)
            damaged[rng.integers(len(damaged))] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                read_weights(path)  # a byte that only pads, or a number, may be another
            except UserError as error:
                messages.append(str(error))
        assert len(messages) > 50
        assert all(len(message.splitlines()) == 1 for message in messages)


class Written:
    """Pickles as a global of PyTorch, also if PyTorch is not installed."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class Call:
    def __init__(self, function: Written, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state


class StorageReference(tuple):
    pass


class HandPickler(pickle._Pickler):  # the one in Python, whose output can be changed
    dispatch = pickle._Pickler.dispatch.copy()

    def persistent_id(self, obj):
        return tuple(obj) if isinstance(obj, StorageReference) else None

    def save_written(self, obj):
        self.write(f"c{obj.module}\n{obj.name}\n".encode())

    def save_call(self, obj):
        self.save(obj.function)
        self.save(obj.arguments)
        self.write(pickle.REDUCE)
        if obj.state is not None:
            self.save(obj.state)
            self.write(pickle.BUILD)

    dispatch[Written] = save_written
    dispatch[Call] = save_call


def hand_pickled(held) -> bytes:
    stream = io.BytesIO()
    HandPickler(stream, protocol=2).dump(held)
    return stream.getvalue()


def hand_made_zip(
    path: Path, held, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", hand_pickled(held))
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def hand_made_legacy(path: Path, held, storages: dict[str, tuple[int, bytes]]) -> Path:
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, held, list(storages)]
    with path.open("wb") as stream:
        for part in head:
            stream.write(hand_pickled(part))
        for count, data in storages.values():
            stream.write(struct.pack("<q", count) + data)
    return path


def tensor(size, offset, shape, strides, view=None):
    """Returns a tensor of PyTorch 0.3, without gradients, of a storage or a view of one."""
    reference = ("storage", Written("torch", "FloatStorage"), "7", "cuda:0", size)
    storage = StorageReference((*reference, view) if view else reference)
    return Call(Written("torch._utils", "_rebuild_tensor"), storage, offset, shape, strides)


NUMBERS = struct.pack("<6f", *range(6))


class TestHandMadeCheckpoints:
    def test_a_tensor_of_an_old_pytorch_is_read(self, tmp_path):
        expected = [[1, 3], [2, 4]]
        by_zip = hand_made_zip(
            tmp_path / "zip.pth", {"a": tensor(6, 1, (2, 2), (1, 2))}, {"7": NUMBERS}
        )
        assert read_weights(by_zip)["a"].tolist() == expected
        by_legacy = hand_made_legacy(
            tmp_path / "legacy.pth", {"a": tensor(6, 1, (2, 2), (1, 2))}, {"7": (6, NUMBERS)}
        )
        assert read_weights(by_legacy)["a"].tolist() == expected

    def test_a_tensor_may_view_a_view_of_a_storage(self, tmp_path):
        held = {"a": tensor(6, 1, (2,), (1,), view=("8", 3, 3))}
        path = hand_made_legacy(tmp_path / "w.pth", held, {"7": (6, NUMBERS)})
        assert read_weights(path)["a"].tolist() == [4, 5]

    @pytest.mark.parametrize(
        ("offset", "shape", "strides"),
        [
            (0, (7,), (1,)),
            (1, (6,), (1,)),
            (0, (2, 2), (5, 1)),
            (-1, (2,), (1,)),
            (5, (2,), (-1,)),
            (0, (-2,), (1,)),
            (0, (2, 2), (1,)),
            (0, (2.0,), (1,)),
            (0, (2**70,), (1,)),
            (0, (2**40, 2**40), (0, 0)),
        ],
    )
    def test_a_tensor_beyond_its_storage_is_refused(self, tmp_path, offset, shape, strides):
        held = {"a": tensor(6, offset, shape, strides)}
        for path in (
            hand_made_zip(tmp_path / "zip.pth", held, {"7": NUMBERS}),
            hand_made_legacy(tmp_path / "legacy.pth", held, {"7": (6, NUMBERS)}),
        ):
            assert "fetch it again" in refusal(path)

    def test_a_storage_that_is_not_as_large_as_it_says_is_refused(self, tmp_path):
        held = {"a": tensor(6, 0, (6,), (1,))}
        for path in (
            hand_made_zip(tmp_path / "short.pth", held, {"7": NUMBERS[:-1]}),
            hand_made_zip(tmp_path / "none.pth", held, {}),
            hand_made_legacy(tmp_path / "count.pth", held, {"7": (5, NUMBERS)}),
            hand_made_legacy(tmp_path / "unlisted.pth", held, {}),
            hand_made_legacy(tmp_path / "unknown.pth", held, {"7": (6, NUMBERS), "8": (0, b"")}),
        ):
            assert "fetch it again" in refusal(path)

    def test_a_storage_of_two_sizes_is_refused(self, tmp_path):
        held = {"a": tensor(6, 0, (6,), (1,)), "b": tensor(600, 500, (1,), (1,))}
        path = hand_made_zip(tmp_path / "w.pth", held, {"7": NUMBERS})
        assert "described in two ways" in refusal(path)

    def test_a_checked_tensor_cannot_be_changed(self, tmp_path):
        changed = tensor(6, 0, (6,), (1,))
        changed.state = [None, 0, (1000,), (1,)]
        path = hand_made_zip(tmp_path / "w.pth", {"a": changed}, {"7": NUMBERS})
        assert "fetch it again" in refusal(path)

    @pytest.mark.parametrize(
        "state", [b"}X\x01\x00\x00\x00xNs", b"N}X\x01\x00\x00\x00xNs\x86"], ids=["dict", "pair"]
    )
    def test_replacements_of_globals_cannot_be_changed(self, tmp_path, state):
        # The global, then {"x": None} or (None, {"x": None}), then BUILD: set the attribute.
        for (module, name), stand_in in ALLOWED.items():
            program = b"\x80\x02" + f"c{module}\n{name}\n".encode() + state + b"b."
            with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
                archive.writestr("archive/data.pkl", program)
            assert "its pickle is damaged" in refusal(tmp_path / "w.pth")
            assert not hasattr(stand_in, "x")

    def test_a_number_may_be_repeated(self, tmp_path):
        held = {"a": tensor(6, 2, (1000, 1000), (0, 0))}
        for path in (
            hand_made_zip(tmp_path / "zip.pth", held, {"7": NUMBERS}),
            hand_made_legacy(tmp_path / "legacy.pth", held, {"7": (6, NUMBERS)}),
        ):
            assert (read_weights(path)["a"] == np.full((1000, 1000), 2, np.float32)).all()

    @pytest.mark.parametrize(
        ("count", "shape", "strides"),
        [(1, (2**35,), (0,)), (1, (2**13, 2**13), (0, 0)), (100, (2**20,), (0,))],
        ids=["huge", "large", "many"],
    )
    def test_a_small_storage_cannot_fill_the_memory(self, tmp_path, count, shape, strides):
        held = {f"a{i}": tensor(1, 0, shape, strides) for i in range(count)}
        for path in (
            hand_made_zip(tmp_path / "zip.pth", held, {"7": NUMBERS[:4]}),
            hand_made_legacy(tmp_path / "legacy.pth", held, {"7": (1, NUMBERS[:4])}),
        ):
            with peak_below(2**20):
                assert "bytes of memory" in refusal(path)

    def test_a_checkpoint_that_was_zipped_again_is_read(self, tmp_path):
        held = {"a": tensor(6, 0, (6,), (1,))}
        path = hand_made_zip(tmp_path / "w.pth", held, {"7": NUMBERS}, zipfile.ZIP_DEFLATED)
        assert read_weights(path)["a"].tolist() == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize(
        ("elements", "compression", "message"),
        [
            (1, zipfile.ZIP_DEFLATED, "has 33554432 bytes, not as many as it says"),
            (2**23, zipfile.ZIP_BZIP2, "compressed in an unusual way"),
            (2**25, zipfile.ZIP_DEFLATED, "bytes of memory"),
        ],
    )
    def test_a_zip_bomb_is_refused_before_it_is_unpacked(
        self, tmp_path, elements, compression, message
    ):
        held = {"a": tensor(elements, 0, (1,), (1,))}
        zeros = bytes(4 * max(elements, 2**23))
        path = hand_made_zip(tmp_path / "w.pth", held, {"7": zeros}, compression)
        assert path.stat().st_size < 2**18
        with peak_below(2**20):
            assert message in refusal(path)

    def test_a_zip_bomb_with_a_wrong_length_is_unpacked_to_that_length(self, tmp_path):
        path = tmp_path / "w.pth"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", hand_pickled({"a": tensor(1, 0, (1,), (1,))}))
            archive.writestr("archive/data/7", bytes(2**25))
            archive.getinfo("archive/data/7").file_size = 4
        with peak_below(2**20):
            assert "Bad CRC-32" in refusal(path)

    @pytest.mark.parametrize(
        "program",
        [
            b"\x80\x02}r\xff\xff\xff\xef.",  # an empty dict is object number 4026531839
            b"\x80\x02}p4026531839\n.",  # the same in text
            b"\x80\x05\x96\x00\x00\x00\x00\x08\x00\x00\x00.",  # a bytearray of 32 GB
        ],
    )
    def test_numbers_that_ask_for_all_memory_are_refused(self, tmp_path, program):
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            archive.writestr("archive/data.pkl", program)
        assert "its pickle is damaged" in refusal(tmp_path / "w.pth")

    def test_the_name_of_a_refused_global_is_escaped(self, tmp_path):
        program = b"\x80\x04\x8c\x01a\x8c\x06b\n\x1b[2J\x93."
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            archive.writestr("archive/data.pkl", program)
        assert r"'a.b\n\x1b[2J" in refusal(tmp_path / "w.pth")


class TestNumpyAndSafetensors:
    def test_an_npz_reads_as_numpy_reads_it(self, tmp_path):
        tensors = {
            "a/w": np.arange(6.0).reshape(2, 3),
            "half": np.ones(2, np.float16),
            "steps": np.array(3),
            "flag": np.array([True]),
        }
        np.savez(tmp_path / "w.npz", **tensors)
        read = read_weights(tmp_path / "w.npz")
        assert list(read) == list(tensors)
        np.testing.assert_array_equal(read["a/w"], tensors["a/w"].astype(np.float32), strict=True)
        assert read["half"].dtype == np.float32
        assert read["steps"].dtype == np.int64
        assert read["flag"].dtype == np.bool_

    def test_numbers_too_large_for_float32_become_infinite(self, tmp_path):
        np.savez(tmp_path / "w.npz", a=np.array([1e300]))
        assert np.isinf(read_weights(tmp_path / "w.npz")["a"]).all()

    def test_bfloat16_in_an_npz_is_recognised_without_its_name(self, tmp_path):
        np.savez(tmp_path / "w.npz", a=np.array([1.5, -2], jnp.bfloat16))
        read = read_weights(tmp_path / "w.npz")["a"]
        np.testing.assert_array_equal(read, np.array([1.5, -2], np.float32), strict=True)

    def test_pickled_objects_in_an_npz_are_refused(self, tmp_path):
        np.savez(tmp_path / "w.npz", a=np.array([{}], object))
        assert "cannot be read" in refusal(tmp_path / "w.npz")

    def test_an_npz_bomb_is_refused_before_it_is_unpacked(self, tmp_path):
        zeros = io.BytesIO()
        np.save(zeros, np.zeros(2**25, np.float32))
        with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", zeros.getvalue())
        del zeros
        assert (tmp_path / "w.npz").stat().st_size < 2**18
        with peak_below(2**20):
            assert "bytes of memory" in refusal(tmp_path / "w.npz")

    @pytest.mark.parametrize(
        "header",
        [
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }",
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
            b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 900,
            b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
            b"' ' '",
        ],
        ids=["huge", "negative", "nested", "object", "unfinished"],
    )
    def test_the_header_of_an_array_is_checked(self, tmp_path, header):
        npy = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(8)
        with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
            archive.writestr("a.npy", npy)
        assert "'a.npy' in it is not an array" in refusal(tmp_path / "w.npz")

    @pytest.mark.parametrize(
        "values",
        [
            np.array(["a", "b"]),
            np.array([b"a"]),
            np.array([1 + 2j]),
            np.array(["2026-01-01"], "datetime64[D]"),
            np.zeros(2, [("x", "f4")]),
            np.zeros(2, "V3"),
        ],
        ids=lambda values: values.dtype.name,
    )
    def test_tensors_are_real_numbers(self, tmp_path, values):
        np.savez(tmp_path / "w.npz", a=values)
        assert "weights must be real numbers" in refusal(tmp_path / "w.npz")

    def test_a_safetensors_file_of_numpy_comes_back(self, tmp_path):
        tensors = {
            "a": np.arange(6, dtype=np.float32).reshape(2, 3),
            "b": np.array([1.5, 2], np.float16),
            "c": np.array([1.5, 2], np.float64),
            "d": np.array(3),
            "e": np.zeros((0, 2), np.float32),
        }
        save_file(tensors, tmp_path / "w.safetensors")
        read = read_weights(tmp_path / "w.safetensors")
        assert set(read) == set(tensors)
        for name in "abce":
            expected = tensors[name].astype(np.float32)
            np.testing.assert_array_equal(read[name], expected, strict=True)
        np.testing.assert_array_equal(read["d"], tensors["d"], strict=True)

    def test_a_safetensors_file_made_by_hand_is_read(self, tmp_path):
        header = (
            b'{"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},'
            b'"b":{"dtype":"F32","shape":[2,1],"data_offsets":[6,14]}}'
        )
        # bfloat16 is the upper half of a float32: 0x3FC0 is 1.5, 0xC000 is -2, 0x0000 is 0.
        data = struct.pack("<HHHff", 0x3FC0, 0xC000, 0, 4, 5)
        path = tmp_path / "w.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + data)
        read = read_weights(path)
        np.testing.assert_array_equal(read["a"], np.array([1.5, -2, 0], np.float32), strict=True)
        np.testing.assert_array_equal(read["b"], np.array([[4], [5]], np.float32), strict=True)

    def test_a_number_format_that_numpy_lacks_is_named(self, tmp_path):
        header = b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
        path = tmp_path / "w.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
        assert "F8_E4M3" in refusal(path)

    @pytest.mark.parametrize("ending", [".npz", ".safetensors"])
    def test_a_truncated_file_is_refused_wherever_it_was_cut(self, tmp_path, ending):
        path = tmp_path / f"w{ending}"
        if ending == ".npz":
            np.savez(path, a=np.arange(50.0), b=np.arange(20))
        else:
            save_file({"a": np.arange(50.0), "b": np.arange(20)}, path)
        for length in range(1, path.stat().st_size, 7):
            assert "fetch it again" in refusal(cut(path, length))


@pytest.fixture(scope="module")
def caffe():
    """Caffe's messages with the types of caffe.proto."""
    field = descriptor_pb2.FieldDescriptorProto
    int32, int64, string = field.TYPE_INT32, field.TYPE_INT64, field.TYPE_STRING
    messages = {
        "BlobShape": [("dim*", 1, int64)],
        "BlobProto": [
            *[
                (name, 1 + i, int32)
                for i, name in enumerate(("num", "channels", "height", "width"))
            ],
            ("data*", 5, field.TYPE_FLOAT),
            ("diff*", 6, field.TYPE_FLOAT),
            ("shape", 7, "BlobShape"),
            ("double_data*", 8, field.TYPE_DOUBLE),
        ],
        "LayerParameter": [
            ("name", 1, string),
            ("type", 2, string),
            ("bottom*", 3, string),
            ("blobs*", 7, "BlobProto"),
        ],
        "V1LayerParameter": [
            ("bottom*", 2, string),
            ("name", 4, string),
            ("type", 5, int32),
            ("blobs*", 6, "BlobProto"),
        ],
        "NetParameter": [
            ("name", 1, string),
            ("layers*", 2, "V1LayerParameter"),
            ("input*", 3, string),
            ("layer*", 100, "LayerParameter"),
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(name="test.proto", package="t", syntax="proto2")
    for message_name, fields in messages.items():
        message = file.message_type.add(name=message_name)
        for name, number, kind in fields:
            added = message.field.add(name=name.rstrip("*"), number=number)
            added.label = field.LABEL_REPEATED if name.endswith("*") else field.LABEL_OPTIONAL
            if isinstance(kind, str):
                added.type_name = f".t.{kind}"
            else:
                added.type = kind
                added.options.packed = name.endswith("*") and kind != string
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.NetParameter"))


def write(path: Path, network) -> Path:
    path.write_bytes(network.SerializeToString())
    return path


def legacy_blob(layer, shape, values):
    num, channels, height, width = shape
    layer.blobs.add(num=num, channels=channels, height=height, width=width, data=values)


def varint(number: int) -> bytes:
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def delimited(field: int, *parts: bytes) -> bytes:
    """Returns a field of a protocol buffer with its length first: wire type 2."""
    body = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(body)) + body


class TestCaffe:
    def test_the_blobs_of_a_layer_are_numbered(self, caffe, tmp_path):
        weights = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
        network = caffe(name="VGG", input=["data"])
        network.layer.add(name="data", type="Input")
        layer = network.layer.add(name="conv1_1", type="Convolution", bottom=["data"])
        layer.blobs.add(data=weights.ravel(), diff=[1, 2]).shape.dim[:] = weights.shape
        layer.blobs.add(data=[1, 2, 3, 4]).shape.dim[:] = [4]
        read = read_weights(write(tmp_path / "w.caffemodel", network))
        assert list(read) == ["conv1_1/0", "conv1_1/1"]
        np.testing.assert_array_equal(read["conv1_1/0"], weights, strict=True)
        np.testing.assert_array_equal(
            read["conv1_1/1"], np.array([1, 2, 3, 4], np.float32), strict=True
        )

    def test_double_data_becomes_float32(self, caffe, tmp_path):
        network = caffe()
        blob = network.layer.add(name="a").blobs.add(double_data=[0.1, 2])
        blob.shape.dim[:] = [2, 1]
        read = read_weights(write(tmp_path / "w.caffemodel", network))["a/0"]
        np.testing.assert_array_equal(read, np.array([[0.1], [2]], np.float32), strict=True)

    @pytest.mark.parametrize("kinds", [(4, 14), ("Convolution", "InnerProduct")], ids=["V1", "now"])
    def test_old_blobs_lose_their_empty_dimensions(self, caffe, tmp_path, kinds):
        network = caffe()
        layers = network.layers if isinstance(kinds[0], int) else network.layer
        convolution = layers.add(name="conv1", type=kinds[0])
        legacy_blob(convolution, (1, 1, 2, 3), range(6))  # one filter over one channel
        legacy_blob(convolution, (1, 1, 1, 1), [7])
        fully_connected = layers.add(name="fc6", type=kinds[1])
        legacy_blob(fully_connected, (1, 1, 2, 3), range(6))
        legacy_blob(fully_connected, (1, 1, 1, 2), [8, 9])
        single = layers.add(name="fc7", type=kinds[1])
        legacy_blob(single, (1, 1, 1, 3), range(3))  # a single output
        read = read_weights(write(tmp_path / "w.caffemodel", network))
        assert read["conv1/0"].shape == (1, 1, 2, 3)
        assert read["conv1/1"].shape == (1,)
        assert read["fc6/0"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert read["fc6/1"].tolist() == [8, 9]
        assert read["fc7/0"].tolist() == [[0, 1, 2]]

    def test_bytes_assembled_by_hand_are_read(self, tmp_path):
        number = struct.Struct("<f").pack
        weights = delimited(
            7,
            delimited(7, delimited(1, bytes([2, 3]))),  # shape { dim: 2 dim: 3 }
            delimited(5, *[number(value) for value in (1, 2)]),  # data in two pieces,
            delimited(5, *[number(value) for value in (3, 4, 5, 6)]),  # which is allowed
        )
        layer = delimited(
            100, delimited(1, b"fc"), delimited(2, b"InnerProduct"), weights, delimited(3, b"x")
        )
        # V1: varints (wire type 0) for num, channels, height, width and the type, 4: a convolution
        old_blob = delimited(
            6,
            bytes([1 << 3, 2, 2 << 3, 1, 3 << 3, 1, 4 << 3, 1]),
            delimited(5, number(7), number(8)),
        )
        old_layer = delimited(2, delimited(4, b"conv"), bytes([5 << 3, 4]), old_blob)
        path = tmp_path / "w.caffemodel"
        path.write_bytes(delimited(1, b"net") + layer + old_layer)
        read = read_weights(path)
        assert set(read) == {"fc/0", "conv/0"}
        np.testing.assert_array_equal(
            read["fc/0"], np.array([[1, 2, 3], [4, 5, 6]], np.float32), strict=True
        )
        np.testing.assert_array_equal(
            read["conv/0"], np.array([7, 8], np.float32).reshape(2, 1, 1, 1), strict=True
        )

    @pytest.mark.parametrize("shape", [[3], [2, 2], [], [-1, -2], [2**40, 2**40]])
    def test_numbers_that_do_not_fill_their_shape_are_refused(self, caffe, tmp_path, shape):
        network = caffe()
        blob = network.layer.add(name="conv1").blobs.add(data=[1, 2])
        blob.shape.dim[:] = shape
        message = refusal(write(tmp_path / "w.caffemodel", network))
        assert "conv1/0 has 2 numbers for the shape" in message

    def test_a_truncated_file_is_refused_wherever_a_layer_was_cut(self, caffe, tmp_path):
        network = caffe()
        network.layer.add(name="a").blobs.add(data=range(40)).shape.dim[:] = [40]
        path = write(tmp_path / "w.caffemodel", network)
        for length in range(1, path.stat().st_size, 3):
            assert "fetch it again" in refusal(cut(path, length))

    def test_a_network_without_weights_is_refused(self, caffe, tmp_path):
        network = caffe(name="deploy")
        network.layer.add(name="a", type="ReLU")
        assert "holds no tensors" in refusal(write(tmp_path / "w.caffemodel", network))

    def test_the_format_of_2013_is_refused_with_the_remedy(self, tmp_path):
        path = tmp_path / "w.caffemodel"
        path.write_bytes(delimited(2, delimited(1, delimited(1, b"conv1"))))
        assert "upgrade_net_proto_binary" in refusal(path)


class TestOtherFiles:
    def test_a_missing_file_and_a_folder_are_named(self, tmp_path):
        assert "none.pth (docs/weights.md says where" in refusal(tmp_path / "none.pth")
        assert "is a folder" in refusal(tmp_path)

    def test_an_unknown_ending_lists_those_that_are_known(self, tmp_path):
        (tmp_path / "w.h5").write_bytes(b"x")
        message = refusal(tmp_path / "w.h5")
        for ending in (".npz", ".safetensors", ".pth", ".pt", ".bin", ".tar", ".caffemodel"):
            assert ending in message

    @pytest.mark.parametrize("ending", ["npz", "safetensors", "pth", "caffemodel"])
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"\n <!DOCTYPE html><html><title>Sign in</title>", "is a web page"),
            (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "is a web page"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
                "git lfs pull",
            ),
            (b"these are no weights at all", "fetch it again"),
        ],
    )
    def test_failed_downloads_are_recognised(self, tmp_path, ending, content, message):
        path = tmp_path / f"w.{ending}"
        path.write_bytes(content)
        assert message in refusal(path)

    def test_a_tar_archive_is_to_be_unpacked(self, tmp_path):
        (tmp_path / "a").write_bytes(b"a")
        with tarfile.open(tmp_path / "w.tar", "w") as archive:
            archive.add(tmp_path / "a", "a")
        assert "unpack it" in refusal(tmp_path / "w.tar")
