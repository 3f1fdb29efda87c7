"""Reads the event files that tests/tensorboard.rs wrote into the folder given, with TensorBoard's own reader, and checks them.

Run by that test; by hand: python3 tests/tensorboard_reads.py FOLDER
"""

import io
import sys

from tensorboard.backend.event_processing import event_accumulator

reader = event_accumulator.EventAccumulator(sys.argv[1], size_guidance=event_accumulator.STORE_EVERYTHING_SIZE_GUIDANCE)
reader.Reload()

# Steps 1 to 5 of the first part, then the resumed run's: what the first part said of later steps is purged.
expected = [(step, 1 / step) for step in range(1, 6)] + [(step, 100.0 + step) for step in range(6, 13)]
scalars = [(event.step, event.value) for event in reader.Scalars("loss/train")]
assert [step for step, _ in scalars] == [step for step, _ in expected], scalars
for (step, found), (_, value) in zip(scalars, expected):
    assert abs(found - value) <= 1e-6 * value, (step, found, value)

pictures = reader.Images("samples")
assert [(p.step, p.width, p.height) for p in pictures] == [(5, 6, 4)], [(p.step, p.width, p.height) for p in pictures]
try:
    from PIL import Image
except ImportError:
    assert pictures[0].encoded_image_string.startswith(b"\x89PNG")
else:
    picture = Image.open(io.BytesIO(pictures[0].encoded_image_string))
    assert (picture.size, picture.mode) == ((6, 4), "RGB"), picture
    assert picture.tobytes() == bytes(i * 7 % 256 for i in range(72))

texts = reader.Tensors("config")
assert [t.tensor_proto.string_val[0].decode() for t in texts] == ["**seed** = 3, ü"], texts
assert reader.SummaryMetadata("config").plugin_data.plugin_name == "text"

print(f"ok: {len(scalars)} scalars, {len(pictures)} picture, {len(texts)} text")
