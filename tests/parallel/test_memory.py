"""The available memory is read from copies of Linux's `/proc` and `/sys` files."""

from pathlib import Path

from fcn_jax.parallel.memory import available_bytes


def test_available_memory_is_within_the_limit_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4000 kB\nMemAvailable:   3000 kB\n")
    assert available_bytes(tmp_path) == 3000 * 1024
    limits = tmp_path / "sys/fs/cgroup"
    limits.mkdir(parents=True)
    (limits / "memory.current").write_text("700\n")
    (limits / "memory.stat").write_text("anon 400\ninactive_file 200\nactive_file 100\n")
    (limits / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) == 3000 * 1024
    (limits / "memory.max").write_text("2500\n")
    assert available_bytes(tmp_path) == 2000
    # Neither file exists: the fallback is half of this machine's memory.
    assert 1e8 < available_bytes(tmp_path / "nowhere") < 1e14
