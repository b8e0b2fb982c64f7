"""cd images; find . -name '*.jpg' | python CLONE/launch/ray_predict.py RUN OUTPUT ACTORS GPUS
predicts images on a Ray cluster (pip install '.[ray]'), by ACTORS with GPUS each, which may be 0.
All nodes see RUN, OUTPUT and the images, such as mounted buckets. ./a/x.jpg becomes OUTPUT/a/x.png.
Started again, it predicts only what is missing, or changed since."""

import collections
import sys
from pathlib import Path

import ray.data

from fcn_jax import errors, load_run
from fcn_jax.inference.image_files import WHOLE, is_up_to_date, predict_file


class Actor:
    def __init__(self, run, images, output):
        self.network, self.images, self.output = load_run(run), images, output

    def __call__(self, batch):
        return {"result": [self.predict(name) for name in batch["item"]]}

    def predict(self, name):
        image, target = self.images / name, self.output / Path(name).with_suffix(".png")
        try:
            if not is_up_to_date(self.network, image, target, WHOLE, overlay=False):
                predict_file(self.network, image, target, overlay=False)
            return "up to date"
        except (errors.UserError, OSError) as error:
            return f"failed: {error}"


if __name__ == "__main__":
    places = [Path(place).absolute() for place in (sys.argv[1], ".", sys.argv[2])]
    pool, gpus = ray.data.ActorPoolStrategy(size=int(sys.argv[3])), float(sys.argv[4])
    names = ray.data.from_items(sys.stdin.read().splitlines(), override_num_blocks=1000)
    rows = names.map_batches(Actor, fn_constructor_args=places, compute=pool, num_gpus=gpus)
    results = collections.Counter(row["result"] for row in rows.iter_rows())
    print("\n".join(f"{count} {result}" for result, count in sorted(results.items())))
    sys.exit(any(result.startswith("failed") for result in results))
