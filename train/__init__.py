"""Words and pictures become a model: caching, data order, the packed DiT and its training loop."""

import logging
import warnings

# diffusers imports torchao where it is installed (extra `fast`), and both then warn of what does not concern its users.
for name in ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(name).setLevel(logging.ERROR)

# FlashAttention 4 and torchao's optimiser let the compiler warn of what is as it should be.
for message in ("Argument aux_data", "OptimState8bit does not implement"):
    warnings.filterwarnings("ignore", message)
