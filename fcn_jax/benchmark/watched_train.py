"""`python -m fcn_jax.train`, its compilations noted.

    python -m fcn_jax.benchmark.watched_train FILE [flags of fcn_jax.train]

A program of the suite `startup`. It writes a word to FILE for each program that JAX looks for in
its cache, `requests`, and for each that it finds there, `hits`.
"""

import runpy
import sys
from typing import Any

from jax import monitoring

EVENTS = {
    "/jax/compilation_cache/compile_requests_use_cache": "requests",
    "/jax/compilation_cache/cache_hits": "hits",
}


def main(path: str) -> None:
    with open(path, "a", buffering=1) as events:

        def note(event: str, **_: Any) -> None:
            if event in EVENTS and not events.closed:
                events.write(f"{EVENTS[event]}\n")

        monitoring.register_event_listener(note)
        runpy.run_module("fcn_jax.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    file = sys.argv.pop(1)
    main(file)
