"""Pictures through a model, at the speed of the device.

geometry   from a picture of any size to the model's input
feeder     processes that read and decode into shared memory, batches ahead
forward    the model on a device: normalises, computes, halves its batch where memory ends
encode     shard after shard, so that the device never waits between two
"""

from typing import Literal

Precision = Literal["float16", "bfloat16", "float32"]
"""What a GPU computes in."""
