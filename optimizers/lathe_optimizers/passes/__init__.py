"""The passes: the only modules that import torch, onnx and onnxruntime."""

import logging

# torchao registers an enum in a way that torch comments on at every import. The remark is nothing to the user, and the
# filter has to stand before the first import of torchao, which any module of this package may be.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "register_constant" not in record.getMessage())
