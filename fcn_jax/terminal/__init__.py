"""The commands' side of the terminal: flags, output, interruptions and files.

cli.py                 flags, settings, `--help`, errors in one line
host_flags.py          flags that join several processes
view_flags.py          flags of windows, scales and mirror images
progress.py            progress bars, and lines of results
console.py             tables
output.py              streams that may be closed
signals.py             Ctrl-C, SIGTERM and SIGHUP
atomic_files.py        files that are written whole or not at all
allocator.py           whether freed memory stays with the process
compilation_cache.py   JAX's cache of compiled programs
"""
