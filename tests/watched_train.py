"""Runs `python -m fcn_jax.train` and notes its compilations.

    python -m tests.watched_train FILE [flags of fcn_jax.train]

It writes a word to FILE for each program that JAX looks for in its cache, `requests`, and for each
that it finds there, `hits`.
"""

import runpy
import sys
from typing import Any

from fcn_jax.terminal import cli

EVENTS = {
    "/jax/compilation_cache/compile_requests_use_cache": "requests",
    "/jax/compilation_cache/cache_hits": "hits",
}


def main(path: str) -> None:
    run = cli.run

    def watched(*arguments: Any, **options: Any) -> None:
        # The command sets where programs are cached, which JAX reads when it is imported.
        from jax import monitoring

        monitoring.register_event_listener(note)
        run(*arguments, **options)

    with open(path, "a", buffering=1) as events:

        def note(event: str, **_: Any) -> None:
            if event in EVENTS and not events.closed:
                events.write(f"{EVENTS[event]}\n")

        cli.run = watched
        runpy.run_module("fcn_jax.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv.pop(1))
