"""Pictures through a model, at the speed of the device.

geometry   from a picture of any size to the model's input
feeder     processes that read and decode into shared memory, batches ahead
nvjpeg     JPEGs that the GPU decodes itself
forward    the model on a device: normalises, computes, halves its batch where memory ends
encode     shard after shard, so that the device never waits between two
"""

from typing import Literal

Precision = Literal["float16", "bfloat16", "float32"]
"""What a GPU computes in."""

Decode = Literal["reduced", "full", "gpu"]
"""How JPEGs are decoded.

reduced: at the smallest scale that is no smaller than the model's input, in a fraction of the time; pixels are a few
levels from what they would be. full: in full, as other tools do. gpu: in full, by the GPU; what it does not take
(progressive ones, pictures with a profile, all other formats) is decoded in full by processes."""
