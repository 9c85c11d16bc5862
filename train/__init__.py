"""Words and pictures become a model: caching, data order, the packed DiT and its training loop."""

import logging

# diffusers imports torchao where it is installed (extra `fast`), and both then warn of what does not concern its users.
for name in ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(name).setLevel(logging.ERROR)
