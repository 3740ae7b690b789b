"""Reads a folder of event files with TensorBoard's own reader and prints what it found as JSON.

    pip install tensorboard && python tools/report/read_events.py RUN/tensorboard
"""

import hashlib
import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read(folder):
    events = EventAccumulator(folder, size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    return {
        "scalars": {tag: [[event.step, event.value] for event in events.Scalars(tag)] for tag in tags["scalars"]},
        "images": {
            tag: [
                {
                    "step": event.step,
                    "width_px": event.width,
                    "height_px": event.height,
                    "num_bytes": len(event.encoded_image_string),
                    "sha256": hashlib.sha256(event.encoded_image_string).hexdigest(),
                }
                for event in events.Images(tag)
            ]
            for tag in tags["images"]
        },
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: read_events.py FOLDER")
    json.dump(read(sys.argv[1]), sys.stdout, indent=1)
    print()
